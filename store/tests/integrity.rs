//! Checksums of frozen blocks: all damage is found, none is returned, and nothing good is called damaged.
#![allow(clippy::cast_possible_truncation)]

mod harness;

use harness::{End, Rng, World};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use store::io::sim::{Request, Survival};
use store::{Consistency, DamagedBlock, ErrorKind, Labels, Pool, SnapshotSpec, Volume};

fn world(mib: u64) -> (World, Arc<Pool>) {
    let mut w = World::of(mib << 20);
    w.open();
    let pool = w.pool().clone();
    (w, pool)
}

fn volume(pool: &Pool, name: &str, blocks: u64) -> Arc<Volume> {
    pool.create_volume(name, blocks * 4096, Labels::new()).expect("creates");
    pool.open_volume(name).expect("opens")
}

fn cut(pool: &Pool, volume: &str, name: &str) {
    let spec = SnapshotSpec { volume: volume.into(), name: name.into(), consistency: Consistency::Crash };
    pool.create_snapshots(&[spec], Labels::new()).expect("cuts");
}

fn scrub(pool: &Pool) -> store::ScrubReport {
    pool.scrub(0, &mut |_| ControlFlow::Continue(())).expect("scrubs")
}

fn place(pool: &Pool, volume: &str, snapshot: &str, l: u64) -> u64 {
    let s = pool.open_snapshot(volume, snapshot).expect("opens");
    s.identity(l * 4096).expect("reads").expect("mapped").0
}

fn check_is_clean(w: &World) {
    let dev: Arc<dyn store::io::BlockDev> = Arc::new(w.dev.clone());
    let report = store::check_device(&dev, &mut |_, _| {}).expect("check runs");
    assert_eq!(report.findings, vec![]);
}

#[test]
fn what_a_snapshot_holds_gets_its_checksum_once() {
    let (mut w, pool) = world(24);
    let v = volume(&pool, "v", 1000);
    v.write_at(0, &[1; 700 * 4096], false).expect("writes");
    pool.seal().expect("seals");
    assert_eq!(pool.info().sealed_bytes, 0, "nothing is frozen yet");
    cut(&pool, "v", "a");
    pool.seal().expect("seals");
    assert_eq!(pool.info().sealed_bytes, 700 * 4096);
    v.write_at(0, &[2; 10 * 4096], false).expect("writes");
    cut(&pool, "v", "b");
    let before = w.dev.steps();
    pool.seal().expect("seals");
    assert_eq!(pool.info().sealed_bytes, 710 * 4096);
    assert!(w.dev.steps() - before < 40, "what a was looked at for is not looked at again");
    assert_eq!(scrub(&pool).progress.checked_bytes, 710 * 4096);

    // They outlive the process that computed them, and go with their blocks.
    drop((v, pool));
    w.stop(End::Power(Survival::Nothing), &mut Rng(1));
    w.open();
    let pool = w.pool().clone();
    assert_eq!(pool.info().sealed_bytes, 710 * 4096);
    pool.delete_snapshot("v", "a").expect("deletes");
    pool.settle().expect("the deletion ends");
    pool.checkpoint().expect("checkpoints");
    assert_eq!(pool.info().sealed_bytes, 700 * 4096, "ten blocks were a's alone");
    assert_eq!(scrub(&pool).progress.damaged_blocks, 0);
    check_is_clean(&w);
}

#[test]
fn checksums_of_scattered_blocks_are_written_together() {
    let (w, pool) = world(64);
    // One block in each leaf's range: side by side in the pool in the order in which they came.
    let leaves = 400;
    let v = volume(&pool, "v", leaves * 512);
    let mut rng = Rng(7);
    let mut order: Vec<u64> = (0..leaves).collect();
    (1..leaves).rev().for_each(|i| order.swap(i as usize, rng.below(i + 1) as usize));
    for l in order {
        v.write_at(l * 512 * 4096, &[l as u8; 4096], false).expect("writes");
    }
    cut(&pool, "v", "a");
    pool.checkpoint().expect("checkpoints");
    let before = w.dev.steps();
    pool.seal().expect("seals");
    assert_eq!(pool.info().sealed_bytes, leaves * 4096);
    let steps = w.dev.steps() - before;
    assert!(steps < 100, "{steps} writes for {leaves} checksums");
    assert_eq!(scrub(&pool).progress.damaged_blocks, 0);
    check_is_clean(&w);
}

