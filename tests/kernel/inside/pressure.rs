//! Little memory: it becomes free when dirty pages are written to a volume, which is the agent's work (H3).

use crate::rig_on;
use integration_tests::rig::{Running, cowslip, ended, host_tool, signal, tool, unmount};
use std::fs;
use std::path::{Path, PathBuf};

/// A disk that the harness gives, of 8 GiB; others use it too.
const DISK: &str = "/dev/ubdc";
/// What the agent and the writer may have together.
const MEMORY: &str = "64M";
/// Many times that.
const MIB: u32 = 256;

/// A group of processes with little memory; it goes with this machine.
struct Tight(PathBuf);

impl Tight {
    fn new(name: &str) -> Self {
        let groups = Path::new("/sys/fs/cgroup");
        fs::write(groups.join("cgroup.subtree_control"), "+memory").expect("the kernel limits memory");
        let tight = Self(groups.join(name));
        fs::create_dir(&tight.0).expect("a group");
        fs::write(tight.0.join("memory.max"), MEMORY).expect("the limit is taken");
        tight
    }

    fn add(&self, pid: u32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).expect("the process lives");
    }

    /// A number of `memory.events`.
    fn events(&self, of: &str) -> u64 {
        let text = fs::read_to_string(self.0.join("memory.events")).expect("the group counts");
        let line = text.lines().find_map(|line| line.strip_prefix(of)).expect("it counts that");
        line.trim().parse().expect("a number")
    }
}

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
    // Blocks of a snapshot: each write needs a mapping, and each mapping a record.
    tool(
        "dd",
        ["if=/dev/zero", &format!("of={}", file.display()), "bs=1M", &format!("count={MIB}"), "status=none"],
    );
    tool("sync", ["-f", &file.display().to_string()]);
    rig.ok("-q snapshot create v@s");
    // Pages that are there already would be nobody's in the group.
    drop_caches();

    let tight = Tight::new(&format!("tight-{zero_copy}"));
    for pid in rig.processes() {
        tight.add(pid);
        // With the agent would go what frees memory.
        let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("the process lives");
        assert_eq!(score.trim(), "-900");
    }
    let groups = tight.0.join("cgroup.procs");
    let copy = format!(
        "{} | dd of={} bs=1M conv=notrunc,fsync iflag=fullblock status=none",
        lines(),
        file.display()
    );
    let mut writer = shell(&format!("echo $$ > {} && {copy}", groups.display()));
    rig.eventually("what is dirty is written", || writer.0.try_wait().expect("it can be asked").is_some());
    assert_eq!(writer.end().code, Some(0));
    println!("the limit was met {} times", tight.events("max "));
    assert!(tight.events("max ") > 0, "there was memory enough");
    assert_eq!(tight.events("oom_kill "), 0, "somebody was killed");

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
