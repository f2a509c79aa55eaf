//! The tree of all snapshots: what it shows, and its mount.

use super::agent::Agent;
use super::events::{Events, Subject};
use super::socket::make_dir;
use crate::readers;
use fuse_view::fuse::{self, Mounted, Options};
use fuse_view::source::SnapshotSource;
use fuse_view::tree::{Limits, Opened, SnapshotEntry, SnapshotProvider, SnapshotTree, VolumeEntry};
use fuse_view::worker::{Event, EventKind, Workers};
use fuse_view::{BlockRead, Error, Result};
use parking_lot::Mutex;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::{Pool, SnapshotBrief, VolumeBrief};

/// The pool as the tree sees it.
pub struct PoolProvider(pub Arc<Pool>);

impl SnapshotProvider for PoolProvider {
    fn volumes(&self) -> Vec<VolumeEntry> {
        let entry = |VolumeBrief { name, id }| VolumeEntry { name, id };
        self.0.volumes_in_brief().into_iter().map(entry).collect()
    }

    fn snapshots(&self, volume: &str) -> Vec<SnapshotEntry> {
        self.0.snapshots_in_brief(volume, 0).unwrap_or_default().into_iter().map(entry).collect()
    }

    fn named(&self, volume: &str, snapshot: &str) -> Option<SnapshotEntry> {
        self.0.snapshot_named_in_brief(volume, snapshot).map(entry)
    }

    fn with_id(&self, _volume: &str, id: u64) -> Option<SnapshotEntry> {
        self.0.snapshot_in_brief(id).map(entry)
    }

    fn open(&self, volume: &str, snapshot: &str) -> Result<Arc<dyn BlockRead>> {
        match self.0.open_snapshot(volume, snapshot) {
            Ok(snapshot) => Ok(Arc::new(SnapshotSource(snapshot))),
            Err(error) if error.kind() == store::ErrorKind::NotFound => {
                Err(Error::NotFound(error.to_string()))
            }
            Err(error) => {
                Err(Error::Io { what: format!("open {volume}@{snapshot}"), source: io::Error::other(error) })
            }
        }
    }
}

fn entry(of: SnapshotBrief) -> SnapshotEntry {
    SnapshotEntry { name: of.name, id: of.id, created_at: of.created_at }
}

/// The mount of the tree.
#[derive(Default)]
pub struct SnapshotsMount(Mutex<State>);

#[derive(Default)]
enum State {
    #[default]
    None,
    Mounted {
        mounted: Mounted,
        tree: Arc<SnapshotTree>,
    },
    Failed(String),
}

impl SnapshotsMount {
    /// Mounts the tree where the configuration wants it. A failure is an event and a warning in
    /// `status`; the agent goes on without.
    pub fn mount(&self, agent: &Agent) {
        let Some(dir) = &agent.config.snapshots_dir else { return };
        let state = match mount(agent, dir) {
            Ok((mounted, tree)) => State::Mounted { mounted, tree },
            Err(error) => {
                let message = format!("snapshots cannot be browsed as files: {error}");
                agent.events.warn("snapshots_not_mounted", Subject::default(), &message);
                State::Failed(message)
            }
        };
        *self.0.lock() = state;
    }

    /// Takes the mount away; files that are open in it stay readable until they are closed.
    pub fn unmount(&self) {
        let state = std::mem::take(&mut *self.0.lock());
        if let State::Mounted { mounted, .. } = state
            && let Err(error) = mounted.unmount()
        {
            tracing::warn!("the snapshots stay mounted: {error}");
        }
    }

    /// Where it is mounted.
    pub fn dir(&self) -> Option<PathBuf> {
        match &*self.0.lock() {
            State::Mounted { mounted, .. } if mounted.is_alive() => Some(mounted.dir().to_owned()),
            _ => None,
        }
    }

    /// Why it is not mounted although it should be.
    pub fn failure(&self) -> Option<String> {
        match &*self.0.lock() {
            State::Failed(why) => Some(why.clone()),
            State::Mounted { mounted, .. } if !mounted.is_alive() => {
                let dir = mounted.dir().display();
                Some(format!(
                    "snapshots cannot be browsed as files: somebody unmounted {dir}; restart the agent"
                ))
            }
            _ => None,
        }
    }

    /// Lets go of snapshots that are about to be deleted.
    pub fn close(&self, snapshots: &[u64]) {
        if let State::Mounted { tree, .. } = &*self.0.lock() {
            tree.close(snapshots);
        }
    }

    /// Lets go of what was not used since the last call.
    pub fn close_idle(&self) {
        if let State::Mounted { tree, .. } = &*self.0.lock() {
            tree.close_idle();
        }
    }
}

fn mount(agent: &Agent, dir: &Path) -> std::result::Result<(Mounted, Arc<SnapshotTree>), String> {
    // Only where there is nothing: the mount of an agent that was killed is there and cannot be looked
    // at; it is detached below.
    if dir.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        make_dir(dir, 0o755).map_err(|error| error.message)?;
    }
    let provider = Arc::new(PoolProvider(Arc::clone(&agent.pool)));
    let options = Options {
        allow_other: agent.config.allow_other,
        owners: agent.config.owners.clone(),
        ..Options::default()
    };
    let events = Arc::clone(&agent.events);
    let started = readers::options(agent.config.snapshots_user.as_deref()).map_err(|error| error.message)?;
    let workers = Workers::new(started, move |event| tell(&events, event));
    // The agent itself parses nothing that lies in a volume.
    let opener = move |of: &Opened, source| {
        let reader = workers.reader(of.volume.id, &of.volume.name);
        reader.open(&of.snapshot.name, source).map(Into::into)
    };
    let tree = Arc::new(SnapshotTree::with_opener(provider, Limits::default(), opener));
    let mounted = fuse::mount_tree(tree.clone(), dir, &options).map_err(|error| error.to_string())?;
    Ok((mounted, tree))
}

/// Records what happened to a process that reads snapshots.
fn tell(events: &Events, event: &Event) {
    let kind = match event.kind {
        EventKind::Ended => "view_reader_ended",
        EventKind::NotStarted => "view_reader_not_started",
        EventKind::Unprotected => "view_reader_unprotected",
    };
    events.warn(kind, Subject::snapshot(&event.reader, &event.source), &event.message);
}
