//! Log records: every change of a mapping and of the catalog, in the order in which it happened.

use super::{Reader, Writer};
use crate::info::{Consistency, Labels};
use crate::mutation::Mutation;
use crate::types::{Epoch, Phys, VersionId, VolumeId};
use crate::{Error, Result};

/// One volume's part in a cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CutEntry {
    /// Volume that is cut.
    pub volume: VolumeId,
    /// The new snapshot.
    pub snapshot: VersionId,
    /// The head's epoch from now on.
    pub head_epoch: Epoch,
    /// Level arranged by the caller.
    pub consistency: Consistency,
    /// Snapshot name.
    pub name: String,
}

/// A change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// `n` blocks from `l` of this head lie at `p` and following, written in its current epoch.
    Map {
        /// Head.
        version: VersionId,
        /// First logical block.
        l: u64,
        /// Number of blocks.
        n: u32,
        /// First physical block.
        p: Phys,
    },
    /// `n` blocks from `l` of this head read as zeros.
    Unmap {
        /// Head.
        version: VersionId,
        /// First logical block.
        l: u64,
        /// Number of blocks.
        n: u64,
    },
    /// A new, empty volume.
    Create {
        /// Its id.
        volume: VolumeId,
        /// Its head.
        head: VersionId,
        /// The head's epoch.
        epoch: Epoch,
        /// Size in blocks.
        size_blocks: u64,
        /// Seconds since 1970.
        created_at: i64,
        /// Name.
        name: String,
        /// Labels.
        labels: Labels,
    },
    /// Snapshots of one or several volumes at one point.
    Cut {
        /// Seconds since 1970.
        created_at: i64,
        /// The volumes.
        entries: Vec<CutEntry>,
        /// Labels of all these snapshots.
        labels: Labels,
    },
    /// A new volume over a snapshot.
    Clone {
        /// The snapshot.
        source: VersionId,
        /// Id of the new volume.
        volume: VolumeId,
        /// Its head.
        head: VersionId,
        /// The head's epoch.
        epoch: Epoch,
        /// Seconds since 1970.
        created_at: i64,
        /// Name.
        name: String,
        /// Labels.
        labels: Labels,
    },
    /// A new head over a snapshot, for a volume that exists; its old head is deleted.
    Rollback {
        /// The volume.
        volume: VolumeId,
        /// The snapshot.
        source: VersionId,
        /// The new head.
        head: VersionId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// A snapshot is to be deleted.
    DeleteSnapshot {
        /// The snapshot.
        version: VersionId,
    },
    /// A volume is deleted; its snapshots stay.
    DeleteVolume {
        /// The volume.
        volume: VolumeId,
    },
    /// A volume gets another name.
    Rename {
        /// The volume.
        volume: VolumeId,
        /// New name.
        name: String,
    },
    /// A volume grows.
    Resize {
        /// The volume.
        volume: VolumeId,
        /// New size in blocks.
        size_blocks: u64,
    },
    /// Whether the volume is to be attached at start.
    Attach {
        /// The volume.
        volume: VolumeId,
        /// Wanted.
        attached: bool,
    },
}

/// Bytes of an encoded [`Record::Map`], the one whose space is reserved ahead.
pub const MAP_BYTES: usize = 32;

/// Count, then key and value of each.
pub fn put_labels(w: &mut Writer, labels: &Labels) {
    w.u16(u16::try_from(labels.len()).expect("labels are checked to be few"));
    for (k, v) in labels {
        w.string(k);
        w.string(v);
    }
}

/// The opposite of [`put_labels`].
pub fn get_labels(r: &mut Reader<'_>) -> Result<Labels> {
    (0..r.u16()?).map(|_| Ok((r.string()?, r.string()?))).collect()
}

/// Encodes a consistency level: 0 fs, 1 crash, 2 detached.
pub fn consistency_code(c: Consistency) -> u8 {
    match c {
        Consistency::Fs => 0,
        Consistency::Crash => 1,
        Consistency::Detached => 2,
    }
}

/// The opposite of [`consistency_code`].
pub fn consistency_from(code: u8) -> Result<Consistency> {
    match code {
        0 => Ok(Consistency::Fs),
        1 => Ok(Consistency::Crash),
        2 => Ok(Consistency::Detached),
        _ => Err(Error::damaged(format!("unknown consistency level {code}"))),
    }
}

/// Seconds since 1970, signed.
pub fn put_time(w: &mut Writer, seconds: i64) {
    w.u64(u64::from_le_bytes(seconds.to_le_bytes()));
}

/// The opposite of [`put_time`].
pub fn get_time(r: &mut Reader<'_>) -> Result<i64> {
    Ok(i64::from_le_bytes(r.u64()?.to_le_bytes()))
}

impl Record {
    /// Whether its truth depends on bytes that were written before it: those of a mapping, and of a cut those that went
    /// in place. Other records change the catalog alone.
    pub fn stands_for_data(&self) -> bool {
        match self {
            Self::Map { .. } | Self::Unmap { .. } => true,
            Self::Cut { .. } => !Mutation::CutBeforeData.on(),
            Self::Create { .. }
            | Self::Clone { .. }
            | Self::Rollback { .. }
            | Self::DeleteSnapshot { .. }
            | Self::DeleteVolume { .. }
            | Self::Rename { .. }
            | Self::Resize { .. }
            | Self::Attach { .. } => false,
        }
    }

