//! Processes and signals, for the supervisor, which has one thread.

use super::check;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// `PR_SET_IO_FLUSHER` of linux/prctl.h.
const PR_SET_IO_FLUSHER: libc::c_int = 57;
/// What a thread that serves a device uses of its stack, and more.
const USED_STACK: usize = 64 << 10;

/// Signals that are read from a descriptor instead of being delivered. Blocks them for the calling thread.
pub(crate) struct Signals(File);

impl Signals {
    /// Of these signals.
    pub(crate) fn block(signals: &[libc::c_int]) -> io::Result<Self> {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the set, which the other calls then read or change.
        let fd = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for &signal in signals {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            let blocked = libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
            if blocked != 0 {
                return Err(io::Error::from_raw_os_error(blocked));
            }
            libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        check(fd.into())?;
        // SAFETY: signalfd has just made this descriptor.
        Ok(Self(unsafe { File::from_raw_fd(fd) }))
    }

    /// Readable when a signal is there.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.0)
    }

    /// The next signal that is there.
    pub(crate) fn next(&mut self) -> Option<libc::c_int> {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        self.0.read_exact(&mut info).ok()?;
        let (number, _) = <libc::c_int as zerocopy::FromBytes>::read_from_prefix(&info).ok()?; // ssi_signo comes first
        Some(number)
    }
}

/// Lets no signal be delivered to the calling thread: what waits in it is not interrupted.
pub(crate) fn block_signals() {
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset initialises the set, which pthread_sigmask then reads.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), std::ptr::null_mut());
    }
}

/// Lets the child of `command` keep `fd` under its number, and starts it with no signal blocked.
///
/// The number is passed in the environment and not fixed: any fixed one may be in use by the code that starts the child.
pub(crate) fn inherit(command: &mut Command, fd: &OwnedFd) {
    let number: RawFd = fd.as_raw_fd();
    // SAFETY: the closure makes only async-signal-safe calls, on values it owns.
    unsafe {
        command.pre_exec(move || {
            check(libc::fcntl(number, libc::F_SETFD, 0).into())?;
            let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
            libc::sigemptyset(none.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
            Ok(())
        });
    }
}

/// Sends a signal to a process that this one has started and not yet waited for.
pub(crate) fn kill(pid: u32, signal: libc::c_int) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: numbers only.
    check(unsafe { libc::kill(pid, signal) }.into())?;
    Ok(())
}

/// Locks the memory of this process, now and later.
pub(crate) fn lock_memory() -> io::Result<()> {
    // SAFETY: numbers only.
    check(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) }.into())?;
    Ok(())
}

/// Locks the memory of this process as it is now: all of it is read in.
pub(crate) fn lock_memory_now() -> io::Result<()> {
    // SAFETY: numbers only.
    check(unsafe { libc::mlockall(libc::MCL_CURRENT) }.into())?;
    Ok(())
}

/// No core dump of this process, and none of the processes that it starts in a file.
pub(crate) fn forbid_core() -> io::Result<()> {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: setrlimit reads the structure during the call; prctl gets numbers only.
    unsafe {
        check(libc::setrlimit(libc::RLIMIT_CORE, &none).into())?;
        check(libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0).into())?;
    }
    Ok(())
}

/// Splits off a child that runs on in a session of its own, with /dev/null as its input and outputs.
///
/// Ok(true) in the child, Ok(false) in the parent. Refused (EDEADLK) in a process with several threads: only the
/// calling one would go on, with the locks of the others held for ever.
pub(crate) fn detach() -> io::Result<bool> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::from_raw_os_error(libc::EDEADLK));
    }
    let null = File::options().read(true).write(true).open("/dev/null")?;
    // SAFETY: there is one thread, so the child's memory is consistent and it may go on with any code.
    if check(unsafe { libc::fork() }.into())? != 0 {
        return Ok(false);
    }
    // SAFETY: numbers only; the standard descriptors are owned by nobody.
    unsafe {
        libc::setsid();
        for standard in 0..=2 {
            libc::dup2(null.as_raw_fd(), standard);
        }
    }
    std::env::set_current_dir("/")?;
    Ok(true)
}

/// User id that this process acts with.
pub(crate) fn effective_uid() -> u32 {
    // SAFETY: no argument, cannot fail.
    unsafe { libc::geteuid() }
}

/// Tells the kernel that the calling thread is needed for writeback: its memory reclaim never waits for I/O, its
/// dirtying is not throttled behind its own device. Needs CAP_SYS_RESOURCE; without it the thread works too, which is
/// said once. What it needs of its stack is there from then on: a new page would be memory that it waits for.
pub(crate) fn mark_io_thread() {
    std::hint::black_box(&mut [1_u8; USED_STACK]);
    static SAID: std::sync::Once = std::sync::Once::new();
    // SAFETY: numbers only.
    if let Err(error) = check(unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) }.into()) {
        SAID.call_once(|| {
            tracing::warn!(%error, "volumes may stand still when memory is short: PR_SET_IO_FLUSHER needs CAP_SYS_RESOURCE");
        });
    }
}
