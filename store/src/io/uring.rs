//! One io_uring of one thread: requests of many tasks are submitted together and waited for together.
//!
//! Invariants:
//! - The pool's file is registered, so requests hold the one locked description itself: the lock of a killed owner
//!   is free only when the last of them has landed (H1).
//! - A request's memory stays borrowed until the kernel has answered: a future that is dropped first waits in its
//!   `drop`.
//! - At most [`DEPTH`] requests are under way; further ones wait for a place.
#![allow(unsafe_code)] // the kernel reads and writes memory by its address; eventfd

use super::port::Waiters;
use super::ring::Ring;
use io_uring::{IoUring, opcode, squeue};
use parking_lot::Mutex;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Wake, Waker};

/// Requests of one ring that may be under way.
pub const DEPTH: u32 = 256;

/// Requests that are submitted without waiting for more: the disk works while the next ones are looked up.
const BATCH: usize = 4;

/// Completion of the watch on the wake-up descriptor; requests are numbered by their slots.
const WAKE_UP: u64 = u64::MAX;

enum Slot {
    Free,
    UnderWay(Waker),
    Done(i32),
}

struct State {
    ring: IoUring,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Who waits for a free slot.
    waiting: Waiters,
}

/// A thread's ring over the pool's file.
pub struct Uring {
    state: RefCell<State>,
    shared: Arc<Shared>,
    /// The wake-up descriptor is being watched.
    watched: Cell<bool>,
    one_thread: PhantomData<*const ()>,
}

/// What wakers of other threads reach.
struct Shared {
    /// Numbers of tasks that are to be polled.
    ready: Mutex<Vec<usize>>,
    /// The ring's thread sleeps in the kernel, or is about to.
    sleeping: AtomicBool,
    event: OwnedFd,
}

struct TaskWaker {
    task: usize,
    shared: Arc<Shared>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        self.shared.ready.lock().push(self.task);
        if self.shared.sleeping.swap(false, Ordering::SeqCst) {
            let one = 1u64;
            // SAFETY: writes the 8 bytes of a live number to a descriptor that `shared` keeps open.
            unsafe { libc::write(self.shared.event.as_raw_fd(), (&raw const one).cast(), 8) };
        }
    }
}

/// Whether this process may use io_uring as the store does; else why not.
///
/// # Errors
/// The kernel's answer: containers often forbid it, and old kernels lack it.
pub fn probe() -> io::Result<()> {
    let ring = build(4)?;
    let mut known = io_uring::Probe::new();
    ring.submitter().register_probe(&mut known)?;
    let needed = [opcode::Read::CODE, opcode::Write::CODE, opcode::Fsync::CODE, opcode::PollAdd::CODE];
    if needed.iter().all(|code| known.is_supported(*code)) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel's io_uring lacks reads and writes"))
}

/// What moves the bytes of queues' threads in this process: `io_uring`, or `positioned I/O` and why.
pub fn engine() -> &'static str {
    static ENGINE: LazyLock<String> = LazyLock::new(|| match probe() {
        Ok(()) => "io_uring".to_owned(),
        Err(e) => format!("positioned I/O: no io_uring: {e}"),
    });
    &ENGINE
}

