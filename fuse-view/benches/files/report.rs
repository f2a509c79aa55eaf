//! The table.

use crate::Options;
use crate::disks::run;
use std::fmt::Write;

/// The middle one.
pub fn median(all: &[f64]) -> f64 {
    let mut sorted = all.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// The rows so far.
pub struct Report {
    rows: String,
    load: String,
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// Seconds with their unit.
fn seconds(n: f64) -> String {
    if n < 0.001 {
        format!("{:.0} µs", n * 1e6)
    } else if n < 1.0 {
        format!("{:.1} ms", n * 1e3)
    } else {
        format!("{n:.2} s")
    }
}

impl Report {
    pub fn new(options: &Options) -> Self {
        eprintln!("{} rounds", options.rounds);
        Self { rows: String::new(), load: read("/proc/loadavg") }
    }

    /// A row of times: ours, the kernel's, what others took; the ratio is the median of those of the rounds.
    pub fn times(&mut self, name: &str, ours: &[f64], kernel: &[f64], others: &str, goal: &str) {
        let ratios: Vec<f64> = ours.iter().zip(kernel).map(|(a, b)| a / b).collect();
        let ratio = if ratios.is_empty() {
            String::new()
        } else {
            let (low, high) = ratios.iter().fold((f64::MAX, f64::MIN), |(a, b), r| (a.min(*r), b.max(*r)));
            format!("**{:.2}** ({low:.2} – {high:.2})", median(&ratios))
        };
        let kernel = if kernel.is_empty() { String::new() } else { seconds(median(kernel)) };
        self.row(name, &seconds(median(ours)), &kernel, &ratio, others, goal);
    }

    /// A row of anything.
    pub fn row(&mut self, name: &str, ours: &str, kernel: &str, ratio: &str, others: &str, goal: &str) {
        let line = format!("| {name} | {ours} | {kernel} | {ratio} | {others} | {goal} |");
        println!("{line}");
        writeln!(self.rows, "{line}").expect("writes to memory");
    }

    /// Writes the page.
    pub fn finish(&self, options: &Options) -> Result<(), String> {
        let Some(path) = &options.out else { return Ok(()) };
        let cpu = read("/proc/cpuinfo");
        let model = cpu.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or("unknown");
        let output = |program: &str, args: &[&str]| run(program, args).unwrap_or_default().trim().to_owned();
        let page = format!(
            "# Benchmarks of the file view\n\n\
             Written by `make bench-files`; medians of {rounds} rounds, in which the file view and the kernel's read-only \
             mount of the same image take turns (lowest – highest ratio of a round). Cold: the system's caches were \
             dropped before. Only the ratios mean something: the machine is what it is, and was shared.\n\n\
             | | |\n|---|---|\n\
             | date | {date} |\n| cowslip | {commit} |\n| machine | {cpus} × {model} |\n| kernel | {kernel} |\n\
             | rustc | {rustc} |\n| load average, before and after | {before}; {after} |\n\n\
             | what | file view | kernel | file view ÷ kernel | others | goal |\n|---|---|---|---|---|---|\n{rows}",
            rounds = options.rounds,
            date = output("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
            commit = output("git", &["rev-parse", "--short", "HEAD"]),
            cpus = std::thread::available_parallelism().map_or(0, usize::from),
            model = model.trim_start_matches(['\t', ' ', ':']),
            kernel = read("/proc/sys/kernel/osrelease"),
            rustc = output("rustc", &["--version"]),
            before = self.load,
            after = read("/proc/loadavg"),
            rows = self.rows,
        );
        std::fs::write(path, page).map_err(|e| format!("{}: {e}", path.display()))
    }
}
