//! A volume that has aged: overwritten at random under snapshots that come and go, then read in sequence.

use crate::Options;
use crate::bench::median;
use crate::report::{Report, Row};
use crate::rig::{BLOCK, GIB, Load, Order, Rig, Work, drive, to_f64};
use std::time::Duration;

/// Size of the volume.
const VOLUME: u64 = GIB / 2;
/// Times that all of it is overwritten.
const PASSES: u64 = 10;
/// Snapshots taken meanwhile, and how many of them are kept.
const SNAPSHOTS: u64 = 120;
/// See [`SNAPSHOTS`].
const KEPT: u64 = 100;

/// Runs the job if it was asked for.
pub fn run(options: &Options, report: &mut Report) -> Result<(), String> {
    if !options.all.wants("ageing") {
        return Ok(());
    }
    let mut rig = Rig::of(&options.all.dir, VOLUME)?;
    let fresh = read(options, &rig)?;
    age(&mut rig)?;
    let aged = read(options, &rig)?;
    let before = ios_a_mib(&rig)?;
    rig.pool.resequence().map_err(|e| e.to_string())?;
    let ordered = read(options, &rig)?;
    let after = ios_a_mib(&rig)?;
    let (_, moved) = rig.pool.resequencing();
    let mib = |n: u64| format!("{} MiB", n >> 20);
    report.row(&Row::alone("ageing: 1 MiB sequential read, QD4, fresh", fresh, "/s", ""));
    report.row(&Row::alone(
        "ageing: after ten passes and 100 snapshots, over fresh",
        aged / fresh,
        "",
        "0.5",
    ));
    report.row(&Row::alone("ageing: re-sequenced, over fresh", ordered / fresh, "", "0.9"));
    report.row(&Row::alone("ageing: I/Os a MiB before", before, "", "printed"));
    report.row(&Row::alone(
        &format!("ageing: I/Os a MiB after, {} of {} copied", mib(moved), mib(VOLUME)),
        after,
        "",
        "printed",
    ));
    Ok(())
}

/// Median of the requests a second.
fn read(options: &Options, rig: &Rig) -> Result<f64, String> {
    let time = Duration::from_secs(options.seconds);
    let load = Load {
        work: Work::Read,
        order: Order::Sequential,
        bytes: 1 << 20,
        depth: 4,
        flush: false,
        latency: false,
        time,
        requests: u64::MAX,
    };
    let rounds: Result<Vec<f64>, String> =
        (0..options.all.rounds).map(|n| Ok(drive(&rig.volume, load, n as u64)?.rate())).collect();
    Ok(median(&rounds?))
}

fn age(rig: &mut Rig) -> Result<(), String> {
    for n in 0..SNAPSHOTS {
        rig.snapshot()?;
        if n >= KEPT {
            rig.pool.delete_snapshot("v", &format!("s{}", n + 1 - KEPT)).map_err(|e| e.to_string())?;
        }
        let load = Load {
            work: Work::Write,
            order: Order::Random,
            bytes: BLOCK,
            depth: 32,
            flush: false,
            latency: false,
            time: Duration::from_secs(600),
            requests: PASSES * (VOLUME / BLOCK) / SNAPSHOTS,
        };
        drive(&rig.volume, load, n)?;
    }
    rig.pool.settle().and_then(|()| rig.pool.checkpoint()).map_err(|e| e.to_string())
}

fn ios_a_mib(rig: &Rig) -> Result<f64, String> {
    let placement = rig.volume.placement().map_err(|e| e.to_string())?;
    Ok(to_f64(placement.ios) / (to_f64(placement.blocks * BLOCK) / to_f64(1 << 20)))
}
