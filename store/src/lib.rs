//! The pool: copy-on-write volumes, their snapshots and clones, on one file or block device.

pub mod error;
pub mod info;
mod stub;

pub use error::{Error, ErrorKind, Result};
pub use info::*;
pub use stub::*;

/// Bytes of a block, the unit of mapping and allocation.
pub const BLOCK_BYTES: u64 = 4096;
