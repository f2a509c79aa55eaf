//! The boot sector: the geometry of the file system.

use crate::fs::bytes::{le16, le32, u8_at};
use crate::{BlockRead, Error, Result};
use std::ops::Range;

/// Most clusters of a FAT12, as Linux counts.
const MAX_FAT12: u32 = 0xFF4;
/// Most clusters of a FAT16.
const MAX_FAT16: u32 = 0xFFF4;
/// Most clusters of a FAT32.
const MAX_FAT32: u32 = 0x0FFF_FFF6;
/// First cluster with data.
pub const FIRST_CLUSTER: u32 = 2;

/// Width of an entry of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// 12 bits.
    Fat12,
    /// 16 bits.
    Fat16,
    /// 28 of 32 bits.
    Fat32,
}

/// The boot sector, checked.
#[derive(Debug)]
pub struct Boot {
    pub width: Width,
    /// Bytes of a cluster, a power of two.
    pub cluster_bytes: u64,
    /// The first table, in bytes of the source.
    pub table: Range<u64>,
    /// The root directory of FAT12 and FAT16, in bytes of the source.
    pub root: Range<u64>,
    /// The first cluster of the root directory of FAT32.
    pub root_cluster: u32,
    /// Byte where cluster 2 starts.
    data_start: u64,
    /// Byte before which there are no directories.
    pub dirs_start: u64,
    /// Clusters with data; they are numbered from 2.
    pub clusters: u32,
    /// Byte of the sector with hints about free space, of FAT32.
    info_at: u64,
    pub label: String,
    pub serial: u32,
    /// The file system was not unmounted.
    pub dirty: bool,
}

impl Boot {
    /// Reads and checks it.
    pub fn read(dev: &dyn BlockRead) -> Result<Self> {
        let mut b = [0; 512];
        dev.read_at(0, &mut b)?;
        let bad = |what: &str| Error::Corrupt(format!("vfat boot sector: {what}"));
        let sector = u64::from(le16(&b, 11));
        if !matches!(sector, 512 | 1024 | 2048 | 4096) {
            return Err(bad("an impossible size of a sector"));
        }
        let per_cluster = u64::from(u8_at(&b, 13));
        if !per_cluster.is_power_of_two() {
            return Err(bad("an impossible size of a cluster"));
        }
        let reserved = u64::from(le16(&b, 14));
        let tables = u64::from(u8_at(&b, 16));
        if reserved == 0 || tables == 0 {
            return Err(bad("no reserved sectors, or no table"));
        }
        let is_fat32 = le16(&b, 22) == 0;
        let table_sectors = if is_fat32 { u64::from(le32(&b, 36)) } else { u64::from(le16(&b, 22)) };
        if table_sectors == 0 {
            return Err(bad("an empty table"));
        }
        let sectors = match le16(&b, 19) {
            0 => u64::from(le32(&b, 32)),
            small => u64::from(small),
        };
        let table_start = reserved * sector;
        let root_start = table_start + tables * table_sectors * sector;
        let root_bytes = if is_fat32 { 0 } else { u64::from(le16(&b, 17)) * 32 };
        if root_bytes % sector != 0 || (!is_fat32 && root_bytes == 0) {
            return Err(bad("an impossible size of the root directory"));
        }
        let data_start = root_start + root_bytes;
        let data_sectors = sectors.checked_sub(data_start / sector).filter(|left| *left > 0);
        let data_sectors = data_sectors.ok_or_else(|| bad("no sectors with data"))?;
        let told = u32::try_from(data_sectors / per_cluster).map_err(|_| bad("too many clusters"))?;
        let width = match (is_fat32, told) {
            (true, _) => Width::Fat32,
            (false, told) if told > MAX_FAT12 => Width::Fat16,
            _ => Width::Fat12,
        };
        let most = match width {
            Width::Fat12 => MAX_FAT12,
            Width::Fat16 => MAX_FAT16,
            Width::Fat32 => MAX_FAT32,
        };
        if told > most {
            return Err(bad("more clusters than the table can number"));
        }
        // A table may be too short for all clusters; the last ones are not used then.
        let bits = match width {
            Width::Fat12 => 12,
            Width::Fat16 => 16,
            Width::Fat32 => 32,
        };
        let entries = (table_sectors * sector * 8 / bits).saturating_sub(u64::from(FIRST_CLUSTER));
        let clusters = told.min(u32::try_from(entries).unwrap_or(u32::MAX));
        let extended = if is_fat32 { 64 } else { 36 };
        let info = if is_fat32 { u64::from(le16(&b, 48)) } else { 0 };
        let boot = Self {
            width,
            cluster_bytes: per_cluster * sector,
            table: table_start..table_start + table_sectors * sector,
            root: root_start..data_start,
            root_cluster: if is_fat32 { le32(&b, 44) } else { 0 },
            data_start,
            dirs_start: root_start,
            clusters,
            info_at: if info == 0xFFFF { 0 } else { info * sector },
            label: label(&b, extended),
            serial: le32(&b, extended + 3),
            dirty: u8_at(&b, extended + 1) & 1 != 0,
        };
        if is_fat32 && !boot.holds(boot.root_cluster) {
            return Err(bad("the root directory is outside of the file system"));
        }
        Ok(boot)
    }

    /// Whether it is a FAT32.
    pub fn is_fat32(&self) -> bool {
        self.width == Width::Fat32
    }

    /// Whether there is such a cluster.
    pub fn holds(&self, cluster: u32) -> bool {
        cluster >= FIRST_CLUSTER && cluster - FIRST_CLUSTER < self.clusters
    }

    /// First byte of a cluster.
    pub fn cluster_at(&self, cluster: u32) -> u64 {
        self.data_start + u64::from(cluster.saturating_sub(FIRST_CLUSTER)) * self.cluster_bytes
    }
}

/// The label, where the extended part of the boot sector is signed.
fn label(sector: &[u8], extended: usize) -> String {
    if u8_at(sector, extended + 2) != 0x29 {
        return String::new();
    }
    let raw = sector.get(extended + 7..extended + 18).unwrap_or_default();
    let text: String = raw.iter().map(|byte| super::codepage::char_of(*byte)).collect();
    match text.trim() {
        "NO NAME" => String::new(),
        label => label.to_owned(),
    }
}

/// The free clusters that a FAT32 was told to have.
pub fn told_free(dev: &dyn BlockRead, boot: &Boot) -> Option<u64> {
    let mut info = [0; 512];
    if boot.info_at == 0 || dev.read_at(boot.info_at, &mut info).is_err() {
        return None;
    }
    let signed = le32(&info, 0) == 0x4161_5252 && le32(&info, 484) == 0x6141_7272;
    let free = le32(&info, 488);
    (signed && free <= boot.clusters).then_some(u64::from(free))
}
