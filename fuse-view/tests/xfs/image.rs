//! Images made by mkfs.xfs.

use crate::common::support::run;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Makes an image of `mib` MiB with mkfs.xfs and these options; None, with a word about it, where mkfs.xfs is missing.
pub fn mkfs(dir: &Path, mib: u64, options: &str) -> Option<PathBuf> {
    mkfs_at(&dir.join("image"), mib, options)
}

/// The same, at this path.
pub fn mkfs_at(image: &Path, mib: u64, options: &str) -> Option<PathBuf> {
    File::create(image).unwrap().set_len(mib << 20).unwrap();
    // Sizes below 300 MiB are for tests.
    let mut args = vec!["--unsupported", "-q", "-f"];
    args.extend(options.split_whitespace());
    args.push(image.to_str().unwrap());
    match run("mkfs.xfs", &args) {
        Ok(_) => Some(image.to_path_buf()),
        Err(e) if e.contains("No such file") && e.starts_with("mkfs.xfs:") => {
            crate::common::skip::skip("mkfs.xfs is missing (package xfsprogs)");
            None
        }
        Err(e) => panic!("{e}"),
    }
}
