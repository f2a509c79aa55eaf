//! The processes of an agent: under systemd one; else a small parent that keeps the descriptors of live
//! devices and starts the serving child again.

use super::errors::of_device;
use super::transport::any_possible;
use crate::config::{Config, Transport};
use api::{Error, ErrorKind, Result};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use ublk_target::FdStore;
use ublk_target::holder;

/// Tells the child that an earlier one may still be landing its writes: wait for the pool's lock.
const RECOVERING: &str = "COWSLIP_RECOVERING";

/// What this process is.
pub enum Role {
    /// It serves.
    Serve(Keeper),
    /// It was the parent, and everything is over.
    Done(ExitCode),
}

/// Who keeps the devices of a serving process.
pub struct Keeper {
    /// None: nobody.
    pub store: Option<Arc<dyn FdStore>>,
    /// `systemd`, `holder` or `nobody`.
    pub name: &'static str,
    /// An earlier process may still be landing its writes.
    pub recovering: bool,
}

/// Finds the role, and plays the parent's. To be called while the process has one thread.
pub fn role(config: &Config) -> Result<Role> {
    // A child is started as /proc/self/exe; without its name it would be `exe` in every list of processes.
    let _ = std::fs::write("/proc/self/comm", "cowslip");
    let found = holder::from_environment()
        .map_err(|e| Error::new(ErrorKind::Io, format!("the holder of descriptors: {e}")))?;
    let recovering = std::env::var_os(RECOVERING).is_some() || descriptors_passed();
    if let Some(store) = found {
        let name = if std::env::var_os("NOTIFY_SOCKET").is_some() { "systemd" } else { "holder" };
        return Ok(Role::Serve(Keeper { store: Some(store), name, recovering }));
    }
    if config.transport == Transport::None || !any_possible() {
        return Ok(Role::Serve(Keeper { store: None, name: "nobody", recovering: false }));
    }
    supervise(&config.socket).map(Role::Done)
}

/// Whether systemd hands over descriptors (sd_listen_fds(3)).
fn descriptors_passed() -> bool {
    std::env::var("LISTEN_FDS").is_ok_and(|count| count.parse::<u32>().is_ok_and(|count| count > 0))
}

fn supervise(socket: &Path) -> Result<ExitCode> {
    let parked: PathBuf = format!("{}.holder", socket.display()).into();
    let mut recovering = parked.exists();
    let arguments: Vec<_> = std::env::args_os().collect();
    let command = || {
        // The file that runs, even if an upgrade has replaced it under its name.
        let mut command = Command::new("/proc/self/exe");
        let (name, rest) = arguments.split_first().map_or((None, &[][..]), |(name, rest)| (Some(name), rest));
        command.arg0(name.map_or("cowslip".as_ref(), |name| name.as_os_str())).args(rest);
        if recovering {
            command.env(RECOVERING, "1");
        }
        recovering = true;
        command
    };
    let code = holder::supervise(command, socket).map_err(|error| match error {
        ublk_target::Error::Busy { .. } => {
            Error::new(ErrorKind::Busy, format!("another agent runs on the socket {}", socket.display()))
                .hint("stop that agent, or give another path with --socket")
        }
        error => of_device(error),
    })?;
    Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from))
}
