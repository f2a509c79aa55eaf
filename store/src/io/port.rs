//! How one thread moves bytes between its buffers and the pool's device, without waiting for each other.
//!
//! The data path is written once, over [`Io`]. A queue's thread drives it from its own ring; [`Blocking`] drives
//! it where a thread may wait: its futures are ready at once.

use super::BlockDev;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// A buffer that the kernel knows by its number in the thread's ring, or a part of it. Nobody can look into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registered {
    /// Number in the ring.
    pub index: u16,
    /// First byte.
    pub from: u64,
    /// Length in bytes.
    pub len: u64,
}

/// Where the bytes of a read go.
pub enum Sink<'a> {
    /// Memory of this process.
    Memory(&'a mut [u8]),
    /// A registered buffer.
    Registered(Registered),
}

/// Where the bytes of a write come from.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// Memory of this process.
    Memory(&'a [u8]),
    /// A registered buffer.
    Registered(Registered),
}

impl Registered {
    /// The part `range`, counted from its first byte.
    #[must_use]
    pub fn part(self, range: &Range<u64>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "a part lies inside");
        Self { index: self.index, from: self.from + range.start, len: range.end - range.start }
    }
}

fn in_memory(range: &Range<u64>) -> Range<usize> {
    crate::types::mem(range.start)..crate::types::mem(range.end)
}

impl Sink<'_> {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Memory(m) => m.len() as u64,
            Self::Registered(r) => r.len,
        }
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The part `range`, counted from its first byte.
    pub fn part(&mut self, range: &Range<u64>) -> Sink<'_> {
        match self {
            Self::Memory(m) => Sink::Memory(&mut m[in_memory(range)]),
            Self::Registered(r) => Sink::Registered(r.part(range)),
        }
    }
}

impl<'a> Sink<'a> {
    /// All of it, for a borrow that ends.
    pub(crate) fn whole(&mut self) -> Sink<'_> {
        self.part(&(0..self.len()))
    }

    /// Takes the first `len` bytes off it.
    pub(crate) fn take(&mut self, len: u64) -> Sink<'a> {
        match self {
            Self::Memory(m) => {
                let (first, rest) = std::mem::take(m).split_at_mut(crate::types::mem(len));
                *m = rest;
                Sink::Memory(first)
            }
            Self::Registered(r) => {
                let first = r.part(&(0..len));
                *r = r.part(&(len..r.len));
                Sink::Registered(first)
            }
        }
    }
}

impl Source<'_> {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Memory(m) => m.len() as u64,
            Self::Registered(r) => r.len,
        }
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The part `range`, counted from its first byte.
    #[must_use]
    pub fn part(&self, range: &Range<u64>) -> Self {
        match self {
            Self::Memory(m) => Self::Memory(&m[in_memory(range)]),
            Self::Registered(r) => Self::Registered(r.part(range)),
        }
    }
}

/// Why a durable write failed. A sync that failed leaves more unknown than its own range.
#[derive(Debug)]
pub enum DurableError {
    /// The data could not be written.
    Data(io::Error),
    /// It was, and then could not be made durable; or nobody can tell which of the two failed.
    Sync(io::Error),
}

