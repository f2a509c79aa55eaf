//! The catalog: volumes, versions (snapshots and heads) and the tree they form.
//!
//! Invariants: a change enters it only by [`Catalog::apply`] of a log record or by the checkpointer, so log
//! and checkpoint are its one truth (H27). Epochs grow along every path of derivation, and no two heads
//! share one. A head has no children.

use crate::format::node::Root;
use crate::format::record::Record;
use crate::info::{Consistency, Labels};
use crate::mutation::Mutation;
use crate::types::{Epoch, VersionId, VolumeId};
use crate::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// What a version is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The writable state of a volume.
    Head,
    /// A frozen state.
    Snapshot {
        /// Name below its volume.
        name: String,
        /// Seconds since 1970.
        created_at: i64,
        /// Level.
        consistency: Consistency,
        /// Labels.
        labels: Labels,
    },
}

/// A snapshot or a head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Id.
    pub id: VersionId,
    /// The version it was derived from and that still exists (hidden ones included).
    pub parent: Option<VersionId>,
    /// Epoch in which its own blocks are born.
    pub epoch: Epoch,
    /// Volume it belongs to.
    pub volume: VolumeId,
    /// Size in blocks.
    pub size_blocks: u64,
    /// Blocks mapped in the tree.
    pub mapped_blocks: u64,
    /// How far its deletion has come, in blocks.
    pub cursor: u64,
    /// The map as of the last checkpoint.
    pub root: Root,
    /// To be deleted: hidden while it has two or more children, then freed in slices.
    pub doomed: bool,
    /// Head or snapshot.
    pub kind: Kind,
}

/// A volume: a name for a head, and the place of its snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeRecord {
    /// Id.
    pub id: VolumeId,
    /// Its head; None: deleted, kept while it has snapshots.
    pub head: Option<VersionId>,
    /// Snapshot it was cloned from or rolled back to.
    pub origin: Option<VersionId>,
    /// Seconds since 1970.
    pub created_at: i64,
    /// To be attached at start.
    pub attached: bool,
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: Labels,
}

/// All of it. Cloning is cheap: entries are shared.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    /// Next volume or version id.
    pub next_id: u64,
    /// Next epoch.
    pub next_epoch: u64,
    /// By id.
    pub volumes: BTreeMap<VolumeId, Arc<VolumeRecord>>,
    /// By id.
    pub versions: BTreeMap<VersionId, Arc<Version>>,
    names: HashMap<String, VolumeId>,
    snapshots: BTreeMap<(VolumeId, VersionId), String>,
    children: HashMap<VersionId, Vec<VersionId>>,
}

impl Catalog {
    /// An empty catalog.
    pub fn new() -> Self {
        Self { next_id: 1, next_epoch: 1, ..Self::default() }
    }

    /// Adds or replaces a volume.
    pub fn insert_volume(&mut self, v: VolumeRecord) {
        if let Some(old) = self.volumes.get(&v.id) {
            self.names.remove(&old.name);
        }
        self.names.insert(v.name.clone(), v.id);
        self.volumes.insert(v.id, Arc::new(v));
    }

    /// Adds or replaces a version and keeps the indexes right.
    pub fn insert_version(&mut self, v: Version) {
        self.unindex(v.id);
        if let Some(p) = v.parent {
            self.children.entry(p).or_default().push(v.id);
        }
        if let Kind::Snapshot { name, .. } = &v.kind
            && !v.doomed
        {
            self.snapshots.insert((v.volume, v.id), name.clone());
        }
        self.versions.insert(v.id, Arc::new(v));
    }

    fn unindex(&mut self, id: VersionId) {
        if let Some(old) = self.versions.get(&id) {
            self.snapshots.remove(&(old.volume, id));
            if let Some(list) = old.parent.and_then(|p| self.children.get_mut(&p)) {
                list.retain(|c| *c != id);
            }
        }
    }

    /// Removes a version whose deletion is complete: its children go to its parent.
    pub fn remove_version(&mut self, id: VersionId) {
        let Some(gone) = self.versions.get(&id).cloned() else { return };
        for child in self.children_of(id).to_vec() {
            let mut v = (*self.versions[&child]).clone();
            v.parent = gone.parent;
            self.insert_version(v);
        }
        self.unindex(id);
        self.versions.remove(&id);
        self.children.remove(&id);
        self.drop_empty_volume(gone.volume);
    }

