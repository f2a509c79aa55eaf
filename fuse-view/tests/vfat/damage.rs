//! Damaged images: no panic, no endless work, and what is whole stays readable.

use crate::{
    common::support::{Chance, MemoryImage},
    image::{LONG_AS_SHORT, behind_tables, entry_of, filled, le16, le32, table},
};
use fuse_view::{BlockRead, Error, FileKind, FsView, Ino, Result, fs::open, listing::Listing};
use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// What is read in one walk may not exceed this many times the image.
const MOST_READ: u64 = 200;

struct Bounded {
    image: MemoryImage,
    read: AtomicU64,
}

impl BlockRead for Bounded {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let read = self.read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        assert!(read < MOST_READ * self.image.len(), "more is read than any walk needs");
        self.image.read_at(offset, buf)
    }

    fn len(&self) -> u64 {
        self.image.len()
    }
}

/// Asks everything of everything that can be reached; the paths that can be read in full.
fn readable(bytes: Vec<u8>) -> Vec<String> {
    let dev = Arc::new(Bounded { image: MemoryImage(bytes), read: AtomicU64::new(0) });
    let Ok(view) = open(dev) else { return Vec::new() };
    let mut good = Vec::new();
    let mut seen = HashSet::from([view.root()]);
    let mut todo = vec![(view.root(), String::new())];
    view.statfs();
    while let Some((dir, at)) = todo.pop() {
        let mut cookie = 0;
        while let Ok(entries) = view.readdir(dir, cookie, 50) {
            let Some(last) = entries.last() else { break };
            assert!(last.cookie > cookie, "a listing that does not advance");
            cookie = last.cookie;
            for entry in entries {
                assert!(fuse_view::walk::is_plain_name(&entry.name));
                let path = format!("{at}/{}", String::from_utf8_lossy(&entry.name));
                if !seen.insert(entry.ino) || seen.len() > 2000 {
                    continue;
                }
                match view.attr(entry.ino) {
                    Ok(attr) if attr.kind == FileKind::Dir => todo.push((entry.ino, path)),
                    Ok(attr) if is_readable(&*view, entry.ino, attr.size) => good.push(path),
                    _ => {}
                }
            }
        }
    }
    good.sort();
    good
}

fn is_readable(view: &dyn FsView, ino: Ino, size: u64) -> bool {
    let mut buf = vec![0; 1 << 16];
    let (mut at, mut pieces) = (0, 0);
    while at < size && pieces < 50 {
        match view.read_at(ino, at, &mut buf) {
            Ok(count) if count > 0 => at += count as u64,
            _ => return false,
        }
        pieces += 1;
    }
    let _ = (view.extent(ino, 0), view.next_data(ino, size / 2));
    true
}

fn first_cluster(bytes: &[u8], entry: usize) -> usize {
    le16(bytes, entry + 26)
}

const WHOLE: [&str; 5] = ["/A long name with spaces.text", "/a", "/b", "/sub/c", "/sub/deeper/d"];

#[test]
fn chains_that_lead_nowhere_harm_their_file_only() {
    let Some(whole) = filled("-F 16 -s 4") else { return };
    assert_eq!(readable(whole.clone()), WHOLE);
    let (table, _) = table(&whole);
    let entry = entry_of(&whole, LONG_AS_SHORT);
    let first = first_cluster(&whole, entry);
    let others: Vec<&str> = WHOLE[1..].to_vec();
    // A second cluster that is the first again, free, outside of the table, reserved, and the end.
    for next in [u16::try_from(first).unwrap(), 0, 0xFFF0, 1, 0xFFFF] {
        let mut bytes = whole.clone();
        bytes[table + 2 * first..table + 2 * first + 2].copy_from_slice(&next.to_le_bytes());
        assert_eq!(readable(bytes.clone()), others, "{next:#x}");
        if usize::from(next) != first {
            // What comes before the gap is there.
            let view = open(Arc::new(MemoryImage(bytes))).unwrap();
            let ino = view.lookup(view.root(), b"A long name with spaces.text").unwrap();
            let mut buf = [0; 2048];
            assert_eq!((view.read_at(ino, 0, &mut buf).unwrap(), buf), (2048, [222; 2048]));
            assert!(matches!(view.read_at(ino, 1, &mut buf), Err(Error::Corrupt(_))), "{next:#x}");
        }
    }
    for start in [0_u16, 1, 0xFFFE] {
        let mut bytes = whole.clone();
        bytes[entry + 26..entry + 28].copy_from_slice(&start.to_le_bytes());
        assert_eq!(readable(bytes), others, "{start:#x}");
    }
}

