//! Situations that readers of a log get wrong, each made on purpose; the reference is the kernel's recovery.

use crate::common::support::{Chance, run};
use crate::common::sys;
use crate::reference::{Busy, Features, Log};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

const fn features(mkfs: &'static str, mount: &'static str) -> Features {
    Features { mkfs, mount, incompat: 0 }
}

/// Rounds of a doing, each followed by a cut.
fn trap(
    name: &str,
    features: Features,
    rounds: u64,
    mut act: impl FnMut(&Path, &mut Chance, u64),
) -> Option<Busy> {
    let mut busy = Busy::new(features, name)?;
    let mut chance = Chance(rounds);
    for round in 0..rounds {
        act(busy.root(), &mut chance, round);
        assert_eq!(busy.cut(), "replayed", "{name}");
    }
    Some(busy)
}

fn sync(path: &Path) {
    File::open(path).unwrap().sync_all().unwrap();
}

fn write(path: &Path, chance: &mut Chance, len: usize) {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path).unwrap();
    file.write_all_at(&chance.bytes(len), 0).unwrap();
    file.sync_all().unwrap();
}

/// Every other block of a file, so that no two extents join.
fn fragment(path: &Path, chance: &mut Chance, blocks: u64) {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path).unwrap();
    for i in 0..blocks {
        file.write_all_at(&chance.bytes(100), i * 8192).unwrap();
        sys::fallocate(&file, 0, i64::try_from(i * 8192).unwrap(), 4096).unwrap();
    }
    file.sync_all().unwrap();
}

/// Records with more words than one header has room for, also over the end of the log.
#[test]
fn x1_words_of_long_records_are_restored() {
    let busy = trap("x1", features("", "logbsize=256k"), 5, |root, chance, round| {
        for i in 0..700 {
            let path = root.join(format!("f{i}"));
            File::create(&path).unwrap();
            sys::set_xattr(&path, "user.words", &chance.bytes(200)).unwrap();
        }
        write(&root.join("last"), chance, 5000 * (1 + usize::try_from(round).unwrap()));
    });
    let Some(mut busy) = busy else { return };
    let log = Log::of(&busy.unmount());
    let lengths = (0..log.len).map(|at| log.sector(at)).filter(|s| s.starts_with(&[0xFE, 0xED, 0xBA, 0xBE]));
    let longest = lengths.map(|s| u32::from_be_bytes(s[12..16].try_into().unwrap())).max().unwrap();
    assert!(longest > 64 << 10, "no record has more than 128 sectors: {longest} bytes");
}

/// One checkpoint over very many small records.
#[test]
fn x5_a_checkpoint_in_many_records() {
    trap("x5", features("", "logbsize=16k"), 2, |root, _, round| {
        let dir = root.join("dir");
        if round == 0 {
            fs::create_dir(&dir).unwrap();
            for i in 0..2500 {
                File::create(dir.join(format!("{i}-{}", "n".repeat(i % 120)))).unwrap();
            }
        } else {
            for i in (0..2500).filter(|i| i % 10 != 3) {
                fs::remove_file(dir.join(format!("{i}-{}", "n".repeat(i % 120)))).unwrap();
            }
        }
        sync(&dir);
        sync(root);
    });
}

/// Blocks that were a directory, became content, and were a directory again, all in one log.
#[test]
fn x6_cancelled_buffers() {
    trap("x6", features("-b size=1024", ""), 4, |root, chance, _| {
        for i in 0..4 {
            let dir = root.join(format!("dir{i}"));
            fs::create_dir(&dir).unwrap();
            for i in 0..200 {
                symlink("t".repeat(700), dir.join(format!("link {i}"))).unwrap();
            }
            sync(&dir);
            fs::remove_dir_all(&dir).unwrap();
            sync(root);
            write(&root.join(format!("file{i}")), chance, 300_000);
            if i % 2 == 0 {
                fs::remove_file(root.join(format!("file{i}"))).unwrap();
                sync(root);
            }
        }
    });
}

/// Chunks of inodes that are given up, their blocks used for content.
#[test]
fn x7_cancelled_clusters_of_inodes() {
    trap("x7", features("-m finobt=1", ""), 3, |root, chance, _| {
        let dir = root.join("many");
        fs::create_dir(&dir).unwrap();
        for i in 0..300 {
            File::create(dir.join(format!("{i}"))).unwrap();
        }
        sync(&dir);
        fs::remove_dir_all(&dir).unwrap();
        sync(root);
        for i in 0..10 {
            write(&root.join(format!("content{i}")), chance, 100_000);
        }
    });
}

/// Metadata on disk that is newer than the first part of the log.
#[test]
fn x8_what_is_newer_on_disk_stays() {
    let busy = trap("x8", features("", ""), 6, |root, chance, round| {
        let dir = root.join("dir");
        fs::create_dir_all(&dir).unwrap();
        for i in 0..250 {
            let path = dir.join(format!("name {i} of round {round}"));
            File::create(&path).unwrap();
            sys::set_xattr(&path, "user.a", &chance.bytes(300)).unwrap();
            if i % 3 == 0 {
                let _ = fs::remove_file(dir.join(format!("name {i} of round {}", round.wrapping_sub(1))));
            }
            if i % 9 == 0 {
                sync(&path);
            }
        }
        sync(&dir);
    });
    let Some(busy) = busy else { return };
    assert!(busy.log_cycle() >= 1);
}

/// Checkpoints that share a record.
#[test]
fn x9_transactions_with_one_lsn() {
    trap("x9", features("", "logbsize=256k"), 3, |root, _, round| {
        std::thread::scope(|scope| {
            for thread in 0..8 {
                scope.spawn(move || {
                    for i in 0..25 {
                        let path = root.join(format!("t{thread}-{round}-{i}"));
                        fs::write(&path, [7; 100]).unwrap();
                        sync(&path);
                        sync(root);
                    }
                });
            }
        });
    });
}

