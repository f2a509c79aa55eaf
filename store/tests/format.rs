//! `docs/format.md` against the code, table by table, and the golden pool of every format version.

mod golden;

#[path = "../../tests/skip.rs"]
mod skip;

use std::collections::BTreeMap;
use std::mem::{offset_of, size_of};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::catalog::{Catalog, Kind, Version, VolumeRecord};
use store::format::checkpoint::{Checkpoint, PAGE_PAYLOAD, write_page};
use store::format::log::{FRAME_HEADER, LogHeader, PAYLOAD, write_block, write_frame};
use store::format::node::{
    ANCIENT, Child, FANOUT, LEAF_ENTRIES, LeafEntry, MAX_HEIGHT, Root, pack_leaf, unpack_leaf,
};
use store::format::record::{CutEntry, Record};
use store::format::segment::{FLAG_BACKED, RECORDS_A_PAGE, SegmentPage, SegmentRecord};
use store::format::superblock::{
    KNOWN_INCOMPAT, KNOWN_RO_COMPAT, MAGIC, RawSuperblock, SLOTS, Superblock, VERSION, plan,
};
use store::format::{Writer, crc};
use store::io::BlockDev;
use store::io::file::POOL_FILE;
use store::io::sim::SimDev;
use store::log::Ring;
use store::log::ring::Binding;
use store::types::{Epoch, Lsn, MAX_VOLUME_BYTES, Phys, SEGMENT_BLOCKS, VersionId, VolumeId};
use store::{BLOCK_BYTES, Consistency, Labels, Recovery, SnapshotSpec, check_device};
use zerocopy::FromBytes;

fn manifest_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

// ---- The document ----

/// Rows of the `n`-th table below `heading`, its head excluded; back quotes are dropped.
fn table(heading: &str, n: usize) -> Vec<Vec<String>> {
    let path = manifest_dir().join("../docs/format.md");
    let text = std::fs::read_to_string(&path).expect("docs/format.md is there");
    let is_heading = |line: &&str| line.trim_start_matches('#').trim() == heading && line.starts_with('#');
    let section: Vec<&str> =
        text.lines().skip_while(|l| !is_heading(l)).skip(1).take_while(|l| !l.starts_with('#')).collect();
    let mut tables = section.split(|l| !l.starts_with('|')).filter(|t| !t.is_empty());
    let table = tables.nth(n).unwrap_or_else(|| panic!("docs/format.md: no table {n} below `{heading}`"));
    let cells = |row: &&str| {
        row.trim_matches('|').split('|').map(|c| c.trim().replace('`', "")).collect::<Vec<String>>()
    };
    table[2..].iter().map(cells).collect()
}

/// First and second column of a table.
fn pairs(heading: &str, n: usize) -> BTreeMap<String, String> {
    table(heading, n).into_iter().map(|row| (row[0].clone(), row[1].clone())).collect()
}

/// Offset, size and name of each field, from a table with these columns.
fn fields_of(heading: &str) -> Vec<(usize, usize, String)> {
    let row = |row: Vec<String>| {
        let number = |s: &str| s.parse().unwrap_or_else(|_| panic!("{heading}: `{s}` is no number"));
        (number(&row[0]), number(&row[1]), row[2].clone())
    };
    table(heading, 0).into_iter().map(row).collect()
}

fn size_by<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

macro_rules! fields {
    ($t:ty: $($f:ident),* $(,)?) => {
        vec![$((offset_of!($t, $f), size_by(|s: &$t| &s.$f), stringify!($f).to_owned())),*]
    };
}

#[track_caller]
fn check_struct(heading: &str, size: usize, code: &[(usize, usize, String)]) {
    let documented = fields_of(heading);
    assert_eq!(documented, code, "`{heading}`: document (left) and code (right) differ");
    let mut end = 0;
    for (offset, len, name) in &documented {
        assert_eq!(*offset, end, "`{heading}`: a gap before `{name}`");
        end += len;
    }
    assert_eq!(end, size, "`{heading}`: a field is missing at the end");
}

