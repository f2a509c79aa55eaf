//! The table.

use crate::Options;
use std::fmt::Write;

/// The middle one.
pub fn median(all: &[f64]) -> f64 {
    let mut sorted = all.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

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
        cpu: [f64; 2],
        goal: &str,
    ) -> Self {
        let (low, high) = ratios.iter().fold((f64::MAX, f64::MIN), |(a, b), r| (a.min(*r), b.max(*r)));
        Self {
            name: name.to_owned(),
            ours: figure(ours, unit),
            theirs: figure(theirs, unit),
            cpu: format!("{:.1}; {:.1}", cpu[0], cpu[1]),
            ratio: format!("**{:.2}** ({low:.2} – {high:.2})", median(ratios)),
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
    rows: String,
    commands: Vec<String>,
    load: String,
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn output(program: &str, args: &[&str]) -> String {
    let out = std::process::Command::new(program).args(args).output();
    out.map_or(String::new(), |o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
}

impl Report {
    pub fn new(options: &Options) -> Self {
        eprintln!("{} rounds of {} s a side", options.rounds, options.seconds);
        Self { rows: String::new(), commands: Vec::new(), load: read("/proc/loadavg") }
    }

    /// Remembers how the peer was called.
    pub fn command(&mut self, words: &[String]) {
        let file = words.iter().find(|w| w.starts_with("--filename=")).cloned().unwrap_or_default();
        let line = words.join(" ").replace(&file, "--filename=POOL");
        if !self.commands.contains(&line) {
            self.commands.push(line);
        }
    }

    pub fn row(&mut self, row: &Row) {
        let Row { name, ours, theirs, ratio, cpu, goal } = row;
        let line = format!("| {name} | {ours} | {theirs} | {ratio} | {cpu} | {goal} |");
        println!("{line}");
        writeln!(self.rows, "{line}").expect("writes to memory");
    }

    /// Prints the peers' commands and writes the page.
    pub fn finish(&self, options: &Options) -> Result<(), String> {
        let commands = self.commands.join("\n");
        println!("\n{commands}");
        let Some(path) = &options.out else { return Ok(()) };
        let cpu = read("/proc/cpuinfo");
        let model = cpu.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or("unknown");
        let memory = read("/proc/meminfo").lines().next().unwrap_or_default().replace("MemTotal:", "");
        let page = format!(
            "# Benchmarks of the store\n\n\
             Written by `make bench`; {rounds} rounds of {seconds} s a side, the store and its peer by turns, medians \
             (lowest – highest ratio of a round). Only the ratios mean something: the machine is what it is, and was \
             shared.\n\n\
             | | |\n|---|---|\n\
             | date | {date} |\n| cowslip | {commit} |\n| machine | {cpus} ×{model}, {memory} |\n\
             | kernel | {kernel} |\n| file system, disk | {disk} |\n| fio | {fio} |\n| rustc | {rustc} |\n\
             | load average, before and after | {before}; {after} |\n\n\
             | what | store | fio | store ÷ fio | µs of a CPU a request: store; fio | at least |\n|---|---|---|---|---|---|\n{rows}\n\
             The peer's commands, on its own part of the pool's file (which it has written once):\n\n\
             ```\n{commands}\n```\n",
            rounds = options.rounds,
            seconds = options.seconds,
            date = output("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
            commit = output("git", &["rev-parse", "--short", "HEAD"]),
            cpus = std::thread::available_parallelism().map_or(0, usize::from),
            model = model.trim_start_matches(['\t', ' ', ':']),
            memory = memory.trim(),
            kernel = read("/proc/sys/kernel/osrelease"),
            disk = output("findmnt", &["-no", "FSTYPE,OPTIONS,SIZE", "-T", &options.dir.to_string_lossy()]),
            fio = output("fio", &["--version"]),
            rustc = output("rustc", &["--version"]),
            before = self.load,
            after = read("/proc/loadavg"),
            rows = self.rows,
        );
        std::fs::write(path, page).map_err(|e| format!("{}: {e}", path.display()))
    }
}
