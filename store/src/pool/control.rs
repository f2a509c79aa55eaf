//! Changes of the catalog: volumes, snapshots, clones. One at a time; each is checked, appended to the log,
//! performed, and durable when it returns.

use super::Pool;
use super::open::perform;
use crate::catalog::{Catalog, Version};
use crate::core::Core;
use crate::format::record::{CutEntry, Record};
use crate::io::port::block_on;
use crate::log::Log;
use crate::mutation::Mutation;
use crate::snapshot::Snapshot;
use crate::types::{BLOCK_BYTES, Epoch, MAX_VOLUME_BYTES, VersionId, VolumeId};
use crate::volume::Volume;
use crate::{ATOMIC_LABEL, Error, Labels, PoolState, Result, SnapshotInfo, SnapshotSpec, VolumeInfo};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

/// Most volumes in one cut.
const MAX_CUT: usize = 128;

/// Checks a volume's or snapshot's name: UTF-8 (by type), 1 to 255 bytes, no `/`, no `@`, no control
/// characters, not `.` or `..`.
pub fn check_name(what: &str, name: &str) -> Result<()> {
    let why = if name.is_empty() {
        "it is empty"
    } else if name.len() > 255 {
        "it is longer than 255 bytes"
    } else if name == "." || name == ".." {
        "`.` and `..` mean directories"
    } else if name.contains('/') {
        "it contains `/`"
    } else if name.contains('@') {
        "it contains `@`, which separates volume and snapshot"
    } else if name.chars().any(char::is_control) {
        "it contains a control character"
    } else if what == "snapshot" && name == "latest" {
        "`latest` means the newest snapshot"
    } else {
        return Ok(());
    };
    let shown: String = name.escape_debug().take(80).collect();
    Err(Error::invalid(format!("`{shown}` cannot be the name of a {what}: {why}")))
}

/// Checks a volume's size: a positive multiple of 4 KiB, at most 1 PiB.
fn check_size(bytes: u64) -> Result<u64> {
    if bytes == 0 {
        return Err(Error::invalid("a volume cannot have 0 bytes"));
    }
    if bytes > MAX_VOLUME_BYTES {
        return Err(Error::invalid(format!("{bytes} bytes are more than a volume can have (1 PiB)")));
    }
    if !bytes.is_multiple_of(BLOCK_BYTES) {
        let below = bytes - bytes % BLOCK_BYTES;
        return Err(Error::invalid(format!("a volume's size is a multiple of 4096 bytes, {bytes} is not"))
            .hint(format!("the nearest sizes are {below} and {}", below + BLOCK_BYTES)));
    }
    Ok(bytes / BLOCK_BYTES)
}

