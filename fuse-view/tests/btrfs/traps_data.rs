//! What replaying readers get wrong about extents, checksums and the log itself: a test for each.

use crate::common::support::{MemoryImage, run};
use crate::common::{sys, tree};
use crate::cuts::Outcome;
use crate::rig::{Cut, FIRST_COPY, Rig, content, find};
use fuse_view::Error;
use fuse_view::overlay::Scratch;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

fn extents(options: &str, mounted: &str) {
    let Some(rig) = Rig::mounted(options, mounted) else { return };
    let text =
        |len: usize| -> Vec<u8> { (0..len).map(|i| b'a' + u8::try_from(i / 500 % 26).unwrap()).collect() };
    for name in ["overwritten", "punched", "cut", "beyond", "source", "grown", "shrunk"] {
        rig.write(name, text(600_000));
    }
    rig.write("inline", text(500));
    rig.write("regular", text(20_000));
    rig.commit();
    rig.write_at("overwritten", 100_000, &[b'X'; 50_000]);
    rig.fsync("overwritten");
    rig.write_at("overwritten", 120_000, &[b'Y'; 1000]);
    rig.fsync("overwritten");
    rig.fallocate("punched", PUNCH, 50_000, 300_000);
    rig.fsync("punched");
    rig.same();
    rig.open("cut").set_len(100).unwrap();
    rig.open("cut").set_len(500_000).unwrap();
    rig.fsync("cut");
    rig.fallocate("beyond", KEEP, 600_000, 1_000_000);
    rig.fsync("beyond");
    rig.same();
    rig.write("inline", text(9000));
    rig.fsync("inline");
    rig.open("regular").set_len(0).unwrap();
    rig.write_at("regular", 0, b"small");
    rig.fsync("regular");
    rig.open("shrunk").set_len(12_345).unwrap();
    rig.fsync("shrunk");
    rig.write_at("grown", 2_000_000, b"far beyond");
    rig.fsync("grown");
    rig.same();
    for name in ["copy1", "copy2"] {
        rig.write(name, "");
        let copied = sys::clone_file(&rig.open("source"), &rig.open(name));
        // Files without checksums cannot share with those that have them; here all are of one kind.
        copied.unwrap();
        rig.fsync(name);
    }
    rig.write_at("copy1", 300_000, &[b'Z'; 5000]);
    rig.fsync("copy1");
    rig.fallocate("copy2", libc::FALLOC_FL_ZERO_RANGE, 10_000, 100_000);
    rig.fsync("copy2");
    rig.same();
}

#[test]
fn b09_extents() {
    extents("", "rw,commit=300");
}

#[test]
fn b09_extents_with_holes_told() {
    extents("-O ^no-holes", "rw,commit=300");
}

#[test]
fn b09_extents_compressed() {
    extents("", "rw,commit=300,compress-force=zstd");
}

#[test]
fn b09_extents_without_copying() {
    extents("", "rw,commit=300,nodatacow");
}

/// The checksums of what was just fsynced are in the log only, and are used.
#[test]
fn b10_checksums_from_the_log() {
    let Some(rig) = Rig::new("-d single") else { return };
    rig.write("file", vec![b'o'; 100_000]);
    rig.commit();
    rig.write_at("file", 8192, b"the new content, which begins with these words");
    rig.write("new", vec![b'n'; 50_000]);
    rig.fsync("file");
    rig.fsync("new");
    let mut cut = rig.cut();
    let view = cut.same();
    assert!(content(&*view, "file")[8192..].starts_with(b"the new content"));
    let at = (0..cut.bytes.len()).step_by(4096).find(|&at| cut.bytes[at..].starts_with(b"the new content"));
    cut.bytes[at.unwrap() + 20] ^= 1;
    let view = cut.view();
    let ino = find(&*view, "file").unwrap();
    let mut buf = vec![0; 4096];
    assert!(
        matches!(view.read_at(ino, 8192, &mut buf), Err(Error::Corrupt(why)) if why.contains("checksum"))
    );
    view.read_at(ino, 4096, &mut buf).unwrap();
    assert_eq!(content(&*view, "new"), vec![b'n'; 50_000]);
}

