//! Fuzzing of the file view's readers: changed images of every format are opened, their logs replayed, and all that can
//! be reached in them is asked for. No panic, no endless work, bounded memory, whatever they hold.
//!
//! An input is a list of [`edits`]: which of a few small [`image`]s is taken, and which fields of which of its
//! structures are changed to what. Checksums are made right again after most changes ([`sums`]), or nothing behind
//! them would be met. The tests of fuse-view include this file, and run what was found once and some chance.

pub mod edits;
#[path = "../../tests/common/exercise.rs"]
pub mod exercise;
mod harness;
pub mod image;
#[path = "../../tests/common/lvm.rs"]
#[allow(dead_code)] // shared with tests that use all of it
mod lvm;
#[path = "../../../tests/skip.rs"]
mod skip;
pub mod sums;
#[path = "../../tests/common/support.rs"]
#[allow(dead_code)] // shared with tests that use all of it
mod support;
mod tables;

pub use harness::{NAMES, Target};
