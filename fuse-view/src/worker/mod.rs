//! The readers of file systems in processes of their own, without privileges.
//!
//! An image may have been written by somebody who wants more than its files. So whoever has the blocks (the *host*: the
//! agent, or a command) parses none of them: a *worker*, this program again with [`ARGUMENT`], does, behind the walls of
//! `sandbox`. It has no descriptor of a pool, an image or a mount; blocks are asked for, answers are checked (`wire`).
//!
//! Invariants:
//! - *One volume, one worker.* A worker reads the snapshots of one volume; what it lies about is that volume.
//! - *Content goes past it* where nothing is compared with it: the worker tells where it lies, the host reads it there.
//! - *Comparisons are done by it as a whole*: they ask for millions of small things (`comparing`, `comparisons`).
//! - *It may die at any time.* Requests that are under way fail with an error of I/O, another process is started at once,
//!   and what was open is opened again. A worker that is stopped or silent is killed: nobody waits for ever.
//! - *Dying over and over costs little*: so many starts in so many seconds, and errors at once in between.

mod comparing;
mod comparisons;
mod hook;
mod inside;
mod process;
mod recent;
mod remote;
mod sandbox;
mod sys;
mod wire;

pub use comparisons::Sides;
pub use inside::main;

use crate::{BlockRead, Error, FsView, Result, container::Partition, tree};
use parking_lot::Mutex;
use process::{Broken, Host, Process};
use remote::{RemoteView, Source};
use std::{
    collections::{HashMap, VecDeque},
    ffi::OsString,
    io,
    path::PathBuf,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use wire::{Call, Found, Lane, Request};

/// First argument of a worker: the program's `main` calls [`main`] with those after it, before anything else.
pub const ARGUMENT: &str = "__view-worker";

/// Starts of one reader's workers that are allowed in [`STARTS_WITHIN`].
const MAX_STARTS: usize = 16;
const STARTS_WITHIN: Duration = Duration::from_secs(4);
/// Least memory for the cached blocks of one worker.
const LEAST_CACHE_BYTES: u64 = 8 << 20;
/// Opening may replay a log of gigabytes: it may be silent for so many times as long as others.
const OPEN_PATIENCE: u32 = 6;

/// How workers are started.
#[derive(Debug, Clone)]
pub struct Options {
    /// The program: this one.
    pub program: PathBuf,
    /// Arguments after [`ARGUMENT`]: for tests.
    pub arguments: Vec<OsString>,
    /// User and group of the workers; None: those of the host.
    pub user: Option<(u32, u32)>,
    /// Requests that one of them works on at the same time.
    pub lanes: usize,
    /// Memory for cached blocks, shared by the workers that there are.
    pub cache_bytes: u64,
    /// Memory for everything else, for each of them.
    pub memory_bytes: u64,
    /// How long one may be silent while nobody reads blocks for it.
    pub patience: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            program: "/proc/self/exe".into(),
            arguments: Vec::new(),
            user: None,
            lanes: 4,
            cache_bytes: 32 << 20,
            memory_bytes: 512 << 20,
            patience: Duration::from_secs(10),
        }
    }
}

/// Something that somebody should know of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The label of the reader: a volume.
    pub reader: String,
    /// The label of the source that was being read: a snapshot.
    pub source: String,
    /// What happened, in words.
    pub message: String,
}

/// What may happen to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// It ended, or was killed because it did not answer.
    Ended,
    /// It could not be started.
    NotStarted,
    /// It runs, but a wall could not be put up around it.
    Unprotected,
}

/// What a source holds.
pub enum Holds {
    /// A file system.
    Files(Arc<dyn FsView>),
    /// Partitions, by number.
    Partitions(Vec<(Partition, Arc<dyn BlockRead>)>),
    /// Neither.
    Raw,
}

impl From<Holds> for tree::Contents {
    fn from(holds: Holds) -> Self {
        match holds {
            Holds::Files(view) => Self::Files(view),
            Holds::Partitions(table) => Self::Partitions(table),
            Holds::Raw => Self::Raw,
        }
    }
}

