//! Power cuts: of every state that a workload could leave on the disk, the reader shows what the kernel shows after
//! its own replay.
//!
//! `make test` takes a few cuts of every case; `COWSLIP_REPLAY_CUTS=2000` asks for so many in all, with new seeds for
//! every round, from `COWSLIP_REPLAY_SEED` on. `COWSLIP_REPLAY_CASE` names the only case to run,
//! `COWSLIP_REPLAY_KEEP` a file for the first state that differs.

use crate::common::recorder::Recorder;
use crate::common::support::{Chance, MemoryImage, Mount, mke2fs, run, workdir};
use crate::common::tree::{Mask, Record, Tree, differences, of_mount, of_view};
use crate::common::workload::{Options, Workload};
use crate::common::{skip, sys};
use fuse_view::fs::open;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A kind of file system.
struct Case {
    name: &'static str,
    mkfs: &'static str,
    mount: &'static str,
    mib: u64,
    operations: u64,
}

const CASES: &[Case] = &[
    Case { name: "default", mkfs: "-t ext4 -J size=4", mount: "", mib: 32, operations: 260 },
    Case { name: "1k", mkfs: "-t ext4 -b 1024 -J size=1", mount: "", mib: 16, operations: 260 },
    Case { name: "data", mkfs: "-t ext4 -b 1024 -J size=2", mount: "data=journal", mib: 16, operations: 200 },
    Case {
        name: "nosums",
        mkfs: "-t ext4 -b 1024 -O ^metadata_csum,^64bit -J size=1",
        mount: "",
        mib: 16,
        operations: 260,
    },
    Case {
        name: "v1sums",
        mkfs: "-t ext4 -b 1024 -O ^metadata_csum,uninit_bg -J size=1",
        mount: "journal_checksum",
        mib: 16,
        operations: 200,
    },
    Case {
        name: "async",
        mkfs: "-t ext4 -b 1024 -J size=1",
        mount: "journal_async_commit,data=writeback",
        mib: 16,
        operations: 200,
    },
    Case {
        name: "bigalloc",
        mkfs: "-t ext4 -O bigalloc -C 16384 -J size=4",
        mount: "",
        mib: 48,
        operations: 200,
    },
    Case {
        name: "inline",
        mkfs: "-t ext4 -O inline_data,ea_inode,orphan_file -I 512 -b 2048 -J size=2",
        mount: "",
        mib: 24,
        operations: 240,
    },
    Case {
        name: "fast",
        mkfs: "-t ext4 -b 1024 -O fast_commit -J size=2",
        mount: "",
        mib: 16,
        operations: 260,
    },
    Case { name: "fast-only", mkfs: "-t ext4 -O fast_commit -J size=5", mount: "", mib: 32, operations: 300 },
    Case { name: "ext3", mkfs: "-t ext3 -b 1024 -J size=1", mount: "", mib: 16, operations: 260 },
    PIECES,
];

/// Groups that are too small for a journal, so that it lies in several extents; descriptors of groups all over the disk.
const PIECES: Case = Case {
    name: "pieces",
    mkfs: "-t ext4 -b 1024 -g 1024 -O ^flex_bg,^resize_inode,meta_bg -J size=1",
    mount: "",
    mib: 16,
    operations: 260,
};

/// What was seen.
#[derive(Debug, Default)]
struct Seen {
    cuts: usize,
    replayed: usize,
    refused: usize,
}

/// Environment variable as a number.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|n| n.parse().ok())
}

/// Runs `case` with `seed` and compares at about `cuts` of its states.
fn check(case: &Case, seed: u64, cuts: usize, seen: &mut Seen) {
    let dir = workdir();
    let options = format!("{} -E lazy_itable_init=0,lazy_journal_init=0 -N 2000", case.mkfs);
    let Some(image) = mke2fs(dir.path(), case.mib, &options) else { return };
    let bytes = std::fs::read(&image).unwrap();
    let mount = format!("rw,noatime,commit=600,{}", case.mount);
    let recorder = Recorder::mount(&bytes, dir.path(), mount.trim_end_matches(',')).unwrap();
    let simple = case.name == "fast-only";
    let fsyncs = if simple { 9 } else { 5 };
    let options = Options { simple, fsyncs, ..Options::default() };
    let mut workload = Workload::new(recorder.root(), seed, options);
    workload.run(case.operations);
    let mut states = recorder.cuts();
    drop(workload);
    drop(recorder);

    let mut chance = Chance(seed ^ 0xC07);
    let mut points: Vec<(usize, bool)> = Vec::new();
    let flushes = states.flushes();
    let step = (flushes.len() * 2 / cuts.max(1)).max(1);
    // The first flushes are those of the mount itself.
    let offset = usize::try_from(chance.below(step as u64)).unwrap();
    points.extend(flushes.iter().skip(offset).step_by(step).map(|&at| (at, false)));
    for _ in 0..cuts.saturating_sub(points.len()) {
        points.push((usize::try_from(chance.below(states.len() as u64)).unwrap(), true));
    }
    points.sort_unstable();
    for (at, torn) in points {
        let what = format!("case {}, seed {seed}, event {at} of {}, torn {torn}", case.name, states.len());
        let disk = if torn { states.torn(at, &mut chance) } else { states.state(at).to_vec() };
        compare(case, &what, disk, dir.path(), seen);
    }
}

