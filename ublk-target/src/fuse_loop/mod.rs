//! Volumes as block devices on any kernel with FUSE: a loop device over a file that this process serves by FUSE.
//!
//! ```text
//! /dev/loopN → loop driver, direct I/O → FUSE file → /dev/fuse → server threads → Disk
//! ```
//!
//! - **One connection for each volume**, with one file in it. Volumes cannot hold each other up, and one is failed by
//!   aborting its connection.
//! - **The file system has no path.** It is mounted by fsmount(2) and never attached to the tree, so nothing is to be
//!   cleaned up, whatever instant the process dies at: descriptors are all there is. The loop device holds the file,
//!   the file holds the mount.
//! - **The connection lives as long as a descriptor of it is open**, so the holder has one from before the loop device
//!   exists until after it is gone. It is one open file shared by all server threads: a clone (FUSE_DEV_IOC_CLONE) has
//!   a list of unanswered requests of its own, which fail when its last descriptor is closed, so each clone would have
//!   to be held too.
//! - **Recovery** skips INIT, starts threads and writes FUSE_NOTIFY_RESEND (kernel 6.9). Kernels before it send nothing
//!   again: there the holder also keeps the memory that requests are read into (see `requests`). The name of the held
//!   descriptor says all there is to know about the connection (see `connection`).
//! - **Caching**: there is none. FOPEN_DIRECT_IO keeps buffered I/O out even if the loop driver fell back to it, and
//!   parallel direct writes keep the inode's lock shared. What the kernel caches are name and attributes, for ever.
//! - FUA arrives as write and flush: the loop driver knows no FUA.

mod abi;
mod connection;
mod loop_device;
mod requests;
mod server;

use crate::error::{Context, Result};
use crate::links::Links;
use crate::transport::{Attached, Identity, Recovered, Resolve, Transport};
use crate::{Disk, Error, FdStore};
use connection::Name;
use loop_device::{ClearError, LoopDevice};
use parking_lot::Mutex;
use requests::Requests;
use server::{DEFAULT_THREADS, MAX_PAYLOAD, Server};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const KIND: &str = "loop";

/// How long the kernel may take to end a connection whose file has been closed.
const TEARDOWN: Duration = Duration::from_secs(5);

/// How devices are made.
#[derive(Debug, Clone)]
pub struct FuseLoopOptions {
    /// Directory of the links, `/dev/cowslip`.
    pub link_dir: PathBuf,
    /// Server threads for each device.
    pub threads: usize,
    /// Whether a kernel that sends a dead server's requests again is asked to; else they are kept, as for other kernels.
    pub resend: bool,
}

impl Default for FuseLoopOptions {
    fn default() -> Self {
        Self { link_dir: "/dev/cowslip".into(), threads: DEFAULT_THREADS, resend: true }
    }
}

/// The transport `loop`.
pub struct FuseLoop {
    store: Arc<dyn FdStore>,
    options: FuseLoopOptions,
    links: Links,
}

impl FuseLoop {
    /// Devices whose descriptors are kept in `store`.
    pub fn new(store: Arc<dyn FdStore>, options: FuseLoopOptions) -> Self {
        let links = Links::new(&options.link_dir);
        Self { store, options, links }
    }

    /// The descriptor is in the store before the loop device exists: at no instant can a death of this process leave
    /// a device that nobody can serve.
    fn make_device(
        &self,
        fuse: &OwnedFd,
        mount: &OwnedFd,
        (server, requests): (&Server, &Requests),
        identity: &Identity,
    ) -> Result<(Name, LoopDevice)> {
        let number = connection::number(mount)?;
        let name = Name { key: identity.key.clone(), connection: number, max_payload: MAX_PAYLOAD };
        let file = connection::open_file(mount, &name)?;
        let text = name.to_string();
        if !server.kernel_resends() {
            let kept = name.of_requests();
            self.store.put(&kept, requests.file()).context("deposit descriptor", kept)?;
        }
        self.store.put(&text, fuse.as_fd()).context("deposit descriptor", &text)?;
        match LoopDevice::configure(file.as_fd(), &text, identity.block_size) {
            Ok(device) => Ok((name, device)),
            Err(e) => {
                self.forget(&name);
                Err(e)
            }
        }
    }

    /// The requests last: without the connection they are nothing.
    fn forget(&self, name: &Name) {
        for kept in [name.to_string(), name.of_requests()] {
            if let Err(e) = self.store.remove(&kept) {
                tracing::warn!(kept, error = %e, "a descriptor stays in the holder until the holder ends");
            }
        }
    }