#[test]
fn structs_are_as_documented() {
    let superblock = fields!(RawSuperblock: magic, version, block_bytes, feature_compat, feature_ro_compat,
        feature_incompat, pool_id, sequence, generation, boot_id, state, has_ring, total_blocks, log_start,
        log_blocks, segtab_start, segtab_pages, crctab_start, crctab_blocks, data_start, checkpoint_lsn,
        checkpoint_log_index, checkpoint_log_chain, checkpoint_crc, checkpoint_page, checkpoint_bytes,
        checkpoint_number, padding, crc);
    check_struct("Superblock", size_of::<RawSuperblock>(), &superblock);
    let record = fields!(SegmentRecord: used, crc_valid, used_count, flags, reserved);
    check_struct("Segment record", size_of::<SegmentRecord>(), &record);
    let page = fields!(SegmentPage: records, index, checkpoint, crc);
    check_struct("Segment page", size_of::<SegmentPage>(), &page);
    let block = fields!(LogHeader: crc, len, reserved, pool, generation, index, lsn);
    check_struct("Log block", size_of::<LogHeader>(), &block);
    assert_eq!(FLAG_BACKED, 1, "bit 0 of the flags of a segment record");
}

#[test]
fn constants_are_as_documented() {
    let code: [(&str, String); 18] = [
        ("MAGIC", String::from_utf8_lossy(&MAGIC).replace('\0', "\\0")),
        ("VERSION", VERSION.to_string()),
        ("BLOCK_BYTES", BLOCK_BYTES.to_string()),
        ("SEGMENT_BLOCKS", SEGMENT_BLOCKS.to_string()),
        ("SLOT_0", SLOTS[0].0.to_string()),
        ("SLOT_1", SLOTS[1].0.to_string()),
        ("KNOWN_INCOMPAT", KNOWN_INCOMPAT.to_string()),
        ("KNOWN_RO_COMPAT", KNOWN_RO_COMPAT.to_string()),
        ("RECORDS_A_PAGE", RECORDS_A_PAGE.to_string()),
        ("LEAF_ENTRIES", LEAF_ENTRIES.to_string()),
        ("FANOUT", FANOUT.to_string()),
        ("MAX_HEIGHT", MAX_HEIGHT.to_string()),
        ("ANCIENT", ANCIENT.to_string()),
        ("PAGE_PAYLOAD", PAGE_PAYLOAD.to_string()),
        ("PAYLOAD", PAYLOAD.to_string()),
        ("FRAME_HEADER", FRAME_HEADER.to_string()),
        ("MAX_VOLUME_BYTES", MAX_VOLUME_BYTES.to_string()),
        ("POOL_FILE", POOL_FILE.to_owned()),
    ];
    let code: BTreeMap<String, String> = code.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    assert_eq!(pairs("Constants", 0), code);
    assert_eq!(crc(0, b"123456789"), 0xe306_9283, "the CRC that the document names");
    assert_eq!(crc(crc(0, b"1234"), b"56789"), crc(0, b"123456789"), "continuing");
}

#[test]
fn the_address_space_is_as_documented() {
    let parts: Vec<String> = table("Address space", 0).iter().map(|r| r[..2].join(": ")).collect();
    let code = [
        format!("superblock, slot 0: {}", SLOTS[0].0),
        format!("superblock, slot 1: {}", SLOTS[1].0),
        "log: 256".to_owned(),
        "segment table, slot 0: log end".to_owned(),
        "segment table, slot 1: slot 0's end".to_owned(),
        "checksum table: slot 1's end".to_owned(),
        "data: checksum table's end, rounded up to 256".to_owned(),
    ];
    assert_eq!(parts, code);
    let l = plan(1 << 30, 32 << 20).expect("1 GiB is enough");
    let code = [
        ("total_blocks", l.total_blocks),
        ("log_start", l.log.0),
        ("log_blocks", l.log.1),
        ("segtab_start", l.segtab.0),
        ("segtab_pages", l.segtab.1),
        ("crctab_start", l.crctab.0),
        ("crctab_blocks", l.crctab.1),
        ("data_start", l.data_start),
    ];
    let code: BTreeMap<String, String> =
        code.into_iter().map(|(k, v)| (k.to_owned(), v.to_string())).collect();
    assert_eq!(pairs("Address space", 1), code);
}

