//! Directory entries: 32 bytes each, a file's own or a slot of its long name.

use super::codepage::char_of;
use crate::Timestamp;
use crate::fs::bytes::{le16, le32, u8_at};

const READ_ONLY: u8 = 0x01;
const VOLUME: u8 = 0x08;
const DIRECTORY: u8 = 0x10;
/// The attributes of a slot of a long name.
const LONG: u8 = 0x0F;
const DELETED: u8 = 0xE5;
/// Stands for 0xE5 in the first byte of a name.
const ESCAPED_E5: u8 = 0x05;
/// Bits of the byte after the attributes: the part of the name is shown in lower case.
const LOWER_BASE: u8 = 0x08;
const LOWER_EXTENSION: u8 = 0x10;
const SECONDS_A_DAY: i64 = 86_400;
/// Days from 1970 to 1980.
const DAYS_TO_1980: i64 = 3652;
/// Years counted from 1980; 2100 is no leap year.
const YEAR_2100: i64 = 120;
/// Days before the first of a month, by its number; what no month has counts none, as in the kernel.
const DAYS_BEFORE: [i64; 16] = [0, 0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 0, 0, 0];

/// An entry that is in use.
pub struct Entry {
    raw: [u8; 32],
    pub size: u32,
}

/// A slot of a long name.
pub struct LongSlot {
    /// Place from 1 on; the first slot on disk has the last part.
    pub place: u8,
    pub is_last: bool,
    pub checksum: u8,
    pub units: [u16; 13],
}

impl Entry {
    /// Parses one; None: it is free.
    pub fn parse(raw: &[u8; 32]) -> Option<Self> {
        if matches!(raw[0], 0 | DELETED) {
            return None;
        }
        Some(Self { raw: *raw, size: le32(raw, 28) })
    }

    fn attributes(&self) -> u8 {
        self.raw[11]
    }

    /// Whether it stands for a file or directory, and not for a label or a part of a name.
    pub fn is_file(&self) -> bool {
        self.attributes() & VOLUME == 0
    }

    pub fn is_dir(&self) -> bool {
        self.attributes() & DIRECTORY != 0
    }

    pub fn is_read_only(&self) -> bool {
        self.attributes() & READ_ONLY != 0
    }

    /// `.` or `..`.
    pub fn is_dot(&self) -> bool {
        matches!(&self.raw[..11], b".          " | b"..         ")
    }

    pub fn first_cluster(&self, is_fat32: bool) -> u32 {
        let high = if is_fat32 { u32::from(le16(&self.raw, 20)) << 16 } else { 0 };
        u32::from(le16(&self.raw, 26)) | high
    }

    /// The slot of a long name that it is.
    pub fn long_slot(&self) -> Option<LongSlot> {
        if self.attributes() != LONG {
            return None;
        }
        let id = self.raw[0];
        let mut units = [0; 13];
        let places = (1..11).step_by(2).chain((14..26).step_by(2)).chain([28, 30]);
        for (unit, at) in units.iter_mut().zip(places) {
            *unit = le16(&self.raw, at);
        }
        Some(LongSlot { place: id & !0x40, is_last: id & 0x40 != 0, checksum: self.raw[13], units })
    }

