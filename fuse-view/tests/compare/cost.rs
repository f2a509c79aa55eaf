//! The cost of a comparison follows what changed.

use crate::snapshots::{BLOCK, Disk, Volume};
use fuse_view::{
    BlockRead, Error,
    cache::{CacheBudget, CachedBlocks},
    diff::{self, Kind, Ranges},
    versions::{Told, versions},
};
use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Bytes of the file that is followed.
const LARGE: usize = 4 << 20;

#[test]
fn versions_read_what_changed() {
    let Some(disk) = Disk::new(32, &["-t", "ext4"]) else { return };
    let first = disk.change(|top| fs::write(top.join("file"), vec![1; LARGE]).unwrap());
    let second = disk.change(|top| fs::write(top.join("file"), vec![2; LARGE]).unwrap());
    let mut volume = Volume::default();
    volume.push(&first);
    for _ in 0..400 {
        let mut next = volume.snapshots[volume.snapshots.len() - 1].clone();
        // The superblock is written at every freeze: here the time of it.
        let mut block = next[0].to_vec();
        block[1024 + 0x30] = block[1024 + 0x30].wrapping_add(1);
        reseal(&mut block[1024..2048]);
        next[0] = block.into();
        volume.snapshots.push(next);
    }
    volume.push(&second);
    let mut found = 0;
    let told = |told| -> Result<(), Error> {
        let Told::Version(_) = told else { panic!("unreadable") };
        found += 1;
        Ok(())
    };
    versions(&volume, b"/file", told).unwrap();
    assert_eq!(found, 2);
    let read = volume.bytes_read.load(Ordering::Relaxed);
    assert!(read < LARGE as u64 / 2, "{read} bytes were read of {} snapshots", volume.snapshots.len());
}

/// Puts the checksum of a superblock right.
fn reseal(superblock: &mut [u8]) {
    let crc = !crc32c::crc32c(&superblock[..0x3fc]);
    superblock[0x3fc..].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn a_diff_reads_names_and_what_changed() {
    a_diff_is_quick(64, &["mke2fs", "-q", "-F", "-t", "ext4"], 4);
}

#[test]
fn so_it_does_on_xfs() {
    // Where its log ends is looked for in 2 MiB on each side.
    a_diff_is_quick(96, &["frozen", "mkfs.xfs", "--unsupported", "-q"], 10);
}

#[test]
fn so_it_does_on_btrfs() {
    a_diff_is_quick(110, &["mkfs.btrfs", "-q"], 12);
}

/// At most so many MiB are read.
fn a_diff_is_quick(mib: u64, words: &[&str], most: u64) {
    let Some(disk) = Disk::of(mib, words) else { return };
    let before = disk.change(|top| {
        for dir in 0..10 {
            fs::create_dir(top.join(format!("d{dir}"))).unwrap();
            for file in 0..300 {
                fs::write(top.join(format!("d{dir}/f{file}")), vec![3; BLOCK]).unwrap();
            }
            // Their inodes alone are more than may be read.
            for file in 300..1200 {
                fs::File::create(top.join(format!("d{dir}/f{file}"))).unwrap();
            }
        }
    });
    let after = disk.change(|top| fs::write(top.join("d3/f7"), "other").unwrap());
    let mut volume = Volume::default();
    volume.push(&before);
    volume.push(&after);
    let changed = Ranges::new(volume.differences(0, 1));
    let budget = CacheBudget::new(8 << 20);
    let [old, new] =
        [0, 1].map(|at| -> Arc<dyn BlockRead> { Arc::new(CachedBlocks::new(volume.source(at), &budget)) });
    let report = diff::diff(&old, &new, b"/", &changed, &AtomicBool::new(false)).unwrap();
    let said: Vec<_> = report.differences.iter().map(|d| (d.kind, &d.path[..])).collect();
    assert_eq!(said, [(Kind::Modified, &b"/d3/f7"[..])]);
    // 12 MiB of content are there, on both sides, and inodes of 12,000 files; names and what changed are enough.
    let read = Arc::clone(&volume.bytes_read).load(Ordering::Relaxed);
    assert!(read < most << 20, "{words:?}: {read} bytes were read");
}
