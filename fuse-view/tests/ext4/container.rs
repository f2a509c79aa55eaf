//! Partition tables, good and lying, and what is told of other formats.

use crate::common::support::{Chance, MemoryImage};
use fuse_view::container::{Contents, Partition, open, partitions};
use fuse_view::{BlockRead, Error};
use std::io::Cursor;
use std::sync::Arc;

const SECTOR: u64 = 512;
const DISK: usize = 4 << 20;

fn part(number: u32, first: u64, count: u64, name: &str) -> Partition {
    Partition::new(number, first * SECTOR, count * SECTOR, name.into())
}

/// A disk with a GPT of two partitions, numbers 1 and 3.
fn gpt_disk() -> Vec<u8> {
    let mut disk = Cursor::new(vec![0; DISK]);
    let mut gpt = gptman::GPT::new_from(&mut disk, SECTOR, [9; 16]).unwrap();
    for (number, first, last, name) in [(1, 2048, 4095, "first"), (3, 4096, 6143, "Größe")] {
        gpt[number] = gptman::GPTPartitionEntry {
            partition_type_guid: [1; 16],
            unique_partition_guid: [u8::try_from(number).unwrap(); 16],
            starting_lba: first,
            ending_lba: last,
            attribute_bits: 0,
            partition_name: name.into(),
        };
    }
    gpt.write_into(&mut disk).unwrap();
    gptman::GPT::write_protective_mbr_into(&mut disk, SECTOR).unwrap();
    disk.into_inner()
}

fn mbr_entry(disk: &mut [u8], at: usize, kind: u8, first: u32, count: u32) {
    disk[at + 4] = kind;
    disk[at + 8..at + 12].copy_from_slice(&first.to_le_bytes());
    disk[at + 12..at + 16].copy_from_slice(&count.to_le_bytes());
}

/// A disk with two primary partitions and an extended one with two logical ones.
fn mbr_disk() -> Vec<u8> {
    let mut disk = vec![0; DISK];
    mbr_entry(&mut disk, 446, 0x83, 64, 100);
    mbr_entry(&mut disk, 478, 0x83, 200, 100);
    mbr_entry(&mut disk, 494, 0x05, 1000, 2000);
    for (record, next) in [(1000usize, Some(500)), (1500, None)] {
        let at = record * 512;
        mbr_entry(&mut disk, at + 446, 0x83, 10, 50);
        if let Some(next) = next {
            mbr_entry(&mut disk, at + 462, 0x05, next, 100);
        }
        disk[at + 510..at + 512].copy_from_slice(&[0x55, 0xAA]);
    }
    disk[510..512].copy_from_slice(&[0x55, 0xAA]);
    disk
}

fn table(disk: &[u8]) -> fuse_view::Result<Vec<Partition>> {
    partitions(&MemoryImage(disk.to_vec()))
}

fn lies(disk: &[u8], what: &str) {
    match table(disk) {
        Err(Error::Corrupt(why)) => assert!(why.contains("partition"), "{what}: {why}"),
        other => panic!("{what}: {other:?}"),
    }
}

#[test]
fn gpt() {
    let want = [part(1, 2048, 2048, "first"), part(3, 4096, 2048, "Größe")];
    let mut disk = gpt_disk();
    assert_eq!(table(&disk).unwrap(), want);
    disk[512..1024].fill(0);
    assert_eq!(table(&disk).unwrap(), want, "the copy at the end");
    let last = disk.len() - 512;
    disk[last..].fill(0);
    lies(&disk, "announced, and none there");
}

#[test]
fn gpt_that_lies() {
    for seed in 0..300 {
        let mut chance = Chance(seed);
        let mut disk = gpt_disk();
        for copy in [512, DISK - 512] {
            let at = copy + usize::try_from(chance.below(92)).unwrap();
            disk[at] ^= 1 << chance.below(8);
        }
        lies(&disk, &format!("seed {seed}"));
    }
    // With checksums that are right, so that the numbers themselves are judged.
    let forge = |change: &dyn Fn(&mut gptman::GPT)| {
        let mut disk = Cursor::new(gpt_disk());
        let mut gpt = gptman::GPT::read_from(&mut disk, SECTOR).unwrap();
        change(&mut gpt);
        let entries: Vec<_> = gpt.iter().map(|(_, e)| e.clone()).collect();
        let mut backup = gpt.header.clone();
        gpt.header.write_into(&mut disk, SECTOR, &entries).unwrap();
        (backup.primary_lba, backup.partition_entry_lba) = (DISK as u64 / SECTOR - 1, 2);
        backup.write_into(&mut disk, SECTOR, &entries).unwrap();
        disk.into_inner()
    };
    assert!(table(&forge(&|_| ())).is_ok());
    lies(&forge(&|gpt| gpt[1].ending_lba = u64::MAX), "end of all");
    lies(&forge(&|gpt| gpt[1].ending_lba = 1 << 40), "past the image");
    lies(&forge(&|gpt| gpt[1].starting_lba = 5000), "ends before it starts");
    lies(&forge(&|gpt| (gpt[1].starting_lba, gpt[1].ending_lba) = (0, 10)), "over the table");
    let numbers = |count: u32, size: u32, lba: u64| {
        let mut disk = gpt_disk();
        for copy in [512, DISK - 512] {
            let mut header = gptman::GPTHeader::read_from(&mut Cursor::new(&disk[copy..copy + 512])).unwrap();
            (header.number_of_partition_entries, header.size_of_partition_entry) = (count, size);
            header.partition_entry_lba = lba;
            header.update_crc32_checksum();
            disk[copy + 72..copy + 80].copy_from_slice(&header.partition_entry_lba.to_le_bytes());
            disk[copy + 80..copy + 84].copy_from_slice(&count.to_le_bytes());
            disk[copy + 84..copy + 88].copy_from_slice(&size.to_le_bytes());
            disk[copy + 16..copy + 20].copy_from_slice(&header.crc32_checksum.to_le_bytes());
        }
        disk
    };
    assert!(table(&numbers(128, 128, 2)).is_ok());
    for (count, size, lba) in
        [(u32::MAX, 128, 2), (128, u32::MAX, 2), (128, 0, 2), (128, 128, u64::MAX), (4096, 128, 8000)]
    {
        lies(&numbers(count, size, lba), &format!("{count} {size} {lba}"));
    }
}

