//! Files and directories that got other names.

use crate::snapshots::{Disk, Volume};
use fuse_view::{
    Error,
    diff::{self, Kind, Ranges},
    versions::{Event, Told, versions},
};
use std::{fs, path::Path, sync::atomic::AtomicBool};

/// The snapshots that these changes leave.
fn volume(changes: &[&dyn Fn(&Path)]) -> Option<Volume> {
    let disk = Disk::new(16, &["-t", "ext4"])?;
    let mut volume = Volume::default();
    for change in changes {
        volume.push(&disk.change(change));
    }
    Some(volume)
}

fn said(volume: &Volume) -> Vec<String> {
    let changed = Ranges::new(volume.differences(0, 1));
    let (old, new) = (volume.source(0), volume.source(1));
    let report = diff::diff(&old, &new, b"/", &changed, &AtomicBool::new(false)).unwrap();
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    let text = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    let line = |d: &diff::Difference| match d.kind {
        Kind::Added => format!("A {}", text(&d.path)),
        Kind::Deleted => format!("D {}", text(&d.path)),
        Kind::Modified => format!("M {}", text(&d.path)),
        Kind::Renamed => {
            let modified = if d.modified { " M" } else { "" };
            format!("R {} {}{modified}", text(d.from.as_deref().unwrap()), text(&d.path))
        }
    };
    report.differences.iter().map(line).collect()
}

#[test]
fn renames_are_told_as_such() {
    let before: &dyn Fn(&Path) = &|top| {
        fs::create_dir_all(top.join("dir/sub")).unwrap();
        for name in ["a", "b", "swap1", "swap2", "dir/one", "dir/sub/two", "saved", "gone"] {
            fs::write(top.join(name), name).unwrap();
        }
    };
    let after: &dyn Fn(&Path) = &|top| {
        let mv = |from: &str, to: &str| fs::rename(top.join(from), top.join(to)).unwrap();
        mv("a", "c");
        mv("b", "a");
        mv("swap1", "swap");
        mv("swap2", "swap1");
        mv("swap", "swap2");
        mv("dir", "moved");
        fs::write(top.join("moved/sub/two"), "changed").unwrap();
        mv("moved/one", "one");
        fs::write(top.join("new"), "saved anew").unwrap();
        mv("new", "saved");
        fs::remove_file(top.join("gone")).unwrap();
        fs::create_dir(top.join("fresh")).unwrap();
        fs::write(top.join("fresh/file"), "x").unwrap();
    };
    let Some(volume) = volume(&[before, after]) else { return };
    assert_eq!(
        said(&volume),
        [
            "R /b /a",
            "R /a /c",
            "A /fresh",
            "A /fresh/file",
            "D /gone",
            "R /dir /moved",
            "M /moved/sub/two",
            "R /dir/one /one",
            "M /saved",
            "R /swap2 /swap1",
            "R /swap1 /swap2",
        ]
    );
}

#[test]
fn a_directory_in_place_of_a_file_is_both() {
    let before: &dyn Fn(&Path) = &|top| fs::write(top.join("x"), "file").unwrap();
    let after: &dyn Fn(&Path) = &|top| {
        fs::remove_file(top.join("x")).unwrap();
        fs::create_dir(top.join("x")).unwrap();
        fs::write(top.join("x/y"), "").unwrap();
    };
    let Some(volume) = volume(&[before, after]) else { return };
    assert_eq!(said(&volume), ["A /x", "D /x", "A /x/y"]);
}

#[test]
fn versions_tell_where_a_file_went_and_came_from() {
    let steps: [&dyn Fn(&Path); 5] = [
        &|top| {
            fs::create_dir(top.join("d")).unwrap();
            fs::write(top.join("d/f"), "1").unwrap();
        },
        &|_| {},
        &|top| fs::rename(top.join("d/f"), top.join("d/g")).unwrap(),
        &|top| fs::create_dir(top.join("e")).unwrap(),
        &|top| fs::rename(top.join("d/g"), top.join("e/h")).unwrap(),
    ];
    let Some(volume) = volume(&steps) else { return };
    let events = |path: &str| {
        let mut events = Vec::new();
        versions(&volume, path.as_bytes(), |told| -> Result<(), Error> {
            let Told::Version(version) = told else { panic!("unreadable") };
            events.push((version.snapshot.id, version.count, version.event));
            Ok(())
        })
        .unwrap();
        events
    };
    let path = |text: &str| Some(text.as_bytes().to_vec());
    assert_eq!(events("/d/f"), [(1, 2, Event::First), (3, 3, Event::Deleted(path("/d/g")))]);
    assert_eq!(events("/d/g"), [(3, 2, Event::Created(path("/d/f"))), (5, 1, Event::Deleted(path("/e/h")))]);
    assert_eq!(events("/e/h"), [(5, 1, Event::Created(path("/d/g")))]);
    assert_eq!(events("/none"), []);
}
