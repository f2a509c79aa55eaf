//! Pools that are damaged, cut short, or of another format: one clear error each, and nothing is written. Then
//! every metadata block of the golden pool with single bits flipped.

mod golden;

use golden::{State, state_of};
use std::fs;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use store::format::checkpoint::{Checkpoint, read_page};
use store::format::crc;
use store::format::log::read_block;
use store::format::node::{Child, FANOUT};
use store::format::superblock::{RawSuperblock, SLOTS, Superblock};
use store::io::BlockDev;
use store::io::file::POOL_FILE;
use store::io::sim::SimDev;
use store::types::Phys;
use store::{CheckReport, Error, ErrorKind, OpenOptions, Pool, check_device};
use zerocopy::{FromBytes, IntoBytes};

const BLOCK: usize = 4096;

// ---- Pool files ----

/// A pool directory with this pool file.
fn directory(image: &[u8]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory for the pool");
    let file = fs::File::create(dir.path().join(POOL_FILE)).expect("a file");
    file.set_len(image.len() as u64).expect("sparse");
    for (at, block) in (0u64..).step_by(BLOCK).zip(image.chunks(BLOCK)) {
        if block.iter().any(|b| *b != 0) {
            file.write_all_at(block, at).expect("room for 4 MiB");
        }
    }
    dir
}

fn golden_image() -> Vec<u8> {
    golden::image_of(&golden::build().expect("makes the pool").0)
}

/// Changes the superblock in every slot and seals it again.
fn resealed(mut image: Vec<u8>, change: impl Fn(&mut RawSuperblock)) -> Vec<u8> {
    for slot in SLOTS {
        let at = usize::try_from(slot.offset()).expect("small");
        let mut sb = RawSuperblock::read_from_bytes(&image[at..at + BLOCK]).expect("one block");
        change(&mut sb);
        sb.crc = crc(0, &sb.as_bytes()[..BLOCK - 4]).into();
        image[at..at + BLOCK].copy_from_slice(sb.as_bytes());
    }
    image
}

/// One way to use a pool.
type Use = fn(&Path) -> Result<(), Error>;

const OPEN: (&str, Use) = ("open", |p| Pool::open(p, &OpenOptions::default()).map(drop));
const LOOK: (&str, Use) = ("open to read", |p| Pool::open_read_only(p).map(drop));
const DUMP: (&str, Use) = ("dump", |p| Pool::dump(p, "log", true, &mut Vec::new()));
const CHECK: (&str, Use) = ("check", |p| {
    let report = Pool::check(p, &mut |_, _| {})?;
    match report.findings.first() {
        None => Ok(()),
        Some(f) => Err(Error::damaged(f.message.clone())),
    }
});

/// Each use fails with that kind, says `words`, and leaves the file as it was.
#[track_caller]
fn refused(image: &[u8], uses: &[(&str, Use)], kind: ErrorKind, words: &str) {
    let dir = directory(image);
    for (name, f) in uses {
        let e = f(dir.path()).expect_err(name);
        assert_eq!(e.kind(), kind, "{name}: {e}");
        assert!(e.to_string().contains(words), "{name}: `{e}` does not say `{words}`");
        unchanged(dir.path(), image, name);
    }
}

#[track_caller]
fn unchanged(dir: &Path, image: &[u8], what: &str) {
    let now = fs::read(dir.join(POOL_FILE)).expect("is still there");
    assert!(now == image, "{what} changed the pool file");
    assert_eq!(fs::read_dir(dir).expect("reads").count(), 1, "{what} left a file behind");
}

#[test]
fn a_newer_version_is_refused() {
    let image = resealed(golden_image(), |sb| sb.version = 2.into());
    refused(&image, &[OPEN, LOOK, CHECK, DUMP], ErrorKind::Unsupported, "format version 2");
}

#[test]
fn unknown_incompatible_features_are_refused_by_number() {
    let image = resealed(golden_image(), |sb| sb.feature_incompat = 0x12.into());
    let words = "incompatible features 0x12";
    refused(&image, &[OPEN, LOOK, CHECK, DUMP], ErrorKind::Unsupported, words);
}

