//! LVM2: the linear volumes that lie on one physical volume.
//!
//! Facts: the on-disk format as LVM2's own documentation and tools show it. A label in one of the first four sectors
//! leads to areas of metadata, each a ring of texts whose header names the current one. Every sum is a CRC-32 with a
//! start of its own.

use super::Place;
use super::text::{Section, Value};
use crate::fs::bytes::{le32, le64};
use crate::{BlockRead, Error, Result, walk};
use std::ops::Range;

const SECTOR: u64 = 512;
/// Bytes of the header of an area of metadata, which the ring of texts lies behind.
const AREA_HEADER: u64 = 512;
/// Largest text that is read; areas are 1 MiB unless asked for otherwise.
const MAX_TEXT_BYTES: u64 = 8 << 20;
/// Areas, of data and of metadata each, that a header may list.
const MAX_AREAS: usize = 8;

/// One logical volume.
pub(super) struct Volume {
    pub name: String,
    /// Name of its group.
    pub group: String,
    pub len: u64,
    /// Where it lies on the physical volume.
    pub place: Place,
}

fn corrupt(what: impl std::fmt::Display) -> Error {
    Error::Corrupt(format!("LVM2: {what}"))
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0xF597_A6CF, |crc, &byte| {
        (0..8).fold(
            crc ^ u32::from(byte),
            |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 },
        )
    })
}

fn bytes(dev: &dyn BlockRead, at: u64, len: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len).map_err(corrupt)?];
    dev.read_at(at, &mut bytes)?;
    Ok(bytes)
}

