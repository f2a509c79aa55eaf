//! What was learnt last.

use parking_lot::Mutex;
use std::{collections::HashMap, hash::Hash, mem};

/// Values by key: surely the last `half` that were put in, at most twice as many. Not a cache of what is asked for often,
/// which would give no place to what is asked for once, soon, and never again: the files of a directory that is listed.
pub struct Recent<K, V> {
    half: usize,
    /// The younger ones, and those before.
    generations: Mutex<[HashMap<K, V>; 2]>,
}

impl<K: Eq + Hash, V: Clone> Recent<K, V> {
    /// For at least `half` values.
    pub fn new(half: usize) -> Self {
        Self { half, generations: Mutex::default() }
    }

    /// Puts some in. What was known of the same keys is replaced.
    pub fn extend(&self, values: impl Iterator<Item = (K, V)>) {
        let mut generations = self.generations.lock();
        let [young, old] = &mut *generations;
        for (key, value) in values {
            if young.len() == self.half {
                mem::swap(young, old);
                young.clear();
            }
            young.insert(key, value);
        }
    }

    /// What is known.
    pub fn get(&self, key: &K) -> Option<V> {
        let generations = self.generations.lock();
        generations.iter().find_map(|generation| generation.get(key)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_there_however_often_others_were_asked_for() {
        let recent = Recent::new(100);
        for n in 0..1000_u32 {
            recent.extend(std::iter::once((n, n)));
            // All that are sure, again and again.
            for known in n.saturating_sub(99)..=n {
                assert_eq!(recent.get(&known), Some(known));
            }
        }
        assert_eq!(recent.get(&700), None);
        recent.extend(std::iter::once((999, 1)));
        assert_eq!(recent.get(&999), Some(1));
        let kept: usize = recent.generations.lock().iter().map(HashMap::len).sum();
        assert!(kept <= 200);
    }
}
