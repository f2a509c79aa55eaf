//! A volume's live ublk device.

use super::abi::{SECTOR, flag};
use super::control::{Control, REMOVAL};
use super::node::{Node, Properties, cannot_grow};
use super::server::Server;
use crate::Disk;
use crate::error::{Context, Error, Result};
use crate::links::Links;
use crate::mounts;
use crate::transport::{Attached, Identity};
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a short-lived opener (udev's probe) is waited for.
const SETTLE: Duration = Duration::from_secs(2);
/// How long the threads may take to see that their device was stopped.
const ENDING: Duration = Duration::from_secs(5);

/// A device of this transport.
pub(super) struct Attachment {
    pub identity: Identity,
    pub node: Node,
    pub path: PathBuf,
    pub number: (u32, u32),
    pub server: Server,
    pub disk: Arc<dyn Disk>,
    pub control: Arc<Control>,
    pub links: Links,
    pub properties: Properties,
    /// Whether it was detached. Held while detach and resize run: they exclude each other.
    pub ended: Mutex<bool>,
}

impl Attachment {
    fn busy(&self, holder: &str) -> Error {
        Error::Busy {
            volume: self.identity.volume_name.clone(),
            device: self.path.display().to_string(),
            holder: mounts::user_of(self.number, &self.path).unwrap_or_else(|| holder.into()),
        }
    }

    /// Stops the device if nobody uses it; else says who does, and nothing has changed.
    fn stop_unused(&self) -> Result<()> {
        if let Some(holder) = mounts::user_of(self.number, &self.path) {
            return Err(self.busy(&holder));
        }
        let start = Instant::now();
        loop {
            if self.try_stop()? {
                return Ok(());
            }
            // Usually udev looks at it.
            if start.elapsed() > SETTLE {
                return Err(self.busy("opened by a process that cannot be seen from here"));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// False: somebody has it open. The kernel decides that where it can (7.0); before, it is asked a moment earlier
    /// whether anybody claims the device.
    fn try_stop(&self) -> Result<bool> {
        if self.control.features().has(flag::SAFE_STOP_DEV) {
            return self.control.try_stop(self.node.0);
        }
        match self.node.claim() {
            Ok(claim) => {
                if let Err(error) = claim.sync_all() {
                    let device = self.path.display();
                    tracing::warn!(%device, %error, "what was written last could not be stored");
                }
            }
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => return Ok(false),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENXIO | libc::ENOENT | libc::ENODEV)) => {}
            Err(e) => return Err(e).context("open", self.path.display()),
        }
        self.control.stop(self.node.0).map(|()| true)
    }
}

impl Attached for Attachment {
    fn kind(&self) -> &'static str {
        super::KIND
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn device(&self) -> &Path {
        &self.path
    }

    fn device_number(&self) -> (u32, u32) {
        self.number
    }

    fn is_alive(&self) -> bool {
        self.server.is_alive()
    }

    fn copies(&self) -> Option<u64> {
        self.server.copies()
    }

    fn resize(&self) -> Result<()> {
        let ended = self.ended.lock();
        if *ended || !self.is_alive() {
            return Err(self.identity.gone(&self.path));
        }
        let new = self.disk.len();
        if !self.identity.must_grow(&self.path, self.node.size()?, new)? {
            return Ok(());
        }
        if !self.control.features().has(flag::UPDATE_SIZE) {
            return Err(cannot_grow());
        }
        self.control.update_size(self.node.0, new / SECTOR)
    }

    fn rename(&mut self, volume_name: &str) -> Result<()> {
        self.identity.rename(volume_name, &self.links, &self.path)
    }

    fn detach(&self) -> Result<()> {
        let mut ended = self.ended.lock();
        if *ended {
            return Ok(());
        }
        // Threads that have ended by themselves say that somebody else has stopped it.
        if self.is_alive() {
            self.stop_unused()?;
        }
        *ended = true;
        self.links.remove(&self.identity.volume_name, &self.path)?;
        self.properties.remove(self.node);
        if !self.server.wait_ended(ENDING) {
            tracing::warn!(device = %self.path.display(), "its threads have not seen yet that it is stopped");
        }
        self.server.stop();
        self.control.delete(self.node.0, REMOVAL)
    }
}