/// The numbers of the document's limits, at the limit and beyond it.
#[test]
fn limits_are_as_documented() {
    let limits = pairs("Limits", 0);
    let pool = golden::open(&golden::disk_of(&golden_image(VERSION)), 9, false).expect("opens");
    let create = |name: &str, bytes, labels| pool.create_volume(name, bytes, labels).map(drop);
    let labels = |n: usize| (0..n).map(|i| (format!("k{i}"), String::new())).collect::<Labels>();
    let label = |k: usize, v: usize| Labels::from([("k".repeat(k), "v".repeat(v))]);
    let spec = |n: usize, name: &str| -> Vec<SnapshotSpec> {
        let one = |i| SnapshotSpec {
            volume: format!("many{i}"),
            name: name.into(),
            consistency: Consistency::Crash,
        };
        (0..n).map(one).collect()
    };

    assert_eq!(limits["size of a pool"], "2^50 bytes (2^38 blocks)");
    assert!(plan(1 << 50, 128 << 20).is_ok() && plan((1 << 50) + (1 << 20), 128 << 20).is_err());
    assert_eq!(limits["size of a volume"], "2^50 bytes, a multiple of 4096");
    create("largest", 1 << 50, Labels::new()).expect("2^50 bytes");
    assert!(create("larger", (1 << 50) + 4096, Labels::new()).is_err());
    assert!(create("uneven", 4097, Labels::new()).is_err());
    assert_eq!(limits["log"], "at least 16 blocks");
    let sound = |blocks| {
        let mut layout = plan(32 << 20, 16 * BLOCK_BYTES).expect("32 MiB are enough");
        layout.log.1 = blocks;
        let mut sb = Superblock::new([1; 16], layout);
        RawSuperblock::read_from_bytes(sb.seal().1).expect("one block").verify(true).is_ok()
    };
    assert!(sound(16) && !sound(15));
    assert!(plan(32 << 20, 15 * BLOCK_BYTES).is_err());

    let rule = "1 to 255 bytes; no /, @ or control character; not ., ..; a snapshot is not called latest";
    assert_eq!(limits["name of a volume or snapshot"], rule);
    create(&"n".repeat(255), 4096, Labels::new()).expect("255 bytes");
    for name in ["", &"n".repeat(256), "a/b", "a@b", "a\nb", ".", ".."] {
        assert!(create(name, 4096, Labels::new()).is_err(), "{name:?}");
    }
    let latest = SnapshotSpec { volume: "disk".into(), ..spec(1, "latest").remove(0) };
    assert!(pool.create_snapshots(&[latest], Labels::new()).is_err());

    let rule = "64 for a volume or snapshot; key 1 to 255 bytes, value at most 1024";
    assert_eq!(limits["labels"], rule);
    create("labelled", 4096, labels(64)).expect("64 labels");
    create("long", 4096, label(255, 1024)).expect("a long label");
    for bad in [labels(65), label(0, 1), label(256, 1), label(1, 1025)] {
        assert!(create("refused", 4096, bad).is_err());
    }

    assert_eq!(limits["volumes in one Cut"], "128");
    for i in 0..129 {
        create(&format!("many{i}"), 4096, Labels::new()).expect("a small volume");
    }
    pool.create_snapshots(&spec(128, "s"), Labels::new()).expect("128 volumes");
    assert!(pool.create_snapshots(&spec(129, "t"), Labels::new()).is_err());
}

#[test]
fn feature_bits_are_as_documented() {
    let row = |word: &str, bit: &str, what: &str| vec![word.to_owned(), bit.to_owned(), what.to_owned()];
    let set_aside = [
        row("feature_incompat", "0", "volumes may be encrypted"),
        row("feature_incompat", "1", "blocks may be compressed"),
    ];
    assert_eq!(table("Feature bits", 0), set_aside);
    assert_eq!((KNOWN_INCOMPAT, KNOWN_RO_COMPAT), (0, 0), "no bit means anything yet");
}

/// Builds a number from a table of bits; panics about fields that the table has not.
fn from_bits(heading: &str, values: &[(&str, u128)]) -> u128 {
    let rows = table(heading, 0);
    let names: Vec<&str> = rows.iter().map(|r| r[1].as_str()).collect();
    assert_eq!(names, values.iter().map(|v| v.0).collect::<Vec<_>>(), "fields of `{heading}`");
    let mut next = 0;
    let mut number = 0;
    for (row, (name, value)) in rows.iter().zip(values) {
        let (low, high) = row[0].split_once('–').expect("two bit numbers");
        let (low, high): (u32, u32) = (low.parse().expect("a bit"), high.parse().expect("a bit"));
        assert_eq!(low, next, "`{heading}`: a gap before `{name}`");
        assert!(*value < 1 << (high + 1 - low), "`{name}` fits its bits");
        number |= value << low;
        next = high + 1;
    }
    number
}

