//! The threads that answer the requests of one connection.
//!
//! Invariants:
//! - Requests are read into, and replies written from, [`LockedBuffer`]s only, and nothing is allocated per request:
//!   SIGKILL at any instruction leaves each request either answered, or open for the next server.
//! - A request is answered once, after the disk has done what it asks for.
//! - A slot of [`Requests`] begins with zeros or with the request that was read into it last. So a request that was read
//!   and not answered is in a slot, whenever its server dies; one that was answered the kernel no longer knows.
//! - No answer makes the kernel stop asking: never ENOSYS, EOPNOTSUPP or EINVAL to FSYNC and FALLOCATE.
//! - A panic ends the process: a request that nobody will answer would hang its caller for ever.

use super::abi::{self, InHeader, OutHeader, WRITE_HEADER, init, notify, op};
use super::requests::{Requests, Slot};
use crate::Disk;
use crate::sys::buffer::{LockedBuffer, PAGE};
use crate::sys::{fd, process};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use store::mutation::Mutation;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Largest payload of a request, in bytes, of the connections that this version makes. The loop driver's requests have
/// 128 segments at most, which is 512 KiB of scattered pages; the kernel cuts those in two, and two threads serve them at
/// once. Larger payloads were no faster, and cost locked memory.
pub(super) const MAX_PAYLOAD: u32 = 256 << 10;
/// Threads of a connection. One thread serves one request at a time, so this bounds a volume's I/O depth; each costs
/// `MAX_PAYLOAD` of locked memory, 4 MiB a volume in all. Against 8 threads, 16 gave 1 MiB sequential writes a fifth
/// more, and changed nothing else (both with payloads of 512 KiB).
pub(super) const DEFAULT_THREADS: usize = 16;
/// Threads that a new device begins with. Sixteen, and the memory that they lock, are most of what it costs to make one,
/// while its user waits for the first mount, which asks for one thing after another.
const FIRST_THREADS: usize = 2;
/// The others follow when that is over. They do not wait for the load that needs them: memory may be short then.
const OTHERS_AFTER: Duration = Duration::from_secs(1);
/// A payload in the protocol's unit. Fits: the payload is a constant of 64 pages.
#[allow(clippy::cast_possible_truncation)]
const MAX_PAGES: u16 = (MAX_PAYLOAD / 4096) as u16;
/// Requests that the kernel lets wait in the connection: twice the loop driver's queue depth of 128, for a block request
/// may begin as two.
const MAX_BACKGROUND: u16 = 256;
/// Names and attributes are cached by the kernel for this long (ten years): they change by notification only, and
/// asking for a loop device's status never waits for a server.
const CACHE_SECONDS: u64 = 10 * 365 * 86_400;

const PUNCH_HOLE: u32 = 0x02;
const ZERO_RANGE: u32 = 0x10;

/// A `/dev/fuse` descriptor, the disk behind it, and the threads between them.
pub(super) struct Server {
    shared: Arc<Shared>,
    /// The thread that starts those which are not there from the start.
    others: parking_lot::Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    fuse: OwnedFd,
    disk: Arc<dyn Disk>,
    name: String,
    stop: AtomicBool,
    /// The kernel has ended the connection.
    ended: AtomicBool,
    /// The kernel sends again what a dead server had read and not answered.
    resends: AtomicBool,
    may_resend: bool,
    running: AtomicUsize,
    threads: parking_lot::Mutex<Vec<JoinHandle<()>>>,
}

impl Server {
    /// With no thread yet. `may_resend`: the kernel is asked whether it sends requests again.
    pub(super) fn new(fuse: OwnedFd, disk: Arc<dyn Disk>, name: &str, may_resend: bool) -> Self {
        let shared = Arc::new(Shared {
            fuse,
            disk,
            name: name.to_owned(),
            stop: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            resends: AtomicBool::new(false),
            may_resend,
            running: AtomicUsize::new(0),
            threads: parking_lot::Mutex::default(),
        });
        Self { shared, others: parking_lot::Mutex::default() }
    }

    /// Starts to answer what a new device is asked for.
    pub(super) fn start(&self, requests: &Arc<Requests>) -> io::Result<()> {
        let first = FIRST_THREADS.min(requests.slots());
        self.spawn_first(requests, first)?;
        if first < requests.slots() {
            let (shared, requests) = (Arc::clone(&self.shared), Arc::clone(requests));
            let later = std::thread::Builder::new().name("cowslip-later".into()).stack_size(64 << 10);
            *self.others.lock() = Some(later.spawn(move || shared.start_others(&requests, first))?);
        }
        Ok(())
    }