/// All readers of a host.
pub struct Workers {
    options: Options,
    listener: Box<dyn Fn(&Event) + Send + Sync>,
    readers: Mutex<HashMap<u64, Weak<Reader>>>,
    /// Processes that there are.
    running: AtomicU64,
    /// What this kernel does not have was told: it is the same for all of them.
    told_missing: AtomicBool,
}

impl Workers {
    /// None yet. `listener` is told of what happens to them; it may be called by any thread that reads.
    pub fn new(options: Options, listener: impl Fn(&Event) + Send + Sync + 'static) -> Arc<Self> {
        let listener = Box::new(listener);
        Arc::new(Self {
            options,
            listener,
            readers: Mutex::default(),
            running: AtomicU64::new(0),
            told_missing: AtomicBool::new(false),
        })
    }

    /// The reader for sources of one volume. Its process lives for as long as something that it opened does.
    pub fn reader(self: &Arc<Self>, volume: u64, label: &str) -> Arc<Reader> {
        let mut readers = self.readers.lock();
        if let Some(reader) = readers.get(&volume).and_then(Weak::upgrade) {
            return reader;
        }
        readers.retain(|_, reader| reader.strong_count() > 0);
        let reader = Arc::new(Reader {
            workers: self.clone(),
            label: label.to_owned(),
            state: Mutex::default(),
            next_source: AtomicU32::new(0),
            closed: Mutex::default(),
        });
        readers.insert(volume, Arc::downgrade(&reader));
        reader
    }
}

/// Reads the sources of one volume, with one process at a time.
pub struct Reader {
    workers: Arc<Workers>,
    label: String,
    state: Mutex<State>,
    next_source: AtomicU32,
    /// Sources that the worker may forget, told with the next request.
    closed: Mutex<Vec<u32>>,
}

#[derive(Default)]
struct State {
    process: Option<Arc<Process>>,
    generation: u64,
    /// The newest starts.
    starts: VecDeque<Instant>,
}

impl Reader {
    /// Finds out what `blocks` hold. `label` is what they are called in messages.
    ///
    /// # Errors
    /// Those of [`crate::container::open`] and [`crate::fs::open`]; [`Error::Io`] also when the worker died over it.
    pub fn open(self: &Arc<Self>, label: &str, blocks: Arc<dyn BlockRead>) -> Result<Holds> {
        let number = self.next_source.fetch_add(1, Ordering::Relaxed);
        let source = Source::new(self.clone(), number, label.to_owned(), blocks);
        Ok(match source.open()? {
            Found::Files(about) => Holds::Files(Arc::new(RemoteView::new(source, about))),
            Found::Partitions(table) => {
                let mut parts: Vec<(Partition, Arc<dyn BlockRead>)> = Vec::new();
                for partition in table {
                    let partition = wire::plain_partition(partition)?;
                    let blocks = partition.source(&source.blocks)?;
                    parts.push((partition, blocks));
                }
                Holds::Partitions(parts)
            }
            Found::Raw => Holds::Raw,
        })
    }

    /// The number of the process that reads now, if there is one.
    pub fn process_id(&self) -> Option<u32> {
        self.state.lock().process.as_ref().map(|process| process.id())
    }

    /// The process of this moment; another if there is none.
    fn process(&self, source: &Source) -> Result<Arc<Process>> {
        let mut state = self.state.lock();
        match &state.process {
            Some(process) => Ok(process.clone()),
            None => self.start(&mut state, source),
        }
    }

