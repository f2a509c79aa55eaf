//! What is used of libublk: adding a device, the ring of a queue, its fetch and commit commands. No other code of this
//! crate names it.
//!
//! What is avoided of libublk 0.4.8, each seen to go wrong: ADD with an explicit id (if that is in use, its device is
//! deleted), `run_target` and `configure_queue` (a directory in /run that everybody may write to), its
//! `start_user_recover` (pauses of 100 ms), `override_sqe!` (transmutes any reference), control commands where EBUSY
//! matters (it is taken for success), IoBuf (not locked as ours).

mod io;

use super::abi::{DeviceInfo, flag};
use super::control::{self, Control, explain_add};
use super::request::{Payload, Request, op};
use super::stamp::Stamp;
use super::tasks::{Bell, Schedule, Tasks};
use crate::Disk;
use crate::error::{Error, Result};
use crate::sys::buffer::LockedBuffer;
use io::QueueIo;
use io_uring::{IoUring, opcode, types};
use libublk::ctrl::{UblkCtrl, UblkCtrlBuilder};
use libublk::io::{BufDesc, UblkDev, UblkQueue, ublk_init_task_ring, with_task_io_ring_mut};
use libublk::uring_async::ublk_wake_task;
use libublk::{UblkError, UblkFlags, sys};
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::future::Future;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;
use std::time::Duration;
use store::io::AlignedBuf;

/// How long the kernel may take to add a device. Some kernels hang here.
const ADDING: Duration = Duration::from_secs(10);

type Raw<T> = std::result::Result<T, UblkError>;

/// What is asked of a new device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Geometry {
    pub queues: u16,
    pub depth: u16,
    pub max_io_bytes: u32,
    pub threads_per_queue: u16,
    pub flags: u64,
    pub stamp: Stamp,
}

/// The character device of a ublk device, open. The block device can be taken over by another process when this and
/// all that was made of it is dropped.
pub(super) struct Served {
    dev: UblkDev,
    info: DeviceInfo,
    disk: Arc<dyn Disk>,
    /// Places that a queue's ring has for requests' pages.
    places: u16,
    /// Copies between memory and requests' pages.
    copies: Arc<AtomicU64>,
    /// Registered with the rings.
    _zeros: File,
}

impl Served {
    /// Adds a device under an id of the kernel's choice.
    pub(super) fn add(control: &Arc<Control>, geometry: Geometry, disk: &Arc<dyn Disk>) -> Result<Self> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let late = Arc::clone(control);
        let disk = Arc::clone(disk);
        on_control_thread(move || {
            let outcome = add(geometry, disk);
            if let Err(mpsc::SendError(Ok(served))) = sender.send(outcome) {
                // Nobody waits any more: what came too late is taken back.
                let id = served.id();
                drop(served);
                let _ = late.delete(id, control::REMOVAL);
            }
        })?;
        receiver.recv_timeout(ADDING).unwrap_or_else(|_| {
            Err(Error::Timeout {
                what: format!("adding a ublk device to {}", control::kernel()),
                limit: ADDING,
            })
        })
    }

    /// Opens a device that there is. Its geometry is the kernel's, whatever this version would choose.
    pub(super) fn open(info: &DeviceInfo, threads_per_queue: u16, disk: &Arc<dyn Disk>) -> Result<Self> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let (info, disk) = (*info, Arc::clone(disk));
        on_control_thread(move || drop(sender.send(open(&info, threads_per_queue, disk))))?;
        receiver.recv_timeout(ADDING).unwrap_or_else(|_| {
            Err(Error::Timeout { what: format!("opening /dev/ublkc{}", info.id), limit: ADDING })
        })
    }

    /// With so many places for requests' pages in each queue's ring; requests without one are copied.
    pub(super) fn with_places(self, places: u16) -> Self {
        Self { places, ..self }
    }

    pub(super) fn id(&self) -> u32 {
        self.info.id
    }

    /// Counts the copies of a device whose requests go without. None: all requests of this one are copied.
    pub(super) fn copies(&self) -> Option<Arc<AtomicU64>> {
        self.goes_without_copies().then(|| Arc::clone(&self.copies))
    }

    fn goes_without_copies(&self) -> bool {
        self.info.flags & flag::ZERO_COPY == flag::ZERO_COPY
    }

    pub(super) fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// `(queue, thread of the queue)` of each thread that must run.
    pub(super) fn parts(&self) -> impl Iterator<Item = (u16, u16)> + use<> {
        let threads = self.dev.io_threads_per_queue();
        (0..self.info.queues).flat_map(move |queue| (0..threads).map(move |thread| (queue, thread)))
    }
}

