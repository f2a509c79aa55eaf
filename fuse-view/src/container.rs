//! What an image is made of: one bare file system, partitions, logical volumes, or neither.
//!
//! Every range a table names is checked against the image before it is used; a table that lies is
//! [`Error::Corrupt`] as a whole, for what it says of one partition is no better than what it says of another.

mod lvm;
mod text;
mod unplaced;

use crate::fs::{Format, bytes, detect};
use crate::source::{Joined, Slice};
use crate::{BlockRead, Error, Result};
use bytes::{le16, le32, u8_at};
use gptman::{GPTHeader, GPTPartitionEntry};
use serde::{Deserialize, Serialize};
use std::io::Cursor;
use std::ops::Range;
use std::sync::Arc;

/// MBR tables count in sectors of 512 bytes.
const MBR_SECTOR: u64 = 512;
/// Logical partitions that are looked at, as many as Linux numbers without trouble.
const MAX_LOGICAL: u32 = 128;
/// Entries of a GPT that are read; 128 is what every tool writes.
const MAX_GPT_ENTRIES: u32 = 4096;
/// Bytes of a GPT entry; the standard allows more, nothing writes it.
const GPT_ENTRY: u32 = 128;

/// One partition of a table, or one logical volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// Number as Linux counts: `p1` is 1; logical ones start at 5. Logical volumes have those behind all partitions.
    pub number: u32,
    /// The directory that it is shown as: `p1`; the name of a logical volume, after `p1-` if it lies in a partition.
    pub directory: String,
    /// First byte; of a logical volume in several pieces that of none.
    pub offset: u64,
    /// Length in bytes, never 0.
    pub len: u64,
    /// Name that a GPT gives, group and name of a logical volume, otherwise empty.
    pub name: String,
    /// What it is made of.
    pub place: Place,
}

/// Where the bytes of a partition or of a logical volume are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// These ranges of the image, one behind the other.
    Pieces(Vec<Range<u64>>),
    /// Not to be had; why.
    Refused(String),
}

impl Place {
    /// The first byte of it that is anywhere.
    fn start(&self) -> u64 {
        match self {
            Self::Pieces(pieces) => pieces.first().map_or(0, |piece| piece.start),
            Self::Refused(_) => 0,
        }
    }

    /// Of a part of an image that begins at byte `start`: the same on the image.
    fn moved(self, start: u64) -> Self {
        match self {
            Self::Pieces(pieces) => {
                Self::Pieces(pieces.into_iter().map(|p| p.start + start..p.end + start).collect())
            }
            refused @ Self::Refused(_) => refused,
        }
    }
}

impl Partition {
    /// A partition of a table.
    pub fn new(number: u32, offset: u64, len: u64, name: String) -> Self {
        let whole = offset..offset + len;
        let place = Place::Pieces(vec![whole]);
        Self { number, directory: format!("p{number}"), offset, len, name, place }
    }

    /// Its bytes on `image`. Those of one that is refused tell why at every read.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where it leaves the image.
    pub fn source(&self, image: &Arc<dyn BlockRead>) -> Result<Arc<dyn BlockRead>> {
        Ok(match &self.place {
            Place::Pieces(pieces) => match &pieces[..] {
                [piece] => Arc::new(Slice::new(image.clone(), piece.clone())?),
                _ => Arc::new(Joined::new(image.clone(), pieces.clone())?),
            },
            Place::Refused(why) => Arc::new(Refused { why: why.clone(), len: self.len }),
        })
    }

    /// Whether its bytes follow each other from `offset` on.
    pub fn is_in_one_piece(&self) -> bool {
        matches!(&self.place, Place::Pieces(pieces) if pieces.len() == 1)
    }
}

/// What an image holds.
pub enum Contents {
    /// One file system (or a layer that is refused by name): pass the image itself to [`crate::fs::open`].
    FileSystem(Format),
    /// Partitions in the order of their numbers, each to be passed to [`open`] or [`crate::fs::open`].
    Partitions(Vec<(Partition, Arc<dyn BlockRead>)>),
    /// Nothing that is known.
    Raw,
}

