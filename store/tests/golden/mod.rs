//! The history behind the golden pool, and what each volume and snapshot of it must hold.
//!
//! Every written block repeats one 64-bit word, `stamp << 32 | logical block`: a block that comes from anywhere
//! else shows.
#![allow(dead_code)] // each user takes a part of it

use std::collections::BTreeMap;
use std::sync::Arc;
use store::io::BlockDev;
use store::io::sim::{SimDev, Survival};
use store::log::Ring;
use store::log::ring::SharedBytes;
use store::pool::{Environment, format_device, ring_bytes};
use store::{Consistency, Labels, Pool, SnapshotSpec};

/// 52 segments, so that the segment table has a second page.
pub const POOL_BYTES: u64 = 52 << 20;
const LOG_BYTES: u64 = 192 << 10;

/// From, to (exclusive) and stamp of logical blocks; stamp 0: a hole. Later spans lie over earlier ones.
type Spans = &'static [(u64, u64, u64)];

/// What a volume (`disk`) or snapshot (`disk@first`) holds.
pub struct Expected {
    pub name: &'static str,
    pub blocks: u64,
    pub spans: Spans,
}

const FIRST: Spans = &[(0, 512, 1), (512, 520, 2), (2500, 2510, 3)];

/// The golden pool after a power cut, in the order in which it is listed: volumes, then snapshots.
pub const EXPECTED: &[Expected] = &[
    Expected {
        name: "disk",
        blocks: 3200,
        spans: &[
            (0, 512, 1),
            (512, 520, 2),
            (2500, 2510, 3),
            (3, 6, 5),
            (515, 518, 0),
            (4, 5, 6),
            (0, 2, 0),
            (20, 24, 9),
            (100, 110, 0),
            (21, 22, 11),
            (3100, 3101, 13),
        ],
    },
    Expected { name: "late", blocks: 100, spans: &[(50, 60, 10)] },
    Expected { name: "other", blocks: 64, spans: &[(0, 8, 4)] },
    Expected {
        name: "renamed",
        blocks: 3000,
        spans: &[(0, 512, 1), (512, 520, 2), (2500, 2510, 3), (600, 603, 7), (1, 2, 7)],
    },
    Expected { name: "twin", blocks: 100, spans: &[(50, 60, 10)] },
    Expected { name: "disk@first", blocks: 3000, spans: FIRST },
    Expected {
        name: "disk@fourth",
        blocks: 3000,
        spans: &[
            (0, 512, 1),
            (512, 520, 2),
            (2500, 2510, 3),
            (3, 6, 5),
            (515, 518, 0),
            (4, 5, 6),
            (0, 2, 0),
            (20, 24, 9),
            (100, 110, 0),
        ],
    },
    Expected { name: "gone@kept", blocks: 10, spans: &[(0, 2, 8)] },
    Expected { name: "late@fourth", blocks: 100, spans: &[(50, 60, 10)] },
    Expected { name: "other@first", blocks: 64, spans: &[(0, 8, 4)] },
];

/// Deletions that wait in the log: the snapshot `third`, the old head of `other`, the volume `brief`.
pub const PENDING_DELETIONS: u64 = 3;

/// Size in blocks and the stamp of each block that is not zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    pub blocks: u64,
    pub stamps: BTreeMap<u64, u64>,
}

/// Volumes, then snapshots, by name.
pub type State = BTreeMap<String, Content>;

/// [`EXPECTED`] as a state.
pub fn expected() -> State {
    let content = |e: &Expected| {
        let mut stamps = BTreeMap::new();
        for (from, to, stamp) in e.spans {
            for l in *from..*to {
                if *stamp == 0 {
                    stamps.remove(&l);
                } else {
                    stamps.insert(l, *stamp);
                }
            }
        }
        Content { blocks: e.blocks, stamps }
    };
    EXPECTED.iter().map(|e| (e.name.to_owned(), content(e))).collect()
}

fn word(stamp: u64, l: u64) -> [u8; 8] {
    (stamp << 32 | l).to_le_bytes()
}

/// Bytes read by one request.
const STEP: u64 = 1 << 20;

type Read<'a> = &'a dyn Fn(u64, &mut [u8]) -> store::Result<()>;
type NextData<'a> = &'a dyn Fn(u64) -> store::Result<Option<std::ops::Range<u64>>>;

