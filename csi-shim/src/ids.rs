//! Ids of volumes, snapshots and group snapshots: `v1:<host-uuid>:<object-uuid>`.
//!
//! The host's uuid is the id of the agent's pool. The object's is a version 8 UUID (RFC 9562): 48 bits that check the
//! rest, 12 bits that say what it is, and 62 bits of its number in the pool. An id can be taken apart without a record,
//! and a made-up one is told from one that was given out.

use std::fmt;

/// What an id stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A volume, by its number in the pool.
    Volume,
    /// A snapshot, by its number in the pool.
    Snapshot,
    /// A group of snapshots, by a hash of its name.
    Group,
}

impl Kind {
    fn tag(self) -> u128 {
        match self {
            Self::Volume => 1,
            Self::Snapshot => 2,
            Self::Group => 3,
        }
    }
}

const NUMBER_BITS: u32 = 62;

/// A pool, by its id of 128 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host(u128);

impl Host {
    /// From the 32 hex digits that the agent tells.
    pub fn parse(pool_id: &str) -> Option<Self> {
        hex(pool_id).map(Self)
    }
}

/// An id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Id {
    /// Where the object is.
    pub host: Host,
    /// What it is.
    pub kind: Kind,
    /// Its number, less than 2⁶².
    pub number: u64,
}

impl Id {
    /// The group snapshot that the orchestrator calls `name`.
    pub fn of_group(host: Host, name: &str) -> Self {
        let digest = blake3::hash(name.as_bytes());
        let (first, _) = digest.as_bytes().split_at(8);
        let number =
            first.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)) >> (64 - NUMBER_BITS);
        Self { host, kind: Kind::Group, number }
    }

    /// Takes an id of that kind apart; None: it never was one.
    pub fn parse(kind: Kind, text: &str) -> Option<Self> {
        let (host, object) = text.strip_prefix("v1:")?.split_once(':')?;
        let host = Host(from_uuid(host)?);
        let number = u64::try_from(from_uuid(object)? & ((1 << NUMBER_BITS) - 1)).ok()?;
        let id = Self { host, kind, number };
        (id.to_string() == text).then_some(id)
    }

    fn object(&self) -> u128 {
        let number = u128::from(self.number) & ((1 << NUMBER_BITS) - 1);
        let mut hasher = blake3::Hasher::new_derive_key("cowslip csi object id v1");
        for part in [self.host.0, self.kind.tag(), number] {
            hasher.update(&part.to_le_bytes());
        }
        let check = hasher.finalize();
        let check = check.as_bytes()[..6].iter().fold(0u128, |check, byte| check << 8 | u128::from(*byte));
        check << 80 | 8 << 76 | self.kind.tag() << 64 | 2 << NUMBER_BITS | number
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v1:{}:{}", to_uuid(self.host.0), to_uuid(self.object()))
    }
}

fn to_uuid(bits: u128) -> String {
    let hex = format!("{bits:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

fn from_uuid(text: &str) -> Option<u128> {
    let groups: Vec<&str> = text.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    if lengths != [8, 4, 4, 4, 12] {
        return None;
    }
    hex(&groups.concat())
}

fn hex(text: &str) -> Option<u128> {
    let digits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    digits.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

/// The pool that whatever has this id is in; None: it is no id.
pub fn pool_of(id: &str) -> Option<&str> {
    let (pool, _) = id.strip_prefix("v1:")?.split_once(':')?;
    from_uuid(pool).map(|_| pool)
}

/// The hash by which an orchestrator's name is found again, 64 hex digits.
pub fn hash_of_name(name: &str) -> String {
    blake3::hash(name.as_bytes()).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        Host::parse("0123456789abcdef0123456789abcdef").unwrap()
    }

    #[test]
    fn ids_come_back_as_they_were() {
        for number in [1, 7, 1 << 40, (1 << 62) - 1] {
            for kind in [Kind::Volume, Kind::Snapshot, Kind::Group] {
                let id = Id { host: host(), kind, number };
                let text = id.to_string();
                assert!(text.starts_with("v1:01234567-89ab-cdef-0123-456789abcdef:"), "{text}");
                assert_eq!(text.len(), 76);
                assert_eq!(Id::parse(kind, &text), Some(id));
            }
        }
    }

    #[test]
    fn the_object_is_a_version_8_uuid() {
        let text = Id { host: host(), kind: Kind::Volume, number: 5 }.to_string();
        let uuid = &text[40..];
        assert_eq!(&uuid[14..18], "8001");
        assert_eq!(&uuid[19..], "8000-000000000005");
    }

    #[test]
    fn what_was_never_given_out_is_no_id() {
        let text = Id { host: host(), kind: Kind::Volume, number: 5 }.to_string();
        assert_eq!(Id::parse(Kind::Snapshot, &text), None, "another kind");
        assert_eq!(Id::parse(Kind::Volume, &text.replace("0005", "0006")), None, "the check fails");
        assert_eq!(Id::parse(Kind::Volume, &text.to_uppercase()), None);
        for bad in ["", "v1", "v1::", "v2:a:b", "../../etc/passwd", "v1:../..:x", "vol\0", "v1:é:é"] {
            assert_eq!(Id::parse(Kind::Volume, bad), None, "{bad:?}");
        }
        assert_eq!(Id::parse(Kind::Volume, &"v1:".repeat(4 << 20)), None);
        assert_eq!(Id::parse(Kind::Volume, &text.replace('8', "é")), None);
    }

    #[test]
    fn a_group_has_the_id_of_its_name() {
        let id = Id::of_group(host(), "g");
        assert_eq!(Id::of_group(host(), "g"), id);
        assert_ne!(Id::of_group(host(), "h"), id);
        assert_eq!(Id::parse(Kind::Group, &id.to_string()), Some(id));
    }
}
