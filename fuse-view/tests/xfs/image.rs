//! Images made by mkfs.xfs.

use crate::common::support::run;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
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

/// Sets bits of `features_incompat` and makes the checksum of the superblock right again.
pub fn set_incompat(image: &Path, bits: u32) {
    edit_superblock(image, |sb| {
        let old = u32::from_be_bytes(sb[216..220].try_into().unwrap());
        sb[216..220].copy_from_slice(&(old | bits).to_be_bytes());
    });
}

/// Changes the first superblock, and its checksum with it.
pub fn edit_superblock(image: &Path, change: impl FnOnce(&mut [u8])) {
    let file = OpenOptions::new().read(true).write(true).open(image).unwrap();
    let mut sb = vec![0; 512];
    file.read_exact_at(&mut sb, 0).unwrap();
    sb.resize(usize::from(u16::from_be_bytes([sb[102], sb[103]])), 0);
    file.read_exact_at(&mut sb, 0).unwrap();
    change(&mut sb);
    fix_checksum(&mut sb, 224);
    file.write_all_at(&sb, 0).unwrap();
}

/// Makes the checksum at byte `at` of a piece of metadata right.
pub fn fix_checksum(bytes: &mut [u8], at: usize) {
    bytes[at..at + 4].fill(0);
    let crc = crc32c::crc32c(bytes);
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}
