//! The btrfs reader against the kernel, against cuts of a mounted file system, and against damage.

#[path = "../common/mod.rs"]
mod common;
mod copies;
mod cuts;
mod damage;
mod image;
mod oracle;
mod rig;
mod subvolumes;
mod traps;
mod traps_data;
mod workload;
