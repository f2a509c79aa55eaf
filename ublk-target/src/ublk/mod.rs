//! Volumes as ublk block devices: the kernel's driver for block devices that a process serves, multi-queue.
//!
//! ```text
//! /dev/ublkbN → ublk_drv → a command in the ring of a queue's thread → Volume → requests in the same ring → pool
//! ```
//!
//! - **A device lives in the kernel**, not in this process. Every device is made to be recovered: when the process dies,
//!   requests wait, and those it was at are asked again of the next one. Nothing needs to be kept by a holder.
//! - **A device's stamp** (`stamp`) says which volume of which pool it is. It is compared before a device is touched:
//!   a recovered device can never serve another volume, and other software's devices are left alone.
//! - **Recovery** begins when the pool's lock is held, so no write of the dead process can land any more, and ends with
//!   the device served as it was: number and depth of queues and the size of requests are the kernel's, whatever this
//!   version would choose.
//! - **One thread a queue, one task a tag.** A task that waits for the pool waits in the ring, so a queue's requests are
//!   under way together, and one system call serves the driver and the pool. Disks that are no volumes are asked by
//!   calls that block.
//! - **A device is shown when it can be used**: its link is made after its start has ended and it could be opened.
//! - **Copies**: where the driver offers it (AUTO_BUF_REG), none: a request's pages are a buffer of the ring, and go to and
//!   from the pool's file as they are. Only what has a checksum is looked at. Elsewhere data are copied once, between
//!   the request and a buffer of its tag. The buffers are locked, and only what was used of them is there: taking that
//!   apart is most of the time in which a killed process's devices stand still.

mod abi;
mod control;
mod device;
mod node;
mod probe;
mod queue;
mod recover;
mod request;
mod server;
mod stamp;
mod tasks;

pub use probe::usable;

use crate::Disk;
use crate::error::{Error, Result};
use crate::links::Links;
use crate::transport::{Attached, Identity, Recovered, Resolve, Transport, VolumeKey};
use abi::{Params, flag};
use control::Control;
use device::Attachment;
use node::{Node, Properties};
use parking_lot::Mutex;
use queue::{Geometry, Served};
use server::Server;
use stamp::Stamp;
use std::path::PathBuf;
use std::sync::Arc;

const KIND: &str = "ublk";

/// How devices are made.
#[derive(Debug, Clone)]
pub struct UblkOptions {
    /// Directory of the links, `/dev/cowslip`.
    pub link_dir: PathBuf,
    /// Directory of what udev is told about devices, `/run/cowslip/udev`.
    pub properties_dir: PathBuf,
    /// Queues of a device, at most one for each CPU.
    pub queues: u16,
    /// Requests that a queue has under way at once.
    pub depth: u16,
    /// Largest request in bytes. A queue has `depth` buffers of this size.
    pub max_io_bytes: u32,
    /// Whether data go between a request's own pages and the pool, where the driver offers it (kernel 6.16).
    pub zero_copy: bool,
    /// Requests of a queue that can do so at once; others are copied, as all are whose pages the kernel cannot register.
    pub zero_copy_places: u16,
    /// Threads that share a queue whose disk makes them wait, where the driver lets them (kernel 6.16).
    pub waiting_threads: u16,
}

impl Default for UblkOptions {
    fn default() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            link_dir: "/dev/cowslip".into(),
            properties_dir: "/run/cowslip/udev".into(),
            queues: u16::try_from(cpus).unwrap_or(MAX_QUEUES).min(MAX_QUEUES),
            depth: 64,
            max_io_bytes: 512 << 10,
            zero_copy: true,
            zero_copy_places: u16::MAX,
            waiting_threads: 4,
        }
    }
}

/// More do not help one volume, and each costs threads and memory.
const MAX_QUEUES: u16 = 4;

/// The transport `ublk`.
pub struct Ublk {
    pool_id: String,
    control: Arc<Control>,
    options: UblkOptions,
    links: Links,
    properties: Properties,
}

/// Whether a ublk device on this machine waits for a server: a pool that is locked may then be one whose agent has
/// just died.
pub fn any_unserved() -> bool {
    control::any_unserved()
}

/// Whether there are ublk devices at all, of whomever.
pub fn any_device() -> bool {
    !Control::devices().is_empty()
}

