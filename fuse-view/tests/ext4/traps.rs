//! What readers of journals get wrong, each case made by hand: what the reader shows is as expected here, and it is
//! what the kernel shows.

use crate::common::support::{MemoryImage, Mount, workdir};
use crate::common::tree::{Mask, differences, of_mount, of_view};
use crate::common::{skip, sys};
use crate::jbd2::{ASYNC, FAST, Fast, Image, Journal, V1, V2, V3, WIDE, content, debugfs};
use fuse_view::fs::open;
use std::sync::Arc;

const FILES: usize = 20;
const OPTIONS: &str = "-J size=2";

/// What the kernel makes of a journal.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Kernel {
    Mounts,
    /// It refuses; what the reader shows then is told as partial.
    Refuses,
}

fn image(options: &str) -> Option<Image> {
    if !sys::is_root() {
        skip::skip("the reference is a mount, which needs root");
        return None;
    }
    Image::new(options, FILES)
}

/// Compares with the kernel, and the content of files with `expected`: all others are old.
fn check(what: &str, image: &Image, kernel: Kernel, expected: &[(usize, &str)]) -> String {
    let fs = open(Arc::new(MemoryImage(image.disk.clone()))).unwrap_or_else(|e| panic!("{what}: {e}"));
    let replay = fs.replay();
    for file in 0..FILES {
        let ino = fs.lookup(fs.root(), format!("f{file}").as_bytes()).unwrap();
        let mut found = vec![0; 1024];
        assert_eq!(fs.read_at(ino, 0, &mut found).unwrap(), 1024, "{what}");
        let text = expected.iter().find(|(number, _)| *number == file).map(|(_, text)| (*text).to_owned());
        let text = text.unwrap_or_else(|| format!("old {file}"));
        let wanted = match text.strip_prefix("magic ") {
            Some(rest) => [&[0xC0, 0x3B, 0x39, 0x98], &content(rest)[4..]].concat(),
            None => content(&text),
        };
        let shown = String::from_utf8_lossy(&found[..12]).into_owned();
        assert!(found == wanted, "{what}: f{file} is {shown:?}, not {text:?}; {replay}");
    }
    let dir = workdir();
    let copy = dir.path().join("copy");
    std::fs::write(&copy, &image.disk).unwrap();
    let mount = Mount::new(&copy, &dir.path().join("mnt"), "rw,noatime");
    assert_eq!(mount.is_ok(), kernel == Kernel::Mounts, "{what}: {:?}; ours: {replay}", mount.err());
    match mount {
        Ok(mount) => {
            assert!(matches!(&replay[..], "clean" | "replayed"), "{what}: {replay}");
            let found = differences(&of_view(&*fs), &of_mount(&mount.0), |_, _| Mask::default());
            assert!(found.is_empty(), "{what}: {found:?}");
        }
        Err(_) => assert!(replay.starts_with("partial: "), "{what}: {replay}"),
    }
    replay
}

/// All features that change what blocks look like: `(name, compatible, incompatible)`.
const FORMATS: &[(&str, u32, u32)] = &[
    ("none", 0, 0),
    ("64bit", 0, WIDE),
    ("v1", V1, 0),
    ("v1, 64bit", V1, WIDE),
    ("v2", 0, V2),
    ("v2, 64bit", 0, V2 | WIDE),
    ("v3", 0, V3),
    ("v3, 64bit", 0, V3 | WIDE),
];

#[test]
fn e1_the_log_wraps_inside_a_descriptors_blocks() {
    let Some(image) = image(OPTIONS) else { return };
    for &(name, compat, incompat) in FORMATS {
        let mut j = Journal::new(&image, compat, incompat, 1, 7);
        // The first commit, a descriptor and two of its blocks before the end, the others at the start.
        j.at = j.last - 6;
        j.start.0 = j.at;
        j.file(0, "first").commit();
        let blocks: Vec<_> = (1..6).map(|i| (image.files[i], content(&format!("wrapped {i}")))).collect();
        j.blocks(&blocks).commit();
        assert!(j.at < 10);
        let expected: Vec<String> = (1..6).map(|i| format!("wrapped {i}")).collect();
        let mut expected: Vec<(usize, &str)> = (1..6).zip(expected.iter().map(|s| &s[..])).collect();
        expected.push((0, "first"));
        check(name, &j.finish(), Kernel::Mounts, &expected);
    }
}

