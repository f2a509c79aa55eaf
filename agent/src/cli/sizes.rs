//! Sizes as people write them (`4K`, `20G`, `1.5T`, `10GiB`, `1048576`; powers of 1024) and as we show them.

use super::failure::{Failure, Result};

/// A volume's size is a multiple of this.
pub const BLOCK_BYTES: u64 = store::BLOCK_BYTES;
/// The largest size in bytes: what a signed 64-bit file offset reaches.
pub const MAX_BYTES: u64 = i64::MAX.unsigned_abs();

const UNITS: [char; 6] = ['K', 'M', 'G', 'T', 'P', 'E'];
const EXAMPLES: &str = "write bytes or a number with K, M, G, T or P: 4096, 4K, 20G, 1.5T, 10GiB";

/// A number of bytes that may end in a fraction: `numerator / denominator`.
struct Exact {
    numerator: u128,
    denominator: u128,
}

/// Bytes of `text`; a fraction of a byte is dropped.
#[cfg_attr(not(test), allow(dead_code))]
pub fn parse(text: &str) -> Result<u64> {
    let exact = parse_exact(text)?;
    to_bytes(text, exact.numerator / exact.denominator)
}

/// Bytes of a volume: a multiple of 4 KiB above zero, or refused with the nearest sizes that are.
pub fn parse_volume(text: &str) -> Result<u64> {
    let exact = parse_exact(text)?;
    let step = exact.denominator * u128::from(BLOCK_BYTES);
    let below = exact.numerator / step * u128::from(BLOCK_BYTES);
    if exact.numerator.is_multiple_of(step) && below > 0 {
        return to_bytes(text, below);
    }
    to_bytes(text, exact.numerator / exact.denominator)?;
    let above = below + u128::from(BLOCK_BYTES);
    let hint = match (below, above) {
        (0, _) => "the smallest volume is 4K".to_owned(),
        (_, above) if above > u128::from(MAX_BYTES) => format!("the nearest is {}", kibibytes(below)),
        _ => format!("the nearest are {} and {}", kibibytes(below), kibibytes(above)),
    };
    Err(Failure::usage(format!("'{text}' is not a multiple of 4 KiB, the unit of a volume's size"))
        .hint(hint))
}

/// An exact spelling that [`parse`] takes; `bytes` is a multiple of 1024.
fn kibibytes(bytes: u128) -> String {
    let mut value = bytes / 1024;
    let mut unit = 0;
    while unit + 1 < UNITS.len() && value > 0 && value.is_multiple_of(1024) {
        value /= 1024;
        unit += 1;
    }
    format!("{value}{}", UNITS[unit])
}

fn to_bytes(text: &str, bytes: u128) -> Result<u64> {
    match u64::try_from(bytes) {
        Ok(bytes) if bytes <= MAX_BYTES => Ok(bytes),
        _ => Err(Failure::usage(format!("size '{text}' is too large")).hint("the largest is just under 8E")),
    }
}

fn parse_exact(text: &str) -> Result<Exact> {
    let malformed = || Failure::usage(format!("'{text}' is not a size")).hint(EXAMPLES);
    if text.starts_with('-') {
        return Err(Failure::usage(format!("size '{text}' is negative")).hint(EXAMPLES));
    }
    let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let only_digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !only_digits(fraction) || (number.contains('.') && fraction.is_empty()) {
        return Err(malformed());
    }
    let factor = unit_bytes(text, suffix.trim_start())?;
    // 30 digits keep every product below within u128: 10^30 × 2^60 < 2^127 needs fewer.
    if whole.len() > 19 {
        return Err(
            Failure::usage(format!("size '{text}' is too large")).hint("the largest is just under 8E")
        );
    }
    if fraction.len() > 12 {
        return Err(Failure::usage(format!("size '{text}' has too many decimals")).hint(EXAMPLES));
    }
    let denominator = 10u128.pow(u32::try_from(fraction.len()).map_err(|_| malformed())?);
    let digits: u128 = format!("{whole}{fraction}").parse().map_err(|_| malformed())?;
    let numerator = digits.checked_mul(factor).ok_or_else(malformed)?;
    if denominator > 1 && factor == 1 && !numerator.is_multiple_of(denominator) {
        return Err(Failure::usage(format!("'{text}' is a fraction of a byte")).hint(EXAMPLES));
    }
    Ok(Exact { numerator, denominator })
}

