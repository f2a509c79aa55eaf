//! Which transport this agent uses, and why.
//!
//! Devices outlive agents, and so may have been made by an agent that chose otherwise. Each transport that an earlier
//! agent may have used is therefore kept beside the chosen one, for recovery only.

use super::doctor::usable;
use super::errors::{of_device, of_io};
use crate::config::{Config, Transport as Wanted};
use api::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use ublk_target::{FdStore, FuseLoop, FuseLoopOptions, Transport, Ublk, UblkOptions, ublk};

/// The ublk driver's control device.
const UBLK_CONTROL: &str = "/dev/ublk-control";

/// The choice.
pub struct Chosen {
    /// None: no devices.
    pub transport: Option<Box<dyn Transport>>,
    /// Others that an earlier agent may have used.
    pub others: Vec<Box<dyn Transport>>,
    /// Why.
    pub reason: String,
}

/// Chooses the transport of the pool's devices; `taken` keeps descriptors for it.
///
/// # Errors
/// Unsupported if the configuration demands what this host or build has not.
pub fn choose(config: &Config, taken: Option<&Arc<Taken>>, pool_id: &str) -> Result<Chosen> {
    let left = taken.is_some_and(|taken| !taken.is_empty());
    let looped = |reason: String| {
        let others = ublk::any_device().then(|| new_ublk(config, pool_id).ok()).flatten();
        Chosen {
            transport: Some(Box::new(new_loop(config, taken))),
            others: others.map(|ublk| Box::new(ublk) as Box<dyn Transport>).into_iter().collect(),
            reason,
        }
    };
    let ublk = |ublk: Ublk, reason: String| {
        let others = left.then(|| Box::new(new_loop(config, taken)) as Box<dyn Transport>);
        Chosen { transport: Some(Box::new(ublk)), others: others.into_iter().collect(), reason }
    };
    match config.transport {
        Wanted::None => Ok(Chosen {
            transport: None,
            others: Vec::new(),
            reason: "transport = \"none\" is configured".into(),
        }),
        Wanted::Ublk => match try_ublk(config, pool_id) {
            Ok((found, why)) => Ok(ublk(found, format!("transport = \"ublk\" is configured; {why}"))),
            Err(error) => {
                let error = of_device(error);
                let hint = error.hint.map_or_else(String::new, |hint| format!("{hint}; "));
                Err(Error::new(error.kind, format!("transport `ublk`: {}", error.message))
                    .hint(format!("{hint}or use transport = \"auto\" or \"loop\"")))
            }
        },
        Wanted::Loop => match missing_for_loop() {
            None => Ok(looped("transport = \"loop\" is configured".into())),
            Some(missing) => Err(Error::new(ErrorKind::Unsupported, format!("transport `loop`: {missing}"))
                .hint(
                    "load the modules fuse and loop and run the agent as root, or use transport = \"none\"",
                )),
        },
        Wanted::Auto => Ok(match (try_ublk(config, pool_id), missing_for_loop()) {
            (Ok((found, why)), _) => ublk(found, why),
            (Err(error), None) => {
                looped(format!("/dev/fuse and /dev/loop-control can be used; not ublk: {error}"))
            }
            (Err(error), Some(missing)) => Chosen {
                transport: None,
                others: Vec::new(),
                reason: format!("{missing}; nor can ublk: {error}"),
            },
        }),
    }
}

/// What a device over FUSE and loop lacks here.
pub fn missing_for_loop() -> Option<String> {
    ["/dev/fuse", "/dev/loop-control"].into_iter().find_map(|path| {
        let error = usable(Path::new(path)).err()?;
        Some(format!("{path} cannot be used: {error}"))
    })
}

/// Whether this host may be able to make devices at all: then somebody must start a dead agent again.
pub fn any_possible() -> bool {
    missing_for_loop().is_none() || Path::new(UBLK_CONTROL).exists()
}

/// ublk, if it works, and how that is known.
fn try_ublk(config: &Config, pool_id: &str) -> ublk_target::Result<(Ublk, String)> {
    load_ublk();
    let found = new_ublk(config, pool_id)?;
    if found.has_devices() {
        // Their users wait. They are proof enough.
        return Ok((found, "devices of an earlier agent are there".into()));
    }
    ublk::usable()?;
    Ok((found, "a trial device could be made and read".into()))
}

/// Loads the driver, as far as this process may. Under systemd a unit has done it.
fn load_ublk() {
    if Path::new(UBLK_CONTROL).exists() {
        return;
    }
    let mut modprobe = Command::new("modprobe");
    modprobe.args(["-q", "ublk_drv"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if let Err(error) = modprobe.status() {
        tracing::debug!(%error, "modprobe cannot be run");
    }
}

fn new_ublk(config: &Config, pool_id: &str) -> ublk_target::Result<Ublk> {
    let options = UblkOptions {
        link_dir: config.device_dir.clone(),
        properties_dir: config.run_dir.join("udev"),
        zero_copy: config.ublk_zero_copy,
        ..UblkOptions::default()
    };
    Ublk::new(pool_id, options)
}

fn new_loop(config: &Config, taken: Option<&Arc<Taken>>) -> FuseLoop {
    // Without a holder devices work, and end with this process.
    let store: Arc<dyn FdStore> = match taken {
        Some(taken) => Arc::clone(taken) as Arc<dyn FdStore>,
        None => Arc::new(NoStore),
    };
    let options = FuseLoopOptions { link_dir: config.device_dir.clone(), ..FuseLoopOptions::default() };
    FuseLoop::new(store, options)
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
    fn set_deadline(&self, limit: Option<Duration>) -> io::Result<()> {
        self.holder.set_deadline(limit)
    }
}
