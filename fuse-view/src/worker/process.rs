//! One worker process, as its host sees it.
//!
//! Invariants: a process that ended, was stopped, is silent for too long or says nonsense is killed and never spoken to
//! again; a request ends with it, at the latest. The time in which the host itself reads blocks is not the worker's.

use super::{
    ARGUMENT, Options,
    wire::{
        Blocks, CONTENT_BYTES, Fault, Hello, Identities, Lane, Length, Question, Ready, Reply, Request, plain,
    },
};
use crate::{BlockRead, Error, Result};
use parking_lot::{Condvar, Mutex};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    sockopt,
};
use serde::de::DeserializeOwned;
use std::{
    cell::RefCell,
    io::{self, IoSlice, Read},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// How long a silent worker is waited for before somebody looks at it.
const SLICE: Duration = Duration::from_millis(100);
/// How long a worker may take to start.
const START: Duration = Duration::from_secs(10);
/// How long a request may take however busy it is.
const LONGEST: Duration = Duration::from_secs(600);
/// Most identities that are told at once.
const MAX_IDENTITIES: usize = 1024;
/// How much of a dying worker's last words is read.
const LAST_WORDS_BYTES: u64 = 4096;

thread_local! {
    /// Blocks on their way from a source to a lane.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Why a process cannot be spoken to any more.
#[derive(Debug)]
pub enum Broken {
    /// It is gone.
    Ended,
    /// It does not answer.
    Hung(&'static str),
    /// What it says makes no sense.
    Nonsense,
    /// Nobody wants its answer any more.
    GivenUp,
}

/// What a worker may have while it works on one request.
pub trait Host {
    /// The blocks of a source; None: it may not have them.
    fn blocks(&self, source: u32) -> Option<&Arc<dyn BlockRead>>;
    /// The answer to a question, encoded.
    fn answer(&mut self, _question: Question) -> std::result::Result<Result<Vec<u8>>, Broken> {
        Err(Broken::Nonsense)
    }
    /// Whether nobody wants the answer any more.
    fn is_over(&self) -> bool {
        false
    }
    /// Whether the request is one of many, and has to come to an end soon.
    fn is_short(&self) -> bool {
        true
    }
}

/// A process.
pub struct Process {
    /// Its number among those of its reader, from 1.
    pub generation: u64,
    /// What it could not give up.
    pub missing: Vec<String>,
    child: Mutex<Child>,
    pid: u32,
    /// Its end tells the process that nobody needs it.
    _control: OwnedFd,
    lanes: Mutex<Vec<Lane>>,
    lane_came_free: Condvar,
    /// Lanes for which this side reads blocks now.
    reading: AtomicUsize,
    ended: AtomicBool,
}

impl Process {
    /// Starts one. Returns when it has given up its privileges.
    pub fn start(options: &Options, label: &str, cache_bytes: u64, generation: u64) -> io::Result<Self> {
        let (control, stdin) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_timeout(&control, sockopt::Timeout::Recv, Some(START))?;
        let (mut lanes, mut descriptors) = (Vec::new(), Vec::new());
        for _ in 0..options.lanes {
            let (lane, of_worker) = Lane::pair(SLICE)?;
            lanes.push(lane);
            descriptors.extend(of_worker);
        }
        descriptors.extend(super::inside::scratch_file().map(OwnedFd::from));
        // A process has its parent's processors and policy of scheduling.
        crate::near::anywhere();
        let child = Command::new(&options.program)
            .arg0(format!("cowslip-view {label}")) // for whoever lists processes
            .arg(ARGUMENT)
            .args(&options.arguments)
            .env_clear()
            .current_dir("/")
            .process_group(0) // a terminal's ^C is for the host, which may have more to read
            .stdin(stdin)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let pid = child.id();
        let mut process = Self {
            generation,
            missing: Vec::new(),
            child: Mutex::new(child),
            pid,
            _control: control,
            lanes: Mutex::new(lanes),
            lane_came_free: Condvar::new(),
            reading: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
        };
        let hello = Hello {
            user: options.user,
            cache_bytes,
            lanes: options.lanes,
            memory_bytes: options.memory_bytes.saturating_add(cache_bytes),
        };
        match process.greet(&hello, &descriptors) {
            Ok(ready) => {
                process.missing = ready.missing;
                Ok(process)
            }
            Err(error) => {
                let why = process.end();
                Err(io::Error::new(error.kind(), format!("{error}; it ended: {why}")))
            }
        }
    }

    fn greet(&self, hello: &Hello, descriptors: &[OwnedFd]) -> io::Result<Ready> {
        let hello = postcard::to_stdvec(hello).map_err(io::Error::other)?;
        let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        let mut space = vec![MaybeUninit::uninit(); SendAncillaryMessage::ScmRights(&borrowed).size()];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&borrowed));
        rustix::net::sendmsg(&self._control, &[IoSlice::new(&hello)], &mut ancillary, SendFlags::NOSIGNAL)?;
        let mut ready = vec![0; 4096];
        let (_, len) = rustix::net::recv(&self._control, &mut ready[..], RecvFlags::empty())?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        postcard::from_bytes(&ready[..len.min(ready.len())]).map_err(io::Error::other)
    }

    /// Sends `request`, gives the worker what it asks `host` for, and gives `then` its answer while the lane still has
    /// what belongs to it.
    pub fn ask<T: DeserializeOwned, R>(
        &self,
        request: &Request,
        host: &mut dyn Host,
        patience: Duration,
        then: impl FnOnce(&Lane, T) -> io::Result<R>,
    ) -> std::result::Result<Result<R>, Broken> {
        let mut lane = self.lane()?;
        let answer = self.talk(&mut lane, request, host, patience)?;
        let done = match answer {
            Ok(answer) => Ok(then(&lane, answer).map_err(|_| Broken::Nonsense)?),
            Err(error) => Err(error),
        };
        // A lane on which something went wrong is not used again: its worker is not either.
        self.lanes.lock().push(lane);
        self.lane_came_free.notify_one();
        Ok(done)
    }

    fn lane(&self) -> std::result::Result<Lane, Broken> {
        let mut lanes = self.lanes.lock();
        loop {
            if self.ended.load(Ordering::SeqCst) {
                return Err(Broken::Ended);
            }
            match lanes.pop() {
                Some(lane) => return Ok(lane),
                None => self.lane_came_free.wait(&mut lanes),
            }
        }
    }

    fn talk<T: DeserializeOwned>(
        &self,
        lane: &mut Lane,
        request: &Request,
        host: &mut dyn Host,
        patience: Duration,
    ) -> std::result::Result<Result<T>, Broken> {
        let (mut silent, started) = (Duration::ZERO, Instant::now());
        // What failed on this side, as it was: the worker repeats words only.
        let mut ours: Option<Error> = None;
        // The answer to its last question.
        let mut long = Vec::new();
        let is_short = host.is_short();
        lane.send(request).map_err(broken)?;
        loop {
            let reply = lane.receive::<Reply<T>>().map_err(broken)?;
            if host.is_over() {
                return Err(Broken::GivenUp);
            }
            if reply.is_some() && !is_short {
                silent = Duration::ZERO;
            }
            match reply {
                Some(Reply::Done(Ok(answer))) => return Ok(Ok(answer)),
                Some(Reply::Done(Err(fault))) => {
                    let ours = ours.filter(|_| matches!(fault, Fault::Io(..)));
                    return Ok(Err(ours.unwrap_or_else(|| fault.into())));
                }
                Some(Reply::Blocks { source, offset, len }) => {
                    let blocks = host.blocks(source).ok_or(Broken::Nonsense)?;
                    let given = self.reading(|| give(lane, &**blocks, offset, len))?;
                    let told: Blocks = given.as_ref().copied().map_err(Fault::from);
                    ours = given.err().or(ours);
                    lane.send(&told).map_err(broken)?;
                }
                Some(Reply::Identities { source, start, end }) => {
                    let blocks = host.blocks(source).ok_or(Broken::Nonsense)?;
                    let given: Identities = self.reading(|| identities(&**blocks, start, end));
                    lane.send(&given).map_err(broken)?;
                }
                Some(Reply::Ask(question)) => {
                    let given = self.reading(|| host.answer(question))?;
                    let told = given.as_ref().map(|_| ()).map_err(Fault::from);
                    (long, ours) = match given {
                        Ok(answer) => (answer, ours),
                        Err(error) => (Vec::new(), Some(error)),
                    };
                    give_long(lane, &long, 0, told)?;
                }
                Some(Reply::Rest { at }) => give_long(lane, &long, at, Ok(()))?,
                None if self.is_stopped() => return Err(Broken::Hung("it was stopped")),
                // It may wait for a block that another of its threads has asked for.
                None if self.reading.load(Ordering::SeqCst) == 0 => silent += SLICE,
                None => {}
            }
            if silent > patience {
                return Err(Broken::Hung("it did not answer"));
            }
            if is_short && started.elapsed() > LONGEST {
                return Err(Broken::Hung("it did not come to an end"));
            }
        }
    }

    fn reading<T>(&self, read: impl FnOnce() -> T) -> T {
        self.reading.fetch_add(1, Ordering::SeqCst);
        let done = read();
        self.reading.fetch_sub(1, Ordering::SeqCst);
        done
    }

    /// Whether somebody stopped it (proc_pid_stat(5)). Then it may never answer.
    fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        matches!(state, Some('T' | 't'))
    }

    /// Its number, until it has ended.
    pub fn id(&self) -> u32 {
        self.pid
    }

    /// Ends it. How it ended, with its last words.
    pub fn end(&self) -> String {
        let mut child = self.child.lock();
        {
            let _lanes = self.lanes.lock();
            self.ended.store(true, Ordering::SeqCst);
        }
        self.lane_came_free.notify_all();
        let _ = child.kill();
        let how = match child.wait() {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        let mut words = Vec::new();
        if let Some(stderr) = child.stderr.take() {
            let _ = stderr.take(LAST_WORDS_BYTES).read_to_end(&mut words);
        }
        let words = plain(&String::from_utf8_lossy(&words));
        if words.is_empty() { how } else { format!("{how}, {words}") }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

#[allow(clippy::needless_pass_by_value)] // map_err wants it so
fn broken(error: io::Error) -> Broken {
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::FileTooLarge => Broken::Nonsense,
        _ => Broken::Ended,
    }
}

/// Puts `len` bytes of the source into the lane.
fn give(
    lane: &Lane,
    blocks: &dyn BlockRead,
    offset: u64,
    len: usize,
) -> std::result::Result<Result<()>, Broken> {
    if len > CONTENT_BYTES {
        return Err(Broken::Nonsense);
    }
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        match blocks.read_at(offset, &mut buffer[..len]) {
            Ok(()) => lane.put(0, &buffer[..len]).map(Ok).map_err(broken),
            Err(error) => Ok(Err(error)),
        }
    })
}

/// Puts an answer into the lane from byte `at` on: as much as there is room for.
fn give_long(
    lane: &mut Lane,
    answer: &[u8],
    at: u64,
    told: std::result::Result<(), Fault>,
) -> std::result::Result<(), Broken> {
    let rest = usize::try_from(at).ok().and_then(|at| answer.get(at..)).ok_or(Broken::Nonsense)?;
    lane.put(0, &rest[..rest.len().min(CONTENT_BYTES)]).map_err(broken)?;
    let told: Length = told.map(|()| answer.len() as u64);
    lane.send(&told).map_err(broken)
}

fn identities(blocks: &dyn BlockRead, start: u64, end: u64) -> Identities {
    let bytes = end.checked_sub(start).filter(|_| end <= blocks.len())?;
    let count = usize::try_from(bytes.div_ceil(store::BLOCK_BYTES)).ok()?;
    if count > MAX_IDENTITIES { None } else { blocks.identities(start..end) }
}
