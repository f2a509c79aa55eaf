//! The hashes of names in hashed directories.
//!
//! Facts: "Hash Tree Directories" in the kernel's documentation; half MD4 is the first rounds of RFC 1320 on 32 bytes at a time,
//! TEA is sixteen rounds of Wheeler and Needham's Tiny Encryption Algorithm.

/// How a name becomes a number, and whether its bytes are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Algorithm {
    family: Family,
    unsigned: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Legacy,
    HalfMd4,
    Tea,
}

impl Algorithm {
    /// By the number in the root of the tree; the first three take their sign from the superblock.
    pub fn of(version: u8, unsigned_by_default: bool) -> Option<Self> {
        let family = match version % 3 {
            0 => Family::Legacy,
            1 => Family::HalfMd4,
            _ => Family::Tea,
        };
        (version < 6).then_some(Self { family, unsigned: version >= 3 || unsigned_by_default })
    }
}

/// The number under which the tree keeps `name`; its low bit is always 0.
pub(super) fn name_hash(algorithm: Algorithm, seed: &[u32; 4], name: &[u8]) -> u32 {
    name_hashes(algorithm, seed, name).0
}

/// As [`name_hash`], with the second hash, which orders names of equal first ones.
pub(super) fn name_hashes(algorithm: Algorithm, seed: &[u32; 4], name: &[u8]) -> (u32, u32) {
    /// The end of the tree is this hash: no name may have it.
    const RESERVED: u32 = 0xFFFF_FFFE;
    let widen = |byte: u8| {
        if algorithm.unsigned { u32::from(byte) } else { i32::from(byte.cast_signed()).cast_unsigned() }
    };
    let mut state =
        if *seed == [0; 4] { [0x6745_2301, 0xEFCD_AB89, 0x98BA_DCFE, 0x1032_5476] } else { *seed };
    let (hash, minor) = match algorithm.family {
        Family::Legacy => (legacy(name, widen), 0),
        Family::HalfMd4 => {
            for input in words::<8>(name, widen) {
                half_md4(&mut state, &input);
            }
            (state[1], state[2])
        }
        Family::Tea => {
            for input in words::<4>(name, widen) {
                tea(&mut state, &input);
            }
            (state[0], state[1])
        }
    };
    let hash = hash & !1;
    (if hash == RESERVED { RESERVED - 2 } else { hash }, minor)
}

fn legacy(name: &[u8], widen: impl Fn(u8) -> u32) -> u32 {
    let (mut newer, mut older) = (0x12A3_FE2D_u32, 0x37AB_E8F9_u32);
    for &byte in name {
        let mut next = older.wrapping_add(newer ^ widen(byte).wrapping_mul(7_152_373));
        if next & 0x8000_0000 != 0 {
            next = next.wrapping_sub(0x7FFF_FFFF);
        }
        (older, newer) = (newer, next);
    }
    newer << 1
}

/// The name in groups of `N` big-endian words, padded with its remaining length in every byte.
fn words<const N: usize>(name: &[u8], widen: impl Fn(u8) -> u32) -> impl Iterator<Item = [u32; N]> {
    name.chunks(4 * N).scan(name.len(), move |left, chunk| {
        // A name has at most 255 bytes: the length fills each byte of the padding.
        let pad = u32::from(u8::try_from(*left).unwrap_or(u8::MAX)) * 0x0101_0101;
        let mut out = [pad; N];
        for (word, bytes) in out.iter_mut().zip(chunk.chunks(4)) {
            *word = bytes.iter().fold(pad, |acc, &b| widen(b).wrapping_add(acc << 8));
        }
        *left -= chunk.len();
        Some(out)
    })
}

fn half_md4(state: &mut [u32; 4], input: &[u32; 8]) {
    type Mix = fn(u32, u32, u32) -> u32;
    let choose: Mix = |x, y, z| z ^ (x & (y ^ z));
    let majority: Mix = |x, y, z| (x & y).wrapping_add((x ^ y) & z);
    let parity: Mix = |x, y, z| x ^ y ^ z;
    let rounds: [(Mix, u32, [usize; 8], [u32; 4]); 3] = [
        (choose, 0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]),
        (majority, 0x5A82_7999, [1, 3, 5, 7, 0, 2, 4, 6], [3, 5, 9, 13]),
        (parity, 0x6ED9_EBA1, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]),
    ];
    let [mut a, mut b, mut c, mut d] = *state;
    for (mix, constant, order, shifts) in rounds {
        for (step, &word) in order.iter().enumerate() {
            let sum = a.wrapping_add(mix(b, c, d)).wrapping_add(input[word]).wrapping_add(constant);
            (a, b, c, d) = (d, sum.rotate_left(shifts[step % 4]), b, c);
        }
    }
    for (old, new) in state.iter_mut().zip([a, b, c, d]) {
        *old = old.wrapping_add(new);
    }
}

fn tea(state: &mut [u32; 4], key: &[u32; 4]) {
    let [mut x, mut y, ..] = *state;
    let mut sum = 0u32;
    for _ in 0..16 {
        sum = sum.wrapping_add(0x9E37_79B9);
        x = x.wrapping_add(
            (y << 4).wrapping_add(key[0]) ^ y.wrapping_add(sum) ^ (y >> 5).wrapping_add(key[1]),
        );
        y = y.wrapping_add(
            (x << 4).wrapping_add(key[2]) ^ x.wrapping_add(sum) ^ (x >> 5).wrapping_add(key[3]),
        );
    }
    state[0] = state[0].wrapping_add(x);
    state[1] = state[1].wrapping_add(y);
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: &str = "ünïcödé-with-a-name-longer-than-thirty-two-bytes-yes";
    const SEED: [u32; 4] = [0x0403_0201, 0x0807_0605, 0x0C0B_0A09, 0x100F_0E0D];

    /// The expected values are what debugfs's `dx_hash` prints.
    #[test]
    fn as_debugfs_says() {
        let check = |version, seed, name: &str, hash| {
            let algorithm = Algorithm::of(version, false).unwrap();
            assert_eq!(name_hash(algorithm, &seed, name.as_bytes()), hash, "{version} {seed:?} {name}");
        };
        check(0, [0; 4], "a", 0xe74b_53e2);
        check(0, [0; 4], "hello", 0x3225_2546);
        check(0, SEED, LONG, 0xc55f_b128);
        check(1, [0; 4], "a", 0xd5fa_7d7a);
        check(1, [0; 4], LONG, 0x3566_9996);
        check(1, SEED, "0123456789abcdef0123456789abcdef", 0xd768_0c2c);
        check(1, SEED, LONG, 0x0e85_5da6);
        check(2, [0; 4], "0123456789abcdef", 0x5a07_88b2);
        check(2, SEED, "hello", 0x1a56_92b6);
        check(2, SEED, LONG, 0xfd90_e198);
    }

    #[test]
    fn sign_of_bytes() {
        let hash =
            |version, unsigned| name_hash(Algorithm::of(version, unsigned).unwrap(), &SEED, "é".as_bytes());
        for family in 0..3 {
            assert_ne!(hash(family, false), hash(family, true), "{family}");
            assert_eq!(hash(family + 3, false), hash(family, true), "{family}");
        }
        assert_eq!(Algorithm::of(6, false), None);
    }
}
