//! A pool on a simulated disk, beside a model of what it must hold.
//!
//! The model knows for each 512-byte sector of each volume what it holds now and what it may hold after a
//! power cut: what the last flush left, or anything written since. A sector's content is a stamp, unique to
//! the write, the block and the sector, so a sector that comes from anywhere else shows.
#![allow(dead_code, clippy::cast_possible_truncation)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use store::io::BlockDev;
use store::io::sim::{SimDev, Survival};
use store::log::Ring;
use store::log::ring::SharedBytes;
use store::pool::{Environment, format_device, ring_bytes};
use store::{Consistency, Labels, Pool, Recovery, SnapshotSpec, check_device};

pub const SECTORS: u64 = 8;

/// Small deterministic random numbers (SplitMix64).
#[derive(Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len() as u64) as usize]
    }
}

#[derive(Debug, Clone)]
pub enum Op {
    Write {
        volume: String,
        l: u64,
        n: u64,
        fua: bool,
    },
    Partial {
        volume: String,
        l: u64,
        sector: u64,
        sectors: u64,
    },
    Discard {
        volume: String,
        l: u64,
        n: u64,
    },
    Zeroes {
        volume: String,
        l: u64,
        n: u64,
    },
    Flush,
    Checkpoint,
    /// Every block that a snapshot holds gets its checksum.
    Seal,
    /// Open volumes are put in order.
    Resequence,
    Create {
        name: String,
        blocks: u64,
    },
    Snapshot {
        of: Vec<(String, String)>,
    },
    Clone {
        volume: String,
        snapshot: String,
        name: String,
    },
    Rollback {
        volume: String,
        snapshot: String,
    },
    DeleteSnapshot {
        volume: String,
        snapshot: String,
    },
    DeleteVolume {
        name: String,
    },
    Rename {
        old: String,
        new: String,
    },
    Resize {
        name: String,
        blocks: u64,
    },
    Reopen,
}

/// Stamp of each sector; absent: zeros.
pub type Content = BTreeMap<u64, u64>;

#[derive(Debug, Clone, Default)]
pub struct ModelVolume {
    pub blocks: u64,
    pub now: Content,
    /// What else each sector may hold after a power cut.
    pub maybe: BTreeMap<u64, BTreeSet<u64>>,
}

impl ModelVolume {
    fn set(&mut self, sector: u64, stamp: u64) {
        let old = self.now.get(&sector).copied().unwrap_or(0);
        self.maybe.entry(sector).or_default().insert(old);
        if stamp == 0 {
            self.now.remove(&sector);
        } else {
            self.now.insert(sector, stamp);
        }
    }
}

#[derive(Debug, Clone, Default)]
pub struct Model {
    pub volumes: BTreeMap<String, ModelVolume>,
    pub snapshots: BTreeMap<(String, String), (u64, Content)>,
}

impl Model {
    fn flushed(&mut self) {
        self.volumes.values_mut().for_each(|v| v.maybe.clear());
    }
}

/// How a life of the pool ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Power is lost; of what was not synced this survives.
    Power(Survival),
    /// Only the process dies; the ring survives.
    Death,
}

pub struct World {
    pub dev: SimDev,
    pub ring: Arc<SharedBytes>,
    pub boot: u8,
    pub pool: Option<Arc<Pool>>,
    pub model: Model,
    pub stamp: u64,
    /// The operation that was under way when everything stopped.
    pub pending: Option<Op>,
    pub write_through: bool,
    pub slice_leaves: u64,
    /// Checkpoints run on a thread of their own.
    pub background: bool,
}

pub const POOL_BYTES: u64 = 24 << 20;
pub const LOG_BYTES: u64 = 192 << 10;

impl World {
    pub fn new() -> Self {
        Self::of(POOL_BYTES)
    }

