//! /snapshots under load, while the processes that parse for it are killed: no wrong byte, no dead mount, nothing that
//! grows. Long form: `COWSLIP_VIEW_KILLS=50`.

use crate::rig::{Rig, random, signal, unmount};
use integration_tests::{seed, times};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

const WALKERS: u32 = 8;
/// Kills after which memory is measured for the first time.
const WARM: u32 = 3;
/// What the agent may grow by afterwards: caches that fill.
const GROWTH_BYTES: u64 = 24 << 20;

/// A tree of some hundred files, small and large.
fn fill(dir: &Path, mark: u8) {
    for n in 0..150_u32 {
        let sub = dir.join(format!("d{}", n % 7));
        fs::create_dir_all(&sub).expect("room");
        let len = if n % 25 == 0 { 700_000 } else { 500 + n as usize * 40 };
        let bytes: Vec<u8> =
            (0..len).map(|at| mark ^ u8::try_from((at * 7 + n as usize) % 251).unwrap_or(0)).collect();
        fs::write(sub.join(format!("f{n}")), bytes).expect("room");
    }
}

/// Length and digest of each file, or where the walk failed.
type Walked = BTreeMap<PathBuf, (u64, blake3::Hash)>;

/// Reads a tree of a snapshot.
fn walk(root: &Path) -> io::Result<Walked> {
    walk_with(root, libc::O_DIRECT)
}

fn walk_with(root: &Path, flags: i32) -> io::Result<Walked> {
    let (mut all, mut pending) = (Walked::new(), vec![root.to_owned()]);
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            let meta = fs::symlink_metadata(&path)?;
            if meta.is_dir() {
                pending.push(path);
                continue;
            }
            let mut bytes = Vec::new();
            // Past what the kernel keeps, which would ask nobody.
            let mut file = fs::File::options().read(true).custom_flags(flags).open(&path)?;
            file.read_to_end(&mut bytes)?;
            let below = path.strip_prefix(root).expect("it lies below").to_owned();
            all.insert(below, (meta.size(), blake3::hash(&bytes)));
        }
    }
    Ok(all)
}

/// The workers of an agent that read a volume.
fn workers(agent: u32, volume: &str) -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("there is /proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        line.starts_with(format!("cowslip-view {volume}\0").as_bytes()) && parent == Some(agent)
    };
    pids.filter(is).collect()
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("the agent runs").count()
}

fn memory_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the agent runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

/// What the walkers found.
#[derive(Default)]
struct Tally {
    stop: AtomicBool,
    whole: AtomicU32,
    failed: AtomicU32,
}

