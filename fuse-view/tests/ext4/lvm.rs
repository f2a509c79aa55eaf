//! Logical volumes: linear ones are read, others told by name; labels and metadata that lie.

use crate::common::lvm::{DATA_START, EXTENT, Volume, label, seal, text};
use crate::common::support::{Chance, MemoryImage, mke2fs, run, workdir};
use fuse_view::container::{Contents, Partition, locate, open};
use fuse_view::{BlockRead, Error, FsView, walk};
use std::fs;
use std::sync::Arc;

const DISK: usize = 8 << 20;
/// Extents of the file system in `root`.
const ROOT: usize = 20;

/// A small ext4 with one file, exactly `ROOT` extents long.
fn file_system() -> Option<Vec<u8>> {
    let dir = workdir();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("etc")).unwrap();
    fs::write(source.join("etc/hosts"), "127.0.0.1").unwrap();
    let size = ROOT * EXTENT / 1024;
    let image = mke2fs(dir.path(), 2, &format!("-t ext4 -b 1024 -O ^has_journal -d {}", source.display()))?;
    run("resize2fs", &["-f", image.to_str().unwrap(), &format!("{size}K")]).unwrap();
    let mut bytes = fs::read(image).unwrap();
    bytes.truncate(ROOT * EXTENT);
    Some(bytes)
}

/// `volumes` on a disk; the extents of the first hold `inside`, in the order of its segments.
fn disk(inside: &[u8], volumes: &[Volume]) -> Vec<u8> {
    let mut disk = vec![0; DISK];
    // A text of before, which must not count.
    label(&mut disk, &text(1, &[]), 9000);
    label(&mut disk, &text(2, volumes), 700);
    let mut from = inside.chunks(EXTENT);
    for (_, _, _, first, count) in volumes[0].2 {
        for (extent, bytes) in (*first..first + count).zip(&mut from) {
            disk[DATA_START + extent * EXTENT..][..bytes.len()].copy_from_slice(bytes);
        }
    }
    disk
}

fn opened(disk: Vec<u8>) -> fuse_view::Result<Vec<(Partition, Arc<dyn BlockRead>)>> {
    let dev: Arc<dyn BlockRead> = Arc::new(MemoryImage(disk));
    match open(&dev)? {
        Contents::Partitions(parts) => Ok(parts),
        Contents::FileSystem(format) => panic!("a file system, {format}"),
        Contents::Raw => panic!("nothing"),
    }
}

fn hosts(view: &dyn FsView) -> Vec<u8> {
    let ino = walk::lookup_path(view, b"/etc/hosts", true).unwrap();
    let mut buf = vec![0; 100];
    let len = view.read_at(ino, 0, &mut buf).unwrap();
    buf.truncate(len);
    buf
}

#[test]
fn linear_volumes_are_directories() {
    let Some(inside) = file_system() else { return };
    let pieces: &[Volume] = &[
        ("root", true, &[("striped", 1, "pv0", 30, 5), ("striped", 1, "pv0", 2, ROOT - 5)]),
        ("home", true, &[("linear", 1, "pv0", 50, 3)]),
        ("hidden", false, &[("striped", 1, "pv0", 60, 1)]),
        ("mirror", true, &[("raid1", 2, "pv0", 70, 1)]),
        ("wide", true, &[("striped", 2, "pv0", 70, 1)]),
        ("far", true, &[("striped", 1, "pv0", 70, 1), ("striped", 1, "pv1", 0, 1)]),
    ];
    let parts = opened(disk(&inside, pieces)).unwrap();
    let names: Vec<_> = parts.iter().map(|(part, _)| (&part.directory[..], part.is_in_one_piece())).collect();
    assert_eq!(names, [("far", false), ("home", true), ("mirror", false), ("root", false), ("wide", false)]);
    let home = &parts[1].0;
    assert_eq!((home.offset, home.len), ((DATA_START + 50 * EXTENT) as u64, 3 * EXTENT as u64));
    assert_eq!((&home.name[..], home.number), ("vg/home", 2));
    let root = &parts[3].1;
    let mut bytes = vec![0; inside.len()];
    root.read_at(0, &mut bytes).unwrap();
    assert!(bytes == inside, "read across segments");
    let mut one = [0; 1000];
    root.read_at(5 * EXTENT as u64 - 500, &mut one).unwrap();
    assert_eq!(one, inside[5 * EXTENT - 500..5 * EXTENT + 500]);
    assert!(root.read_at(inside.len() as u64 - 10, &mut [0; 11]).is_err());
    assert_eq!(hosts(&*fuse_view::fs::open(root.clone()).unwrap()), b"127.0.0.1");
    for (at, why) in [(2, "of type raid1"), (4, "is striped"), (0, "lies on several disks: pv1")] {
        let error = fuse_view::fs::open(parts[at].1.clone()).err().unwrap();
        assert!(matches!(&error, Error::Unsupported(text) if text.contains(why)), "{error}");
    }
}

