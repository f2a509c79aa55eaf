//! The copying itself.
//!
//! A new directory is built under a temporary name and renamed when all of it is on disk; what is merged into
//! an existing one is replaced file by file, each under a temporary name first.

use super::{Error, Options, Progress, Report, Result, at};
use crate::{Attr, FileKind, FsView, Ino, walk};
use std::{
    collections::{HashMap, HashSet},
    fs::File,
    hash::{BuildHasher, RandomState},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::Path,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

/// Bytes copied between two looks at the cancel flag.
const PIECE_BYTES: usize = 1024 * 1024;
/// Directories nested deeper than this are refused; each level holds a descriptor.
const MAX_DEPTH: usize = 500;
/// Warnings kept word by word; the others are counted.
const MAX_WARNINGS: usize = 100;
/// Entries read at once from a directory.
const BATCH: usize = 128;

/// Where something goes.
#[derive(Clone, Copy)]
struct Place<'a> {
    /// Directory that the restore was started in, and the path of `dir` below it.
    top: &'a File,
    below: &'a [u8],
    dir: &'a File,
    /// Path of `dir` on the host, for messages.
    shown: &'a str,
    /// Whether everything in `dir` is new: nothing needs replacing, one flush at the end covers all.
    fresh: bool,
    depth: usize,
}

pub(super) struct Restorer<'a> {
    pub(super) view: &'a dyn FsView,
    pub(super) options: &'a Options<'a>,
    report: Report,
    more_warnings: u64,
    buffer: Vec<u8>,
    /// Where inodes with several links were restored first, below `Place::top`.
    links: HashMap<Ino, Vec<u8>>,
    /// Directories entered: one that is met again is damage, and a way to a tree without end.
    entered: HashSet<Ino>,
}

impl<'a> Restorer<'a> {
    pub(super) fn new(view: &'a dyn FsView, options: &'a Options<'a>) -> Self {
        Self {
            view,
            options,
            report: Report::default(),
            more_warnings: 0,
            buffer: Vec::new(),
            links: HashMap::new(),
            entered: HashSet::new(),
        }
    }

    pub(super) fn report(mut self) -> Report {
        if self.more_warnings > 0 {
            self.report.warnings.push(format!("{} more warnings", self.more_warnings));
        }
        self.report
    }

    /// Restores `ino`, found at `source` in the image, as `name` in `dir`.
    pub(super) fn restore(
        &mut self,
        ino: Ino,
        source: &[u8],
        dir: &File,
        name: &[u8],
        dest: &Path,
    ) -> Result<()> {
        let shown = super::display(dest);
        let place = Place { top: dir, below: b"", dir, shown: &shown, fresh: false, depth: 0 };
        self.links.clear();
        self.entered.clear();
        let attr = self.attr(ino, &walk::show(source))?;
        self.put(&attr, &place, name)?;
        if !self.options.dry_run {
            dir.sync_all().map_err(|e| Self::failed("flush", &shown, e))?;
        }
        Ok(())
    }

    /// Restores what is in directory `root` into the existing `dir`, whose own attributes stay.
    pub(super) fn merge_root(&mut self, root: Ino, dir: &File, dest: &Path) -> Result<()> {
        let shown = super::display(dest);
        self.links.clear();
        self.entered.clear();
        self.fill(root, &Place { top: dir, below: b"", dir, shown: &shown, fresh: false, depth: 1 })?;
        if self.options.dry_run {
            return Ok(());
        }
        dir.sync_all().map_err(|e| Self::failed("flush", &shown, e))
    }

    /// Restores one file or directory as `name`, refusing what stands in its way.
    fn put(&mut self, attr: &Attr, place: &Place, name: &[u8]) -> Result<()> {
        self.check_cancel()?;
        let path = join(place.shown, name);
        let existing = if place.fresh { None } else { existing(place.dir, name, &path)? };
        if existing == Some(false) && self.options.resume && is_same(attr, place.dir, name, &path)? {
            self.report.kept += 1;
            return Ok(());
        }
        match (existing, attr.kind) {
            (Some(true), FileKind::Dir) if self.options.overwrite || self.options.resume => {
                return self.merge_dir(attr, place, name, &path);
            }
            (Some(true), kind) if kind != FileKind::Dir => {
                return Err(Error::WrongKind(format!("{path} is a directory: a file cannot replace it")));
            }
            (Some(false), FileKind::Dir) => {
                return Err(Error::WrongKind(format!(
                    "{path} is not a directory: a directory cannot replace it"
                )));
            }
            (Some(_), _) if !self.options.overwrite => return Err(Error::Exists(path)),
            _ => {}
        }
        match attr.kind {
            FileKind::Dir => self.new_dir(attr, place, name, &path),
            _ => self.new_file(attr, place, name, &path),
        }
    }

