//! Who keeps the descriptors of live devices while no agent runs.
//!
//! A FUSE connection ends with its last descriptor, and all I/O of its device with it. So one process more than the
//! agent has them: systemd (its file-descriptor store), or where there is none a small parent, the [`supervise`]
//! function, which also starts the agent again.
//!
//! Invariant: a holder never has a descriptor of the pool. The pool's lock is held by its open files; one that lived
//! on in a holder would keep the next agent out for ever.

mod parked;
mod pocket;
mod supervised;
mod supervisor;
mod systemd;
mod wire;

pub use pocket::Pocket;
pub use supervised::SupervisedStore;
pub use supervisor::{last_end, supervise};
pub use systemd::SystemdStore;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// Longest name of a descriptor, in bytes: systemd's limit.
pub const MAX_NAME: usize = 255;
/// Most descriptors held: what the systemd unit allows.
pub const MAX_HELD: usize = 4096;

/// Keeps descriptors for the next process. Names are printable ASCII without `:`, at most [`MAX_NAME`] bytes.
pub trait FdStore: Send + Sync {
    /// Deposits a duplicate, replacing one of the same name. When it returns, the holder has it.
    fn put(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()>;
    /// Lets go of it. Nothing happens when there is none.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Duplicates of what earlier processes left; the holder keeps its own. Meant for the start of the process.
    fn take_all(&self) -> io::Result<Vec<(String, OwnedFd)>>;
    /// Asks to be killed, and started again, unless this is called once more within `limit`; None: no more. systemd has
    /// a limit of its own for the start of a service and is not asked.
    fn set_deadline(&self, limit: Option<Duration>) -> io::Result<()> {
        let _ = limit;
        Ok(())
    }
}

/// The holder that this process was started under: a supervisor or systemd. None: neither, and devices that this
/// process makes would end with it.
pub fn from_environment() -> io::Result<Option<Arc<dyn FdStore>>> {
    if let Some(store) = SupervisedStore::from_environment()? {
        return Ok(Some(Arc::new(store)));
    }
    Ok(SystemdStore::from_environment().map(|store| Arc::new(store) as Arc<dyn FdStore>))
}

fn check_name(name: &str) -> io::Result<()> {
    let fits =
        !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(|b| b.is_ascii_graphic() && b != b':');
    if fits { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EINVAL)) }
}
