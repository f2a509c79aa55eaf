//! The table.

use crate::bench::{Options, Table, median, spread};

/// The rows so far.
pub struct Report(Table);

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

    /// A row of times: ours, the kernel's, what others took; the ratio is the median of those of the rounds.
    pub fn times(&mut self, name: &str, ours: &[f64], kernel: &[f64], others: &str, goal: &str) {
        let ratios: Vec<f64> = ours.iter().zip(kernel).map(|(a, b)| a / b).collect();
        let ratio = if ratios.is_empty() { String::new() } else { spread(&ratios) };
        let kernel = if kernel.is_empty() { String::new() } else { seconds(median(kernel)) };
        self.row(name, &seconds(median(ours)), &kernel, &ratio, others, goal);
    }

    /// A row of anything.
    pub fn row(&mut self, name: &str, ours: &str, kernel: &str, ratio: &str, others: &str, goal: &str) {
        self.0.row(&[name, ours, kernel, ratio, others, goal]);
    }

    /// Writes the page.
    pub fn finish(&self, options: &Options) -> Result<(), String> {
        let Some(path) = &options.out else { return Ok(()) };
        let intro = format!(
            "Written by `make bench-files`; medians of {} rounds, in which the file view and the kernel's read-only \
             mount of the same image take turns (lowest – highest ratio of a round). Cold: the system's caches were \
             dropped before. Only the ratios mean something: the machine is what it is, and was shared.",
            options.rounds,
        );
        let columns = ["what", "file view", "kernel", "file view ÷ kernel", "others", "goal"];
        let page = self.0.page("Benchmarks of the file view", &intro, &[], &columns);
        std::fs::write(path, page).map_err(|e| format!("{}: {e}", path.display()))
    }
}