impl Tally {
    /// Walks over and over. A walk fails with EIO while a worker dies, if `may_fail`; a whole one finds what there is.
    fn walk_on(&self, root: &Path, expected: &Walked, may_fail: bool) {
        while !self.stop.load(Ordering::SeqCst) {
            match walk(root) {
                Ok(found) => {
                    assert!(found == *expected, "{}: wrong bytes", root.display());
                    self.whole.fetch_add(1, Ordering::SeqCst);
                }
                Err(error) => {
                    let tolerable = may_fail && error.raw_os_error() == Some(libc::EIO);
                    assert!(tolerable, "{}: {error}", root.display());
                    self.failed.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
    }

    /// Copies over and over with cp(1).
    fn copy_on(&self, root: &Path, to: &Path, expected: &Walked) {
        while !self.stop.load(Ordering::SeqCst) {
            let _ = fs::remove_dir_all(to);
            let done = Command::new("cp").arg("-a").arg(root).arg(to).stdin(Stdio::null()).output();
            let done = done.expect("cp runs");
            let said = String::from_utf8_lossy(&done.stderr);
            if done.status.success() {
                let copied = walk_with(to, 0).expect("what was copied can be read");
                assert!(copied == *expected, "cp -a: wrong bytes");
                self.whole.fetch_add(1, Ordering::SeqCst);
            } else {
                assert!(said.lines().all(|line| line.contains("Input/output error")), "{said}");
                self.failed.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
}

#[test]
fn snapshots_under_load_while_their_readers_are_killed() {
    let kills = times("COWSLIP_VIEW_KILLS", 8);
    let Some(rig) = Rig::new("2G") else { return };
    let mut expected = Vec::new();
    for (volume, mark) in [("v", 1), ("quiet", 77)] {
        let device = rig.ext4(volume, "128M");
        let dir = rig.mount(&device, volume, "defaults");
        fill(&dir, mark);
        rig.ok(&format!("-q snapshot create {volume}@base"));
        expected.push(walk_with(&dir, 0).expect("a live tree"));
    }
    let agent = rig.pid();
    let [base, other] = ["snapshots/v/base", "snapshots/quiet/base"].map(|name| rig.path(name));
    let copy = rig.path("copy");
    let (tally, calm) = (Tally::default(), Tally::default());
    let before = std::thread::scope(|scope| {
        let end = End(&tally, &calm);
        for _ in 0..WALKERS {
            scope.spawn(|| tally.walk_on(&base, &expected[0], true));
        }
        scope.spawn(|| tally.copy_on(&base, &copy, &expected[0]));
        // Another volume's readers are nobody's business.
        scope.spawn(|| calm.walk_on(&other, &expected[1], false));
        let before = kill_on(&rig, agent, kills, &tally);
        drop(end);
        before
    });
    println!(
        "{kills} kills: {} walks and copies whole, {} failed; the other volume: {} whole",
        tally.whole.load(Ordering::SeqCst),
        tally.failed.load(Ordering::SeqCst),
        calm.whole.load(Ordering::SeqCst)
    );
    assert!(calm.whole.load(Ordering::SeqCst) > 0);
    // All of it is there as before, and it is the agent of before.
    assert!(walk(&base).expect("no dead mount") == expected[0]);
    assert_eq!(rig.pid(), agent);
    assert_eq!(workers(agent, "v").len(), 1);
    let after = (descriptors(agent), memory_bytes(agent));
    println!(
        "descriptors {} then {}, memory {} KiB then {} KiB",
        before.0,
        after.0,
        before.1 >> 10,
        after.1 >> 10
    );
    assert!(after.0 <= before.0 + 8, "descriptors: {} then {}", before.0, after.0);
    assert!(after.1 <= before.1 + GROWTH_BYTES, "memory: {} then {}", before.1, after.1);
    let told = rig.run(["--json", "events"]).with(0).stdout;
    let events = told.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("an event"));
    let ended = |event: &serde_json::Value| event["kind"] == "view_reader_ended" && event["volume"] == "v";
    assert_eq!(events.filter(ended).count(), kills as usize);
    for volume in ["v", "quiet"] {
        unmount(&rig.path(volume));
        rig.ok(&format!("-q volume detach {volume}"));
    }
    rig.stop_and_check();
}

/// Stops the walkers, on failure too.
struct End<'a>(&'a Tally, &'a Tally);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::SeqCst);
        self.1.stop.store(true, Ordering::SeqCst);
    }
}

/// Kills the worker of `v` again and again, making and deleting snapshots meanwhile. Descriptors and memory of the agent
/// once it is warm.
fn kill_on(rig: &Rig, agent: u32, kills: u32, tally: &Tally) -> (usize, u64) {
    let (mut seed, mut measured) = (seed(), (0, 0));
    for round in 0..kills {
        if round == WARM {
            measured = (descriptors(agent), memory_bytes(agent));
        }
        let whole = tally.whole.load(Ordering::SeqCst);
        rig.ok(&format!("-q snapshot create v@s{round}"));
        let look = walk(&rig.path(&format!("snapshots/v/s{round}/d1")));
        if let Err(error) = look {
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
        }
        if round > 1 {
            rig.ok(&format!("-q snapshot delete v@s{}", round - 2));
        }
        rig.eventually("somebody walks", || tally.whole.load(Ordering::SeqCst) > whole);
        std::thread::sleep(Duration::from_millis(random(&mut seed) % 100));
        rig.eventually("a worker runs", || !workers(agent, "v").is_empty());
        let [worker] = workers(agent, "v")[..] else { panic!("{:?}", workers(agent, "v")) };
        signal("KILL", worker);
        rig.eventually("another one runs", || {
            let now = workers(agent, "v");
            !now.is_empty() && !now.contains(&worker)
        });
    }
    measured
}
