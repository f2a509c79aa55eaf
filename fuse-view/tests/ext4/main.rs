//! The ext4 reader against the kernel, against damage, and against a count of its reads.

#[path = "../common/mod.rs"]
mod common;
mod container;
mod crash;
mod damage;
mod htree;
mod jbd2;
mod kinds;
mod lvm;
mod oracle;
mod seek;
mod traps;