/// On a thread of its own: libublk keeps its control ring in the thread, and takes an interrupted wait for an answer.
fn on_control_thread(work: impl FnOnce() + Send + 'static) -> Result<()> {
    let run = move || {
        crate::sys::process::block_signals();
        work();
    };
    let spawned = std::thread::Builder::new().name("cowslip-ublk".into()).spawn(run);
    spawned.map(drop).map_err(|source| Error::Io { what: "start", place: "a thread for ublk".into(), source })
}

fn add(geometry: Geometry, disk: Arc<dyn Disk>) -> Result<Served> {
    let ctrl = UblkCtrlBuilder::default()
        .name("cowslip")
        .id(-1)
        .nr_queues(geometry.queues)
        .depth(geometry.depth)
        .io_buf_bytes(geometry.max_io_bytes)
        .ctrl_flags(geometry.flags)
        .ctrl_target_flags(geometry.stamp.raw())
        .io_threads_per_queue(geometry.threads_per_queue)
        .dev_flags(UblkFlags::UBLK_DEV_F_ADD_DEV)
        .build()
        .map_err(|e| explain_add(errno(&e)))?;
    // At once: else a panic from here on, or the end of this function, would delete the device.
    ctrl.disown();
    open_char_device(&ctrl, disk)
}

fn open(info: &DeviceInfo, threads_per_queue: u16, disk: Arc<dyn Disk>) -> Result<Served> {
    let id = i32::try_from(info.id).map_err(|_| failed("open", info.id, libc::EINVAL))?;
    let ctrl = UblkCtrlBuilder::default()
        .name("cowslip")
        .id(id)
        .nr_queues(info.queues)
        .depth(info.depth)
        .io_threads_per_queue(threads_per_queue)
        .dev_flags(UblkFlags::UBLK_DEV_F_RECOVER_DEV)
        .build()
        .map_err(|e| failed("open", info.id, errno(&e)))?;
    open_char_device(&ctrl, disk)
}

fn open_char_device(ctrl: &UblkCtrl, disk: Arc<dyn Disk>) -> Result<Served> {
    let theirs = ctrl.dev_info();
    let info = DeviceInfo {
        queues: theirs.nr_hw_queues,
        depth: theirs.queue_depth,
        state: theirs.state,
        max_io_bytes: theirs.max_io_buf_bytes,
        id: theirs.dev_id,
        server_pid: theirs.ublksrv_pid,
        flags: theirs.flags,
        stamp: theirs.ublksrv_flags,
        ..DeviceInfo::default()
    };
    let zeros =
        File::open("/dev/zero").map_err(|e| failed("open", info.id, errno(&UblkError::IOError(e))))?;
    let register_pool = |dev: &mut UblkDev| {
        // Each queue's ring registers these: it then holds the pool's one open description itself, and its lock with it.
        if let Some(pool) = disk.volume().and_then(store::Volume::descriptor) {
            dev.tgt.fds[io::POOL as usize] = pool.as_raw_fd();
            dev.tgt.fds[io::ZEROS as usize] = zeros.as_raw_fd();
            dev.tgt.nr_fds = 3;
        }
        Ok(())
    };
    let dev = UblkDev::new("cowslip".into(), register_pool, ctrl);
    let dev = dev.map_err(|e| failed("open", info.id, errno(&e)))?;
    Ok(Served { dev, info, disk, places: u16::MAX, copies: Arc::default(), _zeros: zeros })
}

fn failed(what: &'static str, id: u32, errno: i32) -> Error {
    Error::Io { what, place: format!("/dev/ublkc{id}"), source: std::io::Error::from_raw_os_error(errno) }
}

/// The positive errno in libublk's errors.
fn errno(error: &UblkError) -> i32 {
    match error {
        UblkError::UringIOError(code) | UblkError::OtherError(code) => code.abs(),
        UblkError::IOError(e) => e.raw_os_error().unwrap_or(libc::EIO),
        UblkError::UringTimeout => libc::ETIMEDOUT,
        UblkError::InvalidVal => libc::EINVAL,
        UblkError::QueueIsDown => libc::ENODEV,
        UblkError::UringIoQueued | UblkError::JsonError(_) => libc::EIO,
    }
}

/// What the tasks of one thread share.
struct Shared<'a> {
    queue: &'a UblkQueue<'a>,
    disk: &'a dyn Disk,
    /// The pool's I/O on this ring. None: the disk is asked by calls that block.
    io: Option<QueueIo<'a>>,
    /// Tags whose tasks have not ended.
    tags: Cell<u32>,
    /// Requests that a task is at.
    busy: Cell<u32>,
    /// Nothing new is begun.
    stopping: Cell<bool>,
}