#[test]
fn e2_revokes_count_for_earlier_transactions_and_their_own_only() {
    let Some(image) = image(OPTIONS) else { return };
    for &(name, compat, incompat) in FORMATS {
        let mut j = Journal::new(&image, compat, incompat, 5, 7);
        let block = |i: usize| image.files[i];
        j.file(0, "revoked later").file(1, "revoked, then written").file(2, "stays").commit();
        j.revoke(&[block(0), block(1)]).file(3, "revoked in its own").revoke(&[block(3)]).commit();
        j.file(1, "written again").commit();
        // The revoke comes first in the log, and still counts for nothing later.
        j.revoke(&[block(4)]).commit();
        j.file(4, "after its revoke").commit();
        let expected = [(1, "written again"), (2, "stays"), (4, "after its revoke")];
        check(name, &j.finish(), Kernel::Mounts, &expected);
    }
}

#[test]
fn e3_blocks_that_begin_with_the_magic_are_escaped() {
    let Some(image) = image(OPTIONS) else { return };
    for &(name, compat, incompat) in FORMATS {
        let mut j = Journal::new(&image, compat, incompat, 5, 7);
        let escaped = [&[0xC0, 0x3B, 0x39, 0x98], &content("....escaped")[4..]].concat();
        j.blocks(&[(image.files[2], escaped.clone()), (image.files[3], content("plain"))]).commit();
        // Escaped once, plain later: the later copy wins as a whole.
        j.blocks(&[(image.files[4], escaped)]).commit();
        j.file(4, "no more").commit();
        check(name, &j.finish(), Kernel::Mounts, &[(2, "magic ....escaped"), (3, "plain"), (4, "no more")]);
    }
}

#[test]
fn e4_tags_of_every_size_over_several_descriptors() {
    let Some(image) = image(OPTIONS) else { return };
    for &(name, compat, incompat) in FORMATS {
        let mut j = Journal::new(&image, compat, incompat, 1, 7);
        // Free blocks at the end of the image fill the descriptors.
        let filler = (0..340u64).map(|i| (12 * 1024 - 400 + i, content("filler")));
        let mut blocks: Vec<_> = filler.collect();
        blocks.insert(0, (image.files[0], content("the first tag")));
        blocks.insert(171, (image.files[1], content("in the middle")));
        blocks.push((image.files[2], content("the last tag")));
        j.blocks(&blocks).commit();
        let expected = [(0, "the first tag"), (1, "in the middle"), (2, "the last tag")];
        check(name, &j.finish(), Kernel::Mounts, &expected);
    }
}

#[test]
fn e5_a_torn_transaction_is_not_there() {
    let Some(image) = image(OPTIONS) else { return };
    for &(name, compat, incompat) in FORMATS {
        let mut j = Journal::new(&image, compat, incompat, 5, 7);
        j.file(0, "complete").commit().file(1, "no commit block");
        check(name, &j.finish(), Kernel::Mounts, &[(0, "complete")]);
        // The commit block of another transaction stands there.
        j.id += 5;
        j.commit();
        check(name, &j.finish(), Kernel::Mounts, &[(0, "complete")]);
    }
    // Old bytes behind the part of a commit block that counts.
    let mut j = Journal::new(&image, 0, V3, 5, 7);
    j.file(0, "complete").commit();
    let at = j.previous();
    j.block(at)[512..].fill(0xAA);
    check("old bytes behind a commit", &j.finish(), Kernel::Mounts, &[(0, "complete")]);
}

#[test]
fn e5_a_commit_block_with_a_wrong_checksum() {
    let Some(image) = image(OPTIONS) else { return };
    for incompat in [V2, V3] {
        let mut j = Journal::new(&image, 0, incompat, 5, 7);
        j.file(0, "complete").commit().file(1, "badly committed").commit();
        let at = j.previous();
        j.block(at)[20] ^= 1;
        j.file(2, "after it").commit();
        let told = check("a bad commit", &j.finish(), Kernel::Refuses, &[(0, "complete")]);
        assert!(told.contains("transaction 8"), "{told}");
        // Older than what came before: remains of an earlier life, and no error.
        let mut j = Journal::new(&image, 0, incompat, 5, 7);
        j.file(0, "complete").commit();
        j.seconds -= 1000;
        j.file(1, "badly committed, long ago").commit();
        let at = j.previous();
        j.block(at)[20] ^= 1;
        check("a bad old commit", &j.finish(), Kernel::Mounts, &[(0, "complete")]);
    }
}

