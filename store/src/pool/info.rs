//! What a pool tells about itself.

use super::Pool;
use super::open::snapshot_name;
use crate::catalog::{Catalog, Kind, Version, VolumeRecord};
use crate::checkpoint::deletion_of;
use crate::map::delete::walk;
use crate::types::{BLOCK_BYTES, VersionId};
use crate::{PoolInfo, PoolState, Result, SnapshotBrief, SnapshotInfo, VolumeBrief, VolumeInfo};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Whether to count what a deletion would free, which walks the maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Walk {
    Yes,
    /// The figure is 0.
    No,
}

impl Pool {
    /// The pool now.
    pub fn info(&self) -> PoolInfo {
        let core = &self.core;
        let space = core.alloc.space();
        // What the host cannot give is not free, whatever the pool's size says.
        let host = core.dev.host_free().map_or(u64::MAX, |b| b / BLOCK_BYTES);
        let free = space.free_backed + space.unbacked.min(host);
        let state = if core.poison.is_set() {
            PoolState::Failed
        } else if free < 64 {
            PoolState::Full
        } else if free < space.total / 20 {
            PoolState::Low
        } else {
            PoolState::Ok
        };
        PoolInfo {
            id: core.pool_id.iter().map(|b| format!("{b:02x}")).collect(),
            path: core.path.display().to_string(),
            size_bytes: core.layout.total_blocks * BLOCK_BYTES,
            used_bytes: (core.layout.data_start + space.used) * BLOCK_BYTES,
            free_bytes: free * BLOCK_BYTES,
            state,
            generation: core.generation,
            ring: core.ring_state.clone(),
            io: crate::io::uring::engine(),
            sealed_bytes: core.alloc.sealed().count() * BLOCK_BYTES,
        }
    }

