//! Units: what a number counts is in its type.

/// Bytes of a block, the unit of mapping and allocation.
pub const BLOCK_BYTES: u64 = 4096;
/// [`BLOCK_BYTES`] as a length in memory.
pub const BLOCK: usize = 4096;
/// Blocks of a segment, the unit of backing and of the segment table (1 MiB).
pub const SEGMENT_BLOCKS: u64 = 256;
/// Largest size of a volume: 2⁵⁰ bytes, what the leaves' 38-bit block numbers can address.
pub const MAX_VOLUME_BYTES: u64 = 1 << 50;

/// Number of a 4 KiB block of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Phys(pub u64);

impl Phys {
    /// Byte offset in the pool.
    pub fn offset(self) -> u64 {
        self.0 * BLOCK_BYTES
    }
    /// The block `n` further on.
    #[must_use]
    pub fn plus(self, n: u64) -> Self {
        Self(self.0 + n)
    }
    /// Segment that holds the block.
    pub fn segment(self) -> u64 {
        self.0 / SEGMENT_BLOCKS
    }
}

/// A value of the pool's one epoch counter (40 bits). A block's birth is the epoch of the head that wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch(pub u64);

/// Log sequence number: a byte position in the stream of records, which never wraps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

/// Id of a version (a snapshot or a head), never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct VersionId(pub u64);

/// Id of a volume, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct VolumeId(pub u64);

/// A few values, of which one is the rule: that one takes no allocation.
#[derive(Debug)]
pub(crate) struct Few<T> {
    one: Option<T>,
    more: Vec<T>,
}

impl<T: Copy> Few<T> {
    /// None.
    pub(crate) fn new() -> Self {
        Self { one: None, more: Vec::new() }
    }

    /// One more.
    pub(crate) fn push(&mut self, value: T) {
        match self.one {
            None => self.one = Some(value),
            Some(first) => {
                if self.more.is_empty() {
                    self.more.push(first);
                }
                self.more.push(value);
            }
        }
    }

    /// Each of them, changed.
    pub(crate) fn map<U: Copy>(&self, change: impl Fn(T) -> U) -> Few<U> {
        let mut changed = Few::new();
        self.as_slice().iter().for_each(|value| changed.push(change(*value)));
        changed
    }

    /// All, in the order in which they came.
    pub(crate) fn as_slice(&self) -> &[T] {
        if self.more.is_empty() { self.one.as_slice() } else { &self.more }
    }
}

/// A length in blocks or bytes as an index into memory.
///
/// # Panics
/// On hosts where it does not fit, which the crate does not support (64 bit only).
pub(crate) fn mem(n: u64) -> usize {
    usize::try_from(n).expect("64-bit host")
}

#[cfg(test)]
mod tests {
    use super::Few;

    #[test]
    fn few_values_keep_their_order() {
        let mut few = Few::new();
        for n in 0..5 {
            assert_eq!(few.as_slice(), (0..n).collect::<Vec<_>>());
            few.push(n);
        }
    }
}
