//! From what the pool says to what there is: devices recovered, volumes attached, leftovers removed.

use super::agent::Agent;
use super::devices::Lost;
use super::events::Subject;
use std::sync::Arc;
use store::Recovery;
use ublk_target::freeze;

impl Agent {
    /// Serves the live devices of an earlier agent again. Before anything else is served: whoever
    /// uses them waits.
    pub fn recover_devices(&self) {
        let recovery = self.pool.recovery();
        match recovery {
            Recovery::Clean => {}
            Recovery::PowerLoss => self.events.info(
                "pool_recovered",
                Subject::default(),
                "the pool was not closed: everything flushed is there",
            ),
            Recovery::Resumed => self.events.info(
                "pool_recovered",
                Subject::default(),
                "the last agent died: everything it acknowledged is there",
            ),
            Recovery::RingLost => self.events.error(
                "ring_lost",
                Subject::default(),
                "the last agent's ring is gone: what it acknowledged and had not flushed is lost, and devices \
                 that were in use fail; unmount and check their file systems",
            ),
        }
        for lost in self.devices.recover(&self.pool, recovery != Recovery::RingLost) {
            let Lost { volume, waits, reason } = lost;
            let volume = volume.unwrap_or_default();
            let (kind, what) = if waits { ("device_waits", "waits") } else { ("device_failed", "failed") };
            let message = format!("the device of volume {volume} {what}: {reason}");
            self.events.error(kind, Subject::volume(&volume), message);
        }
    }

    /// Removes what earlier agents left half done.
    pub fn clean_up(&self) {
        match freeze::thaw_leftovers(&self.config.run_dir) {
            0 => {}
            count => {
                let message = format!("{count} file systems that were left frozen are thawed");
                self.events.warn("thawed_leftovers", Subject::default(), message);
            }
        }
        self.delete_temporary_snapshots();
        let ids = self.devices.ids();
        for info in self.pool.volumes() {
            // A device that lives is one that was asked for: the mark was about to be set.
            if !info.attached
                && ids.contains(&info.id)
                && let Err(error) = self.pool.set_attached(&info.name, true)
            {
                tracing::warn!("volume {} is attached and not marked so: {error}", info.name);
            }
        }
    }

    /// Attaches each volume that is marked so, one after the other, each under its lock.
    pub async fn attach_marked(self: Arc<Self>) {
        for info in self.pool.volumes().into_iter().filter(|info| info.attached) {
            let name = info.name.clone();
            let names = [info.name.as_str()];
            let attached = self.alone(&names, move |agent| {
                // Meanwhile a client may have detached or deleted it.
                match agent.pool.volume(&name) {
                    Ok(info) if info.attached => agent.attach_volume(&name).map(drop),
                    _ => Ok(()),
                }
            });
            if let Err(error) = attached.await {
                let message = format!("volume {} has no device: {error}", info.name);
                self.devices.set_failure(info.id, Some(error.message));
                self.events.error("attach_failed", Subject::volume(&info.name), message);
            }
        }
    }
}
