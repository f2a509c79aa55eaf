//! Requests held back at the worst moment: what must wait for them, waits.
//!
//! None of these tests depends on time to pass. Where the rule holds, the other side cannot go on however long it
//! is given; what is given here is enough for it to do harm where the rule is missing.
#![allow(clippy::cast_possible_truncation)]

mod harness;

use harness::{End, Rng, World};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};
use store::format::log::PAYLOAD;
use store::io::BlockDev;
use store::io::sim::{Request, SimDev, Survival};
use store::log::writer::MAP_FRAME;
use store::{Consistency, Labels, Pool, SnapshotSpec, Volume, check_device};

/// Time in which a thread that nothing holds up does its harm.
const CHANCE: Duration = Duration::from_millis(500);
const EVERYTHING: std::ops::Range<u64> = 0..u64::MAX;
/// The segment of the superblocks.
const SUPERBLOCKS: std::ops::Range<u64> = 0..1 << 20;

fn pool_of(mib: u64) -> (World, Arc<Pool>) {
    let mut w = World::of(mib << 20);
    w.open();
    let pool = w.pool().clone();
    (w, pool)
}

fn volume(pool: &Pool, name: &str, blocks: u64) -> Arc<Volume> {
    pool.create_volume(name, blocks * 4096, Labels::new()).expect("creates");
    pool.open_volume(name).expect("opens")
}

fn cut(pool: &Pool, of: &str, name: &str) -> store::Result<()> {
    let spec = SnapshotSpec { volume: of.into(), name: name.into(), consistency: Consistency::Crash };
    pool.create_snapshots(&[spec], Labels::new()).map(drop)
}

fn write(v: &Volume, l: u64, byte: u8) -> store::Result<()> {
    v.write_at(l * 4096, &[byte; 4096], false)
}

/// Writes all that there is room for, from block 0 on; how much that was.
fn fill(v: &Volume, byte: u8) -> u64 {
    (0..v.size_bytes() / 4096)
        .find(|l| write(v, *l, byte).is_err())
        .expect("the volume is larger than the pool")
}

/// Waits for a thread, but not for ever.
fn give_a_chance<T>(thread: &ScopedJoinHandle<'_, T>) -> bool {
    let started = Instant::now();
    while !thread.is_finished() && started.elapsed() < CHANCE {
        std::thread::sleep(Duration::from_millis(1));
    }
    thread.is_finished()
}

/// Writes foreign bytes wherever the pool finds room, until `stop`.
fn intruder<'s>(
    scope: &'s Scope<'s, '_>,
    v: &'s Volume,
    from: u64,
    stop: &'s AtomicBool,
) -> ScopedJoinHandle<'s, ()> {
    scope.spawn(move || {
        let end = v.size_bytes() / 4096;
        for l in from..end {
            if stop.load(Ordering::Relaxed) || write(v, l, 0x77).is_err() {
                return;
            }
        }
    })
}

fn assert_clean(dev: &SimDev, when: &str) {
    let dev: Arc<dyn BlockDev> = Arc::new(dev.clone());
    let report = check_device(&dev, &mut |_, _| {}).expect("check runs");
    assert_eq!(report.findings, vec![], "{when}");
}

/// H17, durability rule 3: what a checkpoint dropped is not used again before its superblock is durable. Here the
/// power fails while the superblock is on its way, and another thread takes all the space that it can get.
#[test]
fn h17_nothing_is_reused_before_the_checkpoint_is_durable() {
    let (w, pool) = pool_of(16);
    // A node a leaf: two blocks in each of 100 leaves.
    let v = volume(&pool, "v", 512 * 100);
    for leaf in 0..100 {
        write(&v, leaf * 512, 0x11).expect("writes");
        write(&v, leaf * 512 + 7, 0x11).expect("writes");
    }
    pool.checkpoint().expect("checkpoints");
    let filler = volume(&pool, "filler", 8192);
    let full = fill(&filler, 0x30);
    v.flush().expect("flushes");
    pool.checkpoint().expect("checkpoints");
    // Every leaf changes: the old nodes and a hundred blocks will be free.
    for leaf in 0..100 {
        v.discard((leaf * 512 + 7) * 4096, 4096).expect("discards");
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        let hold = w.dev.hold(Request::Write, SUPERBLOCKS);
        let checkpoint = s.spawn(|| pool.checkpoint().expect("checkpoints"));
        hold.caught();
        let writer = intruder(s, &filler, full, &stop);
        give_a_chance(&writer);
        let cut = w.dev.after_cut(Survival::All, &mut || 0);
        assert_clean(&cut, "after a cut before the superblock");
        stop.store(true, Ordering::Relaxed);
        drop(hold);
        checkpoint.join().expect("it does not panic");
    });
    pool.checkpoint().expect("checkpoints");
    assert_clean(&w.dev, "at the end");
}