/// One state, by the reader and by the kernel.
fn compare(case: &Case, what: &str, disk: Vec<u8>, dir: &Path, seen: &mut Seen) {
    let fast = case.mkfs.contains("fast_commit");
    let copy = dir.join("cut");
    std::fs::write(&copy, &disk).unwrap();
    let disk = Arc::new(MemoryImage(disk));
    let fs = open(disk.clone());
    let before = sys::stamp_now();
    let mount = Mount::new(&copy, &dir.join("cut-mnt"), "rw,noatime");
    seen.cuts += 1;
    let mount = match mount {
        Ok(mount) => mount,
        Err(e) => {
            // No reference: then nothing is claimed.
            seen.refused += 1;
            let told = fs.map_or_else(|e| e.to_string(), |fs| fs.replay());
            let log = run("dmesg", &[]).unwrap_or_default();
            let log: Vec<&str> = log.lines().rev().take(6).collect();
            println!("{what}: the kernel refuses ({}), {log:?}; ours: {told}", e.trim());
            assert!(!matches!(&told[..], "clean" | "replayed"), "{what}: {told}");
            return;
        }
    };
    let fs = fs.unwrap_or_else(|e| panic!("{what}: {e}"));
    seen.replayed += usize::from(fs.replay() == "replayed");
    let (ours, theirs) = (of_view(&*fs), of_mount(&mount.0));
    let found = differences(&ours, &theirs, |_, theirs| mask(theirs, before, fast));
    if !found.is_empty() {
        if let Ok(kept) = std::env::var("COWSLIP_REPLAY_KEEP") {
            std::fs::write(kept, &disk.0).unwrap();
        }
        panic!("{what}, {}:\n{}", fs.replay(), found.join("\n"));
    }
    assert!(matches!(&fs.replay()[..], "clean" | "replayed"), "{what}: {}", fs.replay());
    assert!(theirs_is_whole(&theirs), "{what}: the kernel's own tree has errors");
}

fn theirs_is_whole(theirs: &Tree) -> bool {
    theirs.values().all(|record| record.error.is_none())
}

/// What recovery touches carries the time of recovery.
fn mask(theirs: &Record, before: Duration, fast: bool) -> Mask {
    let touched = theirs.ctime.seconds >= i64::try_from(before.as_secs()).unwrap();
    // Replaying fast commits, the kernel allocates blocks for directories; the reader has no need to.
    Mask { mtime: touched, ctime: touched, dir_size: fast, ..Mask::default() }
}

/// What the matrices rest on: the kernel is shown the image, and not what a loop device remembers that somebody kept open.
#[test]
fn the_kernel_is_shown_what_the_image_holds_now() {
    if !sys::is_root() {
        skip::skip("a mount needs root");
        return;
    }
    let dir = workdir();
    let Some(image) = mke2fs(dir.path(), 16, "-t ext4 -b 1024 -E lazy_itable_init=0") else { return };
    let at = dir.path().join("mnt");
    let clean = std::fs::read(&image).unwrap();
    let mount = Mount::new(&image, &at, "rw,noatime,commit=600").unwrap();
    std::fs::create_dir(at.join("made")).unwrap();
    std::fs::File::open(at.join("made")).unwrap().sync_all().unwrap();
    let busy = std::fs::read(&image).unwrap();
    drop(mount);

    std::fs::write(&image, &clean).unwrap();
    let mount = Mount::new(&image, &at, "rw,noatime").unwrap();
    let device = run("findmnt", &["-no", "SOURCE", at.to_str().unwrap()]).unwrap();
    let open = std::fs::File::open(device.trim()).unwrap();
    drop(mount);
    std::fs::write(&image, &busy).unwrap();
    let closes = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        drop(open);
    });
    let _mount = Mount::new(&image, &at, "rw,noatime").unwrap();
    closes.join().unwrap();
    assert!(at.join("made").is_dir(), "the journal is not replayed");
}

/// E13: a journal in pieces; the other forms (1 KiB blocks, clusters, a block map) are cases of the matrix.
#[test]
fn e13_a_journal_in_several_extents() {
    let dir = workdir();
    let Some(image) = mke2fs(dir.path(), PIECES.mib, &format!("{} -N 2000", PIECES.mkfs)) else { return };
    let journal = run("debugfs", &["-R", "stat <8>", &image.display().to_string()]).unwrap();
    // Last come the words of debugfs to the error output.
    let extents = journal.lines().find(|line| line.starts_with("(0-")).unwrap_or_default();
    assert!(extents.contains(", ("), "it does not lie in several extents: {journal}");
    if !sys::is_root() {
        skip::skip("a workload needs a mount, which needs root");
        return;
    }
    let mut seen = Seen::default();
    check(&PIECES, 13, 12, &mut seen);
    assert!(seen.replayed * 2 > seen.cuts, "few of the cuts had anything to replay: {seen:?}");
}

/// Every case; few cuts of each unless more are asked for.
#[test]
fn cuts_are_what_the_kernel_shows() {
    if !sys::is_root() {
        skip::skip("a workload needs a mount, which needs root");
        return;
    }
    let wanted = number("COWSLIP_REPLAY_CUTS").map(|n| usize::try_from(n).unwrap());
    let only = std::env::var("COWSLIP_REPLAY_CASE").ok();
    let mut seen = Seen::default();
    let mut seed = number("COWSLIP_REPLAY_SEED").unwrap_or(1);
    loop {
        for case in CASES.iter().filter(|case| only.as_deref().is_none_or(|name| name == case.name)) {
            check(case, seed, if wanted.is_some() { 40 } else { 4 }, &mut seen);
        }
        println!("up to seed {seed}: {seen:?}");
        seed += 1;
        if wanted.is_none_or(|wanted| seen.cuts >= wanted) {
            break;
        }
    }
    assert!(seen.replayed * 2 > seen.cuts, "few of the cuts had anything to replay: {seen:?}");
}
