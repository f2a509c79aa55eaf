//! Ctrl-C and SIGTERM in long commands. Commands that need to clean up install the handler and ask `check`
//! between steps; in all others the signal ends the process as usual, and the agent finishes or undoes what
//! it was asked for.

use super::failure::{Failure, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static NOTIFY: Notify = Notify::const_new();

/// Between two looks for a signal.
const LOOK: Duration = Duration::from_millis(50);

/// Catches the signals from now on. A second one ends the process at once.
pub fn install() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(|e| Failure::io("start the signal handler", &e))?;
    let (mut interrupt, mut terminate) = {
        let _context = runtime.enter();
        let catch = |kind| signal(kind).map_err(|e| Failure::io("catch signals", &e));
        (catch(SignalKind::interrupt())?, catch(SignalKind::terminate())?)
    };
    let watch = move || {
        runtime.block_on(async {
            loop {
                tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
                if INTERRUPTED.swap(true, Ordering::SeqCst) {
                    std::process::exit(i32::from(Failure::interrupted().exit_code()));
                }
                NOTIFY.notify_waiters();
            }
        });
    };
    let thread = std::thread::Builder::new().name("signals".into()).spawn(watch);
    thread.map(drop).map_err(|e| Failure::io("start the signal handler", &e))
}

/// Fails once a signal came.
pub fn check() -> Result<()> {
    if INTERRUPTED.load(Ordering::SeqCst) { Err(Failure::interrupted()) } else { Ok(()) }
}

/// Does `work`, which only reads, and gives it up at a signal: there is nothing to clean up.
pub fn abandon<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    install()?;
    let (done, result) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new().name("work".into()).spawn(move || done.send(work()));
    let thread = thread.map_err(|e| Failure::io("start a thread", &e))?;
    loop {
        let waited = result.recv_timeout(LOOK);
        check()?;
        match waited {
            Ok(result) => return Ok(result),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => match thread.join() {
                Err(panic) => std::panic::resume_unwind(panic),
                Ok(_) => unreachable!("it sends before it ends"),
            },
        }
    }
}

/// The flag that a signal sets, for work that looks at one itself.
pub fn flag() -> &'static AtomicBool {
    &INTERRUPTED
}

/// Returns when a signal came.
pub async fn wait() {
    loop {
        let notified = NOTIFY.notified();
        let mut notified = std::pin::pin!(notified);
        // Registered before the flag is read: a signal in between is not missed.
        notified.as_mut().enable();
        if INTERRUPTED.load(Ordering::SeqCst) {
            return;
        }
        notified.await;
    }
}
