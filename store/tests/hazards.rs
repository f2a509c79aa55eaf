//! The histories that break simpler stores, one test each; `docs/durability.md` explains them by number.
#![allow(clippy::cast_possible_truncation)]

mod harness;

use harness::{End, Op, Rng, World, random_op};
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use store::io::BlockDev;
use store::io::sim::{Fault, Survival};
use store::log::ring::SharedBytes;
use store::pool::ring_bytes;
use store::{Consistency, ErrorKind, Labels, Pool, PoolState, Recovery, SnapshotSpec};

/// Time that a slow disk takes for a request: long enough for another thread to come between.
const SLOW: std::time::Duration = std::time::Duration::from_micros(200);
const NOTHING: End = End::Power(Survival::Nothing);

fn block(byte: u8) -> Vec<u8> {
    vec![byte; 4096]
}

fn snapshot(pool: &Pool, volume: &str, name: &str) -> store::Result<()> {
    let spec = SnapshotSpec { volume: volume.into(), name: name.into(), consistency: Consistency::Crash };
    pool.create_snapshots(&[spec], Labels::new()).map(drop)
}

fn world_with(name: &str, blocks: u64) -> (World, Arc<store::Volume>) {
    let mut w = World::new();
    w.open();
    w.run(&Op::Create { name: name.into(), blocks }).expect("creates");
    let v = w.pool().open_volume(name).expect("opens");
    (w, v)
}

fn read(v: &store::Volume, l: u64) -> Vec<u8> {
    let mut buf = block(0xee);
    v.read_at(l * 4096, &mut buf).expect("reads");
    buf
}

fn check_is_clean(w: &World) {
    let dev: Arc<dyn BlockDev> = Arc::new(w.dev.clone());
    let report = store::check_device(&dev, &mut |_, _| {}).expect("check runs");
    assert_eq!(report.findings, vec![]);
}

fn config() -> ProptestConfig {
    let mut config = ProptestConfig { cases: 60, ..ProptestConfig::default() };
    if cfg!(feature = "mutations") {
        // What a deliberate bug breaks is not worth keeping.
        config.failure_persistence = None;
    }
    config
}

proptest! {
    #![proptest_config(config())]
    /// Volumes with snapshots, clones, rollbacks, discards, growth and reopening, against a map of sectors.
    #[test]
    fn histories_agree_with_a_map(choices in prop::collection::vec(any::<u64>(), 1..80)) {
        let mut w = World::new();
        w.open();
        for choice in choices {
            let op = random_op(&w.model, &mut Rng(choice));
            w.run(&op).expect("the disk is whole");
        }
        w.verify(NOTHING);
    }

    /// H21, H22: versions come and go in every order, deletions in slices of one leaf; no block is freed that
    /// somebody holds, none is leaked.
    #[test]
    fn h21_deletion_rule_against_brute_force(choices in prop::collection::vec(any::<u64>(), 10..120)) {
        let mut w = World::new();
        w.open();
        w.run(&Op::Create { name: "v0".into(), blocks: 1100 }).expect("creates");
        for choice in choices {
            let r = &mut Rng(choice);
            let op = match random_op(&w.model, r) {
                Op::Write { volume, .. } => Op::Write { volume, l: r.below(4) * 270 % 1000, n: 1 + r.below(3), fua: false },
                Op::Create { .. } | Op::Resize { .. } | Op::Rename { .. } => Op::Checkpoint,
                Op::DeleteVolume { name } if name == "v0" => Op::Snapshot { of: vec![(name, format!("s{}", r.below(9)))] },
                other => other,
            };
            w.run(&op).expect("the disk is whole");
        }
        w.verify(NOTHING);
        w.pool().settle().expect("deletions end");
        w.model.volumes.values_mut().for_each(|v| v.maybe.clear());
        w.verify(NOTHING);
    }
}

/// H4: the agent dies, and its ring with it, while the devices live.
#[test]
fn h4_a_lost_ring_is_told() {
    let (mut w, v) = world_with("v", 64);
    v.write_at(0, &block(1), false).expect("writes");
    drop(v);
    w.stop(End::Death, &mut Rng(1));
    w.ring = SharedBytes::new(ring_bytes(harness::LOG_BYTES / 4096));
    w.open();
    assert_eq!(w.pool().recovery(), Recovery::RingLost);
}

