//! Volumes and snapshots by id and by label. Nothing here walks a map: figures that need it are 0.

use super::Pool;
use super::info::Walk;
use crate::catalog::{Catalog, Kind};
use crate::types::{VersionId, VolumeId};
use crate::{Error, Labels, Result, SnapshotInfo, VolumeInfo};

/// Whether `labels` has each of `wanted`; an empty value stands for any.
fn has(labels: &Labels, wanted: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key).is_some_and(|v| value.is_empty() || v == value))
}

impl Pool {
    /// The volume of that name, for whoever wants no figures. `exclusive_bytes` is 0.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn volume_by_name(&self, name: &str) -> Result<VolumeInfo> {
        let catalog = self.core.catalog.lock().clone();
        let (v, head) = catalog.live_volume(name)?;
        Ok(self.volume_info(&catalog, v, head, Walk::No))
    }

    /// The volume with that id. `exclusive_bytes` is 0.
    ///
    /// # Errors
    /// `NotFound`, also for a deleted volume whose snapshots are left.
    pub fn volume_by_id(&self, id: u64) -> Result<VolumeInfo> {
        let catalog = self.core.catalog.lock().clone();
        let volume = catalog.volumes.get(&VolumeId(id));
        let head = volume.and_then(|v| catalog.versions.get(&v.head?));
        match (volume, head) {
            (Some(v), Some(head)) => Ok(self.volume_info(&catalog, v, head, Walk::No)),
            _ => Err(Error::not_found(format!("there is no volume with id {id}"))),
        }
    }

    /// Volumes that have all these labels, by id; an empty value stands for any. `exclusive_bytes` is 0.
    pub fn volumes_with(&self, labels: &Labels) -> Vec<VolumeInfo> {
        let catalog = self.core.catalog.lock().clone();
        let live = catalog.volumes.values().filter_map(|v| Some((v, catalog.versions.get(&v.head?)?)));
        live.filter(|(v, _)| has(&v.labels, labels))
            .map(|(v, head)| self.volume_info(&catalog, v, head, Walk::No))
            .collect()
    }

    /// The snapshot with that id. `exclusive_bytes` is 0.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn snapshot_by_id(&self, id: u64) -> Result<SnapshotInfo> {
        let catalog = self.core.catalog.lock().clone();
        let version = catalog.versions.get(&VersionId(id));
        let snapshot = version.filter(|v| !v.doomed && matches!(v.kind, Kind::Snapshot { .. }));
        match snapshot {
            Some(s) => Ok(self.snapshot_info(&catalog, s, Walk::No)),
            None => Err(Error::not_found(format!("there is no snapshot with id {id}"))),
        }
    }

    /// Snapshots that have all these labels, by id; an empty value stands for any. `exclusive_bytes` is 0.
    pub fn snapshots_with(&self, labels: &Labels) -> Vec<SnapshotInfo> {
        let catalog: Catalog = self.core.catalog.lock().clone();
        let labelled = |kind: &Kind| match kind {
            Kind::Snapshot { labels: own, .. } => has(own, labels),
            Kind::Head => false,
        };
        let found = catalog.versions.values().filter(|v| !v.doomed && labelled(&v.kind));
        found.map(|s| self.snapshot_info(&catalog, s, Walk::No)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn labels_are_matched_by_key_and_value() {
        let own = labels(&[("a", "1"), ("b", "2")]);
        for (wanted, found) in [
            (labels(&[]), true),
            (labels(&[("a", "1")]), true),
            (labels(&[("a", "")]), true),
            (labels(&[("a", "1"), ("b", "2")]), true),
            (labels(&[("a", "2")]), false),
            (labels(&[("c", "")]), false),
        ] {
            assert_eq!(has(&own, &wanted), found, "{wanted:?}");
        }
    }
}
