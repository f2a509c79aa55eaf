//! What the store costs by itself: a device that does nothing, and counts.

use crate::Options;
use crate::bench::median;
use crate::report::{Report, Row};
use crate::rig::{BLOCK, GIB, Rng, rate, thread_seconds, to_f64};
use crate::sparse::{InMemory, Sparse};
use std::io;
use std::sync::Arc;
use store::io::port::block_on;
use store::io::{BlockDev, Io, Sink, Source};
use store::log::Ring;
use store::log::ring::SharedBytes;
use store::pool::{Environment, format_device, ring_bytes};
use store::{Consistency, Labels, Pool, SnapshotSpec, Volume};

/// A ring that does nothing, at once.
pub struct Nothing;

impl Io for Nothing {
    async fn read(&self, _: u64, _: Sink<'_>) -> io::Result<()> {
        Ok(())
    }
    async fn write(&self, _: u64, _: Source<'_>) -> io::Result<()> {
        Ok(())
    }
    async fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A pool of `len` bytes with a volume; `background`: with threads of its own.
pub fn pool(len: u64, volume: u64, background: bool) -> (Arc<Sparse<InMemory>>, Arc<Pool>, Arc<Volume>) {
    let dev = Arc::new(Sparse::new(len, InMemory::default()));
    let (pool, volume) = pool_on(dev.clone(), volume, background);
    (dev, pool, volume)
}

/// The same on a device of the caller's.
pub fn pool_on(dev: Arc<dyn BlockDev>, volume: u64, background: bool) -> (Arc<Pool>, Arc<Volume>) {
    let log = 128 << 20;
    format_device(&*dev, log).expect("a pool fits");
    let environment = Environment {
        path: "null".into(),
        boot_id: [1; 16],
        ring: &mut |_, _| Ok(Ring::heap(SharedBytes::new(ring_bytes(log / BLOCK)))),
        read_only: false,
        background,
        cache_bytes: 64 << 20,
        slice_leaves: 16_384,
    };
    let pool = Pool::open_on(dev, environment).expect("opens");
    pool.create_volume("v", volume, Labels::new()).expect("creates");
    let volume = pool.open_volume("v").expect("opens");
    (pool, volume)
}

/// Writes every eighth block alone, from the end on.
pub fn fragmented(volume: &Volume) {
    let zeros = vec![0; 4096];
    for l in (0..volume.size_bytes() / BLOCK / 8).rev() {
        volume.write_at(8 * l * BLOCK, &zeros, false).expect("writes");
    }
}

/// Runs the jobs that were asked for.
pub fn run(options: &Options, report: &mut Report) {
    if options.all.wants("null lookup") {
        lookups(options, report);
    }
    if options.all.wants("amplification") {
        for (name, volume) in [("100 GiB", 100 * GIB), ("1 TiB", 1024 * GIB)] {
            amplification(report, name, volume);
        }
    }
}

/// Look up and submit, one thread, nothing below. By the thread's processor time: a core's worth of requests.
fn lookups(options: &Options, report: &mut Report) {
    let (_dev, pool, volume) = pool(16 * GIB, 8 * GIB, true);
    let blocks = volume.size_bytes() / BLOCK;
    let zeros = vec![0; 4096];
    let mut rng = Rng(3);
    // Fragmented: every block alone, in any order.
    for _ in 0..blocks / 8 {
        volume.write_at(rng.below(blocks) * BLOCK, &zeros, false).expect("writes");
    }
    pool.checkpoint().expect("checkpoints");
    let mut buf = vec![0; 4096];
    let io = volume.on(&Nothing);
    let count = 2_000_000;
    let mut reads = Vec::new();
    let mut writes = Vec::new();
    for _ in 0..options.all.rounds {
        let start = thread_seconds();
        for _ in 0..count {
            block_on(io.read(rng.below(blocks) * BLOCK, Sink::Memory(&mut buf))).expect("reads");
        }
        reads.push(rate(count, thread_seconds() - start));
        // In place: blocks that the head owns.
        let own = 1000;
        (0..own).for_each(|l| volume.write_at(l * BLOCK, &zeros, false).expect("writes"));
        let start = thread_seconds();
        for _ in 0..count {
            block_on(io.write(rng.below(own) * BLOCK, Source::Memory(&zeros), false)).expect("writes");
        }
        writes.push(rate(count, thread_seconds() - start));
    }
    report.row(&Row::alone("null device: read, look up + submit", median(&reads) / 1e6, "M/s", "1 M/s"));
    report.row(&Row::alone("null device: overwrite in place", median(&writes) / 1e6, "M/s", "1 M/s"));
}

/// Bytes written to the pool for each byte of 4 KiB random writes, before and after a snapshot, up to and with the
/// checkpoint that ends them; one more begins by itself on the way.
fn amplification(report: &mut Report, name: &str, size: u64) {
    let (dev, pool, volume) = pool(64 * GIB, size, true);
    let blocks = size / BLOCK;
    let zeros = vec![0; 4096];
    let mut rng = Rng(5);
    // Twice what begins a checkpoint by itself, so that the one at the end merges about as much as the other.
    let n = 2_000_000;
    let mut write = |count: u64, span: u64| {
        let before = dev.written();
        for _ in 0..count {
            volume.write_at(rng.below(span) * BLOCK, &zeros, false).expect("writes");
        }
        to_f64(dev.written() - before) / to_f64(count * BLOCK)
    };
    // A map to overwrite.
    write(n, blocks);
    pool.checkpoint().expect("checkpoints");
    let spec = SnapshotSpec { volume: "v".into(), name: "s".into(), consistency: Consistency::Crash };
    pool.create_snapshots(&[spec], Labels::new()).expect("cuts");
    let counted = dev.written();
    write(n, blocks);
    pool.checkpoint().expect("checkpoints");
    let after = to_f64(dev.written() - counted) / to_f64(n * BLOCK);
    report.row(&Row::alone(
        &format!("write amplification after a snapshot, {name} sparse"),
        after,
        "",
        "at most 1.5",
    ));
    (0..20_000).for_each(|l| volume.write_at(l * BLOCK, &zeros, false).expect("writes"));
    pool.checkpoint().expect("checkpoints");
    let before = write(200_000, 20_000);
    report.row(&Row::alone(
        &format!("write amplification of overwrites, no snapshot, {name}"),
        before,
        "",
        "at most 1.05",
    ));
}
