//! The data path as a queue's thread drives it: many requests at once, ended in any order, on one thread.
#![allow(unsafe_code)] // making a ring promises that its futures are not forgotten

#[path = "harness/mod.rs"]
mod harness;
#[path = "../../tests/skip.rs"]
mod skip;

use harness::{End, Rng, World};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};
use store::io::sim::{SimDev, Survival};
use store::io::uring::{self, Uring};
use store::io::{BlockDev, Io, Sink, Source};
use store::{Consistency, InitOptions, Labels, OpenOptions, Pool, SnapshotSpec, Volume, check_device};

/// A simulated disk whose requests take effect, and are answered, at moments of their own.
struct Slow<'a> {
    dev: &'a SimDev,
    rng: &'a RefCell<Rng>,
}

impl Slow<'_> {
    /// Gives the other tasks some turns.
    async fn pause(&self) {
        let mut turns = self.rng.borrow_mut().below(4);
        std::future::poll_fn(|cx| {
            if turns == 0 {
                return Poll::Ready(());
            }
            turns -= 1;
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    async fn request<T>(&self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.pause().await;
        let done = act();
        self.pause().await;
        done
    }
}

impl Io for Slow<'_> {
    async fn read(&self, offset: u64, into: Sink<'_>) -> io::Result<()> {
        let Sink::Memory(buf) = into else { unreachable!("this test has memory only") };
        self.request(|| self.dev.read_at(offset, buf)).await
    }
    async fn write(&self, offset: u64, from: Source<'_>) -> io::Result<()> {
        let Source::Memory(buf) = from else { unreachable!("this test has memory only") };
        self.request(|| self.dev.write_at(offset, buf)).await
    }
    /// What is written while it runs is not covered.
    async fn sync(&self) -> io::Result<()> {
        self.pause().await;
        let begun = self.dev.begin_sync();
        self.pause().await;
        let done = self.dev.end_sync(begun);
        self.pause().await;
        done
    }
}

struct Flag {
    woken: AtomicBool,
    thread: Thread,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

type Task<'t> = Pin<Box<dyn Future<Output = ()> + 't>>;

/// Polls woken tasks in a random order until all have ended. If none is woken for a minute, a wake-up was lost.
fn run_shuffled(tasks: Vec<Task<'_>>, rng: &RefCell<Rng>) {
    let flag = || Flag { woken: AtomicBool::new(true), thread: std::thread::current() };
    let mut left: Vec<_> = tasks.into_iter().map(|t| (t, Arc::new(flag()))).collect();
    while !left.is_empty() {
        let asleep = Instant::now();
        let woken: Vec<_> = loop {
            let woken: Vec<_> = (0..left.len()).filter(|i| left[*i].1.woken.load(Ordering::SeqCst)).collect();
            if !woken.is_empty() {
                break woken;
            }
            assert!(asleep.elapsed() < LOST, "{} tasks wait and nobody wakes them", left.len());
            // The checkpointer's thread may still wake one.
            std::thread::park_timeout(LOST);
        };
        let i = *rng.borrow_mut().pick(&woken);
        let (task, flag) = &mut left[i];
        flag.woken.store(false, Ordering::SeqCst);
        let waker = Waker::from(Arc::clone(flag));
        if task.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            drop(left.swap_remove(i));
        }
    }
}

fn assert_clean(dev: &SimDev, when: &str) {
    let disk: Arc<dyn BlockDev> = Arc::new(dev.clone());
    let findings = check_device(&disk, &mut |_, _| {}).map(|r| r.findings);
    assert!(findings.as_ref().is_ok_and(Vec::is_empty), "{when}: {findings:?}");
}

/// How long a task may sleep before its wake-up counts as lost.
const LOST: Duration = Duration::from_secs(60);

const BLOCKS: usize = 24;
const TASKS: usize = 8;

/// What a task did with its own sector of each block: what was acknowledged last, and what is under way.
#[derive(Clone, Copy, Default)]
struct Lane {
    acknowledged: [u8; BLOCKS],
    under_way: Option<(usize, u8)>,
}

/// Task `t` changes sector `t` of the blocks only, so it knows what they hold whatever the others do.
async fn lane(v: &Volume, io: &Slow<'_>, t: usize, lane: &RefCell<Lane>) {
    let volume = v.on(io);
    let at = |l: usize| l as u64 * 4096 + t as u64 * 512;
    for n in 1..=12u8 {
        let draw = |n| usize::try_from(io.rng.borrow_mut().below(n)).expect("small");
        let (what, l) = (draw(8), draw(BLOCKS as u64));
        if what < 5 {
            lane.borrow_mut().under_way = Some((l, n));
            if volume.write(at(l), Source::Memory(&[n; 512]), what == 0).await.is_err() {
                return;
            }
            let mut mine = lane.borrow_mut();
            mine.acknowledged[l] = n;
            mine.under_way = None;
        } else if what < 7 {
            let mut got = [0xee; 512];
            if volume.read(at(l), Sink::Memory(&mut got)).await.is_err() {
                return;
            }
            assert_eq!(got, [lane.borrow().acknowledged[l]; 512], "task {t}, block {l}");
        } else if volume.flush().await.is_err() {
            return;
        }
    }
}

/// H18, H20, H29 and rule 1 under every interleaving that one thread can have: sectors of one block do not lose
/// each other, and what was acknowledged when the process died is there afterwards.
#[test]
fn tasks_of_one_thread_in_any_order() {
    let first = 1;
    for seed in first..first + 150u64 {
        let rng = RefCell::new(Rng(seed));
        let mut w = World::new();
        // A checkpoint waits for I/O under way: not on the thread that drives it.
        w.background = true;
        w.open();
        let pool = w.pool().clone();
        pool.create_volume("v", BLOCKS as u64 * 4096, Labels::new()).expect("creates");
        let v = pool.open_volume("v").expect("opens");
        let lanes: Vec<_> = (0..TASKS).map(|_| RefCell::new(Lane::default())).collect();
        let dies_at = w.dev.steps() + 20 + rng.borrow_mut().below(300);
        w.dev.die_at(dies_at);
        let spec = |n: u64| SnapshotSpec {
            volume: "v".into(),
            name: format!("s{n}"),
            consistency: Consistency::Crash,
        };
        let dev = w.dev.clone();
        for round in 0..4 {
            let io = Slow { dev: &dev, rng: &rng };
            // A task that has failed does not go on: what it had under way stays unknown.
            let alive = |i: &usize| lanes[*i].borrow().under_way.is_none();
            let tasks = (0..TASKS).filter(alive);
            run_shuffled(tasks.map(|t| Box::pin(lane(&v, &io, t, &lanes[t])) as Task<'_>).collect(), &rng);
            if pool.create_snapshots(&[spec(round)], Labels::new()).is_err() {
                break;
            }
        }
        drop((v, pool));
        w.pool = None;
        w.dev = w.dev.after_death(&mut || rng.borrow_mut().next());
        // Nothing else changes the pool while it is checked.
        w.background = false;
        w.open();
        assert_clean(&w.dev, &format!("seed {seed}"));
        let v = w.pool().open_volume("v").expect("opens");
        for (t, lane) in lanes.iter().enumerate() {
            let lane = lane.borrow();
            for l in 0..BLOCKS {
                let mut got = [0xee; 512];
                v.read_at(l as u64 * 4096 + t as u64 * 512, &mut got).expect("reads");
                let is = |n: u8| got == [n; 512];
                let late = lane.under_way.is_some_and(|(at, n)| at == l && got.iter().all(|b| *b == n));
                assert!(
                    is(lane.acknowledged[l]) || late,
                    "seed {seed}, task {t}, block {l}: {} instead of {}",
                    got[0],
                    lane.acknowledged[l]
                );
            }
        }
    }
}

/// What a task knows of its blocks: what it wrote last, and what of that was flushed.
#[derive(Clone, Default)]
struct Flushed {
    written: [u8; BLOCKS],
    durable: [u8; BLOCKS],
}

/// Task `t` writes whole blocks of its own, each time with the next number, and flushes.
async fn flushing_lane(v: &Volume, io: &Slow<'_>, t: usize, lane: &RefCell<Flushed>) {
    let volume = v.on(io);
    for n in 1..=20u8 {
        let draw = |n| usize::try_from(io.rng.borrow_mut().below(n)).expect("small");
        let (what, l) = (draw(6), draw(BLOCKS as u64));
        if what < 4 {
            lane.borrow_mut().written[l] = n;
            let at = (t * BLOCKS + l) as u64 * 4096;
            if volume.write(at, Source::Memory(&[n; 4096]), what == 0).await.is_err() {
                return;
            }
            if what == 0 {
                lane.borrow_mut().durable[l] = n;
            }
        } else {
            let before = lane.borrow().written;
            if volume.flush().await.is_err() {
                return;
            }
            lane.borrow_mut().durable = before;
        }
    }
}

/// H2, H8, H10 and rule 2 while syncs and log writes of many flushes follow each other and writes end in between: the power
/// fails at a random step, any part of what no sync covered survives, and what was flushed is there.
#[test]
fn what_was_flushed_survives_power_loss_in_any_order() {
    const WAYS: [Survival; 4] = [Survival::All, Survival::Nothing, Survival::Writes, Survival::Sectors];
    for seed in 1..300u64 {
        let (rng, mut w) = (RefCell::new(Rng(seed)), World::new());
        w.background = true;
        w.open();
        let pool = w.pool().clone();
        pool.create_volume("v", (TASKS * BLOCKS) as u64 * 4096, Labels::new()).expect("creates");
        let v = pool.open_volume("v").expect("opens");
        let lanes: Vec<_> = (0..TASKS).map(|_| RefCell::new(Flushed::default())).collect();
        let dies_at = w.dev.steps() + 5 + rng.borrow_mut().below(120);
        w.dev.die_at(dies_at);
        let dev = w.dev.clone();
        let io = Slow { dev: &dev, rng: &rng };
        let tasks = (0..TASKS).map(|t| Box::pin(flushing_lane(&v, &io, t, &lanes[t])) as Task<'_>);
        run_shuffled(tasks.collect(), &rng);
        drop((v, pool));
        w.pool = None;
        // Nothing else changes the pool while it is checked.
        w.background = false;
        for way in WAYS {
            let mut w = w.fork();
            w.stop(End::Power(way), &mut rng.borrow_mut());
            w.open();
            assert_clean(&w.dev, &format!("seed {seed}, {way:?}"));
            let v = w.pool().open_volume("v").expect("opens");
            for (t, lane) in lanes.iter().enumerate() {
                for l in 0..BLOCKS {
                    let mut got = [0xee; 4096];
                    v.read_at((t * BLOCKS + l) as u64 * 4096, &mut got).expect("reads");
                    let (least, most) = (lane.borrow().durable[l], lane.borrow().written[l]);
                    assert!(
                        got.iter().all(|n| (least..=most).contains(n)),
                        "seed {seed}, {way:?}, task {t}, block {l}: {} was flushed, {most} written, and it holds {}",
                        least,
                        got[0]
                    );
                }
            }
        }
    }
}

/// Rule 4: nobody knows what a sync did that was given up half-way, so the pool takes no more writes.
#[test]
fn a_flush_that_is_given_up_poisons() {
    let mut w = World::new();
    w.open();
    let pool = w.pool().clone();
    pool.create_volume("v", 1 << 20, Labels::new()).expect("creates");
    let v = pool.open_volume("v").expect("opens");
    v.write_at(0, &[1; 4096], false).expect("writes");
    let (dev, rng) = (w.dev.clone(), RefCell::new(Rng(1)));
    let io = Slow { dev: &dev, rng: &rng };
    // Until the coin of `pause` gives it a turn to wait for.
    loop {
        let volume = v.on(&io);
        let mut flush = pin!(volume.flush());
        if flush.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            break;
        }
    }
    assert_eq!(v.write_at(0, &[2; 4096], false).map_err(|e| e.kind()), Err(store::ErrorKind::Poisoned));
    let mut got = [0; 4096];
    v.read_at(0, &mut got).expect("reads go on");
    assert_eq!(got, [1; 4096]);
}

/// Counts the requests that are under way at once, and fails those of one block.
struct Counted<'a> {
    slow: Slow<'a>,
    now: Cell<usize>,
    most: Cell<usize>,
    fails_with: Option<u8>,
}

impl<'a> Counted<'a> {
    fn new(dev: &'a SimDev, rng: &'a RefCell<Rng>) -> Self {
        Self { slow: Slow { dev, rng }, now: Cell::new(0), most: Cell::new(0), fails_with: None }
    }

    async fn count<T>(&self, request: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        self.now.set(self.now.get() + 1);
        self.most.set(self.most.get().max(self.now.get()));
        let done = request.await;
        self.now.set(self.now.get() - 1);
        done
    }
}

impl Io for Counted<'_> {
    async fn read(&self, offset: u64, into: Sink<'_>) -> io::Result<()> {
        self.count(self.slow.read(offset, into)).await
    }
    async fn write(&self, offset: u64, from: Source<'_>) -> io::Result<()> {
        let Source::Memory(buf) = from else { unreachable!("this test has memory only") };
        let fails = self.fails_with == buf.first().copied();
        self.count(async {
            self.slow.write(offset, from).await?;
            if fails { Err(io::Error::other("this block fails")) } else { Ok(()) }
        })
        .await
    }
    async fn sync(&self) -> io::Result<()> {
        self.slow.sync().await
    }
}

/// Blocks of `v`: each its own number, plus `add`.
fn numbered(blocks: usize, add: u8) -> Vec<u8> {
    (0..blocks * 4096).map(|at| u8::try_from(at / 4096).expect("few blocks") + add).collect()
}

/// A range that lies in many places is read and written in many requests at once, and all of it is what it was, whichever
/// ends first; a snapshot in between keeps its own.
#[test]
fn the_pieces_of_a_request_are_under_way_together() {
    const PIECES: usize = 64;
    for seed in 1..40 {
        let (rng, mut w) = (RefCell::new(Rng(seed)), World::new());
        w.background = true;
        w.open();
        let pool = w.pool().clone();
        pool.create_volume("v", PIECES as u64 * 4096, Labels::new()).expect("creates");
        let v = pool.open_volume("v").expect("opens");
        // No two neighbours of the volume are neighbours in the pool.
        for l in (0..PIECES).step_by(2).chain((1..PIECES).step_by(2)) {
            v.write_at(l as u64 * 4096, &[0; 4096], false).expect("writes");
        }
        let round = |add: u8, pieces: usize| {
            let io = Counted::new(&w.dev, &rng);
            let task = async {
                let (new, mut got) = (numbered(PIECES, add), numbered(PIECES, 0));
                v.on(&io).write(0, Source::Memory(&new), false).await.expect("writes");
                assert!(io.most.replace(0) >= pieces, "seed {seed}: they were written one after the other");
                v.on(&io).read(0, Sink::Memory(&mut got)).await.expect("reads");
                assert!(io.most.get() >= pieces, "seed {seed}: they were read one after the other");
                assert!(got == new, "seed {seed}");
            };
            run_shuffled(vec![Box::pin(task)], &rng);
        };
        round(1, 8);
        let spec = SnapshotSpec { volume: "v".into(), name: "s".into(), consistency: Consistency::Crash };
        pool.create_snapshots(&[spec], Labels::new()).expect("cuts");
        // Now every fourth block is the head's own and stays where it is, the others go elsewhere.
        for l in (0..PIECES).step_by(4) {
            v.write_at(l as u64 * 4096, &[0; 4096], false).expect("writes");
        }
        round(100, 8);
        let mut old = numbered(PIECES, 0);
        pool.open_snapshot("v", "s").expect("opens").read_at(0, &mut old).expect("reads");
        assert!(old == numbered(PIECES, 1), "seed {seed}");
    }
}

/// Rule 1: a write that failed is told of when none of its pieces can land any more.
#[test]
fn a_request_fails_when_its_last_piece_has_ended() {
    for seed in 1..40 {
        let (rng, mut w) = (RefCell::new(Rng(seed)), World::new());
        w.open();
        let pool = w.pool().clone();
        pool.create_volume("v", 32 * 4096, Labels::new()).expect("creates");
        let v = pool.open_volume("v").expect("opens");
        for l in (0..32).step_by(2).chain((1..32).step_by(2)) {
            v.write_at(l * 4096, &[0; 4096], false).expect("writes");
        }
        let mut io = Counted::new(&w.dev, &rng);
        io.fails_with = Some(u8::try_from(seed % 32).expect("small"));
        let task = async {
            let failed = v.on(&io).write(0, Source::Memory(&numbered(32, 0)), false).await;
            assert_eq!(failed.map_err(|e| e.kind()), Err(store::ErrorKind::Io), "seed {seed}");
            assert_eq!(io.now.get(), 0, "seed {seed}: some are still under way");
        };
        run_shuffled(vec![Box::pin(task)], &rng);
        v.write_at(0, &[7; 4096], false).expect("the gate was left");
    }
}

fn has_io_uring() -> bool {
    let probed = uring::probe();
    if let Err(e) = &probed {
        skip::skip(&format!("no io_uring here ({e}): allow it (sysctl kernel.io_uring_disabled=0)"));
    }
    probed.is_ok()
}

/// A pool on a real file with volume `v`, gone at the end of the test.
fn real_pool() -> ([tempfile::TempDir; 2], Arc<Pool>, Arc<Volume>) {
    let dir = tempfile::tempdir().expect("makes a directory");
    let ring = tempfile::tempdir_in("/dev/shm").expect("makes a directory");
    let size = InitOptions { size_bytes: Some(256 << 20), ..InitOptions::default() };
    Pool::init(dir.path(), &size).expect("makes a pool");
    let open = OpenOptions { ring_dir: Some(ring.path().into()), ..OpenOptions::default() };
    let pool = Pool::open(dir.path(), &open).expect("opens");
    pool.create_volume("v", 64 << 20, Labels::new()).expect("creates");
    let v = pool.open_volume("v").expect("opens");
    ([dir, ring], pool, v)
}

/// Many tasks on a real ring, snapshots from another thread meanwhile: each task writes the same number to two
/// blocks, one after the other, so a snapshot holds the same number twice, or the next one in the first (H20).
#[test]
fn a_ring_serves_many_tasks() {
    if !has_io_uring() {
        return;
    }
    const LANES: u64 = 32;
    let ([dir, _ring], pool, v) = real_pool();
    let rounds = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let number = |buf: &[u8]| u64::from_le_bytes(buf[..8].try_into().expect("8 bytes"));
    std::thread::scope(|s| {
        let queue = s.spawn(|| {
            // SAFETY: its futures are driven by `run` only, which drops or ends them.
            let ring = unsafe { Uring::new(v.descriptor().expect("a file")) }.expect("makes a ring");
            let task = async |lane: u64| {
                let volume = v.on(&ring);
                let mut buf = vec![0; 12288];
                let mut i = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    i += 1;
                    buf.chunks_mut(8).for_each(|w| w.copy_from_slice(&i.to_le_bytes()));
                    let (a, b) = (lane * 16384, (LANES + lane) * 16384);
                    // Aligned to pages or not, as the caller's memory lies.
                    let n = if i.is_multiple_of(3) { 12288 } else { 4096 };
                    volume.write(a, Source::Memory(&buf[..n]), i.is_multiple_of(50)).await.expect("writes");
                    volume.write(b, Source::Memory(&buf[..n]), false).await.expect("writes");
                    if i.is_multiple_of(100) {
                        volume.flush().await.expect("flushes");
                    }
                    let mut got = [0; 4096];
                    volume.read(b, Sink::Memory(&mut got)).await.expect("reads");
                    assert_eq!(number(&got), i);
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            };
            ring.run((0..LANES).map(|l| Box::pin(task(l)) as Task<'_>).collect()).expect("runs");
        });
        for n in 0..8u64 {
            let goal = rounds.load(Ordering::Relaxed) + LANES;
            while rounds.load(Ordering::Relaxed) < goal && !queue.is_finished() {
                std::thread::yield_now();
            }
            let spec =
                SnapshotSpec { volume: "v".into(), name: format!("s{n}"), consistency: Consistency::Crash };
            pool.create_snapshots(&[spec], Labels::new()).expect("cuts");
            let snapshot = pool.open_snapshot("v", &format!("s{n}")).expect("opens");
            for lane in 0..LANES {
                let (mut a, mut b) = ([0; 4096], [0; 4096]);
                snapshot.read_at(lane * 16384, &mut a).expect("reads");
                snapshot.read_at((LANES + lane) * 16384, &mut b).expect("reads");
                let (a, b) = (number(&a), number(&b));
                assert!(a == b || a == b + 1, "lane {lane} of s{n}: {a} and {b}");
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    drop(v);
    pool.close().expect("closes");
    drop(pool);
    let report = Pool::check(dir.path(), &mut |_, _| {}).expect("checks");
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

/// Threads that the kernel has made for the rings of the calling thread.
fn kernel_threads() -> usize {
    let me = std::fs::read_link("/proc/thread-self").expect("proc is there");
    let name = format!("iou-wrk-{}", me.file_name().expect("a number").to_string_lossy());
    let tasks = std::fs::read_dir("/proc/self/task").expect("proc is there").flatten();
    // One that has just ended is nobody's.
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|of| of.trim_end() == name).count()
}

/// Each would be memory on the process's account, at a time when there may be none.
#[test]
fn h3_a_ring_makes_no_threads_while_it_serves() {
    if !has_io_uring() {
        return;
    }
    let (_dirs, _pool, v) = real_pool();
    // SAFETY: its futures are driven by `run` only, which drops or ends them.
    let ring = unsafe { Uring::new(v.descriptor().expect("a file")) }.expect("makes a ring");
    assert_eq!(kernel_threads(), 1, "its one is there from the start");
    let ended = Cell::new(0);
    let task = async |lane: u64| {
        for n in 0..8 {
            let at = (lane * 8 + n) * 65_536;
            v.on(&ring).write(at, Source::Memory(&[1; 65_536]), n % 2 == 1).await.expect("writes");
            ring.sync().await.expect("syncs");
        }
        ended.set(ended.get() + 1);
    };
    ring.run((0..32).map(|lane| Box::pin(task(lane)) as Task<'_>).collect()).expect("runs");
    // More would stay for seconds.
    assert_eq!((ended.get(), kernel_threads()), (32, 1));
}

/// A request that is given up has ended before its memory and its place in the gate are.
#[test]
fn a_request_that_is_given_up_has_ended() {
    if !has_io_uring() {
        return;
    }
    let (_dirs, _pool, v) = real_pool();
    v.write_at(0, &[1; 1 << 20], false).expect("writes");
    // SAFETY: the futures below are dropped or driven to their ends.
    let ring = unsafe { Uring::new(v.descriptor().expect("a file")) }.expect("makes a ring");
    for n in 2..30u8 {
        let bytes = vec![n; 1 << 20];
        let volume = v.on(&ring);
        {
            let mut write = pin!(volume.write(0, Source::Memory(&bytes), false));
            assert!(write.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        // Its write has landed: one after it is not overtaken.
        v.write_at(4096, &[0xff; 4096], false).expect("enters the gate and writes");
        let mut got = vec![0; 12288];
        v.read_at(0, &mut got).expect("reads");
        assert!(got[..4096].iter().all(|b| *b == n) && got[4096..8192].iter().all(|b| *b == 0xff));
    }
}