fn check_labels(labels: &Labels) -> Result<()> {
    if labels.len() > 64 {
        return Err(Error::invalid("at most 64 labels"));
    }
    for (k, v) in labels {
        if k.is_empty() || k.len() > 255 || v.len() > 1024 || k.chars().any(char::is_control) {
            return Err(Error::invalid(format!("label `{}` is not valid", k.escape_debug()))
                .hint("a key has 1 to 255 bytes, a value at most 1024"));
        }
    }
    Ok(())
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn free_name(catalog: &Catalog, name: &str) -> Result<()> {
    check_name("volume", name)?;
    match catalog.volume_named(name) {
        Err(_) => Ok(()),
        Ok(v) if v.head.is_some() => Err(Error::exists(format!("volume `{name}` exists already"))),
        Ok(_) => Err(Error::exists(format!("snapshots of a deleted volume `{name}` still exist"))
            .hint("delete these snapshots, or take another name")),
    }
}

impl Core {
    /// Appends a catalog record and performs it.
    fn record(&self, record: &Record) -> Result<()> {
        self.reserve_record(record)?;
        self.apply_reserved(record)
    }

    /// Sets aside the ring space of a record that will be appended.
    fn reserve_record(&self, record: &Record) -> Result<()> {
        let frame = Log::frame_len(record);
        if frame > self.log.largest_reservation() {
            return Err(Error::invalid("names and labels are too long together"));
        }
        block_on(self.reserve_ring(&self.blocking(), frame))
    }

    fn apply_reserved(&self, record: &Record) -> Result<()> {
        let _alone = self.commit.write();
        if Mutation::TwoTruths.on() && matches!(record, Record::Create { .. }) {
            self.log.unreserve(Log::frame_len(record));
        } else {
            self.log.append(std::slice::from_ref(record));
        }
        let done = perform(&mut self.catalog.lock(), &mut self.cells.write(), record);
        if let Err(e) = &done {
            // The log has it and memory does not.
            self.poison.set(&e.to_string());
        }
        done
    }

    /// The open volume with that id.
    pub fn open_handle(&self, id: VolumeId) -> Option<Arc<Volume>> {
        self.volumes.lock().get(&id).and_then(std::sync::Weak::upgrade)
    }
}

impl Pool {
    /// Makes an empty volume.
    ///
    /// # Errors
    /// `Invalid`, `Exists`.
    pub fn create_volume(&self, name: &str, size_bytes: u64, labels: Labels) -> Result<VolumeInfo> {
        let core = &self.core;
        let _op = core.ops.lock();
        core.writable()?;
        let size_blocks = check_size(size_bytes)?;
        check_labels(&labels)?;
        let record = {
            let catalog = core.catalog.lock();
            free_name(&catalog, name)?;
            Record::Create {
                volume: VolumeId(catalog.next_id),
                head: VersionId(catalog.next_id + 1),
                epoch: Epoch(catalog.next_epoch),
                size_blocks,
                created_at: now(),
                name: name.to_owned(),
                labels,
            }
        };
        core.record(&record)?;
        core.flush_now()?;
        self.volume(name)
    }

    /// Gives a volume another name; its snapshots follow.
    pub fn rename_volume(&self, old: &str, new: &str) -> Result<VolumeInfo> {
        let core = &self.core;
        let _op = core.ops.lock();
        core.writable()?;
        let volume = {
            let catalog = core.catalog.lock();
            let id = catalog.volume_named(old)?.id;
            if old == new {
                drop(catalog);
                return self.volume(old);
            }
            free_name(&catalog, new)?;
            id
        };
        core.record(&Record::Rename { volume, name: new.to_owned() })?;
        core.flush_now()?;
        self.volume(new)
    }

    /// Grows a volume; an open handle sees the new size at once.
    ///
    /// # Errors
    /// `Invalid` for a smaller size.
    pub fn resize_volume(&self, name: &str, size_bytes: u64) -> Result<VolumeInfo> {
        let core = &self.core;
        let _op = core.ops.lock();
        core.writable()?;
        let size_blocks = check_size(size_bytes)?;
        let (volume, old) = {
            let catalog = core.catalog.lock();
            let (v, head) = catalog.live_volume(name)?;
            (v.id, head.size_blocks)
        };
        if size_blocks < old {
            return Err(Error::invalid(format!(
                "volume `{name}` has {} bytes and cannot shrink to {size_bytes}",
                old * BLOCK_BYTES
            ))
            .hint("make a smaller volume and copy the files"));
        }
        if size_blocks > old {
            core.record(&Record::Resize { volume, size_blocks })?;
            core.flush_now()?;
            if let Some(handle) = core.open_handle(volume) {
                handle.size_blocks.store(size_blocks, Ordering::Release);
            }
        }
        self.volume(name)
    }

    /// Deletes a volume; its snapshots stay.
    ///
    /// # Errors
    /// `Busy` while it is open or marked as attached.
    pub fn delete_volume(&self, name: &str) -> Result<()> {
        let core = &self.core;
        let _op = core.ops.lock();
        core.writable()?;
        let volume = {
            // A volume that the re-sequencer looks at just now is not open for that.
            let _paused = core.resequencer.pause();
            let catalog = core.catalog.lock();
            let (v, _) = catalog.live_volume(name)?;
            if v.attached || core.open_handle(v.id).is_some() {
                return Err(Error::busy(format!("volume `{name}` is attached"))
                    .hint(format!("unmount it and `cowslip volume detach {name}` first")));
            }
            v.id
        };
        core.record(&Record::DeleteVolume { volume })?;
        core.flush_now()?;
        core.poke();
        Ok(())
    }

    /// Remembers whether the volume is to be attached at start.
    pub fn set_attached(&self, name: &str, attached: bool) -> Result<()> {
        let core = &self.core;
        let _op = core.ops.lock();
        core.writable()?;
        let (volume, old) = {
            let catalog = core.catalog.lock();
            let (v, _) = catalog.live_volume(name)?;
            (v.id, v.attached)
        };
        if old != attached {
            core.record(&Record::Attach { volume, attached })?;
            core.flush_now()?;
        }
        Ok(())
    }

    /// Takes snapshots of one or several volumes at one point; durable when it returns.
    ///
    /// # Errors
    /// `NotFound`, `Exists`, `Invalid`, `NoSpace` when the pool is low on space.
    pub fn create_snapshots(&self, specs: &[SnapshotSpec], labels: Labels) -> Result<Vec<SnapshotInfo>> {
        let core = &self.core;
        let _op = core.ops.lock();
        core.writable()?;
        check_labels(&labels)?;
        let state = self.info().state;
        if matches!(state, PoolState::Low | PoolState::Full) {
            return Err(Error::no_space(format!("no snapshot while the pool is {}", state.as_str()))
                .hint("a snapshot makes every overwrite take space: delete snapshots or volumes first"));
        }
        let entries = cut_entries(&core.catalog.lock(), specs)?;
        let mut ids: Vec<VolumeId> = entries.iter().map(|e| e.volume).collect();
        ids.sort_unstable();
        let record = Record::Cut { created_at: now(), entries, labels };
        // Ring space before the gates: inside, nobody may wait for a checkpoint (H20).
        core.reserve_record(&record)?;
        let handles: Vec<_> = ids.iter().filter_map(|id| core.open_handle(*id)).collect();
        let gates: Vec<_> = handles.iter().map(|h| h.gate.close()).collect();
        let done = core.apply_reserved(&record);
        drop(gates);
        done?;
        core.flush_now()?;
        if core.has_many_layers() {
            core.poke();
        }
        specs.iter().map(|s| self.snapshot(&s.volume, &s.name)).collect()
    }

    /// Deletes a snapshot: it is gone from the listing at once, its space follows in the background.
    pub fn delete_snapshot(&self, volume: &str, name: &str) -> Result<()> {
        let core = &self.core;
        let _op = core.ops.lock();
        core.writable()?;
        let version = core.catalog.lock().snapshot_named(volume, name)?.id;
        core.record(&Record::DeleteSnapshot { version })?;
        core.flush_now()?;
        core.poke();
        Ok(())
    }

    /// Makes a volume of a snapshot, at once.
    pub fn clone_snapshot(&self, volume: &str, name: &str, new: &str, labels: Labels) -> Result<VolumeInfo> {
        let core = &self.core;
        let _op = core.ops.lock();
        core.writable()?;
        check_labels(&labels)?;
        let record = {
            let catalog = core.catalog.lock();
            let source = catalog.snapshot_named(volume, name)?.id;
            free_name(&catalog, new)?;
            Record::Clone {
                source,
                volume: VolumeId(catalog.next_id),
                head: VersionId(catalog.next_id + 1),
                epoch: Epoch(catalog.next_epoch),
                created_at: now(),
                name: new.to_owned(),
                labels,
            }
        };
        core.record(&record)?;
        core.flush_now()?;
        self.volume(new)
    }

    /// Puts a volume back to one of its snapshots; older and newer snapshots stay, the size stays the larger
    /// one. Open handles go on with the new content: whoever caches above them drops that.
    pub fn rollback(&self, volume: &str, name: &str) -> Result<VolumeInfo> {
        let core = &self.core;
        let _op = core.ops.lock();
        core.writable()?;
        let (id, record, head) = {
            let catalog = core.catalog.lock();
            let (v, _) = catalog.live_volume(volume)?;
            let source = catalog.snapshot_named(volume, name)?.id;
            let head = VersionId(catalog.next_id);
            (v.id, Record::Rollback { volume: v.id, source, head, epoch: Epoch(catalog.next_epoch) }, head)
        };
        core.reserve_record(&record)?;
        let handle = core.open_handle(id);
        let gate = handle.as_ref().map(|h| h.gate.close());
        core.apply_reserved(&record)?;
        if let Some(h) = &handle {
            *h.head.write() = core.cell(head)?;
        }
        drop(gate);
        core.flush_now()?;
        core.poke();
        self.volume(volume)
    }

    /// Opens a volume for I/O. All callers of one volume share one handle.
    pub fn open_volume(&self, name: &str) -> Result<Arc<Volume>> {
        let core = &self.core;
        let _op = core.ops.lock();
        let catalog = core.catalog.lock();
        let (v, head) = catalog.live_volume(name)?;
        let mut handles = core.volumes.lock();
        if let Some(open) = handles.get(&v.id).and_then(std::sync::Weak::upgrade) {
            return Ok(open);
        }
        let atomic = v.labels.get(ATOMIC_LABEL).is_some_and(|on| on == "true");
        let handle = Arc::new(Volume::new(core.clone(), v.id, core.cell(head.id)?, head.size_blocks, atomic));
        handles.retain(|_, h| h.strong_count() > 0);
        handles.insert(v.id, Arc::downgrade(&handle));
        Ok(handle)
    }

    /// Opens a snapshot for reading.
    pub fn open_snapshot(&self, volume: &str, name: &str) -> Result<Arc<Snapshot>> {
        let core = &self.core;
        let version = core.catalog.lock().snapshot_named(volume, name)?.clone();
        let cell = core.cell(version.id)?;
        Ok(Arc::new(Snapshot { core: core.clone(), cell, size_blocks: version.size_blocks }))
    }

    /// Opens the snapshot with this id, by whatever name it goes now.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn open_snapshot_by_id(&self, id: u64) -> Result<Arc<Snapshot>> {
        let missing = || Error::not_found(format!("there is no snapshot with the id {id}"));
        let info = self.snapshot_in_brief(id).ok_or_else(missing)?;
        let cell = self.core.cell(VersionId(id))?;
        Ok(Arc::new(Snapshot { core: self.core.clone(), cell, size_blocks: info.size_bytes / BLOCK_BYTES }))
    }
}