    /// Goes on where a dead server was, with all threads: first they answer what is left in `requests`.
    pub(super) fn take_over(&self, requests: &Arc<Requests>) -> io::Result<()> {
        self.spawn_first(requests, requests.slots())
    }

    /// That there is memory to lock for one thread is known before anybody relies on the device; the others lock theirs
    /// themselves. But what a dead server left must be answered, so then none may fail.
    fn spawn_first(&self, requests: &Arc<Requests>, count: usize) -> io::Result<()> {
        for index in 0..count {
            let now = index == 0 || requests.may_hold_some();
            let slot = now.then(|| requests.slot(index)).transpose()?;
            self.shared.spawn(requests, index, slot)?;
        }
        Ok(())
    }

    /// Asks for the requests again that a dead server had read and not answered.
    pub(super) fn resend(&self) -> io::Result<()> {
        self.notify(notify::RESEND, &[])
    }

    /// Makes the file `new_len` long in the kernel's eyes, which must not be less than it was.
    ///
    /// No path and no descriptor leads to the file any more but the loop device's, and LOOP_SET_CAPACITY believes the
    /// cached size. Storing the last page (zeros: the disk has just grown there) raises that size; the page is then
    /// dropped. Nothing reads it: all I/O is direct.
    pub(super) fn announce_len(&self, new_len: u64) -> io::Result<()> {
        static ZEROS: [u8; PAGE] = [0; PAGE];
        let Some(offset) = new_len.checked_sub(PAGE as u64) else {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        };
        let store = abi::NotifyStore { node: abi::FILE, offset, size: 4096, padding: 0 };
        self.notify(notify::STORE, &[store.as_bytes(), &ZEROS])?;
        let invalid = abi::NotifyInvalInode { node: abi::FILE, offset: 0, len: 0 };
        self.notify(notify::INVAL_INODE, &[invalid.as_bytes()])
    }

    /// Whether the kernel still has the connection.
    pub(super) fn is_alive(&self) -> bool {
        !self.shared.ended.load(Ordering::SeqCst)
    }

    /// Whether the kernel sends requests again (6.9); known, of a new connection, once its file is open.
    pub(super) fn kernel_resends(&self) -> bool {
        self.shared.resends.load(Ordering::SeqCst)
    }

    /// Waits until the kernel has ended the connection; false when it has not within `limit`.
    pub(super) fn wait_ended(&self, limit: Duration) -> bool {
        let start = Instant::now();
        while self.shared.running.load(Ordering::SeqCst) > 0 && start.elapsed() < limit {
            std::thread::sleep(Duration::from_millis(1));
        }
        !self.is_alive()
    }

    /// Ends the threads after the requests they are at; what comes later waits in the kernel. May be called twice.
    ///
    /// A thread that waits in read(2) is woken by a request that this process causes itself: RETRIEVE with no data.
    /// A signal would do that too, and would interrupt the disk's own system calls.
    pub(super) fn stop(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(others) = self.others.lock().take() {
            others.thread().unpark();
            joined(others);
        }
        let mut threads = self.shared.threads.lock();
        for _ in 0..threads.len() {
            let retrieve =
                abi::NotifyRetrieve { notify_unique: 0, node: abi::FILE, offset: 0, size: 0, padding: 0 };
            if self.notify(notify::RETRIEVE, &[retrieve.as_bytes()]).is_err() {
                break; // no connection: the threads end by themselves
            }
        }
        threads.drain(..).for_each(joined);
    }

