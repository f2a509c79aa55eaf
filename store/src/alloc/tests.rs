//! The allocator against what it promises.

use super::*;

#[test]
fn reservations_promises_and_the_fixed_share_are_kept() {
    let a = Allocator::new(SegmentMap::new(8), SegmentMap::new(8), vec![true; 8], 256);
    let mut taken = 0;
    while a.try_reserve(1, false) {
        taken += 1;
    }
    assert_eq!(taken, 7 * 256 - 64);
    assert!(a.take(Stream::Meta, 1).is_ok(), "a checkpoint still finds room");
    a.settle(100, 40);
    for _ in 0..59 {
        assert!(a.try_reserve(1, false), "100 given back, 40 promised, 1 taken");
    }
    assert!(!a.try_reserve(1, false));
    assert!(a.try_reserve(32, true) && !a.try_reserve(1, true), "half of the fixed share frees space");
}

const VOLUME: VolumeId = VolumeId(1);

fn take(a: &Allocator, leaf: u64, n: u64) -> (Phys, u64) {
    assert!(a.try_reserve(n, false));
    a.take(Stream::Data { volume: VOLUME, leaf }, n).expect("there is room")
}

/// H36: blocks of one leaf lie together although others are written in between.
#[test]
fn h36_a_leaf_gets_its_blocks_together() {
    let a = Allocator::new(SegmentMap::new(64), SegmentMap::new(64), vec![true; 64], 256);
    let mut of_leaf: HashMap<u64, Vec<u64>> = HashMap::new();
    for _ in 0..100 {
        for leaf in 0..40 {
            of_leaf.entry(leaf).or_default().push(take(&a, leaf, 1).0.0);
        }
    }
    for blocks in of_leaf.values_mut() {
        blocks.sort_unstable();
        let pieces = 1 + blocks.windows(2).filter(|w| w[0] + 1 != w[1]).count();
        assert!(pieces <= 8, "100 blocks in {pieces} pieces");
    }
}

/// What is kept for chunks is free all the same: the last block can be taken by anybody.
#[test]
fn chunks_give_way_to_a_full_pool() {
    let a = Allocator::new(SegmentMap::new(4), SegmentMap::new(4), vec![true; 4], 256);
    let mut taken = BTreeSet::new();
    let mut leaf = 0;
    while a.try_reserve(1, false) {
        leaf += 1;
        let (p, n) = a.take(Stream::Data { volume: VOLUME, leaf: leaf % 37 }, 1).expect("reserved");
        assert!(n == 1 && taken.insert(p.0), "{p:?} twice");
    }
    assert_eq!(taken.len(), 3 * 256 - 64);
    for _ in 0..64 {
        let (p, _) = a.take(Stream::Meta, 1).expect("the fixed share is for checkpoints");
        assert!(taken.insert(p.0), "{p:?} twice");
    }
    assert!(a.take(Stream::Meta, 1).is_err());
}

/// H31: what leaves is free, is not handed out meanwhile, and can come back.
#[test]
fn h31_only_free_segments_leave() {
    let a = Allocator::new(SegmentMap::new(64), SegmentMap::new(64), vec![true; 64], 256);
    let used: BTreeSet<u64> = (0..20).map(|leaf| take(&a, leaf, 100).0.segment()).collect();
    let before = a.space();
    assert!(a.has_surplus());
    a.let_go(false);
    let leaving: BTreeSet<u64> = a.leaving().into_iter().flat_map(|(s, n)| s..s + n).collect();
    assert!(!leaving.is_empty() && leaving.is_disjoint(&used), "{leaving:?}");
    assert!(!a.has_surplus() && a.to_back(true).is_none());
    assert_eq!(a.space().used, before.used);
    while a.try_reserve(1, false) {
        let (p, _) = a.take(Stream::Data { volume: VOLUME, leaf: 9 }, 1).expect("reserved");
        assert!(!leaving.contains(&p.segment()));
    }
    a.gone();
    let (first, n) = a.to_back(true).expect("they may be backed again");
    assert!((first..first + n).all(|s| leaving.contains(&s)));
    a.set_backed(first, n);
    assert!(a.try_reserve(1, false));
}
