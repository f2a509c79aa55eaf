//! Frozen file systems thaw, whoever dies.

use super::Test;
use super::rig::{Rig, run, wait_for};
use super::system;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

pub const TESTS: &[Test] = &[
    ("freezing::holds_writers_until_thawed", &["mkfs.ext4", "mount"], holds_writers_until_thawed),
    ("freezing::the_deadline_thaws", &["mkfs.ext4", "mount"], the_deadline_thaws),
    ("freezing::the_owner_dies", &["mkfs.ext4", "mount"], the_owner_dies),
    ("freezing::the_guard_dies", &["mkfs.ext4", "mount"], the_guard_dies),
    ("freezing::owner_and_guard_die", &["mkfs.ext4", "mount"], owner_and_guard_die),
    ("freezing::what_cannot_be_frozen", &["mkfs.ext4", "fsfreeze", "mount"], what_cannot_be_frozen),
    ("freezing::in_another_mount_namespace", &["mkfs.btrfs", "unshare", "mount"], in_another_mount_namespace),
];

const LONG: &str = "freeze 60000";

fn mounted() -> Rig {
    let mut rig = Rig::new(32 << 20);
    run("mkfs.ext4", &["-q", &rig.device_str()]);
    rig.mount();
    rig
}

fn point(rig: &Rig) -> std::path::PathBuf {
    rig.dir().join("mnt 0")
}

/// A write to the file system: the receiver hears of its end.
fn write(dir: &Path) -> mpsc::Receiver<()> {
    let (sender, receiver) = mpsc::channel();
    let path = dir.join("file");
    std::thread::spawn(move || {
        std::fs::File::create(path).unwrap().write_all(b"x").unwrap();
        let _ = sender.send(());
    });
    receiver
}

fn blocks(write: &mpsc::Receiver<()>) -> bool {
    write.recv_timeout(Duration::from_millis(200)).is_err()
}

fn goes_on(write: &mpsc::Receiver<()>) {
    write.recv_timeout(Duration::from_secs(60)).expect("thawed");
}

fn guards(rig: &Rig) -> Vec<u32> {
    let dir = rig.dir().as_os_str().as_encoded_bytes().to_vec();
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.starts_with(b"cowslip-freeze-guard\0") && line.windows(dir.len()).any(|part| part == dir)
        })
        .collect()
}

fn intents(rig: &Rig) -> usize {
    std::fs::read_dir(rig.dir().join("run")).map_or(0, Iterator::count)
}

fn holds_writers_until_thawed() {
    let rig = mounted();
    for _ in 0..2 {
        rig.ask(LONG).unwrap();
        let write = write(&point(&rig));
        assert!(blocks(&write), "a frozen file system takes no write");
        assert_eq!(intents(&rig), 1);
        rig.ask("thaw").expect("frozen the whole time");
        goes_on(&write);
        assert_eq!((intents(&rig), guards(&rig).len()), (0, 0));
    }
}

fn the_deadline_thaws() {
    let rig = mounted();
    rig.ask("freeze 300").unwrap();
    goes_on(&write(&point(&rig)));
    rig.ask("thaw").expect_err("the snapshot must not count as consistent");
    rig.ask(LONG).unwrap();
    run("fsfreeze", &["-u", point(&rig).to_str().unwrap()]);
    rig.ask("thaw").expect_err("somebody else thawed it");
}

fn the_owner_dies() {
    let rig = mounted();
    rig.ask(LONG).unwrap();
    let write = write(&point(&rig));
    assert!(blocks(&write));
    rig.kill_server();
    goes_on(&write);
    wait_for("the guard's end", || guards(&rig).is_empty());
    assert_eq!(intents(&rig), 0);
}

fn the_guard_dies() {
    let rig = mounted();
    rig.ask(LONG).unwrap();
    for guard in guards(&rig) {
        system::kill(guard, libc::SIGKILL);
    }
    let write = write(&point(&rig));
    assert!(blocks(&write), "it stays frozen");
    rig.ask("thaw").expect("and was all the time");
    goes_on(&write);
    assert_eq!(intents(&rig), 0);
}

fn owner_and_guard_die() {
    let rig = mounted();
    rig.ask(LONG).unwrap();
    for guard in guards(&rig) {
        system::kill(guard, libc::SIGKILL);
    }
    rig.kill_server();
    let write = write(&point(&rig));
    assert!(blocks(&write));
    rig.ask("thaw-leftovers").unwrap();
    goes_on(&write);
    assert_eq!(intents(&rig), 0);
}

fn what_cannot_be_frozen() {
    let mut rig = Rig::new(32 << 20);
    assert_eq!(rig.ask(LONG).unwrap_err(), "error not mounted");
    run("mkfs.ext4", &["-q", &rig.device_str()]);
    let point = rig.mount();
    rig.ask(LONG).unwrap();
    let second = Command::new("fsfreeze").arg("-f").arg(&point).output().unwrap();
    assert!(!second.status.success());
    rig.ask("thaw").unwrap();
    run("fsfreeze", &["-f", point.to_str().unwrap()]);
    let busy = rig.ask(LONG);
    run("fsfreeze", &["-u", point.to_str().unwrap()]);
    assert!(busy.unwrap_err().contains("frozen already"));
    rig.unmount();
    assert_eq!(intents(&rig), 0);
}

/// btrfs, whose number in mountinfo is not the device's, mounted where only another process sees it.
fn in_another_mount_namespace() {
    let rig = Rig::new(128 << 20);
    run("mkfs.btrfs", &["-q", &rig.device_str()]);
    let point = rig.dir().join("hidden mount");
    std::fs::create_dir(&point).unwrap();
    let script = "mount \"$1\" \"$2\" && touch \"$3\" && read line && umount \"$2\"";
    let up = rig.dir().join("up");
    let mut hidden = Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh"])
        .args([rig.device().as_path(), &point, &up])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("the hidden mount", || up.exists());
    let inside =
        Path::new("/proc").join(hidden.id().to_string()).join("root").join(point.strip_prefix("/").unwrap());
    let frozen = rig.ask(LONG);
    let write = write(&inside);
    let blocked = blocks(&write);
    let thawed = rig.ask("thaw");
    let busy = rig.ask("detach");
    drop(hidden.stdin.take());
    let _ = hidden.wait(); // `read` fails at the end of its input; the namespace unmounts
    goes_on(&write);
    frozen.unwrap();
    thawed.unwrap();
    assert!(blocked);
    assert!(busy.unwrap_err().contains("in the mount namespace of process"));
}
