//! Cuts of a busy FAT: it has no log, so what a power cut leaves is any order of half a change, and the kernel shows
//! that as it is. So does the reader.
//!
//! Where vfat can be mounted only: the kernel of `make test-kernel`. `COWSLIP_REPLAY_CUTS=2000` asks for so many in
//! all, `COWSLIP_REPLAY_SEED` where to begin.

use crate::common::{
    recorder::Recorder,
    support::{Chance, MemoryImage, Mount, workdir},
    tree::{Mask, differences, of_mount, of_view},
    workload::{Options, Workload},
};
use crate::image::mkfs;
use crate::oracle::{OPTIONS, is_test_kernel};
use fuse_view::{fs::open, listing::Listing};
use std::{fs, path::Path, sync::Arc};

/// MiB and options of mkfs.vfat.
const CASES: [(u64, &str); 4] =
    [(6, "-F 12 -s 4"), (16, "-F 16 -s 1"), (36, "-F 32 -s 1"), (48, "-F 16 -s 8 -f 1")];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|n| n.parse().ok())
}

/// Compares one state; whether the kernel itself meets an error in it.
fn compare(disk: &[u8], dir: &Path, what: &str) -> bool {
    let copy = dir.join("cut");
    fs::write(&copy, disk).unwrap();
    let mount = Mount::with(&copy, &dir.join("cut-mnt"), &format!("ro,{OPTIONS}"));
    let view = open(Arc::new(MemoryImage(disk.to_vec()))).unwrap_or_else(|e| panic!("{what}: {e}"));
    let mount = match mount {
        Ok(mount) => mount,
        // Where the root's own chain leads nowhere it mounts nothing. The reader tells that, too, and shows the rest.
        Err(e) => {
            let mut top = Listing::new(&*view, view.root(), b"/", false);
            let told = top.any(|entry| entry.is_err_and(|error| error.path == b"/"));
            assert!(told, "{what}: only the kernel refuses: {e}");
            return true;
        }
    };
    let theirs = of_mount(&mount.0);
    // Nobody has inode numbers here.
    let found = differences(&of_view(&*view), &theirs, |_, _| Mask { ino: true, ..Mask::default() });
    if !found.is_empty() {
        if let Ok(keep) = std::env::var("COWSLIP_REPLAY_KEEP") {
            fs::write(keep, disk).unwrap();
        }
        panic!("{what}:\n{}", found.join("\n"));
    }
    theirs.values().any(|record| record.error.is_some())
}

/// Half of the cuts are right before a flush, half are torn between two; how many the kernel found broken.
fn round((mib, options): (u64, &str), seed: u64, cuts: u64) -> u64 {
    let dir = workdir();
    let Some(image) = mkfs(dir.path(), mib, options) else { return 0 };
    let bytes = fs::read(&image).unwrap();
    // Each change is written at once, or there would be little to cut.
    let mount = if seed.is_multiple_of(2) { "flush" } else { "sync,dirsync" };
    let recorder = Recorder::mount(&bytes, dir.path(), &format!("rw,{mount},{OPTIONS}")).unwrap();
    let mut workload = Workload::new(recorder.root(), seed, Options { fsyncs: 7, ..Options::default() });
    workload.run(150);
    let mut states = recorder.cuts();
    drop(workload);
    drop(recorder);
    let mut chance = Chance(seed);
    let mut points: Vec<_> = (0..cuts)
        .map(|i| (usize::try_from(chance.below(states.len() as u64)).unwrap(), i % 2 == 0))
        .collect();
    points.sort_unstable();
    let mut broken = 0;
    for (at, torn) in points {
        let what = format!("{options}, {mount}, seed {seed}, event {at} of {}, torn {torn}", states.len());
        let disk = if torn { states.torn(at, &mut chance) } else { states.state(at).to_vec() };
        broken += u64::from(compare(&disk, dir.path(), &what));
    }
    broken
}

#[test]
fn test_kernel_cuts_are_what_it_shows() {
    if !is_test_kernel() {
        return;
    }
    let all = number("COWSLIP_REPLAY_CUTS").unwrap_or(48);
    let per_round = if all > 48 { 40 } else { 12 };
    let first = number("COWSLIP_REPLAY_SEED").unwrap_or(1);
    let (mut done, mut broken) = (0, 0);
    for seed in first.. {
        for case in CASES {
            broken += round(case, seed, per_round);
            done += per_round;
        }
        println!(
            "up to seed {seed}: {done} cuts, in {broken} of them something is broken for the kernel too"
        );
        if done >= all {
            break;
        }
    }
}