#[test]
fn map_entries_are_as_documented() {
    let p = 0x2a_1234_5678;
    for (age, kind) in [(0, 1), (77, 1), (u128::from(ANCIENT) - 1, 1), (u128::from(ANCIENT), 1)] {
        let word = u64::try_from(from_bits("Leaf entry", &[("p", p), ("age", age), ("kind", kind)]));
        let word = word.expect("an entry has 64 bits");
        let leaf = Epoch(1 << 30);
        let birth =
            (age != u128::from(ANCIENT)).then(|| Epoch(leaf.0 - u64::try_from(age).expect("24 bits")));
        let entry = LeafEntry { p: Phys(u64::try_from(p).expect("38 bits")), birth };
        assert_eq!(pack_leaf(Some(entry), leaf), word);
        assert_eq!(unpack_leaf(word, leaf), Ok(Some(entry)));
    }
    assert_eq!(pack_leaf(None, Epoch(9)), 0, "a hole");
    for kind in [0, 2, 3] {
        let word = from_bits("Leaf entry", &[("p", 1), ("age", 0), ("kind", kind)]);
        assert!(unpack_leaf(u64::try_from(word).expect("64 bits"), Epoch(9)).is_err(), "kind {kind}");
    }
    let (p, birth, sum) = (0xa9_8765_4321, 0xfe_dcba_9876, 0x1357_9bdf);
    let upper = |kind, crc| {
        let fields =
            [("p", u128::from(p)), ("birth", u128::from(birth)), ("kind", kind), ("flags", 0), ("crc", crc)];
        from_bits("Upper entry", &fields).to_le_bytes()
    };
    let node = Child::Node { p: Phys(p), birth: Epoch(birth), crc: sum };
    assert_eq!(node.pack(), upper(1, u128::from(sum)));
    assert_eq!(Child::Run { p: Phys(p), birth: Epoch(birth) }.pack(), upper(2, 0));
    assert_eq!(Child::Hole.pack(), [0; 16]);
    assert!(Child::unpack(&upper(0, 0)).is_err() && Child::unpack(&upper(3, 0)).is_err());
}

/// Cuts `bytes` at the documented fields and returns the numbers in them; longer fields are left out.
fn numbers(heading: &str, bytes: &[u8]) -> BTreeMap<String, u64> {
    let number = |row: Vec<String>| {
        let (offset, size): (usize, usize) = (row[0].parse().ok()?, row[1].parse().ok()?);
        let mut wide = [0; 8];
        wide.get_mut(..size)?.copy_from_slice(&bytes[offset..offset + size]);
        Some((row[2].clone(), u64::from_le_bytes(wide)))
    };
    table(heading, 0).into_iter().filter_map(number).collect()
}

fn named<const N: usize>(fields: [(&str, u64); N]) -> BTreeMap<String, u64> {
    fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
}

#[test]
fn pages_blocks_and_frames_are_as_documented() {
    let page = write_page(b"payload", Some((Phys(0x1234), 0x5678_9abc)));
    let expected = named([("next", 0x1234), ("next_crc", 0x5678_9abc), ("length", 7)]);
    assert_eq!(numbers("Checkpoint page", &page), expected);
    assert_eq!(&page[16..24], b"payload\0");
    assert_eq!(fields_of("Checkpoint page").last(), Some(&(16, PAGE_PAYLOAD, "payload".to_owned())));

    let mut block = vec![0xff; 4096];
    let sum = write_block(&mut block, 0x1111, &[0xab; 16], 3, 0x77, Lsn(0x99), b"stream");
    let header = [
        ("crc", u64::from(crc(0x1111, &block[4..]))),
        ("len", 6),
        ("reserved", 0),
        ("pool", 0xabab_abab_abab_abab),
        ("generation", 3),
        ("index", 0x77),
        ("lsn", 0x99),
    ];
    assert_eq!(numbers("Log block", &block), named(header));
    assert_eq!(u64::from(sum), header[0].1, "the next block's seed");
    assert_eq!(&block[40..48], b"stream\0\0");

    let mut frame = Vec::new();
    write_frame(&mut frame, Lsn(0x88), b"record");
    let sum = crc(crc(0, &frame[..12]), b"record");
    let expected = named([("lsn", 0x88), ("length", 6), ("crc", u64::from(sum))]);
    assert_eq!(numbers("Record frame", &frame), expected);
    assert_eq!((&frame[16..22], frame.len()), (&b"record"[..], 24));
    let payload = table("Record frame", 0).pop().expect("the last row");
    assert_eq!(payload[..3], [&FRAME_HEADER.to_string(), "length", "payload"]);
}

