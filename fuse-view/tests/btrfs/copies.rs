//! Damage in one copy is not seen; in all of them it is told, and spares the rest. Several devices are refused.

use crate::common::support::{MemoryImage, Mount, run};
use crate::rig::{FIRST_COPY, NODE, Rig, content, find};
use fuse_view::{Error, FsView, fs::open};
use std::fs::{self, File};
use std::sync::Arc;

fn view(bytes: &[u8]) -> Arc<dyn FsView> {
    open(Arc::new(MemoryImage(bytes.to_vec()))).unwrap()
}

/// A committed image with data in two copies, and what it holds.
fn image() -> Option<Vec<u8>> {
    let mut rig = Rig::new("-m dup -d dup")?;
    rig.mkdir("dir");
    for i in 0..400 {
        rig.write(&format!("dir/file{i}"), format!("content of {i}, ").repeat(i % 9 * 100 + 1));
    }
    rig.write("marked", [&b"the marked content"[..], &vec![b'm'; 100_000]].concat());
    let bytes = fs::read(rig.unmount()).unwrap();
    Some(bytes)
}

/// Offsets of all blocks that begin like `start`.
fn blocks(bytes: &[u8], start: &[u8]) -> Vec<usize> {
    (0..bytes.len()).step_by(4096).filter(|&at| bytes[at..].starts_with(start)).collect()
}

/// Offsets of the tree blocks of subvolume 5, in all copies, whatever their generation.
fn tree_blocks(bytes: &[u8]) -> Vec<usize> {
    let fsid = &bytes[FIRST_COPY + 0x20..FIRST_COPY + 0x30];
    (1 << 20..bytes.len() - NODE)
        .step_by(NODE)
        .filter(|&at| &bytes[at + 32..at + 48] == fsid && bytes[at + 88..at + 96] == 5u64.to_le_bytes())
        .collect()
}

#[test]
fn the_other_copy_of_data() {
    let Some(mut bytes) = image() else { return };
    let want = content(&*view(&bytes), "marked");
    let copies = blocks(&bytes, b"the marked content");
    assert_eq!(copies.len(), 2);
    for &at in &copies {
        let mut one = bytes.clone();
        one[at + 100] ^= 1;
        one[at + 8192..at + 12_288].fill(0xEE);
        assert!(content(&*view(&one), "marked") == want);
    }
    for at in copies {
        bytes[at + 8192 + 77] ^= 1;
    }
    let view = view(&bytes);
    let ino = find(&*view, "marked").unwrap();
    let mut buf = vec![0; 4096];
    let read = view.read_at(ino, 9000, &mut buf);
    assert!(matches!(read, Err(Error::Corrupt(why)) if why.contains("wrong in every copy")));
    assert_eq!(view.read_at(ino, 4096, &mut buf).unwrap(), 4096);
    assert_eq!(view.read_at(ino, 12_288, &mut buf).unwrap(), 4096);
}

#[test]
fn the_other_copy_of_metadata() {
    let Some(bytes) = image() else { return };
    let all = tree_blocks(&bytes);
    let half = all.iter().map(|at| u64::from_le_bytes(bytes[at + 48..at + 56].try_into().unwrap()));
    let addresses: std::collections::BTreeSet<u64> = half.collect();
    assert!(addresses.len() > 4);
    for parity in 0..2 {
        let mut one = bytes.clone();
        let mut seen = std::collections::HashSet::new();
        for &at in &all {
            let first = seen.insert(one[at + 48..at + 56].to_vec());
            if first == (parity == 0) {
                one[at + 6000] ^= 0x10;
            }
        }
        let view = view(&one);
        let dir = find(&*view, "dir").unwrap();
        assert_eq!(view.readdir(dir, 0, 1000).unwrap().len(), 400);
        for i in 0..400 {
            let name = format!("dir/file{i}");
            assert_eq!(
                content(&*view, &name),
                format!("content of {i}, ").repeat(i % 9 * 100 + 1).as_bytes()
            );
        }
    }
}

/// A leaf is lost in both copies: what it held is an error, all else is there.
#[test]
fn a_lost_leaf_spares_the_others() {
    let Some(bytes) = image() else { return };
    let whole = view(&bytes);
    let dir = find(&*whole, "dir").unwrap();
    let (mut lost_any, mut listed_all) = (false, false);
    let addresses: std::collections::BTreeSet<Vec<u8>> =
        tree_blocks(&bytes).iter().map(|at| bytes[at + 48..at + 56].to_vec()).collect();
    for address in addresses {
        let mut one = bytes.clone();
        for at in tree_blocks(&bytes).into_iter().filter(|at| bytes[at + 48..at + 56] == address[..]) {
            one[at + 6000] ^= 0x10;
        }
        // The root block of the tree is not spared by anything.
        let Ok(view) = open(Arc::new(MemoryImage(one))) else { continue };
        let (mut cookie, mut names) = (0, 0);
        let ended_well = loop {
            match view.readdir(dir, cookie, 7) {
                Ok(entries) => match entries.last() {
                    Some(last) => {
                        cookie = last.cookie;
                        names += entries.len();
                    }
                    None => break true,
                },
                Err(e) => {
                    assert!(matches!(e, Error::Corrupt(_)), "{e}");
                    break false;
                }
            }
        };
        assert_eq!(ended_well, names == 400, "{names} names");
        let readable = (0..400).filter(|i| {
            let ino = view.lookup(dir, format!("file{i}").as_bytes());
            ino.and_then(|ino| view.attr(ino)).is_ok()
        });
        let readable = readable.count();
        lost_any |= readable < 400 && readable > 0;
        listed_all |= ended_well;
    }
    assert!(lost_any && listed_all);
}

#[test]
fn several_devices_are_refused() {
    if !crate::image::can_mount() {
        return;
    }
    let dir = crate::common::support::workdir();
    let paths: Vec<String> =
        ["a", "b"].iter().map(|n| dir.path().join(n).to_str().unwrap().to_owned()).collect();
    for path in &paths {
        File::create(path).unwrap().set_len(256 << 20).unwrap();
    }
    run("mkfs.btrfs", &["-q", "-f", "-d", "raid1", "-m", "raid1", &paths[0], &paths[1]]).unwrap();
    for (number, path) in (1..).zip(&paths) {
        let why =
            open(Arc::new(MemoryImage(fs::read(path).unwrap()))).err().expect("two devices").to_string();
        assert!(why.contains("over 2 devices") && why.contains(&format!("device {number}")), "{why}");
    }
}

/// One device with stripes: the layouts that need no second one.
#[test]
fn striped_on_one_device() {
    let Some(mut rig) = Rig::new("-d raid0 -m single") else { return };
    let want: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    rig.write("file", &want);
    let image = rig.unmount().to_path_buf();
    assert!(content(&*view(&fs::read(&image).unwrap()), "file") == want);
    drop(Mount::with(&image, &rig.dir.path().join("again"), "ro").unwrap());
}
