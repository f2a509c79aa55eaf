//! The XFS reader against the kernel, against cuts of a mounted file system, and against damage.

#[path = "../common/mod.rs"]
mod common;
mod cuts;
mod image;
mod intents;
mod oracle;
mod reference;
mod traps;
mod workload;