/// A log of several levels, and one with a block that cannot be right.
#[test]
fn b14_large_and_damaged_logs() {
    let Some(rig) = Rig::new("-n 4096") else { return };
    rig.write("committed", "");
    rig.commit();
    for i in 0..1500 {
        let file = File::create(rig.path(&format!("file{i}"))).unwrap();
        file.write_all_at(b"content", 0).unwrap();
        file.sync_all().unwrap();
    }
    rig.same();
    // Without memory for it, all that replay changes goes through the scratch file.
    let scratch = Scratch::new(0);
    let cut = rig.cut();
    let spilled = fuse_view::fs::open_with(Arc::new(MemoryImage(cut.bytes.clone())), &scratch).unwrap();
    assert_eq!((spilled.replay().as_str(), scratch.used_bytes()), ("replayed", 0));
    let found = tree::differences(&tree::of_view(&*spilled), &tree::of_view(&*cut.view()), |_, _| {
        tree::Mask::default()
    });
    assert!(found.is_empty(), "{}", found.join("\n"));
    drop(cut);
    for i in 0..3 {
        let mut cut = rig.cut();
        let blocks: Vec<usize> = small_log_blocks(&cut);
        assert!(blocks.len() > 100, "a log of {} blocks", blocks.len());
        for &at in &blocks {
            match i {
                // Every copy has a checksum that is wrong, or a generation that is.
                0 => cut.bytes[at + 3000] ^= 1,
                1 => cut.bytes[at + 80] ^= 1,
                _ => cut.bytes[at + 100] ^= 4,
            }
            if i > 0 {
                cut.fix(at, 4096);
            }
        }
        cut.committed_only("the log cannot be replayed");
    }
}

/// As [`Cut::log_blocks`], for nodes of 4 KiB.
fn small_log_blocks(cut: &Cut) -> Vec<usize> {
    let generation = cut.u64_at(FIRST_COPY + 0x48) + 1;
    (0..cut.bytes.len() / 4096)
        .map(|i| i * 4096)
        .filter(|&at| {
            cut.bytes[at + 32..at + 48] == cut.bytes[FIRST_COPY + 0x20..FIRST_COPY + 0x30]
                && cut.u64_at(at + 80) == generation
                && cut.u64_at(at + 88).cast_signed() == -6
        })
        .collect()
}

#[test]
fn b16_the_other_copy_of_a_log_block() {
    let Some(rig) = Rig::new("-m dup") else { return };
    rig.commit();
    for i in 0..200 {
        rig.write(&format!("file{i}"), "x".repeat(100));
    }
    rig.fsync("");
    rig.fsync("file7");
    for parity in 0..2 {
        let mut cut = rig.cut();
        // The copies have one address in their headers: one of each pair is damaged.
        let blocks = cut.log_blocks();
        let mut seen = std::collections::HashMap::new();
        for &at in &blocks {
            let turn = seen.entry(cut.u64_at(at + 48)).or_insert(0);
            if *turn == parity {
                cut.bytes[at + 5000] ^= 0xFF;
            }
            *turn += 1;
        }
        assert!(seen.values().all(|&copies| copies == 2));
        assert_eq!(content(&*cut.same(), "file7"), "x".repeat(100).as_bytes());
    }
}

/// A frozen file system has no log, and everything is there.
#[test]
fn b17_frozen_is_clean() {
    let Some(rig) = Rig::new("") else { return };
    rig.write("file", "not fsynced");
    let at = rig.path("");
    let at = at.to_str().unwrap();
    run("fsfreeze", &["-f", at]).unwrap();
    let cut = rig.cut();
    run("fsfreeze", &["-u", at]).unwrap();
    assert_eq!(cut.outcome(), Ok(Outcome::Clean));
    assert_eq!(content(&*cut.view(), "file"), b"not fsynced");
}
