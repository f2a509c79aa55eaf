//! What the snapshots of a volume change of some ranges, one snapshot after the other: what the agent answers to
//! `ReadChanges`, and the command line computes itself of a pool that nobody serves.

use std::ops::Range;
use std::sync::Arc;
use store::{BLOCK_BYTES, Pool, Result, Snapshot, SnapshotBrief};

/// Most bytes of blocks in one answer.
const MAX_BYTES: usize = api::MAX_DATA_BYTES;
/// Most snapshots compared for one answer.
const MAX_SNAPSHOTS: usize = fuse_view::history::MAX_CHANGES;
/// Most ranges looked at for one answer, those of all snapshots together.
const MAX_COMPARISONS: usize = 1 << 17;

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
    let mut before = pool.open_snapshot_by_id(from)?;
    let mut answer = Changes { through: from, ..Changes::default() };
    let (mut bytes, mut comparisons) = (0, 0);
    let ranges = wanted.read.len() + wanted.watch.len();
    for (compared, snapshot) in pool.snapshots_in_brief(volume, from)?.into_iter().enumerate() {
        if bytes >= MAX_BYTES || compared >= MAX_SNAPSHOTS || comparisons >= MAX_COMPARISONS {
            return Ok(answer);
        }
        let now = match pool.open_snapshot_by_id(snapshot.id) {
            Err(error) if error.kind() == store::ErrorKind::NotFound => continue, // deleted at this moment
            opened => opened?,
        };
        let change = compare(&before, &now, &snapshot, wanted)?;
        bytes += change.blocks.iter().map(|(_, block)| block.len()).sum::<usize>();
        comparisons += ranges + change.blocks.len();
        answer.through = snapshot.id;
        if change.watched || !change.blocks.is_empty() {
            answer.changes.push(change);
        }
        before = now;
    }
    answer.end = true;
    Ok(answer)
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