/// Blocks of which the log changes a part: the checksum that they have on disk is that of what they held before.
#[test]
fn x10_checksums_of_what_the_log_changed() {
    trap("x10", features("-b size=1024", ""), 3, |root, chance, round| {
        let (dir, file) = (root.join("directory"), root.join("file"));
        fs::create_dir_all(&dir).unwrap();
        for i in 0..300 {
            File::create(dir.join(format!("name {i} of round {round}"))).unwrap();
        }
        fragment(&file, chance, 200 * (round + 1));
        for i in 0..30 {
            sys::set_xattr(&file, &format!("user.{i}"), &chance.bytes(100)).unwrap();
        }
        // All metadata is where it belongs then, with its checksums.
        let at = root.to_str().unwrap();
        run("fsfreeze", &["-f", at]).and_then(|_| run("fsfreeze", &["-u", at])).unwrap();
        fs::rename(dir.join(format!("name 7 of round {round}")), dir.join(format!("renamed {round}")))
            .unwrap();
        sys::set_xattr(&file, "user.7", b"changed").unwrap();
        write(&file, chance, 20_000);
        sync(&dir);
    });
}

/// Forks that go from the inode to extents to trees and back, between two syncs.
#[test]
fn x11_forks_that_change_their_format() {
    trap("x11", features("-b size=1024 -m rmapbt=1", ""), 6, |root, chance, round| {
        let (file, dir, attrs) = (root.join("file"), root.join("dir"), root.join("attrs"));
        fs::create_dir_all(&dir).unwrap();
        fs::write(&attrs, b"").unwrap();
        let grow = round % 3;
        if grow == 2 {
            let open = OpenOptions::new().write(true).open(&file).unwrap();
            open.set_len(5000).unwrap();
            open.sync_all().unwrap();
        } else {
            fragment(&file, chance, if grow == 0 { 5 } else { 120 });
        }
        for i in 0..[3, 400, 2][usize::try_from(grow).unwrap()] {
            let _ = File::create(dir.join(format!("entry number {i}")));
        }
        for i in 0..12 {
            let name = format!("user.attribute{i}");
            if grow == 2 && i > 1 {
                let _ = sys::remove_xattr(&attrs, &name);
            } else {
                let len = [10, 900, 20][usize::try_from(grow).unwrap()];
                sys::set_xattr(&attrs, &name, &chance.bytes(len)).unwrap();
            }
        }
        for (name, len) in [("short", 20), ("long", 1000)] {
            let _ = fs::remove_file(root.join(name));
            symlink("s".repeat(len), root.join(name)).unwrap();
            sys::set_xattr(&root.join(name), "trusted.t", &chance.bytes(60)).unwrap();
        }
        let _ = sys::mknod(&root.join("device"), libc::S_IFBLK | 0o600, 8, 3);
        if grow == 2 {
            for i in 2..400 {
                let _ = fs::remove_file(dir.join(format!("entry number {i}")));
            }
        }
        [&file, &dir, &attrs, &root.to_path_buf()].iter().for_each(|path| sync(path));
    });
}

/// Times at the ends of both forms of time stamps, and both forms of counters of extents.
#[test]
fn x12_times_and_counters() {
    for mkfs in ["-m bigtime=1 -i nrext64=1", "-m bigtime=0 -i nrext64=0"] {
        trap("x12", features(mkfs, ""), 1, |root, chance, _| {
            for seconds in [-2_147_483_648, -1, 0, 2_147_483_647, 2_147_483_648, 16_299_260_424] {
                let path = root.join(format!("t{seconds}"));
                write(&path, chance, 100);
                sys::set_mtime(&path, seconds, 999_999_999).unwrap();
                sync(&path);
            }
            fragment(&root.join("pieces"), chance, 60);
        });
    }
}

/// Unlinked files that are open: only their links to each other change in their clusters.
#[test]
fn x13_open_files_without_names() {
    let mut open = Vec::new();
    trap("x13", features("", ""), 2, |root, _, round| {
        for i in 0..150 {
            let path = root.join(format!("{round}-{i}"));
            fs::write(&path, [3; 300]).unwrap();
            if i % 3 == 0 {
                open.push(File::open(&path).unwrap());
            }
        }
        sync(root);
        for i in (0..150).step_by(3) {
            fs::remove_file(root.join(format!("{round}-{i}"))).unwrap();
        }
        sync(root);
    });
}

/// Chunks of inodes made and filled in the log; free inodes of them are not there.
#[test]
fn x14_new_chunks_of_inodes() {
    trap("x14", features("-i sparse=1 -d agcount=2", ""), 3, |root, chance, round| {
        if round == 0 {
            // Free space in pieces too small for a whole chunk.
            for i in 0..600 {
                fs::write(root.join(format!("piece{i}")), chance.bytes(16_000)).unwrap();
            }
            for i in (0..600).step_by(2) {
                fs::remove_file(root.join(format!("piece{i}"))).unwrap();
            }
        }
        let dir = root.join(format!("dir{round}"));
        fs::create_dir(&dir).unwrap();
        for i in 0..200 {
            fs::write(dir.join(format!("{i}")), b"new").unwrap();
        }
        sync(&dir);
        for i in (0..200).filter(|i| i % 4 != 0) {
            fs::remove_file(dir.join(format!("{i}"))).unwrap();
        }
        for i in 0..30 {
            fs::write(dir.join(format!("again {i}")), b"used again").unwrap();
        }
        sync(&dir);
    });
}
