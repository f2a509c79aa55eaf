//! The map: per version a persistent radix tree from logical to physical blocks, a page table for disks.

pub mod cache;
pub mod delete;
pub mod merge;
pub mod tree;

pub use cache::NodeCache;
