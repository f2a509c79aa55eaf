//! A fault at each step at which the store touches its disk, by name: what it breaks, and what goes on. The table
//! is that of `docs/durability.md`.

mod harness;

use harness::{End, Op, Rng, World};
use std::ops::Range;
use store::format::superblock::{Layout, plan};
use store::io::sim::{Fault, Request, Survival};
use store::{ErrorKind, PoolState};

/// What can happen to a request.
fn faults(what: Request) -> &'static [Fault] {
    match what {
        Request::Read => &[Fault::Eio, Fault::Short],
        Request::Write => &[Fault::Eio, Fault::NoSpace, Fault::Short],
        Request::Sync => &[Fault::Eio, Fault::NoSpace],
    }
}

/// Where a step has its bytes.
#[derive(Clone, Copy)]
enum Area {
    Superblocks,
    Log,
    Segments,
    Checksums,
    Data,
}

/// What a fault does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    /// That request fails; the next one works.
    Fails,
    /// Nothing but work in the background is left undone.
    Harmless,
    /// Writes stop, reads go on, until the pool is opened again.
    Poisons,
    /// The pool is not opened; the next attempt works.
    NotOpened,
}

struct Case {
    name: &'static str,
    what: Request,
    area: Area,
    /// Such requests that come before it.
    skip: u64,
    /// Brings the pool to where it happens.
    before: fn() -> Vec<Op>,
    /// What meets it.
    op: fn() -> Op,
    outcome: Outcome,
}

fn write(l: u64, n: u64) -> Op {
    Op::Write { volume: "v".into(), l, n, fua: false }
}

fn durable() -> Op {
    Op::Write { volume: "v".into(), l: 3, n: 1, fua: true }
}

fn cut() -> Op {
    Op::Snapshot { of: vec![("v".into(), "t".into())] }
}

fn scattered() -> Vec<Op> {
    [cut()].into_iter().chain((0..40).rev().map(|l| write(l, 1))).chain([Op::Checkpoint]).collect()
}

fn changed() -> Vec<Op> {
    vec![write(9, 1), write(600, 2), Op::Flush]
}

fn cases() -> Vec<Case> {
    use Area::{Checksums, Data, Log, Segments, Superblocks};
    use Outcome::{Fails, Harmless, NotOpened, Poisons};
    use Request::{Read, Sync, Write};
    let nothing: fn() -> Vec<Op> = Vec::new;
    let case =
        |name, what, area, skip, before, op, outcome| Case { name, what, area, skip, before, op, outcome };
    vec![
        case("data in place", Write, Data, 0, nothing, || write(3, 1), Fails),
        case("data in a new place", Write, Data, 0, || vec![cut()], || write(3, 1), Fails),
        case("data of a durable write", Write, Data, 0, nothing, durable, Fails),
        case("sync of a durable write", Sync, Data, 0, nothing, durable, Poisons),
        case("old data around a small write", Read, Data, 0, || vec![cut()], small, Fails),
        case("sync of the data before a flush", Sync, Data, 0, || vec![write(70, 1)], || Op::Flush, Poisons),
        case("records of a flush", Write, Log, 0, || vec![write(70, 1)], || Op::Flush, Poisons),
        case("sync of the records of a flush", Sync, Data, 1, || vec![write(70, 1)], || Op::Flush, Poisons),
        case("record of a snapshot", Write, Log, 0, nothing, cut, Poisons),
        case("map nodes of a checkpoint", Write, Data, 0, changed, || Op::Checkpoint, Poisons),
        case("pages of a checkpoint", Write, Data, 1, changed, || Op::Checkpoint, Poisons),
        case("segment table", Write, Segments, 0, changed, || Op::Checkpoint, Poisons),
        case("sync of a checkpoint", Sync, Data, 1, changed, || Op::Checkpoint, Poisons),
        case("superblock", Write, Superblocks, 0, changed, || Op::Checkpoint, Poisons),
        case("sync of the superblock", Sync, Data, 2, changed, || Op::Checkpoint, Poisons),
        case("map node that a checkpoint reads", Read, Data, 0, unread, || Op::Checkpoint, Poisons),
        case("map node that a write reads", Read, Data, 0, || vec![Op::Reopen], || write(3, 1), Fails),
        case("block read for its checksum", Read, Data, 0, sealable, || Op::Seal, Harmless),
        case("checksums read for new ones", Read, Checksums, 0, sealable, || Op::Seal, Fails),
        case("checksums", Write, Checksums, 0, sealable, || Op::Seal, Fails),
        case("blocks read for their order", Read, Data, 0, scattered, || Op::Resequence, Harmless),
        case("blocks written for their order", Write, Data, 1, scattered, || Op::Resequence, Harmless),
        case("superblock at an open", Read, Superblocks, 0, nothing, || Op::Reopen, NotOpened),
        case("checkpoint at an open", Read, Data, 0, nothing, || Op::Reopen, NotOpened),
        case("segment table at an open", Read, Segments, 0, nothing, || Op::Reopen, NotOpened),
        case("log at an open", Read, Log, 0, nothing, || Op::Reopen, NotOpened),
        case("superblock of the new owner", Write, Superblocks, 3, nothing, || Op::Reopen, NotOpened),
    ]
}

