//! Every field of every file: as the kernel's mount shows it where it has vfat, else as mtools wrote it.

use crate::{
    common::{
        support::{Chance, CountingImage, Mount, run, workdir},
        sys,
        tree::{Mask, differences, of_mount, of_view},
    },
    image::{mkfs, mtool},
    traps,
};
use fuse_view::{Error, FileKind, fs::open};
use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// Names that a FAT has in different ways: short ones in each case, long ones, others than ASCII.
const NAMES: [&str; 12] = [
    "SHORT.TXT",
    "short.txt2",
    "lower.txt",
    "LOWER2.txt",
    "Mixed.Txt",
    "no extension",
    "ünïcödé.dat",
    "日本語のファイル",
    EMOJI,
    ".hidden",
    "many.dots.in.a.name",
    "+,;=[]",
];

const EMOJI: &str = "emoji 🐄 moo";

fn long_name() -> String {
    "long ".repeat(48).trim().to_owned()
}

/// Writes files, times and directories below `top`.
fn fill(top: &Path, seed: u64) {
    let mut chance = Chance(seed);
    let mut stamp = 315_532_800_u64;
    let mut write = |path: &Path, bytes: &[u8]| {
        fs::write(path, bytes).unwrap();
        // Times have steps of two seconds.
        stamp += 2 * (1 + chance.below(2_000_000));
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(stamp);
        File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    };
    for (at, name) in NAMES.iter().enumerate() {
        write(&top.join(name), vec![u8::try_from(at).unwrap(); at * 1777].as_slice());
    }
    write(&top.join(long_name()), b"long");
    fs::create_dir_all(top.join("Directory one/two/three")).unwrap();
    write(&top.join("Directory one/two/three/leaf"), b"leaf");
    fs::create_dir(top.join("many")).unwrap();
    for at in 0..400_usize {
        write(&top.join(format!("many/file number {at}")), &at.to_le_bytes());
    }
    write(&top.join("large"), &Chance(seed).bytes(1_500_000));
}

/// Leaves holes between files and fills them with one that is in many pieces.
fn fragment(top: &Path) {
    // The root directory of FAT12 and FAT16 has room for 512 entries only.
    let pieces = top.join("pieces");
    fs::create_dir(&pieces).unwrap();
    for at in 0..300 {
        fs::write(pieces.join(format!("piece{at}")), vec![1; 9000]).unwrap();
    }
    run("sync", &["-f", top.to_str().unwrap()]).unwrap();
    for at in (0..300).step_by(2) {
        fs::remove_file(pieces.join(format!("piece{at}"))).unwrap();
    }
    fs::write(top.join("fragmented"), Chance(9).bytes(900_000)).unwrap();
    fs::write(top.join("read only"), "x").unwrap();
    fs::set_permissions(top.join("read only"), fs::Permissions::from_mode(0o444)).unwrap();
    File::options().write(true).open(top.join("large")).unwrap().write_all_at(b"changed", 700_000).unwrap();
}

/// How the kernel shows what the reader shows: in UTC, names in UTF-8.
pub const OPTIONS: &str = "utf8=1,tz=UTC,umask=022,codepage=437";

/// Whether this is the kernel of `make test-kernel`, which mounts vfat.
pub fn is_test_kernel() -> bool {
    std::env::var_os("COWSLIP_TEST_KERNEL").is_some()
}

/// Compares with the kernel's mount; false: this kernel has no vfat, or we may not mount.
fn against_the_kernel(image: &Path, at: &Path, seed: u64) -> bool {
    if !sys::is_root() || Mount::with(image, at, OPTIONS).is_err() {
        return false;
    }
    let mount = Mount::with(image, at, OPTIONS).unwrap();
    fill(&mount.0, seed);
    fragment(&mount.0);
    drop(mount);
    let mount = Mount::with(image, at, &format!("ro,{OPTIONS}")).unwrap();
    let theirs = of_mount(&mount.0);
    let view = open(Arc::new(CountingImage::open(image))).unwrap();
    assert!(theirs.len() > 550, "{} files", theirs.len());
    // Nobody has inode numbers here.
    let mask = Mask { ino: true, ..Mask::default() };
    let found = differences(&of_view(&*view), &theirs, |_, _| mask);
    assert!(found.is_empty(), "{found:#?}");
    let text = run("stat", &["-f", "-c", "%S %b %f %l", mount.0.to_str().unwrap()]).unwrap();
    let numbers: Vec<u64> = text.split_whitespace().map(|n| n.parse().unwrap()).collect();
    let is = view.statfs();
    assert_eq!([u64::from(is.block_bytes), is.blocks, is.blocks_free, u64::from(is.name_max)], numbers[..]);
    true
}

