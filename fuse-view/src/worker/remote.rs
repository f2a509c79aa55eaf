//! A file system whose reader is a worker.

use super::{
    Reader,
    process::Host,
    recent::Recent,
    wire::{About, Call, Content, Found, Listed, Part, Shape, plain},
};
use crate::{
    Attr, BlockRead, DirEntry, Error, Extent, FsView, Ino, Result, StatFs, view::Listing, walk::is_plain_name,
};
use parking_lot::Mutex;
use std::{
    io,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Files of one file system whose attributes are surely remembered. Whoever lists a directory asks for them right after.
const KNOWN_FILES: usize = 4 << 10;
/// What formats are called.
const FORMATS: [&str; 6] = ["ext2", "ext3", "ext4", "xfs", "btrfs", "vfat"];

/// A source that workers of a reader may be asked about.
pub struct Source {
    pub reader: Arc<Reader>,
    pub number: u32,
    /// What it is called in messages.
    pub label: String,
    pub blocks: Arc<dyn BlockRead>,
    /// The generation of the worker that has it open; 0: none.
    opened_in: AtomicU64,
    opening: Mutex<()>,
}

impl Source {
    pub fn new(reader: Arc<Reader>, number: u32, label: String, blocks: Arc<dyn BlockRead>) -> Self {
        Self { reader, number, label, blocks, opened_in: AtomicU64::new(0), opening: Mutex::new(()) }
    }

    /// Has the worker of this moment open the source.
    pub fn open(&self) -> Result<Found> {
        let process = self.reader.process(self)?;
        self.open_in(&process)
    }

    fn open_in(&self, process: &super::process::Process) -> Result<Found> {
        let found =
            self.reader.ask(process, self, Call::Open(Shape::of(&*self.blocks)), |_, found| Ok(found))?;
        self.opened_in.store(process.generation, Ordering::Release);
        Ok(found)
    }

    /// Asks the worker of this moment, which opens the source first if it is new.
    fn call<T: serde::de::DeserializeOwned, R>(
        &self,
        about: &About,
        call: Call,
        then: impl FnOnce(&super::wire::Lane, T) -> io::Result<R>,
    ) -> Result<R> {
        let process = self.reader.process(self)?;
        if self.opened_in.load(Ordering::Acquire) != process.generation {
            let _opening = self.opening.lock();
            if self.opened_in.load(Ordering::Acquire) != process.generation {
                match self.open_in(&process)? {
                    Found::Files(found) if found.root == about.root => {}
                    _ => return Err(Error::Corrupt(format!("{} is another than before", self.label))),
                }
            }
        }
        self.reader.ask(&process, self, call, then)
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.reader.forget(self.number);
    }
}

/// Nothing but this source.
impl Host for &Source {
    fn blocks(&self, source: u32) -> Option<&Arc<dyn BlockRead>> {
        (source == self.number).then_some(&self.blocks)
    }
}

/// A file system behind a worker.
pub struct RemoteView {
    source: Source,
    about: About,
    known: Recent<Ino, Known>,
}

/// What is known of a file. It never changes.
#[derive(Clone)]
struct Known {
    attr: Attr,
    /// Whether it is known to have no extended attributes.
    bare: bool,
}

impl RemoteView {
    /// What `source` was found to hold.
    pub fn new(source: Source, mut about: About) -> Self {
        for text in [&mut about.format, &mut about.label, &mut about.replay] {
            *text = plain(text);
        }
        Self { source, about, known: Recent::new(KNOWN_FILES) }
    }

    fn ask<T: serde::de::DeserializeOwned>(&self, call: Call) -> Result<T> {
        self.source.call(&self.about, call, |_, answer| Ok(answer))
    }
}

impl FsView for RemoteView {
    fn format(&self) -> &'static str {
        FORMATS.into_iter().find(|known| *known == self.about.format).unwrap_or("unknown")
    }

    fn label(&self) -> String {
        self.about.label.clone()
    }

    fn replay(&self) -> String {
        self.about.replay.clone()
    }

    fn root(&self) -> Ino {
        self.about.root
    }

    fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Ino> {
        self.lookup_attr(dir, name).map(|(ino, _)| ino)
    }

    fn lookup_attr(&self, dir: Ino, name: &[u8]) -> Result<(Ino, Attr)> {
        self.ask(Call::Lookup { dir, name: name.to_vec() })
    }

    fn readdir(&self, dir: Ino, cookie: u64, max: usize) -> Result<Vec<DirEntry>> {
        let names: Vec<DirEntry> = self.ask(Call::Names { dir, cookie, max })?;
        Ok(names.into_iter().take(max).filter(|entry| is_plain_name(&entry.name)).collect())
    }

    fn list(&self, dir: Ino, cookie: u64, max: usize) -> Result<Listing> {
        let listed: Listed = self.ask(Call::List { dir, cookie, max })?;
        let entries = listed.entries.into_iter().take(max).filter(|(entry, ..)| is_plain_name(&entry.name));
        let entries: Vec<_> = entries.collect();
        self.known.extend(entries.iter().filter_map(|(entry, attr, bare)| {
            let attr = attr.as_ref().ok()?.clone();
            Some((entry.ino, Known { attr, bare: *bare }))
        }));
        let entries = entries.into_iter().map(|(entry, attr, _)| (entry, attr.map_err(Error::from)));
        Ok(Listing { entries: entries.collect(), end: listed.end })
    }

    fn attr(&self, ino: Ino) -> Result<Attr> {
        match self.known.get(&ino) {
            Some(known) => Ok(known.attr),
            None => self.ask(Call::Attr { ino }),
        }
    }

    fn read_at(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            let rest = &mut buf[done..];
            let wanted = rest.len().min(super::wire::CONTENT_BYTES);
            let count = self.read_some(ino, offset + done as u64, &mut rest[..wanted])?;
            done += count;
            if count < wanted {
                break;
            }
        }
        Ok(done)
    }

    fn next_data(&self, ino: Ino, offset: u64) -> Result<Option<Range<u64>>> {
        self.ask(Call::NextData { ino, offset })
    }

    fn extent(&self, ino: Ino, offset: u64) -> Result<Option<Extent>> {
        self.ask(Call::Extent { ino, offset })
    }

    fn inode_at(&self, ino: Ino) -> Result<Option<Range<u64>>> {
        self.ask(Call::InodeAt { ino })
    }

    fn bookkeeping(&self) -> Result<Option<Vec<Range<u64>>>> {
        self.ask(Call::Bookkeeping)
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        self.ask(Call::Readlink { ino })
    }

    fn xattrs(&self, ino: Ino) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        match self.known.get(&ino) {
            Some(known) if known.bare => Ok(Vec::new()),
            _ => self.ask(Call::Xattrs { ino }),
        }
    }

    fn statfs(&self) -> StatFs {
        self.about.statfs
    }
}