#[test]
fn the_ring_header_is_as_documented() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
        return skip::skip("no tmpfs at /dev/shm to put a ring on");
    };
    let pool_id = *b"0123456789abcdef";
    let ring = Ring::open(dir.path(), &pool_id, 8192).expect("a ring fits");
    ring.bind(&Binding { pool_id, boot_id: [7; 16], generation: 0x1234 });
    ring.put(Lsn(8192 * 5 + 16), b"frames");
    drop(ring);
    let name = "30313233343536373839616263646566";
    let bytes = std::fs::read(dir.path().join(name)).expect("named by the pool id");
    assert_eq!(bytes.len(), 4096 + 8192);
    assert_eq!(&bytes[4096 + 16..4096 + 22], b"frames");
    let expected = named([
        ("magic", u64::from_le_bytes(*b"COWRING\0")),
        ("generation", 0x1234),
        ("crc", u64::from(crc(0, &bytes[..48]))),
    ]);
    assert_eq!(numbers("Ring header", &bytes), expected);
    let ids = fields_of("Ring header").into_iter().filter(|(_, size, _)| *size == 16);
    let ids: Vec<_> = ids.map(|(offset, size, name)| (name, bytes[offset..offset + size].to_vec())).collect();
    assert_eq!(ids, [("pool_id".to_owned(), pool_id.to_vec()), ("boot_id".to_owned(), vec![7; 16])]);
}

// ---- Lists of fields ----

