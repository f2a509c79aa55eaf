//! Work that the log promises and the cut left undone: shared extents, content exchanged.

use crate::common::recorder::Recorder;
use crate::common::skip::skip;
use crate::common::support::{Chance, workdir};
use crate::common::sys;
use crate::common::tree::Mask;
use crate::image::{mkfs_at, set_incompat};
use crate::reference::compare;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

const EXCHANGE: u32 = 0x40;

/// A file whose blocks are nowhere next to each other.
fn pieces(path: &Path, chance: &mut Chance, count: u64, spacing: u64) {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap();
    for i in 0..count {
        file.write_all_at(&chance.bytes(1000), i * spacing * 1024).unwrap();
    }
    file.sync_all().unwrap();
}

/// Runs `act` on a file system with two files in pieces; states of the disk during it are compared.
fn during(name: &str, mkfs: &str, incompat: u32, act: impl FnOnce(&File, &File)) {
    if !sys::is_root() {
        return skip("cuts of a mounted file system need root");
    }
    let dir = workdir();
    let image = dir.path().join("image");
    if mkfs_at(&image, 64, mkfs).is_none() {
        return;
    }
    if incompat != 0 {
        set_incompat(&image, incompat);
    }
    let bytes = std::fs::read(&image).unwrap();
    let recorder = Recorder::mount(&bytes, dir.path(), "noatime,logbsize=32k").unwrap();
    let (a, b) = (recorder.root().join("a"), recorder.root().join("b"));
    let mut chance = Chance(15);
    pieces(&a, &mut chance, 2500, 2);
    pieces(&b, &mut chance, 1500, 3);
    let begin = recorder.now();
    {
        let open = |path| OpenOptions::new().read(true).write(true).open(path).unwrap();
        let (a, b) = (open(&a), open(&b));
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Somebody else's syncs end checkpoints in the middle of what is done here.
            scope.spawn(|| {
                for i in 0.. {
                    let other = File::create(recorder.root().join(format!("other{}", i % 50))).unwrap();
                    other.sync_all().unwrap();
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
            act(&a, &b);
            done.store(true, Ordering::Relaxed);
        });
        b.sync_all().unwrap();
    }
    let end = recorder.now();
    // How many blocks the trees of extents take after the kernel has entered the rest is its own affair.
    let mask = Mask { blocks: true, ..Mask::default() };
    let mut states = recorder.cuts();
    drop(recorder);
    let all: Vec<usize> = states.flushes().into_iter().filter(|at| (begin..=end).contains(at)).collect();
    let most = std::env::var("COWSLIP_REPLAY_CUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(6usize);
    let step = (all.len() / most).max(1);
    let mut compared = 0;
    for at in all.iter().step_by(step) {
        let image = dir.path().join(format!("cut{at}"));
        std::fs::write(&image, states.state(*at)).unwrap();
        let what = format!("{name}, event {at} of {}", states.len());
        if let Err(e) = compare(&image, &dir.path().join("reference"), &what, mask) {
            panic!("{what}: {e}");
        }
        std::fs::remove_file(&image).unwrap();
        compared += 1;
    }
    println!("{name}: {compared} of {} states", all.len());
    assert!(compared > 2, "{name}: too few states to say anything");
}

#[test]
fn x15_extents_that_were_promised_to_a_file() {
    during("x15 clone", "-b size=1024 -m rmapbt=1,reflink=1", 0, |a, b| {
        sys::clone_file(a, b).unwrap();
    });
}

#[test]
fn x15_copies_on_write_that_were_promised() {
    during("x15 copy", "-b size=1024 -m reflink=1", 0, |a, b| {
        sys::clone_file(a, b).unwrap();
        let mut chance = Chance(16);
        for i in 0..400 {
            b.write_all_at(&chance.bytes(3000), i * 9000).unwrap();
            if i % 100 == 0 {
                b.sync_all().unwrap();
            }
        }
    });
}

#[test]
fn x16_exchanges_that_were_promised() {
    during("x16", "-b size=1024 -m rmapbt=1", EXCHANGE, |a, b| {
        sys::exchange_range(a, b, 1500 * 1024).unwrap();
        sys::exchange_range(b, a, 900 * 1024).unwrap();
    });
}
