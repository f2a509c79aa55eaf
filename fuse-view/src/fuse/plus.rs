//! Listings that leave alone what the kernel holds already.
//!
//! With each entry that READDIRPLUS gives a node number, the kernel drops the access lists that it has of the file
//! (`fuse_direntplus_link` in its fs/fuse/readdir.c), and `ls -l` then asks for them again, file by file. An entry with
//! node number 0 is a name alone: what the kernel knows of the file stays. fuser cannot send such an entry, so a reply
//! that needs one is written here, in the protocol's own form (`fuse_out_header`, `fuse_direntplus` of the kernel's
//! include/uapi/linux/fuse.h).

use fuser::{FileAttr, FileType, INodeNo};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    fs::File,
    io::{self, Write},
    time::{Duration, SystemTime},
};
use zerocopy::{Immutable, IntoBytes};

/// Files that the kernel holds, by their numbers. It may have dropped some without being told (where a reply found
/// nobody any more): a listing that leaves such a file out costs a LOOKUP, and is right all the same.
#[derive(Default)]
pub struct Known(Mutex<HashMap<u64, u64>>);

impl Known {
    /// Where a number's bit is: numbers in a row are in the same words.
    fn place(id: INodeNo) -> (u64, u64) {
        (id.0 / 64, 1 << (id.0 % 64))
    }

    pub fn insert(&self, id: INodeNo) {
        let (word, bit) = Self::place(id);
        *self.0.lock().entry(word).or_default() |= bit;
    }

    pub fn remove(&self, id: INodeNo) {
        let (word, bit) = Self::place(id);
        let mut words = self.0.lock();
        if let Some(bits) = words.get_mut(&word) {
            *bits &= !bit;
            if *bits == 0 {
                words.remove(&word);
            }
        }
    }

    pub fn contains(&self, id: INodeNo) -> bool {
        let (word, bit) = Self::place(id);
        self.0.lock().get(&word).is_some_and(|bits| bits & bit != 0)
    }
}

/// What a reply tells of an entry but its name.
pub struct Entry<'a> {
    /// Where the listing goes on after it.
    pub next: u64,
    pub ttl: Duration,
    pub attr: &'a FileAttr,
    /// Whether the name alone is told.
    pub known: bool,
}

/// A reply to READDIRPLUS.
#[derive(Default)]
pub struct Listing {
    bytes: Vec<u8>,
    known: Vec<INodeNo>,
}

impl Listing {
    pub fn push(&mut self, name: &[u8], entry: &Entry) {
        if self.bytes.is_empty() {
            self.bytes.resize(size_of::<Header>(), 0);
        }
        let Entry { next, ttl, attr, known } = *entry;
        let mode = type_bits(attr.kind) | u32::from(attr.perm);
        let mut fixed = Fixed {
            number: attr.ino.0,
            next,
            name_len: u32::try_from(name.len()).unwrap_or(u32::MAX),
            kind: mode >> 12,
            ..Fixed::default()
        };
        if known {
            self.known.push(attr.ino);
        } else {
            fixed.node = attr.ino.0;
            fixed.valid = [ttl.as_secs(); 2];
            fixed.valid_nanos = [ttl.subsec_nanos(); 2];
            fixed.attributes = attributes(attr, mode);
        }
        self.bytes.extend_from_slice(fixed.as_bytes());
        self.bytes.extend_from_slice(name);
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }

    /// The files of which the name alone is told.
    pub fn known(&self) -> &[INodeNo] {
        &self.known
    }

    /// Answers request `unique` of the kernel behind `device`.
    ///
    /// # Errors
    /// The kernel's; ENOENT: nobody waits for the answer any more.
    pub fn send(&mut self, mut device: &File, unique: u64) -> io::Result<()> {
        let len = u32::try_from(self.bytes.len()).map_err(io::Error::other)?;
        let head = Header { len, error: 0, unique };
        self.bytes[..size_of::<Header>()].copy_from_slice(head.as_bytes());
        // A reply is one write, taken whole or not at all.
        device.write(&self.bytes).map(drop)
    }
}