    /// Type code, then the fields in order; integers little endian.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer(Vec::with_capacity(MAP_BYTES));
        match self {
            Self::Map { version, l, n, p } => {
                w.u16(1);
                w.u16(0);
                w.u32(*n);
                w.u64(version.0);
                w.u64(*l);
                w.u64(p.0);
            }
            Self::Unmap { version, l, n } => {
                w.u16(2);
                w.u64(version.0);
                w.u64(*l);
                w.u64(*n);
            }
            Self::Create { volume, head, epoch, size_blocks, created_at, name, labels } => {
                w.u16(3);
                w.u64(volume.0);
                w.u64(head.0);
                w.u64(epoch.0);
                w.u64(*size_blocks);
                put_time(&mut w, *created_at);
                w.string(name);
                put_labels(&mut w, labels);
            }
            Self::Cut { created_at, entries, labels } => {
                w.u16(4);
                put_time(&mut w, *created_at);
                w.u16(u16::try_from(entries.len()).expect("checked to be few"));
                for e in entries {
                    w.u64(e.volume.0);
                    w.u64(e.snapshot.0);
                    w.u64(e.head_epoch.0);
                    w.u8(consistency_code(e.consistency));
                    w.string(&e.name);
                }
                put_labels(&mut w, labels);
            }
            Self::Clone { source, volume, head, epoch, created_at, name, labels } => {
                w.u16(5);
                w.u64(source.0);
                w.u64(volume.0);
                w.u64(head.0);
                w.u64(epoch.0);
                put_time(&mut w, *created_at);
                w.string(name);
                put_labels(&mut w, labels);
            }
            Self::Rollback { volume, source, head, epoch } => {
                w.u16(6);
                w.u64(volume.0);
                w.u64(source.0);
                w.u64(head.0);
                w.u64(epoch.0);
            }
            Self::DeleteSnapshot { version } => {
                w.u16(7);
                w.u64(version.0);
            }
            Self::DeleteVolume { volume } => {
                w.u16(8);
                w.u64(volume.0);
            }
            Self::Rename { volume, name } => {
                w.u16(9);
                w.u64(volume.0);
                w.string(name);
            }
            Self::Resize { volume, size_blocks } => {
                w.u16(10);
                w.u64(volume.0);
                w.u64(*size_blocks);
            }
            Self::Attach { volume, attached } => {
                w.u16(11);
                w.u64(volume.0);
                w.u8(u8::from(*attached));
            }
        }
        w.0
    }

    /// The opposite of [`Record::encode`].
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let r = &mut Reader::new(bytes, "a log record");
        let record = match r.u16()? {
            1 => {
                r.u16()?;
                let n = r.u32()?;
                Self::Map { version: VersionId(r.u64()?), l: r.u64()?, n, p: Phys(r.u64()?) }
            }
            2 => Self::Unmap { version: VersionId(r.u64()?), l: r.u64()?, n: r.u64()? },
            3 => Self::Create {
                volume: VolumeId(r.u64()?),
                head: VersionId(r.u64()?),
                epoch: Epoch(r.u64()?),
                size_blocks: r.u64()?,
                created_at: get_time(r)?,
                name: r.string()?,
                labels: get_labels(r)?,
            },
            4 => {
                let created_at = get_time(r)?;
                let entries = (0..r.u16()?)
                    .map(|_| {
                        Ok(CutEntry {
                            volume: VolumeId(r.u64()?),
                            snapshot: VersionId(r.u64()?),
                            head_epoch: Epoch(r.u64()?),
                            consistency: consistency_from(r.u8()?)?,
                            name: r.string()?,
                        })
                    })
                    .collect::<Result<_>>()?;
                Self::Cut { created_at, entries, labels: get_labels(r)? }
            }
            5 => Self::Clone {
                source: VersionId(r.u64()?),
                volume: VolumeId(r.u64()?),
                head: VersionId(r.u64()?),
                epoch: Epoch(r.u64()?),
                created_at: get_time(r)?,
                name: r.string()?,
                labels: get_labels(r)?,
            },
            6 => Self::Rollback {
                volume: VolumeId(r.u64()?),
                source: VersionId(r.u64()?),
                head: VersionId(r.u64()?),
                epoch: Epoch(r.u64()?),
            },
            7 => Self::DeleteSnapshot { version: VersionId(r.u64()?) },
            8 => Self::DeleteVolume { volume: VolumeId(r.u64()?) },
            9 => Self::Rename { volume: VolumeId(r.u64()?), name: r.string()? },
            10 => Self::Resize { volume: VolumeId(r.u64()?), size_blocks: r.u64()? },
            11 => Self::Attach { volume: VolumeId(r.u64()?), attached: r.u8()? != 0 },
            code => return Err(Error::damaged(format!("a log record has the unknown type {code}"))),
        };
        if r.remaining() != 0 {
            return Err(Error::damaged("a log record is longer than its fields"));
        }
        Ok(record)
    }
}
