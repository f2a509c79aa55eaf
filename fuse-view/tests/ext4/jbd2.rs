//! Journals made by hand: any features, any order of blocks, right checksums unless they are to be wrong.
#![allow(clippy::cast_possible_truncation)] // numbers are cut into fields here

use crate::common::support::{mke2fs, run, workdir};
use std::path::Path;

const MAGIC: u32 = 0xC03B_3998;
const BLOCK: usize = 1024;

pub const WIDE: u32 = 0x2;
pub const ASYNC: u32 = 0x4;
pub const V2: u32 = 0x8;
pub const V3: u32 = 0x10;
pub const FAST: u32 = 0x20;
/// A compatible feature, unlike the others.
pub const V1: u32 = 0x1;

pub fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

fn crc32_be(seed: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(seed, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte) << 24, |crc, _| {
            if crc & 1 << 31 != 0 { crc << 1 ^ 0x04C1_1DB7 } else { crc << 1 }
        })
    })
}

/// A small file system whose files `f0`, `f1`, … each have one block, `old 0`, `old 1`, ….
#[derive(Clone)]
pub struct Image {
    pub disk: Vec<u8>,
    /// Block of each file.
    pub files: Vec<u64>,
    /// Where each block of the journal is, in bytes.
    log: Vec<usize>,
}

/// Content of a block of a file.
pub fn content(text: &str) -> Vec<u8> {
    let mut block = text.as_bytes().to_vec();
    block.resize(BLOCK, b'.');
    block
}

impl Image {
    pub fn new(options: &str, files: usize) -> Option<Self> {
        let dir = workdir();
        let source = dir.path().join("source");
        std::fs::create_dir(&source).unwrap();
        for i in 0..files {
            std::fs::write(source.join(format!("f{i}")), content(&format!("old {i}"))).unwrap();
        }
        let options = format!("-t ext4 -b 1024 -N 2000 {options} -d {}", source.display());
        let image = mke2fs(dir.path(), 12, &options)?;
        let blocks = debugfs(&image, &(0..files).map(|i| format!("blocks f{i}")).collect::<Vec<_>>());
        // After the last answer come the words of debugfs to the error output.
        let number = |text: &String| text.split_whitespace().next().unwrap().parse().unwrap();
        let blocks = blocks.iter().map(number).collect();
        let log = debugfs(&image, &["blocks <8>".into()]).remove(0);
        let log = log.lines().next().unwrap().split_whitespace();
        let log: Vec<usize> = log.map(|n| n.parse::<usize>().unwrap() * BLOCK).collect();
        let disk = std::fs::read(&image).unwrap();
        Some(Self { disk, files: blocks, log })
    }

    /// Changes fields of the file system's superblock and sums it again.
    pub fn superblock(&mut self, change: impl FnOnce(&mut [u8])) {
        let sb = &mut self.disk[1024..2048];
        change(sb);
        let sum = crc32c(!0, &sb[..0x3FC]);
        sb[0x3FC..].copy_from_slice(&sum.to_le_bytes());
    }

    /// Says that the journal holds something.
    pub fn needs_recovery(&mut self, needs: bool) {
        self.superblock(|sb| {
            if needs {
                sb[0x60] |= 4;
            } else {
                sb[0x60] &= !4;
            }
        });
    }
}

/// The answers of debugfs to several commands.
pub fn debugfs(image: &Path, commands: &[String]) -> Vec<String> {
    let script = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(script.path(), commands.join("\n") + "\n").unwrap();
    let text =
        run("debugfs", &["-w", "-f", script.path().to_str().unwrap(), image.to_str().unwrap()]).unwrap();
    let mut answers: Vec<String> = text.split("debugfs: ").skip(1).map(str::to_owned).collect();
    for answer in &mut answers {
        *answer = answer.split_once('\n').map_or("", |(_, rest)| rest).to_owned();
    }
    answers.truncate(commands.len());
    answers
}

/// A journal under construction.
pub struct Journal {
    pub image: Image,
    pub compat: u32,
    pub incompat: u32,
    /// Next block.
    pub at: u32,
    /// Next transaction.
    pub id: u32,
    /// Time of the next commit.
    pub seconds: u64,
    /// What recovery begins with.
    pub start: (u32, u32),
    pub last: u32,
    v1: u32,
}

impl Journal {
    /// An empty one with these features, beginning at `at` with transaction `id`.
    pub fn new(image: &Image, compat: u32, incompat: u32, at: u32, id: u32) -> Self {
        let fast = if incompat & FAST != 0 { 256 } else { 0 };
        let last = u32::try_from(image.log.len()).unwrap() - fast;
        Self {
            image: image.clone(),
            compat,
            incompat,
            at,
            id,
            seconds: 1_700_000_000,
            start: (at, id),
            last,
            v1: !0,
        }
    }