fn read_content(bytes: u64, next_data: NextData<'_>, read: Read<'_>) -> store::Result<Content> {
    let mut stamps = BTreeMap::new();
    let mut buf = Vec::new();
    let mut at = 0;
    while at < bytes {
        let Some(range) = next_data(at)? else { break };
        let end = range.end.min(range.start + STEP);
        buf.resize(usize::try_from(end - range.start).expect("64-bit host"), 0);
        read(range.start, &mut buf)?;
        for (l, block) in (range.start / 4096..).zip(buf.chunks(4096)) {
            let first = u64::from_le_bytes(block[..8].try_into().expect("8 bytes"));
            assert!(block.chunks(8).all(|w| w == &block[..8]), "block {l} is torn");
            if first != 0 {
                assert_eq!(first & 0xffff_ffff, l, "block {l} holds another block");
                stamps.insert(l, first >> 32);
            }
        }
        at = end;
    }
    Ok(Content { blocks: bytes / 4096, stamps })
}

/// Reads all of a pool; an error is the first one that a read met.
pub fn state_of(pool: &Arc<Pool>) -> store::Result<State> {
    let mut state = State::new();
    for info in pool.volumes() {
        let v = pool.open_volume(&info.name)?;
        let content = read_content(v.size_bytes(), &|at| v.next_data(at), &|at, buf| v.read_at(at, buf))?;
        state.insert(info.name, content);
    }
    for info in pool.snapshots(None)? {
        let s = pool.open_snapshot(&info.volume, &info.name)?;
        let content = read_content(s.size_bytes(), &|at| s.next_data(at), &|at, buf| s.read_at(at, buf))?;
        state.insert(format!("{}@{}", info.volume, info.name), content);
    }
    Ok(state)
}

/// Opens a simulated disk as a host booted for the `boot`-th time would, with an empty ring.
pub fn open(dev: &SimDev, boot: u8, read_only: bool) -> store::Result<Arc<Pool>> {
    let shared = SharedBytes::new(ring_bytes(LOG_BYTES / 4096));
    let environment = Environment {
        path: "golden".into(),
        boot_id: [boot; 16],
        ring: &mut |_, _| if read_only { Err("read-only".into()) } else { Ok(Ring::heap(shared.clone())) },
        read_only,
        background: false,
        cache_bytes: 1 << 20,
        slice_leaves: 16,
    };
    Pool::open_on(Arc::new(dev.clone()), environment)
}

/// The disk after a power cut that takes everything not flushed.
pub fn power_cut(dev: &SimDev) -> SimDev {
    dev.after_cut(Survival::Nothing, &mut || 0)
}

/// A disk with these bytes.
pub fn disk_of(image: &[u8]) -> SimDev {
    let dev = SimDev::new(image.len() as u64);
    for (at, block) in (0u64..).step_by(4096).zip(image.chunks(4096)) {
        if block.iter().any(|b| *b != 0) {
            dev.write_at(at, block).expect("memory takes it");
        }
    }
    dev.sync().expect("memory takes it");
    dev
}

/// The bytes of a disk.
pub fn image_of(dev: &SimDev) -> Vec<u8> {
    let mut image = vec![0; usize::try_from(dev.len()).expect("64-bit host")];
    dev.read_at(0, &mut image).expect("memory answers");
    image
}

/// An open pool and the states that it went through, one for each block of the log.
struct Story {
    pool: Arc<Pool>,
    moments: Vec<State>,
}

impl Story {
    fn write(&self, volume: &str, from: u64, to: u64, stamp: u64) -> store::Result<()> {
        let bytes: Vec<u8> = (from..to).flat_map(|l| word(stamp, l).repeat(512)).collect();
        self.pool.open_volume(volume)?.write_at(from * 4096, &bytes, false)
    }

    fn discard(&self, volume: &str, from: u64, to: u64) -> store::Result<()> {
        self.pool.open_volume(volume)?.discard(from * 4096, (to - from) * 4096)
    }

    fn cut(&self, volumes: &[&str], name: &str, consistency: Consistency) -> store::Result<()> {
        let spec = |v: &&str| SnapshotSpec { volume: (*v).into(), name: name.into(), consistency };
        let specs: Vec<_> = volumes.iter().map(spec).collect();
        self.pool.create_snapshots(&specs, labels("cut", name)).map(drop)
    }