/// Tells what `dev` holds.
///
/// # Errors
/// [`Error::Corrupt`] for a partition table that contradicts itself or the image, and what reading `dev` gives.
pub fn open(dev: &Arc<dyn BlockRead>) -> Result<Contents> {
    let gpt = gpt(&**dev)?;
    if gpt.is_none() {
        if let Some(volumes) = lvm::volumes(&**dev)? {
            return placed(dev, numbered(volumes, "", 1, 0));
        }
        // The boot sector of a FAT is signed like a table: a file system that is known decides.
        if let Some(format) = detect(&**dev)? {
            return Ok(Contents::FileSystem(format));
        }
    }
    let partitions = match gpt {
        Some(found) => found,
        None => mbr(&**dev)?,
    };
    if partitions.is_empty() {
        return Ok(Contents::Raw);
    }
    placed(dev, with_volumes(dev, partitions)?)
}

fn placed(dev: &Arc<dyn BlockRead>, partitions: Vec<Partition>) -> Result<Contents> {
    let with_source = |part: Partition| part.source(dev).map(|source| (part, source));
    partitions.into_iter().map(with_source).collect::<Result<_>>().map(Contents::Partitions)
}

/// The partitions, with the logical volumes in them in place of those that hold such.
fn with_volumes(dev: &Arc<dyn BlockRead>, partitions: Vec<Partition>) -> Result<Vec<Partition>> {
    let mut next = partitions.iter().map(|partition| partition.number).max().unwrap_or(0).saturating_add(1);
    let mut parts = Vec::with_capacity(partitions.len());
    for part in partitions {
        match lvm::volumes(&*part.source(dev)?) {
            Ok(None) => parts.push(part),
            Ok(Some(volumes)) => {
                let volumes = numbered(volumes, &format!("{}-", part.directory), next, part.offset);
                next = next.saturating_add(u32::try_from(volumes.len()).unwrap_or(u32::MAX));
                parts.extend(volumes);
            }
            Err(error @ Error::Io { .. }) => return Err(error),
            // The other partitions are none the worse for it.
            Err(error) => parts.push(Partition { place: Place::Refused(error.to_string()), ..part }),
        }
    }
    Ok(parts)
}

/// Logical volumes as partitions, numbered from `first` on; the physical one starts at byte `start` of the image.
fn numbered(volumes: Vec<lvm::Volume>, prefix: &str, first: u32, start: u64) -> Vec<Partition> {
    let part = |(number, volume): (u32, lvm::Volume)| {
        let place = volume.place.moved(start);
        Partition {
            number,
            directory: format!("{prefix}{}", volume.name),
            offset: place.start(),
            len: volume.len,
            name: format!("{}/{}", volume.group, volume.name),
            place,
        }
    };
    (first..).zip(volumes).map(part).collect()
}

/// A partition or volume that is there and cannot be read: whoever opens it is told why.
struct Refused {
    why: String,
    len: u64,
}

impl BlockRead for Refused {
    fn read_at(&self, _offset: u64, _buf: &mut [u8]) -> Result<()> {
        Err(Error::Unsupported(self.why.clone()))
    }

    fn len(&self) -> u64 {
        self.len
    }
}

/// Where a path leads on a source that may have partitions.
pub struct Inside {
    /// The file system.
    pub view: Arc<dyn crate::FsView>,
    /// The path in it.
    pub path: Vec<u8>,
    /// What comes before it on the source: empty, or `/p1`.
    pub prefix: Vec<u8>,
    /// Byte of the source at which the file system starts. Where it is in several pieces, the file system tells no
    /// places.
    pub start: u64,
}

/// Opens the file system that `path` leads into: the only one, or the partition that is its first component.
///
/// # Errors
/// [`Error::NotFound`] where there is no such partition, [`Error::Unsupported`] where there is no file system that
/// is read, and as [`open`].
pub fn locate(dev: &Arc<dyn BlockRead>, path: &[u8]) -> Result<Inside> {
    let table = match open(dev)? {
        Contents::FileSystem(_) => {
            let view = crate::fs::open(dev.clone())?;
            return Ok(Inside { view, path: path.to_vec(), prefix: Vec::new(), start: 0 });
        }
        Contents::Partitions(table) => table,
        Contents::Raw => return Err(Error::Unsupported("no file system recognised".into())),
    };
    let mut parts = path.splitn(3, |&byte| byte == b'/').skip(1);
    let (first, rest) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let named = |(partition, _): &&(Partition, _)| partition.directory.as_bytes() == first;
    let Some((partition, slice)) = table.iter().find(named) else {
        let names: Vec<&str> = table.iter().map(|(partition, _)| &partition.directory[..]).collect();
        return Err(Error::NotFound(format!(
            "{} is not a partition; there are {}",
            crate::walk::show(first),
            names.join(", ")
        )));
    };
    let view = crate::fs::open(slice.clone())?;
    Ok(Inside {
        view: if partition.is_in_one_piece() { view } else { Arc::new(unplaced::Unplaced(view)) },
        path: [b"/", rest].concat(),
        prefix: [b"/", first].concat(),
        start: partition.offset,
    })
}

