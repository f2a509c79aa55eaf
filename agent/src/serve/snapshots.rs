//! Operations on snapshots. Each runs under its volumes' locks (`Agent::alone`).

use super::agent::Agent;
use super::convert;
use super::devices::Device;
use super::errors::{invalid, of_store};
use super::events::Subject;
use super::freeze::Frost;
use crate::changes::{Change, Wanted, changes};
use api::v1::{self, SnapshotRef};
use api::{Error, ErrorKind, Result};
use std::collections::BTreeMap;
use store::{BLOCK_BYTES, Consistency, Labels, Snapshot, SnapshotInfo, SnapshotSpec};

/// Most extents in one answer.
const MAX_EXTENTS: usize = 16_384;
/// Most ranges in one request to compare.
const MAX_RANGES: usize = 1 << 16;

/// What a cut gave.
pub struct Cut {
    /// In the order of the request.
    pub snapshots: Vec<SnapshotInfo>,
    /// Where less was reached than was asked for.
    pub warnings: Vec<String>,
}

impl From<Cut> for v1::CreateSnapshotsResponse {
    fn from(cut: Cut) -> Self {
        let snapshots = cut.snapshots.into_iter().map(convert::snapshot).collect();
        Self { snapshots, warnings: cut.warnings }
    }
}

impl Agent {
    /// Cuts all volumes at one point.
    pub fn create_snapshots(&self, wanted: &[SnapshotRef], freeze: bool, labels: Labels) -> Result<Cut> {
        if wanted.is_empty() {
            return Err(invalid("no snapshot to create was named"));
        }
        let devices = self.devices_of(wanted)?;
        let attached =
            devices.iter().filter_map(|(volume, device)| Some((volume.as_str(), device.as_ref()?)));
        let frost = if freeze { Frost::freeze(attached, &self.config) } else { Frost::default() };
        let mut failed: Vec<(String, String)> =
            frost.failures.iter().map(|(volume, why)| (volume.clone(), why.message.clone())).collect();
        let made = self.pool.create_snapshots(&specs(wanted, &devices, |v| frost.holds(v)), labels.clone());
        let late = frost.thaw();
        let mut snapshots = made.map_err(of_store)?;
        if !late.is_empty() {
            // Cut after a thaw: these do not hold what their level says.
            self.discard(&snapshots);
            let deadline = self.config.freeze_deadline;
            failed.extend(
                late.into_iter().map(|volume| (volume, format!("thawed before the cut, after {deadline:?}"))),
            );
            snapshots =
                self.pool.create_snapshots(&specs(wanted, &devices, |_| false), labels).map_err(of_store)?;
        }
        for info in &snapshots {
            let message = format!("{}@{} was taken ({})", info.volume, info.name, info.consistency.as_str());
            self.events.info("snapshot_created", Subject::snapshot(&info.volume, &info.name), message);
        }
        let warnings = failed.iter().map(|(volume, why)| self.not_frozen(volume, why)).collect();
        Ok(Cut { snapshots, warnings })
    }

    fn not_frozen(&self, volume: &str, why: &str) -> String {
        let message = format!("volume {volume} was not frozen, its snapshot is as after a power cut: {why}");
        self.events.warn("freeze_failed", Subject::volume(volume), &message);
        message
    }

    /// The device of each volume, where it has one. Refuses before anything is frozen what cannot be made.
    fn devices_of(&self, wanted: &[SnapshotRef]) -> Result<BTreeMap<String, Option<Device>>> {
        let mut devices = BTreeMap::new();
        for SnapshotRef { volume, name } in wanted {
            let info = self.pool.volume_by_name(volume).map_err(of_store)?;
            if info.snapshots.contains(name) {
                return Err(Error::new(
                    ErrorKind::Exists,
                    format!("snapshot {volume}@{name} exists already"),
                )
                .hint("choose another name, or delete that snapshot first"));
            }
            devices.insert(volume.clone(), self.devices.get(info.id));
        }
        Ok(devices)
    }

