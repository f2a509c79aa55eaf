//! Agents killed under load: whoever uses a device waits, and gets neither an error nor other data.

use crate::gaps::{Prober, report};
use integration_tests::load::{Load, under_load};
use integration_tests::rig::{Rig, Running, noise, parent, random, signal, tool, transport, unmount};
use integration_tests::{seed, times};
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Kills the serving process at random instants; the gaps that a reader of `device` saw.
fn kill_at_random(rig: &Rig, device: &Path, count: u32, mut between: impl FnMut(u32)) -> Vec<Duration> {
    let mut seed = seed();
    let prober = Prober::start(device);
    let mut gaps = Vec::new();
    for round in 0..count {
        std::thread::sleep(Duration::from_millis(random(&mut seed) % 300));
        let pid = rig.pid();
        let killed = Instant::now();
        signal("KILL", pid);
        // No command is run before the device answers: on one processor it would be part of what is measured.
        rig.eventually("the process is gone", || !Path::new(&format!("/proc/{pid}")).exists());
        let answers = prober.answers();
        // Two: one may have been on its way since before the kill.
        rig.eventually("the device answers again", || prober.answers() > answers + 1);
        rig.wait_for_another(pid);
        gaps.push(prober.longest_silence_since(killed));
        between(round);
    }
    prober.stop();
    gaps
}

#[test]
fn no_kill_under_verified_load_and_discards_is_seen() {
    let rig = Rig::new("4G").expect("this kernel has all that is needed");
    rig.ok("-q volume create v --size 512M");
    let device = rig.attach("v");
    let load = Load::on_device(&device, 256).and_discards(&device, 256, 256, 2000);
    let count = times("COWSLIP_KILLS", 15);
    let mut gaps = Vec::new();
    let runs = under_load(&rig, &load, || gaps = kill_at_random(&rig, &device, count, |_| ()));
    report(&format!("{runs} runs of verified load and discards, seed {}", seed()), &gaps);
    rig.ok("-q volume detach v");
    rig.stop_and_check();
}

#[test]
fn no_kill_is_seen_while_snapshots_and_clones_come_and_go() {
    let rig = Rig::new("8G").expect("this kernel has all that is needed");
    let device = rig.ext4("v", "512M");
    let dir = rig.mount(&device, "mnt", "discard");
    let between = |round: u32| {
        match round % 4 {
            0 => rig.ok(&format!("-q snapshot create v@s{round}")),
            1 => rig.ok(&format!("-q clone v@s{} c{round}", round - 1)),
            2 => rig.ok(&format!("-q volume delete c{}", round - 1)),
            _ => rig.ok(&format!("-q snapshot delete v@s{}", round - 3)),
        };
    };
    let count = times("COWSLIP_KILLS", 15);
    let mut gaps = Vec::new();
    let load = Load::on_files(&dir);
    let runs = under_load(&rig, &load, || gaps = kill_at_random(&rig, &device, count, between));
    report(&format!("{runs} runs on ext4 with snapshots and clones, seed {}", seed()), &gaps);
    unmount(&dir);
    tool("e2fsck", [Path::new("-fn"), &device]);
    rig.ok("-q volume detach v");
    rig.stop_and_check();
}

/// Requests that begin or end inside of a block of the pool, and reads of what has checksums by then: the driver's data
/// are copied for them, wherever the others go without.
#[test]
fn parts_of_blocks_and_verified_blocks_survive_kills_too() {
    let rig = Rig::new("1G").expect("this kernel has all that is needed");
    rig.ok("-q volume create v --size 128M --label cowslip.io/block-size=512");
    let device = rig.attach("v");
    let before = noise(7, 8 << 20);
    fs::write(rig.path("before"), &before).expect("the directory is writable");
    let copy = [format!("if={}", rig.path("before").display()), format!("of={}", device.display())];
    let options = ["bs=1M", "seek=96", "oflag=direct", "status=none"];
    tool("dd", copy.iter().map(String::as_str).chain(options));
    rig.ok("-q snapshot create v@s");
    let sealed = || rig.json("status")["pool"]["sealed_bytes"].as_u64() >= Some(8 << 20);
    rig.eventually("what the snapshot holds has checksums", sealed);
    let load = Load::on_device(&device, 64).of_sizes("512-16k", 512);
    let runs = under_load(&rig, &load, || {
        for _ in 0..3 {
            rig.kill_and_wait();
        }
    });
    println!("{runs} runs of load with 3 kills");
    let back = [format!("if={}", device.display()), format!("of={}", rig.path("after").display())];
    let options = ["bs=1M", "skip=96", "count=8", "iflag=direct", "status=none"];
    tool("dd", back.iter().map(String::as_str).chain(options));
    assert!(fs::read(rig.path("after")).expect("it was read") == before, "it is what was written");
    rig.ok("-q volume detach v");
    rig.stop_and_check();
}

