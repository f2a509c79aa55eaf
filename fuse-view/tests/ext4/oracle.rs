//! Every field of every file, as the kernel's read-only mount shows it and as the reader does.

use crate::common::compare::{Against, compare_trees};
use crate::common::populate::{fill, populate};
use crate::common::support::{CountingImage, Mount, mke2fs, workdir};
use crate::common::sys;
use fuse_view::{FileKind, fs::open};
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::sync::Arc;

/// Formats an image with `options`, fills it, and compares.
fn check(options: &str) {
    let dir = workdir();
    let Some(image) = mke2fs(dir.path(), 256, options) else { return };
    let at = dir.path().join("mnt");
    if !sys::is_root() {
        println!("without root only what mke2fs -d copies is compared, {options}");
        return check_copied(options);
    }
    match Mount::new(&image, &at, "rw") {
        Ok(mount) => {
            println!("comparing with the kernel: {options}");
            populate(&mount.0, 42, true);
        }
        Err(e) => {
            println!("note: the kernel does not mount {options:?} ({}); compared with the source", e.trim());
            return check_copied(options);
        }
    }
    let mount = Mount::new(&image, &at, "ro").unwrap();
    let fs = open(Arc::new(CountingImage::open(&image)).cached()).unwrap();
    assert_eq!(fs.replay(), "clean");
    let seen = compare_trees(&*fs, &mount.0, Against::Mount);
    assert!(seen > 1700, "{options}: only {seen} files compared");
    let (ours, theirs) = (fs.statfs(), statfs(&mount.0));
    assert_eq!((ours.inodes, ours.inodes_free, u64::from(ours.block_bytes)), theirs, "{options}: statfs");
}

/// Inodes, free inodes and bytes of a block, as `stat -f` prints them.
fn statfs(at: &Path) -> (u64, u64, u64) {
    let text = crate::common::support::run("stat", &["-f", "-c", "%c %d %S", at.to_str().unwrap()]).unwrap();
    let mut numbers = text.split_whitespace().map(|n| n.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap(), numbers.next().unwrap())
}

/// The same where the kernel cannot mount it: mke2fs copies the tree in.
fn check_copied(options: &str) {
    let dir = workdir();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fill(&source, 42, sys::is_root(), 400);
    fs::remove_file(source.join("sparse/huge")).unwrap();
    if options.contains("inline_data") {
        // mke2fs 1.47.0 then cuts the hole off the end of a file that it copies.
        fs::remove_dir_all(source.join("sparse")).unwrap();
    }
    let options = format!("{options} -d {}", source.display());
    let Some(image) = mke2fs(dir.path(), 160, &options) else { return };
    let fs = open(Arc::new(CountingImage::open(&image)).cached()).unwrap();
    let seen = compare_trees(&*fs, &source, Against::Source);
    assert!(seen > 1700, "{options}: only {seen} files compared");
}

#[test]
fn ext4_defaults() {
    check("-t ext4 -b 4096");
    check("-t ext4 -b 1024");
}

#[test]
fn ext2_and_ext3() {
    check("-t ext2 -b 1024");
    check("-t ext2 -b 4096 -O ^dir_index");
    check("-t ext3 -b 1024 -I 128");
    check("-t ext3 -b 2048 -O ^filetype,^resize_inode");
}

#[test]
fn layouts() {
    check("-t ext4 -b 2048 -O ^64bit,^metadata_csum,uninit_bg");
    check("-t ext4 -b 1024 -O meta_bg,^resize_inode -g 1024");
    check("-t ext4 -b 4096 -O bigalloc -C 65536");
    check("-t ext4 -b 1024 -O bigalloc,meta_bg,^resize_inode -C 16384");
    check("-t ext4 -O ^extents,^64bit,^flex_bg,^metadata_csum");
    check("-t ext4 -O sparse_super2,^resize_inode,mmp -I 512 -b 1024 -g 2048");
}