    /// Deletes snapshots that must not stay.
    pub fn discard(&self, snapshots: &[SnapshotInfo]) {
        for info in snapshots {
            self.snapshots_mount.close(&[info.id]);
            if let Err(error) = self.pool.delete_snapshot(&info.volume, &info.name) {
                let message = format!("{}@{} is left behind: {error}", info.volume, info.name);
                self.events.error("snapshot_left", Subject::snapshot(&info.volume, &info.name), message);
            }
        }
    }

    /// Snapshots of one volume, or of all.
    pub fn list_snapshots(&self, volume: &str, brief: bool) -> Result<Vec<v1::Snapshot>> {
        if brief && !volume.is_empty() {
            let all = self.pool.snapshots_in_brief(volume, 0).map_err(of_store)?;
            return Ok(all.into_iter().map(|of| convert::brief(volume, of)).collect());
        }
        let infos = self.pool.snapshots(Some(volume).filter(|name| !name.is_empty())).map_err(of_store)?;
        Ok(infos.into_iter().map(convert::snapshot).collect())
    }

    /// What the snapshots after one change of some ranges.
    pub fn read_changes(&self, request: v1::ReadChangesRequest) -> Result<v1::ReadChangesResponse> {
        let v1::ReadChangesRequest { volume, from_id, read, watch } = request;
        if read.len() + watch.len() > MAX_RANGES {
            return Err(invalid(format!("more than {MAX_RANGES} ranges to compare")));
        }
        let ranges = |extents: Vec<v1::Extent>| {
            extents.into_iter().map(|e| e.offset..e.offset.saturating_add(e.length)).collect()
        };
        let wanted = Wanted { read: ranges(read), watch: ranges(watch) };
        let found = changes(&self.pool, &volume, from_id, &wanted).map_err(of_store)?;
        let chunk = |(offset, data)| v1::Chunk { offset, data };
        let change = |change: Change| v1::SnapshotChange {
            id: change.snapshot.id,
            name: change.snapshot.name,
            created_at: change.snapshot.created_at,
            size_bytes: change.snapshot.size_bytes,
            watched: change.watched,
            blocks: change.blocks.into_iter().map(chunk).collect(),
        };
        Ok(v1::ReadChangesResponse {
            changes: found.changes.into_iter().map(change).collect(),
            through_id: found.through,
            end: found.end,
        })
    }

    /// One snapshot.
    pub fn get_snapshot(&self, of: &SnapshotRef) -> Result<v1::Snapshot> {
        self.pool.snapshot(&of.volume, &of.name).map(convert::snapshot).map_err(of_store)
    }

    /// Deletes all, or none if one of them does not exist.
    pub fn delete_snapshots(&self, which: &[SnapshotRef]) -> Result<()> {
        let found: Vec<SnapshotInfo> = which
            .iter()
            .map(|of| self.pool.snapshot(&of.volume, &of.name))
            .collect::<store::Result<_>>()
            .map_err(of_store)?;
        let ids: Vec<u64> = found.iter().map(|info| info.id).collect();
        self.snapshots_mount.close(&ids);
        for SnapshotInfo { volume, name, .. } in &found {
            self.pool.delete_snapshot(volume, name).map_err(of_store)?;
            let message = format!("{volume}@{name} was deleted");
            self.events.info("snapshot_deleted", Subject::snapshot(volume, name), message);
        }
        Ok(())
    }