/// Serves one thread's part of a queue until the device is stopped, or until `stop` is hung up: then what is under
/// way is finished and answered, and everything else is left to the device's next server. `ready` is called when
/// nothing can fail any more but the device itself.
pub(super) fn serve(
    served: &Served,
    (queue, thread): (u16, u16),
    stop: &OwnedFd,
    ready: impl FnOnce(),
) -> Result<()> {
    let device_error = |e: UblkError| failed("serve", served.id(), errno(&e));
    init_ring(served.info.depth).map_err(device_error)?;
    let queue = UblkQueue::new_for_thread(queue, &served.dev, thread).map_err(device_error)?;
    let part = served.info.max_io_bytes as usize;
    let copies = !served.goes_without_copies();
    if !copies {
        if served.places < served.info.depth {
            register_places(served.places).map_err(device_error)?;
        }
        stock_places(served.places.min(served.info.depth));
    }
    // A device without copies needs none.
    let lock = || LockedBuffer::on_demand(part * queue.nr_tags() as usize, part, RESIDENT);
    let mut memory = copies.then(lock).transpose().map_err(|source| Error::Io {
        what: "lock memory for",
        place: format!("/dev/ublkc{}", served.id()),
        source,
    })?;
    let (tags, busy, stopping) = (Cell::new(queue.nr_tags()), Cell::new(0), Cell::new(false));
    let io = (served.dev.tgt.nr_fds > 1).then(|| QueueIo::new(&queue, &served.copies));
    let shared = Shared { queue: &queue, disk: &*served.disk, io, tags, busy, stopping };
    let (schedule, bell) = Schedule::new(queue.nr_tags() as usize + 2).map_err(|source| Error::Io {
        what: "make",
        place: "a pipe".into(),
        source,
    })?;
    let mut futures: Vec<Pin<Box<dyn Future<Output = ()> + '_>>> = Vec::new();
    let mut memory = memory.as_deref_mut().unwrap_or_default().chunks_exact_mut(part);
    for tag in queue.tags() {
        futures.push(Box::pin(serve_tag(&shared, tag, memory.next())));
    }
    futures.push(Box::pin(wait_for_stop(&shared, stop)));
    futures.push(Box::pin(watch_bell(&shared, &bell)));
    let mut tasks = Tasks::new(&schedule, futures);
    ready();
    run(&shared, &schedule, &mut tasks).map_err(device_error)
}

/// Of each request's buffer, what is resident from the start: the smallest requests, which are most, never wait for memory. More
/// is faulted in once; making it resident and taking it apart is time in which many devices together stand still after a kill.
const RESIDENT: usize = 4 << 10;

/// The thread's ring: completions are handled when the thread asks for them, and not by interrupting it.
fn init_ring(depth: u16) -> Raw<()> {
    let entries = u32::from(depth) * 2;
    // What may be under way at once: of each tag its command, or its request to the pool in pieces.
    let answers = u32::from(depth) * u32::try_from(store::io::TOGETHER).unwrap_or(u32::MAX) + entries;
    ublk_init_task_ring(|cell| {
        if cell.get().is_none() {
            let build = |single: bool| {
                let mut builder = IoUring::builder();
                builder.setup_cqsize(answers).setup_coop_taskrun();
                if single {
                    builder.setup_single_issuer();
                }
                builder.build(entries)
            };
            let mut ring = build(true).or_else(|_| build(false))?;
            store::io::stock::requests(&mut ring)?;
            let _ = cell.set(RefCell::new(ring));
        }
        Ok(())
    })
}

/// Gives the thread's ring another number of places for requests' pages, at least one.
fn register_places(places: u16) -> Raw<()> {
    with_task_io_ring_mut(|ring| {
        let submitter = ring.submitter();
        submitter.unregister_buffers()?;
        submitter.register_buffers_sparse(places.max(1).into())
    })
    .map_err(UblkError::IOError)
}

/// Lets the kernel take what so many requests' pages in the thread's ring need. It serves without, too.
fn stock_places(places: u16) {
    let taken = with_task_io_ring_mut(|ring| store::io::stock::buffers(&ring.submitter(), places));
    if let Err(error) = taken {
        tracing::debug!(%error, "memory for requests' pages is taken when they come");
    }
}

fn run(shared: &Shared<'_>, schedule: &Schedule, tasks: &mut Tasks<'_>) -> Raw<()> {
    loop {
        tasks.run();
        if shared.tags.get() == 0 {
            return Ok(());
        }
        if shared.stopping.get() && shared.busy.get() == 0 {
            // The answers that are queued.
            with_task_io_ring_mut(|ring| ring.submit_and_wait(0))?;
            return Ok(());
        }
        let wanted = usize::from(schedule.may_sleep());
        let entered = shared.queue.flush_and_wake_io_tasks(
            |data, cqe, _| {
                schedule.awake();
                ublk_wake_task(data, cqe);
            },
            wanted,
        );
        schedule.awake();
        match entered {
            Ok(_) | Err(UblkError::QueueIsDown) => {}
            Err(UblkError::IOError(e))
                if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {}
            Err(e) => return Err(e),
        }
    }
}