#[test]
fn e6_remains_of_an_earlier_life() {
    let Some(image) = image(OPTIONS) else { return };
    for (what, bad_tail, newer, kernel) in [
        ("stale, with a bad tail", true, false, Kernel::Mounts),
        ("not stale, with a bad tail", true, true, Kernel::Refuses),
    ] {
        let mut j = Journal::new(&image, 0, V3, 5, 7);
        j.file(0, "complete").commit();
        if !newer {
            j.seconds -= 1000;
        }
        let descriptor = j.at;
        j.file(1, "remains").commit();
        if bad_tail {
            j.block(descriptor)[1000] ^= 1;
        }
        check(what, &j.finish(), kernel, &[(0, "complete")]);
    }
    // Without checksums the next id decides alone: what follows with an older id is not there.
    let mut j = Journal::new(&image, 0, 0, 5, 7);
    j.file(0, "complete").commit();
    j.id = 7;
    j.file(1, "an older id").commit();
    check("older ids", &j.finish(), Kernel::Mounts, &[(0, "complete")]);
}

#[test]
fn e7_ids_wrap_around() {
    let Some(image) = image(OPTIONS) else { return };
    for incompat in [0, V3] {
        let mut j = Journal::new(&image, 0, incompat, 5, 0xFFFF_FFFE);
        j.file(0, "before").file(1, "revoked after the wrap").commit();
        j.file(2, "the last id").commit();
        j.file(0, "the first id").revoke(&[image.files[1]]).commit();
        j.revoke(&[image.files[3]]).commit();
        j.file(3, "after its revoke").commit();
        let expected = [(0, "the first id"), (2, "the last id"), (3, "after its revoke")];
        check("wrap", &j.finish(), Kernel::Mounts, &expected);
    }
}

#[test]
fn e8_the_flag_decides_and_not_the_journal() {
    let Some(image) = image(OPTIONS) else { return };
    let mut j = Journal::new(&image, 0, V3, 5, 7);
    j.file(0, "in the journal").commit();
    let mut full = j.finish();
    full.needs_recovery(false);
    assert_eq!(check("no flag", &full, Kernel::Mounts, &[]), "clean");
    j.start.0 = 0;
    assert_eq!(check("a flag and an empty journal", &j.finish(), Kernel::Mounts, &[]), "clean");
}

/// The superblock is in the journal, after an online resize for one: it is believed as replayed.
#[test]
fn e9_the_superblock_is_in_the_journal() {
    let Some(image) = image(OPTIONS) else { return };
    let mut later = image.clone();
    later.needs_recovery(true);
    later.superblock(|sb| sb[0x78..0x80].copy_from_slice(b"replayed"));
    let mut j = Journal::new(&image, 0, V3, 5, 7);
    j.blocks(&[(1, later.disk[1024..2048].to_vec())]).file(0, "new").commit();
    let full = j.finish();
    assert!(open(Arc::new(MemoryImage(full.disk.clone()))).unwrap().label().starts_with("replayed "));
    check("a new superblock", &full, Kernel::Mounts, &[(0, "new")]);
    // One that cannot be believed: what was there before is shown, and told.
    j.blocks(&[(1, content("no superblock"))]).commit();
    let fs = open(Arc::new(MemoryImage(j.finish().disk))).unwrap();
    assert!(fs.replay().starts_with("partial: "), "{}", fs.replay());
    assert_eq!(fs.readdir(fs.root(), 0, 1000).unwrap().len(), FILES + 1);
}

