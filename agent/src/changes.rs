//! What the snapshots of a volume change of some ranges, one snapshot after the other: what the agent answers to
//! `ReadChanges`, and the command line computes itself of a pool that nobody serves.

use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use store::{BLOCK_BYTES, Pool, Result, Snapshot, SnapshotBrief};

/// Most bytes of blocks in one answer.
const MAX_BYTES: usize = api::MAX_DATA_BYTES;
/// Most snapshots compared for one answer.
const MAX_SNAPSHOTS: usize = fuse_view::history::MAX_CHANGES;
/// Most ranges looked at for one answer, those of all snapshots together.
const MAX_COMPARISONS: usize = 1 << 17;

/// Most threads that compare.
const MAX_THREADS: usize = 8;

/// What is asked of each snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Byte ranges of which the blocks that differ are wanted.
    pub read: Vec<Range<u64>>,
    /// Byte ranges of which only is asked whether anything differs.
    pub watch: Vec<Range<u64>>,
}

/// One snapshot in which something differs from the one before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The snapshot.
    pub snapshot: SnapshotBrief,
    /// Whether anything in `watch` differs, or the size.
    pub watched: bool,
    /// Offset and bytes of the blocks in `read` that differ.
    pub blocks: Vec<(u64, Vec<u8>)>,
}

/// An answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Snapshots in which something differs, oldest first. Those in between hold the same.
    pub changes: Vec<Change>,
    /// Id of the last snapshot that was compared.
    pub through: u64,
    /// Whether that is the newest one.
    pub end: bool,
}

/// Compares the snapshots of `volume` after the one with id `from` with the one before each.
///
/// # Errors
/// `NotFound`: the volume, or the snapshot `from`, is gone.
pub fn changes(pool: &Pool, volume: &str, from: u64, wanted: &Wanted) -> Result<Changes> {
    loop {
        pool.open_snapshot_by_id(from)?;
        let snapshots = pool.snapshots_in_brief(volume, from)?;
        let compared = compare_all(pool, from, &snapshots, wanted)?;
        let Some(last) = compared.len().checked_sub(1) else {
            if snapshots.is_empty() {
                return Ok(Changes { through: from, end: true, ..Changes::default() });
            }
            // The first of them was deleted at this moment, and is not in the list any more.
            continue;
        };
        let end = compared.len() == snapshots.len();
        let differs = |change: &Change| change.watched || !change.blocks.is_empty();
        let changes = compared.into_iter().filter(differs).collect();
        return Ok(Changes { changes, through: snapshots[last].id, end });
    }
}

/// Compares the first of `snapshots`, those that one answer holds, up to one that is gone. By some threads: what differs
/// is read from a disk, which has time for others while it fetches a block.
fn compare_all(pool: &Pool, from: u64, snapshots: &[SnapshotBrief], wanted: &Wanted) -> Result<Vec<Change>> {
    let snapshots = &snapshots[..snapshots.len().min(MAX_SNAPSHOTS)];
    let ranges = wanted.read.len() + wanted.watch.len();
    let (next, bytes, comparisons) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let compare_some = || -> Result<Vec<(usize, Option<Change>)>> {
        let mut found = Vec::new();
        while bytes.load(Relaxed) < MAX_BYTES && comparisons.load(Relaxed) < MAX_COMPARISONS {
            let at = next.fetch_add(1, Relaxed);
            let Some(snapshot) = snapshots.get(at) else { break };
            let before = at.checked_sub(1).map_or(from, |before| snapshots[before].id);
            let change = match compare_with(pool, before, snapshot, wanted) {
                Err(error) if error.kind() == store::ErrorKind::NotFound => None, // deleted at this moment
                change => Some(change?),
            };
            let blocks = change.as_ref().map_or(&[][..], |change| &change.blocks);
            bytes.fetch_add(blocks.iter().map(|(_, block)| block.len()).sum(), Relaxed);
            comparisons.fetch_add(ranges + blocks.len(), Relaxed);
            found.push((at, change));
        }
        Ok(found)
    };
    let mut found = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads(wanted)).map(|_| scope.spawn(compare_some)).collect();
        let joined = others.into_iter().map(|one| one.join().unwrap_or_else(|panic| resume_unwind(panic)));
        std::iter::once(compare_some()).chain(joined).collect::<Result<Vec<_>>>().map(|all| all.concat())
    })?;
    found.sort_unstable_by_key(|(at, _)| *at);
    Ok(found.into_iter().map_while(|(_, change)| change).collect())
}

/// So few that what they have found when an answer is full makes it no more than twice as large, or larger by one snapshot.
fn threads(wanted: &Wanted) -> usize {
    let most: u64 = wanted.read.iter().map(|range| range.end.saturating_sub(range.start)).sum();
    (MAX_BYTES / usize::try_from(most).unwrap_or(usize::MAX).max(1)).clamp(1, MAX_THREADS)
}

fn compare_with(pool: &Pool, before: u64, snapshot: &SnapshotBrief, wanted: &Wanted) -> Result<Change> {
    let before = pool.open_snapshot_by_id(before)?;
    compare(&before, &pool.open_snapshot_by_id(snapshot.id)?, snapshot, wanted)
}