async fn wait_for_stop(shared: &Shared<'_>, stop: &OwnedFd) {
    readable(shared, stop).await;
    shared.stopping.set(true);
}

async fn watch_bell(shared: &Shared<'_>, bell: &Bell) {
    loop {
        readable(shared, bell.descriptor()).await;
        bell.quiet();
    }
}

/// Waits until a descriptor can be read or is hung up.
async fn readable(shared: &Shared<'_>, descriptor: &impl AsRawFd) {
    let mask = libc::POLLIN.unsigned_abs();
    let poll = opcode::PollAdd::new(types::Fd(descriptor.as_raw_fd()), mask.into()).build();
    shared.queue.ublk_submit_sqe(poll).await;
}

/// Fetches, serves and answers the requests of one tag, one after the other, until the device or the server stops.
/// `memory`: where the kernel copies their data. None: it registers their pages with the ring, under the tag's number.
async fn serve_tag(shared: &Shared<'_>, tag: u16, mut memory: Option<&mut [u8]>) {
    let queue = shared.queue;
    let address = memory.as_mut().map(|memory| memory.as_mut_ptr());
    let place = || match address {
        Some(address) => BufDesc::RawAddress(address),
        // A request whose pages cannot be registered comes all the same, and says so.
        None => BufDesc::AutoReg(sys::ublk_auto_buf_reg {
            index: tag,
            flags: u8::try_from(sys::UBLK_AUTO_BUF_REG_FALLBACK).unwrap_or(0),
            ..Default::default()
        }),
    };
    let mut fetched = queue.submit_io_prep_cmd(tag, place(), -1, None).await;
    // What is fetched while the server stops is not begun: the kernel asks the next server again.
    while is_request(&fetched, tag) && !shared.stopping.get() {
        shared.busy.set(shared.busy.get() + 1);
        let iod = queue.get_iod(tag);
        let (request, registered) = (describe(iod), iod.op_flags & sys::UBLK_IO_F_NEED_REG_BUF == 0);
        let result = match &mut memory {
            Some(memory) => answer(shared, &request, Payload::Memory(memory)).await,
            None if registered && request.is_whole() => answer(shared, &request, Payload::Buffer(tag)).await,
            None => answer_by_copy(shared, tag, &request).await,
        };
        fetched = counted(shared, queue.submit_io_commit_cmd(tag, place(), result)).await;
    }
    shared.tags.set(shared.tags.get() - 1);
}

async fn answer(shared: &Shared<'_>, request: &Request, payload: Payload<'_>) -> i32 {
    match (&shared.io, shared.disk.volume(), payload) {
        (Some(io), Some(volume), payload) => {
            request.answer_on(volume.size_bytes(), &volume.on(io), payload).await
        }
        (_, _, Payload::Memory(memory)) => request.answer(shared.disk, memory),
        // Only disks on the ring are served without copies.
        (_, _, Payload::Buffer(_)) => -libc::EIO,
    }
}

/// For requests that the store, or nobody, can take from their pages: parts of blocks, and those whose registration
/// failed.
async fn answer_by_copy(shared: &Shared<'_>, tag: u16, request: &Request) -> i32 {
    let Some(io) = &shared.io else { return -libc::EIO };
    let mut copy = AlignedBuf::reused(usize::try_from(request.payload()).unwrap_or(0));
    let copied = if request.op == op::WRITE { io.copy_from(tag, &mut copy) } else { Ok(()) };
    let mut result = match copied {
        Ok(()) => answer(shared, request, Payload::Memory(&mut copy)).await,
        Err(_) => -libc::EIO,
    };
    if request.op == op::READ && result >= 0 && io.copy_to(tag, &copy).is_err() {
        result = -libc::EIO;
    }
    result
}

fn is_request(fetched: &Raw<i32>, tag: u16) -> bool {
    match fetched {
        Ok(0) => true,
        Err(UblkError::QueueIsDown) => false,
        Ok(code) => {
            tracing::error!(tag, code, "a request could not be fetched");
            false
        }
        Err(error) => {
            tracing::error!(tag, %error, "a request could not be fetched");
            false
        }
    }
}

/// The commit is queued when it is polled first; from then on the request is answered.
async fn counted<T>(shared: &Shared<'_>, commit: impl Future<Output = T>) -> T {
    let mut commit = std::pin::pin!(commit);
    let mut queued = false;
    std::future::poll_fn(|cx| {
        let outcome = commit.as_mut().poll(cx);
        if !queued {
            queued = true;
            shared.busy.set(shared.busy.get() - 1);
        }
        outcome
    })
    .await
}

fn describe(iod: &sys::ublksrv_io_desc) -> Request {
    Request::new(iod.op_flags, iod.nr_sectors, iod.start_sector)
}
