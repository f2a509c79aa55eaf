//! The one error type of the store: what was attempted, where, and why it failed.

use std::io;

/// Result of a store operation.
pub type Result<T> = std::result::Result<T, Error>;

/// What kind of failure this is; callers map it to exit codes and RPC codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// A name, size or option that can never be valid.
    Invalid,
    /// The volume, snapshot or pool does not exist.
    NotFound,
    /// The name is taken.
    Exists,
    /// In use: attached, locked by another process, deletion in progress.
    Busy,
    /// The pool, or the host's disk under it, has no room.
    NoSpace,
    /// What is on disk contradicts itself.
    Damaged,
    /// A format version, feature bit or host that this build does not serve.
    Unsupported,
    /// The pool stopped accepting writes after an I/O error on its metadata.
    Poisoned,
    /// The operating system refused an I/O.
    Io,
}

/// An error of the store.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    #[source]
    source: Option<io::Error>,
}

impl Error {
    /// A new error of `kind`; `message` says what was wrong and where.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, source: None }
    }

    /// An I/O error met while doing `what`. ENOSPC becomes [`ErrorKind::NoSpace`].
    pub fn io(what: impl Into<String>, source: io::Error) -> Self {
        let kind = match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => ErrorKind::NoSpace,
            _ => ErrorKind::Io,
        };
        Self { kind, message: format!("{}: {source}", what.into()), hint: None, source: Some(source) }
    }

    /// Adds what the user can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The kind of failure.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What the user can do about it, where there is something.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The errno that a block device answers with: ENOSPC for a full pool, EIO for the rest.
    pub fn errno(&self) -> i32 {
        match self.kind {
            ErrorKind::NoSpace => libc::ENOSPC,
            ErrorKind::Invalid => libc::EINVAL,
            _ => libc::EIO,
        }
    }
}

/// Shorthand for the constructors below.
macro_rules! ctor {
    ($($name:ident => $kind:ident),*) => { impl Error { $(
        #[doc = concat!("An error of kind [`ErrorKind::", stringify!($kind), "`].")]
        pub fn $name(message: impl Into<String>) -> Self { Self::new(ErrorKind::$kind, message) }
    )* } };
}
ctor!(invalid => Invalid, not_found => NotFound, exists => Exists, busy => Busy, no_space => NoSpace,
      damaged => Damaged, unsupported => Unsupported, poisoned => Poisoned);
