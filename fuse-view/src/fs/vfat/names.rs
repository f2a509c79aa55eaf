//! Long names: slots before the entry of their file, the last part first.

use super::entry::{Entry, LongSlot};

/// Most slots of a name.
const MAX_SLOTS: u8 = 20;
/// Units of UTF-16 in a slot.
const SLOT_UNITS: usize = 13;

/// A file by its names.
pub struct Named {
    /// The long name, or where there is none the short one; UTF-8.
    pub name: Vec<u8>,
    short: String,
    pub is_dir: bool,
    /// `.` or `..`.
    pub is_dot: bool,
}

impl Named {
    /// Whether a folded name means this file: names that differ in case only do, and so does the short name.
    pub fn is_alike(&self, folded: &str) -> bool {
        fold(&self.name) == folded || fold(self.short.as_bytes()) == folded
    }
}

/// A name without its case.
pub fn fold(name: &[u8]) -> String {
    String::from_utf8_lossy(name).to_lowercase()
}

/// The slots met since the last file.
#[derive(Default)]
pub struct LongName {
    units: Vec<u16>,
    checksum: u8,
    /// The place that the next slot must have; 0: all are there.
    next: u8,
    complete: bool,
}

impl LongName {
    /// Drops them: what follows is not theirs.
    pub fn forget(&mut self) {
        self.units.clear();
        self.complete = false;
    }

    /// Adds a slot. One that does not belong to those before it makes them void.
    pub fn add(&mut self, slot: &LongSlot) {
        if slot.is_last {
            self.forget();
            if slot.place == 0 || slot.place > MAX_SLOTS {
                return;
            }
            self.units = vec![0; usize::from(slot.place) * SLOT_UNITS];
            self.checksum = slot.checksum;
        } else if self.units.is_empty() || slot.place != self.next || slot.checksum != self.checksum {
            return self.forget();
        }
        if slot.place == 0 {
            return self.forget();
        }
        let at = usize::from(slot.place - 1) * SLOT_UNITS;
        if let Some(room) = self.units.get_mut(at..at + SLOT_UNITS) {
            room.copy_from_slice(&slot.units);
        }
        self.next = slot.place - 1;
        self.complete = self.next == 0;
    }

    /// The names of the file whose entry comes now.
    pub fn take(&mut self, entry: &Entry) -> Named {
        let short = entry.short_name();
        let valid = self.complete && !self.units.is_empty() && self.checksum == entry.checksum();
        let long = valid.then(|| text(&self.units)).filter(|name| !name.is_empty());
        self.forget();
        let name = long.unwrap_or_else(|| short.clone()).into_bytes();
        Named { name, short, is_dir: entry.is_dir(), is_dot: entry.is_dot() }
    }
}

/// UTF-16 up to its end; halves of pairs are left out, as in the kernel.
fn text(units: &[u16]) -> String {
    let used = units.iter().position(|unit| *unit == 0).unwrap_or(units.len());
    char::decode_utf16(units[..used].iter().copied()).filter_map(Result::ok).collect()
}
