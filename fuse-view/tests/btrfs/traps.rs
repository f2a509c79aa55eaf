//! What replaying readers get wrong about names and inodes: a test for each, by the names of the design.

use crate::common::support::run;
use crate::common::sys;
use crate::rig::{Cut, FIRST_COPY, NODE, Rig, colliding, content, find};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt, symlink};

/// Only the first superblock knows of the log; the others have the same generation.
#[test]
fn b01_only_the_first_superblock_has_the_log() {
    let Some(rig) = Rig::new("") else { return };
    rig.write("committed", "old");
    rig.commit();
    rig.write("new", "fsynced");
    rig.fsync("new");
    let mut cut = rig.cut();
    let (first, second) = (FIRST_COPY, 64 << 20);
    assert_eq!(cut.u64_at(first + 0x48), cut.u64_at(second + 0x48), "generations");
    assert!(cut.u64_at(first + 0x60) != 0 && cut.u64_at(second + 0x60) == 0, "log roots");
    assert_eq!(content(&*cut.same(), "new"), b"fsynced");
    cut.bytes[first + 200] ^= 1;
    let view = cut.view();
    assert!(view.replay().starts_with("partial: the first superblock is damaged"), "{}", view.replay());
    assert!(find(&*view, "new").is_none() && find(&*view, "committed").is_some());
}

#[test]
fn b02_entries_missing_in_a_logged_range_are_deleted() {
    let Some(rig) = Rig::new("-n 4096") else { return };
    rig.mkdir("dir");
    for i in 0..1000 {
        rig.write(&format!("dir/file{i}"), "");
    }
    rig.commit();
    for i in (0..1000).step_by(3) {
        rig.remove(&format!("dir/file{i}"));
    }
    rig.write("dir/file3", "again, under a new index");
    rig.fsync("dir");
    let view = rig.same();
    assert!(find(&*view, "dir/file0").is_none() && find(&*view, "dir/file1").is_some());
    // Several ranges, apart from each other.
    rig.commit();
    for i in (100..120).chain(500..505).chain(990..1000).filter(|i| i % 3 != 0) {
        rig.remove(&format!("dir/file{i}"));
    }
    rig.fsync("dir");
    assert!(find(&*rig.same(), "dir/file500").is_none());
}

#[test]
fn b03_without_a_range_nothing_is_deleted() {
    let Some(rig) = Rig::new("") else { return };
    rig.mkdir("dir");
    for i in 0..20 {
        rig.write(&format!("dir/file{i}"), "");
    }
    rig.commit();
    rig.remove("dir/file7");
    rig.write("dir/file8", "fsynced");
    rig.fsync("dir/file8");
    let view = rig.same();
    assert!(find(&*view, "dir/file7").is_some(), "its removal was never synced");
    assert_eq!(content(&*view, "dir/file8"), b"fsynced");
}

#[test]
fn b04_names_in_conflict() {
    let Some(rig) = Rig::new("") else { return };
    for dir in ["one", "two"] {
        rig.mkdir(dir);
        for name in ["a", "b", "c"] {
            rig.write(&format!("{dir}/{name}"), format!("{dir} {name}"));
        }
    }
    rig.commit();
    rig.rename("one/a", "one/b");
    rig.fsync("one/b");
    assert_eq!(content(&*rig.same(), "one/b"), b"one a");
    rig.rename("two/a", "two/t");
    rig.rename("two/b", "two/a");
    rig.rename("two/t", "two/b");
    rig.fsync("two/a");
    assert_eq!(content(&*rig.same(), "two/a"), b"two b");
    rig.commit();
    rig.rename("one/c", "two/moved");
    rig.write("one/c", "new under the old name");
    rig.fsync("one/c");
    rig.same();
    rig.rename("two/c", "one/from-two");
    rig.rename("two/moved", "two/c");
    rig.fsync("one/from-two");
    rig.same();
}

#[test]
fn b05_hard_links() {
    let Some(rig) = Rig::new("-n 4096") else { return };
    rig.mkdir("one");
    rig.mkdir("two");
    rig.write("one/file", "linked");
    rig.link("one/file", "one/second");
    rig.link("one/file", "two/third");
    rig.commit();
    rig.remove("one/second");
    rig.link("one/file", "two/fourth");
    rig.fsync("one/file");
    let view = rig.same();
    assert_eq!(view.attr(find(&*view, "one/file").unwrap()).unwrap().nlink, 3);
    // More names than one item holds: extended references.
    rig.write("many", "names");
    for i in 0..200 {
        rig.link("many", &format!("two/{i}-{}", "n".repeat(100)));
    }
    rig.fsync("many");
    let view = rig.same();
    assert_eq!(view.attr(find(&*view, "many").unwrap()).unwrap().nlink, 201);
    rig.commit();
    for i in (0..200).filter(|i| i % 3 == 0) {
        rig.remove(&format!("two/{i}-{}", "n".repeat(100)));
    }
    rig.rename(&format!("two/1-{}", "n".repeat(100)), "one/renamed");
    rig.fsync("many");
    let view = rig.same();
    assert_eq!(view.attr(find(&*view, "many").unwrap()).unwrap().nlink, 201 - 67);
    // Two names with one hash share an item.
    let (a, b) = colliding("hash");
    rig.write(&a, "a");
    rig.write(&b, "b");
    rig.commit();
    rig.rename(&a, "elsewhere");
    rig.fsync("elsewhere");
    let view = rig.same();
    assert!(find(&*view, &a).is_none());
    assert_eq!(content(&*view, &b), b"b");
}

