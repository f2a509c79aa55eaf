//! Ten thousand snapshots of one volume that share all but a few blocks, as the pool's agent answers for them.

use fuse_view::{
    BlockRead, Error, Result,
    history::{Change, Changes, History},
    tree::SnapshotEntry,
};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

const BLOCK: usize = 4096;
/// Changes in one answer, as over the agent's API.
const ANSWER: usize = 256;

type Delta = BTreeMap<u64, Arc<[u8]>>;

/// See the module.
pub struct Snapshots {
    states: Vec<Arc<Vec<u8>>>,
    /// Snapshots of each state.
    every: usize,
    /// What each snapshot changes of the one before it.
    deltas: Vec<Delta>,
}

impl Snapshots {
    /// `count` snapshots in which the states follow each other at even distances. In all of them the superblock is
    /// written, as a freeze does.
    pub fn new(states: &[Vec<u8>], count: usize) -> Self {
        let every = count / states.len();
        let mut deltas = vec![Delta::new()];
        for id in 1..count {
            let mut delta = Delta::new();
            let state = (id / every).min(states.len() - 1);
            if id % every == 0 && id / every < states.len() {
                let (before, now) = (&states[state - 1], &states[state]);
                for (number, (a, b)) in before.chunks(BLOCK).zip(now.chunks(BLOCK)).enumerate() {
                    if a != b {
                        delta.insert((number * BLOCK) as u64, b.into());
                    }
                }
            }
            delta.insert(0, superblock(&states[state][..BLOCK], id).into());
            deltas.push(delta);
        }
        Self { states: states.iter().cloned().map(Arc::new).collect(), every, deltas }
    }
}

/// The first block with the time of its last write set, and its checksum right.
fn superblock(block: &[u8], id: usize) -> Vec<u8> {
    let mut block = block.to_vec();
    let sb = &mut block[1024..2048];
    sb[0x30..0x34].copy_from_slice(&u32::try_from(id).unwrap_or(0).to_le_bytes());
    let crc = !crc32c::crc32c(&sb[..0x3FC]);
    sb[0x3FC..].copy_from_slice(&crc.to_le_bytes());
    block
}

struct Source {
    state: Arc<Vec<u8>>,
    /// The first block, where it is not the state's.
    superblock: Option<Arc<[u8]>>,
}

impl BlockRead for Source {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        if offset + buf.len() as u64 > self.len() {
            return Err(Error::Corrupt("past the end".into()));
        }
        let mut done = 0;
        while done < buf.len() {
            let at = usize::try_from(offset).unwrap_or(0) + done;
            let start = at / BLOCK * BLOCK;
            let count = (start + BLOCK - at).min(buf.len() - done);
            let first = self.superblock.as_deref().filter(|_| start == 0);
            let block = first.unwrap_or(&self.state[start..]);
            buf[done..done + count].copy_from_slice(&block[at - start..at - start + count]);
            done += count;
        }
        Ok(())
    }

    fn len(&self) -> u64 {
        self.state.len() as u64
    }
}

impl History for Snapshots {
    fn snapshots(&self) -> Result<Vec<SnapshotEntry>> {
        let entry = |id: u64| SnapshotEntry { name: format!("s{id}"), id, created_at: 0 };
        Ok((1..=self.deltas.len() as u64).map(entry).collect())
    }

    fn open(&self, snapshot: &SnapshotEntry) -> Result<Arc<dyn BlockRead>> {
        let index = usize::try_from(snapshot.id).unwrap_or(0).saturating_sub(1);
        let state = self.states[(index / self.every).min(self.states.len() - 1)].clone();
        let superblock = self.deltas.get(index).and_then(|delta| delta.get(&0)).cloned();
        Ok(Arc::new(Source { state, superblock }))
    }

    fn changes(&self, from: u64, read: &[Range<u64>], watch: &[Range<u64>]) -> Result<Changes> {
        let met = |ranges: &[Range<u64>], at: u64| {
            let after = ranges.partition_point(|range| range.end <= at);
            ranges.get(after).is_some_and(|range| range.start < at + BLOCK as u64)
        };
        let mut answer = Changes { through: from, ..Changes::default() };
        for (id, delta) in (1u64..).zip(&self.deltas).skip(usize::try_from(from).unwrap_or(0)) {
            if answer.changes.len() == ANSWER {
                return Ok(answer);
            }
            let blocks: Vec<_> = delta
                .iter()
                .filter(|(at, _)| met(read, **at))
                .map(|(at, block)| (*at, block.to_vec()))
                .collect();
            let watched = delta.keys().any(|at| met(watch, *at));
            answer.through = id;
            if watched || !blocks.is_empty() {
                answer.changes.push(Change { id, watched, blocks });
            }
        }
        answer.end = true;
        Ok(answer)
    }
}
