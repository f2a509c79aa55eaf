//! The table.

use crate::bench::{Options, Table, median, spread};

const COLUMNS: [&str; 7] =
    ["what", "file view", "kernel", "file view ÷ kernel", "without a worker", "others", "goal"];

/// The rows so far.
pub struct Report(Table);

/// What a row of times compares: ours, ours without a worker, the kernel's.
#[derive(Default)]
pub struct Times {
    pub worker: Vec<f64>,
    pub here: Vec<f64>,
    pub kernel: Vec<f64>,
}

/// The median, if there is one.
fn middle(all: &[f64]) -> String {
    if all.is_empty() { String::new() } else { seconds(median(all)) }
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
        Self(Table::new())
    }

    /// A row of times, what others took besides; the ratio is the median of those of the rounds.
    pub fn times(&mut self, name: &str, times: &Times, others: &str, goal: &str) {
        let ratios: Vec<f64> = times.worker.iter().zip(&times.kernel).map(|(a, b)| a / b).collect();
        let ratio = if ratios.is_empty() { String::new() } else { spread(&ratios) };
        let [worker, here, kernel] = [&times.worker, &times.here, &times.kernel].map(|all| middle(all));
        self.row(&[name, &worker, &kernel, &ratio, &here, others, goal]);
    }

    /// A row of anything.
    pub fn row(&mut self, cells: &[&str; COLUMNS.len()]) {
        self.0.row(cells);
    }

    /// Writes the page.
    pub fn finish(&self, options: &Options) -> Result<(), String> {
        self.0.some()?;
        let Some(path) = &options.out else { return Ok(()) };
        let intro = format!(
            "Written by `make bench-files`; medians of {} rounds, in which the file view and the kernel's read-only \
             mount of the same image take turns (lowest – highest ratio of a round). Cold: the system's caches were \
             dropped before. The file view reads in a process of its own, as the agent and the commands do, and that is \
             started within the time; what the same takes without one is beside it. Others are \
             timed cold, too, where they are installed; xfs-fuse 0.7.1 and btrfs-fuse 0.13 come by `cargo install`, the \
             former wants libfuse3-dev. Only the ratios mean something: the machine is what it is, and was shared.",
            options.rounds,
        );
        let page = self.0.page("Benchmarks of the file view", &intro, &[], &COLUMNS);
        std::fs::write(path, page).map_err(|e| format!("{}: {e}", path.display()))
    }
}
