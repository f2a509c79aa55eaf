//! File systems with their tools' default options.

use integration_tests::rig::{Rig, noise, tool, unmount};
use std::fs;

fn a_file_system_lives_on_a_volume(mkfs: &[&str], fsck: &[&str]) {
    let rig = Rig::new("4G").expect("this kernel has all that is needed");
    rig.ok("-q volume create v --size 1G");
    let device = rig.attach("v");
    let name = device.as_os_str();
    tool(mkfs[0], mkfs[1..].iter().map(AsRef::as_ref).chain([name]));
    let dir = rig.mount(&device, "mnt", "defaults");
    let data = noise(3, 100 << 20);
    fs::write(dir.join("data"), &data).expect("the volume takes it");
    tool("sync", ["-f".as_ref(), dir.as_os_str()]);
    rig.ok("-q snapshot create v@s");
    rig.kill_and_wait();
    fs::remove_file(dir.join("data")).expect("it is there");
    fs::write(dir.join("later"), &data[..1 << 20]).expect("the volume takes it");
    unmount(&dir);
    tool(fsck[0], fsck[1..].iter().map(AsRef::as_ref).chain([name]));
    rig.ok("-q volume detach v");

    rig.ok("-q rollback v@s");
    let device = rig.attach("v");
    let dir = rig.mount(&device, "mnt", "defaults");
    assert!(fs::read(dir.join("data")).expect("it is there again") == data, "it is what it was");
    assert!(!dir.join("later").exists());
    unmount(&dir);
    // A mounted vfat cannot be frozen: its snapshot says that it was not unmounted.
    if mkfs[0] != "mkfs.vfat" {
        tool(fsck[0], fsck[1..].iter().map(AsRef::as_ref).chain([device.as_os_str()]));
    }
    rig.ok("-q volume detach v");
    rig.stop_and_check();
}

#[test]
fn ext4_lives_on_a_volume() {
    a_file_system_lives_on_a_volume(&["mkfs.ext4", "-q"], &["e2fsck", "-fn"]);
}

#[test]
fn xfs_lives_on_a_volume() {
    a_file_system_lives_on_a_volume(&["mkfs.xfs", "-q"], &["xfs_repair", "-n"]);
}

#[test]
fn btrfs_lives_on_a_volume() {
    a_file_system_lives_on_a_volume(&["mkfs.btrfs", "-q"], &["btrfs", "check", "--readonly"]);
}

#[test]
fn vfat_lives_on_a_volume() {
    a_file_system_lives_on_a_volume(&["mkfs.vfat", "-S", "4096"], &["fsck.vfat", "-n"]);
}