fn compare(
    before: &Snapshot,
    now: &Arc<Snapshot>,
    snapshot: &SnapshotBrief,
    wanted: &Wanted,
) -> Result<Change> {
    let mut change = Change {
        snapshot: snapshot.clone(),
        watched: before.size_bytes() != now.size_bytes(),
        blocks: Vec::new(),
    };
    for range in &wanted.watch {
        change.watched = change.watched || now.next_difference_within(before, range.clone())?.is_some();
    }
    for range in &wanted.read {
        let mut at = range.start;
        while let Some(found) = now.next_difference_within(before, at..range.end)? {
            at = found.end;
            let mut block = found.start;
            while block < found.end {
                let len = BLOCK_BYTES.min(now.size_bytes().saturating_sub(block));
                let mut data = vec![0; usize::try_from(len).unwrap_or(0)];
                now.read_at(block, &mut data)?;
                change.blocks.push((block, data));
                block += BLOCK_BYTES;
            }
        }
    }
    Ok(change)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use store::{Consistency, InitOptions, Labels, OpenOptions, SnapshotSpec};

    /// Blocks of the volume, and those that are looked at: more bytes of them change than an answer holds.
    const BLOCKS: u64 = 64;
    const LOOKED_AT: u64 = 32;
    const SNAPSHOTS: u64 = 200;

    fn block(of: u64) -> usize {
        usize::try_from(of * BLOCK_BYTES).unwrap()
    }

    fn one(range: Range<u64>) -> Vec<Range<u64>> {
        std::iter::once(range).collect()
    }

    /// An empty pool, in a directory that it goes with.
    fn pool() -> (tempfile::TempDir, Arc<Pool>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pool");
        Pool::init(&path, &InitOptions { size_bytes: Some(256 << 20), ..InitOptions::default() }).unwrap();
        let pool = Pool::open(&path, &OpenOptions::default()).unwrap();
        (dir, pool)
    }

    /// A volume of which each snapshot changes some blocks, and whole states of what is looked at, by id.
    fn history(pool: &Pool) -> Vec<(u64, Vec<u8>)> {
        pool.create_volume("v", BLOCKS * BLOCK_BYTES, Labels::new()).unwrap();
        let volume = pool.open_volume("v").unwrap();
        let cut = |number: u64| {
            for at in 0..number % 24 {
                let place = (number * 7 + at * at) % BLOCKS;
                let bytes = vec![u8::try_from((number + at) % 251).unwrap(); block(1)];
                volume.write_at(place * BLOCK_BYTES, &bytes, false).unwrap();
            }
            let name = format!("s{number}");
            let spec = SnapshotSpec { volume: "v".into(), name, consistency: Consistency::Detached };
            let made = pool.create_snapshots(&[spec], Labels::new()).unwrap();
            let mut state = vec![0; block(LOOKED_AT)];
            pool.open_snapshot_by_id(made[0].id).unwrap().read_at(0, &mut state).unwrap();
            (made[0].id, state)
        };
        (0..SNAPSHOTS).map(cut).collect()
    }

    #[test]
    fn answers_together_tell_every_change_and_each_is_short() {
        let (_dir, pool) = pool();
        let states = history(&pool);
        // Two ranges with one between them that nobody asks for.
        let ends = [0..10 * BLOCK_BYTES, 12 * BLOCK_BYTES..LOOKED_AT * BLOCK_BYTES];
        let wanted = Wanted { read: ends.to_vec(), watch: one(10 * BLOCK_BYTES..11 * BLOCK_BYTES) };
        let (mut from, mut known, mut answers) = (states[0].0, states[0].1.clone(), 0);
        let mut told: BTreeMap<u64, Change> = BTreeMap::new();
        loop {
            let answer = changes(&pool, "v", from, &wanted).unwrap();
            let bytes: usize =
                answer.changes.iter().flat_map(|c| &c.blocks).map(|(_, block)| block.len()).sum();
            assert!(bytes <= 2 * MAX_BYTES, "{bytes}");
            assert!(answer.changes.iter().all(|c| c.snapshot.id > from && c.snapshot.id <= answer.through));
            assert!(answer.changes.is_sorted_by_key(|c| c.snapshot.id));
            told.extend(answer.changes.into_iter().map(|change| (change.snapshot.id, change)));
            (from, answers) = (answer.through, answers + 1);
            if answer.end {
                break;
            }
        }
        assert!(answers > 1, "one answer holds all");
        assert_eq!(from, states.last().unwrap().0);
        for pair in states.windows(2) {
            let [(_, before), (id, now)] = pair else { unreachable!() };
            let change = told.remove(id);
            let watched = before[block(10)..block(11)] != now[block(10)..block(11)];
            // What was written again with the same bytes may be told, too.
            assert!(!watched || change.as_ref().is_some_and(|change| change.watched), "{id}");
            for (at, bytes) in change.into_iter().flat_map(|change| change.blocks) {
                assert!(ends.iter().any(|range| range.contains(&at)), "{at}");
                let at = usize::try_from(at).unwrap();
                known[at..at + bytes.len()].copy_from_slice(&bytes);
            }
            for range in &ends {
                let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
                assert!(known[range.clone()] == now[range], "{id}");
            }
        }
        assert!(told.is_empty());
    }

    #[test]
    fn what_was_deleted_is_passed_over() {
        let (_dir, pool) = pool();
        let states = history(&pool);
        let wanted = Wanted { read: one(0..LOOKED_AT * BLOCK_BYTES), watch: Vec::new() };
        let first = pool.snapshots_in_brief("v", states[0].0).unwrap();
        for number in [1, 2, 20] {
            pool.delete_snapshot("v", &format!("s{number}")).unwrap();
        }
        // As listed before: up to one that is gone.
        assert!(compare_all(&pool, states[0].0, &first, &wanted).unwrap().is_empty());
        assert!(compare_all(&pool, states[3].0, &first[3..], &wanted).unwrap().len() < 17);
        let answer = changes(&pool, "v", states[0].0, &wanted).unwrap();
        assert!(answer.through > states[3].0);
        assert!(changes(&pool, "v", states[1].0, &wanted).is_err());
    }
}
