//! `/snapshots/<volume>/<snapshot>/…`, with `latest` and `by-time/@GMT-…` beside the snapshots.
//!
//! A name of a time leads to a directory of its own, not to a symbolic link: Samba's vfs_shadow_copy2 follows no link
//! that leaves the share. In the directory of the volume these names can be opened, but are not listed.
//!
//! Invariants: listing volumes and snapshots opens none of them; a snapshot is opened at the first look inside,
//! once, and closed when others are used and nothing in it is open; no lock of the whole tree is held over I/O.
//!
//! Until a snapshot was opened its directory shows stand-in attributes. `reveal` tells when true ones replace
//! them, so that permission to look inside is always decided by the true ones.

use super::{
    Lifetime, Node, OpenFile, REPLAY_XATTR, SnapshotEntry, SnapshotProvider, TOP, Tree, TreeEntry,
    TreeListing, VolumeEntry,
    contents::{Contents, OpenSnapshot, Opened, Opener, Partition, Pinned, Shown},
    entries, gmt, inner, list, list_each, lookup_attr, outer,
    slots::{Place, Slot, Slots},
    synthetic::{dir_attr, symlink_attr},
    xattr_names_of, xattr_of,
};
use crate::{Attr, BlockRead, Error, FileKind, Result, StatFs, cache::CacheBudget, walk::is_plain_name};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Name of the symbolic link to the newest snapshot.
const LATEST: &str = "latest";
/// Its place in the directory: behind all snapshots.
const LATEST_COOKIE: u64 = 1 << 62;
/// Name of the directory of snapshots by their times.
const BY_TIME: &str = "by-time";
/// Its place: behind that.
const BY_TIME_COOKIE: u64 = LATEST_COOKIE + 1;
/// Numbers given before those of deleted snapshots are looked for.
const SLOTS_BEFORE_SWEEP: usize = 4096;

/// Bounds of a [`SnapshotTree`].
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Snapshots open at a time; exceeded only while files in more of them are open.
    pub open_snapshots: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { open_snapshots: 16 }
    }
}

/// The tree of all snapshots of a provider.
pub struct SnapshotTree {
    provider: Arc<dyn SnapshotProvider>,
    opener: Box<Opener>,
    limits: Limits,
    slots: Slots<OpenSnapshot>,
    /// The snapshots that are open now.
    open: Mutex<Vec<Arc<Slot<OpenSnapshot>>>>,
    uses: AtomicU64,
    /// Number of uses at the last call of `close_idle`.
    idle_before: AtomicU64,
    /// Slots at which to look for deleted snapshots next.
    sweep_at: AtomicU64,
}

impl SnapshotTree {
    /// The tree of what `provider` has, with the file systems of this crate and one cache for all of them.
    pub fn new(provider: Arc<dyn SnapshotProvider>, limits: Limits, budget: &CacheBudget) -> Self {
        let budget = budget.clone();
        Self::with_opener(provider, limits, move |_, source| Contents::open(source, &budget))
    }

    /// The tree of what `provider` has, with `opener` finding out what a snapshot holds.
    pub fn with_opener(
        provider: Arc<dyn SnapshotProvider>,
        limits: Limits,
        opener: impl Fn(&Opened, Arc<dyn BlockRead>) -> Result<Contents> + Send + Sync + 'static,
    ) -> Self {
        Self {
            provider,
            opener: Box::new(opener),
            limits,
            slots: Slots::new(),
            open: Mutex::new(Vec::new()),
            uses: AtomicU64::new(0),
            idle_before: AtomicU64::new(0),
            sweep_at: AtomicU64::new(SLOTS_BEFORE_SWEEP as u64),
        }
    }

    /// Number of snapshots open now.
    pub fn open_count(&self) -> usize {
        self.open.lock().len()
    }

    /// Closes snapshots that were not used since the last call and in which nothing is open.
    pub fn close_idle(&self) {
        let before = self.idle_before.swap(self.uses.load(Ordering::Relaxed), Ordering::Relaxed);
        self.close_while(|slot, _| slot.last_use.load(Ordering::Relaxed) <= before);
    }

    /// Closes the snapshots with these ids now, except those in which something is open; to be called before
    /// they are deleted. Returns whether all are closed.
    pub fn close(&self, snapshots: &[u64]) -> bool {
        let named =
            |slot: &Slot<OpenSnapshot>| slot.place.snapshot().is_some_and(|id| snapshots.contains(&id));
        self.close_while(|slot, _| named(slot));
        !self.open.lock().iter().any(|slot| named(slot))
    }

