//! What a reader of FAT gets wrong if it believes the wrong place: shown as the kernel shows it, where that mounts vfat.

use crate::{
    common::{
        support::{MemoryImage, Mount, workdir},
        tree::{Mask, Tree, differences, of_mount, of_view},
    },
    image::{LONG_AS_SHORT, entry_of, filled, le16, le32, table},
    oracle::{OPTIONS, is_test_kernel},
};
use fuse_view::fs::open;
use std::{fs, sync::Arc};

const LONG: &[u8] = b"A long name with spaces.text";

/// The tree of an image, which is the kernel's, too; and the free clusters.
fn shown(bytes: &[u8], what: &str) -> (Tree, u64) {
    let view = open(Arc::new(MemoryImage(bytes.to_vec()))).unwrap();
    let ours = of_view(&*view);
    if is_test_kernel() {
        let dir = workdir();
        let image = dir.path().join("image");
        fs::write(&image, bytes).unwrap();
        let mount = Mount::with(&image, &dir.path().join("mnt"), &format!("ro,{OPTIONS}")).unwrap();
        let mask = Mask { ino: true, ..Mask::default() };
        let found = differences(&ours, &of_mount(&mount.0), |_, _| mask);
        assert!(found.is_empty(), "{what}: {found:#?}");
    }
    (ours, view.statfs().blocks_free)
}

/// The image with a change is shown as the one without.
fn changes_nothing(whole: &[u8], what: &str, change: impl Fn(&mut Vec<u8>)) {
    let mut bytes = whole.to_vec();
    change(&mut bytes);
    assert!(bytes != whole, "{what} changes the image");
    let ((ours, free), (was, was_free)) = (shown(&bytes, what), shown(whole, "whole"));
    let found = differences(&ours, &was, |_, _| Mask::default());
    assert!(found.is_empty(), "{what}: {found:#?}");
    assert_eq!(free, was_free, "{what}: free clusters");
}

/// The first table counts, whatever the second one and the flags say.
#[test]
pub fn v2_tables_that_differ() {
    for options in ["-F 12 -s 8", "-F 16 -s 4", "-F 32 -s 1"] {
        let Some(whole) = filled(options) else { return };
        let (first, len) = table(&whole);
        changes_nothing(&whole, &format!("{options}: a second table of zeros"), |bytes| {
            bytes[first + len + 8..first + 2 * len].fill(0);
        });
        if options.contains("32") {
            changes_nothing(&whole, "the second table, of zeros, said to be the active one", |bytes| {
                bytes[first + len + 8..first + 2 * len].fill(0);
                bytes[40] = 0x81;
            });
        }
    }
}

/// What is said about free space is a hint.
#[test]
pub fn v3_hints_that_are_wrong() {
    let Some(whole) = filled("-F 32 -s 1") else { return };
    let info = le16(&whole, 48) * le16(&whole, 11);
    assert_eq!(le32(&whole, info), 0x4161_5252, "the hints are there");
    for (what, at, value) in [
        ("nothing is free", 488, 0_u32),
        ("unknown", 488, u32::MAX),
        ("more than there is", 488, 0x00FF_FFFF),
        ("the next one lies outside", 492, 0x0FFF_FFF0),
        ("no signature", 484, 0),
    ] {
        changes_nothing(&whole, what, |bytes| {
            bytes[info + at..info + at + 4].copy_from_slice(&value.to_le_bytes());
        });
    }
}

/// Of a chain that is longer than the file the size counts; of one that is shorter nothing beyond its end is made up.
#[test]
pub fn v4_chains_and_sizes_that_differ() {
    let Some(whole) = filled("-F 16 -s 4") else { return };
    let entry = entry_of(&whole, LONG_AS_SHORT);
    let (was, _) = shown(&whole, "whole");
    for size in [1_u32, 2047, 2048, 2049, 69_999] {
        let mut bytes = whole.clone();
        bytes[entry + 28..entry + 32].copy_from_slice(&size.to_le_bytes());
        let (ours, _) = shown(&bytes, "a longer chain");
        let file = &ours[LONG];
        assert_eq!((file.size, file.error.as_deref()), (u64::from(size), None));
        assert_eq!(ours.len(), was.len());
    }
    let mut bytes = whole;
    bytes[entry + 28..entry + 32].copy_from_slice(&90_000_u32.to_le_bytes());
    let (ours, _) = shown(&bytes, "a shorter chain");
    assert!(ours[LONG].error.is_some(), "bytes beyond the chain are made up");
}

/// Slots of a long name whose short entry is gone are nobody's, also before the entry of another file.
#[test]
pub fn v5_long_names_without_a_file() {
    let Some(whole) = filled("-F 16 -s 4") else { return };
    let entry = entry_of(&whole, LONG_AS_SHORT);
    let (was, _) = shown(&whole, "whole");
    let mut gone = whole.clone();
    gone[entry] = 0xE5;
    let (ours, _) = shown(&gone, "the short entry is deleted");
    assert!(!ours.contains_key(LONG) && ours.len() == was.len() - 1);
    let mut other = whole;
    other[entry..entry + 11].copy_from_slice(b"OTHER   TXT");
    let (ours, _) = shown(&other, "the short entry is another file's");
    let names: Vec<_> = ours.keys().map(|path| String::from_utf8_lossy(path)).collect();
    assert!(!ours.contains_key(LONG), "{names:?}");
    assert!(names.iter().any(|name| name.eq_ignore_ascii_case("other.txt")), "{names:?}");
}