/// H18, durability rule 3: what a checkpoint freed is not used again while a read that looked it up before is
/// under way.
#[test]
fn h18_nothing_is_reused_under_a_read() {
    let (w, pool) = pool_of(16);
    let v = volume(&pool, "v", 256);
    v.write_at(0, &[0x11; 256 * 4096], false).expect("writes");
    pool.checkpoint().expect("checkpoints");
    let filler = volume(&pool, "filler", 8192);
    let full = fill(&filler, 0x30);
    pool.checkpoint().expect("checkpoints");
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        let hold = w.dev.hold(Request::Read, EVERYTHING);
        let reader = s.spawn(|| {
            let mut buf = vec![0; 256 * 4096];
            v.read_at(0, &mut buf).expect("reads");
            buf
        });
        hold.caught();
        let dropper = s.spawn(|| {
            v.discard(0, 256 * 4096).expect("discards");
            pool.checkpoint().expect("checkpoints");
        });
        give_a_chance(&dropper);
        let writer = intruder(s, &filler, full, &stop);
        give_a_chance(&writer);
        stop.store(true, Ordering::Relaxed);
        drop(hold);
        let read = reader.join().expect("it does not panic");
        assert!(
            read.iter().all(|byte| *byte == 0x11),
            "the read shows what was written elsewhere after it began"
        );
    });
    pool.checkpoint().expect("checkpoints");
    assert_clean(&w.dev, "at the end");
}

/// H20: a snapshot waits for the writes under way, so that none of them lands in it afterwards.
#[test]
fn h20_a_cut_waits_for_the_writes_under_way() {
    let (w, pool) = pool_of(16);
    let v = volume(&pool, "v", 256);
    write(&v, 0, 0x11).expect("writes");
    let look = || {
        let mut buf = vec![0; 4096];
        pool.open_snapshot("v", "s").expect("opens").read_at(0, &mut buf).expect("reads");
        buf[0]
    };
    std::thread::scope(|s| {
        // The head owns the block: this write goes in place.
        let hold = w.dev.hold(Request::Write, EVERYTHING);
        let writer = s.spawn(|| write(&v, 0, 0x22).expect("writes"));
        hold.caught();
        let cutter = s.spawn(|| {
            let spec = SnapshotSpec { volume: "v".into(), name: "s".into(), consistency: Consistency::Crash };
            pool.create_snapshots(&[spec], Labels::new()).expect("cuts");
        });
        let before = give_a_chance(&cutter).then(look);
        drop(hold);
        writer.join().expect("it does not panic");
        cutter.join().expect("it does not panic");
        assert!(before.is_none_or(|byte| byte == look()), "a write landed in the snapshot after its cut");
    });
    pool.checkpoint().expect("checkpoints");
    assert_clean(&w.dev, "at the end");
}

/// H10: a flush is not answered by a sync that began before the flush arrived.
#[test]
fn h10_a_flush_waits_for_a_sync_of_its_own() {
    let (w, pool) = pool_of(16);
    let v = volume(&pool, "v", 256);
    v.flush().expect("flushes");
    std::thread::scope(|s| {
        let hold = w.dev.hold(Request::Sync, EVERYTHING);
        let early = s.spawn(|| v.flush().expect("flushes"));
        hold.caught();
        let late = s.spawn(|| {
            write(&v, 0, 0x11).expect("writes");
            v.flush().expect("flushes");
        });
        // Time to arrive while the sync runs.
        give_a_chance(&late);
        drop(hold);
        early.join().expect("it does not panic");
        late.join().expect("it does not panic");
    });
    drop((v, pool));
    let mut w = w;
    w.stop(End::Power(Survival::Nothing), &mut Rng(1));
    w.open();
    let mut buf = [0; 4096];
    w.pool().open_volume("v").expect("opens").read_at(0, &mut buf).expect("reads");
    assert_eq!(buf, [0x11; 4096], "what was flushed is gone");
}