/// The partitions of a GPT or MBR on `dev`; empty: there is no table.
///
/// # Errors
/// As [`open`].
pub fn partitions(dev: &dyn BlockRead) -> Result<Vec<Partition>> {
    match gpt(dev)? {
        Some(found) => Ok(found),
        None => mbr(dev),
    }
}

fn corrupt(what: impl std::fmt::Display) -> Error {
    Error::Corrupt(format!("partition table: {what}"))
}

/// A partition if the image holds all of it.
fn checked(
    dev: &dyn BlockRead,
    number: u32,
    first: u64,
    count: u64,
    sector: u64,
    name: String,
) -> Result<Partition> {
    let range = first
        .checked_mul(sector)
        .zip(count.checked_mul(sector))
        .filter(|(offset, len)| *len > 0 && offset.checked_add(*len).is_some_and(|end| end <= dev.len()));
    match range {
        Some((offset, len)) if offset > 0 => Ok(Partition::new(number, offset, len, name)),
        _ => Err(corrupt(format!(
            "partition {number} (sector {first}, {count} sectors of {sector} bytes) is not within the {} bytes of the image",
            dev.len()
        ))),
    }
}

/// The boot sector, if it carries the signature of one.
fn boot_sector(dev: &dyn BlockRead) -> Result<Option<[u8; 512]>> {
    if dev.len() < MBR_SECTOR {
        return Ok(None);
    }
    let mut sector = [0; 512];
    dev.read_at(0, &mut sector)?;
    Ok((le16(&sector, 510) == 0xAA55).then_some(sector))
}

/// The partitions of a GPT; None: there is none.
fn gpt(dev: &dyn BlockRead) -> Result<Option<Vec<Partition>>> {
    let mut why = None;
    for sector in [512u64, 4096] {
        let last = (dev.len() / sector).saturating_sub(1);
        for lba in [1, last] {
            // The copy at the end counts only where the boot sector says that this is a GPT: it outlives reformatting.
            if lba != 1 && !is_protective(dev)? {
                continue;
            }
            match gpt_at(dev, lba, sector) {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => {}
                Err(e @ Error::Io { .. }) => return Err(e),
                Err(e) => {
                    why.get_or_insert(e);
                }
            }
        }
    }
    match why {
        Some(e) if is_protective(dev)? => Err(e),
        None if is_protective(dev)? => Err(corrupt("the boot sector announces a GPT, and there is none")),
        _ => Ok(None),
    }
}

fn is_protective(dev: &dyn BlockRead) -> Result<bool> {
    Ok(boot_sector(dev)?.is_some_and(|sector| mbr_entries(&sector).iter().any(|e| e.kind == 0xEE)))
}

/// The GPT whose header is in sector `lba`; None: no header there.
fn gpt_at(dev: &dyn BlockRead, lba: u64, sector: u64) -> Result<Option<Vec<Partition>>> {
    let at = lba.checked_mul(sector).filter(|at| at.checked_add(sector).is_some_and(|end| end <= dev.len()));
    let Some(at) = at else { return Ok(None) };
    // What decodes it reads all of its structure in memory, with padding that is not on disk.
    let mut raw = [0; 512];
    dev.read_at(at, &mut raw)?;
    if !raw.starts_with(b"EFI PART") {
        return Ok(None);
    }
    let header =
        GPTHeader::read_from(&mut Cursor::new(&raw[..])).map_err(|e| corrupt(format!("GPT header: {e}")))?;
    let entries = gpt_entries(dev, &header, sector)?;
    let mut found = Vec::new();
    for (number, entry) in (1..).zip(&entries).filter(|(_, entry)| entry.is_used()) {
        let count = entry.size().ok().filter(|_| entry.ending_lba < u64::MAX);
        let count = count.ok_or_else(|| corrupt(format!("partition {number} ends before it starts")))?;
        let name = entry.partition_name.as_str().to_string();
        found.push(checked(dev, number, entry.starting_lba, count, sector, name)?);
    }
    Ok(Some(found))
}