    /// Makes a directory that is not there yet, in full.
    fn new_dir(&mut self, attr: &Attr, place: &Place, name: &[u8], path: &str) -> Result<()> {
        self.report.dirs += 1;
        if self.options.dry_run {
            return self
                .fill(attr.ino, &Place { shown: path, fresh: true, depth: place.depth + 1, ..*place });
        }
        if place.fresh {
            return self.build_dir(attr, place, name, path);
        }
        if self.options.resume {
            at::make_dir(place.dir, name, 0o700).map_err(|e| Self::failed("make directory", path, e))?;
            self.report.dirs -= 1;
            return self.merge_dir(attr, place, name, path);
        }
        let temporary = Self::temporary_name();
        let built = self.build_dir(attr, place, &temporary, path).and_then(|()| {
            at::sync_file_system(place.dir).map_err(|e| Self::failed("flush", path, e))?;
            at::rename(place.dir, &temporary, name, false).map_err(|e| Self::failed("make", path, e))
        });
        if built.is_ok() {
            let (from, to) = (join_bytes(place.below, &temporary), join_bytes(place.below, name));
            for first in self.links.values_mut() {
                if let Some(rest) = first.strip_prefix(&from[..]).filter(|rest| rest.starts_with(b"/")) {
                    *first = [&to, rest].concat();
                }
            }
        } else {
            // Not followed by links: the temporary tree holds only what was made above.
            let tree =
                format!("/proc/self/fd/{}/{}", place.dir.as_raw_fd(), String::from_utf8_lossy(&temporary));
            let _ = std::fs::remove_dir_all(tree);
        }
        built
    }

    fn build_dir(&mut self, attr: &Attr, place: &Place, name: &[u8], path: &str) -> Result<()> {
        // Nobody else looks in before the attributes are set.
        at::make_dir(place.dir, name, 0o700).map_err(|e| Self::failed("make directory", path, e))?;
        let dir = open_subdir(place.dir, name, path)?;
        let below = join_bytes(place.below, name);
        let inside = Place {
            top: place.top,
            below: &below,
            dir: &dir,
            shown: path,
            fresh: true,
            depth: place.depth + 1,
        };
        self.fill(attr.ino, &inside)?;
        self.set_attributes(attr, &dir, path)
    }

    fn merge_dir(&mut self, attr: &Attr, place: &Place, name: &[u8], path: &str) -> Result<()> {
        self.report.dirs += 1;
        let dir = open_subdir(place.dir, name, path)?;
        let below = join_bytes(place.below, name);
        let inside = Place {
            top: place.top,
            below: &below,
            dir: &dir,
            shown: path,
            fresh: false,
            depth: place.depth + 1,
        };
        self.fill(attr.ino, &inside)?;
        if self.options.dry_run {
            return Ok(());
        }
        self.set_attributes(attr, &dir, path)?;
        dir.sync_all().map_err(|e| Self::failed("flush", path, e))
    }

    /// Restores everything in directory `ino` to `place`.
    fn fill(&mut self, ino: Ino, place: &Place) -> Result<()> {
        let damaged = |why: String| Self::unreadable(place.shown, crate::Error::Corrupt(why));
        if place.depth > MAX_DEPTH {
            return Err(damaged(format!("directories nested deeper than {MAX_DEPTH}")));
        }
        if !self.entered.insert(ino) {
            return Err(damaged(format!("directory {ino} is met a second time")));
        }
        let mut cookie = 0;
        loop {
            let batch = self.view.list(ino, cookie, BATCH).map_err(|e| Self::unreadable(place.shown, e))?;
            let Some((last, _)) = batch.entries.last() else { return Ok(()) };
            cookie = last.cookie;
            for (entry, attr) in batch.entries {
                if !walk::is_plain_name(&entry.name) {
                    return Err(damaged(format!(
                        "a name that no file can have: {}",
                        walk::show(&entry.name)
                    )));
                }
                let attr = attr.map_err(|e| Self::unreadable(&join(place.shown, &entry.name), e))?;
                self.put(&attr, place, &entry.name)?;
            }
        }
    }

