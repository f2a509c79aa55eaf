//! Very many files, listed through the snapshots' directory.

use crate::rig::{Rig, resident_mib, tool, unmount};
use std::fs;
use std::path::Path;
use std::time::Instant;

const FILES: usize = 1_000_000;
const DIRECTORIES: usize = 20;

fn name(number: usize) -> String {
    format!("file-{number:08}")
}

/// Files of one directory, without content.
fn make(dir: &Path, count: usize) {
    fs::create_dir(dir).expect("the volume is writable");
    for number in 0..count {
        fs::File::create(dir.join(name(number))).expect("there are inodes");
    }
}

/// Fails unless the directory lists exactly these files, each once.
fn compare(dir: &Path, count: usize) {
    let mut seen = vec![false; count];
    for found in fs::read_dir(dir).expect("a directory") {
        let found = found.expect("a directory can be read to its end");
        let file = found.file_name().into_string().expect("a name of ours");
        let number: usize =
            file.strip_prefix("file-").and_then(|digits| digits.parse().ok()).expect("a number");
        assert_eq!(file, name(number));
        assert!(found.file_type().expect("it is listed with its type").is_file());
        assert!(!std::mem::replace(&mut seen[number], true), "{file} is listed twice");
    }
    let missing = seen.iter().filter(|seen| !**seen).count();
    assert_eq!(missing, 0, "files are missing in {}", dir.display());
}

#[test]
fn a_million_files_list_through_snapshots() {
    let Some(rig) = Rig::new("3G") else { return };
    rig.ok("-q volume create v --size 2G");
    let device = rig.attach("v");
    tool("mke2fs", ["-q", "-t", "ext4", "-N", "1100000", &device.display().to_string()]);
    let dir = rig.mount(&device, "mnt", "noatime");

    let started = Instant::now();
    let directory = |at: usize| format!("directory-{at}");
    std::thread::scope(|scope| {
        for half in 0..2 {
            let dir = &dir;
            scope.spawn(move || {
                (half..DIRECTORIES)
                    .step_by(2)
                    .for_each(|at| make(&dir.join(directory(at)), FILES / DIRECTORIES));
            });
        }
    });
    let made = started.elapsed();
    rig.ok("-q snapshot create v@s");
    let before = resident_mib(rig.pid());
    let started = Instant::now();
    let snapshot = rig.path("snapshots/v/s");
    (0..DIRECTORIES).for_each(|at| compare(&snapshot.join(directory(at)), FILES / DIRECTORIES));
    println!(
        "{FILES} files: made in {made:.1?}, listed in {:.1?}; the agent has {before} MiB before, {} after",
        started.elapsed(),
        resident_mib(rig.pid())
    );
    unmount(&dir);
    rig.stop_and_check();
}
