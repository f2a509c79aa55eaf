//! Seeded changes of a tree by the kernel; diff and versions against manifests.

use crate::{
    manifest::{Manifest, manifest},
    snapshots::{Chance, Disk, Volume},
};
use fuse_view::{
    Error,
    diff::{self, Kind, Ranges},
    versions::{Event, Told, versions, versions_carrying},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

fn all(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        if entry.file_name() == "lost+found" {
            continue;
        }
        found.push(entry.path());
        if entry.file_type().unwrap().is_dir() {
            all(&entry.path(), found);
        }
    }
}

/// One random change.
fn step(top: &Path, chance: &mut Chance) {
    let mut paths = Vec::new();
    all(top, &mut paths);
    let pick = |chance: &mut Chance, from: &[PathBuf]| {
        let at = chance.below(from.len().max(1) as u64);
        from.get(usize::try_from(at).unwrap()).cloned()
    };
    let dirs: Vec<PathBuf> = paths.iter().filter(|p| p.is_dir() && !p.is_symlink()).cloned().collect();
    let files: Vec<PathBuf> = paths.iter().filter(|p| p.is_file() && !p.is_symlink()).cloned().collect();
    let dir = pick(chance, &dirs).unwrap_or_else(|| top.to_owned());
    // Few names, so that they are taken again.
    let fresh = dir.join(format!("n{}", chance.below(12)));
    let some = pick(chance, &paths);
    // What is refused (a directory into itself, a file over a directory) changes nothing.
    let bytes =
        vec![u8::try_from(chance.below(256)).unwrap(); usize::try_from(chance.below(40_000)).unwrap()];
    match chance.below(12) {
        0 | 1 => drop(fs::write(&fresh, bytes)),
        2 => drop(fs::create_dir(&fresh)),
        3 => drop(some.map(|path| fs::rename(path, &fresh))),
        4 => drop(some.map(|path| fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path)))),
        5 => drop(pick(chance, &files).map(|path| fs::hard_link(path, &fresh))),
        6 => drop(symlink(format!("n{}", chance.below(5)), &fresh)),
        7 => drop(some.map(|path| {
            let mode = 0o600 + u32::try_from(chance.below(0o100)).unwrap();
            if !path.is_symlink() {
                fs::set_permissions(&path, fs::Permissions::from_mode(mode | 0o100)).unwrap();
            }
        })),
        8 => drop(pick(chance, &files).map(|path| {
            let file = fs::File::options().write(true).open(path).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &bytes, chance.below(100_000)).unwrap();
        })),
        9 => drop(pick(chance, &files).map(|path| {
            fs::File::options().write(true).open(path).unwrap().set_len(chance.below(60_000)).unwrap();
        })),
        10 => drop(pick(chance, &files).map(|path| {
            // As editors save: a new file over the old one.
            let new = path.with_extension("new");
            fs::write(&new, bytes).and_then(|()| fs::rename(&new, &path)).unwrap();
        })),
        _ => drop((pick(chance, &files), pick(chance, &files))),
    }
}

fn evolve(seed: u64, (mib, words): (u64, &[&str])) -> Option<Volume> {
    let disk = Disk::of(mib, words)?;
    let mut chance = Chance(seed);
    let mut volume = Volume::default();
    for _ in 0..9 {
        let bytes = disk.change(|top| (0..chance.below(9)).for_each(|_| step(top, &mut chance)));
        volume.push(&bytes);
    }
    Some(volume)
}

/// What the older manifest becomes by what is said to differ; paths taken from the newer one.
fn applied(old: &Manifest, new: &Manifest, report: &diff::Report) -> Manifest {
    let of = |kind| report.differences.iter().filter(move |difference| difference.kind == kind);
    let deleted: BTreeSet<&[u8]> = of(Kind::Deleted).map(|d| &d.path[..]).collect();
    let renamed: BTreeMap<&[u8], &[u8]> =
        of(Kind::Renamed).map(|d| (d.from.as_deref().unwrap(), &d.path[..])).collect();
    let mut result = Manifest::new();
    for (path, shown) in old {
        if deleted.contains(&path[..]) {
            continue;
        }
        // The innermost directory above it that moved takes it along.
        let ends = (1..=path.len()).rev().filter(|end| *end == path.len() || path[*end] == b'/');
        let moved = ends.filter_map(|end| Some((end, *renamed.get(&path[..end])?))).next();
        let now = moved.map_or_else(|| path.clone(), |(end, to)| [to, &path[end..]].concat());
        assert!(result.insert(now.clone(), shown.clone()).is_none(), "two files become {now:?}");
    }
    for difference in &report.differences {
        let known = result.contains_key(&difference.path);
        match difference.kind {
            Kind::Added => assert!(!known, "added, but there: {difference:?}"),
            Kind::Modified => assert!(known, "modified, but not there: {difference:?}"),
            Kind::Renamed if difference.modified => assert!(known, "{difference:?}"),
            Kind::Renamed | Kind::Deleted => continue,
        }
        result.insert(difference.path.clone(), new[&difference.path].clone());
    }
    result
}

fn check_diff(volume: &Volume, manifests: &[Manifest], a: usize, b: usize, seed: u64) {
    let nothing_known = Ranges::everything();
    for changed in [Ranges::new(volume.differences(a, b)), nothing_known] {
        let (old, new) = (volume.source(a), volume.source(b));
        let report = diff::diff(&old, &new, b"/", &changed, &AtomicBool::new(false)).unwrap();
        assert!(report.errors.is_empty(), "{:?}", report.errors);
        let result = applied(&manifests[a], &manifests[b], &report);
        let differ: Vec<_> = result
            .keys()
            .chain(manifests[b].keys())
            .filter(|path| result.get(*path) != manifests[b].get(*path))
            .map(|path| String::from_utf8_lossy(path).into_owned())
            .collect();
        assert!(differ.is_empty(), "seed {seed}, {a} to {b}: {differ:?}\n{:#?}", report.differences);
        // Nothing is said that is not so.
        for d in report.differences.iter().filter(|d| d.kind == Kind::Modified) {
            assert_ne!(manifests[a].get(&d.path), manifests[b].get(&d.path), "{d:?}");
        }
    }
}

