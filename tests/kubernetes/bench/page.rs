//! The page that says what was measured.

use super::calls::Call;
use super::{CLAIMS, COPIES, CUTS, PODS, percentile};
use crate::cluster::Cluster;
use std::fmt::Write;
use std::process::Command;

pub struct Page {
    text: String,
}

fn output(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).output();
    output.map_or(String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn shown(call: &Call, percent: usize) -> String {
    call.percentile_ms(percent).map_or_else(|| "–".to_owned(), |ms| format!("{ms:.1}"))
}

impl Page {
    pub fn new(rounds: u32) -> Self {
        let cpu = read("/proc/cpuinfo");
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
        let text = format!(
            "# Benchmarks in Kubernetes\n\n\
             Written by `make bench-kubernetes`: what a user waits for, beside csi-driver-host-path 1.18.0 in the same \
             cluster, on the same node, with the same sidecars and one class each, by turns; medians and quartiles of {rounds} rounds, in each \
             of which a new claim is made {CLAIMS} times, a pod {PODS} times, a snapshot and a restored claim of Cowslip's \
             {CUTS} times, of the peer's, which copies, once and {COPIES} times; before each half a second passes, in which \
             the one before it is undone, and before pods up to a second more, in steps, because kubelet looks once a \
             second for what has changed. A ratio above 1 says that Cowslip is the faster one.\n\n\
             | | |\n|---|---|\n| date | {} |\n| cowslip | {} |\n| machine | {} ×{} |\n| kernel | {} |\n\
             | load average after | {} |\n\n\
             | seconds, 1 GiB with 500 MB in it | cowslip | host-path | ratio | at least | cowslip, 10 GiB with 5 GB | to 1 GiB | at most |\n\
             |---|---|---|---|---|---|---|---|\n",
            output("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
            output("git", &["rev-parse", "--short", "HEAD"]),
            std::thread::available_parallelism().map_or(0, usize::from),
            model.trim_start_matches(['\t', ' ', ':']),
            read("/proc/sys/kernel/osrelease"),
            read("/proc/loadavg"),
        );
        Self { text }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        println!("{line}");
        writeln!(self.text, "{line}").expect("writes to memory");
    }

    pub fn waits(&mut self, what: &str, ours: &[f64], theirs: &[f64], large: &[f64]) {
        let shown = |all: &[f64]| {
            let [low, middle, high] = [25, 50, 75].map(|percent| percentile(all, percent));
            format!("{middle:.3} ({low:.3} to {high:.3})")
        };
        let ratio = |of: &[f64], to: &[f64]| percentile(of, 50) / percentile(to, 50);
        self.line(format_args!(
            "| {what} | {} | {} | **{:.2}** | 1.0 | {} | **{:.2}** | 1.1 |",
            shown(ours),
            shown(theirs),
            ratio(theirs, ours),
            shown(large),
            ratio(large, ours)
        ));
    }

    pub fn hundred(&mut self, ours: f64, theirs: f64) {
        self.line(format_args!(
            "| 100 snapshots of 100 claims without data, at once | {ours:.2} | {theirs:.2} | **{:.1}** | 1.0 | | | |",
            theirs / ours
        ));
    }

    pub fn calls(&mut self, ours: &[Call], theirs: &[Call]) {
        self.line(format_args!(
            "\nEach call alone, milliseconds, of 100 or 200 (host-path makes no file systems and no devices; –: it does not \
             offer the call):\n"
        ));
        self.line(format_args!("| call | cowslip p50 | p99 | host-path p50 | p99 |\n|---|---|---|---|---|"));
        for (our, their) in ours.iter().zip(theirs) {
            assert_eq!(our.name, their.name);
            self.line(format_args!(
                "| {} | {} | {} | {} | {} |",
                our.name,
                shown(our, 50),
                shown(our, 99),
                shown(their, 50),
                shown(their, 99)
            ));
        }
    }

    /// Memory of the driver after all that: now, and at most.
    pub fn memory(&mut self, cluster: &Cluster) {
        let mib = |field| cluster.memory_kib(super::NODE, "cowslip-csi node", field) as f64 / 1024.0;
        let (now, most) = (mib("VmRSS"), mib("VmHWM"));
        self.line(format_args!(
            "\nMemory of `cowslip-csi node` after that: {now:.1} MiB, at most {most:.1} MiB; the bound is 32."
        ));
    }

    pub fn finish(self) {
        if let Some(path) = std::env::var_os("COWSLIP_BENCH_OUT") {
            std::fs::write(&path, self.text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        }
    }
}
