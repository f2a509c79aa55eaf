//! Damaged images: no panic, no endless work, and what is whole stays readable.

use crate::common::exercise::exercise;
use crate::common::populate::fill;
use crate::common::support::{Chance, MemoryImage, mke2fs, run, workdir};
use crate::jbd2::{FAST, Fast, Image, Journal, V3};
use fuse_view::{Error, fs::open};
use std::collections::HashSet;
use std::sync::Arc;

/// A small image with a bit of everything, filled by mke2fs itself, without checksums unless asked for.
pub fn small_image(options: &str) -> Option<Vec<u8>> {
    let dir = workdir();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    fill(&source, 7, false, 400);
    for large in ["comb", "holes", "huge"] {
        std::fs::remove_file(source.join("sparse").join(large)).unwrap();
    }
    let image = mke2fs(dir.path(), 16, &format!("{options} -N 3000 -d {}", source.display()))?;
    Some(std::fs::read(image).unwrap())
}

/// Blocks in use as metadata, where a flip reaches a parser: judged by what is not zero, the first megabytes most.
fn flip(bytes: &mut [u8], chance: &mut Chance, flips: u64, within: u64) {
    for _ in 0..flips {
        let at = usize::try_from(chance.below(within.min(bytes.len() as u64))).unwrap();
        bytes[at] = if chance.below(3) == 0 { 0xFF } else { bytes[at] ^ (1 << chance.below(8)) };
    }
}

/// Rounds of damage for each image; `EXT4_DAMAGE_ROUNDS` asks for more.
fn rounds() -> u64 {
    std::env::var("EXT4_DAMAGE_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(25)
}

#[test]
fn random_flips() {
    for (seed, options) in [
        (1, "-t ext4 -b 1024 -O ^metadata_csum,inline_data,^has_journal -I 512"),
        (2, "-t ext2 -b 1024"),
        (3, "-t ext4 -O ^metadata_csum,^has_journal,ea_inode,large_dir"),
    ] {
        let Some(whole) = small_image(options) else { return };
        let (good, bad) = exercise(whole.clone());
        assert!(good > 3000 && bad == 0, "{options}: {good} {bad}");
        let mut chance = Chance(seed);
        for round in 0..rounds() {
            let mut bytes = whole.clone();
            // Few flips near the start hit descriptors and tables, many all over hit the rest.
            let (flips, within) = if round % 2 == 0 { (300, 1 << 20) } else { (4000, 16 << 20) };
            flip(&mut bytes[2048..], &mut chance, flips, within);
            exercise(bytes);
        }
    }
}

#[test]
fn checksums_name_the_object_and_spare_the_rest() {
    let Some(whole) = small_image("-t ext4 -b 1024 -O ^has_journal") else { return };
    let all = exercise(whole.clone());
    assert_eq!(all.1, 0);
    let mut bytes = whole;
    let fs = open(Arc::new(MemoryImage(bytes.clone()))).unwrap();
    let victim = fs.lookup(fs.root(), b"files").unwrap();
    let file = fs.lookup(victim, b"len4096").unwrap();
    // The inode's uid is a field that nothing but its checksum protects.
    let uid = find_inode(&bytes, file);
    bytes[uid + 2] ^= 1;
    let fs = open(Arc::new(MemoryImage(bytes.clone()))).unwrap();
    assert!(matches!(fs.attr(file), Err(Error::Corrupt(why)) if why.contains("checksum")));
    fs.attr(fs.lookup(victim, b"len1024").unwrap()).unwrap();
    let (good, bad) = exercise(bytes);
    assert!(bad <= 3 && good + 6 >= all.0, "{good} of {} and {bad} errors", all.0);
}

/// Byte offset of an inode in the image, as debugfs tells it.
fn find_inode(bytes: &[u8], ino: u64) -> usize {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let text = run("debugfs", &["-R", &format!("imap <{ino}>"), file.path().to_str().unwrap()]).unwrap();
    let after =
        |word: &str| text.split(word).nth(1).unwrap().split([',', '\n']).next().unwrap().trim().to_string();
    let block: usize = after("located at block").parse().unwrap();
    block * 1024 + usize::from_str_radix(after("offset 0x").as_str(), 16).unwrap()
}

/// One block of a directory is lost: all other names are listed, then comes the error, and no lost name is denied.
#[test]
fn a_lost_block_of_a_directory() {
    let Some(mut bytes) = small_image("-t ext4 -b 1024 -O ^has_journal") else { return };
    let whole = open(Arc::new(MemoryImage(bytes.clone()))).unwrap();
    let dir = whole.lookup(whole.root(), b"names").unwrap();
    let all = whole.readdir(dir, 0, usize::MAX).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes).unwrap();
    let text = run("debugfs", &["-R", "blocks names", file.path().to_str().unwrap()]).unwrap();
    let block: usize = text.lines().find_map(|line| line.split_whitespace().nth(20)?.parse().ok()).unwrap();
    bytes[block * 1024 + 100] ^= 1;
    let fs = open(Arc::new(MemoryImage(bytes))).unwrap();
    let (mut cookie, mut names) = (0, HashSet::new());
    let error = loop {
        match fs.readdir(dir, cookie, 10) {
            Ok(entries) => {
                cookie = entries.last().expect("the end of the listing is an error").cookie;
                names.extend(entries.into_iter().map(|e| e.name));
            }
            Err(e) => break e,
        }
    };
    assert!(matches!(error, Error::Corrupt(_)), "{error}");
    let lost = all.len() - names.len();
    assert!((1..100).contains(&lost), "{lost} of {} names lost", all.len());
    for entry in all {
        match fs.lookup(dir, &entry.name) {
            Ok(ino) => assert!(names.contains(&entry.name) && ino == entry.ino),
            Err(e) => assert!(!names.contains(&entry.name) && matches!(e, Error::Corrupt(_)), "{e}"),
        }
    }
}

