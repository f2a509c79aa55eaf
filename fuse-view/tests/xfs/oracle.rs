//! Every field of every file, as the kernel's read-only mount shows it and as the reader does.

use crate::common::compare::{Against, compare_trees};
use crate::common::populate::populate;
use crate::common::support::{CountingImage, Mount, run, workdir};
use crate::common::{skip::skip, sys};
use crate::image::mkfs;
use fuse_view::fs::open;
use std::path::Path;
use std::sync::Arc;

/// Formats an image of `mib` MiB with `options`, fills it, and compares.
fn check(mib: u64, options: &str) {
    if !sys::is_root() {
        skip("comparing with the kernel's mount needs root");
        return;
    }
    let dir = workdir();
    let Some(image) = mkfs(dir.path(), mib, options) else { return };
    let at = dir.path().join("mnt");
    let mount = Mount::with(&image, &at, "rw").unwrap();
    populate(&mount.0, 42, true);
    drop(mount);
    let mount = Mount::with(&image, &at, "ro").unwrap();
    let fs = open(Arc::new(CountingImage::open(&image))).unwrap();
    let seen = compare_trees(&*fs, &mount.0, Against::Mount);
    assert!(seen > 1700, "{options}: only {seen} files compared");
    let ours = fs.statfs();
    let ours = [u64::from(ours.block_bytes), ours.blocks, ours.blocks_free, ours.inodes, ours.inodes_free];
    let mut theirs = statfs(&mount.0);
    // The kernel keeps back the trees of free space of the groups that it happens to have looked at so far.
    assert!((0..64).contains(&(theirs[2] - ours[2])), "{options}: {} free, {}", ours[2], theirs[2]);
    theirs[2] = ours[2];
    assert_eq!(ours, theirs, "{options}: statfs");
}

/// Bytes of a block, blocks, free blocks, inodes, free inodes, as `stat -f` prints them.
fn statfs(at: &Path) -> [u64; 5] {
    let text = run("stat", &["-f", "-c", "%S %b %f %c %d", at.to_str().unwrap()]).unwrap();
    let numbers: Vec<u64> = text.split_whitespace().map(|n| n.parse().unwrap()).collect();
    numbers.try_into().unwrap()
}

#[test]
fn defaults() {
    check(320, "");
}

#[test]
fn small_blocks() {
    check(200, "-b size=1024");
    check(200, "-b size=1024 -n size=8192 -d agcount=7");
}

#[test]
fn large_blocks() {
    check(400, "-b size=16384");
    check(600, "-b size=65536 -i size=2048");
}

#[test]
fn blocks_of_directories() {
    check(200, "-b size=2048 -n size=4096");
    check(300, "-n size=65536");
}

#[test]
fn old_features() {
    check(200, "-m bigtime=0,finobt=0,rmapbt=0,reflink=0,inobtcount=0 -i sparse=0 -l version=2");
    check(200, "-m uuid=01020304-0506-0708-090a-0b0c0d0e0f10 -i maxpct=5 -s size=4096 -l su=65536");
}

#[test]
fn new_features() {
    check(320, "-m bigtime=1,rmapbt=1,reflink=1,inobtcount=1 -i nrext64=1,size=2048 -d agcount=2 -L label");
}

#[test]
fn test_kernel_shows_version_4_the_same() {
    if std::env::var_os("COWSLIP_TEST_KERNEL").is_none() {
        return;
    }
    check(320, "-m crc=0");
    check(200, "-m crc=0 -b size=512 -i size=256,attr=1,projid32bit=0 -n ftype=0 -l version=1,lazy-count=0");
    check(200, "-m crc=0 -b size=1024 -n size=16384,ftype=1 -d agcount=7");
}
