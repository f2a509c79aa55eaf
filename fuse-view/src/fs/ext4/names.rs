//! Names that are not shown or compared as they are stored: encrypted ones, and those of directories without case.
//!
//! Without its key, an encrypted name is shown as the kernel shows it (the kernel's
//! `Documentation/filesystems/fscrypt.rst`, "Access semantics"): base64url of the hash that the directory keeps it
//! under and of the ciphertext, or the start of that and its digest. Directories that are both encrypted and without
//! case keep those hashes elsewhere; there they are shown as 0.

use super::Ext4;
use super::hash::{Algorithm, name_hashes};
use super::inode::{Inode, flag};
use super::superblock::compat;
use crate::fs::bytes::u8_at;
use sha2::{Digest, Sha256};

/// Bytes of the ciphertext that are shown as they are.
const SHOWN: usize = 149;

/// How the names of an encrypted directory are shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Encoding {
    /// The hash of the directory; None: the kernel lists it without.
    hash: Option<Algorithm>,
    seed: [u32; 4],
}

impl Ext4 {
    /// How the names of `dir` are shown; None: as they are stored.
    pub(super) fn encoding(&self, dir: &Inode) -> Option<Encoding> {
        if !dir.has(flag::ENCRYPT) {
            return None;
        }
        let indexed = dir.has(flag::INDEX);
        let listed_by_hash = self.sb.compat & compat::DIR_INDEX != 0
            && (indexed || dir.size >> self.sb.block_bits == 1 || dir.has(flag::INLINE_DATA))
            && !dir.has(flag::CASEFOLD);
        let version = match self.dir_block(dir, 0) {
            Ok(Ok(root)) if indexed => u8_at(&root, 28),
            _ => self.sb.hash_version,
        };
        let hash = Algorithm::of(version, self.sb.hash_unsigned).filter(|_| listed_by_hash);
        Some(Encoding { hash, seed: self.sb.hash_seed })
    }
}

impl Encoding {
    /// The ciphertext `name` as text.
    pub(super) fn show(&self, name: &[u8]) -> Vec<u8> {
        let (hash, minor) = self.hash.map_or((0, 0), |hash| name_hashes(hash, &self.seed, name));
        let mut bytes = [hash.to_le_bytes(), minor.to_le_bytes()].concat();
        match name.split_at_checked(SHOWN) {
            Some((start, rest)) if !rest.is_empty() => {
                bytes.extend(start);
                bytes.extend(Sha256::digest(rest));
            }
            _ => bytes.extend(name),
        }
        base64url(&bytes)
    }
}

fn base64url(bytes: &[u8]) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut out = Vec::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().enumerate().fold(0u32, |acc, (i, &b)| acc | u32::from(b) << (16 - 8 * i));
        for i in 0..=chunk.len() {
            out.push(ALPHABET[(group >> (18 - 6 * i) & 63) as usize]);
        }
    }
    out
}

/// `name` without the difference of case; None: it is not text, and only equal to itself.
///
/// The kernel compares by Unicode's full case folding of the decomposed form. This is case folding alone: names that
/// differ in how accents are composed are different here.
pub(super) fn fold(name: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(name).ok()?;
    Some(name.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoded_names_are_names() {
        assert_eq!(base64url(b"\0/\xff"), b"AC__");
        assert_eq!(base64url(b"a"), b"YQ");
        let encoding = Encoding { hash: Algorithm::of(1, false), seed: [0; 4] };
        let (a, mut b) = ([1; 255], [1; 255]);
        b[254] = 2;
        assert_eq!(encoding.show(&a).len(), 252);
        assert_ne!(encoding.show(&a), encoding.show(&b));
        assert!(encoding.show(&a[..149]).len() < 252);
    }

    #[test]
    fn folding() {
        for (a, b) in [("Straße", "STRASSE"), ("ÄÖÜ", "äöü"), ("ΣΑΣ", "σας"), ("x", "X")] {
            assert_eq!(fold(a.as_bytes()), fold(b.as_bytes()), "{a} {b}");
        }
        assert_ne!(fold(b"a"), fold(b"b"));
        assert_eq!(fold(b"\xff"), None);
    }
}
