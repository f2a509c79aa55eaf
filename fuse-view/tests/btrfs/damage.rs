//! Damaged images: no panic, no endless work, bounded memory, and what is whole stays readable.
//!
//! Checksums are made right again after most damage, or nothing behind them would ever be reached.
//! `BTRFS_DAMAGE_ROUNDS` asks for more rounds.

use crate::common::exercise::{Damaged, exercise_source as exercise};
use crate::common::support::Chance;
use crate::common::sys;
use crate::rig::{FIRST_COPY, NODE, Rig};
use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;

/// Unit of random damage.
const BLOCK: usize = 4096;

/// Changes the block at `at` and makes its checksum right, if `fix`.
fn change(dev: &mut Damaged, at: usize, len: usize, fix: bool, change: impl FnOnce(&mut [u8])) {
    let mut block = dev.get(at, len);
    change(&mut block);
    if fix {
        let sum = crc32c::crc32c(&block[32..]);
        block[..4].copy_from_slice(&sum.to_le_bytes());
    }
    dev.put(at, &block);
}

/// A small image with a bit of everything, one copy of each block, and a log.
fn image() -> Option<Arc<Vec<u8>>> {
    let rig = Rig::mounted("-m single", "rw,commit=300")?;
    let text =
        |len: usize| -> Vec<u8> { (0..len).map(|i| u8::try_from(i * i / 700 % 250).unwrap()).collect() };
    fs::create_dir_all(rig.path("a/b/c")).unwrap();
    for i in 0..60 {
        rig.write(&format!("a/file{i}"), text(i * 97));
        rig.link(&format!("a/file{i}"), &format!("a/b/{i}-{}", "n".repeat(i * 3)));
    }
    let (one, two) = crate::rig::colliding("hash");
    for (i, method) in ["zlib", "lzo", "zstd"].iter().enumerate() {
        let name = format!("a/b/c/{method}");
        rig.write(&name, "");
        let path = rig.path(&name);
        let path = path.to_str().unwrap();
        crate::common::support::run("btrfs", &["property", "set", path, "compression", method]).unwrap();
        rig.write_at(&name, 0, &text(300_000 + i));
        rig.write(&format!("{name}-inline"), text(200));
    }
    rig.write("sparse", "");
    for i in 0..40 {
        rig.write_at("sparse", i * 50_000, &text(5000));
    }
    rig.fallocate("sparse", libc::FALLOC_FL_KEEP_SIZE, 100_000, 4_000_000);
    for name in [&one, &two] {
        rig.write(name, "one hash");
        sys::set_xattr(&rig.path(name), &format!("user.{one}"), &text(1000)).unwrap();
    }
    symlink("target", rig.path("link")).unwrap();
    sys::mknod(&rig.path("null"), libc::S_IFCHR | 0o600, 1, 3).unwrap();
    let sub = rig.path("sub");
    let btrfs = |args: &[&str]| crate::common::support::run("btrfs", args).unwrap();
    btrfs(&["subvolume", "create", sub.to_str().unwrap()]);
    rig.write("sub/file", "in a subvolume");
    btrfs(&["subvolume", "snapshot", rig.path("").to_str().unwrap(), rig.path("sub/snap").to_str().unwrap()]);
    rig.commit();
    for i in 0..30 {
        rig.rename(&format!("a/file{i}"), &format!("a/b/c/moved{i}"));
        rig.fsync(&format!("a/b/c/moved{i}"));
    }
    rig.write_at("sparse", 60_000, &text(90_000));
    rig.write_at("a/b/c/zstd", 10_000, &text(10_000));
    rig.remove("a/file40");
    sys::remove_xattr(&rig.path(&one), &format!("user.{one}")).unwrap();
    for name in ["sparse", "a", "a/b", "a/b/c/zstd", &one, "sub/file"] {
        rig.fsync(name);
    }
    Some(Arc::new(rig.cut().bytes))
}

/// All tree blocks, old ones too: damage in them is no damage, but nobody knows.
fn tree_blocks(bytes: &[u8]) -> Vec<usize> {
    let fsid = &bytes[FIRST_COPY + 0x20..FIRST_COPY + 0x30];
    (1 << 20..bytes.len() - NODE).step_by(NODE).filter(|&at| &bytes[at + 32..at + 48] == fsid).collect()
}

