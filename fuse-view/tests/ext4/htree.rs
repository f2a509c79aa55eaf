//! Looking up names in large directories reads a path through the tree, not the directory.

use crate::common::support::{Chance, CountingImage, Mount, mke2fs, workdir};
use crate::common::sys;
use fuse_view::fs::open;
use std::fs::File;
use std::sync::Arc;

/// Makes `count` names of at least `length` bytes in one directory and looks all of them up; few bytes are read for one name with a cold cache.
fn check(options: &str, count: usize, length: usize, levels: u32) {
    if !sys::is_root() {
        crate::common::skip::skip("a hashed directory is made by a mount, which needs root");
        return;
    }
    let dir = workdir();
    let Some(image) = mke2fs(dir.path(), 256, options) else { return };
    let name = |i: usize| format!("{i}-é-{:x}{}", Chance(i as u64).next(), "n".repeat(length));
    {
        let mount = Mount::new(&image, &dir.path().join("mnt"), "rw").unwrap();
        let big = mount.0.join("big");
        std::fs::create_dir(&big).unwrap();
        File::create(big.join("the one file")).unwrap();
        for i in 0..count {
            // A second name for one inode costs no inode; a file has at most 65000.
            if i % 60_000 == 0 {
                File::create(big.join(name(i))).unwrap();
            } else {
                std::fs::hard_link(big.join(name(i - i % 60_000)), big.join(name(i))).unwrap();
            }
        }
    }
    let dump =
        crate::common::support::run("debugfs", &["-R", "htree_dump big", image.to_str().unwrap()]).unwrap();
    assert!(dump.contains(&format!("Indirect levels: {levels}")), "{options}: another depth than meant");
    let dev = Arc::new(CountingImage::open(&image));
    for i in [0, count / 2, count - 1] {
        let fs = open(dev.clone()).unwrap();
        let big = fs.lookup(fs.root(), b"big").unwrap();
        dev.take();
        fs.lookup(big, name(i).as_bytes()).unwrap();
        let (reads, bytes) = dev.take();
        assert!(reads <= 7 && bytes <= 7 * 4096, "{options}: {reads} reads, {bytes} bytes for one name");
        assert!(fs.lookup(big, b"not there").is_err());
        let (reads, bytes) = dev.take();
        assert!(reads <= 7 && bytes <= 7 * 4096, "{options}: {reads} reads, {bytes} bytes for no name");
    }
    let fs = open(dev.cached()).unwrap();
    let big = fs.lookup(fs.root(), b"big").unwrap();
    for i in 0..count {
        assert_eq!(
            fs.lookup(big, name(i).as_bytes()).ok(),
            fs.lookup(big, name(i - i % 60_000).as_bytes()).ok(),
            "{i}"
        );
    }
    let (_, bytes) = dev.take();
    let size = fs.attr(big).unwrap().size;
    assert!(bytes < 4 * size + (1 << 20), "{options}: {bytes} bytes read for a directory of {size}");
}

#[test]
fn half_md4() {
    check("-t ext4 -O ^has_journal -N 2000", 50_000, 0, 1);
}

#[test]
fn three_levels() {
    check("-t ext4 -b 1024 -O ^has_journal,large_dir -N 2000", 50_000, 220, 2);
}

#[test]
fn other_hashes_of_either_sign() {
    for hash in ["legacy", "tea"] {
        // The kernel takes the algorithm of new directories from the superblock; so does tune2fs set it.
        let dir = workdir();
        let Some(image) = mke2fs(dir.path(), 32, "-t ext4 -b 1024 -O ^has_journal -N 2000") else { return };
        for flags in ["1", "2"] {
            check_hash(dir.path(), &image, hash, flags);
        }
    }
}

fn check_hash(dir: &std::path::Path, image: &std::path::Path, hash: &str, flags: &str) {
    if !sys::is_root() {
        crate::common::skip::skip("a hashed directory is made by a mount, which needs root");
        return;
    }
    let path = image.to_str().unwrap();
    crate::common::support::run("debugfs", &["-w", "-R", &format!("ssv def_hash_version {hash}"), path])
        .unwrap();
    crate::common::support::run("debugfs", &["-w", "-R", &format!("ssv flags {flags}"), path]).unwrap();
    let sub = format!("{hash}{flags}");
    {
        let mount = Mount::new(image, &dir.join("mnt"), "rw").unwrap();
        std::fs::create_dir(mount.0.join(&sub)).unwrap();
        File::create(mount.0.join(&sub).join("0")).unwrap();
        for i in 1..3000 {
            std::fs::hard_link(mount.0.join(&sub).join("0"), mount.0.join(&sub).join(format!("ä{i}")))
                .unwrap();
        }
    }
    let dev = Arc::new(CountingImage::open(image));
    let fs = open(dev.clone()).unwrap();
    let big = fs.lookup(fs.root(), sub.as_bytes()).unwrap();
    let ino = fs.lookup(big, b"0").unwrap();
    dev.take();
    assert_eq!(fs.lookup(big, "ä1234".as_bytes()).unwrap(), ino);
    assert!(dev.take().0 <= 4, "{sub}: the tree was not used");
    for i in 1..3000 {
        assert_eq!(fs.lookup(big, format!("ä{i}").as_bytes()).unwrap(), ino, "{sub} {i}");
    }
}
