//! Mutated images of every format: no panic, no endless work, whatever they hold.
//!
//! Seeds are images that the formats' own tools make, with numbers for seeds of chance, so a finding is made again by
//! its target and number. Changed blocks get right checksums most of the time, or nothing behind them would be met.
//! `make fuzz SECONDS=60` gives every target that long; `make test` a few rounds. `FUZZ_TARGET` and `FUZZ_SEED` name
//! one target and where to begin.

#[path = "../common/mod.rs"]
mod common;
mod targets;

use common::exercise::{bounded, exercise_source};
use common::support::{Chance, MemoryImage};
use fuse_view::overlay::{OverlayBuilder, Scratch};
use fuse_view::{BlockRead, container};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};
use targets::{Target, targets};

/// Rounds of a target in `make test`.
const FEW: u64 = 12;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|n| n.parse().ok())
}

/// One image with a few blocks changed.
fn mutated(target: &Target, base: &Arc<MemoryImage>, interesting: &[u64], seed: u64) -> Arc<dyn BlockRead> {
    let mut chance = Chance(seed);
    let mut builder = OverlayBuilder::new(base.clone(), &Scratch::new(16 << 20));
    for _ in 0..=chance.below(6) {
        let at = interesting[usize::try_from(chance.below(interesting.len() as u64)).unwrap()];
        let mut block = vec![0; target.block];
        builder.read_at(at, &mut block).unwrap();
        for _ in 0..=chance.below(3) {
            mutate(&mut block, &mut chance);
        }
        if chance.below(8) > 0 {
            (target.fix)(&base.0, at, &mut block);
        }
        builder.write(at, &block).unwrap();
    }
    Arc::new(builder.build())
}

fn mutate(block: &mut [u8], chance: &mut Chance) {
    // Headers say the most.
    let within = if chance.below(2) == 0 { block.len() } else { block.len().min(256) } as u64;
    let at = usize::try_from(chance.below(within)).unwrap();
    let width = 1 << chance.below(4);
    let Some(field) = block.get_mut(at..at + width) else { return };
    match chance.below(6) {
        0 => field.fill(0),
        1 => field.fill(0xFF),
        2 => field[0] ^= 1 << chance.below(8),
        3 => field[0] = field[0].wrapping_add(1),
        4 => field[width - 1] = field[width - 1].wrapping_sub(1),
        _ => field.copy_from_slice(&chance.bytes(width)),
    }
}

fn run(target: &Target) {
    let Some(bytes) = (target.seed)() else { return println!("{}: no tool makes a seed here", target.name) };
    let base = Arc::new(MemoryImage(bytes));
    let interesting: Vec<u64> = (0..base.0.len() / target.block)
        .map(|i| i * target.block)
        .filter(|&at| (target.is_metadata)(&base.0[at..at + target.block]))
        .map(|at| at as u64)
        .collect();
    assert!(!interesting.is_empty(), "{}: nothing to change", target.name);
    let until = number("FUZZ_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let first = number("FUZZ_SEED").unwrap_or(1);
    let mut seed = first;
    let mut answers = 0;
    while until.map_or(seed < first + FEW, |until| Instant::now() < until) {
        let dev = mutated(target, &base, &interesting, seed);
        let done = catch_unwind(AssertUnwindSafe(|| {
            let _ = container::open(&dev);
            exercise_source(bounded(dev)).0
        }));
        let count = done.unwrap_or_else(|_| panic!("FUZZ_TARGET={} FUZZ_SEED={seed}", target.name));
        answers += count;
        seed += 1;
    }
    println!("{}: {} images, {answers} answers", target.name, seed - first);
    assert!(answers > 0 || !target.has_files, "{}: no image was even opened", target.name);
}

#[test]
fn mutated_images() {
    let only = std::env::var("FUZZ_TARGET").ok();
    for target in targets().iter().filter(|target| only.as_deref().is_none_or(|name| name == target.name)) {
        run(target);
    }
}
