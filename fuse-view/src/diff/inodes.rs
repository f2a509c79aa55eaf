//! Which inodes may differ, by where their records lie: one look-up for each of millions.

use super::{Ranges, Side, known};
use crate::{Ino, InodeTable, Result};
use std::ops::Range;

/// The inodes of both snapshots, where they lie in the same tables.
pub(super) struct Inodes {
    all: Ranges,
    /// Those whose records are not shared.
    changed: Ranges,
}

impl Inodes {
    /// None: it is not known where they are, or they are not in the same places.
    pub fn find(old: &Side, new: &Side, changed: &Ranges) -> Result<Option<Self>> {
        let tables = |side: &Side| known(side.inside.view.inode_tables());
        let (Some(before), Some(now)) = (tables(old)?, tables(new)?) else { return Ok(None) };
        if old.inside.start != new.inside.start || before != now {
            return Ok(None);
        }
        let all = now.iter().map(|table| table.first..table.first.saturating_add(table.count));
        let changed = now.iter().flat_map(|table| of_table(table, new.inside.start, changed));
        Ok(Some(Self { all: Ranges::new(all.collect()), changed: Ranges::new(changed.collect()) }))
    }

    /// Whether `ino` is there, and the same in both.
    pub fn are_shared(&self, ino: Ino) -> bool {
        let one = ino..ino.saturating_add(1);
        self.all.meet(&one) && !self.changed.meet(&one)
    }
}

/// The inodes of a table, in a file system that begins at byte `start`, that reach into `changed`.
fn of_table(table: &InodeTable, start: u64, changed: &Ranges) -> impl Iterator<Item = Range<Ino>> {
    let (bytes, at) = (table.inode_bytes.max(1), table.at.saturating_add(start));
    let place = at..at.saturating_add(table.count.saturating_mul(bytes));
    let first = table.first;
    changed.within(place.clone()).map(move |range| {
        let (from, to) = (range.start - place.start, range.end - place.start);
        first + from / bytes..first + to.div_ceil(bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inodes_that_reach_into_what_changed() {
        let table = InodeTable { first: 33, at: 4096, count: 32, inode_bytes: 256 };
        let of = |changed: &[(u64, u64)]| -> Vec<(u64, u64)> {
            let changed = Ranges::new(changed.iter().map(|(from, to)| *from..*to).collect());
            of_table(&table, 1000, &changed).map(|inodes| (inodes.start, inodes.end)).collect()
        };
        assert_eq!(of(&[(0, 5096), (13_288, 20_000)]), []);
        assert_eq!(of(&[(0, 5097)]), [(33, 34)]);
        assert_eq!(of(&[(5351, 5353), (13_287, 13_289)]), [(33, 35), (64, 65)]);
        assert_eq!(of(&[(0, u64::MAX)]), [(33, 65)]);
    }
}