fn unit_bytes(text: &str, suffix: &str) -> Result<u128> {
    let upper = suffix.to_ascii_uppercase();
    if matches!(upper.as_str(), "" | "B") {
        return Ok(1);
    }
    let mut letters = upper.chars();
    let position = letters.next().and_then(|first| UNITS.iter().position(|unit| *unit == first));
    match (position, letters.as_str()) {
        (Some(position), "" | "IB" | "I") => Ok(1u128 << (10 * (position + 1))),
        (Some(position), "B") => Err(Failure::usage(format!("the unit of size '{text}' is ambiguous"))
            .hint(format!("sizes are powers of 1024: write {0} or {0}iB", UNITS[position]))),
        _ => Err(Failure::usage(format!("size '{text}' has an unknown unit")).hint(EXAMPLES)),
    }
}

/// `bytes` for people: `0`, `512`, `4K`, `1.5G`; exact when there is no decimal.
pub fn human(bytes: u64) -> String {
    if bytes < 1024 {
        return bytes.to_string();
    }
    let mut unit = 0;
    while unit + 1 < UNITS.len() && bytes >> (10 * (unit + 2)) > 0 {
        unit += 1;
    }
    let scale = 1u128 << (10 * (unit + 1));
    if u128::from(bytes).is_multiple_of(scale) {
        return format!("{}{}", u128::from(bytes) / scale, UNITS[unit]);
    }
    let tenths = (u128::from(bytes) * 10 + scale / 2) / scale;
    format!("{}.{}{}", tenths / 10, tenths % 10, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("512B", 512),
            ("4K", 4096),
            ("4k", 4096),
            ("4KiB", 4096),
            ("20G", 20 << 30),
            ("10GiB", 10 << 30),
            ("1.5T", 3 << 39),
            ("0.5K", 512),
            ("2P", 2 << 50),
            ("7E", 7 << 60),
            ("10 GiB", 10 << 30),
            ("9223372036854775807", MAX_BYTES),
        ] {
            assert_eq!(parse(text).unwrap(), bytes, "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "-1",
            "-4K",
            "K",
            ".5K",
            "5.",
            "1.2.3K",
            "4X",
            "4KB",
            "20GB",
            "1e3",
            "0x10",
            "8E",
            "1.5",
            "+4K",
            "9223372036854775808",
            "99999999999999999999999E",
            "4KK",
            "４K",
            "1.0000000000001K",
        ] {
            let failure = parse(text).unwrap_err();
            assert_eq!(failure.exit_code(), 2, "{text}: {failure:?}");
            assert!(failure.hint_text().is_some(), "{text}");
        }
    }

    #[test]
    fn volume_sizes_are_blocks_or_refused_with_the_nearest() {
        for (text, bytes) in [("4K", 4096), ("20G", 20 << 30), ("1.5T", 3 << 39), ("0.5M", 512 << 10)] {
            assert_eq!(parse_volume(text).unwrap(), bytes, "{text}");
        }
        for (text, hint) in [
            ("0", "the smallest volume is 4K"),
            ("1", "the smallest volume is 4K"),
            ("5000", "the nearest are 4K and 8K"),
            ("1048577", "the nearest are 1M and 1028K"),
            ("1.1G", "the nearest are 1153432K and 1153436K"),
            ("9223372036854775807", "the nearest is 9007199254740988K"),
            ("8E", "the largest is just under 8E"),
        ] {
            let failure = parse_volume(text).unwrap_err();
            assert_eq!(failure.hint_text(), Some(hint), "{text}");
        }
    }

    #[test]
    fn the_nearest_sizes_offered_are_taken() {
        for text in ["1153432K", "1153436K", "1028K", "9007199254740988K"] {
            assert!(parse_volume(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn human_sizes() {
        for (bytes, text) in [
            (0, "0"),
            (1023, "1023"),
            (1024, "1K"),
            (1536, "1.5K"),
            (20 << 30, "20G"),
            ((1 << 30) + (1 << 20), "1.0G"),
            (MAX_BYTES, "8.0E"),
            (u64::MAX, "16.0E"),
        ] {
            assert_eq!(human(bytes), text, "{bytes}");
        }
    }
}