/// H2, H8: a cut stands for what was written in place before it, so its record waits for a sync of that: wherever the
/// power fails, a cut that is there holds it.
#[test]
fn h8_a_record_that_stands_for_data_waits_for_its_sync() {
    for step in 1..=3 {
        let (mut w, pool) = pool_of(16);
        let v = volume(&pool, "v", 16);
        write(&v, 0, 1).expect("writes");
        v.flush().expect("flushes");
        write(&v, 0, 2).expect("writes in place");
        w.dev.die_at(w.dev.steps() + step);
        let done = cut(&pool, "v", "s");
        drop((v, pool));
        w.pool = None;
        for seed in 0..32 {
            let mut after = w.fork();
            after.stop(End::Power(Survival::Writes), &mut Rng(seed));
            after.open();
            let Ok(there) = after.pool().open_snapshot("v", "s") else {
                assert!(done.is_err(), "a cut that was answered is gone");
                continue;
            };
            let mut buf = [0; 4096];
            there.read_at(0, &mut buf).expect("reads");
            assert!(buf == [2; 4096], "power failed at step {step} of the cut, seed {seed}");
        }
    }
}

/// What changes the catalog alone is written at once, and costs one sync.
#[test]
fn a_record_that_stands_for_no_data_waits_for_no_sync() {
    let (w, pool) = pool_of(16);
    let v = volume(&pool, "v", 16);
    let steps = |work: &dyn Fn()| {
        let before = w.dev.steps();
        work();
        w.dev.steps() - before
    };
    let create = || drop(pool.create_volume("other", 1 << 20, Labels::new()).expect("creates"));
    assert_eq!(steps(&create), 2, "the record, and a sync");
    write(&v, 0, 1).expect("writes");
    assert_eq!(steps(&|| pool.delete_volume("other").expect("deletes")), 3, "a mapping waits to be written");
    assert_eq!(steps(&|| cut(&pool, "v", "s").expect("cuts")), 3, "a sync, the record, a sync");
    assert_eq!(steps(&|| pool.delete_snapshot("v", "s").expect("deletes")), 2, "the record, and a sync");
}

/// H22: while a snapshot is being deleted in slices, its head drops a block in the part that was already walked:
/// nobody else has it, so it is freed, once.
#[test]
fn h22_a_merge_knows_how_far_a_deletion_is() {
    let mut w = World::of(16 << 20);
    w.slice_leaves = 1;
    w.open();
    let pool = w.pool().clone();
    let v = volume(&pool, "v", 512 * 8);
    for leaf in 0..8 {
        write(&v, leaf * 512, 0x11).expect("writes");
        write(&v, leaf * 512 + 9, 0x11).expect("writes");
    }
    cut(&pool, "v", "s").expect("cuts");
    // Every leaf differs from the snapshot's, so that the deletion looks into all of them.
    for leaf in 0..8 {
        write(&v, leaf * 512 + 9, 0x22).expect("writes");
    }
    pool.checkpoint().expect("checkpoints");
    pool.delete_snapshot("v", "s").expect("deletes");
    for _ in 0..3 {
        pool.checkpoint().expect("goes on with the deletion");
    }
    assert_eq!(pool.pending_deletions(), 1, "the deletion is under way");
    for leaf in [0, 1, 7] {
        write(&v, leaf * 512, 0x33).expect("writes");
    }
    pool.checkpoint().expect("checkpoints");
    assert_eq!(pool.pending_deletions(), 1, "the deletion is under way");
    pool.settle().expect("the deletion ends");
    pool.checkpoint().expect("checkpoints");
    assert_clean(&w.dev, "a block is leaked or freed twice");
}

/// Mappings that one flush writes: three blocks of the log.
const RECORDS: u64 = 250;