/// The entries of a cut, in the order asked for; epochs follow the versions so that they grow downwards.
fn cut_entries(catalog: &Catalog, specs: &[SnapshotSpec]) -> Result<Vec<CutEntry>> {
    if specs.is_empty() || specs.len() > MAX_CUT {
        return Err(Error::invalid(format!("a snapshot is of 1 to {MAX_CUT} volumes, not {}", specs.len())));
    }
    let mut seen = HashSet::new();
    let entry = |(i, spec): (u64, &SnapshotSpec)| {
        check_name("snapshot", &spec.name)?;
        let (v, _): (_, &Arc<Version>) = catalog.live_volume(&spec.volume)?;
        if !seen.insert(v.id) {
            return Err(Error::invalid(format!("volume `{}` is named twice", spec.volume)));
        }
        if catalog.snapshot_named(&spec.volume, &spec.name).is_ok() {
            let name = format!("{}@{}", spec.volume, spec.name);
            return Err(Error::exists(format!("snapshot `{name}` exists already")));
        }
        Ok(CutEntry {
            volume: v.id,
            snapshot: VersionId(catalog.next_id + i),
            head_epoch: Epoch(catalog.next_epoch + i),
            consistency: spec.consistency,
            name: spec.name.clone(),
        })
    };
    (0..).zip(specs).map(entry).collect()
}