/// H4: the ring of an earlier life is not taken for the current one's.
#[test]
fn h4_a_stale_ring_is_not_replayed() {
    let (mut w, v) = world_with("v", 64);
    for l in 0..4 {
        v.write_at(l * 4096, &block(1), false).expect("writes");
    }
    drop(v);
    let stale = w.ring.duplicate();
    w.stop(End::Death, &mut Rng(1));
    w.ring = SharedBytes::new(ring_bytes(harness::LOG_BYTES / 4096));
    w.open();
    w.pool().flush().expect("flushes");
    w.stop(End::Death, &mut Rng(1));
    w.ring = stale;
    w.open();
    assert_eq!(w.pool().recovery(), Recovery::RingLost);
    let v = w.pool().open_volume("v").expect("opens");
    assert_eq!(read(&v, 0), block(0), "a record that was lost stays lost");
    // The next record takes the place of a stale one; those behind it must not look like its continuation.
    v.write_at(20 * 4096, &block(2), false).expect("writes");
    drop(v);
    w.stop(End::Death, &mut Rng(1));
    w.open();
    assert_eq!(w.pool().recovery(), Recovery::Resumed);
    let v = w.pool().open_volume("v").expect("opens");
    assert_eq!((read(&v, 1), read(&v, 3), read(&v, 20)), (block(0), block(0), block(2)));
}

/// H4: the open that finds the ring lost is itself cut: the next one still finds it lost.
#[test]
fn h4_a_lost_ring_stays_lost_until_it_was_told() {
    for step in 1..4 {
        let (mut w, v) = world_with("v", 64);
        v.write_at(0, &block(1), false).expect("writes");
        drop(v);
        w.stop(End::Death, &mut Rng(1));
        w.ring = SharedBytes::new(ring_bytes(harness::LOG_BYTES / 4096));
        w.dev.die_at(step);
        let opened = w.try_open().is_ok();
        assert_eq!(opened, step > 2, "an open writes a superblock and syncs");
        w.stop(End::Death, &mut Rng(1));
        w.open();
        let told = if opened { Recovery::Resumed } else { Recovery::RingLost };
        assert_eq!(w.pool().recovery(), told, "step {step}");
    }
}

/// H4: an owner without a ring came between: the ring of the owner before it is old.
#[test]
fn h4_a_ring_from_before_an_owner_without_one_is_old() {
    let (mut w, v) = world_with("v", 64);
    for l in 0..4 {
        v.write_at(l * 4096, &block(1), false).expect("writes");
    }
    drop(v);
    let old = w.ring.duplicate();
    w.stop(NOTHING, &mut Rng(1));
    // The same boot, as far as rings go: only the records were lost.
    w.boot -= 1;
    w.write_through = true;
    w.open();
    assert_eq!(w.pool().recovery(), Recovery::RingLost);
    w.stop(End::Death, &mut Rng(1));
    w.write_through = false;
    w.ring = old;
    w.open();
    assert_eq!(w.pool().recovery(), Recovery::Resumed);
    let v = w.pool().open_volume("v").expect("opens");
    assert_eq!(read(&v, 0), block(0), "a record that was lost stays lost");
}

/// H4: no ring at all: what is acknowledged is durable, so the next owner resumes.
#[test]
fn h4_without_a_ring_an_acknowledged_write_is_durable() {
    let mut w = World::new();
    w.write_through = true;
    w.open();
    w.run(&Op::Create { name: "v".into(), blocks: 64 }).expect("creates");
    let v = w.pool().open_volume("v").expect("opens");
    v.write_at(0, &block(7), false).expect("writes");
    drop(v);
    w.stop(NOTHING, &mut Rng(1));
    w.open();
    let v = w.pool().open_volume("v").expect("opens");
    assert_eq!(read(&v, 0), block(7));
}