    /// The checksum that ties the slots of a long name to this entry.
    pub fn checksum(&self) -> u8 {
        self.raw[..11].iter().fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte))
    }

    /// The short name as it is shown.
    pub fn short_name(&self) -> String {
        let case = self.raw[12];
        let part = |range: std::ops::Range<usize>, lower: bool| -> String {
            let bytes = &self.raw[range.clone()];
            let used = bytes.iter().rposition(|byte| *byte != b' ').map_or(0, |at| at + 1);
            let chars = bytes[..used].iter().enumerate().map(|(at, byte)| match byte {
                &ESCAPED_E5 if at == 0 && range.start == 0 => char_of(DELETED),
                byte => char_of(*byte),
            });
            if lower { chars.flat_map(char::to_lowercase).collect() } else { chars.collect() }
        };
        let base = part(0..8, case & LOWER_BASE != 0);
        let extension = part(8..11, case & LOWER_EXTENSION != 0);
        if extension.is_empty() { base } else { format!("{base}.{extension}") }
    }

    pub fn modified(&self) -> Timestamp {
        moment(le16(&self.raw, 24), le16(&self.raw, 22), 0)
    }

    pub fn accessed(&self) -> Timestamp {
        moment(le16(&self.raw, 18), 0, 0)
    }

    /// None: it was not noted.
    pub fn created(&self) -> Option<Timestamp> {
        let date = le16(&self.raw, 16);
        (date != 0).then(|| moment(date, le16(&self.raw, 14), u8_at(&self.raw, 13)))
    }
}

/// A date, a time and hundredths of a second, taken for UTC.
fn moment(date: u16, time: u16, hundredths: u8) -> Timestamp {
    let (date, time) = (i64::from(date), i64::from(time));
    let (year, month, day) = (date >> 9, (date >> 5 & 0xF).max(1), (date & 0x1F).max(1) - 1);
    let is_leap = year % 4 == 0 && year != YEAR_2100;
    let mut leap_days = (year + 3) / 4;
    leap_days -= i64::from(year > YEAR_2100);
    leap_days += i64::from(is_leap && month > 2);
    let month = usize::try_from(month).unwrap_or(0);
    let days = year * 365 + leap_days + DAYS_BEFORE.get(month).copied().unwrap_or(0) + day + DAYS_TO_1980;
    let seconds = (time & 0x1F) * 2 + (time >> 5 & 0x3F) * 60 + (time >> 11) * 3600;
    Timestamp {
        seconds: days * SECONDS_A_DAY + seconds + i64::from(hundredths / 100),
        nanoseconds: u32::from(hundredths % 100) * 10_000_000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn date(year: u16, month: u16, day: u16) -> u16 {
        (year - 1980) << 9 | month << 5 | day
    }

    #[test]
    fn moments_are_those_of_the_calendar() {
        for (year, month, day, seconds) in [
            (1980, 1, 1, 315_532_800),
            (2000, 2, 29, 951_782_400),
            (2000, 3, 1, 951_868_800),
            (2026, 11, 22, 1_795_305_600),
            (2100, 3, 1, 4_107_542_400),
            (2107, 12, 31, 4_354_732_800),
        ] {
            assert_eq!(moment(date(year, month, day), 0, 0).seconds, seconds, "{year}-{month}-{day}");
        }
        let time = 13 << 11 | 37 << 5 | 21;
        let found = moment(date(1980, 1, 1), time, 150);
        assert_eq!(found.seconds - 315_532_800, 13 * 3600 + 37 * 60 + 42 + 1);
        assert_eq!(found.nanoseconds, 500_000_000);
    }

    #[test]
    fn short_names() {
        let name = |raw: &[u8; 11], case: u8| {
            let mut bytes = [0; 32];
            bytes[..11].copy_from_slice(raw);
            bytes[12] = case;
            Entry::parse(&bytes).map(|entry| entry.short_name())
        };
        for (raw, case, shown) in [
            (b"README  TXT", 0, Some("README.TXT")),
            (b"README  TXT", 0x18, Some("readme.txt")),
            (b"README  TXT", 0x08, Some("readme.TXT")),
            (b"A B     C  ", 0, Some("A B.C")),
            (b"MAKEFILE   ", 0, Some("MAKEFILE")),
            (b"\x05BC        ", 0, Some("σBC")),
            (b"\x8eRGER      ", 0x08, Some("ärger")),
            (b"\xe5BC        ", 0, None),
            (b"\0BC        ", 0, None),
        ] {
            assert_eq!(name(raw, case).as_deref(), shown, "{raw:?}");
        }
    }
}