    fn start(&self, state: &mut State, source: &Source) -> Result<Arc<Process>> {
        let now = Instant::now();
        state.starts.retain(|start| now.duration_since(*start) < STARTS_WITHIN);
        if state.starts.len() >= MAX_STARTS {
            return Err(lost(source, "its reader ended too often, another is started in a few seconds"));
        }
        state.starts.push_back(now);
        state.generation += 1;
        let running = self.workers.running.load(Ordering::Relaxed);
        let options = &self.workers.options;
        let cache_bytes = (options.cache_bytes / (running + 1)).max(LEAST_CACHE_BYTES);
        match Process::start(options, &self.label, cache_bytes, state.generation) {
            Ok(process) => {
                self.workers.running.fetch_add(1, Ordering::Relaxed);
                if !process.missing.is_empty() && !self.workers.told_missing.swap(true, Ordering::Relaxed) {
                    let missing = process.missing.join("; ");
                    let message =
                        format!("the processes that read images work without {}", wire::plain(&missing));
                    self.tell(EventKind::Unprotected, source, message);
                }
                let process = Arc::new(process);
                state.process = Some(process.clone());
                Ok(process)
            }
            Err(error) => {
                let message = format!("the reader of {} could not be started: {error}", self.name(source));
                self.tell(EventKind::NotStarted, source, message);
                Err(lost(source, &format!("its reader could not be started: {error}")))
            }
        }
    }

    fn ask<T: serde::de::DeserializeOwned, R>(
        &self,
        process: &Process,
        source: &Source,
        call: Call,
        then: impl FnOnce(&Lane, T) -> io::Result<R>,
    ) -> Result<R> {
        self.ask_with(process, source, &mut { source }, call, then)
    }

    /// Has `process` answer `call` about `source`, with what it asks `host` for.
    fn ask_with<T: serde::de::DeserializeOwned, R>(
        &self,
        process: &Process,
        source: &Source,
        host: &mut dyn Host,
        call: Call,
        then: impl FnOnce(&Lane, T) -> io::Result<R>,
    ) -> Result<R> {
        let opens = matches!(call, Call::Open { .. } | Call::Diff { .. } | Call::Versions { .. });
        let patience = self.workers.options.patience * if opens { OPEN_PATIENCE } else { 1 };
        let closed = std::mem::take(&mut *self.closed.lock());
        let request = Request { closed, source: source.number, call };
        match process.ask(&request, host, patience, then) {
            Ok(answer) => answer,
            Err(Broken::GivenUp) => {
                self.take(&mut self.state.lock(), process);
                let interrupted = io::ErrorKind::Interrupted.into();
                Err(Error::Io { what: format!("read {}", source.label), source: interrupted })
            }
            Err(why) => match self.replace(process, source, &why) {
                Some(why) => Err(lost(source, &format!("its reader ended: {why}"))),
                None => Err(lost(source, "its reader ended")),
            },
        }
    }

    /// Puts another process in the place of one that failed; the first who comes is told why it did.
    fn replace(&self, failed: &Process, source: &Source, why: &Broken) -> Option<String> {
        let mut state = self.state.lock();
        let how = self.take(&mut state, failed)?;
        let why = match why {
            Broken::Ended | Broken::GivenUp => how,
            Broken::Hung(what) => format!("{what}, and was killed"),
            Broken::Nonsense => "it said what makes no sense, and was killed".to_owned(),
        };
        // Already: who comes next finds it ready.
        let again = self.start(&mut state, source).map_or("no other runs yet", |_| "another one runs");
        drop(state);
        let name = self.name(source);
        let message = format!("the reader of {name} ended ({why}); what was being read failed, {again}");
        self.tell(EventKind::Ended, source, message);
        Some(why)
    }

    /// Ends a process if it is still the one that reads; how it ended.
    fn take(&self, state: &mut State, process: &Process) -> Option<String> {
        let is_current = |current: &mut Arc<Process>| std::ptr::eq(&raw const **current, process);
        let process = state.process.take_if(is_current)?;
        self.workers.running.fetch_sub(1, Ordering::Relaxed);
        Some(process.end())
    }

    fn tell(&self, kind: EventKind, source: &Source, message: String) {
        let (reader, source) = (self.label.clone(), source.label.clone());
        (self.workers.listener)(&Event { kind, reader, source, message });
    }

    fn name(&self, source: &Source) -> String {
        if self.label.is_empty() { source.label.clone() } else { format!("{}@{}", self.label, source.label) }
    }

    fn forget(&self, source: u32) {
        self.closed.lock().push(source);
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if self.state.get_mut().process.take().is_some() {
            self.workers.running.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn lost(source: &Source, why: &str) -> Error {
    Error::Io { what: format!("read {}", source.label), source: io::Error::other(why.to_owned()) }
}