/// As when the power goes while the root grows.
#[test]
fn a_root_that_leads_nowhere_shows_what_it_has() {
    let Some(whole) = filled("-F 32 -s 1") else { return };
    assert_eq!(readable(whole.clone()), WHOLE);
    let (table, _) = table(&whole);
    let root = le32(&whole, 44);
    let free = (root..).find(|cluster| le32(&whole, table + 4 * cluster) == 0).expect("it is not full");
    // The next cluster is free, none, or one that is free again.
    for next in [0, 1, free, 0x0FFF_FFF0] {
        let mut bytes = whole.clone();
        let at = table + 4 * root;
        bytes[at..at + 4].copy_from_slice(&u32::try_from(next).unwrap().to_le_bytes());
        assert_eq!(readable(bytes.clone()), WHOLE, "{next:#x}");
        let view = open(Arc::new(MemoryImage(bytes))).unwrap();
        let mut top = Listing::new(&*view, view.root(), b"/", false);
        let told = top.any(|entry| entry.is_err_and(|error| error.path == b"/"));
        assert!(told, "{next:#x}: that there may be more");
        let absent = view.lookup(view.root(), b"absent");
        assert!(matches!(absent, Err(Error::Corrupt(_))), "{next:#x}: {absent:?}");
    }
    // No root at all.
    let mut bytes = whole;
    bytes[44..48].fill(0);
    assert!(matches!(open(Arc::new(MemoryImage(bytes))).err(), Some(Error::Corrupt(_))));
}

#[test]
fn a_directory_in_itself_ends() {
    let Some(mut bytes) = filled("-F 16 -s 4") else { return };
    let sub = entry_of(&bytes, b"SUB        ");
    let cluster = first_cluster(&bytes, sub);
    let start = behind_tables(&bytes) + 512 * 32 + (cluster - 2) * 4 * 512;
    // `deeper`, the directory in it, is `sub` again.
    let deeper =
        (start..start + 2048).step_by(32).find(|at| bytes[*at..at + 6] == *b"DEEPER").expect("it is there");
    let own = u16::try_from(cluster).unwrap().to_le_bytes();
    bytes[deeper + 26..deeper + 28].copy_from_slice(&own);
    let good = readable(bytes);
    assert!(good.contains(&"/sub/c".to_owned()) && good.len() == WHOLE.len() - 1, "{good:?}");
}

#[test]
fn a_long_name_that_is_torn_gives_way_to_the_short_one() {
    let Some(whole) = filled("-F 16 -s 4") else { return };
    let entry = entry_of(&whole, LONG_AS_SHORT);
    // Three slots: the checksum, the place, the type of the one before the entry.
    for (at, value) in [(entry - 32 + 13, 0xAA), (entry - 32, 3), (entry - 64, 0xE5), (entry - 96, 0x42)] {
        let mut bytes = whole.clone();
        bytes[at] = value;
        assert_eq!(readable(bytes)[0], "/ALONGN~1.TEX", "{at}");
    }
}

#[test]
fn random_damage_ends_in_answers() {
    for options in ["-F 12 -s 8", "-F 16 -s 4", "-F 32 -s 1"] {
        let Some(whole) = filled(options) else { return };
        let mut chance = Chance(5);
        for _ in 0..60 {
            let mut bytes = whole.clone();
            for _ in 0..=chance.below(20) {
                // Most of the damage where it matters: boot sector, tables, directories.
                let end = if chance.below(3) == 0 { bytes.len() as u64 } else { 200_000 };
                let at = usize::try_from(chance.below(end.min(bytes.len() as u64))).unwrap();
                bytes[at] = chance.next().to_le_bytes()[0];
            }
            // Tables and boot sectors that nothing is left of are nobody's file system.
            readable(bytes);
        }
        let mut short = whole.clone();
        for len in [0, 1, 511, 512, 4096, 40_000, 1_000_000] {
            short.truncate(len);
            readable(short.clone());
            short.clone_from(&whole);
        }
    }
}

#[test]
fn a_boot_sector_that_cannot_be_is_refused() {
    let Some(whole) = filled("-F 16 -s 4") else { return };
    // Reserved sectors, tables, root entries, sectors: what the signature does not look at.
    for (at, bytes) in [(17, [0, 0]), (17, [1, 0]), (22, [0, 0]), (19, [1, 0])] {
        let mut image = whole.clone();
        image[at..at + 2].copy_from_slice(&bytes);
        let refused = open(Arc::new(MemoryImage(image))).err();
        assert!(matches!(refused, Some(Error::Corrupt(_))), "{at}: {refused:?}");
    }
}