    fn recover_one(&self, held: Held, resolve: &Resolve<'_>) -> Option<Recovered> {
        let Held { name, fuse, requests } = held;
        let device = LoopDevice::find(&name.to_string());
        let (Some(device), Some(fuse)) = (device, fuse.filter(connection::is_fuse)) else {
            // The process died while it made the device, or somebody has cleared it since.
            self.forget(&name);
            return None;
        };
        let failed = |reason: String| {
            tracing::error!(device = %device.path().display(), reason, "the device is failed");
            Some(Recovered::Failed { key: name.key.clone(), reason })
        };
        let Some((volume_name, disk)) = resolve(&name.key) else {
            let result = self.fail(&name, device, fuse);
            return failed(
                result.err().map_or_else(|| "its volume is not to be served".into(), |e| e.to_string()),
            );
        };
        let serve = || -> Result<Box<dyn Attached>> {
            Links::check(&volume_name)?;
            let place = || device.path().display().to_string();
            let resends = requests.is_none();
            let requests = match requests {
                Some(kept) => Requests::found(kept, name.max_payload),
                None => Requests::new(name.max_payload, self.options.threads),
            };
            let requests = Arc::new(requests.context("find the requests of", place())?);
            let server = Server::new(fuse, disk.clone(), &volume_name, resends);
            server.take_over(&requests).context("serve", place())?;
            if resends {
                server.resend().context("ask for open requests of", place())?;
            }
            let identity = Identity::new(name.key.clone(), volume_name.clone());
            let attachment = self.attachment(identity, name.clone(), device, server, disk.clone());
            attachment.links.set(&volume_name, &device.path())?;
            // The volume may have grown after the death and before its device did.
            attachment.resize()?;
            Ok(Box::new(attachment))
        };
        match serve() {
            Ok(attachment) => Some(Recovered::Live(attachment)),
            Err(e) => {
                let reason = e.to_string();
                tracing::error!(device = %device.path().display(), reason, "the device waits for the next start");
                Some(Recovered::Waiting { key: name.key.clone(), reason })
            }
        }
    }

    /// Makes the device answer EIO and lets it go with its last user.
    fn fail(&self, name: &Name, device: LoopDevice, fuse: OwnedFd) -> Result<()> {
        let aborted = connection::abort(name.connection);
        self.forget(name);
        drop(fuse); // the last descriptor: closing it aborts too
        aborted.and(device.clear_lazily())
    }

    fn attachment(
        &self,
        identity: Identity,
        name: Name,
        device: LoopDevice,
        server: Server,
        disk: Arc<dyn Disk>,
    ) -> Attachment {
        let (store, links) = (Arc::clone(&self.store), self.links.clone());
        Attachment {
            identity,
            name,
            device,
            path: device.path(),
            server,
            disk,
            store,
            links,
            ended: Mutex::new(false),
        }
    }
}

/// What the holder has of one connection.
struct Held {
    name: Name,
    fuse: Option<OwnedFd>,
    requests: Option<OwnedFd>,
}

/// Puts together what belongs together; what is not of this transport stays with the holder.
fn by_connection(held: Vec<(String, OwnedFd)>) -> Vec<Held> {
    let mut all: BTreeMap<String, Held> = BTreeMap::new();
    for (text, fd) in held {
        let connection = text.strip_suffix(connection::REQUESTS);
        let Some(name) = Name::parse(connection.unwrap_or(&text)) else { continue };
        let one = all.entry(name.to_string()).or_insert(Held { name, fuse: None, requests: None });
        *(if connection.is_some() { &mut one.requests } else { &mut one.fuse }) = Some(fd);
    }
    all.into_values().collect()
}