#[test]
fn b06_inodes_that_are_only_said_to_exist() {
    let Some(rig) = Rig::new("") else { return };
    rig.mkdir("dir");
    rig.mkdir("links");
    rig.write("dir/old", "committed content");
    rig.commit();
    rig.write_at("dir/old", 0, &[b'x'; 10_000]);
    rig.link("dir/old", "links/old");
    rig.fsync("links");
    let view = rig.same();
    assert_eq!(content(&*view, "dir/old"), b"committed content", "neither cut to 0 nor longer than its data");
    rig.write("dir/new", "never fsynced");
    rig.fsync("dir");
    rig.same();
}

#[test]
fn b07_names_of_inodes_that_were_never_logged() {
    let Some(rig) = Rig::new("") else { return };
    rig.mkdir("dir");
    rig.write("dir/first", "");
    rig.commit();
    for i in 0..30 {
        rig.write(&format!("dir/new{i}"), "not fsynced");
    }
    rig.fsync("dir");
    let view = rig.same();
    assert_eq!(content(&*view, "dir/new3"), b"", "logged as existing only");
    // As older kernels wrote it: the entry is logged, its inode is not.
    let mut cut = rig.cut();
    let lost = patch_items(&mut cut, |cut, key, range| {
        if key.1 == 96 && cut.bytes[range.clone()].ends_with(b"new3") {
            cut.bytes[range.start..range.start + 8].copy_from_slice(&999_999u64.to_le_bytes());
            return true;
        }
        false
    });
    assert!(lost > 0);
    cut.same();
}

/// Changes items of the logs in every copy of their blocks; how many `change` changed.
fn patch_items(
    cut: &mut Cut,
    mut change: impl FnMut(&mut Cut, (u64, u8, u64), std::ops::Range<usize>) -> bool,
) -> usize {
    let mut changed = 0;
    for at in cut.log_blocks() {
        let before = changed;
        for (key, range) in cut.items(at) {
            changed += usize::from(change(cut, key, range));
        }
        if changed > before {
            cut.fix(at, NODE);
        }
    }
    changed
}

#[test]
fn b08_attributes_are_complete_in_the_log() {
    let Some(rig) = Rig::new("") else { return };
    let (a, b) = colliding("user.hash");
    for name in ["file", "other"] {
        rig.write(name, "");
        for (attribute, value) in [("user.stays", "1"), ("user.goes", "2"), (&a, "a"), (&b, "b")] {
            sys::set_xattr(&rig.path(name), attribute, value.as_bytes()).unwrap();
        }
    }
    let acl = |perm: u8| {
        [2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, perm, 0, 232, 3, 0, 0]
            .into_iter()
            .chain([
                4, 0, 4, 0, 255, 255, 255, 255, 16, 0, 7, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255,
                255,
            ])
            .collect::<Vec<u8>>()
    };
    sys::set_xattr(&rig.path("file"), "system.posix_acl_access", &acl(7)).unwrap();
    rig.commit();
    sys::remove_xattr(&rig.path("file"), "user.goes").unwrap();
    sys::remove_xattr(&rig.path("file"), &a).unwrap();
    sys::set_xattr(&rig.path("file"), "system.posix_acl_access", &acl(5)).unwrap();
    sys::set_xattr(&rig.path("file"), "user.new", &[7; 3000]).unwrap();
    rig.fsync("file");
    let view = rig.same();
    let held = view.xattrs(find(&*view, "file").unwrap()).unwrap();
    let names: Vec<&[u8]> = held.iter().map(|(name, _)| &name[..]).collect();
    assert_eq!(names, [&b"system.posix_acl_access"[..], b.as_bytes(), b"user.new", b"user.stays"]);
    assert_eq!(view.xattrs(find(&*view, "other").unwrap()).unwrap().len(), 4);
}

