//! Trees served through FUSE: a thin adapter over [`crate::tree::Tree`].
//!
//! Mounts are read only, without devices, set-user-ID and execution, and the kernel checks permissions. What
//! lies inside of a snapshot never changes, so the kernel may keep names, attributes, directories and data.

mod adapter;
mod ahead;
mod ids;
mod mountpoint;
mod owners;
mod plus;
mod sys;

use crate::{
    FsView,
    cache::CacheBudget,
    tree::{Limits, SingleView, SnapshotProvider, SnapshotTree, Tree},
};
use adapter::{Adapter, Kernel};
use fuser::{Session, SessionACL};
pub use owners::{IdMap, Owners};
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    thread::JoinHandle,
};

/// How to mount.
#[derive(Debug, Clone)]
pub struct Options {
    /// Let other users in; the kernel checks their permissions by the owners and modes in the image. Users
    /// but root may do so only if `/etc/fuse.conf` says `user_allow_other`.
    pub allow_other: bool,
    /// Owners and groups as they are shown.
    pub owners: Owners,
    /// Threads that serve requests.
    pub threads: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { allow_other: false, owners: Owners::default(), threads: 4 }
    }
}

/// Why a tree could not be mounted. The mount point is named.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory does not exist, is none, or has something in it.
    #[error("cannot mount at {path}: {why}")]
    MountPoint {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The system refused.
    #[error("cannot mount at {path}: {what}: {source}")]
    System {
        /// The directory.
        path: PathBuf,
        /// What was refused.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// A mounted tree. Dropping it unmounts.
pub struct Mounted {
    dir: PathBuf,
    /// Device number of the mount: nobody else's for as long as `connection` is connected.
    device: Option<(u32, u32)>,
    connection: OwnedFd,
    session: Option<JoinHandle<io::Result<()>>>,
}

/// Mounts `/snapshots` of `provider` at `dir`. The tree is returned too: idle snapshots are closed through it.
pub fn mount_snapshots(
    provider: Arc<dyn SnapshotProvider>,
    dir: &Path,
    limits: Limits,
    budget: &CacheBudget,
    options: &Options,
) -> Result<(Mounted, Arc<SnapshotTree>), Error> {
    let tree = Arc::new(SnapshotTree::new(provider, limits, budget));
    Ok((mount_tree(tree.clone(), dir, options)?, tree))
}

/// Mounts the files of `view` at `dir`.
pub fn mount_view(view: Arc<dyn FsView>, dir: &Path, options: &Options) -> Result<Mounted, Error> {
    mount_tree(Arc::new(SingleView::new(view)), dir, options)
}

/// Mounts `tree` at `dir`, an empty directory. A mount there whose process died is detached first.
pub fn mount_tree(tree: Arc<dyn Tree>, dir: &Path, options: &Options) -> Result<Mounted, Error> {
    let dir = mountpoint::prepare(dir)?;
    let system = |what| {
        let path = dir.clone();
        move |source| Error::System { path, what, source }
    };
    let kernel = Arc::new(OnceLock::<Kernel>::new());
    let adapter = Adapter::new(tree, kernel.clone(), options.owners.clone());
    let acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    let mut config = fuser::Config::default();
    config.acl = acl;
    config.n_threads = Some(options.threads.max(1));
    let session = match sys::mount(&dir, options.allow_other).map_err(system("mount"))? {
        Some(device) => {
            let started = Session::from_fd(adapter, device, acl, config);
            if started.is_err() {
                let _ = sys::detach(&dir);
            }
            started
        }
        // Without privileges: through fusermount3.
        None => {
            config.mount_options = mountpoint::helper_options();
            Session::new(adapter, &dir, &config)
        }
    }
    .map_err(system("start of the FUSE session"))?;
    let device = mountpoint::device(&dir);
    let duplicate = || session.as_fd().try_clone_to_owned();
    let both = duplicate().and_then(|one| Ok((one, duplicate()?.into())));
    let (connection, duplicate) = both.map_err(|error| {
        let _ = detach(&dir);
        system("start of the FUSE session")(error)
    })?;
    let _ = kernel.set(Kernel { notifier: session.notifier(), device: duplicate });
    let thread = std::thread::Builder::new().name("fuse-session".into()).spawn(move || session.run());
    let session = thread.map_err(|error| {
        let _ = detach(&dir);
        system("start of a thread")(error)
    })?;
    if let Some(device) = device {
        mountpoint::set_read_ahead(device);
    }
    Ok(Mounted { dir, device, connection, session: Some(session) })
}

impl Mounted {
    /// Where.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Waits until somebody unmounts it.
    pub fn join(mut self) -> io::Result<()> {
        let Some(session) = self.session.take() else { return Ok(()) };
        session.join().map_err(|_| io::Error::other("the FUSE session panicked"))?
    }

    /// Whether it still serves: false after somebody unmounted it.
    pub fn is_alive(&self) -> bool {
        self.session.as_ref().is_some_and(|session| !session.is_finished())
            && sys::is_connected(&self.connection)
    }

    /// Unmounts. With files still open in it the mount leaves the tree of directories at once and goes away
    /// with the last of them.
    pub fn unmount(mut self) -> io::Result<()> {
        self.unmount_now()
    }

    fn unmount_now(&mut self) -> io::Result<()> {
        // What is at the directory now may be somebody else's.
        let ours = self.is_alive() && self.device.is_some() && mountpoint::device(&self.dir) == self.device;
        if !ours {
            return Ok(());
        }
        if sys::unmount(&self.dir).is_err() {
            return detach(&self.dir);
        }
        // Nothing is open in it: the session ends now, and with it what the tree holds open.
        match self.session.take().map(JoinHandle::join) {
            Some(Ok(ended)) => ended,
            _ => Ok(()),
        }
    }
}

/// Detaches what is mounted at `dir`, by the helper if we may not ourselves.
fn detach(dir: &Path) -> io::Result<()> {
    match sys::detach(dir) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => mountpoint::helper_detach(dir),
        detached => detached,
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = self.unmount_now() {
            tracing::warn!(dir = %self.dir.display(), %error, "could not unmount");
        }
    }
}
