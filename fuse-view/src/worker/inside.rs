//! The worker: parses, and does nothing else.

use super::{
    comparing,
    sandbox::Sandbox,
    wire::{
        About, Blocks, CONTENT_BYTES, Call, Content, Fault, Found, Hello, Identities, Lane, Listed, Part,
        Ready, Reply, Request, Shape,
    },
};
use crate::{
    BlockRead, Error, Extent, FsView, Ino, Result,
    cache::{CHUNK_BYTES, CacheBudget, CachedBlocks},
    container, fs,
    overlay::Scratch,
};
use parking_lot::RwLock;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags};
use serde::Serialize;
use std::{
    cell::RefCell,
    collections::HashMap,
    ffi::OsString,
    fs::File,
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    ops::Range,
    os::fd::OwnedFd,
    process::ExitCode,
    sync::{Arc, Barrier},
};

/// Most descriptors of a worker (SCM_MAX_FD).
const MAX_DESCRIPTORS: usize = 253;
/// Most bytes of the first message.
const HELLO_BYTES: usize = 4096;
/// Most entries of a directory in one answer.
const MAX_ENTRIES: usize = 1024;
/// Stack of a thread: address space, of which only what is used is memory.
const STACK_BYTES: usize = 8 << 20;

/// What the program does when its first argument is [`super::ARGUMENT`]; to be called before anything else. Standard
/// input is a socket to the host.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match run(arguments.collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Vec<OsString>) -> io::Result<()> {
    let hook = super::hook::Hook::of(arguments)?;
    // Started as /proc/self/exe, it would be `exe` in every list of processes.
    let _ = rustix::thread::set_name(c"cowslip-view");
    super::sys::close_inherited()?;
    let control = io::stdin();
    let (hello, descriptors) = hear(&control)?;
    let mut descriptors = descriptors.into_iter();
    let mut lanes = Vec::new();
    for _ in 0..hello.lanes {
        let (Some(socket), Some(file)) = (descriptors.next(), descriptors.next()) else {
            return Err(io::Error::other("descriptors of a lane are missing"));
        };
        lanes.push(Lane::new(socket, file.into()));
    }
    if let Some(file) = descriptors.next() {
        Scratch::share(file.into());
    }
    let mut sandbox = Sandbox::default();
    sandbox.prepare(hello.user, hello.memory_bytes)?;
    let budget = CacheBudget::new(hello.cache_bytes);
    let worker = Arc::new(Worker { budget, hook, opened: RwLock::default() });
    let closed = Arc::new(Barrier::new(lanes.len() + 1));
    for lane in lanes {
        let (worker, closed) = (worker.clone(), closed.clone());
        std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
            closed.wait();
            LANE.with_borrow_mut(|own| *own = Some(lane));
            worker.serve();
            // The host is gone, or says what nobody understands.
            std::process::exit(0);
        })?;
    }
    sandbox.close()?;
    let ready = postcard::to_stdvec(&Ready { missing: sandbox.missing }).map_err(io::Error::other)?;
    rustix::net::send(&control, &ready, SendFlags::NOSIGNAL)?;
    closed.wait();
    // Nothing more comes; the end of the host closes the socket.
    let _ = rustix::net::recv(&control, &mut [0; 1][..], RecvFlags::empty());
    std::process::exit(0)
}

/// The first message and its descriptors.
fn hear(control: &io::Stdin) -> io::Result<(Hello, Vec<OwnedFd>)> {
    let mut bytes = vec![0; HELLO_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let heard = rustix::net::recvmsg(control, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let descriptors = ancillary
        .drain()
        .flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
            _ => Vec::new(),
        })
        .collect();
    Ok((postcard::from_bytes(&bytes[..heard.bytes]).map_err(io::Error::other)?, descriptors))
}

thread_local! {
    /// The lane that this thread serves.
    static LANE: RefCell<Option<Lane>> = const { RefCell::new(None) };
}

