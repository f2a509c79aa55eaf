//! Raw disk images as streams: digests that count holes as zeros, blocks of zeros, compressed files by name.

use super::failure::{Failure, Result};
use std::{ffi::OsStr, fmt, path::Path};

/// Zeros are looked for in units of this.
const BLOCK: usize = 4096;
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// Whether the name says that the file is compressed with zstd.
pub fn is_compressed(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(OsStr::new("zst")))
}

/// Whether the name stands for standard input or output.
pub fn is_stdio(path: &Path) -> bool {
    path == Path::new("-")
}

/// A BLAKE3 digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Parses 64 hex digits.
    pub fn parse(text: &str) -> Result<Self> {
        let hash = blake3::Hash::from_hex(text.to_ascii_lowercase());
        hash.map(|hash| Self(*hash.as_bytes())).map_err(|_| {
            Failure::usage(format!("'{}' is not a BLAKE3 digest", text.escape_debug()))
                .hint("write 64 hex digits, as printed by export and by b3sum")
        })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The digest of an image that arrives in ascending pieces.
pub struct ImageHasher {
    /// None: nobody asked for the digest.
    hasher: Option<blake3::Hasher>,
    position: u64,
}

impl ImageHasher {
    /// A hasher, or one that does nothing.
    pub fn new(wanted: bool) -> Self {
        Self { hasher: wanted.then(blake3::Hasher::new), position: 0 }
    }

    /// Bytes at `offset`; what lies between the last piece and this one counts as zeros.
    pub fn update(&mut self, offset: u64, data: &[u8]) {
        self.zeros_to(offset);
        if let Some(hasher) = &mut self.hasher {
            hasher.update(data);
        }
        self.position = offset + data.len() as u64;
    }

    /// Zeros up to `offset`.
    pub fn zeros_to(&mut self, offset: u64) {
        if let Some(hasher) = &mut self.hasher {
            for_zeros(offset.saturating_sub(self.position), |zeros| {
                hasher.update(zeros);
                Ok(())
            })
            .unwrap_or_default();
        }
        self.position = self.position.max(offset);
    }

    /// The digest of an image of `total_bytes`, if it was asked for.
    pub fn finish(mut self, total_bytes: u64) -> Option<Digest> {
        self.zeros_to(total_bytes);
        self.hasher.map(|hasher| Digest(*hasher.finalize().as_bytes()))
    }
}

/// Hands out `count` zeros in pieces.
pub fn for_zeros(count: u64, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut left = count;
    while left > 0 {
        let piece = left.min(ZEROS.len() as u64);
        each(&ZEROS[..usize::try_from(piece).unwrap_or(ZEROS.len())])?;
        left -= piece;
    }
    Ok(())
}

/// The runs of blocks of `data` that are not all zeros, as ranges. Blocks are counted from the start of `data`.
pub fn data_runs(data: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    for (index, block) in data.chunks(BLOCK).enumerate() {
        if is_zero(block) {
            continue;
        }
        let start = index * BLOCK;
        let end = start + block.len();
        match runs.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => runs.push(start..end),
        }
    }
    runs
}

fn is_zero(block: &[u8]) -> bool {
    // One comparison of memory is faster than a loop over bytes.
    block == &ZEROS[..block.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_count_holes_as_zeros() {
        let mut image = vec![0_u8; 300_000];
        image[70_000..70_003].copy_from_slice(b"abc");
        let mut hasher = ImageHasher::new(true);
        hasher.update(70_000, b"abc");
        let digest = hasher.finish(300_000).unwrap();
        assert_eq!(digest.0, *blake3::hash(&image).as_bytes());
        assert_eq!(Digest::parse(&digest.to_string()).unwrap(), digest);
        assert_eq!(Digest::parse(&digest.to_string().to_uppercase()).unwrap(), digest);
        assert_eq!(ImageHasher::new(false).finish(5), None);
        for text in ["", "abc", &"x".repeat(64), &"a".repeat(65)] {
            assert_eq!(Digest::parse(text).unwrap_err().exit_code(), 2, "{text}");
        }
    }

    #[test]
    fn runs_are_whole_blocks_and_the_tail() {
        let mut data = vec![0; 5 * BLOCK + 10];
        assert!(data_runs(&data).is_empty());
        assert!(data_runs(&[]).is_empty());
        data[BLOCK + 1] = 1;
        data[2 * BLOCK] = 1;
        data[5 * BLOCK + 9] = 1;
        assert_eq!(data_runs(&data), [BLOCK..3 * BLOCK, 5 * BLOCK..5 * BLOCK + 10]);
    }

    #[test]
    fn names_tell_compression() {
        assert!(is_compressed(Path::new("a/b.img.zst")));
        assert!(is_compressed(Path::new("b.ZST")));
        assert!(!is_compressed(Path::new("zst")));
        assert!(is_stdio(Path::new("-")) && !is_stdio(Path::new("./-")));
    }
}
