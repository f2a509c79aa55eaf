//! Every field of every file, as the kernel's read-only mount shows it and as the reader does.

use crate::common::compare::{Against, compare_trees};
use crate::common::populate::{fill, populate};
use crate::common::support::{CountingImage, Mount, run, workdir};
use crate::common::{sys, tree};
use crate::image::{can_mount, mkfs};
use fuse_view::fs::open;
use std::path::Path;
use std::sync::Arc;

/// Formats an image with `options`, fills it under a mount with `mounted`, and compares.
fn check(mib: u64, options: &str, mounted: &str) {
    if !can_mount() {
        return;
    }
    let dir = workdir();
    let Some(image) = mkfs(dir.path(), mib, options) else { return };
    let at = dir.path().join("mnt");
    let mount = Mount::with(&image, &at, mounted).unwrap();
    populate(&mount.0, 42, true);
    compressible(&mount.0);
    drop(mount);
    compare(&image, &at, &format!("{options}, mounted with {mounted}"));
}

fn compare(image: &Path, at: &Path, what: &str) {
    let mount = Mount::with(image, at, "ro").unwrap();
    let fs = open(Arc::new(CountingImage::open(image))).unwrap();
    assert_eq!((fs.format(), fs.replay().as_str()), ("btrfs", "clean"));
    let seen = compare_trees(&*fs, &mount.0, Against::Mount);
    assert!(seen > 1700, "{what}: only {seen} files compared");
    let ours = fs.statfs();
    let text = run("stat", &["-f", "-c", "%S %b %f", at.to_str().unwrap()]).unwrap();
    let theirs: Vec<u64> = text.split_whitespace().map(|n| n.parse().unwrap()).collect();
    assert_eq!([u64::from(ours.block_bytes), ours.blocks], theirs[..2], "{what}: statfs");
    // The kernel takes off a reserve that it sizes at run time.
    let reserve = ours.blocks_free.checked_sub(theirs[2]).expect("more is free for the kernel");
    assert!(reserve <= ours.blocks / 8, "{what}: {} blocks free, {}", ours.blocks_free, theirs[2]);
}

/// Files that shrink, of lengths around the limits of what one extent holds, and one with pieces rewritten.
fn compressible(root: &Path) {
    let dir = root.join("compressible");
    std::fs::create_dir(&dir).unwrap();
    let text = |len: usize| -> Vec<u8> {
        (0u32..).flat_map(|n| format!("line {} of {}\n", n / 3, n % 7).into_bytes()).take(len).collect()
    };
    for len in
        [1, 100, 2000, 2048, 3000, 4095, 4096, 4097, 8192, 131_071, 131_072, 131_073, 300_000, 1_000_000]
    {
        std::fs::write(dir.join(format!("len{len}")), text(len)).unwrap();
    }
    let path = dir.join("rewritten");
    std::fs::write(&path, text(500_000)).unwrap();
    std::fs::File::open(&path).unwrap().sync_all().unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    for at in [5000, 140_000, 262_144, 400_001] {
        std::os::unix::fs::FileExt::write_all_at(&file, &text(9000), at).unwrap();
        file.sync_all().unwrap();
    }
}

#[test]
fn defaults() {
    check(256, "", "rw");
}

#[test]
fn checksums() {
    for algorithm in ["xxhash", "sha256", "blake2"] {
        check(256, &format!("--csum {algorithm}"), "rw");
    }
}

#[test]
fn node_sizes() {
    check(256, "-n 4096 -L label", "rw");
    check(256, "-n 65536", "rw");
}

#[test]
fn mixed_groups() {
    check(128, "--mixed", "rw");
    check(256, "--mixed -d dup -m dup -n 4096", "rw,max_inline=0");
}

#[test]
fn profiles() {
    check(384, "-d dup -m dup", "rw");
    check(256, "-d single -m single", "rw,nodatasum");
}

#[test]
fn old_features() {
    check(256, "-O ^no-holes -R ^free-space-tree", "rw");
    check(256, "-O ^extref,^skinny-metadata,^no-holes -R ^free-space-tree", "rw,space_cache=v1,nodatacow");
}

#[test]
fn quotas() {
    check(256, "-R quota -U 01020304-0506-0708-090a-0b0c0d0e0f10", "rw");
}

#[test]
fn compression() {
    check(256, "", "rw,compress-force=zlib");
    check(256, "", "rw,compress-force=lzo");
    check(256, "-O ^no-holes", "rw,compress-force=zstd");
    check(256, "-n 65536", "rw,compress-force=zstd:15,max_inline=4095");
    check(256, "--csum blake2", "rw,compress=lzo");
}

/// Filled by mkfs.btrfs itself, no larger than its content.
#[test]
fn made_from_a_directory() {
    if !can_mount() {
        return;
    }
    let dir = workdir();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    fill(&source, 7, sys::is_root(), 400);
    std::fs::remove_dir_all(source.join("sparse")).unwrap();
    let options = format!("--rootdir {} --shrink", source.display());
    let Some(image) = mkfs(dir.path(), 256, &options) else { return };
    assert!(std::fs::metadata(&image).unwrap().len() < 128 << 20);
    let mount = Mount::with(&image, &dir.path().join("mnt"), "ro").unwrap();
    let fs = open(Arc::new(CountingImage::open(&image))).unwrap();
    let found =
        tree::differences(&tree::of_view(&*fs), &tree::of_mount(&mount.0), |_, _| tree::Mask::default());
    assert!(found.is_empty(), "{}", found.join("\n"));
}
