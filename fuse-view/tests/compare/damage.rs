//! A snapshot that is damaged: what cannot be compared is told, and is no difference.

use crate::snapshots::{Disk, Volume, tool};
use fuse_view::diff::{self, Kind, Ranges};
use std::{fs, sync::atomic::AtomicBool};

#[test]
fn what_a_damaged_group_held_is_told() {
    // Without their checksums descriptors are believed.
    let words = ["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^uninit_bg"];
    let Some(disk) = Disk::new(64, &words) else { return };
    let before = disk.change(|top| {
        for dir in 0..20 {
            fs::create_dir(top.join(format!("d{dir}"))).unwrap();
            fs::write(top.join(format!("d{dir}/file")), "content").unwrap();
        }
    });
    let after = disk.change(|top| fs::write(top.join("new"), "content").unwrap());
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    fs::write(&image, after).unwrap();
    // The root is in the first one, directories in it are in all.
    for group in 1..8 {
        let command = format!("set_bg {group} inode_table 0xFFFFFF");
        tool("debugfs", &["-w", "-R", &command, image.to_str().unwrap()]).unwrap();
    }
    let mut volume = Volume::default();
    volume.push(&before);
    volume.push(&fs::read(&image).unwrap());
    let changed = Ranges::new(volume.differences(0, 1));
    let report =
        diff::diff(&volume.source(0), &volume.source(1), b"/", &changed, &AtomicBool::new(false)).unwrap();
    assert!(report.errors.len() > 5, "{report:?}");
    let said: Vec<_> = report.differences.iter().map(|found| (found.kind, &found.path[..])).collect();
    assert_eq!(said, [(Kind::Added, &b"/new"[..])]);
}