fn check_versions(volume: &Volume, manifests: &[Manifest], path: &[u8], carried: u64, seed: u64) {
    let mut expected = Vec::new();
    for (at, manifest) in manifests.iter().enumerate() {
        let before = at.checked_sub(1).map(|before| manifests[before].get(path));
        let now = manifest.get(path);
        match (before, now) {
            (None, Some(_)) => expected.push((at, "first")),
            (Some(None), Some(_)) => expected.push((at, "created")),
            (Some(Some(_)), None) => expected.push((at, "deleted")),
            (Some(Some(old)), Some(new)) if old != new => expected.push((at, "modified")),
            _ => {}
        }
    }
    let mut found = Vec::new();
    let mut covered = 0;
    versions_carrying(volume, path, carried, |told| -> Result<(), Error> {
        let Told::Version(version) = told else { panic!("a snapshot could not be read") };
        let word = match version.event {
            Event::First => "first",
            Event::Created(_) => "created",
            Event::Modified => "modified",
            Event::Deleted(_) => "deleted",
        };
        covered += version.count;
        found.push((usize::try_from(version.snapshot.id).unwrap() - 1, word));
        assert_eq!(version.last.id, version.snapshot.id + version.count as u64 - 1);
        Ok(())
    })
    .unwrap();
    assert_eq!(found, expected, "seed {seed}, {}", String::from_utf8_lossy(path));
    assert_eq!(covered, expected.first().map_or(0, |(at, _)| manifests.len() - at));
}

fn check(seed: u64, mib: u64, words: &[&str]) {
    let Some(volume) = evolve(seed, (mib, words)) else { return };
    let all = |dir_times: bool| -> Vec<Manifest> {
        (0..volume.snapshots.len()).map(|at| manifest(volume.source(at), dir_times)).collect()
    };
    let manifests = all(false);
    for a in 0..manifests.len() {
        check_diff(&volume, &manifests, a, (a + 1) % manifests.len(), seed);
        check_diff(&volume, &manifests, 0, a, seed);
    }
    let manifests = all(true);
    let paths: BTreeSet<&Vec<u8>> = manifests.iter().flat_map(BTreeMap::keys).collect();
    for path in paths {
        // What a look-up needs is carried to the next snapshot, or read again.
        for carried in [1 << 20, 0] {
            check_versions(&volume, &manifests, path, carried, seed);
        }
    }
}

#[test]
fn random_changes_with_extents() {
    for seed in 0..2 {
        check(seed, 16, &["mke2fs", "-q", "-F", "-t", "ext4", "-I", "256"]);
    }
}

#[test]
fn random_changes_through_a_dirty_journal() {
    let words = ["busy", "mke2fs", "-q", "-F", "-t", "ext4", "-J", "size=4"];
    let Some(disk) = Disk::of(16, &words) else { return };
    let bytes = disk.change(|top| fs::write(top.join("file"), "in the journal").unwrap());
    let mut volume = Volume::default();
    volume.push(&bytes);
    assert_eq!(fuse_view::fs::open(volume.source(0)).unwrap().replay(), "replayed");
    check(51, 16, &words);
}

#[test]
fn random_changes_with_inline_data() {
    check(11, 16, &["mke2fs", "-q", "-F", "-t", "ext4", "-O", "inline_data"]);
}

#[test]
fn random_changes_with_block_pointers() {
    check(21, 16, &["mke2fs", "-q", "-F", "-t", "ext2", "-b", "1024"]);
}

#[test]
fn random_changes_on_xfs() {
    check(32, 64, &["frozen", "mkfs.xfs", "--unsupported", "-q", "-b", "size=1024", "-m", "rmapbt=1"]);
}

#[test]
fn random_changes_on_btrfs() {
    check(42, 112, &["frozen", "mkfs.btrfs", "-q", "-n", "4096", "-m", "dup"]);
}

#[test]
fn content_that_changed_beneath_its_inode_is_found() {
    let Some(disk) = Disk::new(16, &["-t", "ext4"]) else { return };
    let mut bytes = disk.change(|top| {
        fs::write(top.join("file"), vec![0x5a; 20_000]).unwrap();
        fs::write(top.join("other"), vec![0xa5; 20_000]).unwrap();
    });
    let mut volume = Volume::default();
    volume.push(&bytes);
    let block = bytes.chunks(4096).position(|block| block == [0x5a; 4096]).expect("it is on the disk");
    bytes[block * 4096 + 7] = 0;
    volume.push(&bytes);
    let changed = Ranges::new(volume.differences(0, 1));
    let (old, new) = (volume.source(0), volume.source(1));
    let report = diff::diff(&old, &new, b"/", &changed, &AtomicBool::new(false)).unwrap();
    let said: Vec<_> = report.differences.iter().map(|d| (d.kind, &d.path[..])).collect();
    assert_eq!(said, [(Kind::Modified, &b"/file"[..])]);
    let mut events = Vec::new();
    versions(&volume, b"/file", |told| -> Result<(), Error> {
        let Told::Version(version) = told else { panic!("unreadable") };
        events.push(version.event);
        Ok(())
    })
    .unwrap();
    assert_eq!(events, [Event::First, Event::Modified]);
}