#[test]
fn mbr() {
    let want = [part(1, 64, 100, ""), part(3, 200, 100, ""), part(5, 1010, 50, ""), part(6, 1510, 50, "")];
    assert_eq!(table(&mbr_disk()).unwrap(), want);
    assert_eq!(table(&vec![0; DISK]).unwrap(), []);
    assert_eq!(table(&[]).unwrap(), []);
}

#[test]
fn mbr_that_lies() {
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut disk = mbr_disk();
        change(&mut disk);
        disk
    };
    lies(&with(&|d| mbr_entry(d, 446, 0x83, 8000, 1000)), "past the image");
    lies(&with(&|d| mbr_entry(d, 446, 0x83, u32::MAX, u32::MAX)), "far past the image");
    lies(&with(&|d| mbr_entry(d, 446, 0x83, 0, 10)), "over the table");
    lies(&with(&|d| mbr_entry(d, 1000 * 512 + 462, 0x05, 0, 100)), "a chain that bites its tail");
    lies(&with(&|d| mbr_entry(d, 1000 * 512 + 462, 0x05, u32::MAX, 100)), "a chain that leaves");
    lies(&with(&|d| mbr_entry(d, 1000 * 512 + 462, 0x05, 700, 100)), "a link to no record");
    lies(&with(&|d| mbr_entry(d, 1500 * 512 + 446, 0x83, 10, 5000)), "a logical one too long");
}

#[test]
fn partitions_are_slices() {
    let mut disk = gpt_disk();
    disk[2048 * 512] = 0xAB;
    disk[4096 * 512 - 1] = 0xCD;
    let dev: Arc<dyn BlockRead> = Arc::new(MemoryImage(disk));
    let Ok(Contents::Partitions(parts)) = open(&dev) else { panic!("partitions") };
    let first = &parts[0].1;
    let mut byte = [0; 1];
    first.read_at(0, &mut byte).unwrap();
    assert_eq!(byte, [0xAB]);
    first.read_at(first.len() - 1, &mut byte).unwrap();
    assert_eq!(byte, [0xCD]);
    assert!(matches!(first.read_at(first.len(), &mut byte), Err(Error::Corrupt(_))));
    assert!(matches!(first.read_at(u64::MAX, &mut byte), Err(Error::Corrupt(_))));
}

#[test]
fn other_formats_are_refused_by_name() {
    let zfs = 0x00BA_B10Cu64.to_le_bytes();
    let signatures: &[(usize, &[u8], &str)] = &[
        (0, b"XFSB", "xfs"),
        (0, b"LUKS\xba\xbe", "LUKS"),
        (4086, b"SWAPSPACE2", "swap"),
        (3, b"NTFS    ", "ntfs"),
        (3, b"EXFAT   ", "exfat"),
        ((128 << 10) + 4096, &zfs, "zfs"),
        (4096, b"\xfc\x4e\x2b\xa9", "md RAID"),
        (DISK - 0x1_0000, b"\xfc\x4e\x2b\xa9", "md RAID"),
    ];
    for (at, signature, name) in signatures {
        let mut disk = vec![0; DISK];
        disk[*at..at + signature.len()].copy_from_slice(signature);
        let dev: Arc<dyn BlockRead> = Arc::new(MemoryImage(disk));
        let why = fuse_view::fs::open(dev.clone()).err().expect(name);
        assert!(matches!(&why, Error::Unsupported(text) if text.contains(name)), "{name}: {why}");
        assert!(matches!(open(&dev), Ok(Contents::FileSystem(_))), "{name}");
    }
    let dev: Arc<dyn BlockRead> = Arc::new(MemoryImage(vec![0; DISK]));
    let why = fuse_view::fs::open(dev.clone()).err().expect("nothing");
    assert_eq!(why.to_string(), "no file system recognised");
    assert!(matches!(open(&dev), Ok(Contents::Raw)));
}