    /// Ends a step: what it appended goes to the log, in a block of its own.
    fn moment(&mut self) -> store::Result<()> {
        self.pool.flush()?;
        self.moments.push(state_of(&self.pool)?);
        Ok(())
    }

    /// Everything up to a clean end: trees of two levels, a run, shared nodes, a snapshot that was deleted.
    fn first_life(&self) -> store::Result<()> {
        let pool = &self.pool;
        pool.create_volume("disk", 3000 * 4096, labels("role", "golden"))?;
        self.write("disk", 0, 512, 1)?;
        self.write("disk", 512, 520, 2)?;
        self.write("disk", 2500, 2510, 3)?;
        pool.create_volume("other", 64 * 4096, Labels::new())?;
        self.write("other", 0, 8, 4)?;
        self.cut(&["disk", "other"], "first", Consistency::Fs)?;
        self.write("disk", 3, 6, 5)?;
        self.discard("disk", 515, 518)?;
        pool.checkpoint()?;
        self.cut(&["disk"], "second", Consistency::Crash)?;
        self.write("disk", 4, 5, 6)?;
        self.discard("disk", 0, 2)?;
        self.cut(&["disk"], "third", Consistency::Detached)?;
        pool.clone_snapshot("disk", "first", "copy", Labels::new())?;
        self.write("copy", 600, 603, 7)?;
        self.write("copy", 1, 2, 7)?;
        pool.delete_snapshot("disk", "second")?;
        pool.settle()?;
        pool.create_volume("gone", 10 * 4096, Labels::new())?;
        self.write("gone", 0, 2, 8)?;
        self.cut(&["gone"], "kept", Consistency::Crash)?;
        pool.delete_volume("gone")?;
        pool.set_attached("disk", true)?;
        pool.settle()?;
        pool.close()
    }

    /// Every kind of record, in the log after the checkpoint.
    fn second_life(&mut self) -> store::Result<()> {
        let pool = self.pool.clone();
        self.moments.push(state_of(&pool)?);
        self.write("disk", 20, 24, 9)?;
        self.moment()?;
        self.discard("disk", 100, 110)?;
        self.moment()?;
        pool.create_volume("late", 100 * 4096, labels("role", "late"))?;
        self.moment()?;
        self.write("late", 50, 60, 10)?;
        self.moment()?;
        self.cut(&["disk", "late"], "fourth", Consistency::Crash)?;
        self.moment()?;
        self.write("disk", 21, 22, 11)?;
        self.moment()?;
        pool.clone_snapshot("late", "fourth", "twin", labels("role", "twin"))?;
        self.moment()?;
        self.write("other", 2, 3, 12)?;
        self.moment()?;
        pool.rollback("other", "first")?;
        self.moment()?;
        pool.delete_snapshot("disk", "third")?;
        self.moment()?;
        pool.create_volume("brief", 8 * 4096, Labels::new())?;
        self.moment()?;
        pool.delete_volume("brief")?;
        self.moment()?;
        pool.rename_volume("copy", "renamed")?;
        self.moment()?;
        pool.resize_volume("disk", 3200 * 4096)?;
        self.moment()?;
        pool.set_attached("disk", false)?;
        self.moment()
    }

    /// Another generation in the same log, and a write that nobody flushed.
    fn third_life(&mut self) -> store::Result<()> {
        self.write("disk", 3100, 3101, 13)?;
        self.moment()?;
        self.write("renamed", 0, 1, 14)
    }
}

fn labels(key: &str, value: &str) -> Labels {
    Labels::from([(key.to_owned(), value.to_owned())])
}

/// Makes the golden pool: its disk after a power cut, and what the pool held before the log's first block since
/// the checkpoint and after each of them.
pub fn build() -> store::Result<(SimDev, Vec<State>)> {
    let dev = SimDev::new(POOL_BYTES);
    format_device(&dev, LOG_BYTES)?;
    let mut moments = Vec::new();
    let mut life = |dev: &SimDev, boot, steps: fn(&mut Story) -> store::Result<()>| {
        let mut story = Story { pool: open(dev, boot, false)?, moments: std::mem::take(&mut moments) };
        steps(&mut story)?;
        moments = story.moments;
        Ok::<_, store::Error>(power_cut(dev))
    };
    let dev = life(&dev, 1, |s| s.first_life())?;
    let dev = life(&dev, 2, Story::second_life)?;
    let dev = life(&dev, 3, Story::third_life)?;
    Ok((dev, moments))
}