impl Transport for FuseLoop {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn attach(&self, disk: Arc<dyn Disk>, identity: &Identity) -> Result<Box<dyn Attached>> {
        identity.check()?;
        let (size, block_size) = (disk.len(), identity.block_size);
        if size == 0 || !size.is_multiple_of(4096) {
            return Err(Error::Invalid {
                what: format!("size of volume {}: {size} bytes", identity.volume_name),
                why: "must be a multiple of 4096 above 0".into(),
            });
        }
        let fuse = connection::open_fuse()?;
        // First, because before that a read fails on some kernels and waits on others. Nothing is asked yet.
        let mount = connection::mount_fuse(&fuse)?;
        let own = fuse.try_clone().context("duplicate", "a FUSE descriptor")?;
        let start = || {
            let requests = Arc::new(Requests::new(MAX_PAYLOAD, self.options.threads)?);
            let server = Server::new(own, disk.clone(), &identity.volume_name, self.options.resend);
            server.start(&requests)?;
            Ok((server, requests))
        };
        let (server, requests) =
            start().context("lock memory for and start the threads of", &identity.volume_name)?;
        let made = self.make_device(&fuse, &mount, (&server, &requests), identity);
        drop((fuse, mount)); // after a failure this ends the connection, and with it the server's threads
        let (name, device) = made?;
        device.tune(MAX_PAYLOAD);
        let attachment = self.attachment(identity.clone(), name, device, server, disk);
        let finish = || {
            if !device.is_direct() {
                return Err(Error::Unsupported {
                    missing: format!(
                        "{} does no direct I/O with blocks of {block_size} bytes",
                        device.path().display()
                    ),
                    hint: "see the kernel's log",
                });
            }
            self.links.set(&identity.volume_name, &device.path())
        };
        match finish() {
            Ok(()) => Ok(Box::new(attachment)),
            Err(e) => {
                let _ = attachment.detach();
                Err(e)
            }
        }
    }

    fn recover(&self, resolve: &Resolve<'_>) -> Vec<Recovered> {
        let held = match self.store.take_all() {
            Ok(held) => held,
            Err(e) => {
                tracing::error!(error = %e, "the descriptors of live devices cannot be fetched");
                return Vec::new();
            }
        };
        let found: Vec<Recovered> =
            by_connection(held).into_iter().filter_map(|held| self.recover_one(held, resolve)).collect();
        let live: Vec<u32> = found
            .iter()
            .filter_map(|one| match one {
                Recovered::Live(attached) => Some(attached.device_number().1),
                Recovered::Failed { .. } | Recovered::Waiting { .. } => None,
            })
            .collect();
        self.links.sweep("/dev/loop", |number| live.contains(&number));
        found
    }
}

/// A device of this transport.
struct Attachment {
    identity: Identity,
    name: Name,
    device: LoopDevice,
    path: PathBuf,
    server: Server,
    disk: Arc<dyn Disk>,
    store: Arc<dyn FdStore>,
    links: Links,
    /// Whether it was detached. Held while detach and resize run: they exclude each other.
    ended: Mutex<bool>,
}

impl Attachment {
    fn is_ours(&self) -> bool {
        self.device.backing_name().is_some_and(|name| name == self.name.to_string())
    }
}

impl Attached for Attachment {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn device(&self) -> &Path {
        &self.path
    }

    fn device_number(&self) -> (u32, u32) {
        (loop_device::MAJOR, self.device.0)
    }

    fn is_alive(&self) -> bool {
        self.server.is_alive()
    }

    fn resize(&self) -> Result<()> {
        let ended = self.ended.lock();
        if *ended || !self.is_ours() {
            return Err(self.identity.gone(&self.path));
        }
        let new = self.disk.len();
        if !self.identity.must_grow(&self.path, self.device.size()?, new)? {
            return Ok(());
        }
        self.server.announce_len(new).context("announce the size of", self.path.display())?;
        self.device.take_size()?;
        match self.device.size()? {
            size if size == new => Ok(()),
            size => Err(Error::Unsupported {
                missing: format!("{} stayed at {size} of {new} bytes", self.path.display()),
                hint: "detach and attach the volume to see its new size",
            }),
        }
    }

    fn rename(&mut self, volume_name: &str) -> Result<()> {
        self.identity.rename(volume_name, &self.links, &self.path)
    }

    fn detach(&self) -> Result<()> {
        let mut ended = self.ended.lock();
        if *ended {
            return Ok(());
        }
        // Somebody else may have cleared the device, and yet another may use it by now.
        if self.is_ours() {
            self.device.clear_unused().map_err(|e| match e {
                ClearError::Busy(holder) => Error::Busy {
                    volume: self.identity.volume_name.clone(),
                    device: self.path.display().to_string(),
                    holder,
                },
                ClearError::Io(what, source) => {
                    Error::Io { what, place: self.path.display().to_string(), source }
                }
            })?;
        }
        *ended = true;
        self.links.remove(&self.identity.volume_name, &self.path)?;
        if !self.server.wait_ended(TEARDOWN) {
            tracing::warn!(device = %self.path.display(), "the kernel has not ended the connection yet");
        }
        self.server.stop();
        for kept in [self.name.to_string(), self.name.of_requests()] {
            self.store.remove(&kept).context("remove the deposited descriptor", kept)?;
        }
        Ok(())
    }
}
