//! Bits of blocks, by segments.

use crate::types::{Phys, SEGMENT_BLOCKS, mem};
use crate::{Error, Result};
use std::collections::HashMap;

const FULL: u16 = 256;

/// A bitmap of blocks in segments; only partly used segments take memory beyond two bytes.
#[derive(Clone)]
pub struct SegmentMap {
    free: Vec<u16>,
    partial: HashMap<u64, [u64; 4]>,
}

fn mask(from: u64, n: u64) -> [u64; 4] {
    let mut out = [0; 4];
    for (w, word) in out.iter_mut().enumerate() {
        let base = w as u64 * 64;
        let (a, b) = (from.max(base), (from + n).min(base + 64));
        if a < b {
            let bits = if b - a == 64 { u64::MAX } else { (1 << (b - a)) - 1 };
            *word = bits << (a - base);
        }
    }
    out
}

impl SegmentMap {
    /// All free.
    pub fn new(segments: u64) -> Self {
        Self { free: vec![FULL; mem(segments)], partial: HashMap::new() }
    }

    /// Bits of a segment: set is used.
    pub fn words(&self, segment: u64) -> [u64; 4] {
        match self.free[mem(segment)] {
            FULL => [0; 4],
            0 => [u64::MAX; 4],
            _ => self.partial[&segment],
        }
    }

    /// Free blocks of a segment.
    pub fn free_in(&self, segment: u64) -> u64 {
        u64::from(self.free[mem(segment)])
    }

    /// Number of segments.
    pub fn segments(&self) -> u64 {
        self.free.len() as u64
    }

    /// Replaces the bits of a segment.
    pub fn put(&mut self, segment: u64, words: [u64; 4]) {
        let used: u32 = words.iter().map(|w| w.count_ones()).sum();
        let free = FULL - u16::try_from(used).expect("at most 256");
        self.free[mem(segment)] = free;
        if free == 0 || free == FULL {
            self.partial.remove(&segment);
        } else {
            self.partial.insert(segment, words);
        }
    }

    /// Sets (or clears) `n` bits from `p`.
    ///
    /// # Errors
    /// `Damaged` when one of them already was; nothing is changed in that segment then.
    pub fn change(&mut self, p: Phys, n: u64, set: bool) -> Result<()> {
        let mut at = p.0;
        let end = p.0 + n;
        if end > self.segments() * SEGMENT_BLOCKS {
            return Err(Error::damaged(format!("blocks {}+{n} lie beyond the pool", p.0)));
        }
        while at < end {
            let segment = at / SEGMENT_BLOCKS;
            let from = at % SEGMENT_BLOCKS;
            let count = (end - at).min(SEGMENT_BLOCKS - from);
            let mut words = self.words(segment);
            for (word, m) in words.iter_mut().zip(mask(from, count)) {
                if (if set { *word & m } else { !*word & m }) != 0 {
                    let state = if set { "used" } else { "free" };
                    return Err(Error::damaged(format!("a block in {at}+{count} is already {state}")));
                }
                *word ^= m;
            }
            self.put(segment, words);
            at += count;
        }
        Ok(())
    }

    /// The first run of free blocks at or after `from` in a segment, at most `max` long.
    pub fn run(&self, segment: u64, from: u64, max: u64) -> Option<(u64, u64)> {
        let words = self.words(segment);
        let used = |b: u64| words[mem(b / 64)] >> (b % 64) & 1 == 1;
        let start = (from..SEGMENT_BLOCKS).find(|b| !used(*b))?;
        let len = (start..SEGMENT_BLOCKS).take(mem(max)).take_while(|b| !used(*b)).count() as u64;
        Some((start, len))
    }

    /// Whether block `p` is set.
    pub fn is_set(&self, p: Phys) -> bool {
        let b = p.0 % SEGMENT_BLOCKS;
        self.words(p.segment())[mem(b / 64)] >> (b % 64) & 1 == 1
    }
}

/// A set of segment numbers that finds its next member without looking at every one: a bit each, and a bit for each
/// 64 of these.
pub struct SegmentSet {
    words: Vec<u64>,
    summary: Vec<u64>,
}

impl SegmentSet {
    /// Empty, for numbers below `segments`.
    pub fn new(segments: u64) -> Self {
        let words = mem(segments.div_ceil(64)).max(1);
        Self { words: vec![0; words], summary: vec![0; words.div_ceil(64)] }
    }

    /// Puts a number in, or takes it out.
    pub fn set(&mut self, segment: u64, member: bool) {
        let (word, bit) = (mem(segment / 64), 1u64 << (segment % 64));
        if member {
            self.words[word] |= bit;
        } else {
            self.words[word] &= !bit;
        }
        let (above, bit) = (word / 64, 1u64 << (word % 64));
        if self.words[word] == 0 {
            self.summary[above] &= !bit;
        } else {
            self.summary[above] |= bit;
        }
    }

    /// Whether a number is in it.
    pub fn has(&self, segment: u64) -> bool {
        self.words[mem(segment / 64)] >> (segment % 64) & 1 == 1
    }

    /// The least member that is not below `from`.
    pub fn next(&self, from: u64) -> Option<u64> {
        let word = mem(from / 64);
        if let Some(hit) = first_bit(&self.words, word, from % 64) {
            return Some(hit);
        }
        let next = word + 1;
        let mut above = next / 64;
        let mut skip = next % 64;
        while above < self.summary.len() {
            if let Some(word) = first_bit(&self.summary, above, skip as u64) {
                return first_bit(&self.words, mem(word), 0);
            }
            above += 1;
            skip = 0;
        }
        None
    }

    /// The next member from `from` on, or else the least one.
    pub fn next_around(&self, from: u64) -> Option<u64> {
        self.next(from).or_else(|| self.next(0))
    }
}

/// Number of the first bit of one word that is not below its bit `from`.
fn first_bit(words: &[u64], word: usize, from: u64) -> Option<u64> {
    let bits = words.get(word)? & (u64::MAX << from);
    (bits != 0).then(|| word as u64 * 64 + u64::from(bits.trailing_zeros()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn segment_set_agrees_with_a_set(ops in prop::collection::vec((0u64..20_000, any::<bool>()), 1..200)) {
            let mut set = SegmentSet::new(20_000);
            let mut model = BTreeSet::new();
            for (s, member) in ops {
                set.set(s, member);
                if member { model.insert(s); } else { model.remove(&s); }
                for from in [0, s, s + 1, s / 64 * 64, 19_999] {
                    prop_assert_eq!(set.next(from), model.range(from..).next().copied());
                }
                prop_assert_eq!(set.has(s), member);
            }
        }

        #[test]
        fn segment_map_agrees_with_a_set(ops in prop::collection::vec((0u64..1000, 1u64..300, any::<bool>()), 1..50)) {
            let mut map = SegmentMap::new(5);
            let mut model = BTreeSet::new();
            for (p, n, set) in ops {
                let n = n.min(1280 - p);
                // Faults are only found, not undone, over several segments: stay within one.
                let n = n.min(256 - p % 256);
                let clean = (p..p + n).all(|b| model.contains(&b) != set);
                prop_assert_eq!(map.change(Phys(p), n, set).is_ok(), clean);
                if clean {
                    for b in p..p + n {
                        if set { model.insert(b); } else { model.remove(&b); }
                    }
                }
            }
            for b in 0..1280 {
                prop_assert_eq!(map.is_set(Phys(b)), model.contains(&b));
            }
            for s in 0..5 {
                prop_assert_eq!(map.free_in(s), 256 - model.range(s * 256..(s + 1) * 256).count() as u64);
            }
        }
    }
}