fn rounds(usual: u64) -> u64 {
    std::env::var("BTRFS_DAMAGE_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// Changes a tree block where it hurts: its header, its item headers, its items.
fn hurt(block: &mut [u8], chance: &mut Chance) {
    let below = |chance: &mut Chance, n: usize| usize::try_from(chance.below(n as u64)).unwrap();
    let count =
        usize::try_from(u32::from_le_bytes(block[96..100].try_into().unwrap())).unwrap().clamp(1, 100);
    let step = if block[100] == 0 { 25 } else { 33 };
    for _ in 0..=chance.below(4) {
        let at = match chance.below(8) {
            0 => 80 + below(chance, 21),
            1..4 => 101 + below(chance, count * step),
            // Items lie at the end, the first one last.
            4..7 => block.len() - 1 - below(chance, 6000),
            _ => below(chance, block.len()),
        };
        let field = [1, 2, 4, 8][below(chance, 4)].min(block.len() - at);
        match chance.below(5) {
            0 => block[at] ^= 1 << chance.below(8),
            1 => block[at..at + field].fill(0xFF),
            2 => block[at..at + field].fill(0),
            3 => block[at..at + field].copy_from_slice(&chance.bytes(field)),
            _ => block[at] = block[at].wrapping_add(1),
        }
    }
}

#[test]
fn trees_with_right_checksums_and_wrong_content() {
    let Some(whole) = image() else { return };
    let (good, bad) = exercise(Arc::new(Damaged::new(&whole)));
    assert!(good > 500 && bad == 0, "{good} {bad}");
    let all = tree_blocks(&whole);
    let live: Vec<usize> = {
        let generation = u64::from_le_bytes(whole[FIRST_COPY + 0x48..FIRST_COPY + 0x50].try_into().unwrap());
        let of = |at: usize| u64::from_le_bytes(whole[at + 80..at + 88].try_into().unwrap());
        all.iter().copied().filter(|&at| of(at) >= generation).collect()
    };
    let mut chance = Chance(11);
    let mut hit = 0;
    for _ in 0..rounds(150) {
        let mut dev = Damaged::new(&whole);
        for _ in 0..=chance.below(3) {
            let from = if chance.below(4) == 0 { &all } else { &live };
            let at = from[usize::try_from(chance.below(from.len() as u64)).unwrap()];
            change(&mut dev, at, NODE, true, |block| hurt(block, &mut chance));
        }
        let (good, bad) = exercise(Arc::new(dev));
        hit += u64::from(bad > 0 || good == 0);
    }
    assert!(hit > 10, "damage was seen only {hit} times");
}

#[test]
fn the_superblock_lies() {
    let Some(whole) = image() else { return };
    for field in (32..4096 - 8).step_by(if rounds(0) > 0 { 1 } else { 13 }) {
        for value in [&[0, 0][..], &[0xFF; 4], &[1], &[0; 8], &[0, 0x80]] {
            let mut dev = Damaged::new(&whole);
            change(&mut dev, FIRST_COPY, 4096, true, |block| {
                block[field..field + value.len()].copy_from_slice(value);
            });
            if let Ok(fs) = fuse_view::fs::open(Arc::new(dev)) {
                let _ = fs.readdir(fs.root(), 0, 1000);
                let _ = fs.lookup(fs.root(), b"a").and_then(|ino| fs.readdir(ino, 0, 1000));
                let _ = (fs.statfs(), fs.label(), fs.replay(), fs.format());
            }
        }
    }
    let mut chance = Chance(12);
    for _ in 0..rounds(30) {
        let mut dev = Damaged::new(&whole);
        change(&mut dev, FIRST_COPY, 4096, true, |block| {
            for _ in 0..=chance.below(6) {
                // The fields, then the system chunks.
                let at =
                    if chance.below(2) == 0 { 32 + chance.below(500) } else { 0x32B + chance.below(300) };
                let at = usize::try_from(at).unwrap();
                if !(64..72).contains(&at) {
                    block[at] = chance.bytes(1)[0];
                }
            }
        });
        exercise(Arc::new(dev));
    }
}

/// Flips all over, checksums left wrong: what is shown is right, everything else is an error.
#[test]
fn flips_and_truncations() {
    let Some(whole) = image() else { return };
    let mut chance = Chance(13);
    let used: Vec<usize> = (0..whole.len() / BLOCK)
        .map(|i| i * BLOCK)
        .filter(|&at| at != FIRST_COPY && whole[at..at + BLOCK].iter().any(|&b| b != 0))
        .collect();
    for _ in 0..rounds(30) {
        let mut dev = Damaged::new(&whole);
        for _ in 0..=chance.below(40) {
            let at = used[usize::try_from(chance.below(used.len() as u64)).unwrap()];
            let byte = usize::try_from(chance.below(BLOCK as u64)).unwrap();
            change(&mut dev, at, BLOCK, false, |block| block[byte] ^= 1 << chance.below(8));
        }
        exercise(Arc::new(dev));
    }
    for i in 0..rounds(30) {
        let mut dev = Damaged::new(&whole);
        let len = if i % 2 == 0 { whole.len() as u64 } else { 48 << 20 };
        dev.len = usize::try_from(chance.below(len)).unwrap();
        exercise(Arc::new(dev));
    }
    for len in [0, 1, FIRST_COPY, FIRST_COPY + 64, FIRST_COPY + 4095, FIRST_COPY + 4096] {
        let mut dev = Damaged::new(&whole);
        dev.len = len;
        exercise(Arc::new(dev));
    }
}