/// What compares snapshots by places is told none where a volume is in pieces, and right ones where it is not.
#[test]
fn places_are_those_of_the_disk() {
    let Some(inside) = file_system() else { return };
    for (pieces, placed) in [
        (&[("striped", 1, "pv0", 7, ROOT)][..], true),
        (&[("striped", 1, "pv0", 30, 5), ("striped", 1, "pv0", 2, ROOT - 5)], false),
    ] {
        let disk = disk(&inside, &[("system", true, pieces)]);
        let dev: Arc<dyn BlockRead> = Arc::new(MemoryImage(disk.clone()));
        let found = locate(&dev, b"/system/etc/hosts").unwrap();
        assert_eq!((&found.path[..], &found.prefix[..]), (&b"/etc/hosts"[..], &b"/system"[..]));
        assert_eq!(hosts(&*found.view), b"127.0.0.1");
        let ino = walk::lookup_path(&*found.view, &found.path, true).unwrap();
        let range = found.view.inode_at(ino).unwrap();
        assert_eq!(range.is_some(), placed);
        if let Some(range) = range {
            let at = usize::try_from(found.start + range.start).unwrap();
            assert_eq!(u16::from_le_bytes([disk[at], disk[at + 1]]) & 0xF000, 0x8000, "an inode of a file");
        }
        let missing = locate(&dev, b"/rot").err().unwrap().to_string();
        assert!(missing.contains("there are system"), "{missing}");
    }
}

#[test]
fn a_partition_gives_way_to_the_volumes_in_it() {
    let Some(inside) = file_system() else { return };
    let volume = disk(&inside, &[("root", true, &[("striped", 1, "pv0", 0, ROOT)])]);
    let mut whole = vec![0; 1 << 20];
    whole.extend(&volume);
    let mut entry = |at: usize, first: u32, count: u32| {
        whole[at + 4] = 0x8E;
        whole[at + 8..at + 12].copy_from_slice(&first.to_le_bytes());
        whole[at + 12..at + 16].copy_from_slice(&count.to_le_bytes());
    };
    entry(446, 100, 100);
    entry(462, 2048, u32::try_from(DISK / 512).unwrap());
    whole[510..512].copy_from_slice(&[0x55, 0xAA]);
    let parts = opened(whole.clone()).unwrap();
    let names: Vec<_> =
        parts.iter().map(|(part, _)| (&part.directory[..], part.number, part.offset)).collect();
    let start = (1 << 20) + DATA_START as u64;
    assert_eq!(names, [("p1", 1, 51200), ("p2-root", 3, start)]);
    assert_eq!(hosts(&*fuse_view::fs::open(parts[1].1.clone()).unwrap()), b"127.0.0.1");

    // A label that is damaged costs its partition only.
    whole[(1 << 20) + 512 + 100] ^= 1;
    let parts = opened(whole).unwrap();
    assert_eq!(parts.len(), 2);
    let why = fuse_view::fs::open(parts[1].1.clone()).err().unwrap().to_string();
    assert!(why.contains("LVM2") && why.contains("checksum"), "{why}");
}

