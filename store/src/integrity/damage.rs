//! Blocks that are not what they were: which, and whose.
//!
//! They are found on the threads that read; whose they are is looked up later and elsewhere, for it takes a walk.

use super::seal::next_leaf;
use crate::catalog::{Catalog, Kind, Version};
use crate::core::Core;
use crate::format::node::span;
use crate::io::port::ready;
use crate::map::tree::leaf_view;
use crate::types::{BLOCK_BYTES, Epoch, Phys};
use crate::{Pool, Result};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// A damaged block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedBlock {
    /// Block of the pool, in units of 4096 bytes.
    pub block: u64,
    /// Byte offset at which all who hold it have it; None while it is not known.
    pub offset: Option<u64>,
    /// Who holds it: `VOL` and `VOL@SNAP`.
    pub holders: Vec<String>,
}

type Listener = Box<dyn Fn(&DamagedBlock) + Send + Sync>;

/// The damaged blocks of a pool, as far as they were found since it was opened.
#[derive(Default)]
pub struct Damage {
    found: Mutex<BTreeMap<Phys, Found>>,
    listener: OnceLock<Listener>,
}

struct Found {
    /// Logical block, where the finder knew it.
    l: Option<u64>,
    holders: Option<Vec<String>>,
}

impl Damage {
    /// Notes that `p`, logical block `l` of its versions, is damaged.
    pub fn report(&self, p: Phys, l: Option<u64>) {
        let mut found = self.found.lock();
        let known = found.entry(p).or_insert(Found { l, holders: None });
        known.l = known.l.or(l);
    }
}

impl Pool {
    /// Damaged blocks found since the pool was opened and still in use.
    pub fn damage(&self) -> Vec<DamagedBlock> {
        self.core.name_damaged();
        let found = self.core.damage.found.lock();
        found.iter().map(|(p, known)| describe(*p, known)).collect()
    }

    /// Has `listener` told of every block that is found damaged, once it is known whose it is. One listener a pool.
    pub fn on_damage(&self, listener: impl Fn(&DamagedBlock) + Send + Sync + 'static) {
        // A second one is refused: the first stays.
        let _ = self.core.damage.listener.set(Box::new(listener));
    }

    /// Computes the checksums of all snapshots now, as the background does in its own time.
    ///
    /// # Errors
    /// `Io`, `Damaged`.
    pub fn seal(&self) -> Result<()> {
        self.core.checkpoint_now()?;
        while self.core.seal_step()?.is_some() {}
        self.core.keep_sealed();
        Ok(())
    }
}

fn describe(p: Phys, known: &Found) -> DamagedBlock {
    DamagedBlock {
        block: p.0,
        offset: known.l.map(|l| l * BLOCK_BYTES),
        holders: known.holders.clone().unwrap_or_default(),
    }
}

impl Core {
    /// Finds out who holds the blocks that were found, tells the listener, and forgets blocks that were freed.
    pub fn name_damaged(&self) {
        let fresh: Vec<(Phys, Option<u64>)> = {
            let mut found = self.damage.found.lock();
            found.retain(|p, _| self.alloc.sealed().has(*p));
            found.iter().filter(|(_, f)| f.holders.is_none()).map(|(p, f)| (*p, f.l)).collect()
        };
        for (p, l) in fresh {
            let catalog = self.catalog.lock().clone();
            let l = l.or_else(|| catalog.versions.values().find_map(|v| self.search(v, p)));
            let holds = |v: &&std::sync::Arc<Version>| l.is_some_and(|l| self.holds(v, l, p));
            let mut holders: Vec<String> =
                catalog.versions.values().filter(holds).map(|v| name_of(&catalog, v)).collect();
            holders.sort();
            let known = Found { l, holders: Some(holders) };
            let told = describe(p, &known);
            self.damage.found.lock().insert(p, known);
            tracing::error!(block = told.block, offset = told.offset, holders = ?told.holders, "a block is damaged");
            if let Some(listener) = self.damage.listener.get() {
                listener(&told);
            }
        }
    }

    fn holds(&self, v: &Version, l: u64, p: Phys) -> bool {
        let Ok(cell) = self.cell(v.id) else { return false };
        let _io = self.epochs.begin();
        let place = ready(self.place(&self.blocking(), &cell, l, 1));
        !v.doomed && place.is_ok_and(|place| place.data.is_some_and(|(at, _)| at == p))
    }

    /// Where a version has block `p`.
    fn search(&self, v: &Version, p: Phys) -> Option<u64> {
        let cell = self.cell(v.id).ok()?;
        let mut from = 0;
        loop {
            // A leaf at a time, so that a checkpoint never waits long for this.
            let _io = self.epochs.begin();
            let root = cell.live.read().root;
            let (base, leaf) = next_leaf(&self.cache, root, from, Epoch(0)).ok()??;
            let entries = leaf_view(&self.cache, leaf).unwrap_or_default();
            if let Some(l) = (base..).zip(entries).find_map(|(l, e)| e.filter(|e| e.p == p).map(|_| l)) {
                return Some(l);
            }
            from = base + span(0);
        }
    }
}

fn name_of(catalog: &Catalog, v: &Version) -> String {
    let volume = catalog.volumes.get(&v.volume).map_or("", |volume| volume.name.as_str());
    match &v.kind {
        Kind::Head => volume.to_owned(),
        Kind::Snapshot { name, .. } => format!("{volume}@{name}"),
    }
}
