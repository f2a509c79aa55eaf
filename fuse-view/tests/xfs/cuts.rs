//! Cuts of a busy file system: after replay the tree is the one of the kernel's mount.
//!
//! `make test` takes a few cuts of every case; `COWSLIP_REPLAY_CUTS=2000` asks for so many in all, with new seeds for
//! every round, from `COWSLIP_REPLAY_SEED` on. `COWSLIP_REPLAY_CASE` names the only case to run,
//! `COWSLIP_REPLAY_KEEP` a file for the first cut that differs.

use crate::common::support::Chance;
use crate::reference::{Busy, Features};
use crate::workload::Workload;

/// A kind of file system.
struct Case {
    name: &'static str,
    features: Features,
}

/// Incompatible features that mkfs.xfs need not know: an empty file system gets them by their bits.
const EXCHANGE: u32 = 0x40;
const PARENT: u32 = 0x80;

const fn case(name: &'static str, mkfs: &'static str, mount: &'static str, incompat: u32) -> Case {
    Case { name, features: Features { mkfs, mount, incompat } }
}

const CASES: &[Case] = &[
    case("default", "", "", 0),
    case("1k", "-b size=1024 -m rmapbt=1", "logbsize=256k", 0),
    case("old", "-m reflink=0,rmapbt=0,finobt=0,bigtime=0 -i sparse=0", "logbsize=16k", 0),
    case("wide", "-n size=65536 -i nrext64=1,size=1024", "logbsize=64k", 0),
    case("sectors", "-s size=4096 -l su=65536 -b size=4096 -m rmapbt=1", "", 0),
    case("groups", "-d agcount=6 -m rmapbt=1 -i maxpct=50", "wsync", 0),
    case("large-inodes", "-i size=2048 -m inobtcount=1", "", 0),
    case("keep", "-i size=512", "ikeep,allocsize=64k", 0),
    case("parents", "-m rmapbt=1 -d agcount=2 -l size=20m", "", EXCHANGE | PARENT),
    case("16k", "-b size=16384 -d agcount=2", "logbsize=128k", 0),
];

/// Version 4, which few kernels mount any more.
const VERSION_4: &[Case] = &[
    case("4", "-m crc=0", "", 0),
    case(
        "4-oldest",
        "-m crc=0 -b size=512 -i size=256,attr=1,projid32bit=0 -n ftype=0 -l version=1,lazy-count=0",
        "",
        0,
    ),
    case("4-1k", "-m crc=0 -b size=1024 -n size=16384,ftype=1 -d agcount=6", "logbsize=256k", 0),
    case("4-keep", "-m crc=0 -i size=512 -l su=32768", "ikeep,noquota,attr2", 0),
];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|n| n.parse().ok())
}

/// Cuts of one file system under the workload of `seed`; whether there were any.
fn round(case: &Case, seed: u64, cuts: u64) -> Option<()> {
    let mut busy = Busy::new(case.features, &format!("case {}, seed {seed}", case.name))?;
    let mut workload = Workload::new(busy.root(), seed);
    let mut chance = Chance(seed ^ 0xC07);
    for _ in 0..200 {
        workload.step();
    }
    // The log has gone around before the first cut.
    for _ in 0..2000 {
        if busy.log_cycle() > 1 + seed % 3 {
            break;
        }
        workload.fill_log();
    }
    for _ in 0..cuts {
        for _ in 0..=chance.below(60) {
            workload.step();
        }
        busy.cut();
    }
    let (replayed, cycle) = (busy.replayed, busy.log_cycle());
    println!("case {}, seed {seed}: {replayed} of {cuts} cuts replayed, cycle {cycle} of the log", case.name);
    assert!(replayed * 10 >= cuts * 9, "most cuts have something to replay");
    assert!(cycle > 1, "the log has not gone around");
    Some(())
}

/// Every `step`th of these cases from `first` on.
fn cases(all_cases: &'static [Case], first: usize, step: usize) {
    let only = std::env::var("COWSLIP_REPLAY_CASE").ok();
    let wanted = |case: &&Case| only.as_ref().is_none_or(|name| case.name == name);
    let cases: Vec<&Case> = all_cases.iter().skip(first).step_by(step).filter(wanted).collect();
    let seed = number("COWSLIP_REPLAY_SEED").unwrap_or(1);
    let Some(all) = number("COWSLIP_REPLAY_CUTS") else {
        for case in cases {
            if round(case, seed, 2).is_none() {
                return;
            }
        }
        return;
    };
    const ROUND: u64 = 40;
    let rounds = all.div_ceil(ROUND * all_cases.len() as u64);
    for seed in seed..seed + rounds {
        for case in &cases {
            if round(case, seed, ROUND).is_none() {
                return;
            }
        }
    }
}

#[test]
fn cuts_are_what_the_kernel_shows() {
    cases(CASES, 0, 2);
}

#[test]
fn cuts_are_what_the_kernel_shows_with_other_features() {
    cases(CASES, 1, 2);
}

#[test]
fn test_kernel_cuts_of_version_4() {
    if std::env::var_os("COWSLIP_TEST_KERNEL").is_some() {
        cases(VERSION_4, 0, 1);
    }
}
