//! The XFS reader against the kernel, against cuts of a mounted file system, and against damage.

#[path = "../common/mod.rs"]
mod common;
mod cuts;
mod damage;
mod forms;
mod image;
mod intents;
mod old;
mod oracle;
mod reference;
mod torn;
mod traps;
mod workload;