    fn notify(&self, code: i32, parts: &[&[u8]]) -> io::Result<()> {
        let body: usize = parts.iter().map(|p| p.len()).sum();
        let len = u32::try_from(size_of::<OutHeader>() + body).map_err(io::Error::other)?;
        let header = OutHeader { len, error: code, unique: 0 };
        let mut slices = vec![IoSlice::new(header.as_bytes())];
        slices.extend(parts.iter().map(|p| IoSlice::new(p)));
        fd::writev(self.shared.fuse.as_fd(), &slices).map(|_| ())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn joined(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        std::process::abort(); // see the module's invariants
    }
}

impl Shared {
    /// Starts a thread, which locks its memory itself where it is not given `slot`.
    fn spawn(self: &Arc<Self>, requests: &Arc<Requests>, index: usize, slot: Option<Slot>) -> io::Result<()> {
        let (shared, requests) = (Arc::clone(self), Arc::clone(requests));
        let run = move || {
            let _guard = AbortOnPanic;
            process::mark_io_thread();
            let slot = slot.map_or_else(|| requests.slot(index), Ok);
            drop(requests);
            match slot {
                Ok(Slot { head, data }) => Worker { shared: Arc::clone(&shared), head, data }.run(),
                Err(error) => {
                    tracing::warn!(volume = shared.name, %error, "one thread less serves it: no memory to lock");
                }
            }
            shared.running.fetch_sub(1, Ordering::SeqCst);
        };
        let mut threads = self.threads.lock();
        self.running.fetch_add(1, Ordering::SeqCst);
        let thread = std::thread::Builder::new().name("cowslip-loop".into()).stack_size(512 << 10);
        threads.push(thread.spawn(run).inspect_err(|_| {
            self.running.fetch_sub(1, Ordering::SeqCst);
        })?);
        Ok(())
    }

