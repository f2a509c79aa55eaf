//! Volumes as block devices. One trait for all transports; FUSE + loop is the first.

pub mod disk;
pub use disk::Disk;