    fn has(&self, bit: u32) -> bool {
        self.incompat & bit != 0
    }

    fn sums(&self) -> bool {
        self.has(V2 | V3)
    }

    fn seed(&self) -> u32 {
        let at = self.image.log[0];
        crc32c(!0, &self.image.disk[at + 0x30..at + 0x40])
    }

    /// Block `log` of the journal.
    pub fn block(&mut self, log: u32) -> &mut [u8] {
        let at = self.image.log[log as usize];
        &mut self.image.disk[at..at + BLOCK]
    }

    /// Number of blocks of the journal, those of fast commits too.
    pub fn blocks_of_log(&self) -> usize {
        self.image.log.len()
    }

    /// The block before the next one.
    pub fn previous(&self) -> u32 {
        if self.at == 1 { self.last - 1 } else { self.at - 1 }
    }

    fn push(&mut self, block: &[u8]) {
        let at = self.at;
        self.block(at).copy_from_slice(block);
        self.at = if at + 1 == self.last { 1 } else { at + 1 };
    }

    fn header(&self, kind: u32) -> Vec<u8> {
        let mut block: Vec<u8> = [MAGIC, kind, self.id].iter().flat_map(|n| n.to_be_bytes()).collect();
        block.resize(BLOCK, 0);
        block
    }

    fn tail(&self, block: &mut [u8]) {
        if self.sums() {
            let sum = crc32c(self.seed(), block);
            block[BLOCK - 4..].copy_from_slice(&sum.to_be_bytes());
        }
    }

    /// Descriptors and the blocks they announce.
    pub fn blocks(&mut self, blocks: &[(u64, Vec<u8>)]) -> &mut Self {
        let tag = match () {
            () if self.has(V3) => 16,
            () => 8 + 2 * usize::from(self.has(V2)) + 4 * usize::from(self.has(WIDE)),
        };
        let room = BLOCK - 12 - 16 - if self.sums() { 4 } else { 0 };
        for part in blocks.chunks(room / tag) {
            let mut descriptor = self.header(1);
            let mut at = 12;
            let mut stored = Vec::new();
            for (i, (number, data)) in part.iter().enumerate() {
                let mut data = data.clone();
                let escaped = data[..4] == MAGIC.to_be_bytes();
                if escaped {
                    data[..4].fill(0);
                }
                let flags =
                    u32::from(escaped) | if i > 0 { 2 } else { 0 } | if i + 1 == part.len() { 8 } else { 0 };
                let sum = crc32c(crc32c(self.seed(), &self.id.to_be_bytes()), &data);
                let mut put = |offset: usize, bytes: &[u8]| {
                    descriptor[at + offset..at + offset + bytes.len()].copy_from_slice(bytes);
                };
                put(0, &(*number as u32).to_be_bytes());
                let high = ((number >> 32) as u32).to_be_bytes();
                if self.has(V3) {
                    put(4, &flags.to_be_bytes());
                    put(8, &high);
                    put(12, &sum.to_be_bytes());
                } else {
                    if self.has(V2) {
                        put(4, &(sum as u16).to_be_bytes());
                    }
                    put(6, &(flags as u16).to_be_bytes());
                    if self.has(WIDE) {
                        put(8, &high);
                    }
                }
                at += tag + if i == 0 { 16 } else { 0 };
                stored.push(data);
            }
            self.tail(&mut descriptor);
            stored.insert(0, descriptor);
            for block in stored {
                self.v1 = crc32_be(self.v1, &block);
                self.push(&block);
            }
        }
        self
    }

    /// Puts right checksums into block `log` after its content changed.
    pub fn sum_again(&mut self, log: u32) {
        if !self.sums() {
            return;
        }
        let seed = self.seed();
        let block = self.block(log);
        if block[..4] != MAGIC.to_be_bytes() {
            return;
        }
        let (at, seed) = match block[7] {
            1 | 5 => (BLOCK - 4, seed),
            2 => (16, seed),
            3 | 4 => (0xFC, !0),
            _ => return,
        };
        block[at..at + 4].fill(0);
        let sum = crc32c(seed, block);
        block[at..at + 4].copy_from_slice(&sum.to_be_bytes());
    }

    /// New content for file number `file`.
    pub fn file(&mut self, file: usize, text: &str) -> &mut Self {
        let block = self.image.files[file];
        self.blocks(&[(block, content(text))])
    }

    pub fn revoke(&mut self, blocks: &[u64]) -> &mut Self {
        let mut block = self.header(5);
        let wide = self.has(WIDE);
        let bytes: Vec<u8> = blocks
            .iter()
            .flat_map(|n| if wide { n.to_be_bytes().to_vec() } else { (*n as u32).to_be_bytes().to_vec() })
            .collect();
        block[12..16].copy_from_slice(&u32::try_from(16 + bytes.len()).unwrap().to_be_bytes());
        block[16..16 + bytes.len()].copy_from_slice(&bytes);
        self.tail(&mut block);
        self.push(&block);
        self
    }

