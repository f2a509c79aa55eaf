//! What two snapshots share: every answer is held against the bytes of both.

use std::path::Path;
use store::{Consistency, InitOptions, Labels, OpenOptions, Pool, Snapshot, SnapshotSpec};

const BLOCK: u64 = 4096;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

fn pool(path: &Path) -> std::sync::Arc<Pool> {
    let options = InitOptions { size_bytes: Some(256 << 20), ..InitOptions::default() };
    Pool::init(path, &options).expect("makes a pool");
    Pool::open(path, &OpenOptions::default()).expect("opens")
}

fn cut(pool: &Pool, name: &str) {
    let spec = SnapshotSpec { volume: "v".into(), name: name.into(), consistency: Consistency::Detached };
    pool.create_snapshots(&[spec], Labels::new()).expect("cuts");
}

fn content(snapshot: &Snapshot) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(snapshot.size_bytes()).expect("small")];
    snapshot.read_at(0, &mut bytes).expect("reads");
    bytes
}

/// The blocks in which `new` is said to differ from `old`.
fn differing(new: &Snapshot, old: &Snapshot) -> Vec<u64> {
    let (mut at, mut blocks) = (0, Vec::new());
    while let Some(range) = new.next_difference(old, at).expect("compares") {
        assert!(range.start >= at && range.start < range.end && range.end <= new.size_bytes(), "{range:?}");
        blocks.extend((range.start / BLOCK..range.end / BLOCK).collect::<Vec<_>>());
        at = range.end;
    }
    blocks
}

#[test]
fn what_is_not_said_to_differ_holds_the_same_bytes() {
    let dir = tempfile::tempdir().expect("makes a directory");
    let pool = pool(&dir.path().join("pool"));
    pool.create_volume("v", 6 << 20, Labels::new()).expect("creates");
    let mut random = Random(7);
    let mut names = Vec::new();
    for step in 0..12_u64 {
        let volume = pool.open_volume("v").expect("opens");
        let blocks = volume.size_bytes() / BLOCK;
        for _ in 0..random.below(6) {
            let l = random.below(blocks);
            let n = (1 + random.below(20)).min(blocks - l);
            if random.below(5) == 0 {
                volume.discard(l * BLOCK, n * BLOCK).expect("discards");
            } else {
                let byte = u8::try_from(random.below(256)).expect("small");
                let bytes = vec![byte; usize::try_from(n * BLOCK).expect("small")];
                volume.write_at(l * BLOCK, &bytes, false).expect("writes");
            }
        }
        drop(volume);
        match random.below(4) {
            0 => pool.checkpoint().expect("checkpoints"),
            1 if step == 5 => drop(pool.resize_volume("v", 8 << 20).expect("grows")),
            _ => {}
        }
        let name = format!("s{step}");
        cut(&pool, &name);
        names.push(name);
        if step == 8 {
            pool.rollback("v", "s3").expect("rolls back");
        }
    }
    let open = |name: &String| pool.open_snapshot("v", name).expect("opens");
    for settled in [false, true] {
        if settled {
            pool.checkpoint().expect("checkpoints");
        }
        for a in names.iter().map(open) {
            for b in names.iter().map(open) {
                let said = differing(&a, &b);
                let (x, y) = (content(&a), content(&b));
                for (l, block) in (0..).zip(x.chunks(4096)) {
                    let at = usize::try_from(l * BLOCK).expect("small");
                    let same = y.get(at..at + 4096) == Some(block);
                    assert!(same || said.contains(&l), "block {l} of {} and {}", a.id(), b.id());
                }
                assert!(a.id() != b.id() || said.is_empty(), "a snapshot differs from itself");
            }
        }
    }
}

#[test]
fn one_written_block_is_the_only_difference() {
    let dir = tempfile::tempdir().expect("makes a directory");
    let pool = pool(&dir.path().join("pool"));
    pool.create_volume("v", 64 << 20, Labels::new()).expect("creates");
    let volume = pool.open_volume("v").expect("opens");
    volume.write_at(0, &vec![1; 40 << 20], false).expect("writes");
    cut(&pool, "a");
    volume.write_at(30 << 20, &[2; 4096], false).expect("writes");
    cut(&pool, "b");
    let [a, b] = ["a", "b"].map(|name| pool.open_snapshot("v", name).expect("opens"));
    for _ in 0..2 {
        assert_eq!(differing(&b, &a), [(30 << 20) / BLOCK]);
        let within = |range| b.next_difference_within(&a, range).expect("compares");
        assert_eq!(within(0..30 << 20), None);
        assert_eq!(within((30 << 20) + 1..(30 << 20) + 2), Some(30 << 20..(30 << 20) + BLOCK));
        pool.checkpoint().expect("checkpoints");
    }
    pool.delete_snapshot("v", "a").expect("deletes");
    assert_eq!(b.next_difference(&a, 0).expect_err("it is gone").kind(), store::ErrorKind::NotFound);
}

#[test]
fn snapshots_are_listed_in_brief_and_opened_by_id() {
    let dir = tempfile::tempdir().expect("makes a directory");
    let pool = pool(&dir.path().join("pool"));
    pool.create_volume("v", 1 << 20, Labels::new()).expect("creates");
    pool.create_volume("w", 1 << 20, Labels::new()).expect("creates");
    cut(&pool, "a");
    cut(&pool, "b");
    let all = pool.snapshots_in_brief("v", 0).expect("lists");
    let full = pool.snapshots(Some("v")).expect("lists");
    let fields = |s: &store::SnapshotInfo| (s.name.clone(), s.id, s.created_at, s.size_bytes);
    let brief: Vec<_> = all.iter().map(|s| (s.name.clone(), s.id, s.created_at, s.size_bytes)).collect();
    assert_eq!(brief, full.iter().map(fields).collect::<Vec<_>>());
    assert_eq!(pool.snapshots_in_brief("v", all[0].id).expect("lists"), all[1..]);
    assert_eq!(pool.open_snapshot_by_id(all[1].id).expect("opens").id(), all[1].id);
    pool.delete_volume("v").expect("deletes");
    pool.delete_volume("w").expect("deletes");
    let names: Vec<_> = pool.volumes_in_brief().into_iter().map(|v| v.name).collect();
    assert_eq!(names, ["v"], "of the other volume nothing is left");
    pool.delete_snapshot("v", "a").expect("deletes");
    assert!(pool.open_snapshot_by_id(all[0].id).is_err() && pool.snapshot_in_brief(all[0].id).is_none());
}
