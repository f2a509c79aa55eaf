//! A seeded tree with everything that a Linux file system can hold.

use super::support::Chance;
use super::sys;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;

/// What one format cannot hold is left out, everything else must work.
fn unless_unsupported<T>(result: io::Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(e)
            if [libc::EOPNOTSUPP, libc::ENOSPC, libc::E2BIG, libc::EFBIG, libc::EMLINK]
                .contains(&e.raw_os_error().unwrap_or(0)) =>
        {
            None
        }
        Err(e) => panic!("{e}"),
    }
}

/// Fills `root`. With `devices` also what only root may make.
pub fn populate(root: &Path, seed: u64, devices: bool) {
    fill(root, seed, devices, usize::MAX);
}

/// As [`populate`], with attributes and link targets up to `longest` bytes.
pub fn fill(root: &Path, seed: u64, devices: bool, longest: usize) {
    let mut chance = Chance(seed);
    names(&root.join("names"), &mut chance);
    links(&root.join("links"), longest);
    files(&root.join("files"), &mut chance);
    sparse(&root.join("sparse"), &mut chance);
    attributes(&root.join("attributes"), &mut chance, devices, longest);
    if devices {
        specials(&root.join("specials"));
    }
    deep(&root.join("deep"), &mut chance);
    removed(&root.join("removed"));
}

fn names(dir: &Path, chance: &mut Chance) {
    fs::create_dir(dir).unwrap();
    for i in 0..1500u32 {
        let mut name = match i % 5 {
            0 => format!("f{i}").into_bytes(),
            1 => format!("ünïcödé-名前-{i}").into_bytes(),
            2 => chance.bytes(12),
            3 => format!("{i:x}-{}", "long".repeat(30)).into_bytes(),
            _ => format!("{i}-{}", "x".repeat(255)).into_bytes(),
        };
        name.truncate(255);
        for byte in &mut name {
            if *byte == b'/' || *byte == 0 {
                *byte = b'_';
            }
        }
        File::create(dir.join(OsStr::from_bytes(&name))).unwrap();
    }
}

fn links(dir: &Path, longest: usize) {
    fs::create_dir(dir).unwrap();
    fs::write(dir.join("first"), b"many names").unwrap();
    for i in 0..20u32 {
        fs::hard_link(dir.join("first"), dir.join(format!("name{i}"))).unwrap();
    }
    for (i, len) in (0u32..).zip([1, 2, 30, 58, 59, 60, 61, 100, 160, 1000, 1023, 2000, 4000, 4095]) {
        let len = len.min(longest);
        unless_unsupported(or_name_too_long(symlink("t".repeat(len), dir.join(format!("sym{i}")))));
    }
    symlink("../files/ünïcödé", dir.join("relative")).unwrap();
}

/// A target longer than a block is refused by this errno.
fn or_name_too_long(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.raw_os_error() == Some(libc::ENAMETOOLONG) => Ok(()),
        other => other,
    }
}

fn files(dir: &Path, chance: &mut Chance) {
    fs::create_dir(dir).unwrap();
    for len in [0, 1, 10, 59, 60, 61, 100, 120, 150, 200, 1023, 1024, 1025, 4095, 4096, 4097, 65536, 300_000]
    {
        fs::write(dir.join(format!("len{len}")), chance.bytes(len)).unwrap();
    }
    // Two files that grow in turns, each piece allocated at once: neither is in one piece.
    let mut pair = ["a", "b"].map(|n| File::create(dir.join(n)).unwrap());
    for i in 0..30 {
        for file in &mut pair {
            unless_unsupported(sys::fallocate(file, 0, i * 5000, 5000));
            file.write_all(&chance.bytes(5000)).unwrap();
        }
    }
}

fn sparse(dir: &Path, chance: &mut Chance) {
    fs::create_dir(dir).unwrap();
    let new =
        |name: &str| OpenOptions::new().read(true).write(true).create_new(true).open(dir.join(name)).unwrap();
    let write = |file: &File, at: u64, bytes: &[u8]| unless_unsupported(file.write_all_at(bytes, at));

    let comb = new("comb");
    for i in 0..1600u64 {
        write(&comb, i * 8192, b"tooth");
    }
    let holes = new("holes");
    for _ in 0..40 {
        write(&holes, chance.below(40 << 20), &chance.bytes(3000));
    }
    new("only-a-hole").set_len(1 << 20).unwrap();
    let huge = new("huge");
    for at in [0, 1 << 20, 70 << 20, 5 << 30, 1 << 40, (3 << 40) + 12345] {
        write(&huge, at, b"island");
    }
    let unwritten = new("unwritten");
    if unless_unsupported(sys::fallocate(&unwritten, 0, 0, 4 << 20)).is_some() {
        write(&unwritten, 1 << 20, &chance.bytes(10_000));
        write(&unwritten, (2 << 20) + 100, b"x");
        let beyond = new("beyond-the-end");
        write(&beyond, 0, b"short");
        sys::fallocate(&beyond, libc::FALLOC_FL_KEEP_SIZE, 0, 1 << 20).unwrap();
        let punched = new("punched");
        write(&punched, 0, &chance.bytes(1 << 20));
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        unless_unsupported(sys::fallocate(&punched, punch, 100_000, 200_000));
        unless_unsupported(sys::fallocate(&punched, libc::FALLOC_FL_ZERO_RANGE, 500_000, 200_000));
    }
    // Every second piece preallocated: a deep tree with unwritten leaves.
    let teeth = new("unwritten-teeth");
    for i in 0..700i64 {
        if unless_unsupported(sys::fallocate(&teeth, 0, i * 8192, 4096)).is_none() {
            break;
        }
    }
    write(&teeth, 3_000_000, b"data");
}

fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut out = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        out.extend([tag.to_le_bytes(), perm.to_le_bytes()].concat());
        out.extend(id.to_le_bytes());
    }
    out
}

fn attributes(dir: &Path, chance: &mut Chance, root: bool, longest: usize) {
    fs::create_dir(dir).unwrap();
    let file = |name: &str| {
        let path = dir.join(name);
        fs::write(&path, name).unwrap();
        path
    };
    let set = |path: &Path, name: &str, value: &[u8]| unless_unsupported(sys::set_xattr(path, name, value));
    let small = file("small");
    set(&small, "user.a", b"1");
    set(&small, "user.empty", b"");
    set(&small, "user.ünïcödé", &[0, 255, 10]);
    for (name, len) in
        [("medium", 300), ("block", 900), ("large", 3000), ("own-inode", 20_000), ("two-inodes", 60_000)]
    {
        let path = file(name);
        set(&path, "user.value", &chance.bytes(len.min(longest)));
        set(&path, "user.other", b"beside");
    }
    for name in ["shared1", "shared2"] {
        set(&file(name), "user.same", &[7; 500]);
    }
    let none = u32::MAX;
    let list = acl(&[
        (1, 6, none),
        (2, 7, 1000),
        (2, 5, 70000),
        (4, 4, none),
        (8, 6, 50),
        (0x10, 7, none),
        (0x20, 0, none),
    ]);
    set(&file("acl"), "system.posix_acl_access", &list);
    let sub = dir.join("defaults");
    fs::create_dir(&sub).unwrap();
    set(&sub, "system.posix_acl_default", &list);
    fs::write(sub.join("inherits"), b"").unwrap();
    if root {
        set(&small, "trusted.t", b"for root");
        set(&small, "security.capability", &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        chown(file("owned"), Some(70_000), Some(4_000_000_000)).unwrap();
        let link = dir.join("link");
        symlink("small", &link).unwrap();
        lchown(&link, Some(1), Some(2)).unwrap();
        set(&link, "trusted.on-a-link", &[1; 40]);
    }
    // Who is not root cannot copy what nobody may read.
    let secret = if root { 0 } else { 0o400 };
    for mode in [0o4755, 0o2755, 0o1777, 0o6000 | secret, secret, 0o777] {
        fs::set_permissions(file(&format!("mode{mode:o}")), fs::Permissions::from_mode(mode)).unwrap();
    }
    for (seconds, nanoseconds) in [
        (-1_000_000_000, 123_456_789),
        (-1, 999_999_999),
        (0, 0),
        (1, 1),
        (2_147_483_647, 5),
        (2_147_483_648, 6),
        (9_999_999_999, 7),
        (15_032_385_535, 1),
    ] {
        sys::set_mtime(&file(&format!("time{seconds}")), seconds, nanoseconds).unwrap();
    }
}

fn specials(dir: &Path) {
    fs::create_dir(dir).unwrap();
    for (name, kind, major, minor) in [
        ("null", libc::S_IFCHR, 1, 3),
        ("wide", libc::S_IFCHR, 300, 70_000),
        ("sda", libc::S_IFBLK, 8, 1),
        ("nvme", libc::S_IFBLK, 259, 1_048_575),
        ("fifo", libc::S_IFIFO, 0, 0),
        ("socket", libc::S_IFSOCK, 0, 0),
    ] {
        match sys::mknod(&dir.join(name), kind | 0o640, major, minor) {
            // XFS keeps 18 bits of a minor number.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) && minor >= 1 << 18 => {}
            made => made.unwrap(),
        }
    }
}

fn deep(dir: &Path, chance: &mut Chance) {
    let mut at = dir.to_path_buf();
    for depth in 0..30 {
        at.push(format!("level{depth}"));
        fs::create_dir_all(&at).unwrap();
        for i in 0..chance.below(6) {
            let len = usize::try_from(chance.below(9000)).unwrap();
            fs::write(at.join(format!("file{i}")), chance.bytes(len)).unwrap();
        }
    }
}

/// Directories that were full: their entries are merged, their blocks stay.
fn removed(dir: &Path) {
    fs::create_dir(dir).unwrap();
    for i in 0..400 {
        fs::write(dir.join(format!("temporary file number {i}")), b"").unwrap();
    }
    for i in (0..400).filter(|i| i % 7 != 0) {
        fs::remove_file(dir.join(format!("temporary file number {i}"))).unwrap();
    }
    fs::create_dir(dir.join("empty")).unwrap();
    fs::create_dir(dir.join("few")).unwrap();
    for name in ["a", "bb", "ccc"] {
        fs::write(dir.join("few").join(name), name).unwrap();
    }
}
