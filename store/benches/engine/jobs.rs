//! The jobs that have a peer, on a real disk.

use crate::Options;
use crate::bench::{median, text};
use crate::peer::{self, Measured};
use crate::report::{Report, Row};
use crate::rig::{BLOCK, Load, Order, Outcome, Rig, VOLUME, Work, drive};
use std::time::Duration;

/// Writes after a snapshot in one round: no block twice, so every one of them is redirected.
const AFTER_SNAPSHOT: u64 = 100_000;

struct Job {
    name: &'static str,
    goal: &'static str,
    load: Load,
    /// Taken before each round's load of the store.
    snapshot: bool,
}

fn jobs(options: &Options) -> Vec<Job> {
    let time = Duration::from_secs(options.seconds);
    let load = |work, order, bytes, depth| Load {
        work,
        order,
        bytes,
        depth,
        flush: false,
        latency: false,
        time,
        requests: u64::MAX,
    };
    let job = |name, goal, load| Job { name, goal, load, snapshot: false };
    let small = |work| load(work, Order::Random, BLOCK, 32);
    let large = |work| load(work, Order::Sequential, 1 << 20, 4);
    let scattered = Load {
        order: Order::Scattered,
        time: Duration::from_secs(600),
        requests: AFTER_SNAPSHOT,
        ..small(Work::Write)
    };
    // What looking at the clock costs both sides is not in the rates.
    let timed = Load { latency: true, ..load(Work::Write, Order::Random, BLOCK, 1) };
    let flushed = Load { depth: 8, flush: true, time, requests: u64::MAX, ..scattered };
    vec![
        job("4 KiB random read, QD32", "0.95", small(Work::Read)),
        job("4 KiB random overwrite, QD32", "0.95", small(Work::Write)),
        job("1 MiB sequential read, QD4", "0.98", large(Work::Read)),
        job("1 MiB sequential write, QD4", "0.98", large(Work::Write)),
        job("4 KiB write latency, QD1, median", "+ 5 µs", timed),
        Job { snapshot: true, ..job("4 KiB random write after a snapshot, QD32", "0.85", scattered) },
        Job {
            snapshot: true,
            ..job("4 KiB write to a new block and flush, eight at once", "printed", flushed)
        },
    ]
}

/// Runs the jobs that were asked for.
pub fn run(options: &Options, report: &mut Report) -> Result<(), String> {
    let jobs: Vec<_> = jobs(options).into_iter().filter(|j| options.all.wants(j.name)).collect();
    let cold = options.all.wants("cache");
    if jobs.is_empty() && !cold {
        return Ok(());
    }
    let mut rig = Rig::new(&options.all.dir)?;
    let file = rig.dir.path().join("pool.cowslip");
    peer::prepare(&file)?;
    for job in &jobs {
        run_job(options, report, &mut rig, job)?;
    }
    if cold {
        cold_map(options, report, rig)?;
    }
    Ok(())
}

fn run_job(options: &Options, report: &mut Report, rig: &mut Rig, job: &Job) -> Result<(), String> {
    let file = rig.dir.path().join("pool.cowslip");
    report.command(&peer::command(&file, job.load).join(" ").replace(&text(&file), "POOL"));
    let mut rounds = Rounds::default();
    for round in 0..options.all.rounds {
        if job.snapshot {
            rig.delete_snapshots()?;
            rig.snapshot()?;
        }
        // By turns, and not always the same one first.
        let first = if round % 2 == 0 { None } else { Some(peer::run(&file, job.load)?) };
        let mine = drive(&rig.volume, job.load, round as u64 + 1)?;
        let peer = first.map_or_else(|| peer::run(&file, job.load), Ok)?;
        rounds.add(&mine, &peer, job.load.latency);
    }
    rounds.tell(report, job.name, job.goal, job.load.latency);
    Ok(())
}

/// What the rounds of one job gave.
#[derive(Default)]
pub struct Rounds {
    ours: Vec<f64>,
    theirs: Vec<f64>,
    ratios: Vec<f64>,
    cpu: [Vec<f64>; 2],
}

impl Rounds {
    fn add(&mut self, mine: &Outcome, peer: &Measured, latency: bool) {
        let (a, b) = if latency { (mine.percentile(0.5), peer.p50) } else { (mine.rate(), peer.rate) };
        self.ours.push(a);
        self.theirs.push(b);
        self.ratios.push(if latency { a - b } else { a / b });
        self.cpu[0].push(mine.cpu());
        self.cpu[1].push(peer.cpu);
    }

    /// A peer that tells nothing but its requests a second.
    pub fn add_rates(&mut self, mine: &Outcome, peer: f64) {
        self.ours.push(mine.rate());
        self.theirs.push(peer);
        self.ratios.push(mine.rate() / peer);
        self.cpu[0].push(mine.cpu());
    }

    pub fn tell(&self, report: &mut Report, name: &str, goal: &str, latency: bool) {
        let unit = if latency { "µs" } else { "/s" };
        let cpu = self.cpu.each_ref().map(|of| if of.is_empty() { None } else { Some(median(of)) });
        let sides = [median(&self.ours), median(&self.theirs)];
        report.row(&Row::compared(name, sides, unit, &self.ratios, cpu, goal));
    }
}

/// Random reads over a fragmented map that the cache cannot hold.
fn cold_map(options: &Options, report: &mut Report, mut rig: Rig) -> Result<(), String> {
    // Scattered writes to new blocks: after them no leaf is a run.
    rig.delete_snapshots()?;
    rig.snapshot()?;
    let time = Duration::from_secs(options.seconds);
    let every = Load {
        work: Work::Write,
        order: Order::Scattered,
        bytes: BLOCK,
        depth: 32,
        flush: false,
        latency: false,
        time: Duration::from_secs(600),
        requests: VOLUME / BLOCK,
    };
    drive(&rig.volume, every, 1)?;
    rig.pool.checkpoint().map_err(|e| e.to_string())?;
    let reads = Load { work: Work::Read, order: Order::Random, time, requests: u64::MAX, ..every };
    let file = rig.dir.path().join("pool.cowslip");
    let leaves = VOLUME / (512 * BLOCK) * 4096;
    for (factor, name, goal) in [
        (0, "4 KiB random read, QD32, fragmented map within the cache", "0.95"),
        (2, "4 KiB random read, QD32, fragmented map 2 × the cache", "0.6"),
        (10, "4 KiB random read, QD32, fragmented map 10 × the cache", "0.5"),
    ] {
        rig = rig.reopen(leaves.checked_div(factor).unwrap_or(64 << 20))?;
        drive(&rig.volume, reads, 9)?;
        let mut rounds = Rounds::default();
        for round in 0..options.all.rounds {
            rounds.add(&drive(&rig.volume, reads, round as u64 + 20)?, &peer::run(&file, reads)?, false);
        }
        rounds.tell(report, name, goal, false);
    }
    Ok(())
}
