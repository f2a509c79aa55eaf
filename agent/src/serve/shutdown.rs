//! The end of an agent that was asked to stop.

use super::agent::Agent;
use super::errors::of_store;
use super::events::Subject;
use api::Result;
use std::future::Future;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal as on};

/// How long requests and operations that are under way may take.
pub const GRACE: Duration = Duration::from_secs(5);

/// Ends with the name of the first signal that asks the agent to stop. SIGHUP is ignored: there is
/// nothing to read again, and a closed terminal is no reason to take devices away.
pub fn signal() -> anyhow::Result<impl Future<Output = &'static str>> {
    let (mut terminate, mut interrupt) = (on(SignalKind::terminate())?, on(SignalKind::interrupt())?);
    let mut hang_up = on(SignalKind::hangup())?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => return "SIGTERM",
                _ = interrupt.recv() => return "SIGINT",
                Some(()) = hang_up.recv() => {}
            }
        }
    })
}

impl Agent {
    /// Takes away what nobody uses and closes the pool. What is in use stays alive, its I/O waiting for
    /// the next agent. Volumes stay marked: the next agent attaches them again.
    pub fn shut_down(&self) -> Result<()> {
        self.snapshots_mount.unmount();
        let mut all_parked = true;
        for id in self.devices.ids() {
            // Busy is the usual answer for a mounted one.
            if let Err(error) = self.devices.detach(id) {
                let message = format!("a device stays for the next agent: {error}");
                self.events.info("device_left", Subject::default(), message);
                all_parked &= self.devices.park(id);
            }
        }
        if all_parked {
            self.pool.close().map_err(of_store)?;
            self.ring.remove();
            Ok(())
        } else {
            // A device is still served by an operation that hangs. Closed under it, it would fail;
            // as it is, the next agent finds what a killed one leaves.
            self.pool.flush().map_err(of_store)
        }
    }
}
