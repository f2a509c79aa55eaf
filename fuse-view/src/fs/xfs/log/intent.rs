//! Intents: work that was promised in one transaction and done in a later one. What the log has no end of, is left to
//! be done; of that, what can be seen is completed over the image.

use super::ring::bad;
use super::transaction::Item;
use crate::Result;
use crate::fs::bytes::{le32, le64};
use std::collections::{BTreeMap, HashMap};

/// More than this is not left undone by any kernel.
const MAX_PENDING: usize = 1 << 16;

/// Types of intents whose work can be seen; their ends have the next number.
mod kind {
    pub const MAP: u16 = 0x1244;
    pub const ATTRIBUTE: u16 = 0x1246;
    pub const EXCHANGE: u16 = 0x1248;
}

/// Work left to be done that can be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) enum Intent {
    /// Enter an extent into a fork, or take it out.
    Map { owner: u64, start: u64, offset: u64, count: u64, flags: u32 },
    /// Exchange the content of two files.
    Exchange { inodes: [u64; 2], offsets: [u64; 2], count: u64, flags: u64, sizes: [u64; 2] },
    /// Set an attribute, or with None remove it.
    Attribute { ino: u64, space: u8, name: Vec<u8>, value: Option<Vec<u8>> },
}

/// Intents whose end was not met yet.
#[derive(Default)]
pub(super) struct Pending {
    /// By when they were met.
    open: BTreeMap<u64, Intent>,
    /// When they were met, by type and id.
    when: HashMap<(u16, u64), u64>,
    met: u64,
}

impl Pending {
    /// Takes an intent or the end of one; those that cannot be seen are passed over.
    pub fn note(&mut self, kind: u16, item: &Item) -> Result<()> {
        let id = le64(item.format(), 8);
        let intent = match kind {
            kind::MAP => map(item),
            kind::EXCHANGE => exchange(item),
            kind::ATTRIBUTE => attribute(item),
            _ => {
                let of = kind.wrapping_sub(1);
                if matches!(of, kind::MAP | kind::EXCHANGE | kind::ATTRIBUTE) {
                    self.end(of, id);
                }
                return Ok(());
            }
        };
        let intent = intent.ok_or_else(|| bad("an intent that says too little"))?;
        if self.open.len() >= MAX_PENDING {
            return Err(bad("more intents than can be left undone"));
        }
        self.met += 1;
        self.end(kind, id);
        self.when.insert((kind, id), self.met);
        self.open.insert(self.met, intent);
        Ok(())
    }

    fn end(&mut self, kind: u16, id: u64) {
        if let Some(met) = self.when.remove(&(kind, id)) {
            self.open.remove(&met);
        }
    }

    /// What is left, in the order of the log.
    pub fn left(self) -> Vec<Intent> {
        self.open.into_values().collect()
    }
}

fn map(item: &Item) -> Option<Intent> {
    let record = item.format().get(16..48)?;
    (le32(item.format(), 4) == 1).then(|| Intent::Map {
        owner: le64(record, 0),
        start: le64(record, 8),
        offset: le64(record, 16),
        count: u64::from(le32(record, 24)),
        flags: le32(record, 28),
    })
}

fn exchange(item: &Item) -> Option<Intent> {
    let format = item.format().get(..88)?;
    let two = |at| [le64(format, at), le64(format, at + 8)];
    Some(Intent::Exchange {
        inodes: two(16),
        offsets: two(40),
        count: le64(format, 56),
        flags: le64(format, 64),
        sizes: two(72),
    })
}

fn attribute(item: &Item) -> Option<Intent> {
    const SET: u32 = 1;
    const REMOVE: u32 = 2;
    const REPLACE: u32 = 3;
    /// Name spaces of root and of security modules.
    const SPACES: u8 = 2 | 4;
    let format = item.format().get(..40)?;
    let operation = le32(format, 24) & 0xFF;
    let ino = le64(format, 16);
    let len = |at| usize::try_from(le32(format, at)).ok();
    let part = |i: usize, len: usize| item.regions.get(i)?.get(..len).map(<[u8]>::to_vec);
    let [space, ..] = le32(format, 36).to_le_bytes();
    match operation {
        SET | REPLACE => {
            let (name, value_len) = (part(1, len(28)?)?, len(32)?);
            let value = if value_len == 0 { Vec::new() } else { part(2, value_len)? };
            Some(Intent::Attribute { ino, space: space & SPACES, name, value: Some(value) })
        }
        REMOVE => {
            Some(Intent::Attribute { ino, space: space & SPACES, name: part(1, len(28)?)?, value: None })
        }
        // Those of parent pointers are never shown; an inode that does not exist is never asked for.
        _ => Some(Intent::Attribute { ino: u64::MAX, space: 0, name: Vec::new(), value: None }),
    }
}