/// Whether the kernel takes what a ring holds when it is asked again.
pub(super) fn passes(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

/// A ring with what this kernel offers to a ring of one thread.
fn build(entries: u32) -> io::Result<IoUring> {
    let deferred = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(entries);
    match deferred {
        // Before 6.1.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => IoUring::new(entries),
        other => other,
    }
}

impl Uring {
    /// A ring for the calling thread over the pool's own description.
    ///
    /// # Safety
    /// No future made with this ring is forgotten (`mem::forget` and the like): each is driven to its end or
    /// dropped, because the kernel uses the memory that it borrows.
    ///
    /// # Errors
    /// As [`probe`].
    pub unsafe fn new(pool: BorrowedFd<'_>) -> io::Result<Self> {
        let mut ring = build(DEPTH)?;
        super::stock::requests(&mut ring)?;
        ring.submitter().register_files(&[pool.as_raw_fd()])?;
        // SAFETY: makes a new descriptor; the result is checked.
        let event = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if event < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and belongs to nobody else.
        let event = unsafe { OwnedFd::from_raw_fd(event) };
        let shared = Shared { ready: Mutex::default(), sleeping: AtomicBool::new(false), event };
        let slots = (0..DEPTH).map(|_| Slot::Free).collect();
        let free = (0..crate::types::mem(u64::from(DEPTH))).rev().collect();
        Ok(Self {
            state: RefCell::new(State { ring, slots, free, waiting: Waiters::default() }),
            shared: Arc::new(shared),
            watched: Cell::new(false),
            one_thread: PhantomData,
        })
    }

    /// Drives all tasks to their ends on this thread.
    ///
    /// # Errors
    /// When the kernel refuses the ring itself; requests that fail tell their own tasks.
    pub fn run<'t>(&self, tasks: Vec<Pin<Box<dyn Future<Output = ()> + 't>>>) -> io::Result<()> {
        let waker = |task| Waker::from(Arc::new(TaskWaker { task, shared: Arc::clone(&self.shared) }));
        let mut tasks: Vec<_> = tasks.into_iter().enumerate().map(|(i, t)| Some((t, waker(i)))).collect();
        let mut running = tasks.len();
        let mut ready: Vec<usize> = (0..running).collect();
        loop {
            for i in ready.drain(..) {
                // Woken more than once, or after its end.
                let Some((task, waker)) = &mut tasks[i] else { continue };
                if task.as_mut().poll(&mut Context::from_waker(waker)).is_ready() {
                    tasks[i] = None;
                    running -= 1;
                }
            }
            if running == 0 {
                return Ok(());
            }
            self.turn()?;
            std::mem::swap(&mut ready, &mut *self.shared.ready.lock());
        }
    }

    /// Submits what is queued, and waits until some task can go on.
    fn turn(&self) -> io::Result<()> {
        self.watch()?;
        self.shared.sleeping.store(true, Ordering::SeqCst);
        // A task that was woken before this look is seen here; one woken after it wakes the ring.
        let idle = self.shared.ready.lock().is_empty();
        self.enter(usize::from(idle))
    }

    /// Lets a waker of another thread end the wait.
    fn watch(&self) -> io::Result<()> {
        if self.watched.replace(true) {
            return Ok(());
        }
        let event = io_uring::types::Fd(self.shared.event.as_raw_fd());
        let poll = opcode::PollAdd::new(event, 1 /* POLLIN */).build().user_data(WAKE_UP);
        // SAFETY: the request uses no memory, and its descriptor lives as long as the ring.
        unsafe { self.push(&poll) }
    }

    /// One system call: submits, waits for `want` completions, and takes in all that are there.
    fn enter(&self, want: usize) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let entered = state.ring.submit_and_wait(want);
        // Awake: what completions wake below needs no wake-up of the ring.
        self.shared.sleeping.store(false, Ordering::SeqCst);
        match entered {
            Ok(_) => {}
            Err(e) if passes(&e) => {}
            Err(e) => return Err(e),
        }
        for done in state.ring.completion() {
            if done.user_data() == WAKE_UP {
                let mut count = [0u8; 8];
                // SAFETY: reads at most 8 bytes into a live array; the descriptor does not block.
                unsafe { libc::read(self.shared.event.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
                self.watched.set(false);
                continue;
            }
            let slot = &mut state.slots[crate::types::mem(done.user_data())];
            if let Slot::UnderWay(waker) = std::mem::replace(slot, Slot::Done(done.result())) {
                waker.wake();
            }
        }
        Ok(())
    }

    /// Queues a request.
    ///
    /// # Safety
    /// What the request refers to stays valid until its completion.
    unsafe fn push(&self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            let mut state = self.state.borrow_mut();
            let mut queue = state.ring.submission();
            // SAFETY: as the caller promises.
            let pushed = unsafe { queue.push(entry) }.is_ok();
            let full = queue.len() >= BATCH;
            drop(queue);
            if pushed {
                if full {
                    // An entry that is in the queue is the kernel's: what fails here is tried again by `enter`.
                    let _ = state.ring.submit();
                }
                return Ok(());
            }
            state.ring.submit()?;
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // The kernel takes a ring apart later; the pool's lock is to go with its last owner, not with that.
        let _ = self.state.get_mut().ring.submitter().unregister_files();
    }
}

// SAFETY: a request that is dropped waits for its answer in its `drop`.
unsafe impl Ring for Uring {
    const POOL: u32 = 0;

    unsafe fn request(&self, entry: squeue::Entry) -> impl Future<Output = io::Result<usize>> {
        Request { ring: self, entry: Some(entry), slot: None }
    }
}

/// A request on its way.
struct Request<'a> {
    ring: &'a Uring,
    entry: Option<squeue::Entry>,
    slot: Option<usize>,
}

impl Request<'_> {
    /// Takes the answer, if it is there, and gives the slot back.
    fn answer(&mut self, slot: usize) -> Option<i32> {
        let mut state = self.ring.state.borrow_mut();
        let Slot::Done(result) = state.slots[slot] else { return None };
        state.slots[slot] = Slot::Free;
        state.free.push(slot);
        let woken = state.waiting.take();
        drop(state);
        woken.wake();
        self.slot = None;
        Some(result)
    }
}

impl Future for Request<'_> {
    type Output = io::Result<usize>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(entry) = self.entry.take() {
            let mut state = self.ring.state.borrow_mut();
            let Some(slot) = state.free.pop() else {
                state.waiting.add(cx.waker());
                drop(state);
                self.entry = Some(entry);
                return Poll::Pending;
            };
            state.slots[slot] = Slot::UnderWay(cx.waker().clone());
            drop(state);
            self.slot = Some(slot);
            // SAFETY: the maker of the request keeps its memory as long as this future lives.
            if let Err(e) = unsafe { self.ring.push(&entry.user_data(slot as u64)) } {
                // It never got to the kernel.
                self.ring.state.borrow_mut().slots[slot] = Slot::Done(0);
                self.answer(slot);
                return Poll::Ready(Err(e));
            }
            return Poll::Pending;
        }
        let slot = self.slot.expect("polled after its end");
        if let Some(result) = self.answer(slot) {
            let done = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
            return Poll::Ready(done);
        }
        if let Slot::UnderWay(waker) = &mut self.ring.state.borrow_mut().slots[slot] {
            waker.clone_from(cx.waker());
        }
        Poll::Pending
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        let Some(slot) = self.slot else { return };
        while self.answer(slot).is_none() {
            if self.ring.enter(1).is_err() {
                // The memory is about to be given away, and nobody can tell when the kernel is done with it.
                std::process::abort();
            }
        }
    }
}
