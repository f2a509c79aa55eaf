//! The peer: fio with io_uring and direct I/O, on its own part of the pool's file.

use crate::rig::{Load, Order, PEER_AT, VOLUME, Work};
use std::path::Path;
use std::process::Command;

/// The command for a load on `file`.
pub fn command(file: &Path, load: Load) -> Vec<String> {
    let rw = match (load.order, load.work) {
        (Order::Sequential, Work::Read) => "read",
        (Order::Sequential, Work::Write) => "write",
        (_, Work::Read) => "randread",
        (_, Work::Write) => "randwrite",
    };
    let mut all = vec![
        "fio".to_owned(),
        "--name=peer".into(),
        format!("--filename={}", file.display()),
        format!("--offset={PEER_AT}"),
        format!("--size={VOLUME}"),
        "--ioengine=io_uring".into(),
        "--direct=1".into(),
        format!("--rw={rw}"),
        format!("--bs={}", load.bytes),
        "--randrepeat=0".into(),
        "--output-format=json".into(),
    ];
    all.extend(match load.latency {
        true => vec!["--clat_percentiles=0".to_owned(), "--lat_percentiles=1".into()],
        false => vec!["--gtod_reduce=1".to_owned()],
    });
    if load.flush {
        // Each of them waits for its own.
        let jobs = format!("--numjobs={}", load.depth);
        all.extend(["--iodepth=1".into(), "--fdatasync=1".into(), jobs, "--group_reporting".into()]);
    } else {
        all.push(format!("--iodepth={}", load.depth));
    }
    if load.order == Order::Random {
        all.push("--norandommap".into());
    }
    if load.requests == u64::MAX {
        all.extend(["--time_based".to_owned(), format!("--runtime={}", load.time.as_secs())]);
    } else {
        all.push(format!("--io_size={}", load.requests * load.bytes));
    }
    all
}

/// What fio did.
pub struct Measured {
    pub rate: f64,
    /// Median of the latency, submission included, in microseconds; not a number where nobody looked at the clock.
    pub p50: f64,
    /// Processor time of a request in microseconds.
    pub cpu: f64,
}

/// Runs fio.
pub fn run(file: &Path, load: Load) -> Result<Measured, String> {
    let command = command(file, load);
    let out = Command::new(&command[0])
        .args(&command[1..])
        .output()
        .map_err(|e| format!("{}: {e}; the benchmarks need fio (apt-get install fio)", command[0]))?;
    if !out.status.success() {
        return Err(format!("{}: {}", command.join(" "), String::from_utf8_lossy(&out.stderr)));
    }
    let text = String::from_utf8_lossy(&out.stdout);
    // Warnings may come before the object.
    let json = text.find('{').map_or("", |at| &text[at..]);
    let json: serde_json::Value = serde_json::from_str(json).map_err(|e| format!("fio's output: {e}"))?;
    let side = if load.work == Work::Read { "read" } else { "write" };
    let job = &json["jobs"][0][side];
    let number = |v: &serde_json::Value| v.as_f64().ok_or("fio's output lacks a figure".to_owned());
    let p50 = match load.latency {
        true => number(&job["lat_ns"]["percentile"]["50.000000"])? / 1000.0,
        false => f64::NAN,
    };
    let all = &json["jobs"][0];
    let busy = (number(&all["usr_cpu"])? + number(&all["sys_cpu"])?) / 100.0;
    let cpu = busy * number(&job["runtime"])? * 1000.0 / number(&job["total_ios"])?;
    Ok(Measured { rate: number(&job["iops"])?, p50, cpu })
}

/// Writes the peer's part once, so that both sides overwrite what the disk already holds.
pub fn prepare(file: &Path) -> Result<(), String> {
    let whole = Load {
        work: Work::Write,
        order: Order::Sequential,
        bytes: 1 << 20,
        depth: 4,
        flush: false,
        latency: false,
        time: std::time::Duration::ZERO,
        requests: VOLUME >> 20,
    };
    run(file, whole).map(drop)
}