/// The next agent is killed as well, at a random moment of its recovery.
#[test]
fn a_recovery_that_is_killed_is_recovered_from() {
    let rig = Rig::new("1G").expect("this kernel has all that is needed");
    rig.ok("-q volume create v --size 256M");
    let device = rig.attach("v");
    let mut random_state = seed();
    let count = times("COWSLIP_KILLS", 15).div_ceil(2);
    let runs = under_load(&rig, &Load::on_device(&device, 128), || {
        for _ in 0..count {
            let pid = rig.pid();
            let supervisor = parent(pid);
            signal("KILL", pid);
            let mut next = None;
            rig.eventually("the next process is started", || {
                next = children(supervisor).into_iter().find(|child| *child != pid);
                next.is_some()
            });
            let next = next.expect("waited for it");
            std::thread::sleep(Duration::from_millis(random(&mut random_state) % 60));
            signal("KILL", next);
            rig.eventually("another process serves", || {
                rig.serving().is_some_and(|now| now != pid && now != next)
            });
        }
    });
    println!("{count} double kills in {runs} runs of verified load, seed {}", seed());
    rig.ok("-q volume detach v");
    rig.stop_and_check();
}

/// Processes that `pid` started.
fn children(pid: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("there is /proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let parent_of = |child: u32| {
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).ok()?;
        // After the name, which may hold anything: state, parent.
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse::<u32>().ok()
    };
    pids.filter(|child| parent_of(*child) == Some(pid)).collect()
}

#[test]
fn a_mounted_volume_survives_the_kill_of_its_agent() {
    let rig = Rig::new("1G").expect("this kernel has all that is needed");
    let device = rig.ext4("v", "128M");
    let dir = rig.mount(&device, "mnt", "defaults");
    fs::write(dir.join("before"), "before").expect("the volume takes it");
    let pid = rig.pid();
    signal("KILL", pid);
    let mut write = integration_tests::rig::host_tool("dd");
    write.args(["if=/dev/zero", "bs=1M", "count=8", "conv=fsync", "status=none"]);
    let write =
        Running::start(write.arg(format!("of={}", dir.join("meanwhile").display())).stderr(Stdio::piped()));
    assert_eq!(write.end().code, Some(0), "{}", rig.log());
    rig.wait_for_another(pid);
    assert_eq!(fs::read_to_string(dir.join("before")).expect("it is there"), "before");
    unmount(&dir);
    tool("e2fsck", [Path::new("-fn"), &device]);
    rig.ok("-q volume detach v");
    assert_eq!(rig.devices(), [] as [String; 0]);
    rig.stop_and_check();
}

#[test]
fn a_device_whose_agent_crashed_can_be_taken_away() {
    if transport() == "loop" {
        // Its descriptors die with their holder, which is killed here: the device fails and stays.
        return;
    }
    let rig = Rig::new("512M").expect("this kernel has all that is needed");
    for round in 0..3 {
        rig.ok("-q volume create v --size 64M");
        let device = rig.attach("v");
        assert_eq!(rig.devices().len(), 1);
        let pid = rig.pid();
        // With its supervisor: nobody starts another one.
        rig.processes()
            .into_iter()
            .filter(|process| *process != pid)
            .for_each(|process| signal("KILL", process));
        signal("KILL", pid);
        rig.eventually("nobody serves", || rig.processes().is_empty());
        rig.start();
        rig.ok("-q volume detach v");
        assert_eq!(rig.devices(), [] as [String; 0], "round {round}");
        assert!(fs::symlink_metadata(&device).is_err(), "its name is gone");
        rig.ok("-q volume delete v");
    }
    rig.stop_and_check();
}
