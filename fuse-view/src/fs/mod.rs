//! The formats: which file system an image holds, and its reader.
//!
//! Readers are pure: no unsafe code, no I/O but [`BlockRead`], and every count, size and depth that comes from the
//! image is checked before it is believed.

pub mod btrfs;
pub mod ext4;
pub mod vfat;
pub mod xfs;

pub(crate) mod bytes;
mod detect;
mod features;
mod kind;
mod run;

pub use detect::{Format, detect};

use crate::overlay::Scratch;
use crate::{BlockRead, Error, FsView, Result};
use std::sync::Arc;

/// Opens the file system that `dev` holds.
///
/// # Errors
/// [`Error::Unsupported`] names a format that is recognised but not read, or says that none was recognised;
/// [`Error::Corrupt`] when the superblock contradicts itself.
pub fn open(dev: Arc<dyn BlockRead>) -> Result<Arc<dyn FsView>> {
    open_with(dev, Scratch::shared())
}

/// As [`open`], with what the replay of its log needs taken from `scratch`.
///
/// # Errors
/// As [`open`].
pub fn open_with(dev: Arc<dyn BlockRead>, scratch: &Scratch) -> Result<Arc<dyn FsView>> {
    match detect(&*dev)? {
        Some(Format::Ext) => Ok(Arc::new(ext4::Ext4::open(dev, scratch)?)),
        Some(Format::Xfs) => Ok(Arc::new(xfs::Xfs::open(dev, scratch)?)),
        Some(Format::Btrfs) => Ok(Arc::new(btrfs::Btrfs::open(dev, scratch)?)),
        Some(Format::Vfat) => Ok(Arc::new(vfat::Vfat::open(dev)?)),
        Some(other) => Err(Error::Unsupported(format!(
            "{other} is not read yet; ext2, ext3, ext4, xfs, btrfs and vfat are"
        ))),
        None => Err(Error::Unsupported("no file system recognised".into())),
    }
}
