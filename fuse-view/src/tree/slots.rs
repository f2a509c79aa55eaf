//! The numbers of the file systems of a [`super::SnapshotTree`].
//!
//! Invariants: a number stands for the same place for ever and is never given again, so that what the kernel
//! remembers of a deleted snapshot is never taken for another one. Numbers of places that are gone are dropped.

use crate::Attr;
use parking_lot::{Mutex, RwLock};
use std::{
    any::Any,
    collections::HashMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64},
    },
};

/// What a number stands for. Volumes and snapshots by their ids: renaming keeps the number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// The list of volumes.
    Root,
    /// The list of snapshots of a volume.
    Volume(u64),
    /// A snapshot; with `by_time`, under the name of its time, where it is a directory of its own.
    Snapshot { volume: u64, snapshot: u64, by_time: bool },
    /// The list of snapshots of a volume by their times.
    ByTime(u64),
    /// The symbolic link `latest` while it leads to this snapshot.
    Latest { volume: u64, snapshot: u64 },
    /// A partition of the snapshot with this number.
    Partition { of: u32, number: u32 },
}

impl Place {
    /// The snapshot that it lives and dies with.
    pub fn snapshot(self) -> Option<u64> {
        match self {
            Self::Snapshot { snapshot, .. } | Self::Latest { snapshot, .. } => Some(snapshot),
            Self::Root | Self::Volume(_) | Self::ByTime(_) | Self::Partition { .. } => None,
        }
    }
}

/// One file system of the tree.
pub struct Slot<Opened> {
    pub fs: u32,
    pub place: Place,
    /// What was opened of a snapshot, while it is open. The lock is held while opening, so that others who
    /// look into the same snapshot wait instead of opening it again.
    pub opened: Mutex<Option<Arc<Opened>>>,
    /// When it was used last, by the tree's count of uses.
    pub last_use: AtomicU64,
    /// Attributes of the root directory, known since the first opening, kept when it is closed.
    pub top: OnceLock<Attr>,
    /// Somebody was told a stand-in for them before.
    pub stand_in_told: AtomicBool,
}

/// All numbers given.
pub struct Slots<Opened> {
    tables: RwLock<Tables<Opened>>,
}

struct Tables<Opened> {
    by_fs: HashMap<u32, Arc<Slot<Opened>>>,
    by_place: HashMap<Place, u32>,
    next: u32,
}

impl<Opened: Any> Slots<Opened> {
    /// With the root as number 0.
    pub fn new() -> Self {
        let tables = Tables { by_fs: HashMap::new(), by_place: HashMap::new(), next: 0 };
        let slots = Self { tables: RwLock::new(tables) };
        slots.of(Place::Root);
        slots
    }

    /// The slot of `place`, made if there is none.
    pub fn of(&self, place: Place) -> Arc<Slot<Opened>> {
        {
            let tables = self.tables.read();
            if let Some(slot) = tables.by_place.get(&place).and_then(|fs| tables.by_fs.get(fs)) {
                return slot.clone();
            }
        }
        let mut tables = self.tables.write();
        if let Some(slot) = tables.by_place.get(&place).and_then(|fs| tables.by_fs.get(fs)) {
            return slot.clone();
        }
        let fs = tables.next;
        // 2³² snapshots looked at in one mount: one every second for 136 years.
        tables.next = tables.next.saturating_add(1);
        let slot = Arc::new(Slot {
            fs,
            place,
            opened: Mutex::new(None),
            last_use: AtomicU64::new(0),
            top: OnceLock::new(),
            stand_in_told: AtomicBool::new(false),
        });
        tables.by_fs.insert(fs, slot.clone());
        tables.by_place.insert(place, fs);
        slot
    }

    /// The slot with number `fs`.
    pub fn get(&self, fs: u32) -> Option<Arc<Slot<Opened>>> {
        self.tables.read().by_fs.get(&fs).cloned()
    }

    /// Slots that are given now.
    pub fn len(&self) -> usize {
        self.tables.read().by_fs.len()
    }

    /// Drops the slots of snapshots for which `exists` says no, and of their partitions.
    pub fn retain(&self, exists: impl Fn(u64) -> bool) {
        let mut tables = self.tables.write();
        let Tables { by_fs, by_place, .. } = &mut *tables;
        by_fs.retain(|_, slot| slot.place.snapshot().is_none_or(&exists));
        let gone = |slot: &Slot<Opened>| match slot.place {
            Place::Partition { of, .. } => Some(of),
            _ => None,
        };
        let orphans: Vec<u32> = by_fs
            .values()
            .filter(|slot| gone(slot).is_some_and(|of| !by_fs.contains_key(&of)))
            .map(|slot| slot.fs)
            .collect();
        for fs in orphans {
            by_fs.remove(&fs);
        }
        by_place.retain(|_, fs| by_fs.contains_key(fs));
    }
}