#[test]
fn e10_a_damaged_block_of_the_log_is_left_out_and_told() {
    let Some(image) = image(OPTIONS) else { return };
    for incompat in [V2, V3] {
        let mut j = Journal::new(&image, 0, incompat, 5, 7);
        j.file(0, "first").file(1, "damaged").file(2, "third").commit();
        j.block(5 + 3)[100] ^= 1;
        j.file(3, "later").commit();
        let told = check("damage", &j.finish(), Kernel::Refuses, &[(0, "first"), (2, "third"), (3, "later")]);
        assert!(told.contains(&format!("block {} of transaction 7", image.files[1])), "{told}");
        // What is revoked anyway does not matter.
        j.revoke(&[image.files[1]]).commit();
        check("revoked", &j.finish(), Kernel::Mounts, &[(0, "first"), (2, "third"), (3, "later")]);
    }
}

#[test]
fn e11_orphans_that_keep_a_name_are_cut() {
    for options in ["-J size=2 -O ^orphan_file", "-J size=2 -O ^orphan_file,^extents,^64bit,^metadata_csum"] {
        let Some(image) = image(options) else { return };
        let dir = workdir();
        let path = dir.path().join("image");
        std::fs::write(&path, &image.disk).unwrap();
        {
            let mount = Mount::new(&path, &dir.path().join("mnt"), "rw").unwrap();
            let file = std::fs::File::create(mount.0.join("long")).unwrap();
            use std::os::unix::fs::FileExt;
            for i in 0..300u64 {
                file.write_all_at(&content("tooth"), i * 3000).unwrap();
            }
        }
        let ino = debugfs(&path, &["stat long".into()]);
        let ino: u32 = ino[0].split_whitespace().nth(1).unwrap().parse().unwrap();
        for size in [0, 1500, 300_000] {
            debugfs(
                &path,
                &[
                    format!("sif <{ino}> size {size}"),
                    format!("sif <{ino}> dtime 0"),
                    format!("ssv last_orphan {ino}"),
                ],
            );
            let disk = std::fs::read(&path).unwrap();
            let fs = open(Arc::new(MemoryImage(disk.clone()))).unwrap();
            let copy = dir.path().join("copy");
            std::fs::write(&copy, &disk).unwrap();
            let mount = Mount::new(&copy, &dir.path().join("mnt"), "rw,noatime").unwrap();
            // The times are those of recovery.
            let found = differences(&of_view(&*fs), &of_mount(&mount.0), |path, _| {
                let touched = path == b"long";
                Mask { mtime: touched, ctime: touched, ..Mask::default() }
            });
            assert!(found.is_empty(), "{options}, cut to {size}: {found:?}");
        }
    }
}

#[test]
fn e12_asynchronous_commits() {
    let Some(image) = image(OPTIONS) else { return };
    // The last commit block is there, one of its blocks is not.
    let mut j = Journal::new(&image, 0, V3 | ASYNC, 5, 7);
    j.file(0, "complete").commit().file(1, "lost on the way").file(2, "there").commit();
    j.block(9)[..].fill(0);
    check("a lost block", &j.finish(), Kernel::Refuses, &[(0, "complete"), (2, "there")]);
    // A bad commit block ends the log without an error…
    let mut j = Journal::new(&image, 0, V3 | ASYNC, 5, 7);
    j.file(0, "complete").commit().file(1, "badly committed").commit();
    let at = j.previous();
    j.block(at)[20] ^= 1;
    check("a bad commit", &j.finish(), Kernel::Mounts, &[(0, "complete")]);
    // …also before a good one; a later bad one moves the end behind it.
    j.file(2, "good after it").commit();
    check("good after bad", &j.finish(), Kernel::Mounts, &[(0, "complete")]);
    j.file(3, "bad again").commit();
    let at = j.previous();
    j.block(at)[20] ^= 1;
    let expected = [(0, "complete"), (1, "badly committed"), (2, "good after it")];
    check("bad, good, bad", &j.finish(), Kernel::Mounts, &expected);
    // With the checksums of version 1 another commit after a bad one is damage.
    let mut j = Journal::new(&image, V1, ASYNC, 5, 7);
    j.file(0, "complete").commit().file(1, "lost on the way").commit();
    j.block(9)[5] ^= 1;
    check("version 1", &j.finish(), Kernel::Mounts, &[(0, "complete")]);
    j.file(2, "after it").commit();
    check("version 1, and one after it", &j.finish(), Kernel::Refuses, &[(0, "complete")]);
}