    pub fn commit(&mut self) -> &mut Self {
        let mut block = self.header(2);
        block[48..56].copy_from_slice(&self.seconds.to_be_bytes());
        if self.compat & V1 != 0 {
            block[12..14].copy_from_slice(&[1, 4]);
            block[16..20].copy_from_slice(&self.v1.to_be_bytes());
        }
        if self.sums() {
            let sum = crc32c(self.seed(), &block);
            block[16..20].copy_from_slice(&sum.to_be_bytes());
        }
        self.push(&block);
        self.v1 = !0;
        self.id = self.id.wrapping_add(1);
        self.seconds += 1;
        self
    }

    /// Sums the superblock of the journal after a change.
    pub fn superblock(&mut self, change: impl FnOnce(&mut [u8])) {
        let sb = self.block(0);
        change(sb);
        sb[0xFC..0x100].fill(0);
        let sum = crc32c(!0, sb);
        if self.sums() {
            self.block(0)[0xFC..0x100].copy_from_slice(&sum.to_be_bytes());
        }
    }

    /// The image with the journal to be replayed.
    pub fn finish(&mut self) -> Image {
        let (compat, incompat, (start, id)) = (self.compat, self.incompat, self.start);
        let sums = self.sums();
        self.superblock(|sb| {
            let mut put = |at: usize, n: u32| sb[at..at + 4].copy_from_slice(&n.to_be_bytes());
            put(4, 4);
            put(0x18, id);
            put(0x1C, start);
            put(0x24, compat);
            put(0x28, incompat | 1);
            put(0x54, 256);
            sb[0x50] = if sums { 4 } else { 0 };
        });
        self.image.needs_recovery(true);
        self.image.clone()
    }
}

/// Fast commits: records of one area, summed.
pub struct Fast {
    pub bytes: Vec<u8>,
    crc: u32,
}

impl Fast {
    /// Begins with the head of transaction `tid`.
    pub fn new(tid: u32) -> Self {
        let mut new = Self { bytes: Vec::new(), crc: 0 };
        new.record(9, &[0u32.to_le_bytes(), tid.to_le_bytes()].concat());
        new
    }

    pub fn record(&mut self, tag: u16, value: &[u8]) -> &mut Self {
        let header = [tag.to_le_bytes(), u16::try_from(value.len()).unwrap().to_le_bytes()].concat();
        // No record spans blocks.
        let left = BLOCK - self.bytes.len() % BLOCK;
        if left < 4 + value.len() {
            if left >= 4 {
                let pad = [7u16.to_le_bytes(), u16::try_from(left - 4).unwrap().to_le_bytes()].concat();
                let pad = [pad, vec![0; left - 4]].concat();
                self.crc = crc32c(self.crc, &pad);
                self.bytes.extend(pad);
            } else {
                self.bytes.extend(vec![0; left]);
            }
        }
        let whole = [&header, value].concat();
        self.crc = crc32c(self.crc, &whole);
        self.bytes.extend(whole);
        self
    }

    /// 3: a new name, 4: another name, 5: a name that goes.
    pub fn name(&mut self, tag: u16, parent: u32, ino: u32, name: &str) -> &mut Self {
        let value = [&parent.to_le_bytes(), &ino.to_le_bytes(), name.as_bytes()].concat();
        self.record(tag, &value)
    }

    pub fn range(&mut self, ino: u32, first: u32, len: u16, image: u64) -> &mut Self {
        let mut value = [ino.to_le_bytes(), first.to_le_bytes()].concat();
        value.extend(len.to_le_bytes());
        value.extend(((image >> 32) as u16).to_le_bytes());
        value.extend((image as u32).to_le_bytes());
        self.record(1, &value)
    }

    /// Ends the unit and its block.
    pub fn tail(&mut self, tid: u32) -> &mut Self {
        let left = BLOCK - self.bytes.len() % BLOCK;
        assert!(left >= 12, "a tail needs room");
        let len = u16::try_from(left - 4).unwrap();
        let head = [&8u16.to_le_bytes()[..], &len.to_le_bytes(), &tid.to_le_bytes()].concat();
        let sum = crc32c(self.crc, &head);
        self.bytes.extend(head);
        self.bytes.extend(sum.to_le_bytes());
        self.bytes.resize(self.bytes.len() + left - 12, 0);
        self.crc = 0;
        self
    }

    /// Writes the area of `journal`.
    pub fn put(&self, journal: &mut Journal) {
        let first = journal.last + 1;
        for (i, block) in (0..).zip(self.bytes.chunks(BLOCK)) {
            journal.block(first + i)[..block.len()].copy_from_slice(block);
        }
    }
}
