//! Live devices, really killed. Needs root, /dev/fuse and /dev/loop-control; says what it skips without them.
//!
//! The program is its own harness, because it is also what the tests start: `serve`, `supervise` and the freeze guard.

mod device;
mod file_disk;
mod freezing;
#[path = "../../../tests/program.rs"]
mod program;
mod rig;
mod server;
#[path = "../../../tests/skip.rs"]
mod skip;
mod survival;
mod system;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

/// A test: its name, the programs that it needs, its body.
type Test = (&'static str, &'static [&'static str], fn());

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let first = args.next().unwrap_or_default();
    let dir = |arg: Option<std::ffi::OsString>| std::path::PathBuf::from(arg.expect("a directory"));
    match first.to_str() {
        Some(ublk_target::freeze::GUARD_ARGUMENT) => return ublk_target::freeze::guard_main(args),
        Some("serve") => return server::serve(&dir(args.next())),
        Some("supervise") => return server::supervise(&dir(args.next())),
        _ => {}
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    let tests: Vec<Test> = [device::TESTS, survival::TESTS, freezing::TESTS].concat();
    if words.iter().any(|word| word == "--list") {
        tests.iter().for_each(|(name, ..)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = words.iter().filter(|word| !word.starts_with('-')).collect();
    let chosen =
        tests.iter().filter(|(name, ..)| filters.is_empty() || filters.iter().any(|f| name.contains(*f)));
    let mut failed = Vec::new();
    for (name, programs, body) in chosen {
        if let Some(why) = missing(programs) {
            skip::skip(&format!("{name}: {why}"));
            continue;
        }
        println!("test {name} ...");
        let start = Instant::now();
        let passed = std::panic::catch_unwind(body).is_ok();
        println!(
            "test {name} ... {} ({:.1} s)",
            if passed { "ok" } else { "FAILED" },
            start.elapsed().as_secs_f32()
        );
        if !passed {
            failed.push(name);
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("failed: {failed:?}");
    // As cargo's own harness does.
    ExitCode::from(101)
}

/// What this machine lacks.
fn missing(programs: &[&str]) -> Option<String> {
    if !system::is_root() {
        return Some("needs root".into());
    }
    for (node, module) in [("/dev/fuse", "fuse"), ("/dev/loop-control", "loop")] {
        if !Path::new(node).exists() {
            return Some(format!("no {node} (modprobe {module})"));
        }
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |program: &&&str| std::env::split_paths(&path).any(|dir| dir.join(program).exists());
    let program = programs.iter().find(|program| !found(program))?;
    Some(format!("no {program} (apt-get install fio e2fsprogs util-linux)"))
}
