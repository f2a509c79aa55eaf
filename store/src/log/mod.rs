//! The log: un-flushed records in a ring that survives the process, flushed ones on disk.

pub mod replay;
pub mod ring;
pub mod writer;

pub use ring::Ring;
pub use writer::Log;
