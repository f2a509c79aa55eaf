//! A pool on a real file with one volume, and many tasks on one ring over it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::io::uring::Uring;
use store::io::{AlignedBuf, Sink, Source};
use store::{Consistency, InitOptions, Labels, OpenOptions, Pool, SnapshotSpec, Volume};

pub const GIB: u64 = 1 << 30;
pub const BLOCK: u64 = 4096;
/// Size of the volume, and of the peer's part of the same file.
pub const VOLUME: u64 = GIB;
/// Where the peer's part begins: the pool does not get there, it takes space from the front.
pub const PEER_AT: u64 = 6 * GIB;
/// Size of the pool file.
pub const POOL: u64 = 8 * GIB;

/// Small deterministic random numbers (SplitMix64).
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
}

/// A file pool, gone when dropped.
pub struct Rig {
    pub dir: tempfile::TempDir,
    ring: tempfile::TempDir,
    pub pool: Arc<Pool>,
    pub volume: Arc<Volume>,
    snapshots: u64,
}

fn shown(e: impl std::fmt::Display) -> String {
    e.to_string()
}

impl Rig {
    /// A pool with a volume that was written once from begin to end.
    pub fn new(parent: &std::path::Path) -> Result<Self, String> {
        Self::of(parent, VOLUME)
    }

    /// The same with a volume of that many bytes.
    pub fn of(parent: &std::path::Path, volume_bytes: u64) -> Result<Self, String> {
        let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(parent).map_err(shown)?;
        let ring = tempfile::tempdir_in("/dev/shm").map_err(shown)?;
        let size = InitOptions { size_bytes: Some(POOL), ..InitOptions::default() };
        Pool::init(dir.path(), &size).map_err(shown)?;
        let (pool, volume) = open(dir.path(), ring.path(), 64 << 20, volume_bytes)?;
        let rig = Self { dir, ring, pool, volume, snapshots: 0 };
        rig.fill()?;
        Ok(rig)
    }

    /// Opens the pool again with a node cache of that many bytes.
    pub fn reopen(self, cache_bytes: u64) -> Result<Self, String> {
        let Self { dir, ring, pool, volume, snapshots } = self;
        let bytes = volume.size_bytes();
        drop(volume);
        pool.close().map_err(shown)?;
        drop(pool);
        let (pool, volume) = open(dir.path(), ring.path(), cache_bytes, bytes)?;
        Ok(Self { dir, ring, pool, volume, snapshots })
    }

    /// Writes the whole volume in order, then lets a checkpoint put its map into the tree.
    pub fn fill(&self) -> Result<(), String> {
        let mut buf = AlignedBuf::zeroed(1 << 20);
        let mut rng = Rng(7);
        buf.fill_with(|| rng.next().to_le_bytes()[0]);
        for offset in (0..self.volume.size_bytes()).step_by(1 << 20) {
            self.volume.write_at(offset, &buf, false).map_err(shown)?;
        }
        self.pool.checkpoint().map_err(shown)
    }

    pub fn snapshot(&mut self) -> Result<(), String> {
        self.snapshots += 1;
        let spec = SnapshotSpec {
            volume: "v".into(),
            name: format!("s{}", self.snapshots),
            consistency: Consistency::Crash,
        };
        self.pool.create_snapshots(&[spec], Labels::new()).map(drop).map_err(shown)
    }

    /// Deletes all snapshots and gives their space back.
    pub fn delete_snapshots(&self) -> Result<(), String> {
        for s in self.pool.snapshots(Some("v")).map_err(shown)? {
            self.pool.delete_snapshot("v", &s.name).map_err(shown)?;
        }
        self.pool.settle().map_err(shown)
    }
}

fn open(
    dir: &std::path::Path,
    ring: &std::path::Path,
    cache_bytes: u64,
    volume_bytes: u64,
) -> Result<(Arc<Pool>, Arc<Volume>), String> {
    let options = OpenOptions { ring_dir: Some(ring.into()), wait_for_lock: true, cache_bytes };
    let pool = Pool::open(dir, &options).map_err(shown)?;
    if pool.volumes().is_empty() {
        pool.create_volume("v", volume_bytes, Labels::new()).map_err(shown)?;
    }
    let volume = pool.open_volume("v").map_err(shown)?;
    Ok((pool, volume))
}

/// What a task does over and over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    Read,
    Write,
}

/// In which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Random,
    Sequential,
    /// Every block once, in an order that looks random.
    Scattered,
}

