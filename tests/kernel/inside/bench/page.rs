//! The figures as a page.

use super::jobs::{self, AFTER_SNAPSHOT, JOBS, Job, Unit, processors};
use super::{OURS, PEERS};
use std::fmt::Write as _;

/// The figures of one job: of each that was measured, one a round.
pub type Figures = Vec<Vec<f64>>;

/// What ours must be at least, by the peer's name: of 4 KiB random read, overwrite and write after a snapshot, and of
/// both of 1 MiB.
const GOALS: [(&str, [Option<f64>; 4]); 4] = [
    ("rublk loop", [Some(1.0), Some(1.0), Some(0.9), Some(1.0)]),
    ("rublk qcow2", [Some(1.3), Some(1.3), Some(1.3), None]),
    ("dm-thin on files", [Some(1.0), Some(1.0), Some(1.3), None]),
    ("dm-thin on a disk", [Some(1.0), Some(1.0), Some(1.3), None]),
];

fn goal(peer: &str, job: &Job) -> Option<f64> {
    let (_, goals) = GOALS.iter().find(|(name, _)| *name == peer)?;
    let column = match job.name {
        name if name == JOBS[0].name => 0,
        name if name == JOBS[1].name => 1,
        name if name == AFTER_SNAPSHOT.name => 2,
        _ if job.unit == Unit::Bandwidth => 3,
        _ => return None,
    };
    goals[column]
}

fn median(of: &[f64]) -> f64 {
    let mut sorted = of.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// How many times as fast ours was: round by round, for the two of a round met the same machine.
fn ratios(job: &Job, ours: &[f64], theirs: &[f64]) -> Vec<f64> {
    let pairs = ours.iter().zip(theirs);
    pairs
        .map(|(ours, theirs)| if job.unit == Unit::Latency { theirs / ours } else { ours / theirs })
        .collect()
}

fn row(page: &mut String, first: &str, cells: impl Iterator<Item = String>) {
    writeln!(page, "| {first} | {} |", cells.collect::<Vec<_>>().join(" | ")).expect("memory takes it");
}

fn head(page: &mut String, first: &str) {
    row(page, first, PEERS.iter().map(|peer| (*peer).to_owned()));
    row(page, "---", PEERS.iter().map(|_| "---:".to_owned()));
}

/// Both tables. `after`: of the write after a snapshot, where those without snapshots have their overwrites.
pub fn tables(figures: &[Figures], after: &Figures) -> String {
    let all: Vec<(&Job, &Figures)> = JOBS.iter().zip(figures).chain([(&AFTER_SNAPSHOT, after)]).collect();
    let mut page = String::new();
    head(&mut page, "median");
    for (job, figures) in &all {
        let unit = match job.unit {
            Unit::Rate => "requests/s",
            Unit::Latency => "µs",
            Unit::Bandwidth => "MiB/s",
        };
        row(&mut page, &format!("{}, {unit}", job.name), figures.iter().map(|f| format!("{:.0}", median(f))));
    }
    page.push('\n');
    head(&mut page, "Cowslip, times as fast as");
    for (job, figures) in &all {
        let cells = PEERS.iter().zip(*figures).enumerate().map(|(at, (peer, theirs))| {
            if at == OURS {
                return "1".into();
            }
            let ratios = ratios(job, &figures[OURS], theirs);
            let low = ratios.iter().copied().fold(f64::MAX, f64::min);
            let high = ratios.iter().copied().fold(f64::MIN, f64::max);
            let mark = match goal(peer, job) {
                Some(goal) if median(&ratios) < goal => format!(" **< {goal}**"),
                Some(goal) => format!(" ≥ {goal}"),
                None => String::new(),
            };
            format!("{:.2} ({low:.2} – {high:.2}){mark}", median(&ratios))
        });
        row(&mut page, job.name, cells);
    }
    page
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| "unknown".into())
}

/// What one boot found.
pub fn section(tables: &str) -> String {
    let cpus = processors();
    let (queues, processors) = match cpus {
        1 => ("One queue", "processor"),
        _ => ("A queue for each processor", "processors"),
    };
    format!(
        "## {queues}\n{cpus} {processors}, and so many queues of each device (rublk's qcow2 has one), and threads of fio with the queue depth of the row each.\n\n{tables}\n"
    )
}

/// The page that the sections follow.
pub fn page(rounds: u32, milliseconds: u32) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let options: String = JOBS.iter().map(|job| format!("{}: {}\n", job.name, job.options)).collect();
    format!(
        "# Volumes over ublk beside their peers\n\n\
         Written by `make bench-kernel`: one boot of the test kernel (User Mode Linux) for each number of processors, {rounds} rounds in each; in \
         a round each job goes over all devices, {milliseconds} ms each. Medians; ratios are those of the rounds (lowest – highest). Only ratios \
         mean something: system calls and wake-ups are dearer in this kernel than on a machine.\n\n\
         | | |\n|---|---|\n| date | {date} |\n| cowslip | {commit}, release build |\n| machine | {machine} |\n\
         | host's kernel | {host} |\n| kernel | {kernel} |\n| fio | {fio} |\n| rublk | {rublk} |\n\n\
         Everything lies on one ext4 on one disk of that kernel: *plain file*; *kernel loop* over such a file, with direct I/O; *Cowslip*, a volume of a \
         pool in a directory, served by the agent; *rublk* 0.2.15 of crates.io over such a file (`add loop`, also with \
         `--zero-copy`, and `add qcow2`); *dm-thin* with chunks of 64 KiB, not zeroed, on kernel loop devices over such files. *On a disk*: \
         dm-thin on disks of its own, without the file system and the loop devices. Each device has 512 MiB and was written once. Volumes \
         and thin devices are new in each round. Where there are no snapshots, the write after a snapshot is compared with the overwrite.\n\n\
         `≥`, `<`: what is to be reached at least.\n\nfio's options, after `{common}`:\n\n```\n{options}```\n\n",
        date = variable("COWSLIP_BENCH_DATE"),
        commit = variable("COWSLIP_BENCH_COMMIT"),
        machine = variable("COWSLIP_BENCH_MACHINE"),
        host = variable("COWSLIP_BENCH_HOST"),
        rublk = variable("COWSLIP_BENCH_RUBLK"),
        fio = variable("COWSLIP_BENCH_FIO"),
        kernel = read("/proc/sys/kernel/osrelease"),
        common = jobs::common(milliseconds, "PROCESSORS"),
    )
}