/// What a field of a list holds in a sample.
#[derive(Clone)]
enum Value {
    N(u64),
    S(String),
    L(Labels),
    B(Vec<u8>),
    /// Items, and the heading and number of the table that describes one.
    Items(Vec<Fields>, &'static str, usize),
}

type Fields = Vec<(&'static str, Value)>;

fn put(w: &mut Writer, kind: &str, value: &Value) {
    let narrow = |n: u64| u32::try_from(n).expect("fits the documented type");
    match (kind, value) {
        ("u8", Value::N(n)) => w.u8(u8::try_from(*n).expect("fits the documented type")),
        ("u16", Value::N(n)) => w.u16(u16::try_from(*n).expect("fits the documented type")),
        ("u32", Value::N(n)) => w.u32(narrow(*n)),
        ("u64" | "i64", Value::N(n)) => w.u64(*n),
        ("str", Value::S(s)) => w.string(s),
        ("labels", Value::L(labels)) => {
            w.u16(u16::try_from(labels.len()).expect("few"));
            for (k, v) in labels {
                w.string(k);
                w.string(v);
            }
        }
        ("bytes" | "upper", Value::B(bytes)) => w.0.extend_from_slice(bytes),
        ("list", Value::Items(items, heading, n)) => {
            for item in items {
                put_fields(w, &list_of(heading, *n), item);
            }
        }
        _ => panic!("the document gives a field the type `{kind}`"),
    }
}

/// Name and type of each field, from a table with these columns.
fn list_of(heading: &str, n: usize) -> Vec<(String, String)> {
    table(heading, n).into_iter().map(|r| (r[0].clone(), r[1].clone())).collect()
}

/// Encodes a sample in the order and with the types of the document.
fn put_fields(w: &mut Writer, documented: &[(String, String)], values: &Fields) {
    let names: Vec<&str> = documented.iter().map(|d| d.0.as_str()).collect();
    let (own, more) = values.split_at(names.len().min(values.len()));
    assert_eq!(names, own.iter().map(|v| v.0).collect::<Vec<_>>(), "document (left) and code (right)");
    for ((_, kind), (_, value)) in documented.iter().zip(own) {
        put(w, kind, value);
    }
    if !more.is_empty() {
        // Only a snapshot goes on after the fields of a version.
        put_fields(w, &list_of("Version fields", 1), &more.to_vec());
    }
}

fn some_labels() -> Labels {
    [("b", "2"), ("a", "one"), ("", "")].map(|(k, v)| (k.to_owned(), v.to_owned())).into()
}

/// One record of each kind, with a value of its own in every field.
fn samples() -> Vec<Record> {
    let entry = |n: u64, consistency| CutEntry {
        volume: VolumeId(0x4000 + n),
        snapshot: VersionId(0x5000 + n),
        head_epoch: Epoch(0x6000 + n),
        consistency,
        name: format!("cut-{n}"),
    };
    let entries =
        vec![entry(0, Consistency::Fs), entry(1, Consistency::Crash), entry(2, Consistency::Detached)];
    let (volume, version) = (VolumeId(0x0102_0304_0506_0708), VersionId(0x1112_1314_1516_1718));
    let (head, source, epoch) = (VersionId(0x2122_2324), VersionId(0x3132_3334), Epoch(0x41_4243));
    let (name, labels, created_at) = ("näme".to_owned(), some_labels(), -5);
    vec![
        Record::Map { version, l: 0x51, n: 0x61, p: Phys(0x71) },
        Record::Unmap { version, l: 0x52, n: 1 << 40 },
        Record::Create {
            volume,
            head,
            epoch,
            size_blocks: 0x81,
            created_at,
            name: name.clone(),
            labels: labels.clone(),
        },
        Record::Cut { created_at, entries, labels: labels.clone() },
        Record::Clone { source, volume, head, epoch, created_at, name: name.clone(), labels },
        Record::Rollback { volume, source, head, epoch },
        Record::DeleteSnapshot { version },
        Record::DeleteVolume { volume },
        Record::Rename { volume, name },
        Record::Resize { volume, size_blocks: 0x91 },
        Record::Attach { volume, attached: true },
    ]
}

fn time(t: i64) -> Value {
    Value::N(u64::from_le_bytes(t.to_le_bytes()))
}

fn consistency(c: Consistency) -> Value {
    Value::N(match c {
        Consistency::Fs => 0,
        Consistency::Crash => 1,
        Consistency::Detached => 2,
    })
}

/// Name and fields of a record as the document calls them. The match has no rest arm: a new kind of record
/// does not compile here before it is described.
fn describe(r: &Record) -> (&'static str, Fields) {
    use Value::{Items, L, N, S};
    match r {
        Record::Map { version, l, n, p } => (
            "Map",
            vec![
                ("zero", N(0)),
                ("n", N(u64::from(*n))),
                ("version", N(version.0)),
                ("l", N(*l)),
                ("p", N(p.0)),
            ],
        ),
        Record::Unmap { version, l, n } => {
            ("Unmap", vec![("version", N(version.0)), ("l", N(*l)), ("n", N(*n))])
        }
        Record::Create { volume, head, epoch, size_blocks, created_at, name, labels } => (
            "Create",
            vec![
                ("volume", N(volume.0)),
                ("head", N(head.0)),
                ("epoch", N(epoch.0)),
                ("size_blocks", N(*size_blocks)),
                ("created_at", time(*created_at)),
                ("name", S(name.clone())),
                ("labels", L(labels.clone())),
            ],
        ),
        Record::Cut { created_at, entries, labels } => {
            let item = |e: &CutEntry| {
                vec![
                    ("volume", N(e.volume.0)),
                    ("snapshot", N(e.snapshot.0)),
                    ("head_epoch", N(e.head_epoch.0)),
                    ("consistency", consistency(e.consistency)),
                    ("name", S(e.name.clone())),
                ]
            };
            let fields = vec![
                ("created_at", time(*created_at)),
                ("entry_count", N(entries.len() as u64)),
                ("entries", Items(entries.iter().map(item).collect(), "Records", 1)),
                ("labels", L(labels.clone())),
            ];
            ("Cut", fields)
        }
        Record::Clone { source, volume, head, epoch, created_at, name, labels } => (
            "Clone",
            vec![
                ("source", N(source.0)),
                ("volume", N(volume.0)),
                ("head", N(head.0)),
                ("epoch", N(epoch.0)),
                ("created_at", time(*created_at)),
                ("name", S(name.clone())),
                ("labels", L(labels.clone())),
            ],
        ),
        Record::Rollback { volume, source, head, epoch } => (
            "Rollback",
            vec![
                ("volume", N(volume.0)),
                ("source", N(source.0)),
                ("head", N(head.0)),
                ("epoch", N(epoch.0)),
            ],
        ),
        Record::DeleteSnapshot { version } => ("DeleteSnapshot", vec![("version", N(version.0))]),
        Record::DeleteVolume { volume } => ("DeleteVolume", vec![("volume", N(volume.0))]),
        Record::Rename { volume, name } => {
            ("Rename", vec![("volume", N(volume.0)), ("name", S(name.clone()))])
        }
        Record::Resize { volume, size_blocks } => {
            ("Resize", vec![("volume", N(volume.0)), ("size_blocks", N(*size_blocks))])
        }
        Record::Attach { volume, attached } => {
            ("Attach", vec![("volume", N(volume.0)), ("attached", N(u64::from(*attached)))])
        }
    }
}

#[test]
fn records_are_as_documented() {
    let documented = table("Records", 0);
    let samples = samples();
    assert_eq!(documented.len(), samples.len(), "one row and one sample for each kind of record");
    let effects: Vec<String> = table("Records", 2).into_iter().map(|r| r[0].clone()).collect();
    assert_eq!(effects, samples.iter().map(|r| describe(r).0).collect::<Vec<_>>(), "what each of them does");
    for (row, record) in documented.iter().zip(&samples) {
        let (name, values) = describe(record);
        assert_eq!(row[1], name);
        let split = |f: &str| f.split_once(' ').map(|(n, t)| (n.to_owned(), t.to_owned()));
        let fields: Vec<_> = row[2].split(", ").map(|f| split(f).expect("name and type")).collect();
        let mut w = Writer::default();
        w.u16(row[0].parse().expect("a code"));
        put_fields(&mut w, &fields, &values);
        assert_eq!(w.0, record.encode(), "{name}: bytes by the document (left) and by the code (right)");
        assert_eq!(&Record::decode(&w.0).expect("its own bytes"), record);
        w.u8(0);
        assert!(Record::decode(&w.0).is_err(), "{name} with a byte left over");
    }
    let unknown = u16::try_from(samples.len() + 1).expect("few").to_le_bytes();
    assert!(Record::decode(&unknown).is_err(), "the code after the last one is not in use");
}

fn describe_volume(v: &VolumeRecord) -> Fields {
    vec![
        ("id", Value::N(v.id.0)),
        ("head", Value::N(v.head.map_or(0, |h| h.0))),
        ("origin", Value::N(v.origin.map_or(0, |o| o.0))),
        ("created_at", time(v.created_at)),
        ("attached", Value::N(u64::from(v.attached))),
        ("name", Value::S(v.name.clone())),
        ("labels", Value::L(v.labels.clone())),
    ]
}

fn describe_version(v: &Version) -> Fields {
    let mut fields = vec![
        ("id", Value::N(v.id.0)),
        ("parent", Value::N(v.parent.map_or(0, |p| p.0))),
        ("epoch", Value::N(v.epoch.0)),
        ("volume", Value::N(v.volume.0)),
        ("size_blocks", Value::N(v.size_blocks)),
        ("mapped_blocks", Value::N(v.mapped_blocks)),
        ("cursor", Value::N(v.cursor)),
        ("height", Value::N(u64::from(v.root.height))),
        ("root", Value::B(v.root.child.pack().to_vec())),
        ("doomed", Value::N(u64::from(v.doomed))),
        ("kind", Value::N(u64::from(v.kind != Kind::Head))),
    ];
    if let Kind::Snapshot { name, created_at, consistency: level, labels } = &v.kind {
        fields.extend([
            ("name", Value::S(name.clone())),
            ("created_at", time(*created_at)),
            ("consistency", consistency(*level)),
            ("labels", Value::L(labels.clone())),
        ]);
    }
    fields
}

/// A deleted volume with a snapshot, and a living one that was cloned of it.
fn sample_catalog() -> Catalog {
    let mut c = Catalog::new();
    (c.next_id, c.next_epoch) = (0x1000, 0x2000);
    let volume = |id, head: Option<u64>, origin: Option<u64>, name: &str, labels| VolumeRecord {
        id: VolumeId(id),
        head: head.map(VersionId),
        origin: origin.map(VersionId),
        created_at: -7,
        attached: head.is_some(),
        name: name.to_owned(),
        labels,
    };
    c.insert_volume(volume(0x10, None, None, "gone", Labels::new()));
    c.insert_volume(volume(0x20, Some(0x21), Some(0x11), "live", some_labels()));
    let kind = Kind::Snapshot {
        name: "kept".into(),
        created_at: 99,
        consistency: Consistency::Detached,
        labels: some_labels(),
    };
    let version = |id, parent: Option<u64>, epoch, volume, child, kind| Version {
        id: VersionId(id),
        parent: parent.map(VersionId),
        epoch: Epoch(epoch),
        volume: VolumeId(volume),
        size_blocks: 0x31 + id,
        mapped_blocks: 0x41 + id,
        cursor: 0x51 + id,
        root: Root { height: 3, child },
        doomed: parent.is_some(),
        kind,
    };
    let node = Child::Node { p: Phys(0x61), birth: Epoch(0x71), crc: 0x8182_8384 };
    let run = Child::Run { p: Phys(0x91), birth: Epoch(0xa1) };
    c.insert_version(version(0x11, None, 0x100, 0x10, node, kind));
    c.insert_version(version(0x21, Some(0x11), 0x101, 0x20, run, Kind::Head));
    c
}

#[test]
fn the_checkpoint_is_as_documented() {
    let checkpoint = Checkpoint { number: 0x1234_5678_9abc, slots: vec![5, 6, 7], catalog: sample_catalog() };
    let c = &checkpoint.catalog;
    let volumes: Vec<Fields> = c.volumes.values().map(|v| describe_volume(v)).collect();
    let versions: Vec<Fields> = c.versions.values().map(|v| describe_version(v)).collect();
    let values = vec![
        ("number", Value::N(checkpoint.number)),
        ("next_id", Value::N(c.next_id)),
        ("next_epoch", Value::N(c.next_epoch)),
        ("slot_bytes", Value::N(checkpoint.slots.len() as u64)),
        ("slots", Value::B(checkpoint.slots.clone())),
        ("volume_count", Value::N(volumes.len() as u64)),
        ("volumes", Value::Items(volumes, "Volume fields", 0)),
        ("version_count", Value::N(versions.len() as u64)),
        ("versions", Value::Items(versions, "Version fields", 0)),
    ];
    let mut w = Writer::default();
    put_fields(&mut w, &list_of("Checkpoint fields", 0), &values);
    assert_eq!(w.0, checkpoint.encode(), "bytes by the document (left) and by the code (right)");
    let back = Checkpoint::decode(&w.0).expect("its own bytes");
    assert_eq!((back.number, back.slots), (checkpoint.number, checkpoint.slots.clone()));
    assert_eq!(back.catalog.volumes, c.volumes);
    assert_eq!(back.catalog.versions, c.versions);
}

// ---- Golden pools ----

fn golden_image(version: u32) -> Vec<u8> {
    let path = manifest_dir().join(format!("tests/golden/pool-v{version}.zst"));
    let packed = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    zstd::decode_all(&packed[..]).expect("a zstd stream")
}

fn check_is_clean(dev: &SimDev) {
    let dev: Arc<dyn BlockDev> = Arc::new(dev.clone());
    let report = check_device(&dev, &mut |_, _| {}).expect("check runs");
    assert_eq!(report.findings, vec![]);
}

/// The pool as a power cut left it: what it holds, before and after its next life.
fn verify_golden(dev: &SimDev) {
    check_is_clean(dev);
    let looked = golden::open(dev, 9, true).expect("opens for reading");
    assert_eq!(golden::state_of(&looked).expect("reads"), golden::expected());
    drop(looked);
    let pool = golden::open(dev, 9, false).expect("opens");
    assert_eq!(pool.recovery(), Recovery::PowerLoss);
    assert_eq!(golden::state_of(&pool).expect("reads"), golden::expected());
    let first = pool.snapshot("disk", "first").expect("is there");
    assert_eq!(first.consistency, Consistency::Fs);
    assert_eq!(first.labels, Labels::from([("cut".into(), "first".into())]));
    assert_eq!(first.clones, ["renamed"]);
    let volume = |name| pool.volume(name).expect("is there");
    assert_eq!(volume("disk").labels, Labels::from([("role".into(), "golden".into())]));
    assert!(!volume("disk").attached);
    assert_eq!(volume("twin").origin.as_deref(), Some("late@fourth"));
    assert_eq!(volume("other").origin.as_deref(), Some("other@first"), "was put back");
    assert_eq!(pool.pending_deletions(), golden::PENDING_DELETIONS);
    pool.settle().expect("deletions end");
    pool.close().expect("closes");
    check_is_clean(dev);
    let pool = golden::open(dev, 9, false).expect("opens");
    assert_eq!(pool.recovery(), Recovery::Clean);
    assert_eq!(golden::state_of(&pool).expect("reads"), golden::expected());
}

#[test]
fn golden_pools_of_all_versions_open() {
    for version in 1..=VERSION {
        verify_golden(&golden::disk_of(&golden_image(version)));
    }
}

/// A new golden pool can be made at any time, and holds the same.
#[test]
fn the_generator_makes_such_a_pool() {
    let (dev, _) = golden::build().expect("makes the pool");
    verify_golden(&dev);
}

/// Every golden image stands for a version of the format that this code still reads.
#[test]
fn golden_images_are_complete_and_small() {
    let dir = manifest_dir().join("tests/golden");
    let images: Vec<PathBuf> = std::fs::read_dir(&dir)
        .expect("the directory is there")
        .map(|e| e.expect("is readable").path())
        .filter(|p| p.extension().is_some_and(|e| e == "zst"))
        .collect();
    assert_eq!(images.len(), usize::try_from(VERSION).expect("small"), "one image a version: {images:?}");
    for image in images {
        let bytes = std::fs::metadata(&image).expect("is readable").len();
        assert!(bytes < 200 << 10, "{} has {bytes} bytes", image.display());
    }
}
