//! Devices that an earlier process left.

use super::abi::{DeviceInfo, flag, state};
use super::control::{Control, REMOVAL, is_running};
use super::node::Node;
use super::queue::Served;
use super::server::Server;
use super::stamp::Stamp;
use super::{Found, Ublk};
use crate::Disk;
use crate::error::{Error, Result};
use crate::links::Links;
use crate::transport::{Attached, Identity, Recovered, Resolve, VolumeKey};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the last server's files may take to close, all together, once the pool's lock says that its writes have
/// landed.
const LAST_SERVER: Duration = Duration::from_secs(30);
/// How long a failed device is waited for: its users may keep it open as long as they like.
const FAILING: Duration = Duration::from_millis(500);
/// Devices recovered at the same time.
const AT_ONCE: usize = 8;

/// Serves, fails or removes every device of the pool.
pub(super) fn all(ublk: &Ublk, resolve: &Resolve<'_>) -> Vec<Recovered> {
    let mut recovered = Vec::new();
    let mut jobs = Vec::new();
    for Found { key, info } in find(ublk) {
        match resolve(&key) {
            Some((name, disk)) => jobs.push(Job { key, info, name, disk }),
            None => recovered.push(fail(ublk, key, &info, "its volume is not to be served".into())),
        }
    }
    let until = Instant::now() + LAST_SERVER;
    let at_once = jobs.len().min(AT_ONCE);
    let jobs = Mutex::new(jobs.into_iter());
    let next = || jobs.lock().next();
    let serve_some =
        || std::iter::from_fn(next).map(|job| serve_or_tell(ublk, job, until)).collect::<Vec<_>>();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..at_once).map(|_| scope.spawn(serve_some)).collect();
        for thread in threads {
            // A panic there is one here: the process ends and is started again.
            recovered.extend(thread.join().expect("recovery of a device"));
        }
    });
    let live: Vec<u32> = Control::devices();
    ublk.links.sweep("/dev/ublkb", |number| live.contains(&number));
    ublk.properties.sweep(|number| live.contains(&number));
    recovered
}

struct Job {
    key: VolumeKey,
    info: DeviceInfo,
    name: String,
    disk: Arc<dyn Disk>,
}

/// The pool's devices that were started once. Others of ours, which a killed attach, detach or probe left, are removed.
fn find(ublk: &Ublk) -> Vec<Found> {
    let mut found = Vec::new();
    for id in Control::devices() {
        let info = match ublk.control.info(id) {
            Ok(Some(info)) => info,
            Ok(None) => continue,
            Err(error) => {
                tracing::warn!(%error, "a ublk device is left alone");
                continue;
            }
        };
        let stamp = Stamp::from_raw(info.stamp);
        if stamp.is_probe() {
            if !is_running(info.server_pid) {
                remove(ublk, id);
            }
        } else if let Some(key) = stamp.volume_of(&ublk.pool_id) {
            if info.state == state::DEAD {
                remove(ublk, id);
            } else {
                found.push(Found { key, info });
            }
        }
    }
    found
}

fn remove(ublk: &Ublk, id: u32) {
    tracing::info!(device = id, "removing a ublk device that was never started, or is stopped");
    if let Err(error) = ublk.control.delete(id, REMOVAL) {
        tracing::warn!(%error, "a ublk device that nobody needs stays");
    }
}

/// Makes the device answer EIO and go with its last user.
fn fail(ublk: &Ublk, key: VolumeKey, info: &DeviceInfo, reason: String) -> Recovered {
    let device = Node(info.id).path();
    tracing::error!(device = %device.display(), reason, "the device is failed");
    match ublk.control.delete(info.id, FAILING) {
        Ok(()) | Err(Error::Timeout { .. }) => Recovered::Failed { key, reason },
        Err(e) => Recovered::Waiting { key, reason: format!("{reason}; {e}") },
    }
}

fn serve_or_tell(ublk: &Ublk, job: Job, until: Instant) -> Recovered {
    let (key, id) = (job.key.clone(), job.info.id);
    match serve(ublk, job, until) {
        Ok(attachment) => Recovered::Live(attachment),
        Err(e) => {
            let reason = e.to_string();
            let device = Node(id).path();
            tracing::error!(device = %device.display(), reason, "the device waits for the next start");
            Recovered::Waiting { key, reason }
        }
    }
}

fn serve(ublk: &Ublk, job: Job, until: Instant) -> Result<Box<dyn Attached>> {
    let Job { key, info, name, disk } = job;
    let node = Node(info.id);
    Links::check(&name)?;
    let (size, disk_size) = (node.size()?, disk.len());
    if size > disk_size {
        return Err(Error::Invalid {
            what: format!("size of {}: {size} bytes", node.path().display()),
            why: format!("volume {name} has only {disk_size}"),
        });
    }
    let start = Instant::now();
    ublk.control.start_recovery(node.0, until.saturating_duration_since(start))?;
    let waited_us = start.elapsed().as_micros();
    let may_share = info.flags & flag::PER_IO_DAEMON != 0;
    let served = Served::open(&info, ublk.threads_per_queue(may_share, info.depth, &*disk), &disk)?
        .with_places(ublk.options.zero_copy_places);
    let opened_us = start.elapsed().as_micros();
    let server = Server::start(served)?;
    let fetching_us = start.elapsed().as_micros();
    ublk.control.end_recovery(node.0)?;
    node.wait()?;
    let served_us = start.elapsed().as_micros();
    tracing::debug!(
        device = node.0,
        waited_us,
        opened_us,
        fetching_us,
        served_us,
        "a device is served again"
    );
    ublk.properties.set(node, &key);
    let identity = Identity::new(key, name);
    let attachment = ublk.attachment(identity, node, server, disk)?;
    attachment.links.set(&attachment.identity.volume_name, &attachment.path)?;
    // The volume may have grown after the death and before its device did. Where it cannot, the next attach does it.
    match attachment.resize() {
        Ok(()) | Err(Error::Unsupported { .. }) => {}
        Err(e) => return Err(e),
    }
    Ok(Box::new(attachment))
}
