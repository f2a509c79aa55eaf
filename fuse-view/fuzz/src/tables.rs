//! Disks with tables of partitions or with logical volumes, and a file system in one of them.

use super::lvm::{DATA_START, EXTENT, label, text};
use super::sums::gpt::crc32;

const DISK: usize = 2 << 20;
const SECTOR: usize = 512;

/// One of each kind of table around `inside`.
pub fn all(inside: &[u8]) -> Vec<Vec<u8>> {
    vec![gpt(inside), mbr(inside), lvm(inside)]
}

fn entry(disk: &mut [u8], at: usize, kind: u8, first: u32, count: u32) {
    let entry = &mut disk[at..at + 16];
    entry[4] = kind;
    entry[8..12].copy_from_slice(&first.to_le_bytes());
    entry[12..].copy_from_slice(&count.to_le_bytes());
}

fn sign(disk: &mut [u8], sector: usize) {
    disk[(sector + 1) * SECTOR - 2..(sector + 1) * SECTOR].copy_from_slice(&[0x55, 0xAA]);
}

/// A GPT of two partitions, `inside` in the first.
fn gpt(inside: &[u8]) -> Vec<u8> {
    let mut disk = vec![0; DISK];
    sign(&mut disk, 0);
    entry(&mut disk, 446, 0xEE, 1, u32::MAX);
    let mut entries = vec![0; 128 * 128];
    let first = 64;
    let count = (inside.len() / SECTOR) as u64;
    for (i, (first, last)) in [(first, first + count - 1), (3000, 3500)].into_iter().enumerate() {
        let entry = &mut entries[i * 128..(i + 1) * 128];
        entry[..32].fill(i as u8 + 1);
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&last.to_le_bytes());
        entry[56..62].copy_from_slice(&[b'o', 0, b'n', 0, b'e', 0]);
    }
    let header = &mut disk[512..1024];
    header[..8].copy_from_slice(b"EFI PART");
    for (at, value) in [(8, 0x1_0000u32), (12, 92), (80, 128), (84, 128), (88, crc32(&entries))] {
        header[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    for (at, value) in [(24, 1u64), (32, 4095), (40, 34), (48, 4062), (72, 2)] {
        header[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    let sum = crc32(&header[..92]);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    disk[1024..1024 + entries.len()].copy_from_slice(&entries);
    disk[first as usize * SECTOR..][..inside.len()].copy_from_slice(inside);
    disk
}

/// A primary partition and two logical ones, `inside` in the first of these.
fn mbr(inside: &[u8]) -> Vec<u8> {
    let mut disk = vec![0; DISK];
    let count = (inside.len() / SECTOR) as u32;
    sign(&mut disk, 0);
    entry(&mut disk, 446, 0x0C, 64, 800);
    entry(&mut disk, 462, 0x05, 1000, 3000);
    sign(&mut disk, 1000);
    entry(&mut disk, 1000 * SECTOR + 446, 0x83, 8, count);
    entry(&mut disk, 1000 * SECTOR + 462, 0x05, 2200, 700);
    sign(&mut disk, 3200);
    entry(&mut disk, 3200 * SECTOR + 446, 0x83, 8, 600);
    disk[1008 * SECTOR..][..inside.len()].copy_from_slice(inside);
    disk
}

/// A group of three volumes, `inside` in one of two segments.
fn lvm(inside: &[u8]) -> Vec<u8> {
    let mut disk = vec![0; DISK];
    let root = [("striped", 1, "pv0", 9, 3), ("striped", 1, "pv0", 1, 5)];
    let text = text(
        1,
        &[
            ("root", true, &root),
            ("home", true, &[("linear", 1, "pv0", 12, 2)]),
            ("far", true, &[("raid1", 2, "pv1", 0, 1)]),
        ],
    );
    label(&mut disk, &text, 500);
    let mut from = inside.chunks(EXTENT);
    for (_, _, _, first, count) in root {
        for (extent, bytes) in (first..first + count).zip(&mut from) {
            disk[DATA_START + extent * EXTENT..][..bytes.len()].copy_from_slice(bytes);
        }
    }
    disk
}
