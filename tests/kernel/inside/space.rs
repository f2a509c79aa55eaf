//! Space that is discarded is the pool's again.

use integration_tests::rig::{Rig, noise, tool, unmount};
use std::fs;
use std::path::Path;

fn used_mib(rig: &Rig) -> u64 {
    rig.json("status")["pool"]["used_bytes"].as_u64().expect("a number") >> 20
}

fn sync(dir: &Path) {
    tool("sync", ["-f".as_ref(), dir.as_os_str()]);
}

#[test]
fn a_discarded_device_costs_nothing() {
    let rig = Rig::new("1G").expect("this kernel has all that is needed");
    let empty = used_mib(&rig);
    rig.ok("-q volume create v --size 256M");
    let device = rig.attach("v");
    fs::write(rig.path("data"), noise(1, 200 << 20)).expect("there is room");
    let (from, to) = (rig.path("data").display().to_string(), device.display().to_string());
    tool(
        "dd",
        [
            format!("if={from}"),
            format!("of={to}"),
            "bs=1M".into(),
            "oflag=direct".into(),
            "status=none".into(),
        ],
    );
    assert!(used_mib(&rig) >= empty + 200, "{} MiB", used_mib(&rig));
    tool("blkdiscard", [&device]);
    println!("{empty} MiB when empty, {} after the discard", used_mib(&rig));
    rig.eventually("the space is free again", || used_mib(&rig) <= empty + 8);
    let zeros = fs::read(&device).expect("the device answers");
    assert!(
        zeros.len() == 256 << 20 && zeros.iter().all(|byte| *byte == 0),
        "what is discarded reads as zeros"
    );
    rig.ok("-q volume detach v");
    rig.stop_and_check();
}

#[test]
fn trimming_a_file_system_gives_back_what_its_files_had() {
    let rig = Rig::new("2G").expect("this kernel has all that is needed");
    let device = rig.ext4("v", "512M");
    let dir = rig.mount(&device, "mnt", "defaults");
    let before = used_mib(&rig);
    fs::write(dir.join("data"), noise(2, 300 << 20)).expect("the volume takes it");
    sync(&dir);
    assert!(used_mib(&rig) >= before + 300, "{} MiB", used_mib(&rig));
    fs::remove_file(dir.join("data")).expect("it is there");
    sync(&dir);
    let trimmed = tool("fstrim", ["-v".as_ref(), dir.as_os_str()]);
    println!("{before} MiB before, {} after {trimmed}", used_mib(&rig));
    rig.eventually("the space is free again", || used_mib(&rig) <= before + 16);
    unmount(&dir);
    tool("e2fsck", [Path::new("-fn"), &device]);
    rig.ok("-q volume detach v");
    rig.stop_and_check();
}