    /// A world with a pool of that many bytes.
    pub fn of(bytes: u64) -> Self {
        let dev = SimDev::new(bytes);
        // Whoever reads a block that was never written sees this.
        dev.poison(0xa5);
        format_device(&dev, LOG_BYTES).expect("a pool fits");
        Self {
            dev,
            ring: SharedBytes::new(ring_bytes(LOG_BYTES / 4096)),
            boot: 1,
            pool: None,
            model: Model::default(),
            stamp: 0,
            pending: None,
            write_through: false,
            slice_leaves: 1,
            background: false,
        }
    }

    pub fn try_open(&mut self) -> store::Result<()> {
        let ring = self.ring.clone();
        let none = self.write_through;
        let environment = Environment {
            path: "sim".into(),
            boot_id: [self.boot; 16],
            ring: &mut |_, _| if none { Err("off".into()) } else { Ok(Ring::heap(ring.clone())) },
            read_only: false,
            background: self.background,
            cache_bytes: 128 << 10,
            slice_leaves: self.slice_leaves,
        };
        self.pool = Some(Pool::open_on(Arc::new(self.dev.clone()), environment)?);
        Ok(())
    }

    pub fn open(&mut self) {
        self.try_open().expect("the pool opens");
    }

    pub fn pool(&self) -> &Arc<Pool> {
        self.pool.as_ref().expect("open")
    }