/// Rule 1: an acknowledged write survives the death of the process without any flush.
#[test]
fn rule1_acknowledged_writes_survive_the_process() {
    let (mut w, v) = world_with("v", 64);
    for l in 0..64 {
        v.write_at(l * 4096, &block(l as u8 + 1), false).expect("writes");
    }
    drop(v);
    w.stop(End::Death, &mut Rng(1));
    w.open();
    assert_eq!(w.pool().recovery(), Recovery::Resumed);
    let v = w.pool().open_volume("v").expect("opens");
    for l in 0..64 {
        assert_eq!(read(&v, l), block(l as u8 + 1));
    }
}

/// H15, rule 9: an overwrite of an atomic volume that is cut off leaves the old block or the new one, whatever
/// sectors of it got to the disk.
#[test]
fn h15_blocks_of_an_atomic_volume_are_never_torn() {
    for seed in 0..60 {
        let mut w = World::new();
        w.open();
        let labels = Labels::from([(store::ATOMIC_LABEL.to_owned(), "true".to_owned())]);
        w.pool().create_volume("v", 64 * 4096, labels).expect("creates");
        let v = w.pool().open_volume("v").expect("opens");
        v.write_at(0, &block(1), true).expect("writes");
        w.dev.die_at(w.dev.steps() + 1 + seed % 5);
        for n in 2..5 {
            if v.write_at(0, &block(n), false).and_then(|()| v.flush()).is_err() {
                break;
            }
        }
        drop(v);
        w.stop(End::Power(Survival::Sectors), &mut Rng(seed));
        w.open();
        let v = w.pool().open_volume("v").expect("opens");
        let got = read(&v, 0);
        assert!(got[0] != 0 && got.iter().all(|b| *b == got[0]), "torn: {} and {}", got[0], got[4095]);
        drop(v);
        w.pool().checkpoint().expect("checkpoints");
        check_is_clean(&w);
    }
}

/// H6: the kernel sends requests of a dead agent again; a discard that comes twice frees once.
#[test]
fn h6_every_operation_may_come_twice() {
    let (mut w, v) = world_with("v", 64);
    w.run(&Op::Create { name: "other".into(), blocks: 64 }).expect("creates");
    let other = w.pool().open_volume("other").expect("opens");
    for round in 0..20u8 {
        v.write_at(0, &block(round + 1), false).expect("writes");
        v.write_at(0, &block(round + 1), false).expect("writes again");
        v.discard(0, 8192).expect("discards");
        w.pool().checkpoint().expect("frees");
        other.write_at(u64::from(round) * 4096, &block(0x80 + round), false).expect("takes what was freed");
        v.discard(0, 8192).expect("discards again");
        w.pool().checkpoint().expect("frees nothing");
        assert_eq!(read(&other, u64::from(round)), block(0x80 + round));
    }
    check_is_clean(&w);
}

/// H8–H12: an I/O error at every step of a history. A failed data write fails that request alone; anything
/// else stops writes and lets reads go on. After reopening, everything flushed is there.
#[test]
fn h12_a_fault_at_every_step() {
    for seed in 1..8u64 {
        let steps = {
            let mut w = World::new();
            w.open();
            let mut r = Rng(seed);
            for _ in 0..25 {
                let op = random_op(&w.model, &mut r);
                w.run(&op).expect("the disk is whole");
            }
            w.dev.steps()
        };
        for fault in (4..steps).step_by(3) {
            let mut w = World::new();
            w.open();
            w.dev.fail_at(fault, Fault::Eio);
            let mut r = Rng(seed);
            for _ in 0..25 {
                let op = random_op(&w.model, &mut r);
                if w.run(&op).is_err() {
                    break;
                }
            }
            // A fault in the middle of closing leaves no pool to ask.
            let failed =
                w.pool.clone().filter(|p| w.pending.is_some() && p.info().state == PoolState::Failed);
            if let Some(pool) = failed {
                for v in pool.volumes() {
                    let open = pool.open_volume(&v.name).expect("opens");
                    open.read_at(0, &mut block(0)).expect("reads go on");
                    let e = open.write_at(0, &block(1), false).expect_err("writes do not");
                    assert_eq!(e.kind(), ErrorKind::Poisoned);
                }
            }
            w.crash(End::Power(Survival::Sectors), &mut Rng(fault));
        }
    }
}