    /// Makes anything but a directory.
    fn new_file(&mut self, attr: &Attr, place: &Place, name: &[u8], path: &str) -> Result<()> {
        if self.options.dry_run {
            // What is linked to a file that was counted is not copied again.
            let linked = attr.nlink > 1 && self.links.insert(attr.ino, Vec::new()).is_some();
            let copied = attr.kind == FileKind::File && !linked;
            let data = if copied { self.data_bytes(attr, path)? } else { 0 };
            return self.count(1, data);
        }
        if place.fresh {
            if !self.make(attr, place, name, path)? {
                return Ok(());
            }
        } else {
            let temporary = Self::temporary_name();
            let made = self.make(attr, place, &temporary, path).and_then(|made| {
                if !made {
                    return Ok(false);
                }
                let rename = at::rename(place.dir, &temporary, name, self.options.overwrite);
                rename.map_err(|error| match error.raw_os_error() {
                    Some(libc::EEXIST) => Error::Exists(path.to_owned()),
                    _ => Self::failed("replace", path, error),
                })?;
                Ok(true)
            });
            // Also after success: renaming a link over another link of the same file does nothing.
            if made.is_err() || attr.nlink > 1 {
                let _ = at::remove(place.dir, &temporary);
            }
            if !made? {
                return Ok(());
            }
        }
        if attr.nlink > 1 {
            self.links.entry(attr.ino).or_insert_with(|| join_bytes(place.below, name));
        }
        self.count(1, 0)
    }

    /// Makes the file under `name` with its attributes; a regular file that is not part of a new directory is
    /// on disk then. False, with a warning: a device that we may not make.
    fn make(&mut self, attr: &Attr, place: &Place, name: &[u8], path: &str) -> Result<bool> {
        if attr.nlink > 1 && self.make_link(attr, place, name, path)? {
            return Ok(true);
        }
        let failed = |error| Self::failed("make", path, error);
        if attr.kind == FileKind::File {
            let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY | libc::O_NOFOLLOW;
            let file = at::open_beneath(place.dir, name, flags, 0o600).map_err(failed)?;
            self.copy_data(attr, &file, path)?;
            self.set_attributes(attr, &file, path)?;
            if !place.fresh {
                file.sync_all().map_err(|e| Self::failed("write", path, e))?;
            }
            return Ok(true);
        }
        if attr.kind == FileKind::Symlink {
            let target = self.view.readlink(attr.ino).map_err(|e| Self::unreadable(path, e))?;
            at::make_symlink(place.dir, name, &target).map_err(failed)?;
        } else {
            match at::make_node(place.dir, name, attr) {
                Err(error) if error.raw_os_error() == Some(libc::EPERM) && place.depth > 0 => {
                    self.warn("device not restored, not permitted", path);
                    return Ok(false);
                }
                made => made.map_err(failed)?,
            }
        }
        let flags = libc::O_PATH | libc::O_NOFOLLOW;
        let file = at::open_beneath(place.dir, name, flags, 0).map_err(failed)?;
        self.set_attributes(attr, &file, path)?;
        Ok(true)
    }

