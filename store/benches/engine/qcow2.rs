//! The same jobs on a qcow2 image beside the pool, by `qemu-img bench`: before its first snapshot, and after one.
//!
//! qemu knows no random order, but a step: both sides take every block once, in strides that look random.

use crate::Options;
use crate::bench::{run as program, text};
use crate::jobs::Rounds;
use crate::report::Report;
use crate::rig::{BLOCK, Load, Order, Rig, VOLUME, Work, drive, rate};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Odd, so that no block comes twice, and about the golden section of the volume.
const STRIDE: u64 = 162_013;

struct Job {
    name: &'static str,
    work: Work,
    bytes: u64,
    depth: usize,
    requests: u64,
    snapshot: bool,
}

const BLOCKS: u64 = VOLUME / BLOCK;
const JOBS: [Job; 5] = [
    Job {
        name: "4 KiB read, QD32",
        work: Work::Read,
        bytes: BLOCK,
        depth: 32,
        requests: BLOCKS,
        snapshot: false,
    },
    Job {
        name: "4 KiB overwrite, QD32",
        work: Work::Write,
        bytes: BLOCK,
        depth: 32,
        requests: BLOCKS,
        snapshot: false,
    },
    Job {
        name: "1 MiB read, QD4",
        work: Work::Read,
        bytes: 1 << 20,
        depth: 4,
        requests: 4096,
        snapshot: false,
    },
    Job {
        name: "1 MiB write, QD4",
        work: Work::Write,
        bytes: 1 << 20,
        depth: 4,
        requests: 4096,
        snapshot: false,
    },
    Job {
        name: "4 KiB write after a snapshot, QD32",
        work: Work::Write,
        bytes: BLOCK,
        depth: 32,
        requests: BLOCKS / 4,
        snapshot: true,
    },
];

/// Runs the jobs that were asked for.
pub fn run(options: &Options, report: &mut Report) -> Result<(), String> {
    let named = |job: &Job| format!("against qcow2: {}", job.name);
    let jobs: Vec<_> = JOBS.iter().filter(|job| options.all.wants(&named(job))).collect();
    if jobs.is_empty() {
        return Ok(());
    }
    let mut rig = Rig::new(&options.all.dir)?;
    let mut image = Image::new(rig.dir.path())?;
    for job in jobs {
        let mut rounds = Rounds::default();
        for round in 0..options.all.rounds {
            if job.snapshot {
                rig.delete_snapshots()?;
                rig.snapshot()?;
                image.snapshot()?;
            }
            let theirs_first = round % 2 != 0;
            let before = if theirs_first { Some(image.bench(job)?) } else { None };
            let mine = drive(&rig.volume, job.load(), round as u64 + 1)?;
            let peer = before.map_or_else(|| image.bench(job), Ok)?;
            rounds.add_rates(&mine, peer);
        }
        report.command(&format!("qemu-img {}", job.words("IMAGE").join(" ")));
        rounds.tell(report, &named(job), "", false);
    }
    Ok(())
}

impl Job {
    fn load(&self) -> Load {
        let order = if self.bytes == BLOCK { Order::Scattered } else { Order::Sequential };
        let time = Duration::from_secs(600);
        Load {
            work: self.work,
            order,
            bytes: self.bytes,
            depth: self.depth,
            flush: false,
            latency: false,
            time,
            requests: self.requests,
        }
    }

    fn words(&self, image: &str) -> Vec<String> {
        let step = if self.bytes == BLOCK { STRIDE * BLOCK } else { self.bytes };
        let mut words: Vec<String> =
            ["bench", "-f", "qcow2", "-t", "none", "-i", "io_uring"].map(Into::into).into();
        for (option, value) in
            [("-c", self.requests), ("-d", self.depth as u64), ("-s", self.bytes), ("-S", step)]
        {
            words.extend([option.to_owned(), value.to_string()]);
        }
        if self.work == Work::Write {
            words.extend(["-w".to_owned(), "--pattern=85".to_owned()]);
        }
        words.push(image.to_owned());
        words
    }
}

/// A qcow2 image that was written once from begin to end.
struct Image {
    path: PathBuf,
    snapshots: u64,
}

impl Image {
    fn new(dir: &Path) -> Result<Self, String> {
        let image = Self { path: dir.join("peer.qcow2"), snapshots: 0 };
        image.tool(&["create", "-q", "-f", "qcow2"], &[&VOLUME.to_string()])?;
        let whole = Job { requests: VOLUME >> 20, ..JOBS[3] };
        image.bench(&whole)?;
        Ok(image)
    }

    fn tool(&self, before: &[&str], after: &[&str]) -> Result<String, String> {
        program("qemu-img", &[before, &[&text(&self.path)], after].concat())
            .map_err(|e| format!("{e}; `setup/run bench` installs it"))
    }

    /// In place of the last one.
    fn snapshot(&mut self) -> Result<(), String> {
        if self.snapshots > 0 {
            self.tool(&["snapshot", "-d", &self.snapshots.to_string()], &[])?;
        }
        self.snapshots += 1;
        self.tool(&["snapshot", "-c", &self.snapshots.to_string()], &[]).map(drop)
    }

    /// Requests a second.
    fn bench(&self, job: &Job) -> Result<f64, String> {
        let words = job.words(&text(&self.path));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let out = program("qemu-img", &words)?;
        // "Run completed in 1.234 seconds."
        let seconds = out.split("completed in ").nth(1).and_then(|rest| rest.split(' ').next());
        let seconds: f64 =
            seconds.and_then(|n| n.parse().ok()).ok_or(format!("qemu-img tells no time: {out}"))?;
        Ok(rate(job.requests, seconds))
    }
}
