//! Random histories on a simulated disk, cut at random points in every way, opened again, checked and
//! compared. `COWSLIP_CRASH_SECONDS` and `COWSLIP_CRASH_SEED` make it longer or repeat a run.

mod harness;

use harness::{End, Op, Rng, World, random_op};
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::io::BlockDev;
use store::io::sim::Survival;

const ENDS: [End; 7] = [
    End::Power(Survival::All),
    End::Power(Survival::Nothing),
    End::Power(Survival::Writes),
    End::Power(Survival::Writes),
    End::Power(Survival::Sectors),
    End::Power(Survival::Sectors),
    End::Death,
];

/// Operations of one life.
const OPS: u64 = 40;

/// Runs operations until `steps` writes and syncs were done or the life ends; returns the steps used.
fn live(w: &mut World, r: &mut Rng, ops: u64) {
    for _ in 0..ops {
        let op = random_op(&w.model, r);
        if w.run(&op).is_err() {
            return;
        }
    }
    w.pending = None;
}

/// One seed: a history, died at a random step, with every kind of end; each survivor lives on, is cut while it
/// recovers or later, and is compared again. Returns the number of cuts.
fn history(seed: u64, write_through: bool) -> u64 {
    let mut cuts = 0;
    // In small pools room runs out, and what is freed is used again at once.
    let bytes = [8, 10, 24][usize::try_from(seed % 3).expect("small")] << 20;
    let mut dry = World::of(bytes);
    dry.write_through = write_through;
    dry.open();
    let first = dry.dev.steps();
    live(&mut dry, &mut Rng(seed), OPS);
    let all = dry.dev.steps().max(first + 1);
    let mut r = Rng(seed ^ 0x5eed);
    for _ in 0..6 {
        let mut w = World::of(bytes);
        w.write_through = write_through;
        w.open();
        w.dev.die_at(first + 1 + r.below(all - first + 2));
        live(&mut w, &mut Rng(seed), OPS);
        for end in ENDS {
            let mut second = w.fork();
            second.crash(end, &mut r);
            cuts += 1;
            if r.below(2) == 0 {
                again(&mut second, &mut r);
                cuts += 1;
            }
        }
    }
    cuts
}

/// Cuts a world once more: in its recovery, or after some more operations.
fn again(w: &mut World, r: &mut Rng) {
    let mut end = *r.pick(&ENDS);
    if r.below(3) == 0 {
        // The same disk is lost once more, before its recovery is complete.
        let first = *r.pick(&ENDS);
        w.stop(first, r);
        w.pending = None;
        w.dev.die_at(1 + r.below(3));
        if w.try_open().is_ok() {
            // What the first cut took is known from here on.
            w.verify(first);
            live(w, r, 3);
            w.stop(end, r);
        } else {
            w.stop(end, r);
            if matches!(first, End::Power(_)) {
                // What the first cut took is allowed to be gone.
                end = first;
            }
        }
        w.open();
        w.verify(end);
    } else {
        w.dev.die_at(w.dev.steps() + 1 + r.below(60));
        live(w, r, 20);
        w.crash(end, r);
    }
}

/// H18: in a full pool whatever is freed is used again at once; what the durable checkpoint refers to is not free.
#[test]
fn h18_a_full_pool_uses_freed_blocks_in_time() {
    let mut full = World::of(8 << 20);
    full.open();
    full.run(&Op::Create { name: "v0".into(), blocks: 2000 }).expect("creates");
    for l in 0..2000 {
        full.run(&Op::Write { volume: "v0".into(), l, n: 1, fua: false }).expect("writes, or is full");
    }
    full.run(&Op::Checkpoint).expect("checkpoints");
    let written = full.model.volumes["v0"].now.keys().next_back().expect("something fits") / harness::SECTORS;
    full.pool = None;
    // Enough checkpoints for the allocator to come round to what they freed.
    for seed in 0..60 {
        let mut w = full.fork();
        w.open();
        let mut r = Rng(seed);
        w.dev.die_at(w.dev.steps() + 1 + r.below(400));
        for i in 0..300 {
            let (l, n) = (r.below(written), 1);
            let op = match i % 6 {
                0..3 => Op::Discard { volume: "v0".into(), l, n },
                3..5 => Op::Write { volume: "v0".into(), l, n, fua: false },
                _ => Op::Checkpoint,
            };
            if w.run(&op).is_err() {
                break;
            }
            if matches!(op, Op::Checkpoint) {
                let dev: Arc<dyn BlockDev> = Arc::new(w.dev.clone());
                w.dev.forbid(store::nodes_in_use(&dev).expect("reads").into_iter().map(|p| p.0));
            }
        }
        w.dev.forbid([]);
        w.crash(*r.pick(&ENDS), &mut r);
    }
}

fn run(write_through: bool, seconds: u64) {
    let number = |name: &str| std::env::var(name).ok().and_then(|s| s.parse::<u64>().ok());
    let limit = Duration::from_secs(number("COWSLIP_CRASH_SECONDS").unwrap_or(seconds));
    let first = number("COWSLIP_CRASH_SEED").unwrap_or(1);
    let begin = Instant::now();
    let (mut seed, mut cuts) = (first, 0);
    while begin.elapsed() < limit {
        let run = std::panic::catch_unwind(|| history(seed, write_through));
        match run {
            Ok(n) => cuts += n,
            Err(e) => {
                eprintln!("COWSLIP_CRASH_SEED={seed} shows it (write_through {write_through})");
                std::panic::resume_unwind(e);
            }
        }
        seed += 1;
    }
    println!("{cuts} cuts, seeds {first} to {}, write_through {write_through}", seed - 1);
    assert!(cuts > 0);
}

#[test]
fn nothing_acknowledged_is_lost() {
    run(false, 20);
}

#[test]
fn nothing_acknowledged_is_lost_without_a_ring() {
    run(true, 8);
}
