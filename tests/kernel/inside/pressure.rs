//! Little memory: it becomes free when dirty pages are written to a volume, which is the agent's work (H3).

use crate::group::Group;
use crate::rig_on;
use integration_tests::rig::{Running, cowslip, ended, host_tool, signal, tool, unmount};
use std::fs;
use std::path::Path;

/// A disk that the harness gives, of 8 GiB; others use it too.
const DISK: &str = "/dev/ubdc";
/// What the agent and the writer may have together.
const MEMORY: &str = "64M";
/// Many times that.
const MIB: u32 = 256;

/// What is written: lines, so that a block out of place is found.
fn lines() -> String {
    format!("seq 100000000 999999999 | head -c {MIB}M")
}

/// Runs a line of shell that may hang, and with it whoever waits for it.
fn shell(line: &str) -> Running {
    Running::start(host_tool("sh").args(["-c", line]))
}

fn drop_caches() {
    fs::write("/proc/sys/vm/drop_caches", "3").expect("caches can be dropped");
}

#[test]
fn an_agent_without_memory_for_its_writers_goes_on() {
    goes_on(true);
}

#[test]
fn the_same_with_copied_requests() {
    goes_on(false);
}

fn goes_on(zero_copy: bool) {
    ended(cowslip().args(["-q", "pool", "init", "--force", DISK])).with(0);
    let rig = rig_on(Path::new(DISK));
    let config = fs::read_to_string(rig.path("config.toml")).expect("it was written");
    let config = format!("{config}ublk_zero_copy = {zero_copy}\n");
    fs::write(rig.path("config.toml"), config).expect("it is writable");
    rig.start();
    let device = rig.ext4("v", "2G");
    let dir = rig.mount(&device, "mnt", "defaults");
    let file = dir.join("file");
    let into = format!("of={} bs=1M conv=notrunc,fsync iflag=fullblock status=none", file.display());
    let fill = format!("dd if=/dev/zero count={MIB} {into}");

    let tight = Group::new(&format!("tight-{zero_copy}"), "memory");
    tight.limit("memory.max", MEMORY);
    let write = |command: &str| {
        let command = format!("echo $$ > {} && {command}", tight.members().display());
        let mut writer = shell(&command);
        rig.eventually("what is dirty is written", || {
            writer.0.try_wait().expect("it can be asked").is_some()
        });
        assert_eq!(writer.end().code, Some(0), "{command}");
    };
    if !zero_copy {
        // Copied requests go through memory that is taken when it is first used, and then stays.
        tool("sh", ["-c", &fill]);
    }
    for pid in rig.processes() {
        tight.add(pid);
        // With the agent would go what frees memory.
        let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("the process lives");
        assert_eq!(score.trim(), "-900");
    }
    if zero_copy {
        drop_caches();
        // The first that the device is asked for, and as fast as it comes: all that serving it takes was taken before.
        write(&fill);
    }
    rig.ok("-q snapshot create v@s");
    // Pages that are there already would be nobody's in the group.
    drop_caches();
    // Blocks of a snapshot: each write needs a mapping, and each mapping a record.
    write(&format!("{} | dd {into}", lines()));
    let events = |of: &str| tight.count("memory.events", of);
    println!("the limit was met {} times", events("max"));
    assert!(events("max") > 0, "there was memory enough");
    assert_eq!(events("oom_kill"), 0, "somebody was killed");

    // A successor in the same group takes over.
    let pid = rig.pid();
    signal("KILL", pid);
    rig.wait_for_another(pid);
    drop_caches();
    let mut reader = shell(&format!("{} | cmp - {}", lines(), file.display()));
    rig.eventually("it is read", || reader.0.try_wait().expect("it can be asked").is_some());
    assert_eq!(reader.end().code, Some(0));
    unmount(&dir);
    rig.stop_and_check();
}
