//! The pool as its users see it: made, opened, asked, changed, closed.

mod control;
mod find;
mod info;
mod init;
mod open;

pub use init::{InitOptions, format_device};
pub use open::{Environment, OpenOptions, ring_bytes};

/// The steps of an open that the offline tools take one by one.
pub(crate) mod open_for_check {
    pub use super::open::{Segments, read_checkpoint, read_segments, read_superblock, snapshot_name};
}

use crate::core::Core;
use crate::{Recovery, Result};
use parking_lot::Mutex;
use std::sync::Arc;
use std::thread::JoinHandle;

/// An open pool. The process that has one open for writing is its only owner.
pub struct Pool {
    pub(crate) core: Arc<Core>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Pool {
    /// How the last open found the pool.
    pub fn recovery(&self) -> Recovery {
        self.core.recovery
    }

    /// Everything acknowledged before the call survives power loss when this returns.
    pub fn flush(&self) -> Result<()> {
        self.core.flush_now()
    }

    /// Runs a checkpoint: the memtable goes into the trees, deletions go on by a slice.
    pub fn checkpoint(&self) -> Result<()> {
        self.core.checkpoint_now()
    }

    /// Versions whose deletion was asked for and that hold no space for others: work left to do.
    pub fn pending_deletions(&self) -> u64 {
        let catalog = self.core.catalog.lock();
        catalog.versions.values().filter(|v| v.doomed && catalog.children_of(v.id).len() <= 1).count() as u64
    }

    /// Waits until pending deletions are done.
    pub fn settle(&self) -> Result<()> {
        while self.pending_deletions() > 0 {
            self.core.checkpoint_now()?;
        }
        Ok(())
    }

    /// Flushes, checkpoints and marks the pool as closed cleanly. Later changes answer `Poisoned`.
    pub fn close(&self) -> Result<()> {
        if self.core.read_only {
            return Ok(());
        }
        let result = self.core.checkpoint_now();
        self.stop();
        result?;
        // One more, now that nothing of the checkpointer runs: what came meanwhile.
        self.core.run_checkpoint()?;
        let mut state = self.core.checkpoint.lock();
        state.superblock.set_clean();
        self.core.write_superblock(&mut state)?;
        self.core.poison.close();
        Ok(())
    }

    fn stop(&self) {
        self.core.orders.lock().stop = true;
        self.core.ordered.notify_all();
        for thread in self.threads.lock().drain(..) {
            // It has told its panic on its own.
            let _ = thread.join();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.stop();
    }
}