#[test]
fn every_flipped_bit_is_found_and_told_and_never_read() {
    let (w, pool) = world(24);
    let v = volume(&pool, "v", 64);
    let content: Vec<u8> = (0..64u8).flat_map(|l| [l ^ 0x5a; 4096]).collect();
    v.write_at(0, &content, false).expect("writes");
    cut(&pool, "v", "a");
    cut(&pool, "v", "b");
    pool.clone_snapshot("v", "a", "twin", Labels::new()).expect("clones");
    pool.seal().expect("seals");
    let told = Arc::new(Mutex::new(Vec::<DamagedBlock>::new()));
    let listener = told.clone();
    pool.on_damage(move |block| listener.lock().expect("nobody panics").push(block.clone()));
    // The head gives two of the blocks up.
    v.write_at(5 * 4096, &[0xee; 2 * 4096], false).expect("writes");
    let damaged = [3u64, 5, 40];
    let places: Vec<u64> = damaged.iter().map(|l| place(&pool, "v", "a", *l)).collect();
    for (i, p) in places.iter().enumerate() {
        w.dev.flip(p * 4096 + 1000 * i as u64, 3);
    }
    for (name, reads) in [("a", 64), ("b", 64)] {
        let s = pool.open_snapshot("v", name).expect("opens");
        for l in 0..reads {
            let mut buf = vec![0; 4096];
            match s.read_at(l * 4096, &mut buf) {
                Ok(()) => {
                    assert!(!damaged.contains(&l), "block {l} of {name} is damaged");
                    assert!(buf.iter().all(|b| *b == l as u8 ^ 0x5a));
                }
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::Damaged, "{e}");
                    assert_eq!(e.errno(), libc::EIO);
                    assert!(damaged.contains(&l), "block {l} of {name} is whole");
                }
            }
        }
    }
    // The head's own blocks are none of those; a write over a damaged one heals it for the head.
    let mut buf = vec![0; 4096];
    v.read_at(5 * 4096, &mut buf).expect("it was overwritten");
    v.read_at(3 * 4096, &mut buf).expect_err("it is shared");
    v.write_at(3 * 4096, &[7; 4096], false).expect("writes");
    v.read_at(3 * 4096, &mut buf).expect("it is new");
    assert_eq!(scrub(&pool).progress.damaged_blocks, 3);

    let found = pool.damage();
    assert_eq!(
        found.iter().map(|d| d.block).collect::<std::collections::BTreeSet<_>>(),
        places.iter().copied().collect()
    );
    let of = |l: u64| found.iter().find(|d| d.offset == Some(l * 4096)).expect("it is named");
    assert_eq!(of(40).holders, ["twin", "v", "v@a", "v@b"]);
    assert_eq!(of(5).holders, ["twin", "v@a", "v@b"]);
    assert_eq!(told.lock().expect("nobody panics").len(), 3, "each is told once");

    // When the last holder goes, so does the damage.
    for (volume, name) in [("v", "a"), ("v", "b")] {
        pool.delete_snapshot(volume, name).expect("deletes");
    }
    pool.delete_volume("twin").expect("deletes");
    drop(v);
    pool.delete_volume("v").expect("deletes");
    pool.settle().expect("the deletions end");
    pool.checkpoint().expect("checkpoints");
    assert_eq!(pool.damage(), vec![]);
}

