//! An agent never waits for what it serves: its core dump, its log and its program may lie on a volume (hazard H7).

use crate::rig::{Rig, Running, host_tool, signal, tool, unmount};
use integration_tests::program::is_code_locked;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

/// Writes, syncs and reads back, in processes that may hang without hanging the test.
fn use_volume(rig: &Rig, dir: &Path) {
    let file = dir.join("file");
    let [from, to] = ["if", "of"].map(|word| format!("{word}={}", file.display()));
    for words in [["if=/dev/urandom", &to, "conv=fsync"], [&from, "of=/dev/null", "iflag=direct"]] {
        let mut dd = Running::start(host_tool("dd").args(["bs=1M", "count=8", "status=none"]).args(words));
        rig.eventually("the volume is served", || dd.0.try_wait().expect("it can be asked").is_some());
        assert_eq!(dd.end().code, Some(0));
    }
}

#[test]
fn an_agent_dies_without_a_core() {
    let Some(rig) = Rig::without_agent() else { return };
    rig.init_pool("512M");
    // This process' own limit, which the agent's parent would inherit.
    let own = std::process::id().to_string();
    tool("prlimit", ["--pid", &own, "--core=unlimited:unlimited"]);
    let mut agent = rig.agent();
    agent.current_dir(rig.path("")).stdout(Stdio::null()).stderr(Stdio::null());
    rig.start_as(&mut agent);
    let device = rig.ext4("v", "64M");
    let dir = rig.mount(&device, "mnt", "defaults");
    for deadly in ["ABRT", "ILL"] {
        let pid = rig.pid();
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("it runs");
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
        assert_eq!(core.split_whitespace().filter(|word| *word == "0").count(), 2, "{core}");
        signal(deadly, pid);
        rig.wait_for_another(pid);
        use_volume(&rig, &dir);
    }
    let names = fs::read_dir(rig.path("")).expect("the directory is readable").flatten();
    let cores: Vec<_> =
        names.map(|entry| entry.file_name()).filter(|n| n.to_string_lossy().starts_with("core")).collect();
    assert!(cores.is_empty(), "{cores:?}");
    unmount(&dir);
    rig.stop_and_check();
}

#[test]
fn a_log_that_nobody_takes_holds_nobody_up() {
    let Some(rig) = Rig::without_agent() else { return };
    rig.init_pool("512M");
    let config = fs::read_to_string(rig.path("config.toml")).expect("it was written");
    fs::write(rig.path("config.toml"), format!("{config}log = 'trace'\n")).expect("it is writable");
    // Full before the agent's first line: 64 KiB is what a pipe takes.
    let (_reader, mut writer) = std::io::pipe().expect("a pipe");
    writer.write_all(&[b'.'; 64 << 10]).expect("it has room");
    let mut agent = rig.agent();
    rig.start_as(agent.stdout(Stdio::null()).stderr(writer));
    let device = rig.ext4("v", "64M");
    let dir = rig.mount(&device, "mnt", "defaults");
    use_volume(&rig, &dir);
    // Its parent does not wait either, and neither does its successor.
    rig.kill_and_wait();
    use_volume(&rig, &dir);
    rig.ok("-q snapshot create v@s");
    unmount(&dir);
    rig.stop_and_check();
}

#[test]
fn the_program_of_an_agent_stays_in_memory() {
    let Some(rig) = Rig::new("512M") else { return };
    assert!(is_code_locked(rig.pid()));
    rig.stop_and_check();
}
