//! File systems in user space: the files inside snapshots and disk images, read only.

pub mod block;
pub mod cache;
pub mod container;
pub mod error;
pub mod fs;
pub mod fuse;
pub mod listing;
pub mod overlay;
pub mod restore;
pub mod source;
pub mod tree;
pub mod view;
pub mod walk;

pub use block::{BlockRead, Piece};
pub use error::{Error, Result};
pub use view::{Attr, DirEntry, FileKind, FsView, Ino, StatFs, Timestamp};