/// Moves bytes for one thread. Offsets and lengths are multiples of 4096, whole requests: an implementation goes
/// on after a short transfer. The futures belong to the thread that made them.
///
/// Contract: a future that is dropped before it is ready leaves its `drop` only when the device has finished with
/// the request. What the store knows about who is inside a gate or an I/O epoch (H18, H20, H29) ends with the
/// future, so no write may land after it.
pub trait Io {
    /// Fills `into` from byte `offset` of the pool's device.
    fn read(&self, offset: u64, into: Sink<'_>) -> impl Future<Output = io::Result<()>>;
    /// Writes all of `from` at byte `offset`; durable only after a sync.
    fn write(&self, offset: u64, from: Source<'_>) -> impl Future<Output = io::Result<()>>;
    /// Everything written before is durable when it is ready. After an error nothing is known.
    fn sync(&self) -> impl Future<Output = io::Result<()>>;

    /// Like `write`, durable when it is ready (FUA).
    fn write_durable(&self, offset: u64, from: Source<'_>) -> impl Future<Output = Result<(), DurableError>> {
        async move {
            self.write(offset, from).await.map_err(DurableError::Data)?;
            self.sync().await.map_err(DurableError::Sync)
        }
    }

    /// Fills `into` with zeros.
    fn zero(&self, into: Sink<'_>) -> impl Future<Output = io::Result<()>> {
        let done = match into {
            Sink::Memory(m) => {
                m.fill(0);
                Ok(())
            }
            Sink::Registered(_) => Err(no_registered_buffers()),
        };
        std::future::ready(done)
    }

    /// Copies `bytes` into a registered buffer of the same length.
    fn fill(&self, into: Registered, bytes: &[u8]) -> impl Future<Output = io::Result<()>> {
        let _ = (into, bytes);
        std::future::ready(Err(no_registered_buffers()))
    }
}

/// The answer of an [`Io`] that has no ring to register buffers with.
pub fn no_registered_buffers() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "registered buffers belong to a ring")
}

/// Positioned I/O of a device, on the thread that asks. Every future is ready when it is polled first.
#[derive(Clone, Copy)]
pub struct Blocking<'a>(pub &'a dyn BlockDev);

impl Io for Blocking<'_> {
    async fn read(&self, offset: u64, into: Sink<'_>) -> io::Result<()> {
        match into {
            Sink::Memory(buf) => self.0.read_at(offset, buf),
            Sink::Registered(_) => Err(no_registered_buffers()),
        }
    }

    async fn write(&self, offset: u64, from: Source<'_>) -> io::Result<()> {
        match from {
            Source::Memory(buf) => self.0.write_at(offset, buf),
            Source::Registered(_) => Err(no_registered_buffers()),
        }
    }

    async fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
}

/// The result of a future that has nothing to wait for.
///
/// # Panics
/// When it is not ready.
pub fn ready<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(out) => out,
        Poll::Pending => unreachable!("blocking I/O has nothing to wait for"),
    }
}

#[cfg(feature = "models")]
pub use shuttle::future::block_on;
#[cfg(not(feature = "models"))]
pub use thread::block_on;

#[cfg(not(feature = "models"))]
mod thread {
    use std::future::Future;
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Wake, Waker};
    use std::thread::Thread;

    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
        fn wake_by_ref(self: &Arc<Self>) {
            self.0.unpark();
        }
    }

    thread_local! {
        static WAKER: Waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    }

    /// Drives a future on this thread, which sleeps while the future waits.
    pub fn block_on<F: Future>(future: F) -> F::Output {
        let mut future = pin!(future);
        WAKER.with(|waker| {
            let mut cx = Context::from_waker(waker);
            loop {
                if let Poll::Ready(out) = future.as_mut().poll(&mut cx) {
                    return out;
                }
                // A wake-up that came meanwhile is kept, so that this returns at once.
                std::thread::park();
            }
        })
    }
}

/// Wakers of those who wait for a change of some state; kept beside that state, under its lock.
#[derive(Default)]
pub struct Waiters(Vec<Waker>);

/// Wakers taken out; to be woken when the lock is released.
#[must_use]
pub struct Woken(Vec<Waker>);

impl Waiters {
    /// Remembers who waits; once, however often it looks.
    pub fn add(&mut self, waker: &Waker) {
        if !self.0.iter().any(|w| w.will_wake(waker)) {
            self.0.push(waker.clone());
        }
    }

    /// All who wait; nobody does afterwards.
    pub fn take(&mut self) -> Woken {
        Woken(std::mem::take(&mut self.0))
    }
}

impl Woken {
    /// Wakes them; each looks again.
    pub fn wake(self) {
        self.0.into_iter().for_each(Waker::wake);
    }
}
