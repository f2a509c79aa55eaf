//! Looking for contradictions in a pool that nobody serves. Nothing is written.
//!
//! Every block must be held by exactly the versions that the tree of versions says: what the trees refer to
//! and what the segment table calls used are the same set, and no block stands at two places.

use crate::catalog::{Kind, Version};
use crate::format::checkpoint::Checkpoint;
use crate::format::node::{Child, LEAF_ENTRIES, span};
use crate::format::superblock::Superblock;
use crate::io::BlockDev;
use crate::io::file::{FileDev, Lock};
use crate::map::NodeCache;
use crate::map::tree::{leaf_view, upper_entries};
use crate::pool::Environment;
use crate::pool::open_for_check::{Segments, read_checkpoint, read_segments, read_superblock};
use crate::types::{Phys, SEGMENT_BLOCKS, mem};
use crate::{ErrorKind, Pool, Result};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// One contradiction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where it was found.
    pub place: String,
    /// What is wrong.
    pub message: String,
}

/// What a check found.
#[derive(Debug, Clone, Default)]
pub struct CheckReport {
    /// Contradictions; none: the pool is clean.
    pub findings: Vec<Finding>,
    /// Blocks referred to.
    pub blocks_checked: u64,
    /// Map nodes read.
    pub nodes_checked: u64,
    /// Versions walked.
    pub versions: u64,
    /// Bytes in use.
    pub used_bytes: u64,
}

/// Findings after which a check stops listing more.
const MAX_FINDINGS: usize = 1000;

impl Pool {
    /// Checks the pool at `path`. `progress` gets the number of versions walked and of all.
    ///
    /// # Errors
    /// `NotFound`, `Busy`, `Unsupported`, `Io`. Damage is no error but a finding.
    pub fn check(path: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<CheckReport> {
        let dev: Arc<dyn BlockDev> = Arc::new(FileDev::open(path, Lock::Shared)?);
        check_device(&dev, progress)
    }
}

/// Checks the pool on a device.
pub fn check_device(dev: &Arc<dyn BlockDev>, progress: &mut dyn FnMut(u64, u64)) -> Result<CheckReport> {
    let mut report = CheckReport::default();
    match check_parts(dev, &mut report, progress) {
        Err(e) if e.kind() == ErrorKind::Damaged => report.note("pool", e.to_string()),
        Err(e) => return Err(e),
        Ok(()) => {}
    }
    Ok(report)
}

/// Map nodes and pages that the durable checkpoint refers to: what must not be written while it holds.
pub fn nodes_in_use(dev: &Arc<dyn BlockDev>) -> Result<Vec<Phys>> {
    let sb = read_superblock(&**dev, false)?;
    let (checkpoint, pages) = read_checkpoint(&**dev, &sb)?;
    let mut report = CheckReport::default();
    let cache = NodeCache::new(dev.clone(), 1 << 20);
    let mut c = Checker { cache, sb: &sb, report: &mut report, tags: HashMap::new() };
    c.walk_versions(&checkpoint, &mut |_, _| {});
    let mut nodes = pages;
    for (segment, tags) in &c.tags {
        let blocks = (segment * SEGMENT_BLOCKS..).zip(tags.iter());
        nodes.extend(blocks.filter(|(_, tag)| tag.is_node()).map(|(block, _)| Phys(block)));
    }
    Ok(nodes)
}

fn check_parts(
    dev: &Arc<dyn BlockDev>,
    report: &mut CheckReport,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    let sb = read_superblock(&**dev, false)?;
    let (checkpoint, pages) = read_checkpoint(&**dev, &sb)?;
    let cache = NodeCache::new(dev.clone(), 64 << 20);
    let mut c = Checker { cache, sb: &sb, report, tags: HashMap::new() };
    for p in pages {
        c.refer(p, Tag::node(u8::MAX, p.0), "checkpoint page");
    }
    c.walk_versions(&checkpoint, progress);
    c.compare(&**dev, &checkpoint)?;
    // The log must apply cleanly over the checkpoint.
    let environment = Environment {
        path: "pool".into(),
        boot_id: [0; 16],
        ring: &mut |_, _| Err("check".into()),
        read_only: true,
        background: false,
        cache_bytes: 1 << 20,
        slice_leaves: 1,
    };
    match Pool::open_on(dev.clone(), environment) {
        Err(e) if e.kind() == ErrorKind::Damaged => report.note("log", e.to_string()),
        Err(e) => return Err(e),
        Ok(pool) => report.used_bytes = pool.info().used_bytes,
    }
    Ok(())
}

impl CheckReport {
    fn note(&mut self, place: impl Into<String>, message: impl Into<String>) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(Finding { place: place.into(), message: message.into() });
        }
    }
}

/// What a block was found to be: data of a logical block, or a node at a place of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tag(u32);

impl Tag {
    const NONE: Self = Self(0);
    fn fold(x: u64) -> u32 {
        let mixed = x.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 34;
        u32::try_from(mixed).expect("30 bits") | 1 << 30
    }
    fn is_node(self) -> bool {
        self.0 >> 31 == 1
    }
    fn data(l: u64) -> Self {
        Self(Self::fold(l))
    }
    fn node(level: u8, base: u64) -> Self {
        Self(Self::fold(base << 4 | u64::from(level & 15)) | 1 << 31)
    }
}

