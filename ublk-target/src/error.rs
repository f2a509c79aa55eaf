//! What can go wrong between a volume and its device.

use std::io;
use std::time::Duration;

/// Error of a transport, of the holder or of a freeze.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("{what} {place}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        place: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The device is in use.
    #[error("{device} (volume {volume}) is in use: {holder}")]
    Busy {
        /// Volume name.
        volume: String,
        /// Device path.
        device: String,
        /// Who uses it: a mountpoint, a process, a device on top.
        holder: String,
    },
    /// The machine lacks something that is needed.
    #[error("{missing}; {hint}")]
    Unsupported {
        /// What is not there.
        missing: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// A value that the caller gave cannot be used.
    #[error("{what}: {why}")]
    Invalid {
        /// Which value.
        what: String,
        /// Why not.
        why: String,
    },
    /// The other side did not answer in time.
    #[error("{what} did not end within {limit:?}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
    },
    /// The device has been taken away by somebody else, or its connection was aborted.
    #[error("{device} (volume {volume}) is gone: it was cleared or aborted from outside")]
    Gone {
        /// Volume name.
        volume: String,
        /// Device path.
        device: String,
    },
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Adds operation and place to an I/O error.
pub(crate) trait Context<T> {
    fn context(self, what: &'static str, place: impl std::fmt::Display) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, what: &'static str, place: impl std::fmt::Display) -> Result<T> {
        self.map_err(|source| Error::Io { what, place: place.to_string(), source })
    }
}
