//! Version 4, which this kernel may not mount: trees that mkfs.xfs itself copies in, compared with their source.

use crate::common::compare::kind_of;
use crate::common::support::{Chance, workdir};
use crate::image::mkfs;
use fuse_view::source::FileImage;
use fuse_view::{FileKind, FsView, Ino, fs::open};
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::sync::Arc;

/// A tree that a prototype can describe: no attributes, no times, no holes, names without spaces.
fn source(root: &Path, longest_target: usize) {
    let mut chance = Chance(4);
    for (dir, names) in [("few", 3), ("block", 60), ("leaf", 700), ("node", 4000)] {
        fs::create_dir_all(root.join(dir)).unwrap();
        for i in 0..names {
            let name = format!("{i}-{}", "n".repeat(usize::try_from(chance.below(60)).unwrap()));
            let path = root.join(dir).join(name);
            match i % 40 {
                0 => symlink("t".repeat(1 + i % longest_target), path).unwrap(),
                1 => fs::create_dir(path).unwrap(),
                _ => fs::write(path, []).unwrap(),
            }
        }
    }
    for len in [1, 100, 4096, 70_000, 1_000_000] {
        fs::write(root.join(format!("few/len{len}")), chance.bytes(len)).unwrap();
    }
}

/// The prototype of what is in `dir`.
fn prototype(dir: &Path, out: &mut String) {
    let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap().to_str().unwrap();
        let meta = path.symlink_metadata().unwrap();
        match kind_of(&meta) {
            FileKind::Dir => {
                writeln!(out, "{name} d--755 7 8").unwrap();
                prototype(&path, out);
                writeln!(out, "$").unwrap();
            }
            FileKind::Symlink => {
                writeln!(out, "{name} l--777 1 2 {}", fs::read_link(&path).unwrap().display()).unwrap();
            }
            _ => writeln!(out, "{name} ---640 3 4 {}", path.display()).unwrap(),
        }
    }
    if dir.ends_with("few") {
        writeln!(out, "null c--666 0 0 1 3\nfifo p--600 5 6").unwrap();
    }
}

fn same(fs: &dyn FsView, dir: Ino, path: &Path) -> usize {
    let mut seen = 0;
    let (mut cookie, mut names) = (0, Vec::new());
    loop {
        let entries = fs.readdir(dir, cookie, 77).unwrap();
        let Some(last) = entries.last() else { break };
        cookie = last.cookie;
        names.extend(entries);
    }
    for entry in &names {
        assert_eq!(fs.lookup(dir, &entry.name).unwrap(), entry.ino);
        let attr = fs.attr(entry.ino).unwrap();
        let name = std::str::from_utf8(&entry.name).unwrap();
        let theirs = path.join(name);
        match name {
            "null" => assert_eq!((attr.kind, attr.rdev, attr.mode), (FileKind::CharDev, (1, 3), 0o666)),
            "fifo" => assert_eq!((attr.kind, attr.uid, attr.gid), (FileKind::Fifo, 5, 6)),
            _ => {
                seen += 1;
                let meta = theirs.symlink_metadata().unwrap();
                assert_eq!(attr.kind, kind_of(&meta), "{name}");
                match attr.kind {
                    FileKind::Dir => seen += same(fs, entry.ino, &theirs),
                    FileKind::Symlink => {
                        let target = fs::read_link(&theirs).unwrap().into_os_string().into_encoded_bytes();
                        assert_eq!(fs.readlink(entry.ino).unwrap(), target);
                    }
                    _ => {
                        let mut buf = vec![1; usize::try_from(meta.size()).unwrap() + 10];
                        let got = fs.read_at(entry.ino, 0, &mut buf).unwrap();
                        assert!(buf[..got] == fs::read(&theirs).unwrap(), "{name}");
                        assert_eq!((attr.uid, attr.gid, attr.mode, attr.nlink), (3, 4, 0o640, 1));
                    }
                }
            }
        }
    }
    for absent in [&b"no such name"[..], b"", &[b'n'; 256]] {
        assert!(matches!(fs.lookup(dir, absent), Err(fuse_view::Error::NotFound(_))));
    }
    seen
}

fn check(options: &str) {
    let dir = workdir();
    let root = dir.path().join("source");
    // mkfs.xfs 6.1 forgets the headers of targets outside of the inode in version 5.
    source(&root, if options.contains("crc=0") { 1000 } else { 300 });
    let mut text = String::from("ignored\n0 0\nd--755 0 0\n");
    prototype(&root, &mut text);
    text.push_str("$\n");
    let proto = dir.path().join("proto");
    fs::write(&proto, text).unwrap();
    let Some(image) = mkfs(dir.path(), 200, &format!("{options} -p {}", proto.display())) else { return };
    let fs = open(Arc::new(FileImage::open(&image).unwrap())).unwrap();
    assert_eq!(fs.replay(), "clean", "{options}");
    let all = same(&*fs, fs.root(), &root);
    assert!(all > 4700, "{options}: {all} files");
    assert_eq!(fs.attr(fs.root()).unwrap().btime.is_some(), !options.contains("crc=0"));
}

#[test]
fn version_4() {
    check("-m crc=0");
    check("-m crc=0 -b size=512 -i size=256 -n ftype=0 -l version=1");
}

#[test]
fn version_4_with_large_blocks_of_directories() {
    check("-m crc=0 -b size=1024 -n size=16384,ftype=1 -i attr=1,projid32bit=0 -l lazy-count=0");
    check("-m crc=0 -i size=2048 -n version=ci");
}

/// The same by the same way in version 5, where the kernel's mount has confirmed the reader.
#[test]
fn version_5_by_a_prototype() {
    check("");
}
