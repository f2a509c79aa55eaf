//! A provider of snapshots in memory: every source names the fake that its opener gives for it.

use super::FakeView;
use fuse_view::{
    BlockRead, Error, Result,
    tree::{Contents, Limits, Opened, SnapshotEntry, SnapshotProvider, SnapshotTree, VolumeEntry},
};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};

/// Bytes in memory.
pub struct Bytes(pub Vec<u8>);

impl BlockRead for Bytes {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let start = usize::try_from(offset).unwrap();
        let from = self.0.get(start..start.saturating_add(buf.len()));
        buf.copy_from_slice(from.ok_or_else(|| Error::Corrupt("past the end".into()))?);
        Ok(())
    }
    fn len(&self) -> u64 {
        self.0.len() as u64
    }
}

/// Volumes with their snapshots; `opens` counts what was opened.
#[derive(Default)]
pub struct FakeProvider {
    pub volumes: Mutex<Vec<(VolumeEntry, Vec<SnapshotEntry>)>>,
    pub opens: AtomicU64,
}

impl FakeProvider {
    /// Adds a snapshot, made at the second that is its id, and the volume if there is none.
    pub fn add(&self, volume: &str, snapshot: &str, id: u64) {
        let mut volumes = self.volumes.lock().unwrap();
        let at = volumes.iter().position(|(entry, _)| entry.name == volume).unwrap_or_else(|| {
            let id = volumes.len() as u64 + 1;
            volumes.push((VolumeEntry { name: volume.into(), id }, Vec::new()));
            volumes.len() - 1
        });
        volumes[at].1.push(SnapshotEntry {
            name: snapshot.into(),
            id,
            created_at: i64::try_from(id).unwrap(),
        });
    }

    pub fn remove(&self, volume: &str, snapshot: &str) {
        let mut volumes = self.volumes.lock().unwrap();
        let (_, snapshots) = volumes.iter_mut().find(|(entry, _)| entry.name == volume).unwrap();
        snapshots.retain(|entry| entry.name != snapshot);
    }

    pub fn opens(&self) -> u64 {
        self.opens.load(Ordering::SeqCst)
    }
}

impl SnapshotProvider for FakeProvider {
    fn volumes(&self) -> Vec<VolumeEntry> {
        self.volumes.lock().unwrap().iter().map(|(volume, _)| volume.clone()).collect()
    }
    fn snapshots(&self, volume: &str) -> Vec<SnapshotEntry> {
        let volumes = self.volumes.lock().unwrap();
        let found = volumes.iter().find(|(entry, _)| entry.name == volume);
        found.map(|(_, snapshots)| snapshots.clone()).unwrap_or_default()
    }
    fn open(&self, volume: &str, snapshot: &str) -> Result<Arc<dyn BlockRead>> {
        self.opens.fetch_add(1, Ordering::SeqCst);
        Ok(Arc::new(Bytes(format!("{volume}@{snapshot}").into_bytes())))
    }
}

/// A tree of `provider`; `views` gives the contents for a source's text.
pub fn tree(
    provider: &Arc<FakeProvider>,
    open_snapshots: usize,
    contents: impl Fn(&str) -> Result<Contents> + Send + Sync + 'static,
) -> Arc<SnapshotTree> {
    let opener = move |_: &Opened, source: Arc<dyn BlockRead>| {
        let mut text = vec![0; usize::try_from(source.len()).unwrap()];
        source.read_at(0, &mut text)?;
        contents(std::str::from_utf8(&text).unwrap())
    };
    Arc::new(SnapshotTree::with_opener(provider.clone(), Limits { open_snapshots }, opener))
}

/// A file system with one file, `name`, whose content is `text`.
pub fn files(text: &str) -> Result<Contents> {
    let mut view = FakeView::new();
    view.file(super::ROOT, "name", text.as_bytes());
    let dir = view.dir(super::ROOT, "dir");
    view.file(dir, "deep", b"deep");
    Ok(Contents::Files(Arc::new(view)))
}