/// H18, H19, H25: blocks change hands between two volumes and a reader of a snapshot that is being deleted;
/// nobody ever sees another's bytes.
#[test]
fn h18_h25_reuse_under_readers() {
    let mut w = World::of(8 << 20);
    w.open();
    let pool = w.pool().clone();
    let open = |name: &str, blocks: u64| {
        pool.create_volume(name, blocks * 4096, Labels::new()).expect("creates");
        pool.open_volume(name).expect("opens")
    };
    let (a, b, filler) = (open("a", 256), open("b", 256), open("filler", 2000));
    // With little room, what is freed is used again at once.
    let full =
        (0..2000).find(|l| filler.write_at(l * 4096, &block(0x30), false).is_err()).expect("gets full");
    filler.discard((full - 400) * 4096, 400 * 4096).expect("discards");
    pool.checkpoint().expect("checkpoints");
    // A read takes longer than a checkpoint: what it looked up is freed and used again meanwhile.
    w.dev.set_delays(std::time::Duration::from_millis(10), std::time::Duration::ZERO, 3);
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        for (v, tag) in [(&a, 0x10u8), (&b, 0x20)] {
            let (stop, pool) = (&stop, &pool);
            s.spawn(move || {
                let mut i = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    let l = i * 7 % 256;
                    // A full pool refuses now and then.
                    let _ = v.write_at(l * 4096, &block(tag + (i % 16) as u8), false);
                    if i.is_multiple_of(5) {
                        v.discard((l + 3) % 256 * 4096, 4096).expect("discards");
                    }
                    if i.is_multiple_of(10) {
                        pool.checkpoint().expect("checkpoints");
                    }
                    i += 1;
                }
            });
            s.spawn(move || {
                let mut i = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    let got = read(v, i * 13 % 256);
                    assert!(got.iter().all(|x| *x == got[0]), "a torn read of one block");
                    assert!(
                        got[0] == 0 || got[0] & 0xf0 == tag,
                        "{:x} is not from this volume ({tag:x})",
                        got[0]
                    );
                    i += 1;
                }
            });
        }
        for i in 0..25 {
            let name = format!("s{i}");
            if snapshot(&pool, "a", &name).is_err() {
                continue;
            }
            let reader = pool.open_snapshot("a", &name).expect("opens");
            pool.delete_snapshot("a", &name).expect("deletes");
            for l in 0..20 {
                let mut buf = block(0);
                if reader.read_at(l * 4096, &mut buf).is_ok() {
                    assert!(buf[0] == 0 || buf[0] & 0xf0 == 0x10);
                }
            }
            pool.settle().expect("deletions end");
        }
        stop.store(true, Ordering::Relaxed);
    });
    pool.checkpoint().expect("checkpoints");
    check_is_clean(&w);
}

/// H20: snapshots of two volumes at one point under writers: what was acknowledged before is in, what began
/// after is not, and it never changes.
#[test]
fn h20_a_cut_is_one_point_in_time() {
    let (w, a) = world_with("a", 64);
    let pool = w.pool().clone();
    pool.create_volume("b", 64 * 4096, Labels::new()).expect("creates");
    let b = pool.open_volume("b").expect("opens");
    // Now and then a write takes longer than a whole cut.
    w.dev.set_delays(std::time::Duration::ZERO, std::time::Duration::from_millis(10), 9);
    let stop = AtomicBool::new(false);
    let number = |buf: &[u8]| u64::from_le_bytes(buf[..8].try_into().expect("8 bytes"));
    let numbered = |i: u64| {
        let mut buf = block(0);
        buf[..8].copy_from_slice(&i.to_le_bytes());
        buf
    };
    std::thread::scope(|s| {
        for lane in 0..4u64 {
            let (a, b, stop) = (&a, &b, &stop);
            s.spawn(move || {
                let mut i = 1u64;
                while !stop.load(Ordering::Relaxed) {
                    a.write_at(lane * 4096, &numbered(i), false).expect("writes");
                    b.write_at(lane * 4096, &numbered(i), false).expect("writes");
                    i += 1;
                }
            });
        }
        let mut seen = Vec::new();
        for n in 0..40 {
            // Time for writes in place, which only begin after the first one since the last cut.
            std::thread::sleep(std::time::Duration::from_millis(4));
            let spec = |v: &str| SnapshotSpec {
                volume: v.into(),
                name: format!("s{n}"),
                consistency: Consistency::Crash,
            };
            pool.create_snapshots(&[spec("a"), spec("b")], Labels::new()).expect("cuts");
            let (sa, sb) = (
                pool.open_snapshot("a", &format!("s{n}")).expect("opens"),
                pool.open_snapshot("b", &format!("s{n}")).expect("opens"),
            );
            for lane in 0..4 {
                let (mut x, mut y) = (block(0), block(0));
                sa.read_at(lane * 4096, &mut x).expect("reads");
                sb.read_at(lane * 4096, &mut y).expect("reads");
                let (x, y) = (number(&x), number(&y));
                assert!(x == y || x == y + 1, "a has {x}, b has {y}");
                seen.push((sa.clone(), lane, x));
            }
            if n % 7 == 0 {
                pool.checkpoint().expect("checkpoints");
            }
        }
        for (snapshot, lane, before) in seen {
            let mut now = block(0);
            snapshot.read_at(lane * 4096, &mut now).expect("reads");
            assert_eq!(number(&now), before, "a write landed in a snapshot after its cut");
        }
        stop.store(true, Ordering::Relaxed);
    });
    pool.checkpoint().expect("checkpoints");
    check_is_clean(&w);
}

