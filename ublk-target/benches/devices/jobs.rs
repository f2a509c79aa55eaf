//! fio on all sides by turns.

use crate::Options;
use crate::bench::{Table, median, run as program, spread};
use crate::sides::{Plain, Qcow2, Side, Volume};
use std::path::Path;

const SIZE: u64 = 1 << 30;

struct Job {
    name: &'static str,
    words: &'static [&'static str],
    /// Requests, or else MiB, a second are counted.
    requests: bool,
    /// Every block once, after a snapshot.
    snapshot: bool,
    /// Over the kernel's loop device.
    goal: &'static str,
}

const JOBS: [Job; 5] = [
    Job {
        name: "4 KiB random read, QD32",
        words: &["--rw=randread", "--bs=4k", "--iodepth=32", "--norandommap"],
        requests: true,
        snapshot: false,
        goal: "0.5",
    },
    Job {
        name: "4 KiB random overwrite, QD32",
        words: &["--rw=randwrite", "--bs=4k", "--iodepth=32", "--norandommap"],
        requests: true,
        snapshot: false,
        goal: "0.5",
    },
    Job {
        name: "1 MiB sequential read, QD8",
        words: &["--rw=read", "--bs=1m", "--iodepth=8"],
        requests: false,
        snapshot: false,
        goal: "0.9",
    },
    Job {
        name: "1 MiB sequential write, QD8",
        words: &["--rw=write", "--bs=1m", "--iodepth=8"],
        requests: false,
        snapshot: false,
        goal: "0.9",
    },
    Job {
        name: "4 KiB random write after a snapshot, QD32 (the kernel's loop has none)",
        words: &["--rw=randwrite", "--bs=4k", "--iodepth=32"],
        requests: true,
        snapshot: true,
        goal: "0.5",
    },
];

/// Bytes written by one round after a snapshot.
const AFTER_SNAPSHOT: u64 = 60_000 * 4096;

fn fio(device: &Path, words: &[&str]) -> Result<Vec<f64>, String> {
    let file = format!("--filename={}", device.display());
    let size = format!("--size={SIZE}");
    let common = ["--name=b", &file, &size, "--direct=1", "--ioengine=libaio", "--randrepeat=0", "--minimal"];
    let out = program("fio", &[&common, words].concat())?;
    // Warnings may come before the line.
    let line = out.lines().rfind(|line| line.starts_with("3;")).ok_or(format!("fio tells nothing: {out}"))?;
    Ok(line.split(';').map(|field| field.parse().unwrap_or(0.0)).collect())
}

/// Requests or MiB a second.
fn measure(device: &Path, job: &Job, seconds: u64) -> Result<f64, String> {
    let limit = if job.snapshot {
        vec![format!("--io_size={AFTER_SNAPSHOT}")]
    } else {
        vec!["--time_based".into(), format!("--runtime={seconds}")]
    };
    let limit: Vec<&str> = limit.iter().map(String::as_str).collect();
    let fields = fio(device, &[job.words, &limit].concat())?;
    // Terse version 3: bandwidth in KiB/s and requests/s of reads, then of writes.
    Ok(if job.requests { fields[7] + fields[48] } else { (fields[6] + fields[47]) / 1024.0 })
}

/// Runs the jobs that were asked for.
pub fn run(options: &Options, table: &mut Table) -> Result<(), String> {
    let jobs: Vec<_> = JOBS.iter().filter(|job| options.all.wants(job.name)).collect();
    if jobs.is_empty() {
        return Ok(());
    }
    let dir = &options.all.dir;
    let mut sides: [Box<dyn Side>; 3] = [
        Box::new(Volume::new(dir, SIZE)?),
        Box::new(Plain::new(dir, SIZE)?),
        Box::new(Qcow2::new(dir, SIZE)?),
    ];
    for side in &sides {
        fio(&side.device(), &["--rw=write", "--bs=1m", "--iodepth=4"])?;
    }
    for job in jobs {
        let mut figures: [Vec<f64>; 3] = Default::default();
        for round in 0..options.all.rounds {
            // By turns, and not always the same one first.
            for n in 0..sides.len() {
                let at = (n + round) % sides.len();
                if job.snapshot {
                    sides[at].snapshot()?;
                }
                figures[at].push(measure(&sides[at].device(), job, options.seconds)?);
            }
        }
        tell(table, job, &figures);
    }
    Ok(())
}

fn tell(table: &mut Table, job: &Job, [ours, kernel, qcow2]: &[Vec<f64>; 3]) {
    let unit = if job.requests { "/s" } else { "MiB/s" };
    let figure = |of: &[f64]| format!("{:.0} {unit}", median(of));
    let over = |peer: &[f64]| spread(&ours.iter().zip(peer).map(|(a, b)| a / b).collect::<Vec<_>>());
    table.row(&[
        job.name,
        &figure(ours),
        &figure(kernel),
        &over(kernel),
        job.goal,
        &figure(qcow2),
        &over(qcow2),
    ]);
}