    /// Closes what `unwanted` says, given the number still open, least recently used first.
    fn close_while(&self, unwanted: impl Fn(&Slot<OpenSnapshot>, usize) -> bool) {
        let mut closed = Vec::new();
        let mut open = self.open.lock();
        open.sort_by_key(|slot| slot.last_use.load(Ordering::Relaxed));
        let mut left = open.len();
        open.retain(|slot| {
            // Somebody who opens, or holds what is open, uses it.
            let Some(mut opened) = slot.opened.try_lock() else { return true };
            let idle = opened.as_ref().is_none_or(|opened| Arc::strong_count(opened) == 1);
            let keep = !idle || !unwanted(slot, left);
            if !keep {
                closed.push(opened.take());
                left -= 1;
            }
            keep
        });
        drop(open);
        // Closing may do I/O: `closed` is dropped without the lock.
    }

    fn slot(&self, fs: u32) -> Result<Arc<Slot<OpenSnapshot>>> {
        self.slots.get(fs).ok_or_else(|| Error::NotFound("the snapshot was deleted".into()))
    }

    /// The snapshot of `slot`, opened if it is not.
    fn opened(&self, slot: &Arc<Slot<OpenSnapshot>>) -> Result<Arc<OpenSnapshot>> {
        let now = self.uses.fetch_add(1, Ordering::Relaxed) + 1;
        slot.last_use.store(now, Ordering::Relaxed);
        let mut guard = slot.opened.lock();
        if let Some(opened) = &*guard {
            return Ok(opened.clone());
        }
        let (volume, snapshot) = self.names(slot.place)?;
        let source = self.provider.open(&volume.name, &snapshot.name)?;
        let of = Opened { volume, snapshot: snapshot.clone() };
        let opened = Arc::new(OpenSnapshot::open(of, source, &*self.opener)?);
        let top = match &opened.shown {
            Shown::Files(view) => view.attr(view.root())?,
            Shown::Partitions(_) => dir_attr(snapshot.created_at),
        };
        let _ = slot.top.set(top);
        *guard = Some(opened.clone());
        drop(guard);
        self.open.lock().push(slot.clone());
        self.close_while(|_, left| left > self.limits.open_snapshots);
        Ok(opened)
    }

    /// The names now of the volume and the snapshot of `place`.
    fn names(&self, place: Place) -> Result<(VolumeEntry, SnapshotEntry)> {
        let (Place::Snapshot { volume, snapshot, .. } | Place::Latest { volume, snapshot }) = place else {
            return Err(Error::WrongKind("not a snapshot".into()));
        };
        let volume = self.volume(volume)?;
        let entry = self.provider.with_id(&volume.name, snapshot);
        Ok((volume, entry.ok_or_else(|| Error::NotFound("the snapshot was deleted".into()))?))
    }

    fn volume(&self, id: u64) -> Result<VolumeEntry> {
        let found = self.provider.volumes().into_iter().find(|volume| volume.id == id);
        found.ok_or_else(|| Error::NotFound("the volume was deleted".into()))
    }

    fn volume_name(&self, id: u64) -> Result<String> {
        self.volume(id).map(|volume| volume.name)
    }

    /// Partition `number` of the snapshot in slot `of`.
    fn partition(&self, of: u32, number: u32) -> Result<Pinned> {
        let snapshot = self.opened(&self.slot(of)?)?;
        Ok(Pinned { view: snapshot.partition(number, &*self.opener)?, pin: snapshot })
    }

    /// The file system of `slot`, or None where the tree itself makes the entries.
    fn view(&self, slot: &Arc<Slot<OpenSnapshot>>) -> Result<Option<Pinned>> {
        match slot.place {
            Place::Root | Place::Volume(_) | Place::ByTime(_) | Place::Latest { .. } => Ok(None),
            Place::Partition { of, number } => self.partition(of, number).map(Some),
            Place::Snapshot { .. } => {
                let opened = self.opened(slot)?;
                Ok(match &opened.shown {
                    Shown::Files(view) => Some(Pinned { view: view.clone(), pin: opened.clone() }),
                    Shown::Partitions(_) => None,
                })
            }
        }
    }

    fn top(&self, place: Place) -> Node {
        Node { fs: self.slots.of(place).fs, ino: TOP }
    }