/// H23: a block that was frozen once is not written before it is freed, also when its snapshot is gone.
#[test]
fn h23_ownership_is_not_regained() {
    let (w, v) = world_with("v", 64);
    v.write_at(0, &block(1), false).expect("writes");
    snapshot(w.pool(), "v", "s").expect("cuts");
    let s = w.pool().open_snapshot("v", "s").expect("opens");
    let frozen = s.identity(0).expect("reads").expect("mapped");
    w.pool().delete_snapshot("v", "s").expect("deletes");
    w.pool().settle().expect("deletions end");
    v.write_at(0, &block(2), false).expect("writes");
    snapshot(w.pool(), "v", "t").expect("cuts");
    let t = w.pool().open_snapshot("v", "t").expect("opens");
    assert_ne!(t.identity(0).expect("reads"), Some(frozen), "equal identities hold equal bytes");
}

/// H24: identity is place and birth: a place that was used again is another block.
#[test]
fn h24_identity_tells_reuse() {
    // So small that every place is used several times.
    let mut w = World::of(8 << 20);
    w.open();
    w.run(&Op::Create { name: "v".into(), blocks: 128 }).expect("creates");
    let v = w.pool().open_volume("v").expect("opens");
    let mut seen = std::collections::HashMap::new();
    let mut places = std::collections::HashSet::new();
    for i in 0..60u8 {
        v.write_at(0, &[i + 1; 128 * 4096], false).expect("writes");
        snapshot(w.pool(), "v", "s").expect("cuts");
        let s = w.pool().open_snapshot("v", "s").expect("opens");
        for l in 0..128 {
            let id = s.identity(l * 4096).expect("reads").expect("mapped");
            assert_eq!(seen.insert(id, i), None, "identity {id:?} came back with other bytes");
            places.insert(id.0);
        }
        w.pool().delete_snapshot("v", "s").expect("deletes");
        w.pool().settle().expect("deletions end");
        w.pool().checkpoint().expect("frees");
    }
    assert!(places.len() < seen.len(), "no place was used twice");
}

/// H28: a volume grows, is rolled back to a smaller snapshot, and reads zeros beyond it.
#[test]
fn h28_rollback_keeps_the_larger_size() {
    let (mut w, v) = world_with("v", 64);
    v.write_at(0, &block(1), false).expect("writes");
    snapshot(w.pool(), "v", "s").expect("cuts");
    w.pool().resize_volume("v", 2048 * 4096).expect("grows");
    v.write_at(2000 * 4096, &block(9), false).expect("writes");
    v.write_at(0, &block(2), false).expect("writes");
    w.pool().rollback("v", "s").expect("rolls back");
    assert_eq!(v.size_bytes(), 2048 * 4096);
    assert_eq!((read(&v, 0), read(&v, 2000)), (block(1), block(0)));
    drop(v);
    w.pool = None;
    w.open();
    let v = w.pool().open_volume("v").expect("opens");
    assert_eq!(v.size_bytes(), 2048 * 4096, "after a restart");
    assert_eq!((read(&v, 0), read(&v, 2000)), (block(1), block(0)));
}

