//! The agent's state, and how its operations run.
//!
//! Invariants: an operation that changes a volume holds that volume's lock from its first look to its
//! last change, in the thread that does the work, whether or not its caller still waits; no operation
//! runs on the threads of the server.

use super::devices::Devices;
use super::events::{Events, now_seconds};
use super::locks::Locks;
use super::provider::SnapshotsMount;
use super::ring::RingDir;
use super::scrub::Scrub;
use crate::config::Config;
use api::{Error, ErrorKind, Result};
use std::sync::Arc;
use store::Pool;
use tokio::sync::watch;

/// The agent.
pub struct Agent {
    /// What it runs with.
    pub config: Config,
    /// Its pool.
    pub pool: Arc<Pool>,
    /// Its devices.
    pub devices: Devices,
    /// What happened.
    pub events: Arc<Events>,
    /// Where the ring is, and why.
    pub ring: RingDir,
    /// Who keeps the devices alive: `systemd`, `holder` or `nobody`.
    pub supervisor: &'static str,
    /// The tree of all snapshots.
    pub snapshots_mount: SnapshotsMount,
    /// The scrub of the pool.
    pub scrub: Scrub,
    /// Start of the agent, seconds since the epoch.
    pub started_at: i64,
    locks: Locks,
    closing: watch::Sender<bool>,
}

/// What [`Agent::new`] is made of.
pub struct Parts {
    pub config: Config,
    pub pool: Arc<Pool>,
    pub devices: Devices,
    pub events: Arc<Events>,
    pub ring: RingDir,
    pub supervisor: &'static str,
    pub snapshots_mount: SnapshotsMount,
}

impl Agent {
    /// An agent that serves nothing yet.
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts { config, pool, devices, events, ring, supervisor, snapshots_mount } = parts;
        let scrub = Scrub::load(&config.run_dir, &pool.info().id);
        Arc::new(Self {
            config,
            pool,
            devices,
            events,
            ring,
            supervisor,
            snapshots_mount,
            scrub,
            started_at: now_seconds(),
            locks: Locks::default(),
            closing: watch::Sender::new(false),
        })
    }

    /// Runs `work` in a thread that may block, as the only operation on the volumes `names`. It runs
    /// to its end even if the caller goes away.
    pub async fn alone<T: Send + 'static>(
        self: &Arc<Self>,
        names: &[&str],
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let guards = self.locks.lock(names.iter().copied()).await;
        let agent = Arc::clone(self);
        blocking(move || {
            let _guards = guards;
            work(&agent)
        })
        .await
    }

    /// Runs `work`, which changes nothing, in a thread that may block.
    pub async fn look<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.alone(&[], work).await
    }

    /// Tells streams without an end that the agent stops.
    pub fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Becomes true when the agent stops.
    pub fn closing(&self) -> watch::Receiver<bool> {
        self.closing.subscribe()
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(failure) => {
            tracing::error!("an operation ended abnormally: {failure}");
            Err(Error::new(ErrorKind::Io, "the operation ended abnormally; the agent's log says where"))
        }
    }
}
