//! Ranges of blocks of a file that were mapped anew.

use std::collections::BTreeMap;
use std::ops::Range;

/// Where a range of blocks is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Mapped {
    /// Nowhere.
    Hole,
    /// From this block of the image on; never written: reads as zeros.
    Unwritten(u64),
    /// From this block of the image on.
    Data(u64),
}

impl Mapped {
    fn after(self, skip: u64) -> Self {
        match self {
            Self::Hole => Self::Hole,
            Self::Unwritten(at) => Self::Unwritten(at.saturating_add(skip)),
            Self::Data(at) => Self::Data(at.saturating_add(skip)),
        }
    }
}

/// Changed ranges by their first block, none overlapping another.
#[derive(Debug, Default)]
pub(in super::super) struct Ranges(BTreeMap<u64, (u64, Mapped)>);

impl Ranges {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Maps `blocks` to `place`, whatever they were.
    pub fn set(&mut self, blocks: Range<u64>, place: Mapped) {
        if blocks.is_empty() {
            return;
        }
        for at in [blocks.start, blocks.end] {
            if let Some((first, end, place)) = self.covering(at)
                && first < at
            {
                self.0.insert(first, (at, place));
                self.0.insert(at, (end, place.after(at - first)));
            }
        }
        while let Some((&first, _)) = self.0.range(blocks.clone()).next() {
            self.0.remove(&first);
        }
        self.0.insert(blocks.start, (blocks.end, place));
    }

    fn covering(&self, at: u64) -> Option<(u64, u64, Mapped)> {
        let (&first, &(end, place)) = self.0.range(..=at).next_back()?;
        (at < end).then_some((first, end, place))
    }

    /// What became of `block`, and up to which block that holds. None: unchanged up to there.
    pub fn get(&self, block: u64) -> (Option<Mapped>, u64) {
        match self.covering(block) {
            Some((first, end, place)) => (Some(place.after(block - first)), end),
            None => (None, self.0.range(block..).next().map_or(u64::MAX, |(&first, _)| first)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn like_a_map_of_blocks(edits in proptest::collection::vec((0..60u64, 1..30u64, 0..1000u64, 0..3u8), 1..30)) {
            let mut ranges = Ranges::default();
            let mut model = BTreeMap::new();
            for (first, len, at, kind) in edits {
                let place = [Mapped::Hole, Mapped::Unwritten(at), Mapped::Data(at)][usize::from(kind)];
                ranges.set(first..first + len, place);
                model.extend((0..len).map(|i| (first + i, place.after(i))));
            }
            for block in 0..100 {
                let (found, end) = ranges.get(block);
                prop_assert_eq!(found, model.get(&block).copied());
                prop_assert!(end > block);
                for later in block..end.min(100) {
                    prop_assert_eq!(found.map(|place| place.after(later - block)), model.get(&later).copied());
                }
            }
        }
    }
}
