//! Agents that are killed and stopped under mounted volumes: whoever uses a volume waits, and gets no error.

use crate::rig::{Rig, Running, host_tool, random, signal, tool, unmount};
use integration_tests::load::{Load, under_load};
use integration_tests::{has_program, skip};
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

const KILLS: u32 = 20;
const SEED: u64 = 20;

/// Something to do for the agent between two kills.
fn between(rig: &Rig, round: u32) {
    match round % 4 {
        0 => rig.ok(&format!("-q snapshot create v@s{round}")),
        1 => rig.ok(&format!("-q clone v@s{} c{round}", round - 1)),
        2 => rig.ok(&format!("-q volume delete c{}", round - 1)),
        _ => rig.ok(&format!("-q snapshot delete v@s{}", round - 3)),
    };
}

#[test]
fn the_agent_is_killed_twenty_times_under_verified_load() {
    if !has_program("fio") {
        return skip("fio is missing: install fio");
    }
    let Some(rig) = Rig::new("4G") else { return };
    let device = rig.ext4("v", "512M");
    let dir = rig.mount(&device, "mnt", "defaults");
    let runs = under_load(&rig, &Load::on_files(&dir), || kill_at_random(&rig));
    println!("{runs} runs of verified load");
    unmount(&dir);
    tool("e2fsck", [Path::new("-fn"), &device]);
    rig.stop_and_check();
}

fn kill_at_random(rig: &Rig) {
    let mut seed = SEED;
    let mut gaps = Vec::new();
    for round in 0..KILLS {
        std::thread::sleep(Duration::from_millis(random(&mut seed) % 400));
        gaps.push(rig.kill_and_wait().as_millis());
        between(rig, round);
    }
    println!("seed {SEED}; ms without an agent: {gaps:?}");
}

#[test]
fn a_file_system_never_stays_frozen() {
    let Some(rig) = Rig::new("1G") else { return };
    let device = rig.ext4("v", "128M");
    let dir = rig.mount(&device, "mnt", "defaults");
    let mut seed = SEED;
    let mut cuts = 0;
    for round in 0..10 {
        fs::write(dir.join("dirty"), vec![1; 4 << 20]).expect("the volume takes it");
        let pid = rig.pid();
        let mut create = rig.command();
        create.args(["-q", "snapshot", "create", &format!("v@s{round}")]);
        let create = Running::start(create.stdout(Stdio::null()).stderr(Stdio::piped()));
        std::thread::sleep(Duration::from_millis(random(&mut seed) % 200));
        signal("KILL", pid);
        // Writes and waits for the disk, in a process that may hang without hanging the test.
        let mut write = host_tool("dd");
        write.args(["if=/dev/zero", "bs=4k", "count=1", "conv=fsync", "status=none"]);
        write.arg(format!("of={}", dir.join("after").display()));
        let mut write = Running::start(&mut write);
        rig.wait_for_another(pid);
        rig.eventually("the file system thaws", || write.0.try_wait().expect("it can be asked").is_some());
        assert_eq!(write.end().code, Some(0));
        let told = create.end();
        let shown = rig.run(["snapshot", "show", &format!("v@s{round}")]).code;
        assert!(told.code != Some(0) || shown == Some(0), "what was acknowledged is there: {told:?}");
        assert!(matches!(shown, Some(0 | 3)), "{shown:?}");
        cuts += u32::from(shown == Some(0));
    }
    println!("{cuts} of 10 snapshots were taken");
    unmount(&dir);
    tool("e2fsck", [Path::new("-fn"), &device]);
    rig.stop_and_check();
}

#[test]
fn a_mounted_volume_waits_for_the_next_agent() {
    let Some(rig) = Rig::new("1G") else { return };
    let device = rig.ext4("v", "64M");
    let dir = rig.mount(&device, "mnt", "defaults");
    fs::write(dir.join("file"), "before").expect("the volume takes it");
    tool("sync", [Path::new("-f"), &dir]);
    rig.terminate();
    assert_eq!(rig.devices().len(), 1, "the device lives");

    let mut write = host_tool("dd");
    write.args(["if=/dev/zero", "bs=1M", "count=8", "oflag=direct", "status=none"]);
    let mut write = Running::start(write.arg(format!("of={}", dir.join("meanwhile").display())));
    std::thread::sleep(Duration::from_millis(300));
    assert!(write.0.try_wait().expect("it can be asked").is_none(), "without an agent the write waits");
    rig.start();
    assert_eq!(write.end().code, Some(0), "{}", rig.log());
    assert_eq!(rig.attach("v"), device);
    assert_eq!(fs::read_to_string(dir.join("file")).expect("it is there"), "before");
    unmount(&dir);
    tool("e2fsck", [Path::new("-fn"), &device]);
    rig.stop_and_check();
    assert_eq!(rig.devices(), [] as [String; 0]);
}

#[test]
fn devices_without_a_user_go_with_the_agent() {
    let Some(rig) = Rig::new("512M") else { return };
    let device = rig.ext4("v", "64M");
    assert!(device.exists());
    assert_eq!(rig.devices().len(), 1);
    rig.stop_and_check();
    assert_eq!(rig.devices(), [] as [String; 0]);
    assert!(fs::symlink_metadata(&device).is_err(), "its name is gone");
    assert!(!rig.path("agent.sock").exists() && !rig.path("agent.sock.holder").exists());

    // It was attached, so the next agent attaches it again.
    rig.start();
    rig.eventually("the volume is attached again", || rig.json("volume show v")["attached"] == true);
    rig.stop_and_check();
}