#[test]
fn unknown_read_only_compatible_features_are_refused_for_writing_alone() {
    let image = resealed(golden_image(), |sb| sb.feature_ro_compat = 0x40.into());
    let words = "read-only compatible features 0x40";
    refused(&image, &[OPEN], ErrorKind::Unsupported, words);
    let dir = directory(&image);
    let pool = Pool::open_read_only(dir.path()).expect("may be read");
    assert_eq!(state_of(&pool).expect("reads"), golden::expected());
    drop(pool);
    for (name, f) in [CHECK, DUMP] {
        f(dir.path()).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    unchanged(dir.path(), &image, "reading");
}

#[test]
fn unknown_compatible_features_are_ignored() {
    let image = resealed(golden_image(), |sb| sb.feature_compat = u64::MAX.into());
    let dir = directory(&image);
    let pool = Pool::open(dir.path(), &OpenOptions::default()).expect("opens");
    assert_eq!(state_of(&pool).expect("reads"), golden::expected());
    pool.close().expect("closes");
    drop(pool);
    let mut sb = [0; BLOCK];
    let file = fs::File::open(dir.path().join(POOL_FILE)).expect("is there");
    for slot in SLOTS {
        file.read_exact_at(&mut sb, slot.offset()).expect("reads");
        let sb = RawSuperblock::read_from_bytes(&sb).expect("one block");
        assert_eq!(sb.feature_compat.get(), u64::MAX, "bits that are ignored are kept");
    }
}

#[test]
fn a_truncated_pool_is_refused() {
    let image = golden_image();
    let cut = |n: usize| image[..n].to_vec();
    let all = [OPEN, LOOK, CHECK, DUMP];
    refused(&cut(image.len() - BLOCK), &all, ErrorKind::Damaged, "cut short");
    refused(&cut(130 * BLOCK), &all, ErrorKind::Damaged, "cut short");
    refused(&[], &all, ErrorKind::NotFound, "no cowslip pool");
}

#[test]
fn a_zeroed_pool_is_none() {
    let image = vec![0; 32 << 20];
    refused(&image, &[OPEN, LOOK, CHECK, DUMP], ErrorKind::NotFound, "no cowslip pool");
}

#[test]
fn damage_to_both_superblocks_is_told() {
    let mut image = golden_image();
    for slot in SLOTS {
        image[usize::try_from(slot.offset()).expect("small") + 300] ^= 1;
    }
    refused(&image, &[OPEN, LOOK, CHECK, DUMP], ErrorKind::Damaged, "both superblocks");
}

#[test]
fn contradictory_places_are_told() {
    type Change = fn(&mut RawSuperblock);
    let changes: [Change; 6] = [
        |sb| sb.log_start = u64::MAX.into(),
        |sb| sb.log_blocks = 0.into(),
        |sb| sb.segtab_pages = (u64::MAX / 2 + 2).into(),
        |sb| sb.data_start = 513.into(),
        |sb| sb.total_blocks = (1 << 50).into(),
        |sb| sb.block_bytes = 512.into(),
    ];
    for change in changes {
        let image = resealed(golden_image(), change);
        refused(&image, &[OPEN, LOOK, CHECK, DUMP], ErrorKind::Damaged, "geometry");
    }
    let image = resealed(golden_image(), |sb| sb.checkpoint_page = (1 << 60).into());
    refused(&image, &[OPEN, LOOK, CHECK], ErrorKind::Damaged, "outside the data area");
}

// ---- Single bits ----

/// What a metadata block is, and so what a flipped bit in it must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The superblock of the pool's last open. Its older copy serves, and the log is younger than it: told.
    NewerSuperblock,
    /// The superblock before it: harmless, the newer one serves.
    OlderSuperblock,
    /// Checkpoint pages and current pages of the segment table: told by every open.
    Checked,
    /// A map node: told by `check`; a read of what it maps fails, all other reads go on.
    Node,
    /// Block n of the log since the checkpoint: the log ends before it, as after a torn write, so the pool is
    /// the one of that moment.
    Log(usize),
    /// Old segment-table pages, log blocks that hold no record any more, the checksum table: harmless.
    Unused,
}

fn block(dev: &SimDev, p: Phys) -> [u8; BLOCK] {
    let mut out = [0; BLOCK];
    dev.read_at(p.offset(), &mut out).expect("memory answers");
    out
}

/// Every metadata block of a pool.
fn parts(dev: &SimDev) -> Vec<(Phys, Part)> {
    let raw = SLOTS.map(|s| RawSuperblock::read_from_bytes(&block(dev, s)).expect("one block"));
    let newer = usize::from(raw[1].sequence.get() > raw[0].sequence.get());
    let sb = Superblock::choose(raw, true).expect("sound");
    let mut all = vec![(SLOTS[newer], Part::NewerSuperblock), (SLOTS[1 - newer], Part::OlderSuperblock)];
    let mut blob = Vec::new();
    let (mut p, mut sum) = (sb.checkpoint().page, sb.checkpoint().crc);
    while p.0 != 0 {
        let page = block(dev, p);
        all.push((p, Part::Checked));
        let (part, next, next_sum) = read_page(&page, sum).expect("sound");
        blob.extend_from_slice(part);
        (p, sum) = (next, next_sum);
    }
    let checkpoint = Checkpoint::decode(&blob).expect("sound");
    let layout = sb.layout();
    for index in 0..layout.segtab.1 {
        let current = u64::from(checkpoint.slots[0] >> index & 1);
        let page = |slot| Phys(layout.segtab.0 + slot * layout.segtab.1 + index);
        all.extend([(page(current), Part::Checked), (page(1 - current), Part::Unused)]);
    }
    for version in checkpoint.catalog.versions.values() {
        nodes(dev, version.root.child, version.root.height, &mut all);
    }
    let (mut index, mut chain) = (sb.checkpoint().log_index, sb.checkpoint().log_chain);
    while let Some(b) = read_block(&block(dev, log_place(&sb, index)), chain, &sb.pool_id(), index) {
        let n = usize::try_from(index - sb.checkpoint().log_index).expect("small");
        all.push((log_place(&sb, index), Part::Log(n)));
        (index, chain) = (index + 1, b.chain);
    }
    let rest = sb.checkpoint().log_index + layout.log.1;
    all.extend((index..rest).map(|i| (log_place(&sb, i), Part::Unused)));
    all.extend((0..layout.crctab.1).map(|i| (Phys(layout.crctab.0 + i), Part::Unused)));
    all.sort_by_key(|(p, _)| *p);
    all.dedup();
    all
}

