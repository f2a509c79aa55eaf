//! The ext4 reader against the kernel, against damage, and against a count of its reads.

mod container;
mod damage;
mod htree;
mod oracle;
mod populate;
mod seek;
#[path = "../../../tests/skip.rs"]
mod skip;
mod support;
mod sys;