#[test]
fn truncations() {
    let Some(whole) = small_image("-t ext4 -b 1024 -O ^metadata_csum,^has_journal") else { return };
    let mut chance = Chance(5);
    for _ in 0..rounds() {
        let len = usize::try_from(chance.below(whole.len() as u64)).unwrap();
        exercise(whole[..len].to_vec());
    }
    for len in [0, 1, 1023, 1024, 1080, 2047, 2048, 4096] {
        exercise(whole[..len].to_vec());
    }
}

#[test]
fn the_superblock_lies() {
    let Some(whole) = small_image("-t ext4 -b 1024 -O ^metadata_csum,^has_journal") else { return };
    for field in (0..1024).step_by(2) {
        for value in [[0, 0], [0xFF, 0xFF], [1, 0], [0, 0x80]] {
            let mut bytes = whole[..2 << 20].to_vec();
            bytes[1024 + field..1026 + field].copy_from_slice(&value);
            let dev = Arc::new(MemoryImage(bytes));
            if let Ok(fs) = open(dev) {
                let _ = fs.readdir(fs.root(), 0, 1000);
                let _ = fs.lookup(fs.root(), b"files").and_then(|ino| fs.attr(ino));
                let _ = (fs.statfs(), fs.label(), fs.replay(), fs.format());
            }
        }
    }
    let mut chance = Chance(6);
    for _ in 0..200 {
        let mut bytes = whole[..1 << 20].to_vec();
        for _ in 0..8 {
            let at = 1024 + usize::try_from(chance.below(400)).unwrap();
            bytes[at] = chance.bytes(1)[0];
        }
        bytes[1024 + 0x38..1024 + 0x3A].copy_from_slice(&[0x53, 0xEF]);
        exercise(bytes);
    }
}

#[test]
fn unknown_features_are_refused_by_name() {
    let Some(mut bytes) = small_image("-t ext4 -b 1024 -O ^metadata_csum,^has_journal") else { return };
    bytes[1024 + 0x60] |= 1;
    let why = open(Arc::new(MemoryImage(bytes))).err().expect("compression is refused");
    assert!(matches!(&why, Error::Unsupported(text) if text.contains("compression")), "{why}");
}

/// A journal with everything in it, damaged in every field; its checksums are right again, so that the damage is met.
#[test]
fn journals() {
    let Some(image) = Image::new("-J size=2 -O fast_commit,^metadata_csum,uninit_bg", 20) else { return };
    let mut chance = Chance(8);
    for incompat in [0, 2, V3, V3 | FAST, V3 | FAST | 2 | 4] {
        let mut j = Journal::new(&image, 0, incompat, 1, u32::MAX - 1);
        j.at = j.last - 20;
        j.start.0 = j.at;
        for i in 0..12 {
            j.file(i, "new").file(i + 1, "newer").revoke(&[image.files[i], image.files[i + 2]]);
            // Metadata goes through the journal too: the first blocks of the image, as they are.
            let block = 1 + i * 7;
            let bytes = image.disk[block * 1024..(block + 1) * 1024].to_vec();
            j.blocks(&[(block as u64, bytes)]).commit();
        }
        let mut fast = Fast::new(j.id);
        fast.name(4, 2, 12, "linked").name(5, 2, 13, "f1").range(12, 0, 3, image.files[3]).tail(j.id);
        fast.name(3, 2, 14, "made").range(14, 5, 32770, 9000).tail(j.id);
        if incompat & FAST != 0 {
            fast.put(&mut j);
        }
        j.finish();
        let whole = j.image.clone();
        let used: Vec<u32> = (0..40).chain(j.last - 30..j.last + 4).collect();
        for _ in 0..rounds() * 8 {
            j.image = whole.clone();
            for _ in 0..=chance.below(4) {
                let log = used[usize::try_from(chance.below(used.len() as u64)).unwrap()];
                if log as usize >= j.blocks_of_log() {
                    continue;
                }
                // The first bytes of a block say the most.
                let within = if chance.below(3) == 0 { 1024 } else { 64 };
                let at = usize::try_from(chance.below(within)).unwrap();
                let byte = &mut j.block(log)[at];
                *byte = match chance.below(4) {
                    0 => 0xFF,
                    1 => 0,
                    2 => byte.wrapping_add(1),
                    _ => *byte ^ (1 << chance.below(8)),
                };
                if chance.below(5) > 0 {
                    j.sum_again(log);
                }
            }
            exercise(j.image.disk.clone());
        }
    }
}
