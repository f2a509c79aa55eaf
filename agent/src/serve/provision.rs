//! Operations for orchestrators: objects by id, and creation that can be repeated. Each runs under its volumes'
//! locks (`Agent::alone`), creation also under that of its unique label, so that of two requests with the same
//! label only one makes something.

use super::agent::Agent;
use super::convert;
use super::errors::{invalid, of_store};
use super::transfer::{TEMPORARY_LABEL, temporary_name};
use api::v1::provision_volume_request::Source;
use api::v1::{self, Freeze, SnapshotRef};
use api::{Error, ErrorKind, Result};
use std::collections::HashMap;
use store::{Labels, SnapshotInfo, VolumeInfo};

/// Names that are tried, each with another number, before it is given up.
const MAX_NAMES: u32 = 1000;

/// What the lock of a unique label is called. No volume's name has a NUL.
pub fn lock_of_label(labels: &HashMap<String, String>, key: &str) -> String {
    format!("\0{key}\0{}", labels.get(key).map_or("", String::as_str))
}

/// `name`, then `name-2`, `name-3`, … until `make` does not answer that the name is taken.
fn with_free_name<T>(name: &str, mut make: impl FnMut(&str) -> Result<T>) -> Result<T> {
    let mut made = make(name);
    for number in 2..MAX_NAMES {
        match &made {
            Err(error) if error.kind == ErrorKind::Exists => made = make(&format!("{name}-{number}")),
            _ => break,
        }
    }
    made
}

/// The unique label among `labels`, by itself.
fn unique(labels: &Labels, key: &str) -> Result<Option<Labels>> {
    if key.is_empty() {
        return Ok(None);
    }
    match labels.get(key).filter(|value| !value.is_empty()) {
        Some(value) => Ok(Some(Labels::from([(key.to_owned(), value.clone())]))),
        None => Err(invalid(format!("the unique label {key} is not among the labels, or has no value"))),
    }
}

impl Agent {
    /// Volumes by id or label.
    pub fn find_volumes(&self, request: v1::FindVolumesRequest) -> Result<Vec<v1::Volume>> {
        let found = match request.id {
            0 => self.pool.volumes_with(&request.labels.into_iter().collect()),
            id => vec![self.pool.volume_by_id(id).map_err(of_store)?],
        };
        Ok(found.into_iter().map(|info| convert::volume(info, &self.devices)).collect())
    }

    /// Snapshots by id or label.
    pub fn find_snapshots(&self, request: v1::FindSnapshotsRequest) -> Result<Vec<v1::Snapshot>> {
        let found = match request.id {
            0 => self.pool.snapshots_with(&request.labels.into_iter().collect()),
            id => vec![self.pool.snapshot_by_id(id).map_err(of_store)?],
        };
        Ok(found.into_iter().map(convert::snapshot).collect())
    }

    /// The names of volumes, to lock them by. Those that do not exist are left out.
    pub fn names_of(&self, ids: impl IntoIterator<Item = u64>) -> Vec<String> {
        ids.into_iter().filter_map(|id| Some(self.pool.volume_by_id(id).ok()?.name)).collect()
    }

    /// The volume with that id, whose lock is held under one of the names `locked`.
    pub fn locked_volume(&self, id: u64, locked: &[String]) -> Result<VolumeInfo> {
        let info = self.pool.volume_by_id(id).map_err(of_store)?;
        if locked.contains(&info.name) {
            return Ok(info);
        }
        Err(Error::new(ErrorKind::Busy, format!("volume {} got its name just now", info.name))
            .hint("try again"))
    }

    /// A new volume with a unique label: blank, of a snapshot or of a volume.
    pub fn provision_volume(
        &self,
        request: v1::ProvisionVolumeRequest,
        locked: &[String],
    ) -> Result<v1::Volume> {
        let freeze = request.freeze();
        let v1::ProvisionVolumeRequest { name, size_bytes, labels, unique_label, source, .. } = request;
        let labels: Labels = labels.into_iter().collect();
        if let Some(unique) = unique(&labels, &unique_label)?
            && let Some(other) = self.pool.volumes_with(&unique).first()
        {
            return Err(Error::new(
                ErrorKind::Exists,
                format!("volume {} has the label {unique_label} already", other.name),
            ));
        }
        let clone = |from: &SnapshotInfo| {
            let from = SnapshotRef { volume: from.volume.clone(), name: from.name.clone() };
            with_free_name(&name, |name| self.clone_snapshot(&from, name, size_bytes, labels.clone()))
        };
        match source {
            None => with_free_name(&name, |name| {
                let (name, labels) = (name.to_owned(), labels.clone().into_iter().collect());
                self.create_volume(v1::CreateVolumeRequest { name, size_bytes, labels, ..Default::default() })
            }),
            Some(Source::SnapshotId(id)) => clone(&self.pool.snapshot_by_id(id).map_err(of_store)?),
            Some(Source::VolumeId(id)) => {
                let volume = self.locked_volume(id, locked)?;
                let cut = [SnapshotRef { volume: volume.name, name: temporary_name("clone")? }];
                let mark = Labels::from([(TEMPORARY_LABEL.to_owned(), "clone".to_owned())]);
                let cut = self.cut(&cut, freeze, mark)?;
                let cloned = cut.snapshots.first().ok_or_else(|| invalid("the cut gave no snapshot"));
                let cloned = cloned.and_then(clone);
                self.discard(&cut.snapshots);
                cloned
            }
        }
    }