    /// A deleted volume goes when its last snapshot has gone.
    fn drop_empty_volume(&mut self, id: VolumeId) {
        if self.volumes.get(&id).is_some_and(|v| v.head.is_none()) && self.snapshots_of(id).next().is_none() {
            let v = self.volumes.remove(&id).expect("looked up above");
            self.names.remove(&v.name);
        }
    }

    /// Children of a version.
    pub fn children_of(&self, id: VersionId) -> &[VersionId] {
        self.children.get(&id).map_or(&[], Vec::as_slice)
    }

    /// The volume of that name, deleted ones with snapshots included.
    pub fn volume_named(&self, name: &str) -> Result<&Arc<VolumeRecord>> {
        self.names
            .get(name)
            .map(|id| &self.volumes[id])
            .ok_or_else(|| Error::not_found(format!("volume `{name}` does not exist")))
    }

    /// The volume of that name, and its head.
    pub fn live_volume(&self, name: &str) -> Result<(&Arc<VolumeRecord>, &Arc<Version>)> {
        let v = self.volume_named(name)?;
        let head = v.head.ok_or_else(|| {
            Error::not_found(format!("volume `{name}` was deleted, only its snapshots are left"))
                .hint(format!("`cowslip clone {name}@SNAPSHOT NEW` makes a volume of one"))
        })?;
        Ok((v, &self.versions[&head]))
    }

    /// Snapshots of a volume, oldest first; those being deleted are not among them.
    pub fn snapshots_of(&self, id: VolumeId) -> impl DoubleEndedIterator<Item = &Arc<Version>> {
        self.snapshots
            .range((id, VersionId(0))..=(id, VersionId(u64::MAX)))
            .map(|((_, version), _)| &self.versions[version])
    }

    /// The snapshot of that name; `latest` is the newest one.
    pub fn snapshot_named(&self, volume: &str, name: &str) -> Result<&Arc<Version>> {
        let v = self.volume_named(volume)?;
        let mut all = self.snapshots_of(v.id);
        let found = if name == "latest" {
            all.next_back()
        } else {
            all.find(|s| matches!(&s.kind, Kind::Snapshot { name: n, .. } if n == name))
        };
        found.ok_or_else(|| Error::not_found(format!("snapshot `{volume}@{name}` does not exist")))
    }

    /// Epoch of a version's parent; 0 without one.
    pub fn origin_epoch(&self, v: &Version) -> Epoch {
        v.parent.map_or(Epoch(0), |p| self.versions[&p].epoch)
    }

    /// Changes one version.
    pub fn update_version(&mut self, id: VersionId, change: impl FnOnce(&mut Version)) {
        if let Some(v) = self.versions.get(&id) {
            let mut v = (**v).clone();
            change(&mut v);
            self.insert_version(v);
        }
    }

    fn update_volume(&mut self, id: VolumeId, change: impl FnOnce(&mut VolumeRecord)) -> Result<()> {
        let v = self.volumes.get(&id).ok_or_else(|| Error::damaged(format!("no volume {}", id.0)))?;
        let mut v = (**v).clone();
        change(&mut v);
        self.insert_volume(v);
        Ok(())
    }

    fn saw(&mut self, ids: &[u64], epoch: Epoch) {
        self.next_id = ids.iter().fold(self.next_id, |n, id| n.max(id + 1));
        self.next_epoch = self.next_epoch.max(epoch.0 + 1);
    }

