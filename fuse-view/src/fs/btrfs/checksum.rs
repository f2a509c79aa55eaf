//! The checksums a btrfs can be made with.

use sha2::Digest;

/// Algorithm of the checksums of metadata and data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checksum {
    Crc32c,
    Xxhash64,
    Sha256,
    Blake2b,
}

impl Checksum {
    /// The algorithm of a superblock's `csum_type`.
    pub fn of(code: u16) -> Option<Self> {
        [Self::Crc32c, Self::Xxhash64, Self::Sha256, Self::Blake2b].get(usize::from(code)).copied()
    }

    /// Bytes of a checksum.
    pub fn len(self) -> usize {
        match self {
            Self::Crc32c => 4,
            Self::Xxhash64 => 8,
            Self::Sha256 | Self::Blake2b => 32,
        }
    }

    /// Whether `stored` begins with the checksum of `bytes`.
    pub fn matches(self, bytes: &[u8], stored: &[u8]) -> bool {
        match self {
            Self::Crc32c => stored.starts_with(&crc32c::crc32c(bytes).to_le_bytes()),
            Self::Xxhash64 => stored.starts_with(&twox_hash::XxHash64::oneshot(0, bytes).to_le_bytes()),
            Self::Sha256 => stored.starts_with(&sha2::Sha256::digest(bytes)),
            Self::Blake2b => stored.starts_with(&blake2::Blake2b256::digest(bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The digests of "abc" that the specifications give, numbers in little endian.
    #[test]
    fn known_values() {
        let hex = |text: &str| -> Vec<u8> {
            (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
        };
        for (code, digest) in [
            (0, "b73f4b36"),
            (1, "990977adf52cbc44"),
            (2, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (3, "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319"),
        ] {
            let sum = Checksum::of(code).unwrap();
            let stored = hex(digest);
            assert_eq!(stored.len(), sum.len());
            assert!(sum.matches(b"abc", &stored), "{code}");
            assert!(!sum.matches(b"abd", &stored), "{code}");
        }
        assert_eq!(Checksum::of(4), None);
    }
}
