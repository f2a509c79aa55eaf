//! The pool: copy-on-write volumes, their snapshots and clones, on one file or block device.
//!
//! The rooms, from the disk upwards: `format` (what the bytes mean), `io` (where they lie), `alloc` (which are
//! free), `map` (logical to physical), `memtable` and `log` (changes not yet in the map), `checkpoint` (makes
//! them the map), `catalog` (volumes and versions), `volume` and `snapshot` (the data paths), `pool`
//! (everything else that users ask for), `check` and `dump` (looking at a pool that nobody serves).

pub mod alloc;
pub mod catalog;
mod check;
mod checkpoint;
mod compare;
mod core;
mod dump;
pub mod error;
pub mod format;
pub mod gate;
pub mod info;
mod integrity;
pub mod io;
pub mod log;
pub mod map;
pub mod memtable;
pub mod mutation;
pub mod pool;
mod resequence;
mod snapshot;
mod sync;
pub mod types;
mod volume;

pub use check::{CheckReport, Finding, check_device, nodes_in_use};
pub use error::{Error, ErrorKind, Result};
pub use info::*;
pub use integrity::{DamagedBlock, ScrubProgress, ScrubReport};
pub use pool::{InitOptions, OpenOptions, Pool};
pub use resequence::{Placement, Resequencing};
pub use snapshot::Snapshot;
pub use types::BLOCK_BYTES;
pub use volume::{Volume, VolumeIo};