    /// The entries of a directory that is in no image behind `cookie`, by ascending cookie, `max` at least where there
    /// are as many.
    fn listed(&self, slot: &Arc<Slot<OpenSnapshot>>, cookie: u64, max: usize) -> Result<Vec<TreeEntry>> {
        let mut listed = match slot.place {
            Place::Root => self.volumes(),
            Place::Volume(id) => self.snapshots(id, cookie, max)?,
            Place::ByTime(id) => self.by_time(id, cookie, max)?,
            Place::Snapshot { .. } => self.partitions(slot)?,
            Place::Latest { .. } | Place::Partition { .. } => {
                return Err(Error::WrongKind("not a directory".into()));
            }
        };
        listed.retain(|entry| entry.cookie > cookie && is_plain_name(&entry.name));
        listed.sort_by_key(|entry| entry.cookie);
        Ok(listed)
    }

    fn volumes(&self) -> Vec<TreeEntry> {
        let entry = |volume: VolumeEntry| self.dir_entry(volume.name, Place::Volume(volume.id), volume.id);
        self.provider.volumes().into_iter().map(entry).collect()
    }

    fn snapshots(&self, volume: u64, cookie: u64, max: usize) -> Result<Vec<TreeEntry>> {
        self.sweep();
        let snapshots = self.provider.snapshots(&self.volume_name(volume)?);
        let newest = newest(&snapshots).map(|newest| newest.id);
        // A snapshot that got the name before it was reserved keeps it.
        let taken = snapshots.iter().any(|snapshot| snapshot.name == LATEST);
        let entry = |snapshot: SnapshotEntry| {
            self.dir_entry(snapshot.name, snapshot_place(volume, snapshot.id), snapshot.id)
        };
        let no_by_time = snapshots.is_empty() || snapshots.iter().any(|snapshot| snapshot.name == BY_TIME);
        let mut rest: Vec<SnapshotEntry> = snapshots.into_iter().filter(|of| of.id >= cookie).collect();
        rest.sort_by_key(|snapshot| snapshot.id);
        // A number is given to what is told only.
        let more = rest.len() > max;
        let mut listed: Vec<_> = rest.into_iter().take(max).map(entry).collect();
        if more {
            return Ok(listed);
        }
        if !no_by_time {
            let node = self.top(Place::ByTime(volume));
            let kind = Some(FileKind::Dir);
            listed.push(TreeEntry { name: BY_TIME.into(), node, kind, cookie: BY_TIME_COOKIE });
        }
        if let Some(snapshot) = newest.filter(|_| !taken) {
            listed.push(TreeEntry {
                name: LATEST.into(),
                node: self.top(Place::Latest { volume, snapshot }),
                kind: Some(FileKind::Symlink),
                cookie: LATEST_COOKIE,
            });
        }
        Ok(listed)
    }

    /// The snapshots by their times. Of several made in one second, the one made last has the name.
    fn by_time(&self, volume: u64, cookie: u64, max: usize) -> Result<Vec<TreeEntry>> {
        let mut by_time: BTreeMap<i64, SnapshotEntry> = BTreeMap::new();
        for snapshot in self.provider.snapshots(&self.volume_name(volume)?) {
            let known = by_time.entry(snapshot.created_at).or_insert_with(|| snapshot.clone());
            if known.id < snapshot.id {
                *known = snapshot;
            }
        }
        let entry = |(time, of): (i64, SnapshotEntry)| {
            let place = Place::Snapshot { volume, snapshot: of.id, by_time: true };
            Some(self.dir_entry(gmt::name(time)?, place, of.id))
        };
        let mut rest: Vec<_> = by_time.into_iter().filter(|(_, of)| of.id >= cookie).collect();
        rest.sort_by_key(|(_, of)| of.id);
        Ok(rest.into_iter().filter_map(entry).take(max).collect())
    }

    /// One name of a directory that is in no image, without making the others up.
    fn listed_name(&self, slot: &Arc<Slot<OpenSnapshot>>, name: &[u8]) -> Result<Option<Node>> {
        let text = std::str::from_utf8(name).ok();
        match (slot.place, text, gmt::moment(name)) {
            (Place::Root, Some(text), _) => {
                let found = self.provider.volumes().into_iter().find(|volume| volume.name == text);
                Ok(found.filter(|_| is_plain_name(name)).map(|volume| self.top(Place::Volume(volume.id))))
            }
            (Place::Volume(volume) | Place::ByTime(volume), _, Some(time)) => {
                let all = self.provider.snapshots(&self.volume_name(volume)?).into_iter();
                let last = all.filter(|snapshot| snapshot.created_at == time).max_by_key(|of| of.id);
                Ok(last.map(|of| self.top(Place::Snapshot { volume, snapshot: of.id, by_time: true })))
            }
            (Place::Volume(volume), Some(text), None) if text != LATEST && text != BY_TIME => {
                let found = self.provider.named(&self.volume_name(volume)?, text);
                let found = found.filter(|_| is_plain_name(name));
                Ok(found.map(|snapshot| self.top(snapshot_place(volume, snapshot.id))))
            }
            _ => {
                let found = self.listed(slot, 0, usize::MAX)?.into_iter().find(|entry| entry.name == name);
                Ok(found.map(|entry| entry.node))
            }
        }
    }