    /// Raw bytes of a snapshot.
    pub fn read_snapshot(&self, request: &v1::ReadSnapshotRequest) -> Result<Vec<u8>> {
        let of = required(request.snapshot.as_ref())?;
        let length = usize::try_from(request.length).unwrap_or(usize::MAX);
        if length > api::MAX_DATA_BYTES {
            return Err(invalid(format!(
                "{length} bytes are more than one request reads, {}",
                api::MAX_DATA_BYTES
            )));
        }
        let snapshot = self.pool.open_snapshot(&of.volume, &of.name).map_err(of_store)?;
        if request.snapshot_id != 0 && request.snapshot_id != snapshot.id() {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("{}@{} was deleted and made anew since it was opened", of.volume, of.name),
            ));
        }
        let end = request.offset.checked_add(request.length.into());
        if end.is_none_or(|end| end > snapshot.size_bytes()) {
            let range = format!("{length} bytes at {}", request.offset);
            let size = snapshot.size_bytes();
            return Err(invalid(format!("{range} are past the end of {}@{}, {size}", of.volume, of.name)));
        }
        let mut data = vec![0; length];
        snapshot.read_at(request.offset, &mut data).map_err(of_store)?;
        Ok(data)
    }

    /// Ranges of a snapshot that hold data, or differ from an older one.
    pub fn list_extents(&self, request: &v1::ListExtentsRequest) -> Result<v1::ListExtentsResponse> {
        let of = required(request.snapshot.as_ref())?;
        let open = |name: &str| self.pool.open_snapshot(&of.volume, name).map_err(of_store);
        let snapshot = open(&of.name)?;
        let base = if request.base.is_empty() { None } else { Some(open(&request.base)?) };
        let max = match usize::try_from(request.max_extents).unwrap_or(MAX_EXTENTS) {
            0 => MAX_EXTENTS,
            max => max.min(MAX_EXTENTS),
        };
        let (extents, next) = extents(&snapshot, base.as_deref(), request.offset, max).map_err(of_store)?;
        Ok(v1::ListExtentsResponse { extents, next_offset: next, size_bytes: snapshot.size_bytes() })
    }
}

fn specs(
    wanted: &[SnapshotRef],
    devices: &BTreeMap<String, Option<Device>>,
    frozen: impl Fn(&str) -> bool,
) -> Vec<SnapshotSpec> {
    let consistency = |volume: &str| match devices.get(volume) {
        Some(Some(_)) if frozen(volume) => Consistency::Fs,
        Some(Some(_)) => Consistency::Crash,
        Some(None) | None => Consistency::Detached,
    };
    let spec = |SnapshotRef { volume, name }: &SnapshotRef| SnapshotSpec {
        consistency: consistency(volume),
        volume: volume.clone(),
        name: name.clone(),
    };
    wanted.iter().map(spec).collect()
}

/// A message field that proto3 cannot demand.
pub fn required(of: Option<&SnapshotRef>) -> Result<&SnapshotRef> {
    of.ok_or_else(|| invalid("no snapshot was named"))
}

/// The extents from `offset` on and where to go on (0: that was all).
fn extents(
    snapshot: &Snapshot,
    base: Option<&Snapshot>,
    offset: u64,
    max: usize,
) -> store::Result<(Vec<v1::Extent>, u64)> {
    let mut extents: Vec<v1::Extent> = Vec::new();
    let mut at = offset / BLOCK_BYTES * BLOCK_BYTES;
    while at < snapshot.size_bytes() {
        let found = match base {
            Some(base) => snapshot.next_difference(base, at)?,
            None => snapshot.next_data(at)?,
        };
        let Some(range) = found else { break };
        if extents.len() == max {
            return Ok((extents, range.start));
        }
        extents.push(v1::Extent { offset: range.start, length: range.end - range.start });
        at = range.end;
    }
    Ok((extents, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_without_a_device_is_detached() {
        let wanted = [SnapshotRef { volume: "d".into(), name: "s".into() }];
        let devices = BTreeMap::from([("d".to_owned(), None)]);
        let specs = specs(&wanted, &devices, |_| true);
        assert_eq!((specs[0].volume.as_str(), specs[0].name.as_str()), ("d", "s"));
        assert_eq!(specs[0].consistency, Consistency::Detached);
    }

    #[test]
    fn a_missing_message_is_invalid() {
        assert_eq!(required(None).unwrap_err().kind, ErrorKind::Invalid);
    }
}
