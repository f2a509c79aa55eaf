//! The walk of both trees together.
//!
//! Names that only one side has are loose ends: first those that lead to the same file are joined (a rename), then
//! the directories left are opened one level, and so on until nothing joins and nothing is left to open.

use super::{Difference, Kind, Ranges, Report, Side, check, inodes::Inodes, pair};
use crate::{Attr, DirEntry, Error, FileKind, Ino, Result, listing::ListingError, walk};
use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
    ops::Range,
    rc::Rc,
    sync::atomic::AtomicBool,
};

/// Entries read at once from a directory.
const BATCH: usize = 1024;
/// Longest path that is followed.
const MAX_PATH_BYTES: usize = 64 * 1024;

/// A name on one side.
#[derive(Clone)]
pub(super) struct End {
    pub path: Vec<u8>,
    pub ino: Ino,
    pub attr: Attr,
}

/// The same place, or the same file, on both sides.
pub(super) struct Both {
    pub old: End,
    pub new: End,
}

/// Directories that are still to be compared.
enum Dirs {
    Known(Rc<Both>),
    /// The same entry in directories that are the same: not looked at before it is its turn, or all the inodes of a large
    /// directory's directories would be read before the first of those.
    Named(Rc<Both>, DirEntry),
}

impl Dirs {
    fn ino(&self) -> Ino {
        match self {
            Self::Known(both) => both.new.ino,
            Self::Named(_, entry) => entry.ino,
        }
    }
}

/// A comparison under way.
pub(super) struct Trees<'a> {
    pub old: &'a Side,
    pub new: &'a Side,
    pub changed: &'a Ranges,
    pub inodes: Option<&'a Inodes>,
    pub thorough: bool,
    cancel: &'a AtomicBool,
    /// Both are states of one file system: an inode number means one file. Else a name does.
    related: bool,
    dirs: Vec<Dirs>,
    gone: Vec<End>,
    came: Vec<End>,
    /// The same name, another file.
    replaced: Vec<Both>,
    entered: [HashSet<Ino>; 2],
    /// Where the content lies of what was looked at.
    pub explained: Vec<Range<u64>>,
    differences: Vec<Difference>,
    errors: Vec<ListingError>,
}