#[test]
fn e18_journals_that_are_refused_are_refused_by_name() {
    let Some(image) = image(OPTIONS) else { return };
    let mut j = Journal::new(&image, 0, 0, 5, 7);
    j.file(0, "new").commit();
    let put = |at: usize, n: u32| move |sb: &mut [u8]| sb[at..at + 4].copy_from_slice(&n.to_be_bytes());
    j.finish();
    // The first version of the superblock: what stands in the place of features is none. The kernel wants the second
    // one where metadata has checksums.
    let Some(plain) = Image::new("-J size=2 -O ^metadata_csum,^64bit", FILES) else { return };
    let mut old = Journal::new(&plain, 0, 0, 5, 7);
    old.file(0, "new").commit().finish();
    old.superblock(put(4, 3));
    check("version 1", &old.image, Kernel::Mounts, &[(0, "new")]);
    for (what, at, value, word) in [
        ("an unknown feature", 0x28, 0x40, "0x40"),
        ("more blocks than its file", 0x10, 5000, "5000"),
        ("too few blocks", 0x10, 500, "too short"),
        ("no superblock", 0, 1, "none"),
        ("blocks of another size", 0xC, 4096, "4096"),
    ] {
        let old: [u8; 4] = j.block(0)[at..at + 4].try_into().unwrap();
        j.superblock(put(at, value));
        let told = check(what, &j.image.clone(), Kernel::Refuses, &[]);
        assert!(told.contains(word), "{what}: {told}");
        j.superblock(|sb| sb[at..at + 4].copy_from_slice(&old));
    }
    let mut external = j.image.clone();
    external.superblock(|sb| {
        sb[0xE0..0xE4].fill(0);
        sb[0xE4..0xE8].copy_from_slice(&0x801u32.to_le_bytes());
        sb[0xD0..0xE0].copy_from_slice(&[0xAB; 16]);
    });
    let told = check("an external journal", &external, Kernel::Refuses, &[]);
    assert!(told.contains("another device, abababab-abab-"), "{told}");
}

/// The root directory, and the inode of file number `file` as mke2fs numbers them.
const ROOT: u32 = 2;

fn inode_of(image: &Image, file: usize) -> u32 {
    let fs = open(Arc::new(MemoryImage(image.disk.clone()))).unwrap();
    u32::try_from(fs.lookup(fs.root(), format!("f{file}").as_bytes()).unwrap()).unwrap()
}

fn fast_image() -> Option<Image> {
    image("-J size=2 -O fast_commit")
}

/// The names in the root beside the files, and whether the kernel agrees.
fn names(what: &str, image: &Image) -> (String, Vec<String>) {
    let fs = open(Arc::new(MemoryImage(image.disk.clone()))).unwrap();
    let entries = fs.readdir(fs.root(), 0, 1000).unwrap();
    let mut names: Vec<String> = entries.iter().map(|e| String::from_utf8(e.name.clone()).unwrap()).collect();
    names.retain(|name| name != "lost+found");
    names.sort();
    let dir = workdir();
    let copy = dir.path().join("copy");
    std::fs::write(&copy, &image.disk).unwrap();
    match Mount::new(&copy, &dir.path().join("mnt"), "rw,noatime") {
        Ok(mount) => {
            let found = differences(&of_view(&*fs), &of_mount(&mount.0), |_, _| Mask {
                mtime: true,
                ctime: true,
                dir_size: true,
                ..Mask::default()
            });
            assert!(found.is_empty(), "{what}: {found:?}; {}", fs.replay());
        }
        Err(_) => assert!(fs.replay().starts_with("partial"), "{what}: {}", fs.replay()),
    }
    (fs.replay(), names)
}

