//! What the tests of all readers share: images and mounts, a tree with everything in it, comparison with the kernel.
#![allow(dead_code)] // no test binary uses all of it

pub mod compare;
pub mod cuts;
pub mod exercise;
pub mod lvm;
pub mod populate;
pub mod recorder;
#[path = "../../../tests/skip.rs"]
pub mod skip;
pub mod support;
pub mod sys;
pub mod tree;
pub mod workload;
