use super::*;
use proptest::prelude::*;

/// Bytes in memory whose blocks have identities.
struct Memory(Vec<u8>);

impl BlockRead for Memory {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let start = index(offset);
        let from = self.0.get(start..start.saturating_add(buf.len()));
        buf.copy_from_slice(from.ok_or_else(|| Error::Corrupt("past the end".into()))?);
        Ok(())
    }
    fn len(&self) -> u64 {
        self.0.len() as u64
    }
    fn identity(&self, offset: u64) -> Option<(u64, u64)> {
        (offset < self.len()).then_some((offset / 4096, 7))
    }
}

fn memory(len: usize) -> Arc<Memory> {
    Arc::new(Memory((0..len).map(|i| u8::try_from((i * 7 + i / 4096) % 251).unwrap()).collect()))
}

fn all(source: &dyn BlockRead) -> Vec<u8> {
    let mut bytes = vec![0; index(source.len())];
    source.read_at(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn a_journal_block_with_its_first_bytes_put_back() {
    let base = memory(64 << 10);
    let mut builder = OverlayBuilder::new(base.clone(), &Scratch::new(1 << 20));
    builder.redirect(8192, 4096, 40960).unwrap();
    builder.write(8192, &[0xC0, 0x3B, 0x39, 0x98]).unwrap();
    let overlay = builder.build();
    let mut expected = base.0.clone();
    expected.copy_within(40960..45056, 8192);
    expected[8192..8196].copy_from_slice(&[0xC0, 0x3B, 0x39, 0x98]);
    assert_eq!(all(&overlay), expected);
    assert_eq!(overlay.patches.len(), 2);
}

#[test]
fn neighbours_are_one_range() {
    let mut builder = OverlayBuilder::new(memory(64 << 10), &Scratch::new(1 << 20));
    for i in 0..8 {
        builder.redirect(i * 512, 512, 20_000 + i * 512).unwrap();
        builder.write(10_000 + i * 512, &[1; 512]).unwrap();
    }
    assert_eq!(builder.patches.len(), 2);
}

#[test]
fn a_redirect_onto_itself_undoes() {
    let base = memory(64 << 10);
    let mut builder = OverlayBuilder::new(base.clone(), &Scratch::new(1 << 20));
    builder.write(100, &[9; 5000]).unwrap();
    builder.redirect(0, 65536, 0).unwrap();
    assert!(builder.is_empty());
    assert_eq!(all(&builder.build()), base.0);
}

#[test]
fn identities() {
    let base = memory((64 << 10) + 100);
    let mut builder = OverlayBuilder::new(base, &Scratch::new(1 << 20));
    builder.redirect(4096, 8192, 32768).unwrap();
    builder.redirect(16384, 4096, 32768 + 512).unwrap();
    builder.write(20480 + 4095, &[1]).unwrap();
    builder.redirect(28672, 2048, 32768).unwrap();
    let overlay = builder.build();
    let check = |at: u64, expected: Option<u64>| {
        assert_eq!(overlay.identity(at), expected.map(|block| (block, 7)), "{at}");
    };
    check(0, Some(0));
    check(5000, Some(8)); // moved as a whole
    check(8192, Some(9));
    check(16384, None); // from the middle of a block
    check(20480, None); // one byte is new
    check(24576, Some(6));
    check(28672, None); // the first half is moved
    check(65536, Some(16)); // the short last block
    check(1 << 40, None);
}

#[test]
fn ranges_outside_are_refused() {
    let mut builder = OverlayBuilder::new(memory(8192), &Scratch::new(1 << 20));
    for (offset, len) in [(8191, 2), (u64::MAX, 1), (8193, 0)] {
        assert!(matches!(builder.write(offset, &vec![0; index(len)]), Err(Error::Corrupt(_))));
        assert!(matches!(builder.redirect(offset, len, 0), Err(Error::Corrupt(_))));
        assert!(matches!(builder.redirect(0, len, offset), Err(Error::Corrupt(_))));
        assert!(matches!(builder.read_at(offset, &mut vec![0; index(len)]), Err(Error::Corrupt(_))));
    }
    assert!(builder.is_empty());
    let overlay = builder.build();
    assert!(overlay.read_at(8191, &mut [0; 2]).is_err());
    assert!(overlay.piece(u64::MAX, 2).is_err());
}

#[test]
fn beyond_the_budget_bytes_lie_in_a_file_that_is_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("scratch");
    let file = std::fs::OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    let scratch = Scratch::with_file(128 << 10, file);
    let base = memory(1 << 20);
    for round in 1..=3 {
        let mut builder = OverlayBuilder::new(base.clone(), &scratch);
        let mut expected = base.0.clone();
        for i in 0..1000_u64 {
            let bytes = [u8::try_from((i + round) % 256).unwrap(); 512];
            builder.write(i * 1024, &bytes).unwrap();
            expected[index(i * 1024)..index(i * 1024) + 512].copy_from_slice(&bytes);
            assert!(scratch.used_bytes() <= 128 << 10);
        }
        assert_eq!(all(&builder.build()), expected);
        let len = std::fs::metadata(&path).unwrap().len();
        assert!((300 << 10..=500 << 10).contains(&len), "round {round}: {len} bytes in the file");
        assert_eq!(scratch.used_bytes(), 0);
    }
    let lazy = Scratch::new(0);
    let mut builder = OverlayBuilder::new(base, &lazy);
    builder.write(5, b"no memory at all").unwrap();
    let mut buf = [0; 16];
    builder.read_at(5, &mut buf).unwrap();
    assert_eq!(&buf, b"no memory at all");
}

#[derive(Debug, Clone)]
enum Change {
    Write { at: u64, len: usize, byte: u8 },
    Redirect { at: u64, len: u64, from: u64 },
}

const LEN: u64 = 40_000;

fn change() -> impl Strategy<Value = Change> {
    let unit = prop_oneof![Just(1u64), Just(512), Just(4096)];
    (unit, 0..LEN, 0..LEN, 1..9000u64, any::<u8>(), any::<bool>()).prop_map(
        |(unit, at, from, len, byte, write)| {
            let at = at / unit * unit;
            let from = from / unit * unit;
            let len = (len.div_ceil(unit) * unit).min(LEN - at).min(if write { LEN } else { LEN - from });
            if write {
                Change::Write { at, len: index(len), byte }
            } else {
                Change::Redirect { at, len, from }
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Against a map of single bytes: what is not in it is the base's.
    #[test]
    fn like_a_map_of_bytes(changes in proptest::collection::vec(change(), 1..40), budget in 0..200_000u64,
                           reads in proptest::collection::vec((0..LEN, 0..9000u64), 10)) {
        let base = memory(index(LEN));
        let scratch = Scratch::new(budget);
        let mut builder = OverlayBuilder::new(base.clone(), &scratch);
        let mut model: BTreeMap<u64, u8> = BTreeMap::new();
        for change in changes {
            match change {
                Change::Write { at, len, byte } => {
                    let bytes: Vec<u8> = (0..len).map(|i| byte.wrapping_add(u8::try_from(i % 256).unwrap())).collect();
                    builder.write(at, &bytes).unwrap();
                    model.extend((at..).zip(bytes));
                }
                Change::Redirect { at, len, from } => {
                    builder.redirect(at, len, from).unwrap();
                    model.extend((at..at + len).zip(base.0[index(from)..].iter().copied()));
                }
            }
            let expected = |at: u64| model.get(&at).copied().unwrap_or(base.0[index(at)]);
            let (at, len) = reads[0];
            let mut buf = vec![0; index(len.min(LEN - at))];
            builder.read_at(at, &mut buf).unwrap();
            prop_assert!((at..).zip(&buf).all(|(at, &byte)| byte == expected(at)));
        }
        let expected: Vec<u8> = (0..LEN).map(|at| model.get(&at).copied().unwrap_or(base.0[index(at)])).collect();
        let overlay = builder.build();
        prop_assert!(overlay.patches.windows(2).all(|pair| pair[0].end() <= pair[1].start));
        for (at, len) in reads {
            let part = index(at)..index((at + len).min(LEN));
            let mut buf = vec![0; part.len()];
            overlay.read_at(at, &mut buf).unwrap();
            prop_assert_eq!(&buf, &expected[part.clone()]);
            prop_assert_eq!(&overlay.piece(at, part.len()).unwrap()[..], &expected[part]);
        }
        for at in (0..LEN - LEN % 4096).step_by(4096) {
            if let Some((block, _)) = overlay.identity(at) {
                let from = index(block) * 4096;
                prop_assert_eq!(&expected[index(at)..index(at) + 4096], &base.0[from..from + 4096]);
            }
        }
    }
}
