//! Volumes as block devices that outlive the process that serves them.
//!
//! - [`transport`]: the traits; [`ublk`]: the kernel's own driver for this; [`fuse_loop`]: FUSE + loop, for any kernel.
//! - [`holder`]: who keeps the descriptors that a live device depends on while no agent runs.
//! - [`freeze`]: a file system held still for a snapshot, and thawed whatever happens.
//! - [`mounts`]: who uses a device.
//! - [`serving`]: a process that serves devices never waits for one.

mod block_queue;
pub mod disk;
pub mod error;
pub mod freeze;
pub mod fuse_loop;
pub mod holder;
pub mod links;
pub mod mounts;
pub mod serving;
mod sys;
pub mod transport;
pub mod ublk;

pub use disk::Disk;
pub use error::{Error, Result};
pub use fuse_loop::{FuseLoop, FuseLoopOptions};
pub use holder::FdStore;
pub use transport::{Attached, Identity, Recovered, Resolve, Transport, VolumeKey};
pub use ublk::{Ublk, UblkOptions};