    /// Links `name` to where the same inode was restored before; false if it was not, or the file system does
    /// not link.
    fn make_link(&mut self, attr: &Attr, place: &Place, name: &[u8], path: &str) -> Result<bool> {
        let Some(first) = self.links.get(&attr.ino) else { return Ok(false) };
        let first = at::open_beneath(place.top, first, libc::O_PATH | libc::O_NOFOLLOW, 0);
        let linked = first.and_then(|first| at::link(&first, place.dir, name));
        match linked {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                Err(Self::failed("link", path, error))
            }
            Err(error) => {
                self.warn(&format!("restored as a copy, not as a hard link: {error}"), path);
                Ok(false)
            }
        }
    }

    /// Copies the data of a regular file; holes stay holes.
    fn copy_data(&mut self, attr: &Attr, file: &File, path: &str) -> Result<()> {
        let wrote = |error| Self::failed("write", path, error);
        file.set_len(attr.size).map_err(wrote)?;
        let mut offset = 0;
        while let Some(range) = self.next_data(attr, offset, path)? {
            offset = range.start;
            while offset < range.end {
                self.check_cancel()?;
                let piece = usize::try_from(range.end - offset).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
                self.buffer.resize(PIECE_BYTES, 0);
                let buffer = &mut self.buffer[..piece];
                let count =
                    self.view.read_at(attr.ino, offset, buffer).map_err(|e| Self::unreadable(path, e))?;
                if count == 0 {
                    let why = crate::Error::Corrupt(format!("data ends at {offset} of {}", attr.size));
                    return Err(Self::unreadable(path, why));
                }
                file.write_all_at(&self.buffer[..count], offset).map_err(wrote)?;
                offset += count as u64;
                self.count(0, count as u64)?;
            }
        }
        Ok(())
    }

    /// The next range with data, within the size and past `offset`, whatever the reader answers.
    fn next_data(&self, attr: &Attr, offset: u64, path: &str) -> Result<Option<std::ops::Range<u64>>> {
        if offset >= attr.size {
            return Ok(None);
        }
        let range = self.view.next_data(attr.ino, offset).map_err(|e| Self::unreadable(path, e))?;
        let range = range.map(|range| range.start.max(offset)..range.end.min(attr.size));
        Ok(range.filter(|range| range.start < range.end))
    }

    fn data_bytes(&self, attr: &Attr, path: &str) -> Result<u64> {
        let (mut offset, mut bytes) = (0, 0);
        while let Some(range) = self.next_data(attr, offset, path)? {
            self.check_cancel()?;
            bytes += range.end - range.start;
            offset = range.end;
        }
        Ok(bytes)
    }

    fn attr(&self, ino: Ino, path: &str) -> Result<Attr> {
        self.view.attr(ino).map_err(|error| Self::unreadable(path, error))
    }

    fn count(&mut self, files: u64, bytes: u64) -> Result<()> {
        self.report.files += files;
        self.report.bytes += bytes;
        if let Some(progress) = self.options.progress {
            progress(Progress { files: self.report.files, bytes: self.report.bytes });
        }
        self.check_cancel()
    }

    fn check_cancel(&self) -> Result<()> {
        match self.options.cancel {
            Some(flag) if flag.load(Ordering::Relaxed) => Err(Error::Cancelled),
            _ => Ok(()),
        }
    }

    /// A name that no other restore uses at this time: a dot file, told apart by process and count.
    fn temporary_name() -> Vec<u8> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // A process that was killed may have had the same number, and left something.
        static OWN: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(std::process::id()));
        let count = NEXT.fetch_add(1, Ordering::Relaxed);
        format!(".cowslip-restore-{:x}-{count}", *OWN).into_bytes()
    }

    pub(super) fn warn(&mut self, what: &str, path: &str) {
        if self.report.warnings.len() < MAX_WARNINGS {
            self.report.warnings.push(format!("{path}: {what}"));
        } else {
            self.more_warnings += 1;
        }
    }

    pub(super) fn failed(what: &'static str, path: &str, source: io::Error) -> Error {
        Error::Destination { what, path: path.to_owned(), source }
    }

    pub(super) fn unreadable(path: &str, source: crate::Error) -> Error {
        Error::Source { path: path.to_owned(), source }
    }
}

/// Whether `name` exists in `dir`, and then whether it is a directory itself.
fn existing(dir: &File, name: &[u8], path: &str) -> Result<Option<bool>> {
    match at::open_beneath(dir, name, libc::O_PATH | libc::O_NOFOLLOW, 0).and_then(|file| file.metadata()) {
        Ok(metadata) => Ok(Some(metadata.mode() & libc::S_IFMT == libc::S_IFDIR)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Restorer::failed("look at", path, error)),
    }
}

/// Whether what is there is what an earlier restore put there, by type, size and modification time: that is set last.
fn is_same(attr: &Attr, dir: &File, name: &[u8], path: &str) -> Result<bool> {
    let there = at::open_beneath(dir, name, libc::O_PATH | libc::O_NOFOLLOW, 0)
        .and_then(|file| file.metadata())
        .map_err(|error| Restorer::failed("look at", path, error))?;
    let kind = match attr.kind {
        FileKind::File => libc::S_IFREG,
        FileKind::Symlink => libc::S_IFLNK,
        // Nothing to copy in the others.
        _ => return Ok(false),
    };
    let time = (attr.mtime.seconds, i64::from(attr.mtime.nanoseconds));
    Ok(there.mode() & libc::S_IFMT == kind
        && there.len() == attr.size
        && (there.mtime(), there.mtime_nsec()) == time
        && attr.nlink == 1)
}

fn open_subdir(dir: &File, name: &[u8], path: &str) -> Result<File> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    at::open_beneath(dir, name, flags, 0).map_err(|error| Restorer::failed("open", path, error))
}

fn join(dir: &str, name: &[u8]) -> String {
    let slash = if dir.ends_with('/') { "" } else { "/" };
    format!("{dir}{slash}{}", walk::show(name))
}

fn join_bytes(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}
