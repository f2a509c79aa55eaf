//! What dmtest asks of thin provisioning, by its names.

mod harness;

use harness::{End, Op, Rng, World};
use std::sync::Arc;
use store::io::BlockDev;
use store::io::sim::Survival;
use store::{PoolState, check_device};

/// Runs what must work, and looks at everything in the end: model, `check`, and a cut.
struct Case {
    w: World,
    rng: Rng,
}

impl Case {
    fn new(seed: u64) -> Self {
        let mut w = World::new();
        w.slice_leaves = 4;
        w.open();
        Self { w, rng: Rng(seed) }
    }

    fn run(&mut self, op: &Op) {
        self.w.run(op).expect("the disk is whole");
    }

    fn volume(&mut self, name: &str, blocks: u64) {
        self.run(&Op::Create { name: name.into(), blocks });
    }

    fn write(&mut self, volume: &str, l: u64, n: u64) {
        self.run(&Op::Write { volume: volume.into(), l, n, fua: false });
    }

    fn cut(&mut self, volume: &str, name: &str) {
        self.run(&Op::Snapshot { of: vec![(volume.into(), name.into())] });
        assert!(self.w.model.snapshots.contains_key(&(volume.into(), name.into())));
    }

    fn clone(&mut self, volume: &str, snapshot: &str, name: &str) {
        self.run(&Op::Clone { volume: volume.into(), snapshot: snapshot.into(), name: name.into() });
    }

    fn delete(&mut self, volume: &str, snapshot: &str) {
        self.run(&Op::DeleteSnapshot { volume: volume.into(), snapshot: snapshot.into() });
    }

    fn delete_volume(&mut self, name: &str) {
        self.run(&Op::DeleteVolume { name: name.into() });
    }

    /// Blocks in use once all deletions are done.
    fn used(&mut self) -> u64 {
        self.w.pool().settle().expect("deletions end");
        self.run(&Op::Checkpoint);
        self.w.pool().info().used_bytes / 4096
    }

    fn clean(&self) {
        let dev: Arc<dyn BlockDev> = Arc::new(self.w.dev.clone());
        let report = check_device(&dev, &mut |_, _| {}).expect("check runs");
        assert_eq!(report.findings, vec![]);
    }

    /// The content is what the model says, now and after a power cut.
    fn end(mut self) {
        self.run(&Op::Flush);
        self.clean();
        self.w.crash(End::Power(Survival::Nothing), &mut self.rng.clone());
    }
}

/// Many snapshots, a few changes between each: all keep their content, and deleting them in any order gives back
/// all that they held.
#[test]
fn many_snaps_with_changes() {
    let mut c = Case::new(1);
    c.volume("v", 1024);
    c.write("v", 0, 600);
    let before = c.used();
    for i in 0..60 {
        for _ in 0..8 {
            let l = c.rng.below(600);
            c.write("v", l, 1);
        }
        c.cut("v", &format!("s{i}"));
    }
    let mut left: Vec<u64> = (0..60).collect();
    while !left.is_empty() {
        let i = left.swap_remove(usize::try_from(c.rng.below(left.len() as u64)).expect("small"));
        c.delete("v", &format!("s{i}"));
    }
    let after = c.used();
    // Nodes differ a little: what was one run has a leaf of its own now.
    assert!(after <= before + 8, "{before} blocks before, {after} after");
    c.end();
}

/// A tree of snapshots and clones, every block held by a set of versions of its own: `check` counts who holds what.
#[test]
fn ref_count_tree() {
    let mut c = Case::new(2);
    c.volume("v", 512);
    let mut volumes = vec!["v".to_owned()];
    for i in 0..24 {
        let from = c.rng.pick(&volumes).clone();
        let l = c.rng.below(480);
        let n = 1 + c.rng.below(32);
        c.write(&from, l, n);
        let snap = format!("s{i}");
        c.cut(&from, &snap);
        let new = format!("c{i}");
        c.clone(&from, &snap, &new);
        volumes.push(new);
        if i % 6 == 5 {
            c.run(&Op::Checkpoint);
            c.clean();
        }
    }
    while volumes.len() > 1 {
        let i = usize::try_from(c.rng.below(volumes.len() as u64)).expect("small");
        c.delete_volume(&volumes.swap_remove(i));
    }
    for (volume, snapshot) in c.w.model.snapshots.clone().into_keys() {
        c.delete(&volume, &snapshot);
    }
    c.used();
    c.end();
}

/// A snapshot is written all over: its origin does not see it.
#[test]
fn stomp_snap() {
    let mut c = Case::new(3);
    c.volume("v", 800);
    c.write("v", 0, 700);
    c.cut("v", "s");
    c.clone("v", "s", "k");
    for l in (0..700).step_by(7) {
        c.write("k", l, 7);
    }
    c.end();
}

/// The origin is written all over: the snapshot does not see it.
#[test]
fn stomp_origin() {
    let mut c = Case::new(4);
    c.volume("v", 800);
    c.write("v", 0, 700);
    c.cut("v", "s");
    for l in (0..700).step_by(7) {
        c.write("v", l, 7);
    }
    c.end();
}

/// The first write to a shared block takes one new block; the next ones, and those to what is not shared, none.
#[test]
fn break_sharing() {
    let mut c = Case::new(5);
    c.volume("v", 512);
    c.write("v", 0, 512);
    c.cut("v", "s");
    let shared = c.used();
    c.write("v", 100, 1);
    let broken = c.used();
    // The block, and the leaf that is not a run any more.
    assert!((shared + 1..=shared + 3).contains(&broken), "{shared} blocks, then {broken}");
    for _ in 0..5 {
        c.write("v", 100, 1);
    }
    assert_eq!(c.used(), broken);
    c.end();
}

/// A pool that is full: nothing is lost, and deleting makes room again.
#[test]
fn delete_after_out_of_space() {
    let mut c = Case::new(6);
    c.volume("a", 1500);
    c.volume("b", 20_000);
    c.write("a", 0, 1200);
    let mut l = 0;
    while c.w.pool().info().state != PoolState::Full && l < 20_000 {
        c.write("b", l, 50);
        l += 50;
    }
    assert_eq!(c.w.pool().info().state, PoolState::Full);
    c.run(&Op::Flush);
    c.clean();
    c.delete_volume("b");
    c.used();
    assert_eq!(c.w.pool().info().state, PoolState::Ok);
    c.volume("d", 1500);
    c.write("d", 0, 1500);
    c.end();
}

/// Snapshots of clones of snapshots: each generation keeps its own content.
#[test]
fn recursive_snaps() {
    let mut c = Case::new(7);
    c.volume("g0", 256);
    c.write("g0", 0, 200);
    for i in 0..20u64 {
        let (of, new) = (format!("g{i}"), format!("g{}", i + 1));
        c.cut(&of, "s");
        c.clone(&of, "s", &new);
        c.write(&new, i * 10, 10);
    }
    // The middle goes first.
    for i in [10u64, 5, 15, 11] {
        c.delete_volume(&format!("g{i}"));
        c.delete(&format!("g{i}"), "s");
    }
    c.used();
    c.end();
}