    /// All volumes, by name.
    pub fn volumes(&self) -> Vec<VolumeInfo> {
        let catalog = self.core.catalog.lock().clone();
        let live = catalog.volumes.values().filter_map(|v| Some((v, catalog.versions.get(&v.head?)?)));
        let mut all: Vec<_> = live.map(|(v, head)| self.volume_info(&catalog, v, head, Walk::Yes)).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// One volume.
    pub fn volume(&self, name: &str) -> Result<VolumeInfo> {
        let catalog = self.core.catalog.lock().clone();
        let (v, head) = catalog.live_volume(name)?;
        Ok(self.volume_info(&catalog, v, head, Walk::Yes))
    }

    /// Snapshots of one volume, or of all by volume name; oldest first.
    pub fn snapshots(&self, volume: Option<&str>) -> Result<Vec<SnapshotInfo>> {
        let catalog = self.core.catalog.lock().clone();
        let mut volumes: Vec<&Arc<VolumeRecord>> = match volume {
            Some(name) => vec![catalog.volume_named(name)?],
            None => catalog.volumes.values().collect(),
        };
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        let all = volumes.into_iter().flat_map(|v| catalog.snapshots_of(v.id));
        Ok(all.map(|s| self.snapshot_info(&catalog, s, Walk::Yes)).collect())
    }

    /// One snapshot; the name `latest` means the newest.
    pub fn snapshot(&self, volume: &str, name: &str) -> Result<SnapshotInfo> {
        let catalog = self.core.catalog.lock().clone();
        let s = catalog.snapshot_named(volume, name)?;
        Ok(self.snapshot_info(&catalog, s, Walk::Yes))
    }

    /// The volumes by name, deleted ones of which snapshots are left too. From memory; nothing is counted.
    pub fn volumes_in_brief(&self) -> Vec<VolumeBrief> {
        let catalog = self.core.catalog.lock();
        let shown = |v: &&Arc<VolumeRecord>| v.head.is_some() || catalog.snapshots_of(v.id).next().is_some();
        let brief = |v: &Arc<VolumeRecord>| VolumeBrief { name: v.name.clone(), id: v.id.0 };
        let mut all: Vec<_> = catalog.volumes.values().filter(shown).map(brief).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// The snapshots of a volume with ids greater than `after`, oldest first. From memory; nothing is counted.
    ///
    /// # Errors
    /// `NotFound`: there is no volume of that name.
    pub fn snapshots_in_brief(&self, volume: &str, after: u64) -> Result<Vec<SnapshotBrief>> {
        let catalog = self.core.catalog.lock();
        let of = catalog.volume_named(volume)?.id;
        Ok(catalog.snapshots_of(of).filter(|s| s.id.0 > after).filter_map(|s| brief(s)).collect())
    }

    /// The snapshot of that name. From memory; nothing is counted.
    pub fn snapshot_named_in_brief(&self, volume: &str, name: &str) -> Option<SnapshotBrief> {
        let catalog = self.core.catalog.lock();
        let of = catalog.volume_named(volume).ok()?.id;
        let is_named = |s: &&Arc<Version>| matches!(&s.kind, Kind::Snapshot { name: own, .. } if own == name);
        catalog.snapshots_of(of).find(is_named).and_then(|s| brief(s))
    }

    /// The snapshot with this id. From memory; nothing is counted.
    pub fn snapshot_in_brief(&self, id: u64) -> Option<SnapshotBrief> {
        let catalog = self.core.catalog.lock();
        catalog.versions.get(&VersionId(id)).filter(|v| !v.doomed).and_then(|v| brief(v))
    }

    pub(super) fn volume_info(
        &self,
        catalog: &Catalog,
        v: &VolumeRecord,
        head: &Version,
        walk: Walk,
    ) -> VolumeInfo {
        let (grown, own) = self.in_memory(head);
        let exclusive = match walk {
            Walk::Yes => (self.exclusive(catalog, head) + own) * BLOCK_BYTES,
            Walk::No => 0,
        };
        VolumeInfo {
            name: v.name.clone(),
            id: v.id.0,
            size_bytes: head.size_blocks * BLOCK_BYTES,
            used_bytes: (head.mapped_blocks + grown) * BLOCK_BYTES,
            exclusive_bytes: exclusive,
            origin: v.origin.and_then(|o| full_name(catalog, o)),
            created_at: v.created_at,
            attached: v.attached,
            snapshots: catalog.snapshots_of(v.id).map(|s| snapshot_name(&s.kind).to_owned()).collect(),
            labels: v.labels.clone(),
        }
    }

    pub(super) fn snapshot_info(&self, catalog: &Catalog, s: &Version, walk: Walk) -> SnapshotInfo {
        let Kind::Snapshot { name, created_at, consistency, labels } = &s.kind else {
            unreachable!("heads are not listed as snapshots")
        };
        let clones = catalog.volumes.values().filter(|v| v.origin == Some(s.id) && v.id != s.volume);
        SnapshotInfo {
            volume: catalog.volumes.get(&s.volume).map_or(String::new(), |v| v.name.clone()),
            volume_id: s.volume.0,
            name: name.clone(),
            id: s.id.0,
            size_bytes: s.size_blocks * BLOCK_BYTES,
            exclusive_bytes: match walk {
                Walk::Yes => self.exclusive(catalog, s) * BLOCK_BYTES,
                Walk::No => 0,
            },
            created_at: *created_at,
            consistency: *consistency,
            clones: clones.map(|v| v.name.clone()).collect(),
            labels: labels.clone(),
        }
    }

    /// Blocks mapped since the last checkpoint: those that were holes, and those only this head holds.
    fn in_memory(&self, v: &Version) -> (u64, u64) {
        let Ok(cell) = self.core.cell(v.id) else { return (0, 0) };
        let live = cell.live.read();
        let layers = || live.frozen.iter().map(Arc::as_ref).chain([&live.active]);
        let grown = layers().map(|l| l.grown).sum();
        let own = layers().filter(|l| l.epoch == live.epoch).flat_map(|l| l.data().map(|d| d.1)).sum();
        (grown, own)
    }

    /// Blocks that deleting the version would free now, as of the last checkpoint. A version with clones
    /// frees nothing. Unreadable nodes count nothing: `check` tells them. Counted anew only when its tree or a
    /// neighbour's has changed.
    fn exclusive(&self, catalog: &Catalog, v: &Version) -> u64 {
        if catalog.children_of(v.id).len() > 1 {
            return 0;
        }
        // Keeps the nodes of these trees from being reused during the walk.
        let _io = self.core.epochs.begin();
        let current = |id: VersionId| self.core.cell(id).map(|c| c.live.read().root);
        let mut d = deletion_of(catalog, v);
        d.root = current(v.id).unwrap_or(d.root);
        if let Some(child) = catalog.children_of(v.id).first() {
            d.child = current(*child).ok().or(d.child);
        }
        if let Some((of, blocks)) = self.core.counted.lock().get(&v.id)
            && *of == d
        {
            return *blocks;
        }
        let mut blocks = 0;
        let mut unlimited = u64::MAX;
        let walked = walk(&self.core.cache, d, 0, &mut unlimited, |_| {
            blocks += 1;
            Ok(())
        });
        if walked.is_err() {
            return 0;
        }
        let mut counted = self.core.counted.lock();
        if counted.len() > catalog.versions.len() {
            counted.retain(|id, _| catalog.versions.contains_key(id));
        }
        counted.insert(v.id, (d, blocks));
        blocks
    }

    /// Whether the host could not give the pool more space when it was last asked.
    pub fn host_is_full(&self) -> bool {
        self.core.host_full.load(Ordering::Relaxed)
    }
}

fn brief(s: &Version) -> Option<SnapshotBrief> {
    let Kind::Snapshot { name, created_at, .. } = &s.kind else { return None };
    let size_bytes = s.size_blocks * BLOCK_BYTES;
    Some(SnapshotBrief { name: name.clone(), id: s.id.0, created_at: *created_at, size_bytes })
}

fn full_name(catalog: &Catalog, id: VersionId) -> Option<String> {
    let v = catalog.versions.get(&id).filter(|v| !v.doomed)?;
    let volume = catalog.volumes.get(&v.volume)?;
    Some(format!("{}@{}", volume.name, snapshot_name(&v.kind)))
}
