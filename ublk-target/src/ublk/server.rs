//! The threads that serve a device.

use super::queue::{self, Served};
use crate::error::{Error, Result};
use crate::sys::process;
use std::io::PipeWriter;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long the threads may take to get ready: they map and lock memory.
const STARTING: Duration = Duration::from_secs(30);
/// Bytes of a thread's stack.
const STACK: usize = 512 << 10;

/// Threads that serve a device, one for each of its queues or more.
///
/// Invariant: a thread that panics, or that loses its ring, takes the process with it. A device whose queue nobody serves any more would stand
/// still without a word; a process that died is started again and recovers it.
pub(super) struct Server {
    shared: Arc<Shared>,
    threads: parking_lot::Mutex<Vec<JoinHandle<()>>>,
    /// Hung up to stop them.
    stop: parking_lot::Mutex<Option<PipeWriter>>,
    count: usize,
    copies: Option<Arc<AtomicU64>>,
}

struct Shared {
    running: AtomicUsize,
}

struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

impl Server {
    /// Starts them. When this returns they fetch; the device must then be started, or its recovery ended.
    pub(super) fn start(served: Served) -> Result<Self> {
        let id = served.id();
        let thread_error =
            |source| Error::Io { what: "start a thread for", place: format!("/dev/ublkc{id}"), source };
        let (reader, writer) = std::io::pipe().map_err(thread_error)?;
        let (served, reader) = (Arc::new(served), Arc::new(OwnedFd::from(reader)));
        let shared = Arc::new(Shared { running: AtomicUsize::new(0) });
        let (sender, receiver) = mpsc::channel();
        let count = served.parts().count();
        let server = Self {
            shared: Arc::clone(&shared),
            threads: parking_lot::Mutex::default(),
            stop: parking_lot::Mutex::new(Some(writer)),
            count,
            copies: served.copies(),
        };
        for part in served.parts() {
            let (served, reader) = (Arc::clone(&served), Arc::clone(&reader));
            let (shared, sender) = (Arc::clone(&shared), sender.clone());
            shared.running.fetch_add(1, Ordering::SeqCst);
            let run = move || {
                let _guard = AbortOnPanic;
                process::mark_io_thread();
                process::block_signals();
                let mut serving = false;
                let ready = || {
                    serving = true;
                    drop(sender.send(Ok(())));
                };
                match queue::serve(&served, part, &reader, ready) {
                    Ok(()) => {}
                    Err(error) if serving => {
                        tracing::error!(device = id, queue = part.0, %error, "a queue lost its ring");
                        std::process::abort(); // see the invariant
                    }
                    Err(error) => drop(sender.send(Err(error))),
                }
                drop(served);
                shared.running.fetch_sub(1, Ordering::SeqCst);
            };
            let builder = std::thread::Builder::new().name(format!("cowslip-ublk{id}")).stack_size(STACK);
            let handle = builder.spawn(run).map_err(thread_error)?;
            server.threads.lock().push(handle);
        }
        drop((sender, served));
        for _ in 0..count {
            match receiver.recv_timeout(STARTING) {
                Ok(outcome) => outcome?,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    let what = format!("starting the threads of /dev/ublkc{id}");
                    return Err(Error::Timeout { what, limit: STARTING });
                }
            }
        }
        Ok(server)
    }

    /// See [`Attached::copies`](crate::Attached::copies).
    pub(super) fn copies(&self) -> Option<u64> {
        self.copies.as_ref().map(|copies| copies.load(Ordering::Relaxed))
    }

    /// Whether all of them run. They end by themselves when the device is stopped.
    pub(super) fn is_alive(&self) -> bool {
        self.shared.running.load(Ordering::SeqCst) == self.count
    }

    /// Waits until all have ended, because the device was stopped; false when they have not within `limit`.
    pub(super) fn wait_ended(&self, limit: Duration) -> bool {
        let start = Instant::now();
        while self.shared.running.load(Ordering::SeqCst) > 0 {
            if start.elapsed() > limit {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Ends the threads after the requests they are at; what comes later waits in the kernel. May be called twice.
    pub(super) fn stop(&self) {
        drop(self.stop.lock().take());
        for handle in self.threads.lock().drain(..) {
            if handle.join().is_err() {
                std::process::abort(); // see the invariant
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}