/// H29: eight writers of one sector each in one block, the first time and later.
#[test]
fn h29_sectors_of_one_block_do_not_lose_each_other() {
    let (w, v) = world_with("v", 64);
    w.dev.set_delays(SLOW, SLOW, 1);
    for round in 0..30u8 {
        std::thread::scope(|s| {
            for sector in 0..8u64 {
                let v = &v;
                s.spawn(move || {
                    v.write_at(sector * 512, &[round * 8 + sector as u8; 512], false).expect("writes");
                });
            }
        });
        let got = read(&v, 0);
        for sector in 0..8u8 {
            assert!(got[usize::from(sector) * 512..][..512].iter().all(|b| *b == round * 8 + sector));
        }
        if round % 3 == 0 {
            snapshot(w.pool(), "v", &format!("s{round}")).expect("cuts");
        }
    }
}

/// H30: the host's disk is full under the pool: new blocks are refused, what is there goes on, freeing heals.
#[test]
fn h30_a_full_host() {
    let mut w = World::new();
    w.dev.set_room(Some(6 << 20));
    w.open();
    w.run(&Op::Create { name: "v".into(), blocks: 4096 }).expect("creates");
    let v = w.pool().open_volume("v").expect("opens");
    let mut written = 0;
    let refused = loop {
        match v.write_at(written * 4096, &block(1), false) {
            Ok(()) => written += 1,
            Err(e) => break e,
        }
    };
    assert_eq!(refused.kind(), ErrorKind::NoSpace);
    assert!(written > 1000, "{written}");
    for l in 0..written {
        v.write_at(l * 4096, &block(2), false).expect("overwrites in place");
    }
    v.discard(0, 200 * 4096).expect("discards");
    for l in 0..100 {
        v.write_at(l * 4096, &block(3), false).expect("healed");
    }
    v.flush().expect("flushes");
    assert_eq!((read(&v, 0), read(&v, 150), read(&v, written - 1)), (block(3), block(0), block(2)));
    check_is_clean(&w);
}

/// H31: what a discard frees goes back to the host, and only that; it can be had again as long as the host has it.
#[test]
fn h31_freed_space_goes_back_to_the_host() {
    let mut w = World::of(64 << 20);
    w.dev.set_room(Some(62 << 20));
    w.open();
    w.run(&Op::Create { name: "v".into(), blocks: 12_000 }).expect("creates");
    let v = w.pool().open_volume("v").expect("opens");
    let room = || w.dev.host_free().expect("limited");
    let write = |n: u64, byte| (0..n).try_for_each(|l| v.write_at(l * 4096, &block(byte), false));
    write(10_000, 1).expect("writes");
    let full = room();
    v.discard(100 * 4096, 9_900 * 4096).expect("discards");
    for _ in 0..3 {
        w.pool().checkpoint().expect("checkpoints");
    }
    assert!(room() > full + (15 << 20), "{full} bytes were left to the host, now {}", room());
    assert_eq!((read(&v, 99), read(&v, 100)), (block(1), block(0)));
    // Somebody else takes what the host got: what the volume holds is not touched by that.
    w.dev.set_room(Some(0));
    write(100, 2).expect("overwrites in place");
    assert_eq!(write(10_000, 3).map_err(|e| e.kind()), Err(ErrorKind::NoSpace));
    w.dev.set_room(Some(40 << 20));
    write(10_000, 4).expect("the host has room again");
    v.flush().expect("flushes");
    drop(v);
    check_is_clean(&w);
}