    /// Waits, and starts the threads from `first` on, unless the server is stopped before.
    fn start_others(self: &Arc<Self>, requests: &Arc<Requests>, first: usize) {
        let begun = Instant::now();
        let is_over = || self.stop.load(Ordering::SeqCst) || self.ended.load(Ordering::SeqCst);
        while let Some(left) = OTHERS_AFTER.checked_sub(begun.elapsed()).filter(|_| !is_over()) {
            std::thread::park_timeout(left);
        }
        for index in first..requests.slots() {
            if is_over() {
                return;
            }
            if let Err(error) = self.spawn(requests, index, None) {
                tracing::warn!(volume = self.name, %error, threads = index, "no more threads serve it");
                return;
            }
        }
    }
}

/// One thread and its memory. `head`: a request's first 80 bytes at 0, a reply's header and small body at 128.
struct Worker {
    shared: Arc<Shared>,
    head: LockedBuffer,
    data: LockedBuffer,
}

const REPLY_AT: usize = 128;

/// What a request is answered with.
enum Reply {
    /// The first bytes of the data buffer.
    Data(usize),
    /// As many bytes after the reply's header, already put there.
    Small(usize),
    /// A positive errno.
    Error(i32),
    /// This kind of request is not answered.
    None,
}

struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

impl Worker {
    fn run(mut self) {
        self.answer_left();
        while !self.shared.stop.load(Ordering::SeqCst) {
            self.head[..size_of::<u32>()].fill(0);
            let mut parts =
                [IoSliceMut::new(&mut self.head[..WRITE_HEADER]), IoSliceMut::new(&mut self.data)];
            match fd::readv(self.shared.fuse.as_fd(), &mut parts) {
                Ok(len) => self.serve(len),
                // ENOENT: the request was given up by its caller while it was read.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::ENOENT)) => {}
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ECONNABORTED)) => {
                    self.shared.ended.store(true, Ordering::SeqCst);
                    break;
                }
                Err(e) => {
                    tracing::error!(volume = self.shared.name, error = %e, "reading a request failed");
                    std::thread::sleep(Duration::from_millis(10)); // what lasts shall not fill the log
                }
            }
        }
    }

    /// Answers what a dead server had read into this slot, unless it was answered.
    fn answer_left(&mut self) {
        let Ok((request, _)) = InHeader::read_from_prefix(&self.head) else { return };
        let len = usize::try_from(request.len).unwrap_or(usize::MAX);
        if len <= WRITE_HEADER + self.data.len() && len > 0 && self.is_open(request.unique) {
            tracing::debug!(
                volume = self.shared.name,
                request.unique,
                "answering a request of the last server"
            );
            self.serve(len);
        }
    }

    /// Whether the kernel waits for the answer to a request. It says so to an answer to an interruption of that
    /// request, whether or not there was one; this answer changes nothing.
    fn is_open(&self, unique: u64) -> bool {
        let header = OutHeader { len: 16, error: 0, unique: unique | abi::INTERRUPTION };
        fd::writev(self.shared.fuse.as_fd(), &[IoSlice::new(header.as_bytes())]).is_ok()
    }

    fn serve(&mut self, len: usize) {
        let Ok((request, _)) = InHeader::read_from_prefix(&self.head) else { return };
        if len < size_of::<InHeader>() {
            return;
        }
        let reply = self.answer(&request, len);
        self.send(request.unique, &reply);
    }

    fn send(&mut self, unique: u64, reply: &Reply) {
        let (error, body) = match *reply {
            Reply::None => return,
            Reply::Error(errno) => (-errno, 0),
            Reply::Data(len) | Reply::Small(len) => (0, len),
        };
        let head_len = size_of::<OutHeader>();
        let Ok(len) = u32::try_from(head_len + body) else { return };
        let header = OutHeader { len, error, unique };
        self.head[REPLY_AT..REPLY_AT + head_len].copy_from_slice(header.as_bytes());
        let result = match reply {
            Reply::Data(body) => {
                let head = &self.head[REPLY_AT..REPLY_AT + head_len];
                fd::writev(self.shared.fuse.as_fd(), &[IoSlice::new(head), IoSlice::new(&self.data[..*body])])
            }
            _ => {
                let whole = &self.head[REPLY_AT..REPLY_AT + head_len + body];
                fd::writev(self.shared.fuse.as_fd(), &[IoSlice::new(whole)])
            }
        };
        // ENOENT: the caller is gone. ENODEV: so is the connection; the next read notices.
        if let Err(e) = result
            && !matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
        {
            tracing::error!(volume = self.shared.name, error = %e, "answering a request failed");
        }
    }

    fn answer(&mut self, request: &InHeader, len: usize) -> Reply {
        match request.opcode {
            op::READ => self.read(),
            op::WRITE => self.write(len),
            op::FSYNC if Mutation::FlushNotImplemented.on() => {
                result(self.shared.disk.flush().map_err(|_| libc::ENOSYS))
            }
            op::FSYNC => result(self.shared.disk.flush().map_err(|_| libc::EIO)),
            op::FALLOCATE => self.fallocate(),
            op::GETATTR => self.getattr(request.node),
            op::LOOKUP => self.lookup(request.node),
            op::OPEN => self.small(&abi::OpenOut {
                handle: abi::FILE,
                flags: abi::open::DIRECT_IO | abi::open::NOFLUSH | abi::open::PARALLEL_DIRECT_WRITES,
                padding: 0,
            }),
            op::STATFS => self.statfs(),
            op::INIT => self.init(),
            op::RELEASE | op::FLUSH | op::DESTROY => Reply::Small(0),
            op::FORGET | op::BATCH_FORGET | op::INTERRUPT | op::NOTIFY_REPLY => Reply::None,
            _ => Reply::Error(libc::ENOSYS),
        }
    }

    /// The fields after the request's header.
    fn body<T: FromBytes + KnownLayout + Immutable>(&self) -> Option<T> {
        T::read_from_prefix(&self.head[size_of::<InHeader>()..WRITE_HEADER]).ok().map(|(body, _)| body)
    }

    fn small(&mut self, body: &(impl IntoBytes + Immutable)) -> Reply {
        let at = REPLY_AT + size_of::<OutHeader>();
        let bytes = body.as_bytes();
        self.head[at..at + bytes.len()].copy_from_slice(bytes);
        Reply::Small(bytes.len())
    }

    /// Whether the range lies within the disk.
    fn within(&self, offset: u64, len: u64) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.shared.disk.len())
    }

    fn read(&mut self) -> Reply {
        let Some(io) = self.body::<abi::IoIn>() else { return Reply::Error(libc::EIO) };
        let Some(size) = usize::try_from(io.size).ok().filter(|&size| size <= self.data.len()) else {
            return Reply::Error(libc::EIO);
        };
        if !self.within(io.offset, io.size.into()) {
            return Reply::Error(libc::EIO);
        }
        match self.shared.disk.read(io.offset, &mut self.data[..size]) {
            Ok(()) => Reply::Data(size),
            Err(errno) => Reply::Error(shown(errno)),
        }
    }

    fn write(&mut self, len: usize) -> Reply {
        let Some(io) = self.body::<abi::IoIn>() else { return Reply::Error(libc::EIO) };
        let Some(size) = usize::try_from(io.size).ok().filter(|&size| len == WRITE_HEADER + size) else {
            return Reply::Error(libc::EIO);
        };
        if !self.within(io.offset, io.size.into()) {
            return Reply::Error(libc::EIO);
        }
        match self.shared.disk.write(io.offset, &self.data[..size], false) {
            Ok(()) => self.small(&abi::WriteOut { size: io.size, padding: 0 }),
            Err(errno) => Reply::Error(shown(errno)),
        }
    }

    fn fallocate(&self) -> Reply {
        let Some(range) = self.body::<abi::FallocateIn>() else { return Reply::Error(libc::EIO) };
        if !self.within(range.offset, range.length) {
            return Reply::Error(libc::EIO);
        }
        let disk = &self.shared.disk;
        if range.mode & PUNCH_HOLE != 0 {
            result(disk.discard(range.offset, range.length).map_err(shown))
        } else if range.mode & ZERO_RANGE != 0 {
            result(disk.write_zeroes(range.offset, range.length).map_err(shown))
        } else {
            Reply::Error(libc::EIO)
        }
    }

    fn attr(&self, node: u64) -> abi::Attr {
        let size = self.shared.disk.len();
        if node == abi::ROOT {
            abi::Attr {
                inode: node,
                mode: libc::S_IFDIR | 0o700,
                links: 2,
                block_size: 4096,
                ..Default::default()
            }
        } else {
            abi::Attr {
                inode: abi::FILE,
                size,
                blocks: size / 512,
                mode: libc::S_IFREG | 0o600,
                links: 1,
                block_size: 4096,
                ..Default::default()
            }
        }
    }

    fn getattr(&mut self, node: u64) -> Reply {
        let attr = self.attr(node);
        self.small(&abi::AttrOut { valid_seconds: CACHE_SECONDS, valid_ns: 0, padding: 0, attr })
    }

    /// Every name in the root leads to the file: the one process that mounts it opens one name.
    fn lookup(&mut self, parent: u64) -> Reply {
        if parent != abi::ROOT {
            return Reply::Error(libc::ENOENT);
        }
        let attr = self.attr(abi::FILE);
        self.small(&abi::EntryOut {
            node: abi::FILE,
            generation: 0,
            entry_valid_seconds: CACHE_SECONDS,
            attr_valid_seconds: CACHE_SECONDS,
            entry_valid_ns: 0,
            attr_valid_ns: 0,
            attr,
        })
    }

    /// The loop driver takes the block size for the granularity of discards.
    fn statfs(&mut self) -> Reply {
        let blocks = self.shared.disk.len() / 4096;
        self.small(&abi::StatfsOut {
            blocks,
            blocks_free: 0,
            blocks_available: 0,
            files: 1,
            files_free: 0,
            block_size: 4096,
            name_max: 255,
            fragment_size: 4096,
            padding: 0,
            spare: [0; 6],
        })
    }

    fn init(&mut self) -> Reply {
        let Some(asked) = self.body::<abi::InitIn>() else { return Reply::Error(libc::EIO) };
        let resends = asked.flags & init::INIT_EXT != 0 && asked.flags2 & init::HAS_RESEND != 0;
        if asked.major != abi::MAJOR {
            return Reply::Error(libc::EPROTO);
        }
        self.shared.resends.store(resends && self.shared.may_resend, Ordering::SeqCst);
        let wanted = init::ASYNC_READ | init::BIG_WRITES | init::ASYNC_DIO | init::MAX_PAGES;
        self.small(&abi::InitOut {
            major: abi::MAJOR,
            minor: abi::MINOR,
            max_readahead: 0,
            flags: asked.flags & wanted,
            max_background: MAX_BACKGROUND,
            congestion_threshold: MAX_BACKGROUND,
            max_write: MAX_PAYLOAD,
            time_granularity: 1,
            max_pages: MAX_PAGES,
            map_alignment: 0,
            flags2: 0,
            max_stack_depth: 0,
            unused: [0; 6],
        })
    }
}

fn result(outcome: Result<(), i32>) -> Reply {
    match outcome {
        Ok(()) => Reply::Small(0),
        Err(errno) => Reply::Error(errno),
    }
}

/// The errno that is passed on: those that mean something to a block device, and EIO for all others.
fn shown(errno: i32) -> i32 {
    match errno {
        libc::ENOSPC | libc::ENODATA | libc::EILSEQ | libc::ETIMEDOUT => errno,
        _ => libc::EIO,
    }
}