    /// Performs a catalog record, at run time and at replay alike. Mapping records do nothing here.
    pub fn apply(&mut self, record: &Record) -> Result<()> {
        match record {
            Record::Map { .. } | Record::Unmap { .. } => {}
            Record::Create { volume, head, epoch, size_blocks, created_at, name, labels } => {
                self.saw(&[volume.0, head.0], *epoch);
                self.insert_version(new_head(*head, None, *epoch, *volume, *size_blocks, Root::default(), 0));
                self.insert_volume(VolumeRecord {
                    id: *volume,
                    head: Some(*head),
                    origin: None,
                    created_at: *created_at,
                    attached: false,
                    name: name.clone(),
                    labels: labels.clone(),
                });
            }
            Record::Cut { created_at, entries, labels } => {
                for e in entries {
                    let kind = Kind::Snapshot {
                        name: e.name.clone(),
                        created_at: *created_at,
                        consistency: e.consistency,
                        labels: labels.clone(),
                    };
                    self.cut(e.volume, e.snapshot, e.head_epoch, kind)?;
                }
            }
            Record::Clone { source, volume, head, epoch, created_at, name, labels } => {
                self.saw(&[volume.0, head.0], *epoch);
                let s = self.version(*source)?;
                let new =
                    new_head(*head, Some(*source), *epoch, *volume, s.size_blocks, s.root, s.mapped_blocks);
                self.insert_version(new);
                self.insert_volume(VolumeRecord {
                    id: *volume,
                    head: Some(*head),
                    origin: Some(*source),
                    created_at: *created_at,
                    attached: false,
                    name: name.clone(),
                    labels: labels.clone(),
                });
            }
            Record::Rollback { volume, source, head, epoch } => {
                self.saw(&[head.0], *epoch);
                let s = self.version(*source)?;
                let old = self.head_of(*volume)?;
                let shrinks = Mutation::ShrinkingRollback.on();
                let size = if shrinks { s.size_blocks } else { s.size_blocks.max(old.size_blocks) };
                let new = new_head(*head, Some(*source), *epoch, *volume, size, s.root, s.mapped_blocks);
                self.insert_version(new);
                self.update_version(old.id, |v| v.doomed = true);
                self.update_volume(*volume, |v| {
                    v.head = Some(*head);
                    v.origin = Some(*source);
                })?;
            }
            Record::DeleteSnapshot { version } => {
                let volume = self.version(*version)?.volume;
                self.update_version(*version, |v| v.doomed = true);
                self.drop_empty_volume(volume);
            }
            Record::DeleteVolume { volume } => {
                let head = self.head_of(*volume)?;
                self.update_version(head.id, |v| v.doomed = true);
                self.update_volume(*volume, |v| {
                    v.head = None;
                    v.attached = false;
                })?;
                self.drop_empty_volume(*volume);
            }
            Record::Rename { volume, name } => self.update_volume(*volume, |v| v.name.clone_from(name))?,
            Record::Resize { volume, size_blocks } => {
                let head = self.head_of(*volume)?;
                self.update_version(head.id, |v| v.size_blocks = *size_blocks);
            }
            Record::Attach { volume, attached } => self.update_volume(*volume, |v| v.attached = *attached)?,
        }
        Ok(())
    }

    fn cut(&mut self, volume: VolumeId, snapshot: VersionId, head_epoch: Epoch, kind: Kind) -> Result<()> {
        self.saw(&[snapshot.0], head_epoch);
        let head = self.head_of(volume)?;
        self.insert_version(Version { id: snapshot, kind, ..(*head).clone() });
        self.update_version(head.id, |v| {
            v.parent = Some(snapshot);
            v.epoch = head_epoch;
        });
        Ok(())
    }

    /// The version with that id.
    pub fn version(&self, id: VersionId) -> Result<Arc<Version>> {
        self.versions.get(&id).cloned().ok_or_else(|| Error::damaged(format!("no version {}", id.0)))
    }

    /// The head of a volume.
    pub fn head_of(&self, id: VolumeId) -> Result<Arc<Version>> {
        let head = self.volumes.get(&id).and_then(|v| v.head);
        head.and_then(|h| self.versions.get(&h).cloned())
            .ok_or_else(|| Error::damaged(format!("volume {} has no head", id.0)))
    }

    /// Checks what [`Catalog::apply`] relies on, of a catalog read from disk.
    pub fn verify(&self) -> Result<()> {
        let bad = |what: String| Err(Error::damaged(format!("catalog: {what}")));
        for v in self.versions.values() {
            if let Some(p) = v.parent {
                match self.versions.get(&p) {
                    Some(parent) if parent.epoch < v.epoch => {}
                    Some(_) => return bad(format!("version {} is not younger than its parent", v.id.0)),
                    None => return bad(format!("the parent of version {} does not exist", v.id.0)),
                }
            }
            if v.id.0 >= self.next_id || v.epoch.0 >= self.next_epoch {
                return bad(format!("version {} is from the future", v.id.0));
            }
            if v.kind == Kind::Head && !self.children_of(v.id).is_empty() {
                return bad(format!("head {} has children", v.id.0));
            }
        }
        for v in self.volumes.values() {
            if v.head.is_some_and(|h| !self.versions.contains_key(&h)) {
                return bad(format!("volume {} has a head that does not exist", v.id.0));
            }
        }
        if self.names.len() != self.volumes.len() {
            return bad("two volumes have one name".into());
        }
        Ok(())
    }
}

fn new_head(
    id: VersionId,
    parent: Option<VersionId>,
    epoch: Epoch,
    volume: VolumeId,
    size_blocks: u64,
    root: Root,
    mapped_blocks: u64,
) -> Version {
    let kind = Kind::Head;
    Version { id, parent, epoch, volume, size_blocks, mapped_blocks, cursor: 0, root, doomed: false, kind }
}