/// Compares with what mtools copied in; false, said: they are missing.
fn against_mtools(image: &Path, dir: &Path, seed: u64) -> bool {
    let tree = dir.join("tree");
    fs::create_dir(&tree).unwrap();
    fill(&tree, seed);
    // mtools cuts characters beyond the 16th bit, knows others than the kernel where its locale says so, and finds no
    // room in a directory for a name that is longer than a cluster. The kernel's mount is compared with those.
    let beyond = |name: &str| !name.is_ascii() || name.len() > 100;
    let long = long_name();
    for name in NAMES.into_iter().chain([&*long]).filter(|name| beyond(name)) {
        fs::remove_file(tree.join(name)).unwrap();
    }
    let mut names: Vec<String> =
        fs::read_dir(&tree).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    // Holes for the large file, which comes last but one.
    fs::write(dir.join("hole"), vec![7; 9000]).unwrap();
    let hole = dir.join("hole").display().to_string();
    for at in 0..40 {
        if mtool(image, "mcopy", &[&hole, &format!("::/hole{at}")]).is_none() {
            return false;
        }
    }
    for at in (0..40).step_by(2) {
        mtool(image, "mdel", &[&format!("::/hole{at}")]);
    }
    for name in &names {
        mtool(image, "mcopy", &["-s", "-m", "-Q", tree.join(name).to_str().unwrap(), "::/"]);
    }
    for at in (1..40).step_by(2) {
        mtool(image, "mdel", &[&format!("::/hole{at}")]);
    }
    let view = open(Arc::new(CountingImage::open(image))).unwrap();
    let ours = of_view(&*view);
    let theirs = of_mount(&tree);
    let missing: Vec<_> =
        theirs.keys().filter(|path| !ours.contains_key(*path)).map(|p| String::from_utf8_lossy(p)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert_eq!(ours.len(), theirs.len());
    for (path, theirs) in &theirs {
        let (ours, name) = (&ours[path], String::from_utf8_lossy(path));
        assert_eq!((ours.kind, ours.error.as_deref()), (theirs.kind, None), "{name}");
        if theirs.kind == FileKind::File {
            assert_eq!(
                (ours.size, ours.mtime, &ours.content),
                (theirs.size, theirs.mtime, &theirs.content),
                "{name}"
            );
        }
    }
    true
}

fn check(mib: u64, options: &str) {
    let dir = workdir();
    let Some(image) = mkfs(dir.path(), mib, options) else { return };
    let seed = mib;
    if against_the_kernel(&image, &dir.path().join("mnt"), seed) {
        println!("compared with the kernel: {options}");
    } else if is_test_kernel() {
        panic!("this kernel should mount vfat, and does not");
    } else if against_mtools(&image, dir.path(), seed) {
        println!("compared with mtools, as this kernel mounts no vfat: {options}");
    }
}

#[test]
fn fat12() {
    check(7, "-F 12 -s 8");
}

#[test]
fn fat16() {
    check(64, "-F 16 -n LABEL");
    check(40, "-F 16 -S 1024 -r 1024 -f 1");
}

#[test]
fn fat32() {
    check(80, "-F 32 -s 1");
    check(300, "-F 32 -S 4096 -s 1");
}

/// All of the above where there is a kernel to compare with, and sizes of clusters and tables that are rare.
#[test]
fn test_kernel_shows_the_same() {
    if !is_test_kernel() {
        return;
    }
    fat12();
    fat16();
    fat32();
    check(30, "-F 12 -s 64 -f 1");
    check(120, "-F 16 -s 32 -R 8");
    check(130, "-F 32 -s 2 -f 1 -R 40 -b 7");
    traps::v2_tables_that_differ();
    traps::v3_hints_that_are_wrong();
    traps::v4_chains_and_sizes_that_differ();
    traps::v5_long_names_without_a_file();
}

#[test]
fn names_are_found_in_any_case_and_by_their_short_form() {
    let Some(bytes) = crate::image::filled("-F 16") else { return };
    let view = open(Arc::new(crate::common::support::MemoryImage(bytes))).unwrap();
    let root = view.root();
    let long = view.lookup(root, b"A long name with spaces.text").unwrap();
    for name in [&b"a LONG name with SPACES.text"[..], b"ALONGN~1.TEX", b"alongn~1.tex"] {
        assert_eq!(view.lookup(root, name).ok(), Some(long), "{}", String::from_utf8_lossy(name));
    }
    assert!(matches!(view.lookup(root, b"a long name"), Err(Error::NotFound(_))));
    assert_eq!(view.replay(), "clean");
}

#[test]
fn v1_an_unmounted_flag_is_told() {
    let Some(mut bytes) = crate::image::filled("-F 16") else { return };
    bytes[37] |= 1;
    let view = open(Arc::new(crate::common::support::MemoryImage(bytes))).unwrap();
    assert!(view.replay().starts_with("partial: "), "{}", view.replay());
}
