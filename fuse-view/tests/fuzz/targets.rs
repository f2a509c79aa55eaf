//! The formats: how a seed is made, which blocks are worth changing, how they are summed again.

use crate::common::populate::fill;
use crate::common::recorder::Recorder;
use crate::common::support::{run, workdir};
use crate::common::sys;
use crate::common::workload::{Options, Workload};
use std::fs::File;
use std::path::{Path, PathBuf};

/// What is changed and how.
pub struct Target {
    pub name: &'static str,
    pub seed: fn() -> Option<Vec<u8>>,
    /// Unit of change in bytes.
    pub block: usize,
    /// Whether a block is worth changing.
    pub is_metadata: fn(&[u8]) -> bool,
    /// Sums a changed block of this image at this place again.
    pub fix: fn(&[u8], u64, &mut [u8]),
    /// Whether there are files to be found in it.
    pub has_files: bool,
}

pub fn targets() -> Vec<Target> {
    let plain = Target {
        name: "ext4",
        seed: ext4,
        block: 1024,
        is_metadata: |block| block.iter().any(|&b| b != 0),
        fix: |_, _, _| {},
        has_files: true,
    };
    vec![
        Target { name: "jbd2", seed: || dirty_ext4(""), is_metadata: is_jbd2, fix: fix_jbd2, ..plain },
        Target {
            name: "fast-commit",
            seed: || dirty_ext4(",fast_commit"),
            is_metadata: is_fast_commit,
            fix: fix_fast_commit,
            ..plain
        },
        Target { name: "xfs", seed: xfs, block: 512, ..plain },
        Target { name: "btrfs", seed: btrfs, block: 16384, is_metadata: is_btrfs, fix: fix_btrfs, ..plain },
        Target { name: "gpt", seed: gpt, block: 512, has_files: false, ..plain },
        Target { name: "vfat", seed: vfat, block: 512, has_files: false, ..plain },
        plain,
    ]
}

/// A small tree for the tools that copy one in.
fn source(dir: &Path) -> PathBuf {
    let source = dir.join("source");
    std::fs::create_dir(&source).unwrap();
    fill(&source, 7, false, 400);
    for large in ["comb", "holes", "huge"] {
        std::fs::remove_file(source.join("sparse").join(large)).unwrap();
    }
    source
}

