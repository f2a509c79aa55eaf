//! The table.

use crate::Options;
use crate::bench::{Table, said, spread, text};

/// What else is measured, and where it stands.
const OTHER_PAGES: &str = "Other pages: [volumes over ublk](benchmarks-kernel.md), [volumes through FUSE + loop, and PostgreSQL]\
    (benchmarks-devices.md), [the file view](benchmarks-files.md), [Kubernetes](benchmarks-kubernetes.md).";

/// A line of the table.
pub struct Row {
    name: String,
    ours: String,
    theirs: String,
    ratio: String,
    cpu: String,
    goal: String,
}

fn figure(n: f64, unit: &str) -> String {
    let text = if n >= 1000.0 { format!("{n:.0}") } else { format!("{n:.2}") };
    format!("{text} {unit}").trim_end().to_owned()
}

impl Row {
    /// With a peer; the ratios are those of the rounds, each of two neighbours in time.
    pub fn compared(
        name: &str,
        [ours, theirs]: [f64; 2],
        unit: &str,
        ratios: &[f64],
        cpu: [Option<f64>; 2],
        goal: &str,
    ) -> Self {
        Self {
            name: name.to_owned(),
            ours: figure(ours, unit),
            theirs: figure(theirs, unit),
            cpu: cpu.map(|of| of.map_or("?".into(), |n| format!("{n:.1}"))).join("; "),
            ratio: spread(ratios),
            goal: goal.to_owned(),
        }
    }

    /// Without a peer.
    pub fn alone(name: &str, ours: f64, unit: &str, goal: &str) -> Self {
        Self {
            name: name.to_owned(),
            ours: figure(ours, unit),
            theirs: String::new(),
            ratio: String::new(),
            cpu: String::new(),
            goal: goal.to_owned(),
        }
    }
}

/// The rows so far, and what else the page says.
pub struct Report {
    table: Table,
    commands: Vec<String>,
}

impl Report {
    pub fn new(options: &Options) -> Self {
        eprintln!("{} rounds of {} s a side", options.all.rounds, options.seconds);
        Self { table: Table::new(), commands: Vec::new() }
    }

    /// Remembers how a peer was called.
    pub fn command(&mut self, line: &str) {
        if !self.commands.iter().any(|known| known == line) {
            self.commands.push(line.to_owned());
        }
    }

    pub fn row(&mut self, row: &Row) {
        let Row { name, ours, theirs, ratio, cpu, goal } = row;
        self.table.row(&[name, ours, theirs, ratio, cpu, goal]);
    }

    /// Prints the peers' commands and writes the page.
    pub fn finish(&self, options: &Options) -> Result<(), String> {
        self.table.some()?;
        let commands = self.commands.join("\n");
        println!("\n{commands}");
        let Some(path) = &options.all.out else { return Ok(()) };
        let intro = format!(
            "Written by `make bench`; {} rounds of {} s a side, the store and its peer by turns, medians \
             (lowest – highest ratio of a round; of latencies the difference). The peer is fio unless the row names it. \
             Only the ratios mean something: the machine is what it is, and was shared.\n\n{OTHER_PAGES}",
            options.all.rounds, options.seconds,
        );
        let disk = said("findmnt", &["-no", "FSTYPE,OPTIONS,SIZE", "-T", &text(&options.all.dir)]);
        let qemu = said("qemu-img", &["--version"]);
        let facts = [("file system, disk", disk), ("fio", said("fio", &["--version"])), ("qemu", qemu)];
        let columns =
            ["what", "store", "peer", "store ÷ peer", "µs of a CPU a request: store; peer", "at least"];
        let page = self.table.page("Benchmarks of the store", &intro, &facts, &columns);
        let page = format!(
            "{page}\nThe peers' commands: fio on its own part of the pool's file, qemu on an image beside it; each has written all \
             of it once before:\n\n\
             ```\n{commands}\n```\n"
        );
        std::fs::write(path, page).map_err(|e| format!("{}: {e}", path.display()))
    }
}
