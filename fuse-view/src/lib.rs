//! File systems in user space: the files inside snapshots and disk images, read only.

pub mod block;
pub mod cache;
pub mod container;
mod content;
pub mod diff;
pub mod error;
pub mod find;
pub mod fs;
pub mod fuse;
pub mod history;
pub mod listing;
pub mod memo;
mod near;
pub mod overlay;
pub mod restore;
pub mod source;
pub mod tree;
pub mod versions;
pub mod view;
pub mod walk;
pub mod worker;

pub use block::{BlockRead, Piece};
pub use error::{Error, Result};
pub use view::{Attr, DirEntry, Extent, FileKind, FsView, Ino, InodeTable, StatFs, Timestamp, Wanted};