#[test]
fn a_scrub_finds_what_nobody_reads_and_goes_on_where_it_was() {
    let (w, pool) = world(24);
    let v = volume(&pool, "v", 4096);
    for l in 0..3000 {
        v.write_at(l * 4096, &[l as u8; 4096], false).expect("writes");
    }
    cut(&pool, "v", "a");
    pool.seal().expect("seals");
    let p = place(&pool, "v", "a", 2900);
    w.dev.flip(p * 4096, 0);
    let mut steps = 0;
    let first = pool.scrub(0, &mut |_| {
        steps += 1;
        if steps == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let first = first.expect("scrubs");
    assert!(!first.complete && first.progress.checked_bytes > 0);
    let rest = pool.scrub(first.progress.segment, &mut |_| ControlFlow::Continue(())).expect("scrubs");
    assert!(rest.complete);
    assert_eq!(first.progress.checked_bytes + rest.progress.checked_bytes, 3000 * 4096);
    assert_eq!(first.progress.damaged_blocks + rest.progress.damaged_blocks, 1);
    let found = pool.damage();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].offset, Some(2900 * 4096), "found by a walk: a scrub knows no addresses");
    assert_eq!(found[0].holders, ["v", "v@a"]);
}

/// H26: blocks are frozen, sealed, freed, used again and frozen again, in a pool so small that every place is used
/// several times, with bits flipped meanwhile.
#[test]
fn h26_reuse_never_meets_an_old_checksum() {
    let (mut w, pool) = world(8);
    drop(pool);
    for round in 0..12u8 {
        let pool = w.pool().clone();
        let v = if round == 0 { volume(&pool, "v", 300) } else { pool.open_volume("v").expect("opens") };
        v.write_at(0, &[round + 1; 300 * 4096], false).expect("writes");
        cut(&pool, "v", "s");
        if round % 3 != 2 {
            pool.seal().expect("seals");
        }
        v.write_at(0, &[0x80 + round; 100 * 4096], false).expect("writes");
        let s = pool.open_snapshot("v", "s").expect("opens");
        let mut buf = vec![0; 300 * 4096];
        s.read_at(0, &mut buf).expect("what was used again is not damaged");
        assert!(buf.iter().all(|b| *b == round + 1));
        assert_eq!(scrub(&pool).progress.damaged_blocks, 0);
        pool.delete_snapshot("v", "s").expect("deletes");
        pool.settle().expect("the deletion ends");
        pool.checkpoint().expect("checkpoints");
        drop((v, s, pool));
        w.stop(End::Power(Survival::Sectors), &mut Rng(u64::from(round)));
        w.open();
        check_is_clean(&w);
    }
}

/// H26: the power fails while checksums are being written; a checkpoint became durable meanwhile.
#[test]
fn h26_a_bit_is_never_durable_before_its_checksum() {
    let (mut w, pool) = world(24);
    let v = volume(&pool, "v", 600);
    v.write_at(0, &[1; 600 * 4096], false).expect("writes");
    cut(&pool, "v", "a");
    pool.checkpoint().expect("checkpoints");
    let table = checksum_table(&w);
    std::thread::scope(|s| {
        let hold = w.dev.hold(Request::Write, table);
        let sealing = s.spawn(|| pool.seal());
        hold.caught();
        // It becomes durable, and then waits for the reads of the sealer.
        let steps = w.dev.steps();
        let checkpoint = s.spawn(|| pool.checkpoint());
        while !checkpoint.is_finished() && w.dev.steps() < steps + 4 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
        let dev = w.dev.after_cut(Survival::All, &mut || 0);
        drop(hold);
        checkpoint.join().expect("it does not panic").expect("checkpoints");
        sealing.join().expect("it does not panic").expect("seals");
        w.dev = dev;
    });
    drop((v, pool));
    w.stop(End::Power(Survival::All), &mut Rng(1));
    w.open();
    let mut buf = vec![0; 600 * 4096];
    let s = w.pool().open_snapshot("v", "a").expect("opens");
    s.read_at(0, &mut buf).expect("its blocks are good");
    assert!(buf.iter().all(|b| *b == 1));
}

/// Byte range of the checksum table.
fn checksum_table(w: &World) -> std::ops::Range<u64> {
    use store::io::BlockDev;
    let mut slot = vec![0; 4096];
    w.dev.read_at(0, &mut slot).expect("reads");
    let field = |at: usize| u64::from_le_bytes(slot[at..at + 8].try_into().expect("8 bytes")) * 4096;
    // docs/format.md: crctab_start and crctab_blocks of the superblock.
    field(136)..field(136) + field(144)
}