/// What was discarded is given back by itself, when nothing more comes for a while.
#[test]
fn a_discard_is_given_back_without_being_asked_for() {
    let mut w = World::of(64 << 20);
    w.background = true;
    w.open();
    let pool = w.pool().clone();
    pool.create_volume("v", 4096 * 4096, Labels::new()).expect("creates");
    let v = pool.open_volume("v").expect("opens");
    v.write_at(0, &vec![1; 4096 * 4096], false).expect("writes");
    pool.checkpoint().expect("checkpoints");
    let used = || pool.info().used_bytes / 4096;
    let before = used();
    v.discard(0, 4000 * 4096).expect("discards");
    // Some nodes are new; a minute is for machines with other things to do.
    for _ in 0..6000 {
        if used() < before - 3900 {
            assert_eq!(pool.volume("v").expect("shows").used_bytes, 96 * 4096);
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("{} blocks are in use, {before} before the discard", used());
}

/// H32, H33: fill the pool, discard one block in each leaf, delete, go on: a checkpoint never meets ENOSPC.
#[test]
fn h32_a_full_pool_heals() {
    let (w, v) = world_with("v", 8192);
    snapshot(w.pool(), "v", "before").expect("cuts");
    let mut full = 0;
    while v.write_at(full * 4096, &block(1), false).is_ok() {
        full += 1;
    }
    assert_ne!(w.pool().info().state, PoolState::Ok);
    let e = snapshot(w.pool(), "v", "no").expect_err("a snapshot would make overwrites take space");
    assert_eq!(e.kind(), ErrorKind::NoSpace);
    for l in (0..full).step_by(512) {
        v.discard(l * 4096, 4096).expect("discards");
    }
    w.pool().checkpoint().expect("checkpoints");
    for l in 0..full {
        if l % 512 != 0 {
            v.write_at(l * 4096, &block(2), false).expect("overwrites in place");
        }
    }
    v.discard(0, full / 2 * 4096).expect("discards");
    for l in 0..full / 4 {
        v.write_at(l * 4096, &block(3), false).expect("healed");
    }
    drop(v);
    w.pool().delete_volume("v").expect("deletes");
    w.pool().settle().expect("deletions end");
    w.pool().checkpoint().expect("checkpoints");
    assert_eq!(w.pool().info().state, PoolState::Ok);
    check_is_clean(&w);
}

/// H32, H33: a full pool whose every block needs a map node of its own still has room for its checkpoint.
#[test]
fn h32_room_for_every_node_is_promised() {
    let mut w = World::of(8 << 20);
    w.open();
    w.run(&Op::Create { name: "v".into(), blocks: 1 << 20 }).expect("creates");
    let v = w.pool().open_volume("v").expect("opens");
    let full = (0..2048).find(|leaf| v.write_at(leaf * 512 * 4096, &block(1), false).is_err());
    let full = full.expect("the pool is smaller than the volume");
    assert!(full > 300, "{full} blocks in a pool of 2048");
    w.pool().checkpoint().expect("there is room for its nodes");
    for leaf in 0..full {
        assert_eq!(read(&v, leaf * 512), block(1));
    }
    check_is_clean(&w);
}

/// H11: a failed sync may have lost what it was for; trying again would only hide it.
#[test]
fn h11_a_failed_sync_is_never_tried_again() {
    let (w, v) = world_with("v", 64);
    v.flush().expect("flushes");
    v.write_at(0, &block(1), false).expect("writes");
    w.dev.fail_at(w.dev.steps() + 1, Fault::Eio);
    for _ in 0..3 {
        let e = v.flush().expect_err("the sync failed");
        assert!(matches!(e.kind(), ErrorKind::Io | ErrorKind::Poisoned), "{e}");
    }
    assert_eq!(w.pool().info().state, PoolState::Failed);
    assert_eq!(read(&v, 0), block(1), "reads go on");
}

/// H35: discarding 1 TiB takes one record, not one a block.
#[test]
fn h35_a_discard_of_a_tebibyte_is_small() {
    let (w, v) = world_with("v", (1 << 40) / 4096);
    v.write_at(1 << 39, &block(1), false).expect("writes");
    let before = w.dev.steps();
    v.discard(0, 1 << 40).expect("discards");
    w.pool().checkpoint().expect("checkpoints");
    assert!(w.dev.steps() - before < 20, "{} steps", w.dev.steps() - before);
    assert_eq!(read(&v, (1 << 39) / 4096), block(0));
    check_is_clean(&w);
}

/// What a snapshot holds alone follows every change beside it, and is what deleting it gives back.
#[test]
fn exclusive_bytes_follow_what_changes() {
    let (w, v) = world_with("v", 2048);
    let pool = w.pool();
    v.write_at(0, &vec![1; 1500 * 4096], false).expect("writes");
    let alone = |name: &str| {
        pool.checkpoint().expect("checkpoints");
        let blocks = || pool.snapshot("v", name).expect("shows").exclusive_bytes / 4096;
        assert_eq!(blocks(), blocks(), "nothing has changed");
        blocks()
    };
    snapshot(pool, "v", "a").expect("cuts");
    assert_eq!(alone("a"), 0);
    v.write_at(0, &block(2), false).expect("writes");
    // The block, and the nodes that led to it.
    let one = alone("a");
    assert!((1..=6).contains(&one), "{one}");
    v.write_at(4096, &block(2).repeat(9), false).expect("writes");
    assert_eq!(alone("a"), one + 9);
    snapshot(pool, "v", "b").expect("cuts");
    v.write_at(0, &block(3).repeat(20), false).expect("writes");
    assert_eq!(alone("a"), one + 9, "b has what a has of these");
    pool.clone_snapshot("v", "a", "k", Labels::new()).expect("clones");
    assert_eq!(alone("a"), 0, "the clone holds all of it");
    pool.delete_volume("k").expect("deletes");
    pool.settle().expect("the deletion ends");
    let gone = alone("b");
    let used = || pool.info().used_bytes / 4096;
    let before = used();
    pool.delete_snapshot("v", "b").expect("deletes");
    pool.settle().expect("the deletion ends");
    let freed = before - used();
    assert!(freed.abs_diff(gone) <= 1, "{freed} blocks came back, {gone} were told");
    check_is_clean(&w);
}

/// Many snapshots: each keeps its content, lookups stay short, and deleting them gives everything back.
#[test]
fn a_thousand_snapshots() {
    let (w, v) = world_with("v", 1024);
    for i in 0..1000u64 {
        v.write_at(i % 64 * 4096, &i.to_le_bytes().repeat(512), false).expect("writes");
        snapshot(w.pool(), "v", &format!("s{i}")).expect("cuts");
    }
    for i in (0..1000u64).step_by(37) {
        let s = w.pool().open_snapshot("v", &format!("s{i}")).expect("opens");
        let mut buf = block(0);
        s.read_at(i % 64 * 4096, &mut buf).expect("reads");
        assert_eq!(buf[..8], i.to_le_bytes());
    }
    w.pool().checkpoint().expect("checkpoints");
    check_is_clean(&w);
    for i in 0..1000 {
        w.pool().delete_snapshot("v", &format!("s{i}")).expect("deletes");
    }
    w.pool().settle().expect("deletions end");
    w.pool().checkpoint().expect("checkpoints");
    check_is_clean(&w);
    let used = w.pool().volume("v").expect("shows");
    assert_eq!((used.used_bytes, used.exclusive_bytes / 4096 >= 64), (64 * 4096, true));
}

/// Several threads, flushes in between: a flush answers only for what was acknowledged before it (H10).
#[test]
fn h10_a_flush_covers_what_came_before_it() {
    for seed in 0..6 {
        let (mut w, v) = world_with("v", 64);
        let durable: [AtomicU64; 4] = Default::default();
        w.dev.die_at(w.dev.steps() + 100 + seed * 37);
        std::thread::scope(|s| {
            for (lane, durable) in (0u64..).zip(&durable) {
                let v = &v;
                s.spawn(move || {
                    for i in 1.. {
                        let mut buf = block(0);
                        buf[..8].copy_from_slice(&u64::to_le_bytes(i));
                        let at = (lane * 16 + i % 16) * 4096;
                        if v.write_at(at, &buf, false).is_err() || v.flush().is_err() {
                            return;
                        }
                        durable.store(i, Ordering::SeqCst);
                    }
                });
            }
        });
        drop(v);
        w.stop(End::Power(Survival::Writes), &mut Rng(seed));
        w.open();
        let v = w.pool().open_volume("v").expect("opens");
        for (lane, durable) in (0u64..).zip(&durable) {
            let i = durable.load(Ordering::SeqCst);
            if i > 0 {
                let got = read(&v, lane * 16 + i % 16);
                let got = u64::from_le_bytes(got[..8].try_into().expect("8 bytes"));
                assert!(got == i || got == i + 16, "lane {lane}: {got} after {i} was flushed");
            }
        }
    }
}
