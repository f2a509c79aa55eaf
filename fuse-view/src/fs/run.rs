//! Runs of a file's blocks, as a mapping of extents or pointers answers.

/// Where a run of blocks of a file lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Not allocated, or allocated and never written: reads as zeros.
    Hole,
    /// From this block of the file system on.
    Data(u64),
}

/// A run of blocks of a file with one answer; it starts where was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// Number of blocks, at least 1.
    pub len: u64,
    pub place: Place,
}
