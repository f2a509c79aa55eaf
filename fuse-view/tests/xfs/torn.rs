//! Logs whose last records were not written wholly, or whose first ones were written over.

use crate::common::recorder::{Cuts, Recorder};
use crate::common::skip::skip;
use crate::common::support::{Chance, WorkDir, workdir};
use crate::common::sys;
use crate::common::tree::Mask;
use crate::image::mkfs_at;
use crate::reference::{Busy, Features, Log, compare};
use crate::workload::Workload;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

fn most(usual: usize) -> usize {
    std::env::var("COWSLIP_REPLAY_CUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// What was written while a file system was in use.
struct Recorded {
    dir: WorkDir,
    states: Cuts,
    log: Log,
}

fn record(options: &str, seed: u64, fill: u64, steps: u64) -> Option<Recorded> {
    if !sys::is_root() {
        skip("cuts of a mounted file system need root");
        return None;
    }
    let dir = workdir();
    let image = dir.path().join("image");
    mkfs_at(&image, 64, options)?;
    let log = Log::of(&image);
    let recorder = Recorder::mount(&std::fs::read(&image).unwrap(), dir.path(), "noatime").unwrap();
    let mut workload = Workload::new(recorder.root(), seed);
    (0..fill).for_each(|_| workload.fill_log());
    (0..steps).for_each(|_| workload.step());
    let states = recorder.cuts();
    drop(workload);
    Some(Recorded { dir, states, log })
}

/// Compares a state; false where the kernel refuses it.
fn check(dir: &Path, disk: &[u8], what: &str, count: &mut usize) -> bool {
    *count += 1;
    let image = dir.join(format!("cut{count}"));
    std::fs::write(&image, disk).unwrap();
    let answer = compare(&image, &dir.join("reference"), what, Mask::default());
    std::fs::remove_file(&image).unwrap();
    answer.inspect_err(|e| println!("{what}: the kernel refuses: {e}")).is_ok()
}

/// A cut at every sector of a write to the log: as many as wanted, spread over all writes.
fn every_sector(mut recorded: Recorded, name: &str) {
    let range = recorded.log.bytes();
    let (events, wanted) = (recorded.states.len(), most(8));
    let mut chance = Chance(2);
    let mut count = 0;
    let first = events / 3;
    for part in 0..wanted {
        // From a point chosen in each part on, the next write to the log.
        let span = (events - first) / wanted;
        let mut at = first + part * span + usize::try_from(chance.below(span.max(1) as u64 / 2 + 1)).unwrap();
        let before = recorded.states.state(at).to_vec();
        let changed = loop {
            if at + 1 >= events {
                break Vec::new();
            }
            at += 1;
            let after = recorded.states.state(at);
            let differs = |s: &usize| after[*s..*s + 512] != before[*s..*s + 512];
            let changed: Vec<usize> = range.clone().step_by(512).filter(differs).collect();
            if changed.len() > 1 {
                break changed;
            }
        };
        let after = recorded.states.state(at).to_vec();
        let Some(upto) = (changed.len() as u64).checked_sub(1) else { continue };
        let upto = 1 + usize::try_from(chance.below(upto)).unwrap();
        let mut disk = before;
        for sector in &changed[..upto] {
            disk[*sector..sector + 512].copy_from_slice(&after[*sector..sector + 512]);
        }
        let what = format!("{name}, {upto} of {} sectors before event {at} of {events}", changed.len());
        assert!(check(recorded.dir.path(), &disk, &what, &mut count), "{what}: refused");
    }
    assert!(count > wanted / 2, "{name}: {count} cuts only");
}

#[test]
fn x2_every_sector_of_the_first_cycle() {
    if let Some(recorded) = record("", 21, 2, 60) {
        every_sector(recorded, "x2 first cycle");
    }
}

#[test]
fn x2_every_sector_of_a_log_that_went_around() {
    if let Some(recorded) = record("-m reflink=0,rmapbt=0,finobt=0 -i sparse=0", 22, 90, 60) {
        every_sector(recorded, "x2 around");
    }
}

/// Between two flushes a disk keeps any part of what was written.
#[test]
fn x3_torn_records() {
    let Some(mut recorded) = record("", 23, 30, 120) else { return };
    let (events, wanted) = (recorded.states.len(), most(10));
    let mut chance = Chance(3);
    let (mut count, mut refused) = (0, 0);
    for part in 1..=wanted {
        let at = events * part / wanted;
        let disk = recorded.states.torn(at, &mut chance);
        let what = format!("x3, before event {at} of {events}");
        refused += usize::from(!check(recorded.dir.path(), &disk, &what, &mut count));
    }
    assert!(refused <= wanted / 4, "{refused} of {wanted} states are refused by the kernel itself");
}

/// The record at the tail is damaged: near enough to the head it counts as written over.
#[test]
fn x4_an_overwritten_tail() {
    let features = Features { mkfs: "", mount: "logbsize=256k", incompat: 0 };
    let Some(busy) = Busy::new(features, "x4") else { return };
    let mut workload = Workload::new(busy.root(), 24);
    let (mut damaged, mut near) = (0, 0);
    for round in 0..400 {
        workload.fill_log();
        let image = busy.copy(&format!("cut{round}"));
        let log = Log::of(&image);
        let Some((head, tail)) = ends(&log) else { continue };
        let free = (tail + log.len - head) % log.len;
        if log.cycle(0) > 1 && free < 3800 && (head + log.len - tail) % log.len > 1000 {
            near += 1;
            let at = log.start + (tail + 10) % log.len * 512 + 100;
            OpenOptions::new().write(true).open(&image).unwrap().write_all_at(b"written over", at).unwrap();
            let what = format!("x4, round {round}, tail {tail}, head {head}");
            let answer = compare(&image, &image.with_extension("mnt"), &what, Mask::default());
            damaged += usize::from(answer.is_ok());
        }
        std::fs::remove_file(&image).unwrap();
        if damaged >= 2 {
            break;
        }
    }
    println!("x4: {near} tails damaged, {damaged} of them passed over by the kernel");
    assert!(near > 0, "the log was never full enough");
}

/// Head and tail by the record with the highest place.
fn ends(log: &Log) -> Option<(u64, u64)> {
    let headers =
        (0..log.len).map(|at| (at, log.sector(at))).filter(|(_, s)| s.starts_with(b"\xFE\xED\xBA\xBE"));
    let be = |s: &[u8], at: usize| u64::from_be_bytes(s[at..at + 8].try_into().unwrap());
    let (at, last) = headers.max_by_key(|(_, s)| be(s, 16))?;
    let len = u64::from(u32::from_be_bytes(last[12..16].try_into().unwrap()));
    let size = u64::from(u32::from_be_bytes(last[320..324].try_into().unwrap()));
    Some(((at + size.div_ceil(32768) + len.div_ceil(512)) % log.len, be(&last, 24) & 0xFFFF_FFFF))
}
