//! The inner part of the test of power cuts: works on a pool that outlives the machine until somebody cuts the power,
//! and first looks whether the last cut lost anything. `outside/power.rs` has the other part, and starts this one.

use crate::fsynced::Files;
use integration_tests::rig::{Rig, cowslip, ended, tool, unmount};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The disk that the pool lies on.
const DISK: &str = "/dev/ubdb";

struct Kind {
    name: &'static str,
    fsck: &'static [&'static str],
}

const KINDS: &[Kind] = &[
    Kind { name: "ext4", fsck: &["e2fsck", "-fn"] },
    Kind { name: "xfs", fsck: &["xfs_repair", "-n"] },
    Kind { name: "btrfs", fsck: &["btrfs", "check", "--readonly"] },
];

/// What was heard before the cut: `ext4=17 xfs=12 … snapshot=NAME`.
fn heard(what: &str) -> Option<String> {
    let all = std::env::var("COWSLIP_HEARD").unwrap_or_default();
    let start = format!("{what}=");
    all.split(' ').find_map(|word| word.strip_prefix(&start)).map(str::to_owned)
}

fn number(variable: &str) -> u64 {
    let value =
        std::env::var(variable).unwrap_or_else(|_| panic!("{variable} says nothing: see outside/power.rs"));
    value.parse().expect("a number")
}

/// A rig on the disk, with an agent that recovered it.
fn rig(round: u64) -> Rig {
    let rig = crate::rig_on(Path::new(DISK));
    if round == 0 {
        ended(cowslip().args(["-q", "pool", "init", DISK])).with(0);
    }
    rig.start();
    rig
}

fn fsck(kind: &Kind, device: &Path) {
    tool(kind.fsck[0], kind.fsck[1..].iter().map(AsRef::as_ref).chain([device.as_os_str()]));
}

/// The volume of this kind, mounted; what the last round fsynced is in it.
fn recovered(rig: &Rig, kind: &Kind, round: u64, seed: u64) -> PathBuf {
    let name = kind.name;
    if round == 0 {
        rig.ok(&format!("-q volume create {name} --size 512M --fs {name}"));
    }
    let device = rig.attach(name);
    let dir = rig.mount(&device, name, "defaults");
    if round > 0 {
        let steps = heard(name).map_or(0, |steps| steps.parse().expect("a number"));
        let compared = Files::check(seed + round - 1, steps, &dir.join(format!("round-{}", round - 1)));
        println!("{name}: {steps} steps were heard of, {compared} files are what they were");
        unmount(&dir);
        fsck(kind, &device);
        rig.mount(&device, name, "defaults");
        fs::remove_dir_all(dir.join(format!("round-{}", round - 1))).expect("it is there");
    }
    dir
}

/// Steps without end, each told when it is durable.
fn work(name: &str, dir: &Path, seed: u64) {
    let mut files = Files::new(seed);
    loop {
        files.step_in(dir).unwrap_or_else(|e| panic!("{name}, step {}: {e}", files.steps()));
        println!("done {name}={}", files.steps());
    }
}

/// A directory that is there after a cut.
fn make(dir: &Path) {
    fs::create_dir(dir).expect("the volume is writable");
    let parent = dir.parent().expect("it has a parent");
    [dir, parent]
        .into_iter()
        .for_each(|dir| fs::File::open(dir).and_then(|dir| dir.sync_all()).expect("it can be synced"));
}

/// One snapshot after the other; the last one that was told of must be there after a cut.
fn snapshots(rig: &Rig, round: u64) {
    let mut last = None;
    for count in 0_u64.. {
        let name = format!("{}@r{round}-{count}", KINDS[usize::try_from(count % 3).expect("small")].name);
        rig.ok(&format!("-q snapshot create {name}"));
        println!("done snapshot={name}");
        if let Some(last) = last.replace(name) {
            rig.ok(&format!("-q snapshot delete {last}"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn until_the_power_is_cut() {
    let (round, seed) = (number("COWSLIP_ROUND"), number("COWSLIP_SEED"));
    let rig = rig(round);
    if let Some(snapshot) = heard("snapshot") {
        rig.ok(&format!("snapshot show {snapshot}"));
    }
    let dirs: Vec<PathBuf> = KINDS.iter().map(|kind| recovered(&rig, kind, round, seed)).collect();
    for snapshot in rig.json("snapshot list").as_array().expect("a list") {
        let (volume, name) = (snapshot["volume"].as_str(), snapshot["name"].as_str());
        let name = format!("{}@{}", volume.expect("a name"), name.expect("a name"));
        rig.ok(&format!("-q snapshot delete {name}"));
    }
    println!("checked");
    if std::env::var_os("COWSLIP_LAST").is_some() {
        for (kind, dir) in KINDS.iter().zip(&dirs) {
            unmount(dir);
            fsck(kind, &rig.attach(kind.name));
            rig.ok(&format!("-q volume detach {}", kind.name));
        }
        rig.stop_and_check();
        ended(Command::new("sync").arg(DISK)).with(0);
        println!("finished");
        return;
    }
    std::thread::scope(|scope| {
        for (kind, dir) in KINDS.iter().zip(&dirs) {
            let dir = dir.join(format!("round-{round}"));
            make(&dir);
            scope.spawn(move || work(kind.name, &dir, seed + round));
        }
        snapshots(&rig, round);
    });
}
