//! Damaged images: no panic, no endless work, bounded memory, and what is whole stays readable.
//!
//! Checksums are made right again after most damage, or nothing behind them would ever be reached.
//! `XFS_DAMAGE_ROUNDS` asks for more rounds, `XFS_DAMAGE_SEED` for another seed.

use crate::common::exercise::{Damaged, exercise_source as exercise};
use crate::common::populate::fill;
use crate::common::support::Chance;
use crate::image::fix_checksum;
use crate::reference::{Busy, Features, Log};
use crate::workload::Workload;
use fuse_view::Error;
use fuse_view::fs::open;
use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|n| n.parse().ok())
}

fn rounds(usual: u64) -> u64 {
    number("XFS_DAMAGE_ROUNDS").unwrap_or(usual)
}

fn chance(seed: u64) -> Chance {
    Chance(seed ^ number("XFS_DAMAGE_SEED").unwrap_or(0))
}

/// An image with a bit of everything and a dirty log.
struct Whole {
    bytes: Arc<Vec<u8>>,
    /// Pieces of metadata: where, how long, where their checksum is.
    objects: Vec<(usize, usize, usize)>,
    /// Sectors with headers of records of the log.
    records: Vec<usize>,
}

fn whole() -> Option<&'static Whole> {
    static WHOLE: OnceLock<Option<Whole>> = OnceLock::new();
    WHOLE.get_or_init(make).as_ref()
}

fn make() -> Option<Whole> {
    let features = Features { mkfs: "-b size=1024 -m rmapbt=1", mount: "", incompat: 0 };
    let busy = Busy::new(features, "damage")?;
    fill(busy.root(), 7, true, 3000);
    for large in ["comb", "holes", "huge", "unwritten"] {
        std::fs::remove_file(busy.root().join("sparse").join(large)).unwrap();
    }
    let mut workload = Workload::new(busy.root(), 7);
    (0..400).for_each(|_| workload.step());
    std::fs::File::open(busy.root()).unwrap().sync_all().unwrap();
    let cut = busy.copy("cut");
    let bytes = std::fs::read(&cut).unwrap();
    let log = Log::of(&cut);
    let log = log.bytes();
    let records =
        log.clone().step_by(512).filter(|at| bytes[*at..].starts_with(b"\xFE\xED\xBA\xBE")).collect();
    let objects = (0..bytes.len() - 1024)
        .step_by(512)
        .filter(|at| !log.contains(at))
        .filter_map(|at| object(&bytes[at..at + 1024]).map(|(len, sum)| (at, len, sum)))
        .collect();
    Some(Whole { bytes: Arc::new(bytes), objects, records })
}

/// Length and place of the checksum of the piece of metadata that begins so.
fn object(start: &[u8]) -> Option<(usize, usize)> {
    Some(match &start[..4] {
        [b'I', b'N', _, _] => (512, 100),
        b"XFSB" => (512, 224),
        b"XAGF" => (512, 216),
        b"XAGI" => (512, 312),
        b"XDB3" | b"XDD3" => (1024, 4),
        b"XSLM" | b"XARM" => (1024, 12),
        b"BMA3" => (1024, 64),
        _ if matches!(start[8..10], [0x3D, 0xF1 | 0xFF] | [0x3E | 0x3B, 0xBE | 0xEE]) => (1024, 12),
        _ => return None,
    })
}

/// A small change somewhere: likely in the first bytes, where the numbers are.
fn mutate(bytes: &mut [u8], chance: &mut Chance) {
    for _ in 0..=chance.below(4) {
        let within = if chance.below(3) == 0 { bytes.len() } else { bytes.len().min(200) };
        let at = usize::try_from(chance.below(within as u64)).unwrap();
        match chance.below(6) {
            0 => bytes[at] = 0xFF,
            1 => bytes[at] = 0,
            2 => bytes[at] = bytes[at].wrapping_add(1),
            3 => {
                let len = (bytes.len() - at).min(4);
                bytes[at..at + len].fill(0xFF);
            }
            _ => bytes[at] ^= 1 << chance.below(8),
        }
    }
}

fn pick<T: Copy>(all: &[T], chance: &mut Chance) -> T {
    all[usize::try_from(chance.below(all.len() as u64)).unwrap()]
}

/// Damages some objects of an image.
fn damage(whole: &Whole, dev: &mut Damaged, chance: &mut Chance) {
    for _ in 0..=chance.below(40) {
        let (at, len, sum) = pick(&whole.objects, chance);
        let mut object = dev.get(at, len);
        mutate(&mut object, chance);
        if chance.below(10) != 0 {
            fix_checksum(&mut object, sum);
        }
        dev.put(at, &object);
    }
}

/// Damages a record of the log, and makes its checksum right if it is not too broken for that.
fn damage_log(whole: &Whole, dev: &mut Damaged, chance: &mut Chance) {
    let at = pick(&whole.records, chance);
    let room = 40 << 10;
    let len = room.min(whole.bytes.len() - at);
    let mut record = dev.get(at, len);
    let said = u32::from_be_bytes(record[12..16].try_into().unwrap()) as usize;
    if chance.below(3) == 0 {
        mutate(&mut record[..512], chance);
    } else if said > 0 && 512 + said <= len {
        // Operations and the items in them.
        for _ in 0..=chance.below(6) {
            let from = 512 + usize::try_from(chance.below(said as u64)).unwrap();
            mutate(&mut record[from..512 + said], chance);
        }
    }
    if chance.below(8) != 0 && said > 0 && 512 + said <= len {
        record[32..36].fill(0);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&record[..328]), &record[512..512 + said]);
        record[32..36].copy_from_slice(&crc.to_le_bytes());
    }
    dev.put(at, &record);
}