impl<'a> Trees<'a> {
    pub fn new(
        [old, new]: [&'a Side; 2],
        changed: &'a Ranges,
        inodes: Option<&'a Inodes>,
        cancel: &'a AtomicBool,
        thorough: bool,
    ) -> Self {
        Self {
            old,
            new,
            changed,
            inodes,
            thorough,
            cancel,
            related: old.inside.view.label() == new.inside.view.label(),
            dirs: Vec::new(),
            gone: Vec::new(),
            came: Vec::new(),
            replaced: Vec::new(),
            entered: [HashSet::new(), HashSet::new()],
            explained: Vec::new(),
            differences: Vec::new(),
            errors: Vec::new(),
        }
    }

    /// Compares what was asked for.
    pub fn compare(mut self) -> Result<Self> {
        let end = |side: &Side, found: walk::Found| -> Result<End> {
            let prefix = &side.inside.prefix;
            let below: &[u8] = if found.path == b"/" && !prefix.is_empty() { b"" } else { &found.path };
            let attr = side.inside.view.attr(found.ino)?;
            Ok(End { path: [prefix, below].concat(), ino: found.ino, attr })
        };
        let (old, new) = (self.old, self.new);
        match (old.top()?, new.top()?) {
            (None, None) => {
                return Err(Error::NotFound(format!(
                    "{} in either of the two",
                    walk::show(&new.inside.path)
                )));
            }
            (Some(found), None) => self.gone.push(end(old, found)?),
            (None, Some(found)) => self.came.push(end(new, found)?),
            (Some(a), Some(b)) => {
                let both = Both { old: end(old, a)?, new: end(new, b)? };
                self.same_name(both)?;
            }
        }
        loop {
            while let Some(dirs) = self.dirs.pop() {
                check(self.cancel)?;
                match dirs {
                    Dirs::Known(both) => self.directories(&both)?,
                    Dirs::Named(parents, entry) => self.entry(&parents, &entry, &entry)?,
                }
            }
            if self.settle_replaced()? || self.join_renamed()? {
                continue;
            }
            if self.gone.is_empty() && self.came.is_empty() {
                return Ok(self);
            }
            self.open_loose()?;
        }
    }

    /// Whether what was looked at accounts for all that changed.
    pub fn is_all(&self, changed: &Ranges) -> Result<bool> {
        let (Some(mut known), Some(more)) = (self.old.bookkeeping()?, self.new.bookkeeping()?) else {
            return Ok(false);
        };
        known.extend(more);
        known.extend(self.explained.iter().cloned());
        for side in [self.old, self.new] {
            known.extend(side.recorder.ranges());
        }
        // Blocks are compared whole.
        let blocks = known.into_iter().map(|r| r.start & !4095..r.end.next_multiple_of(4096)).collect();
        Ok(!changed.exceed(&Ranges::new(blocks)))
    }

    pub fn report(mut self) -> Report {
        self.differences.sort_by(|a, b| (&a.path, a.kind).cmp(&(&b.path, b.kind)));
        Report { differences: self.differences, errors: self.errors }
    }

    fn failed(&mut self, path: Vec<u8>, source: Error) -> Result<()> {
        match source {
            // The source itself cannot be read: nothing else will be.
            Error::Io { .. } => Err(source),
            source => {
                self.errors.push(ListingError { path, source });
                Ok(())
            }
        }
    }

    /// A name that both sides have.
    fn same_name(&mut self, both: Both) -> Result<()> {
        if both.old.attr.kind != both.new.attr.kind {
            self.gone.push(both.old);
            self.came.push(both.new);
        } else if self.related && both.old.ino != both.new.ino {
            self.replaced.push(both);
        } else {
            self.same_file(both, false)?;
        }
        Ok(())
    }

    /// What is to be shown as one file: compares it, and goes on below if it is a directory.
    fn same_file(&mut self, both: Both, renamed: bool) -> Result<()> {
        let path = both.new.path.clone();
        let compared = pair::compare(self, &both);
        let modified = match compared {
            Ok(modified) => modified,
            Err(error) => return self.failed(path, error),
        };
        if modified || renamed {
            let kind = if renamed { Kind::Renamed } else { Kind::Modified };
            let from = renamed.then(|| both.old.path.clone());
            self.tell(kind, &both.new, from, modified)?;
        }
        if both.new.attr.kind == FileKind::Dir {
            self.dirs.push(Dirs::Known(Rc::new(both)));
        }
        Ok(())
    }

    fn tell(&mut self, kind: Kind, end: &End, from: Option<Vec<u8>>, modified: bool) -> Result<()> {
        let side = if kind == Kind::Deleted { self.old } else { self.new };
        let target = match end.attr.kind {
            FileKind::Symlink => side.inside.view.readlink(end.ino),
            _ => Err(Error::WrongKind(String::new())),
        };
        let (path, attr) = (end.path.clone(), end.attr.clone());
        self.differences.push(Difference { kind, path, from, modified, attr, target: target.ok() });
        Ok(())
    }

    /// Whether a directory is entered for the first time on that side.
    fn enter(&mut self, side: usize, end: &End) -> Result<bool> {
        let fresh = self.entered[side].insert(end.ino);
        if !fresh || end.path.len() > MAX_PATH_BYTES {
            let why = format!("directory {} is met a second time, or its path is too long", end.ino);
            self.failed(end.path.clone(), Error::Corrupt(why))?;
            return Ok(false);
        }
        Ok(true)
    }

    fn directories(&mut self, both: &Rc<Both>) -> Result<()> {
        if !self.enter(0, &both.old)? || !self.enter(1, &both.new)? {
            return Ok(());
        }
        let shared = both.old.ino == both.new.ino && pair::is_shared_dir(self, both.new.ino).unwrap_or(false);
        let before = self.dirs.len();
        let listed = if shared { self.shared_names(both) } else { self.names(both) };
        // The next one is the last: in the order of their numbers, which is about that of their places.
        self.dirs[before..].sort_unstable_by_key(|dirs| Reverse(dirs.ino()));
        match listed {
            Err(error) => self.failed(both.new.path.clone(), error),
            Ok(()) => Ok(()),
        }
    }

    /// The names of a directory that is the same on both sides.
    fn shared_names(&mut self, both: &Rc<Both>) -> Result<()> {
        let view = &*self.new.inside.view;
        let mut cookie = 0;
        loop {
            let shared = |ino| self.inodes.is_some_and(|inodes| inodes.are_shared(ino));
            let wanted =
                |ino, kind| self.thorough || matches!(kind, None | Some(FileKind::Dir)) || !shared(ino);
            let mut batch = view.readdir_wanted(both.new.ino, cookie, BATCH, &wanted)?;
            let Some(last) = batch.last() else { return Ok(()) };
            cookie = last.cookie;
            batch.sort_unstable_by_key(|entry| entry.ino);
            for entry in batch {
                if entry.kind == Some(FileKind::Dir) {
                    self.dirs.push(Dirs::Named(both.clone(), entry));
                    continue;
                }
                let quiet = entry.kind.is_some() && !self.thorough && pair::is_shared_inode(self, entry.ino)?;
                if !quiet {
                    self.entry(both, &entry, &entry)?;
                }
            }
        }
    }

    fn names(&mut self, both: &Both) -> Result<()> {
        pair::explain(self, &both.old, &both.new)?;
        let mut old: HashMap<Vec<u8>, DirEntry> = HashMap::new();
        for entry in all_entries(self.old, both.old.ino)? {
            old.insert(entry.name.clone(), entry);
        }
        for entry in all_entries(self.new, both.new.ino)? {
            match old.remove(&entry.name) {
                Some(before) => self.entry(both, &before, &entry)?,
                None => match look(self.new, &both.new, &entry) {
                    Ok(end) => self.came.push(end),
                    Err((path, error)) => self.failed(path, error)?,
                },
            }
        }
        for entry in old.into_values() {
            match look(self.old, &both.old, &entry) {
                Ok(end) => self.gone.push(end),
                Err((path, error)) => self.failed(path, error)?,
            }
        }
        Ok(())
    }

    fn entry(&mut self, dirs: &Both, old: &DirEntry, new: &DirEntry) -> Result<()> {
        match (look(self.old, &dirs.old, old), look(self.new, &dirs.new, new)) {
            (Ok(old), Ok(new)) => self.same_name(Both { old, new }),
            (Err((path, error)), _) | (_, Err((path, error))) => self.failed(path, error),
        }
    }

    /// Names whose file is another one: a rename made room for it, or it was replaced. Whether there were some.
    fn settle_replaced(&mut self) -> Result<bool> {
        let replaced = std::mem::take(&mut self.replaced);
        let any = !replaced.is_empty();
        // A chain of renames (a to b, b to c) is made of nothing but replaced names.
        let olds: HashMap<Ino, &Attr> = self
            .gone
            .iter()
            .map(|end| (end.ino, &end.attr))
            .chain(replaced.iter().map(|both| (both.old.ino, &both.old.attr)))
            .collect();
        let news: HashMap<Ino, &Attr> = self
            .came
            .iter()
            .map(|end| (end.ino, &end.attr))
            .chain(replaced.iter().map(|both| (both.new.ino, &both.new.attr)))
            .collect();
        let moved = |end: &End, others: &HashMap<Ino, &Attr>| {
            others.get(&end.ino).is_some_and(|attr| pair::is_same_file(attr, &end.attr))
        };
        let loose: Vec<bool> =
            replaced.iter().map(|both| moved(&both.old, &news) || moved(&both.new, &olds)).collect();
        for (both, loose) in replaced.into_iter().zip(loose) {
            if loose {
                self.gone.push(both.old);
                self.came.push(both.new);
            } else {
                self.same_file(both, false)?;
            }
        }
        Ok(any)
    }

    /// Joins loose ends that are one file. Whether there were some.
    fn join_renamed(&mut self) -> Result<bool> {
        if !self.related {
            return Ok(false);
        }
        let came = std::mem::take(&mut self.came);
        let mut by_ino: HashMap<Ino, Vec<End>> = HashMap::new();
        for end in std::mem::take(&mut self.gone) {
            by_ino.entry(end.ino).or_default().push(end);
        }
        let mut any = false;
        for new in came {
            let found = by_ino.get_mut(&new.ino).and_then(|ends| {
                let at = ends.iter().position(|old| pair::is_same_file(&old.attr, &new.attr))?;
                Some(ends.swap_remove(at))
            });
            match found {
                Some(old) => {
                    any = true;
                    self.same_file(Both { old, new }, true)?;
                }
                None => self.came.push(new),
            }
        }
        self.gone = by_ino.into_values().flatten().collect();
        Ok(any)
    }

    /// Tells the loose ends, and makes loose ends of what is in them.
    fn open_loose(&mut self) -> Result<()> {
        for end in std::mem::take(&mut self.gone) {
            check(self.cancel)?;
            self.tell(Kind::Deleted, &end, None, false)?;
            let inside = self.open(0, &end)?;
            self.gone.extend(inside);
        }
        for end in std::mem::take(&mut self.came) {
            check(self.cancel)?;
            self.tell(Kind::Added, &end, None, false)?;
            let inside = self.open(1, &end)?;
            self.came.extend(inside);
        }
        Ok(())
    }

    fn open(&mut self, side: usize, end: &End) -> Result<Vec<End>> {
        let of = if side == 0 { self.old } else { self.new };
        if let Err(error) = pair::explain_one(self, of, end) {
            self.failed(end.path.clone(), error)?;
        }
        if end.attr.kind != FileKind::Dir || !self.enter(side, end)? {
            return Ok(Vec::new());
        }
        let entries = match all_entries(of, end.ino) {
            Ok(entries) => entries,
            Err(error) => {
                self.failed(end.path.clone(), error)?;
                return Ok(Vec::new());
            }
        };
        let mut inside = Vec::new();
        for entry in entries {
            match look(of, end, &entry) {
                Ok(end) => inside.push(end),
                Err((path, error)) => self.failed(path, error)?,
            }
        }
        Ok(inside)
    }
}

/// In the order of their inodes' numbers, which is about that of their places.
fn all_entries(side: &Side, dir: Ino) -> Result<Vec<DirEntry>> {
    let (mut cookie, mut all) = (0, Vec::new());
    loop {
        let batch = side.inside.view.readdir(dir, cookie, BATCH)?;
        let Some(last) = batch.last() else { break };
        cookie = last.cookie;
        all.extend(batch);
    }
    all.sort_unstable_by_key(|entry| entry.ino);
    Ok(all)
}

/// The file behind an entry.
fn look(side: &Side, dir: &End, entry: &DirEntry) -> std::result::Result<End, (Vec<u8>, Error)> {
    let slash: &[u8] = if dir.path.ends_with(b"/") { b"" } else { b"/" };
    let path = [&dir.path[..], slash, &entry.name].concat();
    if !walk::is_plain_name(&entry.name) {
        return Err((path, Error::Corrupt("a name that no file can have".into())));
    }
    match side.inside.view.attr(entry.ino) {
        Ok(attr) => Ok(End { path, ino: entry.ino, attr }),
        Err(error) => Err((path, error)),
    }
}
