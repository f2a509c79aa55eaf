//! The system calls that the tests need and std has not.
#![allow(unsafe_code)] // system calls
#![allow(dead_code)] // the benchmark takes a part of it

use std::sync::atomic::{AtomicBool, Ordering};

/// fallocate(2); the errno when it fails.
pub fn fallocate(fd: i32, mode: i32, offset: i64, len: i64) -> Result<(), i32> {
    // SAFETY: numbers only.
    if unsafe { libc::fallocate(fd, mode, offset, len) } == 0 {
        return Ok(());
    }
    Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

/// Waits for the exclusive lock of an open file.
pub fn lock(fd: i32) -> std::io::Result<()> {
    // SAFETY: numbers only.
    if unsafe { libc::flock(fd, libc::LOCK_EX) } == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Sends a signal to a process that the caller started.
pub fn kill(pid: u32, signal: i32) {
    // SAFETY: numbers only.
    unsafe { libc::kill(i32::try_from(pid).unwrap(), signal) };
}

/// Processes that are started from now on may leave core dumps of any size, unless they forbid it themselves.
pub fn allow_core() {
    let any = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the structure is read during the call.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_CORE, &any) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

static ASKED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_signal(_: libc::c_int) {
    ASKED.store(true, Ordering::SeqCst);
}

/// From now on SIGTERM and SIGINT only set what [`asked_to_end`] answers.
pub fn catch_signals() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: the handler stores to an atomic, nothing else.
        unsafe { libc::signal(signal, on_signal as *const () as libc::sighandler_t) };
    }
}

/// Whether such a signal came.
pub fn asked_to_end() -> bool {
    ASKED.load(Ordering::SeqCst)
}

/// Whether this is root.
pub fn is_root() -> bool {
    // SAFETY: no argument, cannot fail.
    unsafe { libc::geteuid() == 0 }
}