/// `fuse_out_header`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Header {
    len: u32,
    error: i32,
    unique: u64,
}

/// `fuse_direntplus`: `fuse_entry_out` and `fuse_dirent`. The name follows.
#[derive(Default, IntoBytes, Immutable)]
#[repr(C)]
struct Fixed {
    node: u64,
    generation: u64,
    /// Of the name and of the attributes, in seconds.
    valid: [u64; 2],
    valid_nanos: [u32; 2],
    attributes: Attributes,
    number: u64,
    next: u64,
    name_len: u32,
    kind: u32,
}

/// `fuse_attr`.
#[derive(Default, IntoBytes, Immutable)]
#[repr(C)]
struct Attributes {
    number: u64,
    size: u64,
    blocks: u64,
    /// Access, modification, change: seconds.
    times: [i64; 3],
    nanos: [u32; 3],
    mode: u32,
    nlink: u32,
    uid: u32,
    gid: u32,
    rdev: u32,
    block_bytes: u32,
    flags: u32,
}

fn attributes(attr: &FileAttr, mode: u32) -> Attributes {
    let times = [attr.atime, attr.mtime, attr.ctime].map(since_epoch);
    Attributes {
        number: attr.ino.0,
        size: attr.size,
        blocks: attr.blocks,
        times: times.map(|(seconds, _)| seconds),
        nanos: times.map(|(_, nanos)| nanos),
        mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        block_bytes: attr.blksize,
        flags: 0,
    }
}

/// The type in a mode.
fn type_bits(kind: FileType) -> u32 {
    match kind {
        FileType::RegularFile => libc::S_IFREG,
        FileType::Directory => libc::S_IFDIR,
        FileType::Symlink => libc::S_IFLNK,
        FileType::CharDevice => libc::S_IFCHR,
        FileType::BlockDevice => libc::S_IFBLK,
        FileType::NamedPipe => libc::S_IFIFO,
        FileType::Socket => libc::S_IFSOCK,
    }
}

/// Seconds, and nanoseconds to add to them.
fn since_epoch(time: SystemTime) -> (i64, u32) {
    let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => (seconds(after), after.subsec_nanos()),
        Err(before) => match before.duration() {
            whole if whole.subsec_nanos() == 0 => (-seconds(whole), 0),
            part => (-seconds(part) - 1, 1_000_000_000 - part.subsec_nanos()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_known_until_it_is_removed() {
        let known = Known::default();
        let ids = [1, 63, 64, 65, 1 << 36 | 7, u64::MAX].map(INodeNo);
        for id in ids {
            assert!(!known.contains(id));
            known.insert(id);
            known.insert(id);
        }
        assert!(ids.iter().all(|id| known.contains(*id)) && !known.contains(INodeNo(2)));
        for id in ids {
            known.remove(id);
            known.remove(id);
            assert!(!known.contains(id));
        }
        assert!(known.0.lock().is_empty(), "no memory for what is not known");
    }

    #[test]
    fn times_before_the_epoch_count_up_within_their_second() {
        let epoch = SystemTime::UNIX_EPOCH;
        let quarter = Duration::from_millis(250);
        assert_eq!(since_epoch(epoch + quarter), (0, 250_000_000));
        assert_eq!(since_epoch(epoch - quarter), (-1, 750_000_000));
        assert_eq!(since_epoch(epoch - Duration::from_secs(2)), (-2, 0));
        assert_eq!(since_epoch(epoch), (0, 0));
    }

    #[test]
    fn structures_have_the_sizes_of_the_protocol() {
        assert_eq!(size_of::<Header>(), 16);
        assert_eq!(size_of::<Attributes>(), 88);
        assert_eq!(size_of::<Fixed>(), 128 + 24);
    }
}
