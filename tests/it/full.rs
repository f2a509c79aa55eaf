//! A host disk that somebody else fills: new writes fail with ENOSPC, everything else goes on, and room heals it.

use crate::rig::{Ended, Rig, ended, host_tool, noise, tool, unmount};
use integration_tests::{has_program, skip};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

const DISK: u64 = 560 << 20;
/// More than the agent ever asks the host for ahead of need.
const MUCH_MIB: u32 = 176;

/// Writes a file of the rig to a device at a position in MiB, past the page cache.
fn write(rig: &Rig, file: &str, device: &Path, at_mib: u32) -> Ended {
    let mut dd = host_tool("dd");
    dd.arg(format!("if={}", rig.path(file).display())).arg(format!("of={}", device.display()));
    ended(dd.args(["bs=1M", "oflag=direct", "conv=notrunc,fsync", &format!("seek={at_mib}")]))
}

/// What the device holds at a position in MiB, past the page cache.
fn read(device: &Path, at_mib: u32, count_mib: u32) -> Vec<u8> {
    let mut dd = host_tool("dd");
    dd.arg(format!("if={}", device.display())).args(["bs=1M", "iflag=direct", "status=none"]);
    dd.arg(format!("skip={at_mib}")).arg(format!("count={count_mib}"));
    let output = dd.output().expect("dd runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A small file system on a loop device, with the pool in it.
fn small_host(mkfs: &str) -> Option<(Rig, PathBuf)> {
    let rig = Rig::without_agent()?;
    let image = rig.path("disk.img");
    fs::File::create(&image).and_then(|file| file.set_len(DISK)).expect("the directory is writable");
    tool(mkfs, ["-q".as_ref(), image.as_os_str()]);
    let host = rig.mount(&image, "host", "loop");
    fs::create_dir(host.join("pool")).expect("the new file system is writable");
    symlink(host.join("pool"), rig.path("pool")).expect("the directory is writable");
    rig.init_pool("420M");
    rig.start();
    Some((rig, host))
}

/// Takes all room that is left.
fn fill(host: &Path) -> PathBuf {
    let filler = host.join("filler");
    for block in ["1M", "4k"] {
        let mut dd = host_tool("dd");
        dd.args(["if=/dev/zero", "oflag=append", "conv=notrunc,fsync", &format!("bs={block}")]);
        ended(dd.arg(format!("of={}", filler.display()))).with(1).saying(&["No space left"]);
    }
    filler
}

fn state(rig: &Rig) -> String {
    rig.json("status")["pool"]["state"].as_str().expect("a word").to_owned()
}

fn a_full_host_loses_nothing(mkfs: &str, package: &str) {
    if !has_program(mkfs) {
        return skip(&format!("{mkfs} is missing: install {package}"));
    }
    let Some((rig, host)) = small_host(mkfs) else { return };
    let parts = [("a", 32), ("b", 32), ("w", 16), ("w2", 16), ("new", MUCH_MIB as usize)];
    for (seed, (name, mib)) in (1..).zip(parts) {
        fs::write(rig.path(name), noise(seed, mib << 20)).expect("there is room");
    }
    let holds = |name: &str| fs::read(rig.path(name)).expect("it was written");
    rig.ok("-q volume create v --size 256M");
    rig.ok("-q volume create w --size 16M");
    let (v, w) = (rig.attach("v"), rig.attach("w"));
    write(&rig, "a", &v, 0).with(0);
    rig.ok("-q snapshot create v@s");
    write(&rig, "b", &v, 0).with(0);
    write(&rig, "w", &w, 0).with(0);
    assert_eq!(state(&rig), "ok");

    let filler = fill(&host);
    write(&rig, "new", &v, 64).with(1).saying(&["No space left"]);
    let full = state(&rig);
    assert!(matches!(full.as_str(), "low" | "full"), "{full}");
    assert!(read(&v, 0, 32) == holds("b"), "what was written is there");
    write(&rig, "w2", &w, 0).with(0);
    assert!(read(&w, 0, 16) == holds("w2"), "what was written can be overwritten");

    rig.ok("-q snapshot delete v@s");
    rig.eventually("its room is used again", || write(&rig, "w", &v, 64).code == Some(0));
    assert!(read(&v, 64, 16) == holds("w"));
    fs::remove_file(filler).expect("it can be removed");
    tool("sync", [Path::new("-f"), &host]);
    rig.eventually("the pool has room again", || write(&rig, "new", &v, 64).code == Some(0));
    rig.eventually("it is known", || state(&rig) == "ok");
    assert!(
        read(&v, 0, 32) == holds("b")
            && read(&v, 64, MUCH_MIB) == holds("new")
            && read(&w, 0, 16) == holds("w2")
    );
    rig.stop_and_check();
    unmount(&host);
}

#[test]
fn a_full_ext4_loses_nothing() {
    a_full_host_loses_nothing("mkfs.ext4", "e2fsprogs");
}

#[test]
fn a_full_xfs_loses_nothing() {
    a_full_host_loses_nothing("mkfs.xfs", "xfsprogs");
}

#[test]
fn a_full_btrfs_loses_nothing() {
    a_full_host_loses_nothing("mkfs.btrfs", "btrfs-progs");
}
