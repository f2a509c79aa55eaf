//! Devices as the kernel sees them: many of them, growing, in use.

use crate::gaps::report_answers;
use integration_tests::load::{Load, under_load};
use integration_tests::rig::{Rig, signal, tool, unmount};
use integration_tests::times;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

fn size_mib(device: &Path) -> u64 {
    let bytes = tool("blockdev", ["--getsize64".as_ref(), device.as_os_str()]);
    bytes.trim().parse::<u64>().expect("a number") >> 20
}

#[test]
fn many_volumes_are_attached_at_once() {
    let rig = Rig::new("2G").expect("this kernel has all that is needed");
    let count = times("COWSLIP_VOLUMES", 64);
    let names: Vec<String> = (0..count).map(|number| format!("v{number}")).collect();
    let devices: Vec<PathBuf> = names
        .iter()
        .map(|name| {
            rig.ok(&format!("-q volume create {name} --size 16M"));
            rig.attach(name)
        })
        .collect();
    assert_eq!(rig.devices().len(), names.len());
    for (name, device) in names.iter().zip(&devices) {
        let file = fs::File::options().write(true).open(device).expect("the device opens");
        std::os::unix::fs::FileExt::write_all_at(&file, &[name.as_bytes(), &[0; 4096]].concat()[..4096], 0)
            .and_then(|()| file.sync_all())
            .expect("the device takes it");
    }
    let pid = rig.pid();
    let killed = Instant::now();
    signal("KILL", pid);
    report_answers(&format!("{count} volumes after a kill"), &devices, killed);
    rig.wait_for_another(pid);
    for (name, device) in names.iter().zip(&devices) {
        let mut start = vec![0; name.len()];
        let file = fs::File::open(device).expect("the device opens");
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut start, 0).expect("the device answers");
        assert_eq!(start, name.as_bytes(), "{}", device.display());
    }
    names.iter().for_each(|name| drop(rig.ok(&format!("-q volume detach {name}"))));
    assert_eq!(rig.devices(), [] as [String; 0]);
    rig.stop_and_check();
}

#[test]
fn a_volume_grows_under_load() {
    let rig = Rig::new("2G").expect("this kernel has all that is needed");
    let device = rig.ext4("v", "320M");
    let dir = rig.mount(&device, "mnt", "defaults");
    let runs = under_load(&rig, &Load::on_files(&dir), || {
        for mib in [352, 512, 768] {
            rig.ok(&format!("-q volume resize v {mib}M"));
            rig.eventually("the device has grown", || size_mib(&device) == mib);
            tool("resize2fs", [&device]);
        }
    });
    println!("{runs} runs of load");
    rig.kill_and_wait();
    assert_eq!(size_mib(&device), 768);
    unmount(&dir);
    tool("e2fsck", [Path::new("-fn"), &device]);
    rig.ok("-q volume detach v");
    assert_eq!(size_mib(&rig.attach("v")), 768);
    rig.run(["volume", "resize", "v", "64M"]).with(2);
    rig.stop_and_check();
}

#[test]
fn a_device_in_use_is_not_taken_away() {
    let rig = Rig::new("512M").expect("this kernel has all that is needed");
    let device = rig.ext4("v", "64M");
    let dir = rig.mount(&device, "mnt", "defaults");
    rig.run(["volume", "detach", "v"]).with(4);
    fs::write(dir.join("file"), "still there").expect("the volume takes it");
    rig.run(["volume", "delete", "v"]).with(4);
    unmount(&dir);
    // Open and not mounted: a database on the raw device.
    let open = fs::File::open(&device).expect("the device opens");
    rig.run(["volume", "detach", "v"]).with(4);
    drop(open);
    rig.ok("-q volume detach v");
    rig.ok("-q volume detach v");
    assert_eq!(rig.devices(), [] as [String; 0]);
    rig.stop_and_check();
}