fn small() -> Op {
    Op::Partial { volume: "v".into(), l: 3, sector: 2, sectors: 1 }
}

fn sealable() -> Vec<Op> {
    vec![cut(), Op::Checkpoint]
}

/// A change of leaves that nobody has looked at since the open.
fn unread() -> Vec<Op> {
    vec![Op::Reopen, Op::Discard { volume: "v".into(), l: 10, n: 700 }, Op::Flush]
}

fn bytes_of(layout: Layout, area: Area) -> Range<u64> {
    let blocks = match area {
        Area::Superblocks => 0..129,
        Area::Log => layout.log.0..layout.log.0 + layout.log.1,
        Area::Segments => layout.segtab.0..layout.segtab.0 + 2 * layout.segtab.1,
        Area::Checksums => layout.crctab.0..layout.crctab.0 + layout.crctab.1,
        Area::Data => layout.data_start..layout.total_blocks,
    };
    blocks.start * 4096..blocks.end * 4096
}

fn world() -> World {
    let mut w = World::new();
    w.open();
    let snapshot = Op::Snapshot { of: vec![("v".into(), "s".into())] };
    let create = Op::Create { name: "v".into(), blocks: 1500 };
    for op in [create, write(0, 64), write(600, 10), snapshot, write(0, 64), Op::Flush, Op::Checkpoint] {
        w.run(&op).expect("the disk is whole");
    }
    w
}

fn try_case(case: &Case, fault: Fault) {
    let told = format!("{}, {fault:?}", case.name);
    let mut w = world();
    for op in (case.before)() {
        w.run(&op).expect("the disk is whole");
    }
    let layout = plan(harness::POOL_BYTES, harness::LOG_BYTES).expect("as the harness does");
    w.dev.fail_next(case.what, bytes_of(layout, case.area), case.skip, fault);
    let op = (case.op)();
    let failed = w.run(&op).is_err();
    assert!(w.dev.has_failed(), "{told}: the fault was not met");
    // A request that found no space is refused like one that a full pool refuses.
    let refused = case.outcome == Outcome::Fails && fault == Fault::NoSpace;
    assert_eq!(failed, case.outcome != Outcome::Harmless && !refused, "{told}: {:?}", case.outcome);
    match case.outcome {
        Outcome::NotOpened => assert!(w.pool.is_none(), "{told}"),
        Outcome::Poisons => stays_readable(&w, &told),
        Outcome::Fails | Outcome::Harmless => {
            assert_eq!(w.pool().info().state, PoolState::Ok, "{told}");
            w.run(&op).unwrap_or_else(|e| panic!("{told}: again: {e}"));
            w.run(&Op::Flush).unwrap_or_else(|e| panic!("{told}: flush: {e}"));
        }
    }
    // What was acknowledged is there, whatever the disk did with the rest.
    w.crash(End::Power(Survival::Sectors), &mut Rng(7));
}

fn stays_readable(w: &World, told: &str) {
    let pool = w.pool();
    assert_eq!(pool.info().state, PoolState::Failed, "{told}");
    let v = pool.open_volume("v").expect("opens");
    let mut buf = [0; 4096];
    v.read_at(0, &mut buf).expect("reads go on");
    pool.open_snapshot("v", "s").expect("opens").read_at(0, &mut buf).expect("reads go on");
    let e = v.write_at(0, &buf, false).expect_err("writes do not");
    assert_eq!(e.kind(), ErrorKind::Poisoned, "{told}");
    assert_eq!(v.flush().expect_err("nothing is durable any more").kind(), ErrorKind::Poisoned, "{told}");
}

/// H11, H12, durability rule 4.
#[test]
fn h12_every_step_by_name() {
    for case in cases() {
        for fault in faults(case.what) {
            try_case(&case, *fault);
        }
    }
}

#[test]
fn the_page_has_every_step() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/durability.md");
    let page = std::fs::read_to_string(page).expect("the page is there");
    let missing: Vec<_> =
        cases().into_iter().filter(|c| !page.contains(&format!("| {} |", c.name))).map(|c| c.name).collect();
    assert!(missing.is_empty(), "docs/durability.md lacks {missing:?}");
}
