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