#[test]
fn features_of_files() {
    check("-t ext4 -O inline_data -I 1024");
    check("-t ext4 -O inline_data,ea_inode -b 1024 -I 256");
    check("-t ext4 -b 4096 -O ea_inode,large_dir,metadata_csum_seed,orphan_file");
    check("-t ext4 -b 4096 -O verity,encrypt,fast_commit -E hash_seed=01020304-0506-0708-090a-0b0c0d0e0f10");
    check("-t ext4 -I 128 -O ^extra_isize,^huge_file,^dir_nlink");
}

#[test]
fn what_the_kernel_may_not_mount() {
    check("-t ext4 -b 65536");
    check("-t ext4 -O casefold");
    check("-t ext4 -O quota,project");
}

#[test]
fn encrypted_files_are_told_as_such() {
    if !sys::is_root() {
        crate::common::skip::skip("encrypting a directory needs root");
        return;
    }
    let dir = workdir();
    let Some(image) = mke2fs(dir.path(), 16, "-t ext4 -O encrypt") else { return };
    let mount = Mount::new(&image, &dir.path().join("mnt"), "rw").unwrap();
    let secret = mount.0.join("secret");
    fs::create_dir(&secret).unwrap();
    if let Err(e) = sys::encrypt(&File::open(&secret).unwrap()) {
        crate::common::skip::skip(&format!(
            "the kernel does not encrypt ({e}); it needs CONFIG_FS_ENCRYPTION"
        ));
        return;
    }
    for i in 0..200 {
        fs::write(secret.join(format!("{i}{}", "n".repeat(i))), b"hidden").unwrap();
    }
    std::os::unix::fs::symlink("target", secret.join("link")).unwrap();
    drop(mount);
    // Mounted anew, the kernel has no key either.
    let mount = Mount::new(&image, &dir.path().join("mnt"), "ro").unwrap();
    let mut theirs: Vec<_> =
        fs::read_dir(mount.0.join("secret")).unwrap().map(|e| e.unwrap().file_name().into_vec()).collect();
    drop(mount);
    let fs = open(Arc::new(CountingImage::open(&image)).cached()).unwrap();
    let dir = fs.lookup(fs.root(), b"secret").unwrap();
    let names = fs.readdir(dir, 0, 1000).unwrap();
    assert_eq!(names.len(), 201);
    let mut ours: Vec<_> = names.iter().map(|entry| entry.name.clone()).collect();
    ours.sort();
    theirs.sort();
    assert_eq!(ours, theirs, "encoded names");
    for entry in names {
        assert!(entry.name.len() <= 255 && entry.name.iter().all(|b| b.is_ascii_graphic() && *b != b'/'));
        assert_eq!(fs.lookup(dir, &entry.name).unwrap(), entry.ino);
        let answer = match fs.attr(entry.ino).unwrap().kind {
            FileKind::Symlink => fs.readlink(entry.ino).map(drop),
            _ => fs.read_at(entry.ino, 0, &mut [0; 10]).map(drop),
        };
        assert!(matches!(answer, Err(fuse_view::Error::Unsupported(why)) if why.contains("encrypted")));
    }
}

/// Made by debugfs: the kernel that runs the tests may not know the feature.
#[test]
fn names_without_case() {
    let dir = workdir();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("folded")).unwrap();
    for name in ["Hello", "ÄRGER", "plain"] {
        fs::write(source.join("folded").join(name), name).unwrap();
    }
    let options = format!("-t ext4 -b 1024 -O casefold -d {}", source.display());
    let Some(image) = mke2fs(dir.path(), 16, &options) else { return };
    let command = "sif folded flags 0x40080000";
    crate::common::support::run("debugfs", &["-w", "-R", command, image.to_str().unwrap()]).unwrap();
    let fs = open(Arc::new(CountingImage::open(&image)).cached()).unwrap();
    let folded = fs.lookup(fs.root(), b"folded").unwrap();
    for (asked, there) in [("hello", "Hello"), ("HELLO", "Hello"), ("ärger", "ÄRGER"), ("PLAIN", "plain")] {
        assert_eq!(
            fs.lookup(folded, asked.as_bytes()).unwrap(),
            fs.lookup(folded, there.as_bytes()).unwrap()
        );
    }
    assert!(fs.lookup(folded, b"hell").is_err());
    // Other directories of the same file system keep the difference.
    assert!(fs.lookup(fs.root(), b"FOLDED").is_err());
}
