//! What the benchmarks of all crates do alike: options, medians, the table and the head of their page. They include this file by its path.
#![allow(dead_code)] // not each of them needs all of it

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What every benchmark can be asked for.
pub struct Options {
    /// Where it makes its files.
    pub dir: PathBuf,
    /// The page to write.
    pub out: Option<PathBuf>,
    /// Rounds of each row.
    pub rounds: usize,
    /// A part of the rows' names.
    pub only: String,
}

/// What follows an option on the command line.
pub type Value<'a> = &'a mut dyn FnMut() -> Result<String, String>;

impl Options {
    /// Reads the command line. `own` knows the options that this benchmark alone has, and answers false to others.
    pub fn parse(
        usage: &str,
        dir: PathBuf,
        mut own: impl FnMut(&str, Value<'_>) -> Result<bool, String>,
    ) -> Result<Self, String> {
        let mut options = Self { dir, out: None, rounds: 5, only: String::new() };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value\n{usage}"));
            match arg.as_str() {
                // What cargo itself adds.
                "--bench" => {}
                "--dir" => options.dir = value()?.into(),
                "--out" => options.out = Some(value()?.into()),
                "--rounds" => options.rounds = number::<usize>(&value()?)?.max(1),
                "--only" => options.only = value()?,
                _ if own(&arg, &mut value)? => {}
                _ => return Err(format!("{arg} is not known\n{usage}")),
            }
        }
        Ok(options)
    }

    /// Whether the row was asked for.
    pub fn wants(&self, name: &str) -> bool {
        name.contains(&self.only)
    }
}

/// The number that an option was given.
pub fn number<N: std::str::FromStr<Err = std::num::ParseIntError>>(text: &str) -> Result<N, String> {
    text.parse().map_err(|e| format!("{text}: {e}"))
}

/// Runs a benchmark; what it could not do is told.
pub fn main(run: impl FnOnce() -> Result<(), String>) -> std::process::ExitCode {
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            std::process::ExitCode::FAILURE
        }
    }
}

/// The middle one.
pub fn median(all: &[f64]) -> f64 {
    let mut sorted = all.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// The ratios of some rounds, each of two neighbours in time: median, lowest, highest.
pub fn spread(ratios: &[f64]) -> String {
    let (low, high) = ratios.iter().fold((f64::MAX, f64::MIN), |(a, b), r| (a.min(*r), b.max(*r)));
    format!("**{:.2}** ({low:.2} – {high:.2})", median(ratios))
}

/// Runs a program, the administrator's too; its output, or why not.
pub fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let out = Command::new(program).args(args).env("PATH", path).stdin(std::process::Stdio::null()).output();
    let out = out.map_err(|e| format!("{program}: {e}"))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    Err(format!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr)))
}

/// What a program says of itself or the machine; nothing if it is not there.
pub fn said(program: &str, args: &[&str]) -> String {
    run(program, args).unwrap_or_default().lines().next().unwrap_or_default().trim().to_owned()
}

/// A path as an argument of a program.
pub fn text(path: &Path) -> String {
    path.display().to_string()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// Whether the system pages out what was not used for a moment, though there is memory enough: what a program caches in
/// the kernel is gone then before it asks again.
fn pages_out() -> bool {
    let daemons = std::fs::read_dir("/sys/kernel/mm/damon/admin/kdamonds").into_iter().flatten().flatten();
    daemons.map(|daemon| daemon.path()).any(|daemon| {
        read(&text(&daemon.join("state"))) == "on"
            && read(&text(&daemon.join("contexts/0/schemes/0/action"))) == "pageout"
    })
}

/// The rows so far.
pub struct Table {
    rows: String,
    load: String,
}

impl Table {
    /// Empty.
    pub fn new() -> Self {
        Self { rows: String::new(), load: read("/proc/loadavg") }
    }

    /// Prints a row, and keeps it for the page.
    pub fn row(&mut self, cells: &[&str]) {
        let line = format!("| {} |", cells.join(" | "));
        println!("{line}");
        writeln!(self.rows, "{line}").expect("writes to memory");
    }

    /// Fails if there is no row: what was asked for is none.
    pub fn some(&self) -> Result<(), String> {
        if self.rows.is_empty() { Err("no row's name contains what --only says".into()) } else { Ok(()) }
    }

    /// The page: what it is, what it was measured on (`more` of that is this benchmark's own), the rows.
    pub fn page(&self, title: &str, intro: &str, more: &[(&str, String)], columns: &[&str]) -> String {
        let cpu = read("/proc/cpuinfo");
        let model = cpu.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or("unknown");
        let memory = read("/proc/meminfo").lines().next().unwrap_or_default().replace("MemTotal:", "");
        let memory = memory.trim();
        let cpus = std::thread::available_parallelism().map_or(0, usize::from);
        let mut facts = vec![
            ("date", said("date", &["-u", "+%Y-%m-%d %H:%M UTC"])),
            ("cowslip", said("git", &["rev-parse", "--short", "HEAD"])),
            ("machine", format!("{cpus} × {}, {memory}", model.trim_start_matches(['\t', ' ', ':']))),
            ("kernel", read("/proc/sys/kernel/osrelease")),
            ("rustc", said("rustc", &["--version"])),
        ];
        facts.extend_from_slice(more);
        if pages_out() {
            facts.push((
                "caches",
                "do not stay: the system takes pages back that were not used for a moment (DAMON)".into(),
            ));
        }
        facts.push(("load average, before and after", format!("{}; {}", self.load, read("/proc/loadavg"))));
        let facts: String = facts.iter().map(|(what, is)| format!("| {what} | {is} |\n")).collect();
        let columns = format!("| {} |\n|{}", columns.join(" | "), "---|".repeat(columns.len()));
        format!("# {title}\n\n{intro}\n\n| | |\n|---|---|\n{facts}\n{columns}\n{}", self.rows)
    }
}