/// Mappings that fill two blocks of the log to the last byte.
const TWO_BLOCKS: u64 = 2 * PAYLOAD as u64 / MAP_FRAME;
const _: () = assert!(TWO_BLOCKS * MAP_FRAME == 2 * PAYLOAD as u64);

/// H13, H14: the first block of a flush is torn, the ones behind it are whole. The next owner writes over the first
/// one; what follows stays dead, also where its place in the stream is the very one that comes next.
#[test]
fn h14_whole_blocks_behind_a_torn_one_stay_dead() {
    for next_owner in [1, TWO_BLOCKS] {
        let mut w = world_with_a_torn_flush();
        let v = w.pool().open_volume("v").expect("opens");
        let wrote: Vec<u64> = (0..next_owner).map(|i| 1024 + i * 2).collect();
        wrote.iter().for_each(|l| write(&v, *l, 0x22).expect("writes"));
        v.flush().expect("flushes");
        drop(v);
        w.stop(End::Power(Survival::All), &mut Rng(1));
        w.open();
        assert_eq!(written(&w), wrote, "an earlier owner's records were replayed behind the new one's");
        assert_clean(&w.dev, "at the end");
    }
}

/// A pool whose last owner wrote [`RECORDS`] mappings with one flush. Only the first sector of the first block is lost.
fn world_with_a_torn_flush() -> World {
    let (mut w, pool) = pool_of(16);
    let v = volume(&pool, "v", 2048);
    v.flush().expect("flushes");
    // Every other block, so that none is merged with the next.
    (0..RECORDS).for_each(|l| write(&v, l * 2, 0x11).expect("writes"));
    // The flush syncs the data and writes the records; the power fails in its second sync.
    w.dev.die_at(w.dev.steps() + 3);
    v.flush().expect_err("the power fails");
    drop((v, pool));
    w.pool = None;
    let mut asked = 0;
    w.dev = w.dev.after_cut(Survival::Sectors, &mut || {
        asked += 1;
        // The first answer is for whole writes; the second is for the first sector, which is lost.
        u64::from(asked == 2)
    });
    assert!(asked > 2 * 8, "the flush wrote {} sectors of log only", asked - 1);
    w.boot += 1;
    w.ring = store::log::ring::SharedBytes::new(store::pool::ring_bytes(harness::LOG_BYTES / 4096));
    w.open();
    assert_eq!(written(&w), [0; 0], "what was never flushed came back, from behind a torn block");
    w
}

/// Blocks of the volume that are not zero.
fn written(w: &World) -> Vec<u64> {
    let v = w.pool().open_volume("v").expect("opens");
    let mut bytes = vec![0xee; v.size_bytes() as usize];
    v.read_at(0, &mut bytes).expect("reads");
    let blocks = (0..).zip(bytes.chunks(4096));
    blocks.filter(|(_, block)| block.iter().any(|byte| *byte != 0)).map(|(l, _)| l).collect()
}

/// H25: a reader that holds a deleted snapshot is refused; it never sees what its blocks are used for next.
#[test]
fn h25_a_deleted_snapshot_is_not_read() {
    let (w, pool) = pool_of(16);
    let v = volume(&pool, "v", 256);
    v.write_at(0, &[0x11; 256 * 4096], false).expect("writes");
    cut(&pool, "v", "s").expect("cuts");
    let reader = pool.open_snapshot("v", "s").expect("opens");
    v.write_at(0, &[0x22; 256 * 4096], false).expect("writes");
    pool.delete_snapshot("v", "s").expect("deletes");
    pool.settle().expect("the deletion ends");
    fill(&volume(&pool, "filler", 8192), 0x77);
    let mut buf = vec![0; 256 * 4096];
    let e = reader.read_at(0, &mut buf).expect_err("there is nothing left to read");
    assert_eq!(e.kind(), store::ErrorKind::NotFound);
    pool.checkpoint().expect("checkpoints");
    assert_clean(&w.dev, "at the end");
}

