//! Trees of files for the tests, and what is compared of one: everything but times of access and inode numbers.

use crate::rig::tool;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

/// What a file is, by its path below the root of the tree.
pub type Manifest = BTreeMap<PathBuf, Entry>;

#[derive(Debug, PartialEq, Eq, Default)]
pub struct Entry {
    mode: u32,
    owner: (u32, u32),
    links: u64,
    size: u64,
    modified: (i64, i64),
    device: u64,
    /// Digest of the data, or the target of a symbolic link.
    content: String,
    /// Extended attributes, access control lists among them.
    attributes: String,
}

/// Reads all of the tree below `root`.
pub fn manifest(root: &Path) -> Manifest {
    let mut all = Manifest::new();
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        for found in fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
            let path = found.expect("a directory can be read to its end").path();
            let entry = entry(&path);
            if path.is_dir() && !path.is_symlink() {
                pending.push(path.clone());
            }
            all.insert(path.strip_prefix(root).expect("it lies below").to_owned(), entry);
        }
    }
    for (path, attributes) in attributes(root) {
        if let Some(entry) = all.get_mut(&path) {
            entry.attributes = attributes;
        }
    }
    all
}

/// The entry of one file, without its extended attributes.
fn entry(path: &Path) -> Entry {
    let failed = |e| panic!("{}: {e}", path.display());
    let meta = fs::symlink_metadata(path).unwrap_or_else(failed);
    let kind = meta.file_type();
    let content = if kind.is_file() {
        blake3::hash(&fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).to_string()
    } else if kind.is_symlink() {
        fs::read_link(path).expect("a link has a target").display().to_string()
    } else {
        String::new()
    };
    Entry {
        mode: meta.mode(),
        owner: (meta.uid(), meta.gid()),
        links: meta.nlink(),
        size: if kind.is_dir() { 0 } else { meta.size() },
        modified: (meta.mtime(), meta.mtime_nsec()),
        device: if kind.is_char_device() || kind.is_block_device() { meta.rdev() } else { 0 },
        content,
        attributes: String::new(),
    }
}

/// Extended attributes below `root`, as getfattr(1) prints them.
fn attributes(root: &Path) -> Vec<(PathBuf, String)> {
    let words: [&OsStr; 5] =
        ["-Rhd".as_ref(), "-m".as_ref(), "-".as_ref(), "--absolute-names".as_ref(), root.as_ref()];
    let text = tool("getfattr", words);
    let blocks =
        text.split("\n\n").filter_map(|block| block.trim().strip_prefix("# file: ")?.split_once('\n'));
    let below = |path: &str| Some(Path::new(path).strip_prefix(root).ok()?.to_owned());
    blocks.filter_map(|(path, lines)| Some((below(path)?, lines.to_owned()))).collect()
}

/// Fails with the first differences, not with all of two trees.
#[track_caller]
pub fn assert_same(left: &Manifest, right: &Manifest) {
    let paths = left.keys().chain(right.keys().filter(|path| !left.contains_key(*path)));
    let differ: Vec<_> = paths
        .filter(|path| left.get(*path) != right.get(*path))
        .map(|path| format!("{}:\n  {:?}\n  {:?}", path.display(), left.get(path), right.get(path)))
        .collect();
    let first = &differ[..differ.len().min(5)];
    assert!(differ.is_empty(), "{} files differ, such as\n{}", differ.len(), first.join("\n"));
}

/// A small tree with what file systems can hold.
pub fn plant(root: &Path) {
    let sub = root.join("sub");
    fs::create_dir_all(sub.join("empty")).expect("the tree is writable");
    fs::write(sub.join("file"), "kept\n").expect("the tree is writable");
    fs::write(sub.join("large"), crate::rig::noise(7, 3 << 20)).expect("the tree is writable");
    fs::write(sub.join("nothing"), "").expect("the tree is writable");
    fs::hard_link(sub.join("large"), sub.join("linked")).expect("hard links can be made");
    symlink("../sub/file", sub.join("symbolic")).expect("links can be made");
    let sparse = fs::File::create(sub.join("sparse")).expect("the tree is writable");
    sparse.write_all_at(b"end", 40 << 20).expect("a hole can be made");
    for (name, kind) in [("null", "c"), ("disk", "b")] {
        tool("mknod", [sub.join(name).as_os_str(), kind.as_ref(), "1".as_ref(), "3".as_ref()]);
    }
    tool("mkfifo", [sub.join("fifo")]);
    let file = sub.join("file");
    tool(
        "setfattr",
        ["-n".as_ref(), "user.colour".as_ref(), "-v".as_ref(), "blue".as_ref(), file.as_os_str()],
    );
    tool("chown", ["1234:4321".as_ref(), file.as_os_str()]);
    tool("chmod", ["4751".as_ref(), file.as_os_str()]);
    tool("touch", ["-d".as_ref(), "2001-02-03T04:05:06.789012345Z".as_ref(), file.as_os_str()]);
    tool("touch", ["-d".as_ref(), "1999-12-31T23:59:59.5Z".as_ref(), sub.join("empty").as_os_str()]);
}
