//! The table of clusters, and the chains in it.
//!
//! A chain is walked once, counted against the number of clusters, so that one which bites its tail ends in an error,
//! and kept as runs of neighbours: a place in a large file is found by bisection.

use super::boot::{Boot, FIRST_CLUSTER, Width};
use crate::fs::bytes::{le16, le32, u8_at};
use crate::{BlockRead, Error, Result};
use quick_cache::{Weighter, sync::Cache};
use std::ops::Range;
use std::sync::Arc;

/// Bytes read at once of the table.
const PIECE_BYTES: u64 = 4096;
/// Runs of all chains together that are kept: 16 bytes each.
const KEPT_RUNS: u64 = 1 << 19;

/// A run of neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    /// Index in the file.
    index: u64,
    cluster: u32,
    count: u32,
}

/// The clusters of a file, in order.
#[derive(Debug, Default)]
pub struct Chain {
    runs: Vec<Run>,
    /// Where it leads in the end, if that is no cluster: what comes before can be read.
    lost: Option<u32>,
}

impl Chain {
    /// Number of clusters.
    pub fn clusters(&self) -> u64 {
        self.runs.last().map_or(0, |run| run.index + u64::from(run.count))
    }

    /// Fails if it leads to no cluster in the end.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with where it leads.
    pub fn is_whole(&self) -> Result<()> {
        let Some(cluster) = self.lost else { return Ok(()) };
        Err(Error::Corrupt(format!("vfat: a chain leads to {cluster}, which is no cluster")))
    }

    /// The cluster with this index, and how many from it on are neighbours.
    pub fn run(&self, index: u64) -> Option<(u32, u64)> {
        let after = self.runs.partition_point(|run| run.index <= index);
        let run = self.runs.get(after.checked_sub(1)?)?;
        let skip = u32::try_from(index - run.index).ok().filter(|skip| *skip < run.count)?;
        Some((run.cluster + skip, u64::from(run.count - skip)))
    }

    fn push(&mut self, cluster: u32) {
        match self.runs.last_mut() {
            Some(last) if last.cluster.checked_add(last.count) == Some(cluster) => last.count += 1,
            last => {
                let index = last.map_or(0, |last| last.index + u64::from(last.count));
                self.runs.push(Run { index, cluster, count: 1 });
            }
        }
    }
}

#[derive(Clone)]
struct ByRuns;

impl Weighter<u32, Arc<Chain>> for ByRuns {
    fn weight(&self, _first: &u32, chain: &Arc<Chain>) -> u64 {
        chain.runs.len() as u64 + 4
    }
}

/// The table, with the chains walked last.
pub struct Chains {
    dev: Arc<dyn BlockRead>,
    width: Width,
    table: Range<u64>,
    clusters: u32,
    known: Cache<u32, Arc<Chain>, ByRuns>,
}

impl Chains {
    pub fn new(dev: Arc<dyn BlockRead>, boot: &Boot) -> Self {
        let known = Cache::with_weighter(1024, KEPT_RUNS, ByRuns);
        Self { dev, width: boot.width, table: boot.table.clone(), clusters: boot.clusters, known }
    }

    /// The chain that begins with cluster `first`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where it leads back into itself.
    pub fn of(&self, first: u32) -> Result<Arc<Chain>> {
        self.known.get_or_insert_with(&first, || self.walk(first).map(Arc::new))
    }

    fn walk(&self, first: u32) -> Result<Chain> {
        let mut chain = Chain::default();
        let mut cluster = first;
        let mut reader = TableReader { chains: self, at: u64::MAX, piece: Vec::new() };
        for _ in 0..self.clusters {
            if cluster < FIRST_CLUSTER || cluster - FIRST_CLUSTER >= self.clusters {
                chain.lost = Some(cluster);
                return Ok(chain);
            }
            chain.push(cluster);
            match reader.next(cluster)? {
                Next::Cluster(next) => cluster = next,
                Next::End => return Ok(chain),
            }
        }
        Err(Error::Corrupt(format!("vfat: the chain from cluster {first} bites its tail")))
    }

    /// Number of free clusters, by the table.
    pub fn count_free(&self) -> Result<u64> {
        let mut reader = TableReader { chains: self, at: u64::MAX, piece: Vec::new() };
        let mut free = 0;
        for cluster in FIRST_CLUSTER..FIRST_CLUSTER + self.clusters {
            free += u64::from(reader.value(cluster)? == 0);
        }
        Ok(free)
    }
}

enum Next {
    Cluster(u32),
    End,
}

/// Reads values of the table, a piece at a time.
struct TableReader<'a> {
    chains: &'a Chains,
    at: u64,
    piece: Vec<u8>,
}

impl TableReader<'_> {
    fn next(&mut self, cluster: u32) -> Result<Next> {
        // Bad clusters end a chain as the mark of the end does, as in the kernel.
        let end = match self.chains.width {
            Width::Fat12 => 0xFF7,
            Width::Fat16 => 0xFFF7,
            Width::Fat32 => 0x0FFF_FFF7,
        };
        let value = self.value(cluster)?;
        Ok(if value >= end { Next::End } else { Next::Cluster(value) })
    }

    fn value(&mut self, cluster: u32) -> Result<u32> {
        let cluster = u64::from(cluster);
        Ok(match self.chains.width {
            Width::Fat12 => {
                let both = u32::from(le16(&self.bytes::<2>(cluster + cluster / 2)?, 0));
                if cluster % 2 == 0 { both & 0xFFF } else { both >> 4 }
            }
            Width::Fat16 => u32::from(le16(&self.bytes::<2>(cluster * 2)?, 0)),
            Width::Fat32 => le32(&self.bytes::<4>(cluster * 4)?, 0) & 0x0FFF_FFFF,
        })
    }

    fn bytes<const N: usize>(&mut self, offset: u64) -> Result<[u8; N]> {
        let mut value = [0; N];
        for (offset, byte) in (offset..).zip(&mut value) {
            let base = offset / PIECE_BYTES * PIECE_BYTES;
            if self.at != base {
                let table = &self.chains.table;
                let left = (table.end - table.start).saturating_sub(base).min(PIECE_BYTES);
                self.piece =
                    self.chains.dev.piece(table.start + base, usize::try_from(left).unwrap_or(0))?.to_vec();
                self.at = base;
            }
            *byte = u8_at(&self.piece, usize::try_from(offset - base).unwrap_or(usize::MAX));
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_runs() {
        let mut chain = Chain::default();
        for cluster in [5, 6, 7, 3, 9, 10] {
            chain.push(cluster);
        }
        assert_eq!((chain.runs.len(), chain.clusters()), (3, 6));
        let found: Vec<_> = (0..7).map(|index| chain.run(index)).collect();
        assert_eq!(
            found,
            [Some((5, 3)), Some((6, 2)), Some((7, 1)), Some((3, 1)), Some((9, 2)), Some((10, 1)), None]
        );
        assert_eq!(Chain::default().run(0), None);
    }
}
