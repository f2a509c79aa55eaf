//! Cuts of a busy file system: after replay the tree is the one of the kernel's mount.
//!
//! `COWSLIP_REPLAY_CUTS=N` takes N cuts of each feature set, `COWSLIP_REPLAY_SEED` another seed.

use crate::common::cuts::{CloneSpace, DeviceMount, Loop, clone};
use crate::common::support::Chance;
use crate::common::tree::{Mask, differences, of_mount, of_view};
use crate::image::mkfs_at;
use crate::workload::Workload;
use fuse_view::fs::open;
use fuse_view::source::FileImage;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|n| n.parse().ok())
}

/// What came of the cuts of one workload.
#[derive(Debug, Default)]
struct Seen {
    replayed: u64,
    clean: u64,
}

/// Compares a cut with the kernel's mount of it.
fn compare(space: &CloneSpace, cut: &Path, what: &str, seen: &mut Seen) {
    let before = std::fs::metadata(cut).unwrap().modified().unwrap();
    let fs = open(Arc::new(FileImage::open(cut).unwrap())).unwrap_or_else(|e| panic!("{what}: {e}"));
    match fs.replay().as_str() {
        "replayed" => seen.replayed += 1,
        "clean" => seen.clean += 1,
        other => panic!("{what}: {other}"),
    }
    let ours = of_view(&*fs);
    assert_eq!(before, std::fs::metadata(cut).unwrap().modified().unwrap(), "{what}: the image was written");
    // The kernel recovers in place; what differs is wanted as it was.
    let kept = space.path("kept");
    clone(cut, &kept);
    let mount = DeviceMount::new(Loop::new(cut), &space.path("reference"), "ro,nouuid")
        .unwrap_or_else(|e| panic!("{what}: {e}"));
    let theirs = of_mount(&mount.at);
    let differences = differences(&ours, &theirs, |_, _| Mask::default());
    if !differences.is_empty() {
        let copy = std::env::temp_dir().join("cowslip-xfs-cut.img");
        let _ = std::fs::copy(&kept, &copy);
        let some = differences[..differences.len().min(20)].join("\n");
        panic!("{what}: {} differences, the image is kept as {}:\n{some}", differences.len(), copy.display());
    }
}

/// How often the log was begun anew: the cycle of its first sector, or 0.
fn log_cycle(disk: &Path) -> u32 {
    let file = std::fs::File::open(disk).unwrap();
    let be = |at: u64, len: usize| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes[8 - len..], at).unwrap();
        u64::from_be_bytes(bytes)
    };
    let (block, start) = (be(4, 4), be(48, 8));
    let group_bits = be(124, 1);
    let at = ((start >> group_bits) * be(84, 4) + (start & ((1 << group_bits) - 1))) * block;
    u32::try_from(if be(at, 4) == 0xFEED_BABE { be(at + 4, 4) } else { be(at, 4) }).unwrap()
}

/// Runs the workload on a file system made with `options` and compares `cuts` cuts of it.
fn check(options: &str, mount_options: &str, seed: u64, cuts: u64) {
    let Some(space) = CloneSpace::new(1 << 12) else { return };
    let (disk, cut) = (space.path("disk"), space.path("cut"));
    if mkfs_at(&disk, 96, options).is_none() {
        return;
    }
    let mount = DeviceMount::new(Loop::direct(&disk), &space.path("busy"), mount_options).unwrap();
    let cuts = number("COWSLIP_REPLAY_CUTS").unwrap_or(cuts);
    let seed = number("COWSLIP_REPLAY_SEED").unwrap_or(seed);
    let mut workload = Workload::new(&mount.at, seed);
    let mut chance = Chance(seed ^ 0xC07);
    for _ in 0..300 {
        workload.step();
    }
    // The log has gone around before the first cut.
    for _ in 0..1000 {
        if log_cycle(&disk) > 2 {
            break;
        }
        workload.fill_log();
    }
    let mut seen = Seen::default();
    for i in 0..cuts {
        for _ in 0..=chance.below(60) {
            workload.step();
        }
        clone(&disk, &cut);
        compare(&space, &cut, &format!("{options}, seed {seed}, cut {i}"), &mut seen);
        std::fs::remove_file(&cut).unwrap();
    }
    let cycle = log_cycle(&disk);
    println!("{options}: {seen:?}, cycle {cycle} of the log");
    assert!(cycle > 2, "the log has not gone around");
    assert!(seen.replayed >= cuts * 9 / 10, "{options}: {seen:?}");
}

#[test]
fn cuts_with_defaults() {
    check("", "noatime", 1, 8);
}

#[test]
fn cuts_with_small_blocks() {
    check("-b size=1024 -m rmapbt=1", "noatime,logbsize=256k", 2, 6);
}

#[test]
fn cuts_with_old_features() {
    check("-m reflink=0,rmapbt=0,finobt=0,bigtime=0 -i sparse=0", "noatime,logbsize=16k", 3, 6);
}