    /// Performs one operation on pool and model. `Err`: the disk is gone (the operation stays pending).
    /// Refusals (names taken, no space, …) are no error and change nothing.
    pub fn run(&mut self, op: &Op) -> Result<(), String> {
        if std::env::var_os("COWSLIP_CRASH_TRACE").is_some() {
            eprintln!("step {} {op:?} (stamp {:x})", self.dev.steps(), self.stamp + 1);
        }
        self.pending = Some(op.clone());
        let result = self.perform(op);
        if std::env::var_os("COWSLIP_CRASH_TRACE").is_some() {
            eprintln!("  -> {result:?}");
        }
        match result {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), store::ErrorKind::Io | store::ErrorKind::Poisoned) => {
                return Err(e.to_string());
            }
            Err(e) if e.kind() == store::ErrorKind::NoSpace && self.pool.is_none() => {
                return Err(e.to_string());
            }
            Err(e) if e.kind() == store::ErrorKind::NoSpace => {
                // Blocks that were written before room ran out are allowed to be there.
                self.pool().flush().map_err(|e| e.to_string())?;
                if let Op::Write { .. } | Op::Partial { .. } | Op::Zeroes { .. } = op {
                    self.adopt_partial_write(op);
                }
                self.model.flushed();
            }
            Err(e) => assert!(e.kind() != store::ErrorKind::Damaged, "{op:?}: {e}"),
        }
        self.pending = None;
        Ok(())
    }

    fn perform(&mut self, op: &Op) -> store::Result<()> {
        let pool = self.pool().clone();
        match op {
            Op::Write { volume, l, n, fua } => {
                let Ok(v) = pool.open_volume(volume) else { return Ok(()) };
                let (sector, count) = (l * SECTORS, n * SECTORS);
                let data = self.fill(sector, count);
                v.write_at(l * 4096, &data, *fua)?;
                self.set_stamps(volume, sector, count, self.stamp);
                if *fua {
                    self.settle_range(volume, sector, count);
                }
            }
            Op::Partial { volume, l, sector, sectors } => {
                let Ok(v) = pool.open_volume(volume) else { return Ok(()) };
                let at = l * SECTORS + sector;
                let data = self.fill(at, *sectors);
                v.write_at(at * 512, &data, false)?;
                self.set_stamps(volume, at, *sectors, self.stamp);
            }
            Op::Discard { volume, l, n } => {
                let Ok(v) = pool.open_volume(volume) else { return Ok(()) };
                v.discard(l * 4096, n * 4096)?;
                self.read_zeros_or_keep(&v, volume, *l, *n);
            }
            Op::Zeroes { volume, l, n } => {
                let Ok(v) = pool.open_volume(volume) else { return Ok(()) };
                v.write_zeroes(l * 4096, n * 4096)?;
                self.set_stamps(volume, l * SECTORS, n * SECTORS, 0);
            }
            Op::Flush => {
                pool.flush()?;
                self.model.flushed();
            }
            Op::Checkpoint => {
                pool.checkpoint()?;
                self.model.flushed();
            }
            Op::Seal => {
                pool.seal()?;
                self.model.flushed();
            }
            Op::Resequence => {
                let open: Vec<_> = self.model.volumes.keys().map(|v| pool.open_volume(v)).collect();
                pool.checkpoint()?;
                pool.resequence()?;
                drop(open);
                self.model.flushed();
            }
            Op::Reopen => {
                pool.close()?;
                self.model.flushed();
                drop(pool);
                self.pool = None;
                self.try_open()?;
                assert_eq!(self.pool().recovery(), Recovery::Clean);
            }
            other => {
                control(&pool, other)?;
                // What changes nothing flushes nothing.
                let idle = match other {
                    Op::Rename { old, new } => old == new,
                    Op::Resize { name, blocks } => self.model.volumes[name].blocks == *blocks,
                    _ => false,
                };
                apply_control(&mut self.model, other);
                if !idle {
                    self.model.flushed();
                }
            }
        }
        Ok(())
    }

    /// A full pool may ignore a discard: then all of it kept its content.
    fn read_zeros_or_keep(&mut self, v: &store::Volume, volume: &str, l: u64, n: u64) {
        let mut buf = vec![0; (n * 4096) as usize];
        v.read_at(l * 4096, &mut buf).expect("reads work");
        if buf.iter().all(|b| *b == 0) {
            self.set_stamps(volume, l * SECTORS, n * SECTORS, 0);
        }
    }

    fn fill(&mut self, sector: u64, count: u64) -> Vec<u8> {
        self.stamp += 1;
        let mut data = Vec::with_capacity((count * 512) as usize);
        for s in sector..sector + count {
            data.extend(sector_bytes(stamp_of(self.stamp, s)));
        }
        data
    }

    fn set_stamps(&mut self, volume: &str, sector: u64, count: u64, stamp: u64) {
        let v = self.model.volumes.get_mut(volume).expect("known to the model");
        for s in sector..sector + count {
            v.set(s, if stamp == 0 { 0 } else { stamp_of(stamp, s) });
        }
    }

    fn settle_range(&mut self, volume: &str, sector: u64, count: u64) {
        let v = self.model.volumes.get_mut(volume).expect("known to the model");
        for s in sector..sector + count {
            v.maybe.remove(&s);
        }
    }

    /// After a write that ran out of room: takes over what is there, if it is old or new.
    fn adopt_partial_write(&mut self, op: &Op) {
        let (volume, from, count) = touched(op).expect("a write");
        let volume = volume.to_owned();
        let stamp = self.stamp;
        let read = read_volume(self.pool(), &volume);
        let v = self.model.volumes.get_mut(&volume).expect("known to the model");
        for s in from..from + count {
            let got = read.get(&s).copied().unwrap_or(0);
            let old = v.now.get(&s).copied().unwrap_or(0);
            assert!(got == old || got == stamp_of(stamp, s) || got == 0, "{op:?}: sector {s} holds {got:x}");
            v.set(s, got);
        }
    }

    /// The power fails, or the process dies; then the pool is opened again, checked and compared.
    pub fn crash(&mut self, end: End, random: &mut Rng) {
        self.stop(end, random);
        self.open();
        self.verify(end);
    }

    /// Only the first half of [`World::crash`].
    pub fn stop(&mut self, end: End, random: &mut Rng) {
        self.pool = None;
        match end {
            End::Power(survival) => {
                self.dev = self.dev.after_cut(survival, &mut || random.next());
                self.boot += 1;
                self.ring = SharedBytes::new(ring_bytes(LOG_BYTES / 4096));
            }
            End::Death => {
                self.dev = self.dev.after_death(&mut || random.next());
                self.ring = self.ring.duplicate();
            }
        }
    }

    /// A copy with a disk and a ring of its own, closed.
    pub fn fork(&self) -> Self {
        Self {
            dev: self.dev.copy(),
            ring: self.ring.duplicate(),
            boot: self.boot,
            pool: None,
            model: self.model.clone(),
            stamp: self.stamp,
            pending: self.pending.clone(),
            write_through: self.write_through,
            slice_leaves: self.slice_leaves,
            background: self.background,
        }
    }

    /// Compares everything with what is allowed after `end`, and takes over what is found.
    pub fn verify(&mut self, end: End) {
        let report = check_device(&(Arc::new(self.dev.clone()) as Arc<dyn BlockDev>), &mut |_, _| {})
            .expect("check runs");
        assert!(report.findings.is_empty(), "check: {:?}", report.findings);
        let pending = self.pending.take();
        let pool = self.pool().clone();
        let expected = resolve_control(&pool, &self.model, pending.as_ref());
        let names: Vec<String> = pool.volumes().into_iter().map(|v| v.name).collect();
        assert_eq!(names, expected.volumes.keys().cloned().collect::<Vec<_>>(), "pending {pending:?}");
        let mut found = expected.clone();
        for (name, v) in &expected.volumes {
            let got = read_volume(&pool, name);
            let rolled = match &pending {
                Some(Op::Rollback { volume, snapshot }) if volume == name => {
                    let (_, content) = &self.model.snapshots[&(volume.clone(), snapshot.clone())];
                    same(&got, content)
                }
                _ => false,
            };
            if !rolled {
                self.compare(name, v, &got, end, pending.as_ref());
            }
            let new = found.volumes.get_mut(name).expect("same names");
            // After the death of the process alone, what was not flushed is still not durable.
            let mut maybe = if end == End::Death { v.maybe.clone() } else { BTreeMap::new() };
            if end == End::Death {
                for s in either(&v.now, &got) {
                    let (old, now) = (v.now.get(&s).copied().unwrap_or(0), got.get(&s).copied().unwrap_or(0));
                    if old != now {
                        maybe.entry(s).or_default().insert(old);
                    }
                }
            }
            *new = ModelVolume { blocks: v.blocks, now: got, maybe };
        }
        for ((volume, snapshot), (blocks, content)) in &expected.snapshots {
            let got = read_snapshot(&pool, volume, snapshot, *blocks);
            assert!(same(&got, content), "{volume}@{snapshot} changed: {}", first_difference(&got, content));
        }
        let listed: BTreeSet<_> =
            pool.snapshots(None).expect("lists").into_iter().map(|s| (s.volume, s.name)).collect();
        assert_eq!(
            listed,
            expected.snapshots.keys().cloned().collect::<BTreeSet<_>>(),
            "pending {pending:?}"
        );
        self.model = found;
        if pending.as_ref().is_some_and(|op| touched(op).is_none()) {
            // What the model took over of a change of the catalog is to stay.
            pool.flush().expect("flushes");
            self.model.flushed();
        }
    }

    fn compare(&self, name: &str, v: &ModelVolume, got: &Content, end: End, pending: Option<&Op>) {
        let inflight = pending.and_then(touched).filter(|(volume, _, _)| *volume == name);
        for s in either(&v.now, got) {
            let value = got.get(&s).copied().unwrap_or(0);
            let now = v.now.get(&s).copied().unwrap_or(0);
            let mut ok = value == now;
            if !ok && matches!(end, End::Power(_)) {
                ok = v.maybe.get(&s).is_some_and(|m| m.contains(&value));
            }
            if let Some((_, from, count)) = inflight
                && (from..from + count).contains(&s)
            {
                ok |= value == 0 || value == stamp_of(self.stamp, s);
            }
            assert!(
                ok,
                "{name} sector {s} holds {value:x}, now {now:x}, allowed {:x?}, end {end:?}, pending {pending:?}",
                v.maybe.get(&s)
            );
        }
    }
}