impl RemoteView {
    /// Reads as much as one answer holds. What the worker says lies in the source is read here.
    fn read_some(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let call = Call::Read { ino, offset, len: buf.len() };
        let parts = self.source.call(&self.about, call, |lane, Content { parts }| {
            let (mut at, mut in_lane) = (0, 0);
            for part in &parts {
                let piece = piece(buf, &mut at, part.len())?;
                if let Part::Read { len } = part {
                    lane.take(in_lane, piece)?;
                    in_lane += len;
                }
            }
            Ok(parts)
        })?;
        let mut done = 0;
        for part in parts {
            let piece = piece(buf, &mut done, part.len())
                .map_err(|source| Error::Io { what: self.source.label.clone(), source })?;
            match part {
                Part::Read { .. } => {}
                Part::Source { at, .. } => self.source.blocks.read_at(at, piece)?,
                Part::Zeros { .. } => piece.fill(0),
            }
        }
        Ok(done)
    }
}

/// The next `len` bytes of `buf` from `at` on; an error if the worker says more than it was asked for.
fn piece<'a>(buf: &'a mut [u8], at: &mut usize, len: usize) -> io::Result<&'a mut [u8]> {
    let start = *at;
    let piece = start.checked_add(len).and_then(|end| buf.get_mut(start..end));
    *at = start.saturating_add(len);
    piece.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

impl Part {
    fn len(self) -> usize {
        match self {
            Self::Read { len } | Self::Source { len, .. } | Self::Zeros { len } => len,
        }
    }
}
