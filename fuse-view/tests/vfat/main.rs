//! The FAT reader against the kernel where it mounts vfat, against mtools elsewhere, and against damage.

#[path = "../common/mod.rs"]
mod common;
mod cuts;
mod damage;
mod image;
mod oracle;
mod traps;