struct Checker<'a> {
    cache: NodeCache,
    sb: &'a Superblock,
    report: &'a mut CheckReport,
    tags: HashMap<u64, Box<[Tag; 256]>>,
}

impl Checker<'_> {
    /// Notes that `p` is referred to as `tag`; true the first time.
    fn refer(&mut self, p: Phys, tag: Tag, place: &str) -> bool {
        let layout = self.sb.layout();
        if p.0 < layout.data_start || p.0 >= layout.total_blocks {
            self.report.note(place, format!("refers to block {}, outside the data area", p.0));
            return false;
        }
        let tags = self.tags.entry(p.segment()).or_insert_with(|| Box::new([Tag::NONE; 256]));
        let slot = &mut tags[mem(p.0 % SEGMENT_BLOCKS)];
        match *slot {
            Tag::NONE => {
                *slot = tag;
                self.report.blocks_checked += 1;
                true
            }
            old if old == tag => false,
            _ => {
                self.report.note(place, format!("block {} is used twice", p.0));
                false
            }
        }
    }

    fn walk_versions(&mut self, checkpoint: &Checkpoint, progress: &mut dyn FnMut(u64, u64)) {
        // The part of a version below its deletion's cursor is gone: what others share with it they show first.
        let mut versions: Vec<_> = checkpoint.catalog.versions.values().cloned().collect();
        versions.sort_by_key(|v| (v.cursor, v.epoch));
        let all = versions.len() as u64;
        for (done, v) in (1..).zip(&versions) {
            let place = name_of(checkpoint, v);
            self.walk(v, v.root.child, v.root.height, 0, v.epoch.0, &place);
            self.report.versions += 1;
            progress(done, all);
        }
    }

    fn walk(&mut self, v: &Version, child: Child, level: u8, base: u64, youngest: u64, place: &str) {
        if base + span(level) <= v.cursor {
            return;
        }
        let birth = match child {
            Child::Hole => return,
            Child::Run { .. } if level != 0 => {
                return self.report.note(place, format!("a run stands above a leaf, at block {base}"));
            }
            Child::Run { birth, .. } | Child::Node { birth, .. } => birth,
        };
        if birth.0 > youngest {
            self.report.note(place, format!("at block {base} something is younger than what refers to it"));
        }
        if let Child::Node { p, crc, .. } = child {
            if !self.refer(p, Tag::node(level, base), place) {
                return;
            }
            self.report.nodes_checked += 1;
            if let Err(e) = self.cache.load_now(p, crc) {
                return self.report.note(place, format!("blocks {base} and following: {e}"));
            }
            if level > 0 {
                return self.walk_children(v, p, crc, level, base, birth.0, place);
            }
        }
        match leaf_view(&self.cache, child) {
            Err(e) => self.report.note(place, format!("blocks {base} and following: {e}")),
            Ok(entries) => {
                for (l, entry) in (base..base + LEAF_ENTRIES).zip(entries) {
                    if let Some(e) = entry {
                        self.refer(e.p, Tag::data(l), place);
                    }
                }
            }
        }
    }

    #[allow(clippy::too_many_arguments)] // one place in the tree, spelled out
    fn walk_children(
        &mut self,
        v: &Version,
        p: Phys,
        sum: u32,
        level: u8,
        base: u64,
        birth: u64,
        place: &str,
    ) {
        let entries = self.cache.load_now(p, sum).and_then(|node| upper_entries(&node));
        match entries {
            Err(e) => self.report.note(place, format!("blocks {base} and following: {e}")),
            Ok(entries) => {
                let size = span(level - 1);
                for (i, child) in (0..).zip(entries) {
                    self.walk(v, child, level - 1, base + i * size, birth, place);
                }
            }
        }
    }

    /// The segment table against what was referred to.
    fn compare(&mut self, dev: &dyn BlockDev, checkpoint: &Checkpoint) -> Result<()> {
        let Segments { used: map, sealed, backed } = read_segments(dev, self.sb, &checkpoint.slots)?;
        let first = self.sb.layout().data_start / SEGMENT_BLOCKS;
        for s in first..map.segments() {
            let words = map.words(s);
            if words.iter().zip(sealed.words(s)).any(|(used, sealed)| sealed & !used != 0) {
                self.report.note("segment table", format!("a free block of segment {s} has a checksum"));
            }
            let tags = self.tags.get(&s);
            for b in 0..SEGMENT_BLOCKS {
                let used = words[mem(b / 64)] >> (b % 64) & 1 == 1;
                let referred = tags.is_some_and(|t| t[mem(b)] != Tag::NONE);
                let block = s * SEGMENT_BLOCKS + b;
                match (used, referred) {
                    (true, false) => self.report.note("segment table", format!("block {block} is leaked")),
                    (false, true) => {
                        self.report
                            .note("segment table", format!("block {block} is used but marked as free"));
                    }
                    _ => {}
                }
            }
            if tags.is_some() && !backed[mem(s)] {
                self.report.note("segment table", format!("segment {s} is used but not backed"));
            }
        }
        Ok(())
    }
}

fn name_of(checkpoint: &Checkpoint, v: &Version) -> String {
    let volume = checkpoint.catalog.volumes.get(&v.volume).map_or("(deleted)", |x| x.name.as_str());
    match &v.kind {
        Kind::Head => format!("volume {volume}"),
        Kind::Snapshot { name, .. } => format!("snapshot {volume}@{name}"),
    }
}
