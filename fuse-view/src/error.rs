//! Errors of the readers: the disk's, the format's, ours.

use std::io;

/// Result of a reader.
pub type Result<T> = std::result::Result<T, Error>;

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image could not be read.
    #[error("{what}: {source}")]
    Io {
        /// What was being read.
        what: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A feature, layout or file-system type that is not served, by name.
    #[error("{0}")]
    Unsupported(String),
    /// The image contradicts itself; says where.
    #[error("damaged: {0}")]
    Corrupt(String),
    /// No such name or inode.
    #[error("not found: {0}")]
    NotFound(String),
    /// Not a directory, not a symlink, a directory where a file was asked for.
    #[error("{0}")]
    WrongKind(String),
}

impl Error {
    /// The errno shown through FUSE.
    pub fn errno(&self) -> i32 {
        match self {
            Self::NotFound(_) => libc::ENOENT,
            Self::WrongKind(_) => libc::ENOTDIR,
            Self::Unsupported(_) => libc::EOPNOTSUPP,
            Self::Io { .. } | Self::Corrupt(_) => libc::EIO,
        }
    }
}