/// Uses the lane of this thread. Whoever cannot talk to the host has nothing left to do.
pub fn on_lane<T>(talk: impl FnOnce(&mut Lane) -> io::Result<T>) -> T {
    let talked = LANE.with_borrow_mut(|lane| lane.as_mut().map(talk));
    match talked {
        Some(Ok(heard)) => heard,
        _ => std::process::exit(0),
    }
}

/// Says something of the host's and hears its answer.
pub fn hear_answer<T: serde::de::DeserializeOwned>(lane: &mut Lane) -> io::Result<T> {
    loop {
        if let Some(answer) = lane.receive()? {
            return Ok(answer);
        }
    }
}

struct Worker {
    budget: CacheBudget,
    hook: super::hook::Hook,
    opened: RwLock<HashMap<u32, Arc<dyn FsView>>>,
}

impl Worker {
    /// Answers the requests of one lane until the host is gone.
    fn serve(&self) {
        loop {
            let request: Request = on_lane(hear_answer);
            if !request.closed.is_empty() {
                let mut opened = self.opened.write();
                let gone: Vec<_> = request.closed.iter().map(|source| opened.remove(source)).collect();
                drop(opened);
                drop(gone);
            }
            self.answer(request.source, request.call);
        }
    }

    fn answer(&self, source: u32, call: Call) {
        match call {
            Call::Open(shape) => return done(self.open(HostBlocks { source, shape })),
            Call::Diff { shape, old, old_shape, path } => {
                self.hook.looks_up(&path);
                let old = HostBlocks { source: old, shape: old_shape };
                return done(comparing::diff(&self.budget, old, HostBlocks { source, shape }, &path));
            }
            Call::Versions { path } => {
                self.hook.looks_up(&path);
                return done(comparing::versions(&path));
            }
            _ => {}
        }
        let Some(view) = self.opened.read().get(&source).cloned() else {
            return done::<()>(Err(Error::NotFound("the source is not open".into())));
        };
        match call {
            Call::Open(_) | Call::Diff { .. } | Call::Versions { .. } => {}
            Call::List { dir, cookie, max } => done(list(&*view, dir, cookie, max)),
            Call::Names { dir, cookie, max } => done(view.readdir(dir, cookie, max.min(MAX_ENTRIES))),
            Call::Lookup { dir, name } => {
                self.hook.looks_up(&name);
                done(self.hook.report(&name).unwrap_or_else(|| view.lookup_attr(dir, &name)));
            }
            Call::Attr { ino } => done(view.attr(ino)),
            Call::Read { ino, offset, len } => done(read(&*view, ino, offset, len)),
            Call::NextData { ino, offset } => done(view.next_data(ino, offset)),
            Call::Extent { ino, offset } => done(view.extent(ino, offset)),
            Call::InodeAt { ino } => done(view.inode_at(ino)),
            Call::Bookkeeping => done(view.bookkeeping()),
            Call::Readlink { ino } => done(view.readlink(ino)),
            Call::Xattrs { ino } => done(view.xattrs(ino)),
        }
    }

    fn open(&self, blocks: HostBlocks) -> Result<Found> {
        let source = blocks.source;
        let cached: Arc<dyn BlockRead> = Arc::new(CachedBlocks::new(Arc::new(blocks), &self.budget));
        Ok(match container::open(&cached)? {
            container::Contents::FileSystem(_) => {
                let view = fs::open(cached)?;
                let about = About {
                    format: view.format().into(),
                    label: view.label(),
                    replay: view.replay(),
                    root: view.root(),
                    statfs: view.statfs(),
                };
                self.opened.write().insert(source, view);
                Found::Files(about)
            }
            container::Contents::Partitions(table) => {
                Found::Partitions(table.into_iter().map(|(partition, _)| partition).collect())
            }
            container::Contents::Raw => Found::Raw,
        })
    }
}

/// Ends a request.
fn done<T: Serialize>(result: Result<T>) {
    on_lane(|lane| match lane.send(&Reply::Done(result.map_err(|error| Fault::from(&error)))) {
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            lane.send(&Reply::<T>::Done(Err(Fault::Unsupported("the answer is too large".into()))))
        }
        sent => sent,
    });
}