/// The visible volumes on `dev`, by name; None: it is no physical volume.
///
/// # Errors
/// [`Error::Corrupt`] where the metadata contradicts itself or the device, [`Error::Unsupported`] where there is none.
pub(super) fn volumes(dev: &dyn BlockRead) -> Result<Option<Vec<Volume>>> {
    let Some(label) = label(dev)? else { return Ok(None) };
    let header = Header::parse(&label)?;
    let text = newest(dev, &header)?;
    let (group, metadata) = text.sections().next().ok_or_else(|| corrupt("the metadata names no group"))?;
    let group = Group::new(group, metadata, &header)?;
    let mut found = Vec::new();
    for (name, volume) in metadata.section("logical_volumes").into_iter().flat_map(Section::sections) {
        if has_word(volume.list("status")?, "VISIBLE") {
            found.push(group.volume(dev.len(), name, volume)?);
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Some(found))
}

fn has_word(list: &[Value], word: &str) -> bool {
    list.iter().any(|value| matches!(value, Value::Text(text) if text == word))
}

/// The sector with a label.
fn label(dev: &dyn BlockRead) -> Result<Option<Vec<u8>>> {
    for sector in (0..4).filter(|sector| (sector + 1) * SECTOR <= dev.len()) {
        let label = bytes(dev, sector * SECTOR, SECTOR)?;
        if label.starts_with(b"LABELONE") && &label[24..32] == b"LVM2 001" {
            if sum(&label[20..]) != le32(&label, 16) || le64(&label, 8) != sector {
                return Err(corrupt("the label has a wrong checksum, or is that of another sector"));
            }
            return Ok(Some(label));
        }
    }
    Ok(None)
}

/// The header of a physical volume.
struct Header {
    id: String,
    /// Areas of metadata.
    areas: Vec<Range<u64>>,
}

impl Header {
    fn parse(label: &[u8]) -> Result<Self> {
        let at = usize::try_from(le32(label, 20)).map_err(corrupt)?;
        let header = label
            .get(at..)
            .filter(|h| h.len() >= 40)
            .ok_or_else(|| corrupt("the header leaves its sector"))?;
        let id = String::from_utf8_lossy(&header[..32]).into_owned();
        // Two lists of places, each ended by zeros: of data, of metadata.
        let mut places = header[40..].chunks_exact(16).map(|place| (le64(place, 0), le64(place, 8)));
        let mut list =
            || -> Vec<_> { places.by_ref().take_while(|place| *place != (0, 0)).take(MAX_AREAS).collect() };
        list();
        let areas = list().into_iter().map(|(at, len)| at..at.saturating_add(len)).collect();
        Ok(Self { id, areas })
    }
}

/// The metadata with the highest number of the areas that can be read.
fn newest(dev: &dyn BlockRead, header: &Header) -> Result<Section> {
    let mut best: Option<(u64, Section)> = None;
    let mut why = None;
    for area in &header.areas {
        match text_of(dev, area) {
            Ok(Some((number, text))) if best.as_ref().is_none_or(|(best, _)| number > *best) => {
                best = Some((number, text));
            }
            Ok(_) => {}
            Err(error @ Error::Io { .. }) => return Err(error),
            Err(error) => why = Some(error),
        }
    }
    match (best, why) {
        (Some((_, text)), _) => Ok(text),
        (None, Some(why)) => Err(why),
        (None, None) => Err(Error::Unsupported(
            "LVM2 (a physical volume without metadata: it belongs to no group, or other disks of the group have it)".into(),
        )),
    }
}

/// The current text of an area and its number; None: it has none.
fn text_of(dev: &dyn BlockRead, area: &Range<u64>) -> Result<Option<(u64, Section)>> {
    if area.end > dev.len() || area.end.saturating_sub(area.start) <= AREA_HEADER {
        return Err(corrupt("an area of metadata lies outside of the device"));
    }
    let header = bytes(dev, area.start, AREA_HEADER)?;
    if &header[4..20] != b" LVM2 x[5A%r0N*>" || sum(&header[4..]) != le32(&header, 0) {
        return Err(corrupt("the header of an area of metadata is damaged"));
    }
    let (at, len) = (le64(&header, 40), le64(&header, 48));
    let ring = (area.end - area.start) - AREA_HEADER;
    if at == 0 || le32(&header, 60) & 1 != 0 {
        return Ok(None);
    }
    if at < AREA_HEADER || at - AREA_HEADER >= ring || len > ring.min(MAX_TEXT_BYTES) {
        return Err(corrupt("the metadata leaves its area"));
    }
    let first = len.min(AREA_HEADER + ring - at);
    let mut text = bytes(dev, area.start + at, first)?;
    text.extend(bytes(dev, area.start + AREA_HEADER, len - first)?);
    if sum(&text) != le32(&header, 56) {
        return Err(corrupt("the metadata has a wrong checksum"));
    }
    let text = Section::parse(&text)?;
    let number = text.sections().next().and_then(|(_, group)| group.number("seqno").ok());
    Ok(Some((number.unwrap_or(0), text)))
}

/// A group, as one of its physical volumes needs it.
struct Group<'a> {
    name: &'a str,
    extent_bytes: u64,
    /// Name of the physical volume that is read, and where its extents begin.
    own: (&'a str, u64),
}

/// What one segment of a volume says.
enum Segment {
    /// Where it lies here.
    Here(Range<u64>),
    /// Why it cannot be read.
    Elsewhere(String),
}

impl<'a> Group<'a> {
    fn new(name: &'a str, metadata: &'a Section, header: &Header) -> Result<Self> {
        let sectors = |section: &Section, name| {
            section.number(name)?.checked_mul(SECTOR).ok_or_else(|| corrupt(format!("{name} is too large")))
        };
        let extent_bytes = sectors(metadata, "extent_size")?;
        let is_own = |(_, volume): &(&str, &Section)| {
            volume.text("id").is_ok_and(|id| id.replace('-', "") == header.id)
        };
        let physical =
            metadata.section("physical_volumes").into_iter().flat_map(Section::sections).find(is_own);
        let (own, volume) =
            physical.ok_or_else(|| corrupt("the metadata does not name this physical volume"))?;
        Ok(Self { name, extent_bytes, own: (own, sectors(volume, "pe_start")?) })
    }

    fn volume(&self, device_bytes: u64, name: &str, volume: &Section) -> Result<Volume> {
        if !walk::is_plain_name(name.as_bytes()) {
            return Err(corrupt(format!("a volume is called {name}")));
        }
        let mut segments: Vec<_> =
            volume.sections().filter(|(name, _)| name.starts_with("segment")).map(|(_, s)| s).collect();
        segments.sort_by_key(|segment| segment.number("start_extent").unwrap_or(u64::MAX));
        let (mut extents, mut ranges, mut why) = (0u64, Vec::new(), None);
        for segment in segments {
            if segment.number("start_extent")? != extents {
                return Err(corrupt(format!("the segments of volume {name} leave a gap or overlap")));
            }
            let count = segment.number("extent_count")?;
            extents =
                extents.checked_add(count).ok_or_else(|| corrupt(format!("volume {name} is too long")))?;
            match self.segment(device_bytes, segment, count)? {
                Segment::Here(range) => ranges.push(range),
                Segment::Elsewhere(reason) => why = Some(reason),
            }
        }
        let len = self.bytes(extents)?;
        let place = match why {
            None => Place::Pieces(ranges),
            Some(why) => Place::Refused(format!("LVM2 volume {}/{name} {why}", self.name)),
        };
        Ok(Volume { name: name.to_owned(), group: self.name.to_owned(), len, place })
    }

    fn bytes(&self, extents: u64) -> Result<u64> {
        extents.checked_mul(self.extent_bytes).ok_or_else(|| corrupt("a volume is longer than any disk"))
    }

    fn segment(&self, device_bytes: u64, segment: &Section, count: u64) -> Result<Segment> {
        let kind = segment.text("type")?;
        if kind != "striped" && kind != "linear" {
            return Ok(Segment::Elsewhere(format!("is of type {kind}, which is not read; linear ones are")));
        }
        if segment.number("stripe_count")? != 1 {
            return Ok(Segment::Elsewhere("is striped, which is not read; linear ones are".into()));
        }
        let [Value::Text(on), Value::Number(first)] = segment.list("stripes")? else {
            return Err(corrupt("a segment that lies nowhere"));
        };
        if on != self.own.0 {
            return Ok(Segment::Elsewhere(format!("lies on several disks: {on}, too")));
        }
        let start = self.bytes(*first)?.checked_add(self.own.1);
        let range = start.and_then(|start| Some(start..start.checked_add(self.bytes(count).ok()?)?));
        match range.filter(|range| range.end <= device_bytes) {
            Some(range) => Ok(Segment::Here(range)),
            None => Err(corrupt("a segment lies outside of the device")),
        }
    }
}