fn stamp_of(stamp: u64, sector: u64) -> u64 {
    stamp << 24 | sector
}

fn sector_bytes(stamp: u64) -> [u8; 512] {
    let mut out = [0; 512];
    for word in out.chunks_mut(8) {
        word.copy_from_slice(&stamp.to_le_bytes());
    }
    out
}

/// Volume, first sector and count of sectors that a data operation changes.
fn touched(op: &Op) -> Option<(&str, u64, u64)> {
    match op {
        Op::Write { volume, l, n, .. } | Op::Discard { volume, l, n } | Op::Zeroes { volume, l, n } => {
            Some((volume, l * SECTORS, n * SECTORS))
        }
        Op::Partial { volume, l, sector, sectors } => Some((volume, l * SECTORS + sector, *sectors)),
        _ => None,
    }
}

/// Sectors that hold something in one of the two; all others are zeros in both.
fn either(a: &Content, b: &Content) -> Vec<u64> {
    let mut all: Vec<u64> = a.keys().chain(b.keys()).copied().collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn same(a: &Content, b: &Content) -> bool {
    a == b
}

fn first_difference(a: &Content, b: &Content) -> String {
    let keys: BTreeSet<_> = a.keys().chain(b.keys()).collect();
    keys.into_iter()
        .find(|k| a.get(k) != b.get(k))
        .map_or(String::new(), |k| format!("sector {k}: {:x?} instead of {:x?}", a.get(k), b.get(k)))
}

fn parse(bytes: &[u8], base: u64, out: &mut Content) {
    for (i, sector) in bytes.chunks(512).enumerate() {
        let stamp = u64::from_le_bytes(sector[..8].try_into().expect("8 bytes"));
        assert!(sector.chunks(8).all(|w| w == &sector[..8]), "a sector is torn inside");
        if stamp != 0 {
            out.insert(base + i as u64, stamp);
        }
    }
}

fn read_all(len: u64, mut read: impl FnMut(u64, &mut [u8]) -> store::Result<()>) -> Content {
    let mut out = Content::new();
    let mut buf = vec![0; 256 * 4096];
    let mut at = 0;
    while at < len {
        let n = (len - at).min(buf.len() as u64);
        read(at, &mut buf[..n as usize]).expect("reads work");
        parse(&buf[..n as usize], at / 512, &mut out);
        at += n;
    }
    out
}

pub fn read_volume(pool: &Arc<Pool>, name: &str) -> Content {
    let v = pool.open_volume(name).expect("the volume is there");
    read_all(v.size_bytes(), |at, buf| v.read_at(at, buf))
}

pub fn read_snapshot(pool: &Arc<Pool>, volume: &str, name: &str, blocks: u64) -> Content {
    let s = pool.open_snapshot(volume, name).expect("the snapshot is there");
    assert_eq!(s.size_bytes(), blocks * 4096);
    read_all(s.size_bytes(), |at, buf| s.read_at(at, buf))
}

fn control(pool: &Arc<Pool>, op: &Op) -> store::Result<()> {
    match op {
        Op::Create { name, blocks } => pool.create_volume(name, blocks * 4096, Labels::new()).map(drop),
        Op::Snapshot { of } => {
            let spec = |(volume, name): &(String, String)| SnapshotSpec {
                volume: volume.clone(),
                name: name.clone(),
                consistency: Consistency::Crash,
            };
            let specs: Vec<_> = of.iter().map(spec).collect();
            pool.create_snapshots(&specs, Labels::new()).map(drop)
        }
        Op::Clone { volume, snapshot, name } => {
            pool.clone_snapshot(volume, snapshot, name, Labels::new()).map(drop)
        }
        Op::Rollback { volume, snapshot } => pool.rollback(volume, snapshot).map(drop),
        Op::DeleteSnapshot { volume, snapshot } => pool.delete_snapshot(volume, snapshot),
        Op::DeleteVolume { name } => pool.delete_volume(name),
        Op::Rename { old, new } => pool.rename_volume(old, new).map(drop),
        Op::Resize { name, blocks } => pool.resize_volume(name, blocks * 4096).map(drop),
        _ => unreachable!("data operations are performed elsewhere"),
    }
}

fn apply_control(m: &mut Model, op: &Op) {
    match op {
        Op::Create { name, blocks } => {
            m.volumes.insert(name.clone(), ModelVolume { blocks: *blocks, ..ModelVolume::default() });
        }
        Op::Snapshot { of } => {
            for (volume, name) in of {
                let v = &m.volumes[volume];
                m.snapshots.insert((volume.clone(), name.clone()), (v.blocks, v.now.clone()));
            }
        }
        Op::Clone { volume, snapshot, name } => {
            let (blocks, now) = m.snapshots[&(volume.clone(), snapshot.clone())].clone();
            m.volumes.insert(name.clone(), ModelVolume { blocks, now, ..ModelVolume::default() });
        }
        Op::Rollback { volume, snapshot } => {
            let (blocks, now) = m.snapshots[&(volume.clone(), snapshot.clone())].clone();
            let v = m.volumes.get_mut(volume).expect("accepted");
            v.blocks = v.blocks.max(blocks);
            v.now = now;
            v.maybe.clear();
        }
        Op::DeleteSnapshot { volume, snapshot } => {
            m.snapshots.remove(&(volume.clone(), snapshot.clone()));
        }
        Op::DeleteVolume { name } => {
            m.volumes.remove(name);
        }
        Op::Rename { old, new } => {
            let v = m.volumes.remove(old).expect("accepted");
            m.volumes.insert(new.clone(), v);
            let moved: Vec<_> = m.snapshots.keys().filter(|(v, _)| v == old).cloned().collect();
            for key in moved {
                let s = m.snapshots.remove(&key).expect("listed");
                m.snapshots.insert((new.clone(), key.1), s);
            }
        }
        Op::Resize { name, blocks } => m.volumes.get_mut(name).expect("accepted").blocks = *blocks,
        _ => {}
    }
}

/// A catalog change under way at the end happened wholly or not at all: the pool tells which.
fn resolve_control(pool: &Arc<Pool>, model: &Model, pending: Option<&Op>) -> Model {
    let has_snapshot = |v: &str, s: &str| pool.snapshot(v, s).is_ok();
    let done = match pending {
        Some(Op::Create { name, .. }) => {
            !model.volumes.contains_key(name) && pool.volumes().iter().any(|v| v.name == *name)
        }
        Some(Op::Clone { volume, snapshot, name }) => {
            model.snapshots.contains_key(&(volume.clone(), snapshot.clone()))
                && !model.volumes.contains_key(name)
                && pool.volumes().iter().any(|v| v.name == *name)
        }
        Some(Op::Snapshot { of }) => {
            let new = of.iter().all(|k| !model.snapshots.contains_key(k));
            let there = of.iter().filter(|(v, s)| new && has_snapshot(v, s)).count();
            assert!(there == 0 || there == of.len(), "a cut of several volumes is one");
            there > 0
        }
        Some(Op::DeleteSnapshot { volume, snapshot }) => {
            model.snapshots.contains_key(&(volume.clone(), snapshot.clone()))
                && !has_snapshot(volume, snapshot)
        }
        Some(Op::DeleteVolume { name }) => {
            model.volumes.contains_key(name) && !pool.volumes().iter().any(|v| v.name == *name)
        }
        Some(Op::Rename { old, new }) => {
            old != new
                && model.volumes.contains_key(old)
                && pool.volumes().iter().any(|v| v.name == *new)
                && !model.volumes.contains_key(new)
        }
        Some(Op::Resize { name, blocks }) => {
            model.volumes.get(name).is_some_and(|v| v.blocks < *blocks)
                && pool.volume(name).is_ok_and(|v| v.size_bytes == blocks * 4096)
        }
        Some(Op::Rollback { volume, .. }) => {
            // Compared by content; only the size is taken over here.
            let mut m = model.clone();
            if let (Some(v), Ok(info)) = (m.volumes.get_mut(volume), pool.volume(volume)) {
                v.blocks = v.blocks.max(info.size_bytes / 4096);
            }
            return m;
        }
        _ => false,
    };
    let mut m = model.clone();
    if done {
        let op = pending.expect("done implies pending");
        if let Op::Snapshot { of } = op {
            // The cut is of what was acknowledged, so what may be there of the volumes is now known.
            for (v, _) in of {
                m.volumes.get_mut(v).expect("model has it").maybe.clear();
            }
        }
        apply_control(&mut m, op);
    }
    m
}

/// A random operation that mostly makes sense in this model.
pub fn random_op(m: &Model, r: &mut Rng) -> Op {
    let names: Vec<&String> = m.volumes.keys().collect();
    if names.is_empty() {
        return Op::Create { name: format!("v{}", r.below(4)), blocks: 1 + r.below(1500) };
    }
    let volume = names[r.below(names.len() as u64) as usize].clone();
    let blocks = m.volumes[&volume].blocks;
    let l = if r.below(3) == 0 { r.below(blocks) } else { r.below(blocks.min(40)) };
    let long = r.below(12) == 0;
    let n = (1 + r.below(if long { 600 } else { 6 })).min(blocks - l);
    let snapshots: Vec<_> = m.snapshots.keys().collect();
    let pick =
        |r: &mut Rng| snapshots.get(r.below(snapshots.len().max(1) as u64) as usize).map(|k| (*k).clone());
    match r.below(100) {
        0..45 => Op::Write { volume, l, n, fua: r.below(8) == 0 },
        45..50 => {
            let sector = r.below(8);
            Op::Partial { volume, l, sector, sectors: 1 + r.below(8 - sector) }
        }
        50..58 => Op::Discard { volume, l, n: if r.below(3) == 0 { blocks - l } else { n } },
        58..61 => Op::Zeroes { volume, l, n },
        61..70 => Op::Flush,
        70..74 => Op::Checkpoint,
        74..75 => Op::Seal,
        75..76 => Op::Resequence,
        76..84 => {
            let mut of = vec![(volume.clone(), format!("s{}", r.below(6)))];
            if let Some(other) = names.iter().find(|n| ***n != volume)
                && r.below(4) == 0
            {
                of.push(((*other).clone(), format!("s{}", r.below(6))));
            }
            Op::Snapshot { of }
        }
        84..87 => match pick(r) {
            Some((volume, snapshot)) => Op::Clone { volume, snapshot, name: format!("v{}", r.below(5)) },
            None => Op::Flush,
        },
        87..90 => match pick(r) {
            Some((volume, snapshot)) if m.volumes.contains_key(&volume) => Op::Rollback { volume, snapshot },
            _ => Op::Flush,
        },
        90..94 => match pick(r) {
            Some((volume, snapshot)) => Op::DeleteSnapshot { volume, snapshot },
            None => Op::Checkpoint,
        },
        94..96 => Op::DeleteVolume { name: volume },
        96..97 => Op::Rename { old: volume, new: format!("v{}", r.below(5)) },
        97..98 => Op::Resize { name: volume, blocks: blocks + r.below(800) },
        98..99 => Op::Reopen,
        _ => Op::Create { name: format!("v{}", r.below(5)), blocks: 1 + r.below(1500) },
    }
}
