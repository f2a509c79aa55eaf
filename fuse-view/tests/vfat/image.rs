//! Images of FAT file systems.

use crate::common::{skip::skip, support::run};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

/// Makes an image with these options of mkfs.vfat; None, with a word about it, where that is missing.
pub fn mkfs(dir: &Path, mib: u64, options: &str) -> Option<PathBuf> {
    let image = dir.join("image");
    File::create(&image).unwrap().set_len(mib << 20).unwrap();
    let mut args: Vec<&str> = options.split_whitespace().collect();
    args.push(image.to_str().unwrap());
    match run("mkfs.vfat", &args) {
        Ok(_) => Some(image),
        Err(why) if why.starts_with("mkfs.vfat: ") && why.contains("No such file") => {
            skip("mkfs.vfat is missing (package dosfstools)");
            None
        }
        Err(why) => panic!("{why}"),
    }
}

/// Runs one of mtools on an image, in UTC and UTF-8; None: it is not installed, which is said.
pub fn mtool(image: &Path, name: &str, args: &[&str]) -> Option<String> {
    let mut command = Command::new(name);
    command.arg("-i").arg(image).args(args);
    // Its own choice for short names is another code page than the kernel's.
    let settings = image.with_extension("mtoolsrc");
    fs::write(&settings, "default_codepage=437\nmtools_skip_check=1\n").unwrap();
    command.env("LC_ALL", "C.UTF-8").env("TZ", "UTC").env("MTOOLSRC", settings);
    match command.output() {
        Ok(out) => {
            let told = String::from_utf8_lossy(&out.stderr).into_owned();
            assert!(out.status.success(), "{name} {args:?}: {told}");
            Some(String::from_utf8_lossy(&out.stdout).into_owned())
        }
        Err(_) => {
            skip(&format!("{name} is missing (package mtools)"));
            None
        }
    }
}

/// The short name of the file with the long one.
pub const LONG_AS_SHORT: &[u8; 11] = b"ALONGN~1TEX";

/// A small image with some files in it, as bytes.
pub fn filled(options: &str) -> Option<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    // Each width has its range of numbers of clusters.
    let mib = if options.contains("-F 32") {
        40
    } else if options.contains("-F 16") {
        16
    } else {
        8
    };
    let image = mkfs(dir.path(), mib, options)?;
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("sub/deeper")).unwrap();
    for (name, len) in
        [("a", 0), ("b", 5000), ("A long name with spaces.text", 70_000), ("sub/c", 3), ("sub/deeper/d", 9)]
    {
        fs::write(tree.join(name), vec![u8::try_from(len % 251).unwrap(); len]).unwrap();
    }
    for name in ["a", "b", "A long name with spaces.text", "sub"] {
        mtool(&image, "mcopy", &["-s", "-Q", tree.join(name).to_str().unwrap(), "::/"])?;
    }
    Some(fs::read(&image).unwrap())
}

/// The number of two bytes at `at`.
pub fn le16(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

/// The number of four bytes at `at`.
pub fn le32(bytes: &[u8], at: usize) -> usize {
    le16(bytes, at) | le16(bytes, at + 2) << 16
}

/// Where the first table starts, and the bytes of one.
pub fn table(bytes: &[u8]) -> (usize, usize) {
    let sectors = if le16(bytes, 22) == 0 { le32(bytes, 36) } else { le16(bytes, 22) };
    (le16(bytes, 14) * le16(bytes, 11), sectors * le16(bytes, 11))
}

/// What follows the tables: the root directory, and with FAT32 the clusters.
pub fn behind_tables(bytes: &[u8]) -> usize {
    let (first, len) = table(bytes);
    first + usize::from(bytes[16]) * len
}

/// The entry of a file by its short name, the first one that has it.
pub fn entry_of(bytes: &[u8], name: &[u8; 11]) -> usize {
    let at = (behind_tables(bytes)..bytes.len()).step_by(32).find(|at| bytes[*at..at + 11] == name[..]);
    at.expect("the file is there")
}
