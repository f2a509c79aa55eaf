//! Subvolumes and snapshots as directories, numbers that tell their inodes apart, and which one is the root.

use crate::common::support::{CountingImage, Mount, run, workdir};
use crate::common::{sys, tree};
use crate::image::{can_mount, mkfs};
use fuse_view::{FileKind, FsView, fs::open};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

fn subvolume(args: &[&str]) {
    run("btrfs", &[&["subvolume"], args].concat()).unwrap();
}

fn path(root: &Path, name: &str) -> String {
    root.join(name).to_str().unwrap().to_owned()
}

/// Subvolumes in subvolumes, snapshots of them, and a deleted one.
fn fill(root: &Path) {
    let p = |name: &str| path(root, name);
    fs::create_dir(root.join("dir")).unwrap();
    for name in ["one", "one/two", "one/two/three", "dir/four", "gone"] {
        subvolume(&["create", &p(name)]);
        fs::write(root.join(name).join("file"), name).unwrap();
        fs::hard_link(root.join(name).join("file"), root.join(name).join("link")).unwrap();
    }
    fs::create_dir(root.join("one/inner")).unwrap();
    std::os::unix::fs::chown(root.join("one/inner"), Some(1000), Some(2000)).unwrap();
    subvolume(&["create", &p("one/inner/five")]);
    subvolume(&["snapshot", &p("one"), &p("snap")]);
    subvolume(&["snapshot", "-r", &p("one"), &p("readonly")]);
    subvolume(&["snapshot", root.to_str().unwrap(), &p("dir/whole")]);
    fs::write(root.join("one/file"), "changed after the snapshot").unwrap();
    fs::rename(root.join("one/two"), root.join("moved")).unwrap();
    subvolume(&["delete", "--commit-after", &p("gone")]);
}

/// The mask for directories in snapshots that stand for what the original contained: the kernel makes up their times.
fn mask(path: &[u8], record: &tree::Record) -> tree::Mask {
    let made_up = record.kind == FileKind::Dir && record.ino == 2;
    let _ = path;
    tree::Mask { ino: true, mtime: made_up, ctime: made_up, btime: made_up, ..tree::Mask::default() }
}

fn same(image: &Path, at: &Path, options: &str) -> Arc<dyn FsView> {
    let mount = Mount::with(image, at, options).unwrap();
    let view = open(Arc::new(CountingImage::open(image))).unwrap();
    let (ours, theirs) = (tree::of_view(&*view), tree::of_mount(&mount.0));
    let found = tree::differences(&ours, &theirs, mask);
    assert!(found.is_empty(), "{}", found.join("\n"));
    // One number for each inode, over all subvolumes.
    let links = |record: &&tree::Record| record.nlink == 1;
    let numbers: BTreeSet<u64> = ours.values().filter(links).map(|record| record.ino).collect();
    assert_eq!(numbers.len(), ours.values().filter(links).count());
    view
}

#[test]
fn subvolumes_and_snapshots_are_directories() {
    if !can_mount() {
        return;
    }
    let dir = workdir();
    let Some(image) = mkfs(dir.path(), 256, "") else { return };
    let at = dir.path().join("mnt");
    fill(&Mount::with(&image, &at, "rw").unwrap().0);
    let view = same(&image, &at, "ro");
    let find = |names: &[&str]| {
        names.iter().fold(view.root(), |dir, name| view.lookup(dir, name.as_bytes()).unwrap())
    };
    let (file, link) = (find(&["one", "file"]), find(&["one", "link"]));
    assert_eq!(file, link, "hard links of one subvolume");
    assert_ne!(file, find(&["snap", "file"]), "the same inode in a snapshot");
    assert!(view.readdir(find(&["snap", "two"]), 0, 10).unwrap().is_empty());
    assert_eq!(view.attr(find(&["snap", "inner", "five"])).unwrap().uid, 1000);
    // A number that was handed out before means the same to a reader opened later.
    let five = find(&["dir", "whole", "one"]);
    let again = open(Arc::new(CountingImage::open(&image))).unwrap();
    assert_eq!(again.attr(five).unwrap().kind, FileKind::Dir);
    assert_eq!(again.attr(file).unwrap(), view.attr(file).unwrap());
}

#[test]
fn the_default_subvolume_is_the_root() {
    if !can_mount() {
        return;
    }
    let dir = workdir();
    let Some(image) = mkfs(dir.path(), 256, "") else { return };
    let at = dir.path().join("mnt");
    let mount = Mount::with(&image, &at, "rw").unwrap();
    fill(&mount.0);
    let whole = sys::xattrs(&mount.0).unwrap();
    assert!(whole.is_empty());
    subvolume(&["set-default", &path(&mount.0, "one")]);
    drop(mount);
    let view = same(&image, &at, "ro");
    assert_eq!(view.root(), 256);
    assert!(view.lookup(view.root(), b"inner").is_ok());
    assert!(view.lookup(view.root(), b"snap").is_err());
}

/// More subvolumes than are kept open, and numbers that need more bits.
#[test]
fn many_subvolumes() {
    if !can_mount() {
        return;
    }
    let dir = workdir();
    let Some(image) = mkfs(dir.path(), 256, "") else { return };
    let at = dir.path().join("mnt");
    let mount = Mount::with(&image, &at, "rw").unwrap();
    fs::write(mount.0.join("file"), "x").unwrap();
    for i in 0..300 {
        subvolume(&["snapshot", mount.0.to_str().unwrap(), &path(&mount.0, &format!("s{i}"))]);
    }
    drop(mount);
    let view = open(Arc::new(CountingImage::open(&image))).unwrap();
    let entries = view.readdir(view.root(), 0, 1000).unwrap();
    assert_eq!(entries.len(), 301);
    let mut seen = BTreeSet::new();
    for entry in entries.iter().filter(|entry| entry.name != b"file") {
        let names = view.readdir(entry.ino, 0, 1000).unwrap();
        let number: usize = String::from_utf8_lossy(&entry.name[1..]).parse().unwrap();
        assert_eq!(names.len(), 1 + number, "what was there when the snapshot was taken");
        for inner in names {
            assert!(seen.insert(inner.ino), "a number given twice");
        }
    }
}