    fn partitions(&self, slot: &Arc<Slot<OpenSnapshot>>) -> Result<Vec<TreeEntry>> {
        let opened = self.opened(slot)?;
        let Shown::Partitions(partitions) = &opened.shown else { return Ok(Vec::new()) };
        let entry = |partition: &Partition| {
            let place = Place::Partition { of: slot.fs, number: partition.number };
            self.dir_entry(partition.directory.clone(), place, u64::from(partition.number))
        };
        Ok(partitions.iter().map(entry).collect())
    }

    fn dir_entry(&self, name: String, place: Place, id: u64) -> TreeEntry {
        let kind = Some(FileKind::Dir);
        TreeEntry { name: name.into_bytes(), node: self.top(place), kind, cookie: id.saturating_add(1) }
    }

    /// Forgets the numbers of deleted snapshots when many were given.
    fn sweep(&self) {
        let slots = self.slots.len() as u64;
        if slots < self.sweep_at.load(Ordering::Relaxed) {
            return;
        }
        let volumes = self.provider.volumes().into_iter();
        let alive: HashSet<u64> =
            volumes.flat_map(|volume| self.provider.snapshots(&volume.name)).map(|entry| entry.id).collect();
        self.slots.retain(|snapshot| alive.contains(&snapshot));
        let next = (self.slots.len() * 2).max(SLOTS_BEFORE_SWEEP);
        self.sweep_at.store(next as u64, Ordering::Relaxed);
    }

    /// Attributes of a root directory or of `latest`.
    fn top_attr(&self, slot: &Arc<Slot<OpenSnapshot>>) -> Result<Attr> {
        match slot.place {
            Place::Root => Ok(dir_attr(0)),
            Place::Volume(id) | Place::ByTime(id) => {
                let snapshots = self.provider.snapshots(&self.volume_name(id)?);
                Ok(dir_attr(newest(&snapshots).map_or(0, |newest| newest.created_at)))
            }
            Place::Latest { .. } => {
                let (_, snapshot) = self.names(slot.place)?;
                Ok(symlink_attr(snapshot.created_at, &snapshot.name))
            }
            Place::Partition { of, number } => {
                let view = self.partition(of, number)?.view;
                view.attr(view.root())
            }
            Place::Snapshot { .. } => match slot.top.get() {
                Some(attr) => Ok(attr.clone()),
                None => {
                    let (_, snapshot) = self.names(slot.place)?;
                    slot.stand_in_told.store(true, Ordering::SeqCst);
                    Ok(dir_attr(snapshot.created_at))
                }
            },
        }
    }
}

impl Tree for SnapshotTree {
    fn root(&self) -> Node {
        Node { fs: 0, ino: TOP }
    }

    fn is_static(&self) -> bool {
        false
    }

    fn lifetime(&self, node: Node) -> Lifetime {
        if node.ino != TOP {
            return Lifetime::Forever;
        }
        match self.slots.get(node.fs).map(|slot| slot.place) {
            Some(Place::Latest { .. }) | None => Lifetime::Now,
            Some(Place::Partition { .. }) => Lifetime::Forever,
            Some(Place::Root | Place::Volume(_) | Place::ByTime(_) | Place::Snapshot { .. }) => {
                Lifetime::Short
            }
        }
    }

    fn reveal(&self, dir: Node) -> Result<bool> {
        if dir.ino != TOP {
            return Ok(false);
        }
        let slot = self.slot(dir.fs)?;
        if !matches!(slot.place, Place::Snapshot { .. }) {
            return Ok(false);
        }
        self.opened(&slot)?;
        let told = slot.stand_in_told.swap(false, Ordering::SeqCst);
        let stand_in = dir_attr(0);
        let same =
            |attr: &Attr| (attr.mode, attr.uid, attr.gid) == (stand_in.mode, stand_in.uid, stand_in.gid);
        Ok(told && !slot.top.get().is_some_and(same))
    }