/// An image of `mib` MiB that `program` formats; None: there is no such program.
fn made(mib: u64, program: &str, args: impl Fn(&str) -> Vec<String>) -> Option<Vec<u8>> {
    let dir = workdir();
    let image = dir.path().join("image");
    File::create(&image).unwrap().set_len(mib << 20).unwrap();
    let source = source(dir.path());
    let mut args = args(source.to_str().unwrap());
    args.push(image.to_str().unwrap().to_owned());
    let args: Vec<&str> = args.iter().map(|arg| &arg[..]).collect();
    match run(program, &args) {
        Ok(_) => Some(std::fs::read(&image).unwrap()),
        Err(e) => {
            println!("{e}");
            None
        }
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn ext4() -> Option<Vec<u8>> {
    made(16, "mke2fs", |source| {
        words(&format!(
            "-q -F -t ext4 -b 1024 -N 3000 -O ^metadata_csum,^has_journal,inline_data -I 512 -d {source}"
        ))
    })
}

/// An ext4 cut in the middle of work: its journal is full of things, and has checksums; its metadata has none.
fn dirty_ext4(features: &str) -> Option<Vec<u8>> {
    if !sys::is_root() {
        return None;
    }
    let clean = made(8, "mke2fs", |_| {
        words(&format!("-q -F -t ext4 -b 1024 -N 1000 -J size=1 -O ^metadata_csum,uninit_bg{features}"))
    })?;
    let dir = workdir();
    let recorder = Recorder::mount(&clean, dir.path(), "rw,noatime,commit=600").unwrap();
    let options = Options { write: 5000, simple: !features.is_empty(), fsyncs: 9, ..Options::default() };
    let mut workload = Workload::new(recorder.root(), 3, options);
    workload.run(80);
    Some(recorder.disk())
}

fn is_jbd2(block: &[u8]) -> bool {
    block[..4] == [0xC0, 0x3B, 0x39, 0x98] || block[0x38..0x3A] == [0x53, 0xEF]
}

fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// The blocks of a journal without checksums need none; those of one with them are summed with its UUID.
fn fix_jbd2(image: &[u8], _at: u64, block: &mut [u8]) {
    if block[..4] != [0xC0, 0x3B, 0x39, 0x98] {
        return;
    }
    let uuid = image.chunks(1024).find(|b| b[..8] == [0xC0, 0x3B, 0x39, 0x98, 0, 0, 0, 4]);
    let Some(seed) = uuid.filter(|sb| sb[0x2B] & 0x18 != 0).map(|sb| crc32c(!0, &sb[0x30..0x40])) else {
        return;
    };
    let (at, seed) = match block[7] {
        1 | 5 => (block.len() - 4, seed),
        2 => (16, seed),
        3 | 4 => (0xFC, !0),
        _ => return,
    };
    block[at..at + 4].fill(0);
    let sum = crc32c(seed, block);
    block[at..at + 4].copy_from_slice(&sum.to_be_bytes());
}

fn is_fast_commit(block: &[u8]) -> bool {
    // The head of the area, and blocks that begin with a record of any other kind.
    let (tag, len) = (u16::from_le_bytes([block[0], block[1]]), u16::from_le_bytes([block[2], block[3]]));
    (1..=9).contains(&tag) && (8..1020).contains(&len)
}

/// Sums every unit that ends in this block, as far as it begins here too.
fn fix_fast_commit(_image: &[u8], _at: u64, block: &mut [u8]) {
    let (mut at, mut crc) = (0, 0);
    while at + 4 <= block.len() {
        let tag = u16::from_le_bytes([block[at], block[at + 1]]);
        let len = usize::from(u16::from_le_bytes([block[at + 2], block[at + 3]]));
        let end = at + 4 + len;
        if end > block.len() {
            return;
        }
        if tag == 8 && len >= 8 {
            let sum = crc32c(crc, &block[at..at + 8]);
            block[at + 8..at + 12].copy_from_slice(&sum.to_le_bytes());
            return;
        }
        crc = crc32c(crc, &block[at..end]);
        at = end;
    }
}

/// Version 4: no checksums to be fixed.
fn xfs() -> Option<Vec<u8>> {
    let dir = workdir();
    let (proto, file) = (dir.path().join("proto"), dir.path().join("file"));
    std::fs::write(&file, [7; 9000]).unwrap();
    let mut text = "/\n0 0\nd--755 0 0\n".to_owned();
    for i in 0..40 {
        text += &format!("f{i} ---644 0 0 {}\nlink{i} l--777 0 0 target\n", file.display());
    }
    text += "sub d--755 0 0\n";
    for i in 0..400 {
        text += &format!("a-longer-name-{i} ---644 1 1 /dev/null\n");
    }
    text += "$\n$\n";
    std::fs::write(&proto, text).unwrap();
    made(320, "mkfs.xfs", |_| words(&format!("-q -f -m crc=0 -n ftype=1 -p {}", proto.display())))
}

fn btrfs() -> Option<Vec<u8>> {
    made(128, "mkfs.btrfs", |source| words(&format!("-q -f --rootdir {source}")))
}

/// Tree blocks, and superblocks, which come first in their 16 KiB.
fn is_btrfs(block: &[u8]) -> bool {
    // A header has its own address at 48, and a level that makes sense; no content does by chance.
    let address = u64::from_le_bytes(block[48..56].try_into().unwrap());
    (block[64..72] == *b"_BHRfS_M" || address.is_multiple_of(4096) && block[100] < 8)
        && block[32..48].iter().any(|&b| b != 0)
        && address != 0
}

fn fix_btrfs(_image: &[u8], _at: u64, block: &mut [u8]) {
    let len = if block[64..72] == *b"_BHRfS_M" { 4096 } else { block.len() };
    let sum = crc32c::crc32c(&block[32..len]);
    block[..4].copy_from_slice(&sum.to_le_bytes());
}

/// A protective table and one of GPT with two partitions, without checksums: every change is met by their check.
fn gpt() -> Option<Vec<u8>> {
    let mut disk = vec![0; 1 << 20];
    disk[0x1FE..0x200].copy_from_slice(&[0x55, 0xAA]);
    disk[0x1BE..0x1CE].copy_from_slice(&[0, 0, 2, 0, 0xEE, 0xFF, 0xFF, 0xFF, 1, 0, 0, 0, 0xFF, 7, 0, 0]);
    let mut entries = vec![0; 128 * 128];
    for (i, (first, last)) in [(64u64, 127u64), (128, 1023)].into_iter().enumerate() {
        let entry = &mut entries[i * 128..(i + 1) * 128];
        entry[..32].fill(u8::try_from(i).unwrap() + 1);
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&last.to_le_bytes());
    }
    let header = &mut disk[512..1024];
    header[..8].copy_from_slice(b"EFI PART");
    for (at, value) in [(8, 0x1_0000u32), (12, 92), (80, 128), (84, 128), (88, crc32(&entries))] {
        header[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    for (at, value) in [(24, 1u64), (32, 2047), (40, 34), (48, 2014), (72, 2)] {
        header[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    let sum = crc32(&header[..92]);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    disk[1024..1024 + entries.len()].copy_from_slice(&entries);
    Some(disk)
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(
            crc ^ u32::from(byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 },
        )
    })
}

/// The boot sector of a FAT16: recognised, not read.
fn vfat() -> Option<Vec<u8>> {
    let mut disk = vec![0; 1 << 20];
    disk[..3].copy_from_slice(&[0xEB, 0x3C, 0x90]);
    disk[11..24].copy_from_slice(&[0, 2, 4, 4, 0, 2, 0, 2, 0, 8, 0xF8, 8, 0]);
    disk[54..62].copy_from_slice(b"FAT16   ");
    disk[0x1FE..0x200].copy_from_slice(&[0x55, 0xAA]);
    Some(disk)
}