#[test]
fn damaged_objects() {
    let Some(whole) = whole() else { return };
    let (good, bad) = exercise(Arc::new(Damaged::new(&whole.bytes)));
    assert!(good > 3000 && bad == 0, "{good} {bad}");
    let mut chance = chance(1);
    let mut reached = 0;
    for _ in 0..rounds(15) {
        let mut dev = Damaged::new(&whole.bytes);
        damage(whole, &mut dev, &mut chance);
        reached += exercise(Arc::new(dev)).0;
    }
    assert!(reached > 3000, "the rest of a damaged image stays readable");
}

#[test]
fn damaged_logs() {
    let Some(whole) = whole() else { return };
    assert!(whole.records.len() > 50);
    let mut chance = chance(2);
    for _ in 0..rounds(60) {
        let mut dev = Damaged::new(&whole.bytes);
        for _ in 0..=chance.below(8) {
            damage_log(whole, &mut dev, &mut chance);
        }
        if chance.below(4) == 0 {
            damage(whole, &mut dev, &mut chance);
        }
        if chance.below(20) == 0 {
            exercise(Arc::new(dev));
        } else if let Ok(fs) = open(Arc::new(dev)) {
            let told = fs.replay();
            assert!(told == "clean" || told == "replayed" || told.starts_with("partial: "), "{told}");
            let _ = fs.readdir(fs.root(), 0, 100);
        }
    }
}

#[test]
fn truncated_images_and_lying_superblocks() {
    let Some(whole) = whole() else { return };
    let mut chance = chance(3);
    for _ in 0..rounds(8) {
        let mut dev = Damaged::new(&whole.bytes);
        dev.len = usize::try_from(chance.below(dev.len as u64)).unwrap();
        exercise(Arc::new(dev));
    }
    for _ in 0..rounds(8) * 40 {
        let mut dev = Damaged::new(&whole.bytes);
        let mut sb = dev.get(0, 512);
        mutate(&mut sb[4..], &mut chance);
        fix_checksum(&mut sb, 224);
        dev.put(0, &sb);
        if let Ok(fs) = open(Arc::new(dev)) {
            let _ = (fs.readdir(fs.root(), 0, 1000), fs.statfs(), fs.label(), fs.replay());
            let _ = fs.lookup(fs.root(), b"files").and_then(|ino| fs.attr(ino));
        }
    }
}

/// A wrong checksum is an error of that object, told as such; all others are there.
#[test]
fn checksums_name_the_object_and_spare_the_rest() {
    let features = Features { mkfs: "-b size=1024", mount: "", incompat: 0 };
    let Some(mut busy) = Busy::new(features, "checksums") else { return };
    fill(busy.root(), 7, true, 400);
    let bytes = Arc::new(std::fs::read(busy.unmount()).unwrap());
    let fs = open(Arc::new(Damaged::new(&bytes))).unwrap();
    let all = exercise(Arc::new(Damaged::new(&bytes)));
    assert_eq!(all.1, 0);
    let files = fs.lookup(fs.root(), b"files").unwrap();
    let victim = fs.lookup(files, b"len4096").unwrap();
    let at = |ino: u64| {
        let own =
            |at: &usize| bytes[*at..].starts_with(b"IN") && bytes[at + 152..at + 160] == ino.to_be_bytes();
        (0..bytes.len()).step_by(512).find(own).unwrap()
    };
    let mut dev = Damaged::new(&bytes);
    let mut inode = dev.get(at(victim), 512);
    inode[10] ^= 1;
    dev.put(at(victim), &inode);
    let damaged = open(Arc::new(dev)).unwrap();
    assert!(matches!(damaged.attr(victim), Err(Error::Corrupt(why)) if why.contains("checksum")));
    damaged.attr(damaged.lookup(files, b"len1024").unwrap()).unwrap();

    // One block of a directory is lost: all other names are listed, then comes the error, and no lost name is denied.
    let names = fs.lookup(fs.root(), b"names").unwrap();
    let listed = fs.readdir(names, 0, usize::MAX).unwrap();
    let mut dev = Damaged::new(&bytes);
    let of_names =
        |at: &usize| bytes[*at..].starts_with(b"XDD3") && bytes[at + 40..at + 48] == names.to_be_bytes();
    let block = (0..bytes.len()).step_by(512).filter(of_names).nth(5).unwrap();
    dev.put(block + 300, b"damage");
    let damaged = open(Arc::new(dev)).unwrap();
    let (mut cookie, mut left) = (0, HashSet::new());
    let error = loop {
        match damaged.readdir(names, cookie, 10) {
            Ok(entries) => {
                cookie = entries.last().expect("the end of the listing is an error").cookie;
                left.extend(entries.into_iter().map(|e| e.name));
            }
            Err(e) => break e,
        }
    };
    assert!(matches!(error, Error::Corrupt(_)), "{error}");
    assert!((1..100).contains(&(listed.len() - left.len())), "{} of {} are left", left.len(), listed.len());
    for entry in listed {
        match damaged.lookup(names, &entry.name) {
            Ok(ino) => assert!(left.contains(&entry.name) && ino == entry.ino),
            Err(e) => assert!(!left.contains(&entry.name) && matches!(e, Error::Corrupt(_)), "{e}"),
        }
    }
}