#[test]
fn b11_several_subvolumes_in_one_log() {
    let Some(rig) = Rig::new("") else { return };
    for name in ["s1", "s2"] {
        let path = rig.path(name);
        run("btrfs", &["subvolume", "create", path.to_str().unwrap()]).unwrap();
        rig.mkdir(&format!("{name}/dir"));
    }
    rig.commit();
    for name in ["s1/dir/a", "s2/b", "c", "s2/dir/d"] {
        rig.write(name, name);
        rig.fsync(name);
    }
    let mut cut = rig.cut();
    let view = cut.same();
    for name in ["s1/dir/a", "s2/b", "c", "s2/dir/d"] {
        assert_eq!(content(&*view, name), name.as_bytes());
    }
    // The log of a subvolume that is not there any more: the largest number, so that the keys stay in order.
    let last = cut
        .log_blocks()
        .iter()
        .flat_map(|&at| cut.items(at))
        .filter(|(key, _)| key.1 == 132)
        .map(|(key, _)| key.2)
        .max();
    let keys: Vec<usize> = cut.log_blocks();
    for at in keys {
        let place = cut.items(at).iter().position(|(key, _)| key.1 == 132 && Some(key.2) == last);
        if let Some(i) = place {
            let key = at + 101 + i * 25;
            cut.bytes[key + 9..key + 17].copy_from_slice(&77_777u64.to_le_bytes());
            cut.fix(at, NODE);
        }
    }
    let view = cut.same();
    assert!(find(&*view, "s2/b").is_none() && find(&*view, "c").is_some());
    // A snapshot commits.
    let (from, to) = (rig.path("s1"), rig.path("snap"));
    run("btrfs", &["subvolume", "snapshot", from.to_str().unwrap(), to.to_str().unwrap()]).unwrap();
    rig.write("snap/dir/a", "changed in the snapshot");
    rig.fsync("snap/dir/a");
    let view = rig.same();
    assert_eq!(content(&*view, "snap/dir/a"), b"changed in the snapshot");
    assert_eq!(content(&*view, "s1/dir/a"), b"s1/dir/a");
}

#[test]
fn b12_inodes_without_a_name() {
    let Some(rig) = Rig::new("") else { return };
    rig.mkdir("top");
    fs::create_dir_all(rig.path("top/full/deep/er")).unwrap();
    for i in 0..20 {
        rig.write(&format!("top/full/file{i}"), "x");
        rig.write(&format!("top/full/deep/file{i}"), "y");
    }
    rig.write("top/open", "held open");
    rig.link("top/full/file3", "outside");
    rig.commit();
    let open = rig.open("top/open");
    rig.remove("top/open");
    open.sync_all().unwrap();
    rig.write("other", "so that there is a log");
    rig.fsync("other");
    rig.same();
    let temporary =
        OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(rig.path("top")).unwrap();
    temporary.write_all_at(b"no name", 0).unwrap();
    temporary.sync_all().unwrap();
    rig.same();
    fs::remove_dir_all(rig.path("top/full")).unwrap();
    rig.fsync("top");
    let view = rig.same();
    assert!(find(&*view, "top/full").is_none());
    assert_eq!(view.attr(find(&*view, "outside").unwrap()).unwrap().nlink, 1, "its name inside is gone");
}

#[test]
fn b13_directories_moved_and_made_again() {
    let Some(rig) = Rig::new("") else { return };
    fs::create_dir_all(rig.path("a/b/c")).unwrap();
    rig.write("a/b/file", "in the old one");
    rig.write("a/b/c/deep", "");
    rig.commit();
    rig.rename("a/b", "moved");
    rig.mkdir("a/b");
    rig.write("a/b/file", "in the new one");
    rig.fsync("a/b/file");
    let view = rig.same();
    assert_eq!(content(&*view, "a/b/file"), b"in the new one");
    rig.write("in-the-root", "x");
    symlink("target", rig.path("link")).unwrap();
    symlink("t".repeat(3000), rig.path("long-link")).unwrap();
    for (name, mode) in
        [("fifo", libc::S_IFIFO), ("null", libc::S_IFCHR), ("sda", libc::S_IFBLK), ("sock", libc::S_IFSOCK)]
    {
        sys::mknod(&rig.path(name), mode | 0o600, 300, 70_000).unwrap();
    }
    rig.fsync("");
    let view = rig.same();
    assert!(find(&*view, "sda").is_some() && find(&*view, "moved/c/deep").is_some());
    rig.rename("moved/c", "a/b/c");
    rig.rename("a", "moved/a");
    rig.write("moved/a/b/c/deep", "fsynced");
    rig.fsync("moved/a/b/c/deep");
    rig.same();
}

#[test]
fn b15_times() {
    let Some(rig) = Rig::new("") else { return };
    rig.mkdir("dir");
    rig.write("dir/old", "");
    rig.commit();
    std::thread::sleep(std::time::Duration::from_millis(20));
    rig.write("dir/new", "");
    rig.rename("dir/old", "dir/renamed");
    sys::set_mtime(&rig.path("dir/new"), -5, 123_456_789).unwrap();
    sys::set_mtime(&rig.path("dir"), 1_000_000_000, 987_654_321).unwrap();
    rig.fsync("dir");
    rig.fsync("dir/new");
    let view = rig.same();
    let mtime = |name| view.attr(find(&*view, name).unwrap()).unwrap().mtime;
    assert_eq!((mtime("dir").seconds, mtime("dir").nanoseconds), (1_000_000_000, 987_654_321));
    assert_eq!((mtime("dir/new").seconds, mtime("dir/new").nanoseconds), (-5, 123_456_789));
}
