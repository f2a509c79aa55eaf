//! Images made by mkfs.btrfs, and what the tests of this reader ask for before they begin.

use crate::common::support::run;
use crate::common::{skip::skip, sys};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Makes an image of `mib` MiB with mkfs.btrfs and these options; None, with a word about it, where that is missing.
pub fn mkfs(dir: &Path, mib: u64, options: &str) -> Option<PathBuf> {
    let image = dir.join("image");
    File::create(&image).unwrap().set_len(mib << 20).unwrap();
    let mut args = vec!["-q", "-f"];
    args.extend(options.split_whitespace());
    args.push(image.to_str().unwrap());
    let mut made = run("mkfs.btrfs", &args);
    // It looks at every mount of the machine, and gives up at one whose server somebody else has just killed.
    for _ in 0..300 {
        match &made {
            Err(e) if e.contains("cannot check mount status") => {
                std::thread::sleep(Duration::from_millis(200));
                made = run("mkfs.btrfs", &args);
            }
            _ => break,
        }
    }
    match made {
        Ok(_) => Some(image),
        Err(e) if e.contains("No such file") && e.starts_with("mkfs.btrfs:") => {
            skip("mkfs.btrfs is missing (package btrfs-progs)");
            None
        }
        Err(e) => panic!("{e}"),
    }
}

/// Whether the kernel's btrfs can be asked; says so if not.
pub fn can_mount() -> bool {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default().contains("btrfs")
        || run("modprobe", &["btrfs"]).is_ok();
    if !sys::is_root() || !known {
        skip("comparing with the kernel needs root and a kernel with btrfs");
        return false;
    }
    true
}
