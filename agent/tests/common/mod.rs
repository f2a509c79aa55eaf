//! Runs the real program.
#![allow(dead_code, unused_imports)] // each test program uses its part of this

#[path = "../../../tests/skip.rs"]
mod skip;

pub use skip::skip;

use std::{
    ffi::OsStr,
    path::Path,
    process::{Command, Output, Stdio},
};

/// The program, away from the terminal and from what the caller's environment says.
pub fn cowslip() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cowslip"));
    command.env_remove("COWSLIP_SOCKET").env_remove("COLUMNS").env_remove("NO_COLOR").stdin(Stdio::null());
    command
}

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ended {
    /// Fails the test unless the program ended with this code.
    #[track_caller]
    pub fn with(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// The only line of stdout as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// Every line of stdout as JSON.
    #[track_caller]
    pub fn json_lines(&self) -> Vec<serde_json::Value> {
        self.stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect()
    }

    /// The failure on stderr as JSON.
    #[track_caller]
    pub fn json_error(&self) -> serde_json::Value {
        let value: serde_json::Value = serde_json::from_str(self.stderr.lines().last().unwrap_or_default())
            .unwrap_or_else(|e| panic!("{e}: {self:?}"));
        value["error"].clone()
    }
}

/// Runs the program with these arguments.
pub fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Ended {
    cowslip().args(arguments).output().expect("run cowslip").into()
}

/// Runs a tool of the host; None: it is not installed, or it failed (told on stderr).
pub fn tool(name: &str, arguments: &[&OsStr]) -> Option<Output> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(name).args(arguments).env("PATH", path).stdin(Stdio::null()).output().ok()?;
    if !output.status.success() {
        eprintln!("{name}: {}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    Some(output)
}

/// Whether anything at `path` is mounted.
pub fn is_mounted(path: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let path = path.display().to_string();
    table.lines().any(|line| line.split(' ').nth(4) == Some(&path))
}

/// Waits until `condition` holds; the deadline is only there so that a failure ends.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !condition() {
        assert!(started.elapsed().as_secs() < 60, "waited in vain: {what}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
