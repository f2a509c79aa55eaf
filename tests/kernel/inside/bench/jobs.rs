//! What is measured, by fio.

use integration_tests::rig::{ended, host_tool};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::path::{Path, PathBuf};

/// What of fio's figures counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Requests a second.
    Rate,
    /// Microseconds from the request to its answer, median.
    Latency,
    /// MiB a second.
    Bandwidth,
}

pub struct Job {
    pub name: &'static str,
    pub options: &'static str,
    pub unit: Unit,
}

const fn job(name: &'static str, options: &'static str, unit: Unit) -> Job {
    Job { name, options, unit }
}

pub const JOBS: [Job; 7] = [
    job("4 KiB random read, QD32", "rw=randread bs=4k iodepth=32", Unit::Rate),
    job("4 KiB overwrite, QD32", "rw=randwrite bs=4k iodepth=32", Unit::Rate),
    job("4 KiB mixed, 70 % reads, QD32", "rw=randrw rwmixread=70 bs=4k iodepth=32", Unit::Rate),
    job("4 KiB random read, QD1", "rw=randread bs=4k iodepth=1", Unit::Latency),
    job("4 KiB overwrite, QD1", "rw=randwrite bs=4k iodepth=1", Unit::Latency),
    job("1 MiB sequential read, QD4", "rw=read bs=1m iodepth=4", Unit::Bandwidth),
    job("1 MiB sequential write, QD4", "rw=write bs=1m iodepth=4", Unit::Bandwidth),
];

/// Of those that have snapshots; others have the overwrite to compare with.
pub const AFTER_SNAPSHOT: Job =
    job("4 KiB write after a snapshot, QD32", "rw=randwrite bs=4k iodepth=32", Unit::Rate);

/// What fio has in common for all of them: each processor has a thread of its own, and by that a queue.
pub fn common(milliseconds: u32, threads: impl Display) -> String {
    format!(
        "ioengine=io_uring direct=1 thread=1 norandommap=1 randrepeat=0 clat_percentiles=0 lat_percentiles=1 \
         time_based=1 runtime={milliseconds}ms numjobs={threads} group_reporting=1 stonewall"
    )
}

pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// One fio for all of it, one job after the other; a figure for each.
pub fn run(place: &Path, jobs: &[(&Job, &PathBuf)], milliseconds: u32) -> Vec<f64> {
    let mut file = format!("[global]\n{}\n", common(milliseconds, processors()).replace(' ', "\n"));
    for (number, (job, path)) in jobs.iter().enumerate() {
        let options = job.options.replace(' ', "\n");
        write!(file, "[{number}]\nfilename={}\n{options}\n", path.display()).expect("memory takes it");
    }
    let path = place.join("jobs.fio");
    std::fs::write(&path, file).expect("the directory is writable");
    let ended = ended(host_tool("fio").arg("--output-format=json").arg(&path)).with(0);
    let from = ended.stdout.find('{').expect("fio answers in JSON");
    let output: Value = serde_json::from_str(&ended.stdout[from..]).expect("fio answers in JSON");
    let results = output["jobs"].as_array().expect("fio tells of each job");
    let named: BTreeMap<&str, &Value> =
        results.iter().filter_map(|result| Some((result["jobname"].as_str()?, result))).collect();
    let figure = |(number, (job, _)): (usize, &(&Job, &PathBuf))| {
        let result = named[number.to_string().as_str()];
        assert_eq!(result["error"], 0, "{}: {result}", job.name);
        figure(job.unit, result)
    };
    jobs.iter().enumerate().map(figure).collect()
}

fn figure(unit: Unit, result: &Value) -> f64 {
    let sides = || ["read", "write"].into_iter().map(|side| &result[side]);
    let sum = |what: &str| sides().filter_map(|side| side[what].as_f64()).sum::<f64>();
    match unit {
        Unit::Rate => sum("iops"),
        Unit::Bandwidth => sum("bw") / 1024.0,
        Unit::Latency => {
            let median = |side: &Value| side["lat_ns"]["percentile"]["50.000000"].as_f64();
            sides().find_map(median).expect("fio tells the median") / 1000.0
        }
    }
}