fn list(view: &dyn FsView, dir: Ino, cookie: u64, max: usize) -> Result<Listed> {
    let mut listing = view.list(dir, cookie, max.min(MAX_ENTRIES))?;
    if let Some((last, _)) = listing.entries.last()
        && !listing.end
        && listing.entries.len() < max
    {
        // Whoever got less than he asked for asks once more otherwise.
        listing.end = view.readdir(dir, last.cookie, 1)?.is_empty();
    }
    let entry = |(entry, attr): (crate::DirEntry, Result<crate::Attr>)| {
        let bare = view.xattrs(entry.ino).is_ok_and(|all| all.is_empty());
        (entry, attr.map_err(|error| Fault::from(&error)), bare)
    };
    Ok(Listed { entries: listing.entries.into_iter().map(entry).collect(), end: listing.end })
}

/// The content of a range: where it lies if the host can read it there by itself, else the bytes.
fn read(view: &dyn FsView, ino: Ino, offset: u64, len: usize) -> Result<Content> {
    let len = len.min(CONTENT_BYTES);
    // Small reads are worth a place in the cache: neighbours follow.
    if len as u64 >= CHUNK_BYTES
        && view.is_unchecked()
        && let Some(content) = place(view, ino, offset, len)?
    {
        return Ok(content);
    }
    let mut bytes = vec![0; len];
    let count = view.read_at(ino, offset, &mut bytes)?.min(len);
    on_lane(|lane| lane.put(0, &bytes[..count]));
    Ok(Content { parts: vec![Part::Read { len: count }] })
}

/// Where the content lies; None if some of it has to be read here, or in too many pieces.
fn place(view: &dyn FsView, ino: Ino, offset: u64, len: usize) -> Result<Option<Content>> {
    const MAX_PIECES: usize = 256;
    let mut parts = Vec::new();
    let mut done = 0;
    while done < len {
        let Some(extent) = view.extent(ino, offset.saturating_add(done as u64))? else { break };
        let piece = usize::try_from(extent.bytes()).unwrap_or(usize::MAX).min(len - done);
        parts.push(match extent {
            Extent::Data { at, .. } => Part::Source { at, len: piece },
            Extent::Hole { .. } => Part::Zeros { len: piece },
            Extent::Packed { .. } | Extent::Opaque { .. } => return Ok(None),
        });
        done += piece;
        if piece == 0 || parts.len() > MAX_PIECES {
            return Ok(None);
        }
    }
    Ok(Some(Content { parts }))
}

/// A source whose blocks the host has.
pub struct HostBlocks {
    pub source: u32,
    pub shape: Shape,
}

impl BlockRead for HostBlocks {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.len()) {
            let (count, len) = (buf.len(), self.len());
            return Err(Error::Corrupt(format!("{count} bytes at {offset} lie past the end, {len} bytes")));
        }
        let mut at = offset;
        for part in buf.chunks_mut(CONTENT_BYTES) {
            let ask = Reply::<()>::Blocks { source: self.source, offset: at, len: part.len() };
            at += part.len() as u64;
            on_lane(|lane| {
                lane.send(&ask)?;
                Ok(match hear_answer::<Blocks>(lane)? {
                    Ok(()) => Ok(lane.take(0, part)?),
                    Err(fault) => Err(Error::from(fault)),
                })
            })?;
        }
        Ok(())
    }

    fn len(&self) -> u64 {
        self.shape.len
    }

    fn has_identities(&self) -> bool {
        self.shape.identities
    }

    fn identity(&self, offset: u64) -> Option<(u64, u64)> {
        self.identities(offset..offset.saturating_add(1).min(self.len()))?.first().copied()
    }

    fn identities(&self, range: Range<u64>) -> Option<Vec<(u64, u64)>> {
        if !self.has_identities() {
            return None;
        }
        let ask = Reply::<()>::Identities { source: self.source, start: range.start, end: range.end };
        on_lane(|lane| {
            lane.send(&ask)?;
            hear_answer::<Identities>(lane)
        })
    }
}

/// The scratch file of a worker: it cannot make one itself. None: this host has no room for one.
pub fn scratch_file() -> Option<File> {
    Scratch::new_file(&std::env::temp_dir()).ok()
}
