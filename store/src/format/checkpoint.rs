//! The checkpoint: catalog, roots and the current slots of the segment table, in a chain of pages that is
//! written new each time. A page's checksum stands in the page before it, the first one's in the superblock.

use super::node::{Child, Root};
use super::record::{consistency_code, consistency_from, get_labels, get_time, put_labels, put_time};
use super::{Reader, Writer, crc};
use crate::catalog::{Catalog, Kind, Version, VolumeRecord};
use crate::types::{BLOCK, Epoch, Phys, VersionId, VolumeId};
use crate::{Error, Result};

/// Bytes of the checkpoint in a page: next page 8, its checksum 4, length 4, then these.
pub const PAGE_PAYLOAD: usize = BLOCK - 16;

/// What a checkpoint holds.
pub struct Checkpoint {
    /// Its number.
    pub number: u64,
    /// Bit i: slot of page i of the segment table.
    pub slots: Vec<u8>,
    /// Names, sizes, versions, roots.
    pub catalog: Catalog,
}

fn put_version(w: &mut Writer, v: &Version) {
    w.u64(v.id.0);
    w.u64(v.parent.map_or(0, |p| p.0));
    w.u64(v.epoch.0);
    w.u64(v.volume.0);
    w.u64(v.size_blocks);
    w.u64(v.mapped_blocks);
    w.u64(v.cursor);
    w.u8(v.root.height);
    w.0.extend_from_slice(&v.root.child.pack());
    w.u8(u8::from(v.doomed));
    match &v.kind {
        Kind::Head => w.u8(0),
        Kind::Snapshot { name, created_at, consistency, labels } => {
            w.u8(1);
            w.string(name);
            put_time(w, *created_at);
            w.u8(consistency_code(*consistency));
            put_labels(w, labels);
        }
    }
}

fn get_version(r: &mut Reader<'_>) -> Result<Version> {
    let id = VersionId(r.u64()?);
    let parent = Some(r.u64()?).filter(|p| *p != 0).map(VersionId);
    let epoch = Epoch(r.u64()?);
    let volume = VolumeId(r.u64()?);
    let (size_blocks, mapped_blocks, cursor) = (r.u64()?, r.u64()?, r.u64()?);
    let height = r.u8()?;
    let child = Child::unpack(r.take(16)?.try_into().expect("16 bytes")).map_err(Error::damaged)?;
    let doomed = r.u8()? != 0;
    if height > super::node::MAX_HEIGHT {
        return Err(Error::damaged(format!("version {} has a map of height {height}", id.0)));
    }
    let kind = match r.u8()? {
        0 => Kind::Head,
        1 => Kind::Snapshot {
            name: r.string()?,
            created_at: get_time(r)?,
            consistency: consistency_from(r.u8()?)?,
            labels: get_labels(r)?,
        },
        code => return Err(Error::damaged(format!("version {} has the unknown kind {code}", id.0))),
    };
    let root = Root { height, child };
    Ok(Version { id, parent, epoch, volume, size_blocks, mapped_blocks, cursor, root, doomed, kind })
}

fn put_volume(w: &mut Writer, v: &VolumeRecord) {
    w.u64(v.id.0);
    w.u64(v.head.map_or(0, |h| h.0));
    w.u64(v.origin.map_or(0, |o| o.0));
    put_time(w, v.created_at);
    w.u8(u8::from(v.attached));
    w.string(&v.name);
    put_labels(w, &v.labels);
}

fn get_volume(r: &mut Reader<'_>) -> Result<VolumeRecord> {
    Ok(VolumeRecord {
        id: VolumeId(r.u64()?),
        head: Some(r.u64()?).filter(|h| *h != 0).map(VersionId),
        origin: Some(r.u64()?).filter(|o| *o != 0).map(VersionId),
        created_at: get_time(r)?,
        attached: r.u8()? != 0,
        name: r.string()?,
        labels: get_labels(r)?,
    })
}

impl Checkpoint {
    /// The bytes, to be cut into pages.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.u64(self.number);
        w.u64(self.catalog.next_id);
        w.u64(self.catalog.next_epoch);
        w.u32(u32::try_from(self.slots.len()).expect("a pool has at most 2^30 segments"));
        w.0.extend_from_slice(&self.slots);
        w.u32(u32::try_from(self.catalog.volumes.len()).expect("volumes fit 32 bits"));
        self.catalog.volumes.values().for_each(|v| put_volume(&mut w, v));
        w.u32(u32::try_from(self.catalog.versions.len()).expect("versions fit 32 bits"));
        self.catalog.versions.values().for_each(|v| put_version(&mut w, v));
        w.0
    }

    /// The opposite of [`Checkpoint::encode`]; the catalog is checked to be a forest of known versions.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let r = &mut Reader::new(bytes, "the checkpoint");
        let number = r.u64()?;
        let (next_id, next_epoch) = (r.u64()?, r.u64()?);
        let slot_bytes = usize::try_from(r.u32()?).expect("64-bit host");
        let slots = r.take(slot_bytes)?.to_vec();
        let mut catalog = Catalog::default();
        (catalog.next_id, catalog.next_epoch) = (next_id, next_epoch);
        for _ in 0..r.u32()? {
            catalog.insert_volume(get_volume(r)?);
        }
        for _ in 0..r.u32()? {
            catalog.insert_version(get_version(r)?);
        }
        catalog.verify()?;
        Ok(Self { number, slots, catalog })
    }
}

/// Builds page `index` of a chain: the page's bytes from `payload`, pointing to `next`.
pub fn write_page(payload: &[u8], next: Option<(Phys, u32)>) -> [u8; BLOCK] {
    let mut page = [0; BLOCK];
    let (p, sum) = next.unwrap_or_default();
    page[..8].copy_from_slice(&p.0.to_le_bytes());
    page[8..12].copy_from_slice(&sum.to_le_bytes());
    page[12..16].copy_from_slice(&u32::try_from(payload.len()).expect("fits a page").to_le_bytes());
    page[16..16 + payload.len()].copy_from_slice(payload);
    page
}

/// Takes a page apart: its payload and the next page.
pub fn read_page(page: &[u8; BLOCK], sum: u32) -> Result<(&[u8], Phys, u32)> {
    if crc(0, page) != sum {
        return Err(Error::damaged("a checkpoint page fails its checksum"));
    }
    let mut r = Reader::new(page, "a checkpoint page");
    let (next, next_sum, len) = (Phys(r.u64()?), r.u32()?, r.u32()?);
    Ok((r.take(usize::try_from(len).expect("64-bit host"))?, next, next_sum))
}
