//! Copies files and directories out of a file system to a place on the host.
//!
//! Invariants: what stood at the destination is whole until what replaces it is complete and on disk; a failed
//! or cancelled restore leaves no temporary file; symbolic links, of the image or of the destination, are never
//! followed once the destination directory is open; a set-user-ID or set-group-ID bit is never given to a file
//! whose owner could not be.

mod at;
mod attributes;
mod copy;

use crate::{FileKind, FsView, Ino, walk};
use std::{
    fs::File,
    io,
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

/// How to restore.
pub struct Options<'a> {
    /// Change nothing; only say what would be done.
    pub dry_run: bool,
    /// Restore owner and group (needs privileges; without them a warning tells).
    pub owner: bool,
    /// Replace files that exist and merge into directories that exist.
    pub overwrite: bool,
    /// Go on with a restore that was interrupted: directories are merged into, and files that are there with the
    /// same type, size and modification time are left alone. A new directory is then filled under its own name.
    pub resume: bool,
    /// Told after every piece of data and every file.
    pub progress: Option<&'a (dyn Fn(Progress) + Sync)>,
    /// Set it to stop: the restore answers [`Error::Cancelled`] soon.
    pub cancel: Option<&'a AtomicBool>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self { dry_run: false, owner: true, overwrite: false, resume: false, progress: None, cancel: None }
    }
}

/// How far a restore has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Files done, of any type but directories.
    pub files: u64,
    /// Bytes of data written.
    pub bytes: u64,
}

/// What a restore did (or, dry, would do).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Files of any type but directories.
    pub files: u64,
    /// Directories.
    pub dirs: u64,
    /// Bytes of data, holes not counted.
    pub bytes: u64,
    /// Files that were there already ([`Options::resume`]).
    pub kept: u64,
    /// What could not be restored as it was, one line each.
    pub warnings: Vec<String>,
}

/// Why a restore failed. Paths are escaped for display.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source could not be read.
    #[error("{path}: {source}")]
    Source {
        /// Path in the image.
        path: String,
        /// The reader's answer.
        #[source]
        source: crate::Error,
    },
    /// The destination could not be written.
    #[error("cannot {what} {path}: {source}")]
    Destination {
        /// What was attempted: a verb.
        what: &'static str,
        /// Path on the host.
        path: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The destination exists and overwriting was not asked for.
    #[error("{0} exists already")]
    Exists(String),
    /// A directory and something else would replace each other, or a destination is of the wrong type.
    #[error("{0}")]
    WrongKind(String),
    /// The cancel flag was set.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// The system's error code behind it, such as ENOSPC or EROFS.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Source { source, .. } => Some(source.errno()),
            Self::Destination { source, .. } => source.raw_os_error(),
            Self::Exists(_) => Some(libc::EEXIST),
            Self::WrongKind(_) | Self::Cancelled => None,
        }
    }
}

/// Result of a restore.
pub type Result<T> = std::result::Result<T, Error>;

/// Restores `sources`, paths in `view`, to `dest` as cp(1) does: an existing directory takes them under their
/// own names, otherwise `dest` is the new path of the only source. Symbolic links are restored as such, also
/// when a source names one.
pub fn restore(view: &dyn FsView, sources: &[Vec<u8>], dest: &Path, options: &Options) -> Result<Report> {
    let mut found = Vec::new();
    for source in sources {
        let at = walk::find(view, source, false)
            .map_err(|error| Error::Source { path: walk::show(source), source: error })?;
        found.push(at);
    }
    let into_dir = std::fs::metadata(dest).is_ok_and(|metadata| metadata.is_dir());
    if !into_dir
        && (sources.len() > 1 || dest.as_os_str().as_bytes().ends_with(b"/"))
        && !new_dir(view, &found)
    {
        return Err(Error::WrongKind(format!("{} is not a directory", display(dest))));
    }
    let mut restorer = copy::Restorer::new(view, options);
    for source in found {
        let base = source.path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        match (into_dir, base) {
            // The root has no name: what is in it goes into the destination.
            (true, b"") => restorer.merge_root(source.ino, &open_dir(dest)?, dest)?,
            (true, name) => restorer.restore(source.ino, &source.path, &open_dir(dest)?, name, dest)?,
            (false, _) => {
                let (parent, name) = split(dest)?;
                restorer.restore(source.ino, &source.path, &open_dir(&parent)?, &name, &parent)?;
            }
        }
    }
    Ok(restorer.report())
}

/// Whether `DEST/` names a directory to be made: the only source is one.
fn new_dir(view: &dyn FsView, found: &[walk::Found]) -> bool {
    let is_dir = |ino: Ino| view.attr(ino).is_ok_and(|attr| attr.kind == FileKind::Dir);
    matches!(found, [only] if is_dir(only.ino))
}

/// The directory that is to hold `dest`, and its name there.
fn split(dest: &Path) -> Result<(PathBuf, Vec<u8>)> {
    let name = dest.file_name().ok_or_else(|| {
        Error::WrongKind(format!("{} does not end in a name for what is restored", display(dest)))
    })?;
    let parent = match dest.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    Ok((parent, name.as_bytes().to_vec()))
}

/// Opens the destination directory. The user named it: links in its path are followed, this once.
fn open_dir(path: &Path) -> Result<File> {
    File::options()
        .read(true)
        .custom_flags(libc::O_DIRECTORY)
        .open(path)
        .map_err(|source| Error::Destination { what: "open", path: display(path), source })
}

fn display(path: &Path) -> String {
    walk::show(path.as_os_str().as_bytes())
}
