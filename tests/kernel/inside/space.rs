//! Space that is discarded is the pool's again.

use integration_tests::rig::{Rig, noise, tool, unmount};
use std::fs;
use std::io::{Read, Write};
use std::path::Path;

fn used_mib(rig: &Rig) -> u64 {
    rig.json("status")["pool"]["used_bytes"].as_u64().expect("a number") >> 20
}

/// Bytes of one piece: a process of the test kernel has few mappings, and there each page may be one.
const PIECE: usize = 16 << 20;

fn write_noise(path: &Path, seed: u64, mib: usize) {
    let mut file = fs::File::create(path).expect("the directory is writable");
    let piece = noise(seed, PIECE);
    for _ in 0..mib.div_ceil(PIECE >> 20) {
        file.write_all(&piece).expect("there is room");
    }
}

fn reads_as_zeros(device: &Path) -> bool {
    let mut file = fs::File::open(device).expect("the device opens");
    let (mut piece, zeros) = (vec![0; PIECE], vec![0; PIECE]);
    loop {
        match file.read(&mut piece).expect("the device answers") {
            0 => return true,
            length if piece[..length] == zeros[..length] => {}
            _ => return false,
        }
    }
}

/// Fills most of the pool over and over, which works only if discards give it back.
fn is_given_back(rig: &Rig, mut fill: impl FnMut(), mut discard: impl FnMut()) {
    for round in 0..4 {
        fill();
        let full = used_mib(rig);
        discard();
        println!("round {round}: {full} MiB used when full, {} right after the discard", used_mib(rig));
    }
    // An agent that stops cleanly has done all that was to be done.
    rig.terminate();
    rig.eventually("all processes end", || rig.processes().is_empty());
    rig.start();
    println!("{} MiB used in the end", used_mib(rig));
}

#[test]
fn a_discarded_device_costs_nothing() {
    let rig = Rig::new("420M").expect("this kernel has all that is needed");
    let empty = used_mib(&rig);
    rig.ok("-q volume create v --size 256M");
    let device = rig.attach("v");
    write_noise(&rig.path("data"), 1, 200);
    let copy = || {
        let words = [format!("if={}", rig.path("data").display()), format!("of={}", device.display())];
        tool("dd", words.iter().map(String::as_str).chain(["bs=1M", "oflag=direct", "status=none"]));
        assert!(used_mib(&rig) >= empty + 200, "{} MiB", used_mib(&rig));
    };
    is_given_back(&rig, copy, || drop(tool("blkdiscard", [&device])));
    assert!(used_mib(&rig) <= empty + 8, "{} MiB", used_mib(&rig));
    let device = rig.attach("v");
    assert!(reads_as_zeros(&device), "what is discarded reads as zeros");
    rig.ok("-q volume detach v");
    rig.stop_and_check();
}

#[test]
fn trimming_a_file_system_gives_back_what_its_files_had() {
    let rig = Rig::new("640M").expect("this kernel has all that is needed");
    let device = rig.ext4("v", "512M");
    let dir = rig.mount(&device, "mnt", "defaults");
    let before = used_mib(&rig);
    let fill = || {
        write_noise(&dir.join("data"), 2, 300);
        tool("sync", ["-f".as_ref(), dir.as_os_str()]);
        assert!(used_mib(&rig) >= before + 300, "{} MiB", used_mib(&rig));
    };
    for round in 0..3 {
        fill();
        fs::remove_file(dir.join("data")).expect("it is there");
        tool("sync", ["-f".as_ref(), dir.as_os_str()]);
        let trimmed = tool("fstrim", ["-v".as_ref(), dir.as_os_str()]);
        println!("round {round}: {} MiB used after {}", used_mib(&rig), trimmed.trim());
    }
    unmount(&dir);
    tool("e2fsck", [Path::new("-fn"), &device]);
    rig.ok("-q volume detach v");
    rig.terminate();
    rig.eventually("all processes end", || rig.processes().is_empty());
    rig.start();
    assert!(used_mib(&rig) <= before + 16, "{} MiB, {before} before", used_mib(&rig));
    rig.stop_and_check();
}