/// A load on the volume.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub work: Work,
    pub order: Order,
    pub bytes: u64,
    pub depth: usize,
    /// Each request is followed by a flush of its own.
    pub flush: bool,
    /// The clock is looked at for each request.
    pub latency: bool,
    /// Ends after this time, or after as many requests.
    pub time: Duration,
    pub requests: u64,
}

/// What a load did.
pub struct Outcome {
    pub requests: u64,
    pub seconds: f64,
    /// Processor time of the thread, user and system.
    pub cpu_seconds: f64,
    /// Of each request, in nanoseconds, sorted; none where nobody looked at the clock.
    pub latencies: Vec<u64>,
}

impl Outcome {
    pub fn rate(&self) -> f64 {
        rate(self.requests, self.seconds)
    }
    /// Processor time of a request in microseconds.
    pub fn cpu(&self) -> f64 {
        1e6 * self.cpu_seconds / to_f64(self.requests)
    }
    /// The latency that this share of the requests does not exceed, in microseconds.
    pub fn percentile(&self, share: f64) -> f64 {
        let n = self.latencies.len();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let at = ((n as f64 * share) as usize).min(n.saturating_sub(1));
        self.latencies.get(at).map_or(0.0, |ns| to_f64(*ns) / 1000.0)
    }
}

#[allow(clippy::cast_precision_loss)] // figures for people
pub fn to_f64(n: u64) -> f64 {
    n as f64
}

/// Processor time of this thread so far: on a busy machine it tells more than the clock on the wall.
pub fn thread_seconds() -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills the struct given.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut t) };
    #[allow(clippy::cast_precision_loss)] // seconds of a process
    let seconds = t.tv_sec as f64 + t.tv_nsec as f64 / 1e9;
    seconds
}

pub fn rate(n: u64, seconds: f64) -> f64 {
    to_f64(n) / seconds
}

/// Requests after which the clock is looked at where latencies do not count.
const CLOCK: u64 = 64;

/// Runs a load on a ring of this thread.
pub fn drive(volume: &Volume, load: Load, seed: u64) -> Result<Outcome, String> {
    // SAFETY: the futures are driven by `run` alone, which ends or drops them.
    let ring = unsafe { Uring::new(volume.descriptor().ok_or("no file")?) }.map_err(shown)?;
    let slots = volume.size_bytes() / load.bytes;
    let next = std::cell::Cell::new(0u64);
    let latencies = std::cell::RefCell::new(Vec::new());
    let over = std::cell::Cell::new(false);
    let (start, cpu) = (Instant::now(), thread_seconds());
    let task = async |number: u64| {
        let mut rng = Rng(seed * 1000 + number);
        let mut buf = AlignedBuf::zeroed(usize::try_from(load.bytes).expect("small"));
        buf.fill_with(|| rng.next().to_le_bytes()[0]);
        let volume = volume.on(&ring);
        let mut began = Instant::now();
        while !over.get() && next.get() < load.requests {
            let n = next.replace(next.get() + 1);
            let slot = match load.order {
                Order::Random => rng.below(slots),
                Order::Sequential => n % slots,
                // An odd factor visits every slot of a power of two once.
                Order::Scattered => n.wrapping_mul(0x9e37_79b9_7f4a_7c15 | 1) % slots,
            };
            let offset = slot * load.bytes;
            let done = match load.work {
                Work::Read => volume.read(offset, Sink::Memory(&mut buf)).await,
                Work::Write => volume.write(offset, Source::Memory(&buf), false).await,
            };
            done.expect("the disk works");
            if load.flush {
                volume.flush().await.expect("the disk works");
            }
            if load.latency || n.is_multiple_of(CLOCK) {
                let now = Instant::now();
                over.set(now - start >= load.time);
                if load.latency {
                    let took = u64::try_from((now - began).as_nanos()).unwrap_or(u64::MAX);
                    latencies.borrow_mut().push(took);
                }
                began = now;
            }
        }
    };
    type Task<'t> = Pin<Box<dyn Future<Output = ()> + 't>>;
    let tasks = (0..load.depth as u64).map(|n| Box::pin(task(n)) as Task<'_>).collect();
    ring.run(tasks).map_err(shown)?;
    let (seconds, cpu_seconds) = (start.elapsed().as_secs_f64(), thread_seconds() - cpu);
    let mut latencies = latencies.take();
    latencies.sort_unstable();
    Ok(Outcome { requests: next.get(), seconds, cpu_seconds, latencies })
}