    /// New snapshots with a unique label, all at one point.
    pub fn provision_snapshots(
        &self,
        request: v1::ProvisionSnapshotsRequest,
        locked: &[String],
    ) -> Result<super::snapshots::Cut> {
        let freeze = request.freeze();
        let v1::ProvisionSnapshotsRequest { volume_ids, name, labels, unique_label, .. } = request;
        let labels: Labels = labels.into_iter().collect();
        if let Some(unique) = unique(&labels, &unique_label)?
            && let Some(other) = self.pool.snapshots_with(&unique).first()
        {
            return Err(Error::new(
                ErrorKind::Exists,
                format!("snapshot {}@{} has the label {unique_label} already", other.volume, other.name),
            ));
        }
        let volumes: Vec<VolumeInfo> =
            volume_ids.iter().map(|id| self.locked_volume(*id, locked)).collect::<Result<_>>()?;
        with_free_name(&name, |name| {
            let wanted: Vec<SnapshotRef> = volumes
                .iter()
                .map(|volume| SnapshotRef { volume: volume.name.clone(), name: name.to_owned() })
                .collect();
            self.cut(&wanted, freeze, labels.clone())
        })
    }

    /// Cuts, or refuses where a freeze was required and failed.
    fn cut(&self, wanted: &[SnapshotRef], freeze: Freeze, labels: Labels) -> Result<super::snapshots::Cut> {
        let cut = self.create_snapshots(wanted, freeze != Freeze::No, labels)?;
        if freeze == Freeze::Required && !cut.warnings.is_empty() {
            self.discard(&cut.snapshots);
            return Err(Error::new(ErrorKind::Busy, cut.warnings.join("; "))
                .hint("try again, or ask for consistency `crash`"));
        }
        Ok(cut)
    }

    /// Deletes volumes and snapshots; those that do not exist are passed over.
    pub fn delete_objects(&self, request: &v1::DeleteObjectsRequest, locked: &[String]) -> Result<()> {
        for id in &request.volume_ids {
            let info = match self.locked_volume(*id, locked) {
                Ok(info) => info,
                Err(error) if error.kind == ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            self.detach_volume(&info.name)?;
            self.undo_format(&info)?;
            self.delete_volume(&info.name)?;
        }
        for id in &request.snapshot_ids {
            let Ok(info) = self.pool.snapshot_by_id(*id) else { continue };
            match self.delete_snapshots(&[SnapshotRef { volume: info.volume, name: info.name }]) {
                Err(error) if error.kind != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_name_gets_a_number() {
        let taken = |name: &str| Err::<String, _>(Error::new(ErrorKind::Exists, name));
        let made = with_free_name("v", |name| if name == "v-3" { Ok(name.to_owned()) } else { taken(name) });
        assert_eq!(made.unwrap(), "v-3");
        let other = with_free_name("v", |_| Err::<(), _>(Error::new(ErrorKind::NoSpace, "full")));
        assert_eq!(other.unwrap_err().kind, ErrorKind::NoSpace);
        assert_eq!(with_free_name("v", taken).unwrap_err().kind, ErrorKind::Exists);
    }

    #[test]
    fn a_unique_label_is_one_of_the_labels() {
        let labels = Labels::from([("k".to_owned(), "w".to_owned()), ("empty".to_owned(), String::new())]);
        assert_eq!(unique(&labels, "").unwrap(), None);
        assert_eq!(unique(&labels, "k").unwrap(), Some(Labels::from([("k".to_owned(), "w".to_owned())])));
        for key in ["x", "empty"] {
            assert_eq!(unique(&labels, key).unwrap_err().kind, ErrorKind::Invalid);
        }
    }
}