fn log_place(sb: &Superblock, index: u64) -> Phys {
    let (start, blocks) = sb.layout().log;
    Phys(start + index % blocks)
}

fn nodes(dev: &SimDev, child: Child, level: u8, all: &mut Vec<(Phys, Part)>) {
    let Child::Node { p, .. } = child else { return };
    all.push((p, Part::Node));
    if level > 0 {
        let bytes = block(dev, p);
        for entry in bytes.chunks_exact(16) {
            let child = Child::unpack(entry.try_into().expect("16 bytes")).expect("sound");
            nodes(dev, child, level - 1, all);
        }
        assert_eq!(bytes.chunks_exact(16).count() as u64, FANOUT);
    }
}

/// Small deterministic random numbers (a linear congruence's high bits).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) % n
    }
}

/// Bits of a block to flip: in the header, where fields stand close, in the checksum at the end, anywhere.
fn bits(part: Part, random: &mut Random) -> Vec<u64> {
    let end = BLOCK as u64 * 8;
    let everywhere = if matches!(part, Part::Unused) { 1 } else { 8 };
    let mut bits = vec![random.below(64), 64 + random.below(256), end - 1 - random.below(32)];
    bits.extend((0..everywhere).map(|_| random.below(end)));
    bits
}

/// The golden pool, and what it held at each moment since its checkpoint.
struct Whole {
    dev: SimDev,
    moments: Vec<State>,
}

impl Whole {
    fn last(&self) -> &State {
        self.moments.last().expect("the golden pool has a log")
    }

    /// Opens the pool to read, and what it then holds.
    fn look(dev: &SimDev) -> Result<State, Error> {
        golden::open(dev, 9, true).and_then(|pool| state_of(&pool))
    }

    fn try_flip(&self, p: Phys, part: Part, bit: u64) {
        let dev = self.dev.copy();
        dev.flip(p.offset() + bit / 8, u8::try_from(bit % 8).expect("a bit of a byte"));
        let shared: Arc<dyn BlockDev> = Arc::new(dev.clone());
        let report = check_device(&shared, &mut |_, _| {}).expect("damage is a finding, not an error");
        let seen = Self::look(&dev);
        if let Err(e) = &seen {
            assert_eq!(e.kind(), ErrorKind::Damaged, "{e}");
        }
        self.judge(part, &report, seen.as_ref());
        // The same for an owner: it may refuse, and must not fall over.
        match golden::open(&dev, 9, false) {
            Err(e) => assert_eq!(e.kind(), ErrorKind::Damaged, "{e}"),
            Ok(pool) => {
                let served = pool.settle().and_then(|()| pool.close());
                let damaged = !report.findings.is_empty();
                assert!(served.is_ok() || damaged, "clean, but not served: {served:?}");
            }
        }
    }

    fn judge(&self, part: Part, report: &CheckReport, seen: Result<&State, &Error>) {
        let clean = report.findings.is_empty();
        match part {
            Part::OlderSuperblock | Part::Unused => {
                assert_eq!(report.findings, vec![]);
                assert!(seen.expect("reads") == self.last(), "content changed");
            }
            Part::Checked => {
                assert!(!clean, "check is silent");
                seen.expect_err("no open takes it");
            }
            Part::Node => {
                assert!(!clean, "check is silent");
                assert!(seen.is_err(), "the node was read, and its damage not seen");
            }
            Part::Log(n) => {
                assert_eq!(report.findings, vec![], "as after a torn write");
                assert!(seen.expect("reads") == &self.moments[n], "not the pool before block {n}");
            }
            Part::NewerSuperblock => {
                assert!(!clean && seen.is_err(), "flushed data would be lost in silence");
            }
        }
    }
}

#[test]
fn a_flipped_bit_in_metadata_is_told_or_harmless() {
    let (dev, moments) = golden::build().expect("makes the pool");
    let whole = Whole { dev, moments };
    let parts = parts(&whole.dev);
    let count = |part: fn(&Part) -> bool| parts.iter().filter(|(_, p)| part(p)).count();
    assert_eq!(count(|p| matches!(p, Part::Log(_))), whole.moments.len() - 1, "one block a moment");
    assert_eq!(count(|p| matches!(p, Part::Checked)), 3, "a checkpoint page, two of the segment table");
    assert!(count(|p| matches!(p, Part::Node)) >= 6, "trees of two levels, and several");
    let mut random = Random(1);
    for (p, part) in &parts {
        for bit in bits(*part, &mut random) {
            let done = catch_unwind(AssertUnwindSafe(|| whole.try_flip(*p, *part, bit)));
            assert!(done.is_ok(), "bit {bit} of block {}, {part:?}", p.0);
        }
    }
}
