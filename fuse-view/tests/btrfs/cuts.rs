//! The crash matrix: a file system is cut after each fsync, the kernel replays one copy, the reader another, and every
//! field of both trees is compared.
//!
//! `COWSLIP_REPLAY_CUTS=N` asks for N cuts instead of a few, `COWSLIP_REPLAY_SEED=N` for another history.

use crate::common::support::{CountingImage, Mount, run, workdir};
use crate::common::{sys, tree};
use crate::image::{can_mount, mkfs};
use crate::workload::Workload;
use fuse_view::{Timestamp, fs::open};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Cuts of one file system before a new one is made.
const CUTS_EACH: u64 = 60;

/// Copies what is not a hole: a cut. Nobody writes meanwhile but the kernel's own threads, and both sides get one copy.
pub fn cut(image: &Path, copy: &Path) {
    let from = File::open(image).unwrap();
    // Always a new file: who copied the mounts of this process meanwhile, as a container does when it starts, keeps the
    // kernel's mount of the last copy alive after it was unmounted here, and then that writes to its file.
    let _ = fs::remove_file(copy);
    let to = File::create_new(copy).unwrap();
    let len = from.metadata().unwrap().len();
    to.set_len(len).unwrap();
    let mut buf = vec![0; 1 << 20];
    let mut at = 0;
    while let Some(start) = sys::seek(&from, at, libc::SEEK_DATA).unwrap() {
        at = sys::seek(&from, start, libc::SEEK_HOLE).unwrap().unwrap();
        let mut pos = start;
        while pos < at {
            let want = usize::try_from((at - pos).min(1 << 20)).unwrap();
            let got = from.read_at(&mut buf[..want], pos).unwrap();
            to.write_all_at(&buf[..got], pos).unwrap();
            pos += got as u64;
        }
    }
}

/// What a comparison found out.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Clean,
    Replayed,
    /// The kernel refuses the log: the reader says so, and shows what the kernel shows without it.
    Refused,
}

/// Compares a copy as the reader and as the kernel, which replays it, show it.
pub fn compare(copy: &Path, at: &Path) -> Result<Outcome, String> {
    let view = open(Arc::new(CountingImage::open(copy))).map_err(|e| e.to_string())?;
    let ours = tree::of_view(&*view);
    let replay = view.replay();
    // What replay dates itself is later than this.
    let begin = sys::stamp_now();
    let begin =
        Timestamp { seconds: i64::try_from(begin.as_secs()).unwrap(), nanoseconds: begin.subsec_nanos() };
    let (mount, refused) = match Mount::with(copy, at, "rw") {
        Ok(mount) => (mount, false),
        Err(_) => (Mount::with(copy, at, "ro,rescue=nologreplay")?, true),
    };
    let theirs = tree::of_mount(&mount.0);
    drop(mount);
    let lost_a_name = |record: &tree::Record| record.ctime >= begin;
    let found = tree::differences(&ours, &theirs, |_, record| tree::Mask {
        ino: true,
        ctime: lost_a_name(record),
        ..tree::Mask::default()
    });
    if !found.is_empty() {
        return Err(format!("{replay}\n{}", found.join("\n")));
    }
    match (replay.as_str(), refused) {
        ("clean", false) => Ok(Outcome::Clean),
        ("replayed", false) => Ok(Outcome::Replayed),
        (partial, true) if partial.starts_with("partial: the log cannot be replayed") => Ok(Outcome::Refused),
        _ => Err(format!(
            "{replay}, and the kernel {}",
            if refused { "refuses the log" } else { "replays it" }
        )),
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Cuts of one file system until `cuts` had a log; counts of `[clean, replayed, refused]`.
fn history(seed: u64, cuts: u64, options: &str, mounted: &str) -> Option<[u64; 3]> {
    let dir = workdir();
    let image = mkfs(dir.path(), 512, options)?;
    let copy: PathBuf = dir.path().join("copy");
    let mount = Mount::with(&image, &dir.path().join("mnt"), mounted).unwrap();
    let mut work = Workload::new(&mount.0, seed);
    let mut counts = [0; 3];
    let mut steps = 0u64;
    while counts[1] + counts[2] < cuts {
        steps += 1;
        if steps.is_multiple_of(50) {
            work.mend();
        }
        if !work.step() {
            continue;
        }
        cut(&image, &copy);
        let at = dir.path().join("replayed");
        match compare(&copy, &at) {
            Ok(Outcome::Clean) => counts[0] += 1,
            Ok(Outcome::Replayed) => counts[1] += 1,
            Ok(Outcome::Refused) => counts[2] += 1,
            Err(found) => {
                keep(&image, &copy, seed, steps);
                panic!("seed {seed}, step {steps}, {options:?}, mounted with {mounted}:\n{found}");
            }
        }
    }
    drop(mount);
    Some(counts)
}

/// Keeps a cut that is not identical where `COWSLIP_REPLAY_KEEP` says; the copy was replayed, so it is cut again.
fn keep(image: &Path, copy: &Path, seed: u64, steps: u64) {
    if let Ok(dir) = std::env::var("COWSLIP_REPLAY_KEEP") {
        cut(image, copy);
        let _ = run("cp", &["--sparse=always", copy.to_str().unwrap(), &format!("{dir}/cut-{seed}-{steps}")]);
    }
}

fn matrix(lane: u64, short: u64, options: &str, mounted: &str) {
    if !can_mount() {
        return;
    }
    // The cuts asked for are shared by the lanes.
    let wanted = number("COWSLIP_REPLAY_CUTS").map_or(short, |all| all.div_ceil(LANES));
    let first = number("COWSLIP_REPLAY_SEED").unwrap_or(1) * 1000 + lane * 100_000;
    let mut total = [0; 3];
    let mut seed = first;
    while total[1] + total[2] < wanted {
        let cuts = CUTS_EACH.min(wanted - total[1] - total[2]);
        let Some(counts) = history(seed, cuts, options, mounted) else { return };
        total = [0, 1, 2].map(|i| total[i] + counts[i]);
        seed += 1;
    }
    println!(
        "{options:?} {mounted}: seeds {first} to {}: {} clean, {} replayed, {} refused by the kernel too",
        seed - 1,
        total[0],
        total[1],
        total[2]
    );
    assert!(total[2] * 20 <= wanted, "the kernel refuses few of its own logs: {total:?}");
}

const LANES: u64 = 5;

#[test]
fn cuts_with_defaults() {
    matrix(1, 12, "", "rw,commit=300");
}

#[test]
fn cuts_without_no_holes() {
    matrix(2, 5, "-O ^no-holes -n 4096", "rw,commit=300");
}

#[test]
fn cuts_with_compression() {
    matrix(3, 5, "--csum xxhash", "rw,commit=300,compress-force=zstd");
}

#[test]
fn cuts_without_checksums_of_data() {
    matrix(4, 5, "-m single -R ^free-space-tree", "rw,commit=300,nodatacow,max_inline=0");
}

#[test]
fn cuts_with_mixed_groups() {
    matrix(5, 5, "--mixed --csum sha256", "rw,commit=300,compress-force=lzo");
}