impl Ublk {
    /// Devices of one pool's volumes.
    ///
    /// # Errors
    /// [`Error::Unsupported`] saying what this kernel lacks, and what to do.
    pub fn new(pool_id: &str, options: UblkOptions) -> Result<Self> {
        Ok(Self {
            pool_id: pool_id.into(),
            control: Arc::new(Control::open()?),
            links: Links::new(&options.link_dir),
            properties: Properties::new(&options.properties_dir),
            options,
        })
    }

    /// Whether an earlier process left devices of this pool.
    pub fn has_devices(&self) -> bool {
        Control::devices().into_iter().any(|id| {
            let info = self.control.info(id).ok().flatten();
            info.is_some_and(|info| Stamp::from_raw(info.stamp).volume_of(&self.pool_id).is_some())
        })
    }

    fn geometry(&self, stamp: Stamp, disk: &dyn Disk) -> Geometry {
        Geometry {
            queues: self.options.queues,
            depth: self.options.depth,
            max_io_bytes: self.options.max_io_bytes,
            threads_per_queue: self.threads_per_queue(
                self.control.features().has(flag::PER_IO_DAEMON),
                self.options.depth,
                disk,
            ),
            flags: flag::USER_RECOVERY | flag::USER_RECOVERY_REISSUE | self.copy_flags(disk),
            stamp,
        }
    }

    /// Only a ring takes requests from their pages.
    fn copy_flags(&self, disk: &dyn Disk) -> u64 {
        let offered = self.control.features().has(flag::ZERO_COPY);
        if self.options.zero_copy && offered && is_on_ring(disk) { flag::ZERO_COPY } else { 0 }
    }

    /// A thread that drives the disk on its ring has all of a queue's requests under way; one that waits for the disk
    /// needs others beside it.
    fn threads_per_queue(&self, may_share: bool, depth: u16, disk: &dyn Disk) -> u16 {
        if is_on_ring(disk) || !may_share { 1 } else { self.options.waiting_threads.clamp(1, depth.max(1)) }
    }

    /// Parameters, threads, start: of a device that was added. After an error there is none.
    fn start(&self, served: Served, disk: &dyn Disk, block_size: u32) -> Result<(Node, Server)> {
        let node = Node(served.id());
        let start = || {
            control::check_granted(served.info())?;
            let params = Params::of_disk(disk.len(), block_size, served.info());
            self.control.set_params(node.0, params)?;
            let server = Server::start(served)?;
            self.control.start(node.0)?;
            node.wait()?;
            Ok(server)
        };
        start().map(|server| (node, server)).inspect_err(|_| {
            // The error that is told is the one that comes first.
            let _ = self.control.delete(node.0, control::REMOVAL);
        })
    }

    fn attachment(
        &self,
        identity: Identity,
        node: Node,
        server: Server,
        disk: Arc<dyn Disk>,
    ) -> Result<Attachment> {
        Ok(Attachment {
            identity,
            node,
            path: node.path(),
            number: node.number()?,
            server,
            disk,
            control: Arc::clone(&self.control),
            links: self.links.clone(),
            properties: self.properties.clone(),
            ended: Mutex::new(false),
        })
    }
}

impl Transport for Ublk {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn attach(&self, disk: Arc<dyn Disk>, identity: &Identity) -> Result<Box<dyn Attached>> {
        identity.check()?;
        let size = disk.len();
        if size == 0 || !size.is_multiple_of(4096) {
            return Err(Error::Invalid {
                what: format!("size of volume {}: {size} bytes", identity.volume_name),
                why: "must be a multiple of 4096 above 0".into(),
            });
        }
        let served = Served::add(&self.control, self.geometry(Stamp::of(&identity.key)?, &*disk), &disk)?
            .with_places(self.options.zero_copy_places);
        self.properties.set(Node(served.id()), &identity.key);
        let (node, server) = self.start(served, &*disk, identity.block_size)?;
        node.tune();
        let attachment = self.attachment(identity.clone(), node, server, disk)?;
        match self.links.set(&identity.volume_name, &attachment.path) {
            Ok(()) => Ok(Box::new(attachment)),
            Err(e) => {
                let _ = attachment.detach();
                Err(e)
            }
        }
    }

    fn recover(&self, resolve: &Resolve<'_>) -> Vec<Recovered> {
        recover::all(self, resolve)
    }
}

/// Whether the threads of a device drive the disk on their own rings.
fn is_on_ring(disk: &dyn Disk) -> bool {
    disk.volume().is_some_and(|volume| volume.descriptor().is_some())
}

/// A device of ours, and what the kernel says of it.
struct Found {
    key: VolumeKey,
    info: abi::DeviceInfo,
}