#[test]
fn e14_units_of_fast_commits() {
    let Some(image) = fast_image() else { return };
    let ino = inode_of(&image, 0);
    let mut j = Journal::new(&image, 0, V3 | FAST, 5, 7);
    j.file(1, "in the log").commit();
    let mut fast = Fast::new(8);
    fast.name(4, ROOT, ino, "first unit").tail(8);
    fast.name(4, ROOT, ino, "second unit").name(5, ROOT, ino, "f0").tail(8);
    // Units of an earlier transaction behind the last one.
    fast.name(4, ROOT, ino, "stale unit").tail(7);
    fast.put(&mut j);
    let (replay, found) = names("units", &j.finish());
    assert_eq!(replay, "replayed");
    assert!(found.contains(&"first unit".into()) && found.contains(&"second unit".into()), "{found:?}");
    assert!(!found.contains(&"stale unit".into()) && !found.contains(&"f0".into()), "{found:?}");
}

#[test]
fn e15_ranges_of_fast_commits() {
    let Some(image) = fast_image() else { return };
    let ino = inode_of(&image, 0);
    let (one, two) = (image.files[1], image.files[2]);
    let mut j = Journal::new(&image, 0, V3 | FAST, 5, 7);
    j.file(3, "in the log").commit();
    let mut fast = Fast::new(8);
    // Moved to another block, and back, and then to a third one.
    fast.range(ino, 0, 1, one).range(ino, 0, 1, image.files[0]).tail(8);
    fast.range(ino, 0, 1, two).tail(8);
    fast.put(&mut j);
    // The content of f2 is that of f0 now, for the kernel as well.
    check("moved", &j.finish(), Kernel::Mounts, &[(0, "old 2"), (3, "in the log")]);
}

#[test]
fn e16_names_of_fast_commits() {
    let Some(image) = fast_image() else { return };
    let (a, b) = (inode_of(&image, 0), inode_of(&image, 1));
    for (what, records) in [
        ("replaced", &[(5, a, "f0"), (4, b, "f0")][..]),
        ("replaced twice", &[(5, a, "f0"), (4, b, "f0"), (5, b, "f0"), (4, a, "f0")]),
        ("absent", &[(5, a, "never there"), (4, a, "there")]),
        ("of another inode", &[(5, a, "f1"), (4, a, "there")]),
        ("exists already", &[(4, a, "f1"), (4, a, "f1")]),
        ("a missing inode", &[(4, 1999, "x"), (5, 1999, "f1"), (3, 1999, "f2")]),
    ] {
        let mut j = Journal::new(&image, 0, V3 | FAST, 5, 7);
        j.file(3, "in the log").commit();
        let mut fast = Fast::new(8);
        // A second name, so that no count falls to zero.
        fast.name(4, ROOT, a, "other a").name(4, ROOT, b, "other b");
        for &(tag, ino, name) in records {
            fast.name(tag, ROOT, ino, name);
        }
        fast.tail(8).put(&mut j);
        names(what, &j.finish());
    }
}

#[test]
fn e17_fast_commits_that_do_not_count() {
    let Some(image) = fast_image() else { return };
    let ino = inode_of(&image, 0);
    let check = |what: &str, fast: &Fast, told: &str| {
        let mut j = Journal::new(&image, 0, V3 | FAST, 5, 7);
        j.file(3, "in the log").commit();
        fast.put(&mut j);
        let (replay, found) = names(what, &j.finish());
        assert!(replay.starts_with(told), "{what}: {replay}");
        assert!(!found.contains(&"torn".into()), "{what}: {found:?}");
    };
    let mut torn = Fast::new(8);
    torn.name(4, ROOT, ino, "torn").tail(8);
    torn.bytes[20] ^= 1;
    check("torn in the first unit", &torn, "partial: the first fast commit");
    let mut other = Fast::new(9);
    other.name(4, ROOT, ino, "torn").tail(9);
    check("of another transaction", &other, "replayed");
    let mut none = Fast::new(8);
    none.bytes.clear();
    none.name(4, ROOT, ino, "torn").tail(8);
    check("without a head", &none, "replayed");
    let mut pads = Fast::new(8);
    pads.record(7, &[0; 100]).tail(8).record(7, &[0; 50]).tail(8);
    check("nothing but padding", &pads, "replayed");
    let mut second = Fast::new(8);
    second.record(7, &[0; 4]).tail(8);
    let whole = second.bytes.len();
    second.name(4, ROOT, ino, "torn").tail(8);
    second.bytes[whole + 12] ^= 1;
    check("torn in the second unit", &second, "replayed");
}