    fn lookup(&self, dir: Node, name: &[u8]) -> Result<Node> {
        let slot = self.slot(dir.fs)?;
        if let Some(Pinned { view, .. }) = self.view(&slot)? {
            let ino = view.lookup(inner(&*view, dir.ino), name)?;
            return Ok(outer(&*view, dir.fs, ino));
        }
        self.listed_name(&slot, name)?.ok_or_else(|| Error::NotFound(crate::walk::show(name)))
    }

    fn readdir(&self, dir: Node, cookie: u64, max: usize) -> Result<Vec<TreeEntry>> {
        let slot = self.slot(dir.fs)?;
        match self.view(&slot)? {
            Some(Pinned { view, .. }) => entries(&*view, dir.fs, dir.ino, cookie, max),
            None => {
                let listed = self.listed(&slot, cookie, max)?.into_iter();
                Ok(listed.take(max).collect())
            }
        }
    }

    fn list(&self, dir: Node, cookie: u64, max: usize) -> Result<TreeListing> {
        let slot = self.slot(dir.fs)?;
        if let Some(Pinned { view, .. }) = self.view(&slot)? {
            return list(&*view, dir.fs, dir.ino, cookie, max);
        }
        list_each(self, dir, cookie, max)
    }

    fn lookup_attr(&self, dir: Node, name: &[u8]) -> Result<(Node, Attr)> {
        let slot = self.slot(dir.fs)?;
        if let Some(Pinned { view, .. }) = self.view(&slot)? {
            return lookup_attr(&*view, dir.fs, dir.ino, name);
        }
        let node = self.lookup(dir, name)?;
        Ok((node, self.attr(node)?))
    }

    fn attr(&self, node: Node) -> Result<Attr> {
        let slot = self.slot(node.fs)?;
        if node.ino == TOP {
            return self.top_attr(&slot);
        }
        match self.view(&slot)? {
            Some(Pinned { view, .. }) => view.attr(node.ino),
            None => Err(Error::NotFound(format!("inode {}", node.ino))),
        }
    }

    fn readlink(&self, node: Node) -> Result<Vec<u8>> {
        let slot = self.slot(node.fs)?;
        if let Place::Latest { .. } = slot.place {
            return Ok(self.names(slot.place)?.1.name.into_bytes());
        }
        match self.view(&slot)? {
            Some(Pinned { view, .. }) => view.readlink(inner(&*view, node.ino)),
            None => Err(Error::WrongKind("not a symbolic link".into())),
        }
    }

    fn xattr(&self, node: Node, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let slot = self.slot(node.fs)?;
        // `ls -l` asks for labels and ACLs of every snapshot: no reason to open them all.
        let unopened = node.ino == TOP && slot.top.get().is_none();
        if unopened && name != REPLAY_XATTR {
            return Ok(None);
        }
        match self.view(&slot)? {
            Some(Pinned { view, .. }) => xattr_of(&*view, node.ino, name),
            None => Ok((name == REPLAY_XATTR).then(|| b"clean".to_vec())),
        }
    }

    fn xattr_names(&self, node: Node) -> Result<Vec<Vec<u8>>> {
        let slot = self.slot(node.fs)?;
        if node.ino == TOP && slot.top.get().is_none() {
            return Ok(Vec::new());
        }
        match self.view(&slot)? {
            Some(Pinned { view, .. }) => xattr_names_of(&*view, node.ino),
            None => Ok(Vec::new()),
        }
    }

    fn open(&self, node: Node) -> Result<OpenFile> {
        match self.view(&self.slot(node.fs)?)? {
            Some(Pinned { view, pin }) => {
                let ino = inner(&*view, node.ino);
                Ok(OpenFile { view, ino, _pin: Some(pin) })
            }
            None => Err(Error::WrongKind("not a file of a snapshot".into())),
        }
    }

    fn statfs(&self, node: Node) -> Result<StatFs> {
        let slot = self.slot(node.fs)?;
        let unopened = matches!(slot.place, Place::Snapshot { .. }) && slot.top.get().is_none();
        let view = if unopened { None } else { self.view(&slot)? };
        Ok(view.map_or(StatFs { block_bytes: 4096, name_max: 255, ..StatFs::default() }, |pinned| {
            pinned.view.statfs()
        }))
    }
}

/// A snapshot under its own name.
fn snapshot_place(volume: u64, snapshot: u64) -> Place {
    Place::Snapshot { volume, snapshot, by_time: false }
}

/// The newest of `snapshots`; of several made in one second, the one made last.
fn newest(snapshots: &[SnapshotEntry]) -> Option<&SnapshotEntry> {
    snapshots.iter().max_by_key(|entry| (entry.created_at, entry.id))
}