/// The entries of a GPT, their checksum verified.
fn gpt_entries(dev: &dyn BlockRead, header: &GPTHeader, sector: u64) -> Result<Vec<GPTPartitionEntry>> {
    let count = header.number_of_partition_entries;
    if header.size_of_partition_entry != GPT_ENTRY || count > MAX_GPT_ENTRIES {
        return Err(corrupt(format!("a GPT of {count} entries of {} bytes", header.size_of_partition_entry)));
    }
    let len = u64::from(count) * u64::from(GPT_ENTRY);
    let at = header.partition_entry_lba.checked_mul(sector);
    let at = at.filter(|at| at.checked_add(len).is_some_and(|end| end <= dev.len()));
    let at = at.ok_or_else(|| corrupt("the entries of the GPT are outside of the image"))?;
    let mut raw = vec![0; usize::try_from(len).map_err(corrupt)?];
    dev.read_at(at, &mut raw)?;
    // As with the header: the last entry is decoded from more than its bytes.
    raw.resize(raw.len() + 512, 0);
    // Read from memory, where the array starts at sector 0.
    let mut header = header.clone();
    header.partition_entry_lba = 0;
    header.read_partitions(&mut Cursor::new(raw), sector).map_err(|e| corrupt(format!("GPT entries: {e}")))
}

/// One of the four entries of a boot sector.
struct MbrEntry {
    bootable: u8,
    kind: u8,
    first: u64,
    count: u64,
}

impl MbrEntry {
    fn is_used(&self) -> bool {
        self.kind != 0 && self.count != 0
    }

    fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0F | 0x85)
    }
}

fn mbr_entries(sector: &[u8; 512]) -> [MbrEntry; 4] {
    [446, 462, 478, 494].map(|at| MbrEntry {
        bootable: u8_at(sector, at),
        kind: u8_at(sector, at + 4),
        first: u64::from(le32(sector, at + 8)),
        count: u64::from(le32(sector, at + 12)),
    })
}

/// The partitions of an MBR, logical ones included; empty: there is none.
fn mbr(dev: &dyn BlockRead) -> Result<Vec<Partition>> {
    let Some(sector) = boot_sector(dev)? else { return Ok(Vec::new()) };
    let entries = mbr_entries(&sector);
    // Boot code without a table is signed as well; the boot flags tell them apart.
    if entries.iter().any(|e| e.bootable & 0x7F != 0) || !entries.iter().any(MbrEntry::is_used) {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    let mut logical = Vec::new();
    for (number, entry) in (1..).zip(&entries).filter(|(_, e)| e.is_used()) {
        let whole = checked(dev, number, entry.first, entry.count, MBR_SECTOR, String::new())?;
        if entry.is_extended() {
            logical_partitions(dev, entry, &mut logical)?;
        } else {
            found.push(whole);
        }
    }
    found.append(&mut logical);
    Ok(found)
}

/// Follows the chain of boot records in an extended partition.
fn logical_partitions(dev: &dyn BlockRead, extended: &MbrEntry, found: &mut Vec<Partition>) -> Result<()> {
    let end = extended.first + extended.count;
    let mut record = extended.first;
    let mut seen = 0;
    loop {
        seen += 1;
        if seen > MAX_LOGICAL {
            return Err(corrupt(format!(
                "more than {MAX_LOGICAL} logical partitions, or a chain that bites its tail"
            )));
        }
        let mut sector = [0; 512];
        dev.read_at(record * MBR_SECTOR, &mut sector)?;
        if le16(&sector, 510) != 0xAA55 {
            return Err(corrupt(format!("no boot record of a logical partition in sector {record}")));
        }
        let [part, link, ..] = mbr_entries(&sector);
        if part.is_used() {
            let number = 5 + u32::try_from(found.len()).map_err(corrupt)?;
            let first = record + part.first;
            if first + part.count > end {
                return Err(corrupt(format!("logical partition {number} leaves the extended one")));
            }
            found.push(checked(dev, number, first, part.count, MBR_SECTOR, String::new())?);
        }
        if !link.is_used() || !link.is_extended() {
            return Ok(());
        }
        // Links count from the start of the extended partition, partitions from their own record.
        record = extended.first + link.first;
        if record >= end {
            return Err(corrupt("a chain of logical partitions leaves the extended one"));
        }
    }
}
