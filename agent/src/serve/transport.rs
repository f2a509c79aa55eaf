//! Which transport this agent uses, and why.

use super::doctor::usable;
use super::errors::of_io;
use crate::config::{Config, Transport as Wanted};
use api::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use ublk_target::{FdStore, FuseLoop, FuseLoopOptions, Transport};

/// The choice.
pub struct Chosen {
    /// None: no devices.
    pub transport: Option<Box<dyn Transport>>,
    /// Why.
    pub reason: String,
}

/// Chooses the transport; `store` keeps its descriptors.
///
/// # Errors
/// Unsupported if the configuration demands what this host or build has not.
pub fn choose(config: &Config, store: Option<Arc<dyn FdStore>>) -> Result<Chosen> {
    let missing = missing_for_loop();
    match config.transport {
        Wanted::None => Ok(Chosen { transport: None, reason: "transport = \"none\" is configured".into() }),
        Wanted::Ublk => Err(Error::new(ErrorKind::Unsupported, "transport `ublk` is not in this build")
            .hint("use transport = \"auto\" or \"loop\"")),
        Wanted::Loop => match missing {
            None => loop_transport(config, store, "transport = \"loop\" is configured"),
            Some(missing) => Err(Error::new(ErrorKind::Unsupported, format!("transport `loop`: {missing}"))
                .hint(
                    "load the modules fuse and loop and run the agent as root, or use transport = \"none\"",
                )),
        },
        Wanted::Auto => match missing {
            None => loop_transport(config, store, "/dev/fuse and /dev/loop-control can be used"),
            Some(reason) => Ok(Chosen { transport: None, reason }),
        },
    }
}

/// What a device over FUSE and loop lacks here.
pub fn missing_for_loop() -> Option<String> {
    ["/dev/fuse", "/dev/loop-control"].into_iter().find_map(|path| {
        let error = usable(Path::new(path)).err()?;
        Some(format!("{path} cannot be used: {error}"))
    })
}

fn loop_transport(config: &Config, store: Option<Arc<dyn FdStore>>, reason: &str) -> Result<Chosen> {
    // Without a holder devices work, and end with this process.
    let store = store.unwrap_or_else(|| Arc::new(NoStore));
    let options = FuseLoopOptions { link_dir: config.device_dir.clone(), ..FuseLoopOptions::default() };
    Ok(Chosen { transport: Some(Box::new(FuseLoop::new(store, options))), reason: reason.into() })
}

struct NoStore;

impl FdStore for NoStore {
    fn put(&self, _: &str, _: BorrowedFd<'_>) -> io::Result<()> {
        Ok(())
    }
    fn remove(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn take_all(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        Ok(Vec::new())
    }
}

/// A holder that was asked once what it has, before it is known what to do with it.
pub struct Taken {
    holder: Arc<dyn FdStore>,
    found: Mutex<Vec<(String, OwnedFd)>>,
}

impl Taken {
    /// Asks the holder.
    pub fn from(holder: Arc<dyn FdStore>) -> Result<Self> {
        let found = holder.take_all().map_err(|e| of_io("descriptors of live devices", &e))?;
        Ok(Self { holder, found: Mutex::new(found) })
    }

    /// Whether devices were left alive.
    pub fn is_empty(&self) -> bool {
        self.found.lock().is_empty()
    }
}

impl FdStore for Taken {
    fn put(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.holder.put(name, fd)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.holder.remove(name)
    }
    fn take_all(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        Ok(std::mem::take(&mut *self.found.lock()))
    }
}