/// Durability rule 1 without a ring: a write in place is not answered before the mapping of its block is durable, also
/// when another write made that mapping and has not been answered itself.
#[test]
fn h4_without_a_ring_a_write_in_place_waits_for_its_mapping() {
    let mut w = World::of(16 << 20);
    w.write_through = true;
    w.open();
    let pool = w.pool().clone();
    let v = volume(&pool, "v", 256);
    std::thread::scope(|s| {
        let hold = w.dev.hold(Request::Sync, EVERYTHING);
        let first = s.spawn(|| write(&v, 0, 0x11).expect("writes"));
        hold.caught();
        let second = s.spawn(|| write(&v, 0, 0x22).expect("writes"));
        let early = give_a_chance(&second);
        drop(hold);
        first.join().expect("it does not panic");
        second.join().expect("it does not panic");
        assert!(!early, "acknowledged, and the death of the process would have taken it");
    });
}

/// H36: blocks of which a copy is under way for the order's sake are written meanwhile: the copy does not count.
#[test]
fn h36_what_is_written_meanwhile_stays() {
    let (w, pool) = pool_of(32);
    let v = volume(&pool, "v", 512);
    // Backwards: neighbours of the volume lie the wrong way round.
    (0..512).rev().for_each(|l| write(&v, l, 0x11).expect("writes"));
    pool.checkpoint().expect("checkpoints");
    let before = v.placement().expect("looks");
    std::thread::scope(|s| {
        // The copy: the only write of so many blocks.
        let hold = w.dev.hold(Request::Write, EVERYTHING);
        let order = s.spawn(|| pool.resequence().expect("goes on or gives up"));
        hold.caught();
        write(&v, 7, 0x22).expect("writes in place");
        drop(hold);
        order.join().expect("it does not panic");
    });
    let mut buf = [0; 4096];
    v.read_at(7 * 4096, &mut buf).expect("reads");
    assert_eq!(buf, [0x22; 4096], "an older copy came over the write");
    assert_clean(&w.dev, "after an attempt that was given up");
    // Nobody is in the way now.
    pool.resequence().expect("resequences");
    let after = v.placement().expect("looks");
    assert!(before.ios >= 256 && after.ios <= 6, "{before:?}, then {after:?}");
    assert_eq!(before.blocks, after.blocks);
    v.read_at(7 * 4096, &mut buf).expect("reads");
    assert_eq!(buf, [0x22; 4096]);
    assert_clean(&w.dev, "at the end");
}

/// H36: single blocks between holes are in order whatever their places; to copy them again and again would be the end of
/// a disk.
#[test]
fn h36_blocks_between_holes_are_left_where_they_are() {
    let (w, pool) = pool_of(32);
    let v = volume(&pool, "v", 512);
    (0..512).rev().step_by(2).for_each(|l| write(&v, l, 0x11).expect("writes"));
    pool.checkpoint().expect("checkpoints");
    pool.resequence().expect("resequences");
    assert_eq!(pool.resequencing().1, 0, "bytes copied");
    assert_clean(&w.dev, "at the end");
}

/// H36: a checkpoint gives the segment to the host that the next copy was to go to: the copy gets another one.
#[test]
fn h36_space_that_goes_back_to_the_host_is_had_again() {
    let (w, pool) = pool_of(64);
    // Free blocks are plenty, and few segments are free as a whole: a checkpoint gives them all back.
    let holes = volume(&pool, "holes", 40 * 256);
    let v = volume(&pool, "v", 512);
    (0..512).rev().for_each(|l| write(&v, l, 0x11).expect("writes"));
    (0..40 * 256).for_each(|l| write(&holes, l, 0x22).expect("writes"));
    (0..40 * 256).step_by(2).for_each(|l| holes.discard(l * 4096, 4096).expect("discards"));
    pool.checkpoint().expect("checkpoints");
    std::thread::scope(|s| {
        // What is copied is read first.
        let hold = w.dev.hold(Request::Read, EVERYTHING);
        let order = s.spawn(|| pool.resequence().expect("resequences"));
        hold.caught();
        let checkpoint = s.spawn(|| pool.checkpoint().expect("checkpoints"));
        give_a_chance(&checkpoint);
        drop(hold);
        order.join().expect("it does not panic");
        checkpoint.join().expect("it does not panic");
    });
    let after = v.placement().expect("looks");
    assert!(after.ios <= 6, "{after:?}");
    assert_clean(&w.dev, "at the end");
}