#[test]
fn metadata_that_lies() {
    let good = |volumes: &[Volume]| {
        let mut bytes = vec![0; DISK];
        label(&mut bytes, &text(1, volumes), 700);
        bytes
    };
    let of = |segments: &'static [(&'static str, u32, &'static str, usize, usize)]| {
        good(&[("root", true, segments)])
    };
    assert!(opened(of(&[("striped", 1, "pv0", 0, 1)])).is_ok());
    let lies = |disk: Vec<u8>, what: &str| match opened(disk) {
        Err(Error::Corrupt(why)) => assert!(why.contains("LVM2"), "{what}: {why}"),
        Ok(_) => panic!("{what}: believed"),
        Err(other) => panic!("{what}: {other}"),
    };
    lies(of(&[("striped", 1, "pv0", 1000, 1)]), "outside of the device");
    lies(of(&[("striped", 1, "pv0", usize::MAX >> 1, 1)]), "far outside");
    lies(of(&[("striped", 1, "pv0", 0, usize::MAX >> 1)]), "longer than any disk");
    lies(good(&[("..", true, &[("striped", 1, "pv0", 0, 1)])]), "a name that leads out");
    // Sectors, sums, places, texts.
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut disk = of(&[("striped", 1, "pv0", 0, 1)]);
        change(&mut disk);
        disk
    };
    lies(changed(&|disk| disk[512 + 70] ^= 1), "the label's sum");
    lies(
        changed(&|disk| {
            disk[512 + 20] = 255;
            disk[512 + 21] = 255;
            seal(disk);
        }),
        "a header outside of its sector",
    );
    lies(
        changed(&|disk| {
            disk[512 + 104 + 7] = 1;
            seal(disk);
        }),
        "an area outside of the device",
    );
    lies(changed(&|disk| disk[4096 + 10] ^= 1), "the header of the area");
    lies(changed(&|disk| disk[4096 + (60 << 10) - 600] ^= 1), "the sum of the text");
    lies(
        changed(&|disk| {
            disk[512 + 33] = b'X';
            seal(disk);
        }),
        "another physical volume's metadata",
    );
    let none = changed(&|disk| {
        disk[512 + 104..512 + 120].fill(0);
        seal(disk);
    });
    assert!(matches!(opened(none), Err(Error::Unsupported(why)) if why.contains("without metadata")));
    let mut chance = Chance(3);
    for _ in 0..2000 {
        let mut text = text(1, &[("root", true, &[("striped", 1, "pv0", 0, 1)])]).into_bytes();
        for _ in 0..=chance.below(4) {
            let at = usize::try_from(chance.below(text.len() as u64)).unwrap();
            text[at] = b"{}[]\"=,# \n09a\\-"[usize::try_from(chance.below(15)).unwrap()];
        }
        let mut disk = vec![0; DISK];
        label(&mut disk, std::str::from_utf8(&text).unwrap(), 700);
        let _ = opened(disk);
    }
}

/// What LVM's own tools make, where there is a device mapper: the kernel of `make test-kernel`.
#[test]
fn test_kernel_volumes_that_lvm_made() {
    if std::env::var_os("COWSLIP_TEST_KERNEL").is_none() {
        return;
    }
    let dir = workdir();
    let image = dir.path().join("image");
    fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let device = run("losetup", &["--find", "--show", image.to_str().unwrap()]).unwrap().trim().to_owned();
    let lvm = |words: &str| {
        let config = "devices{use_devicesfile=0 dir=\"/dev\"} activation{udev_sync=0 udev_rules=0} backup{backup=0 archive=0} global{locking_dir=\"/run/lvm\"}";
        let mut words: Vec<&str> = words.split_whitespace().collect();
        words.splice(1..1, ["--config", config]);
        run("lvm", &words).unwrap_or_else(|e| panic!("{e}"))
    };
    lvm(&format!("vgcreate --physicalextentsize 1M cow {device}"));
    lvm("lvcreate -Zn -Wn -an -l 8 -n root cow");
    lvm("lvcreate -Zn -Wn -an -l 4 -n home-2.x cow");
    // Grows behind the other one: two segments.
    lvm("lvextend -l +8 cow/root");
    lvm("lvcreate -Zn -Wn -an -l 4 -n gone cow");
    lvm("lvremove -f cow/gone");
    lvm("lvchange -ay cow");
    lvm("vgmknodes");
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("etc")).unwrap();
    fs::write(source.join("etc/hosts"), "127.0.0.1").unwrap();
    for (name, node) in [("root", "/dev/mapper/cow-root"), ("home", "/dev/mapper/cow-home--2.x")] {
        let made = run("mke2fs", &["-q", "-t", "ext4", "-L", name, "-d", source.to_str().unwrap(), node]);
        made.unwrap_or_else(|e| panic!("{e}"));
    }
    lvm("vgchange -an cow");
    run("losetup", &["-d", &device]).unwrap();
    let parts = opened(fs::read(&image).unwrap()).unwrap();
    let names: Vec<_> =
        parts.iter().map(|(part, _)| (&part.directory[..], part.len >> 20, part.is_in_one_piece())).collect();
    assert_eq!(names, [("home-2.x", 4, true), ("root", 16, false)]);
    for (part, source) in &parts {
        let view = fuse_view::fs::open(source.clone()).unwrap();
        assert!(
            part.name.ends_with(&part.directory)
                && part.directory.starts_with(view.label().split(' ').next().unwrap()),
            "{}",
            view.label()
        );
        assert_eq!(hosts(&*view), b"127.0.0.1");
    }
}
