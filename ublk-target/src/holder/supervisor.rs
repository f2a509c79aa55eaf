//! The parent of an agent where there is no systemd: keeps the descriptors, starts the agent again.
//!
//! Invariants: one thread; no descriptor of the pool; memory locked, so that it can act while the devices it holds
//! stand still; what is held is given up only when a successor has it.

use super::parked;
use super::supervised::{SupervisedStore, VARIABLE};
use super::wire::{self, Held, Peer, Served};
use crate::error::{Context, Error, Result};
use crate::sys::process::{self, Signals};
use crate::sys::{fd, socket};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

const SIGNALS: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGCHLD];
/// A child that lived longer counts as well: the next pause is the first again.
const LIVED: Duration = Duration::from_secs(1);
/// How far apart two starts are at least, not how long anybody waits: each instant counts for those who wait for I/O, and
/// a child that lived as long is started again at once. Doubles from the first to the last; to the short one if the
/// child got so far as to ask for descriptors, for then it serves while it lives.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const SHORT_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// How long the child may leave an answer unread before it is not served any more.
const ANSWER: Duration = Duration::from_secs(5);

/// Tells the child how the one before it ended.
const LAST_END: &str = "COWSLIP_LAST_END";

/// How the agent before this one ended, if it was started again after it: for this one's log.
pub fn last_end() -> Option<String> {
    std::env::var(LAST_END).ok()
}

/// Runs the agent that `command` describes until it ends by its own will, and returns its exit code.
///
/// - A child that is killed, or fails after it has served, is started again and given the descriptors it had deposited.
/// - SIGTERM, SIGINT and SIGHUP are passed on. The child has a process group of its own, so that a terminal's ^C
///   reaches it once.
/// - If descriptors are held when the agent has ended, a process remains in the background, listening at
///   `<agent_socket>.holder`; the next call with this socket takes them over.
/// - [`Error::Busy`] when another call with this socket is running.
///
/// To be called in a process with one thread, before anything else is opened.
pub fn supervise(mut command: impl FnMut() -> Command, agent_socket: &Path) -> Result<i32> {
    let holder_path = parked::path(agent_socket);
    let lock = lock(&holder_path)?;
    let signals = Signals::block(&SIGNALS).context("block signals of", "the supervisor")?;
    if let Err(e) = process::lock_memory() {
        tracing::warn!(error = %e, "the supervisor's memory is not locked (RLIMIT_MEMLOCK, CAP_IPC_LOCK)");
    }
    let held = parked::fetch(&holder_path)?;
    let mut supervisor =
        Supervisor { signals, held, stopping: false, served: false, hung: false, deadline: None };
    let result = supervisor.run(&mut command);
    if !supervisor.held.0.is_empty() {
        supervisor.park(&holder_path, lock)?;
    }
    result
}

/// Held for the life of the supervisor; closed before a parked holder waits.
fn lock(holder_path: &Path) -> Result<File> {
    let mut path = holder_path.as_os_str().to_owned();
    path.push(".lock");
    let path = Path::new(&path);
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).context("make directory", dir.display())?;
    }
    let file = File::options().create(true).append(true).open(path).context("open", path.display())?;
    match fd::try_lock(file.as_fd()) {
        Ok(true) => Ok(file),
        Ok(false) => Err(Error::Busy {
            volume: "-".into(),
            device: path.display().to_string(),
            holder: "another agent is supervised on this socket".into(),
        }),
        Err(e) => Err(e).context("lock", path.display()),
    }
}

struct Supervisor {
    signals: Signals,
    held: Held,
    /// A signal to end was passed on.
    stopping: bool,
    /// The present child has deposited, removed or asked for descriptors: it got as far as that.
    served: bool,
    /// The present child was killed for it.
    hung: bool,
    /// When the present child is taken for hung.
    deadline: Option<Instant>,
}

impl Supervisor {
    fn run(&mut self, command: &mut dyn FnMut() -> Command) -> Result<i32> {
        let (mut pause, mut served_ever) = (FIRST_PAUSE, false);
        let mut last_end: Option<String> = None;
        loop {
            let start = Instant::now();
            (self.served, self.hung) = (false, false);
            let mut command = command();
            if let Some(how) = &last_end {
                command.env(LAST_END, how);
            }
            let status = self.run_child(command)?;
            served_ever |= self.served;
            let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
            // A child that fails before it has served will fail again: its message is for the one who started it.
            let gave_up = status.code().is_some() && !served_ever;
            if status.success() || self.stopping || gave_up {
                return Ok(code);
            }
            // The next one tells it: where this process wrote it might have to wait for a server (H7).
            last_end = Some(format!("{status}{}", if self.hung { ", for it hung in recovery" } else { "" }));
            let lived = start.elapsed();
            if lived > LIVED {
                pause = FIRST_PAUSE;
            }
            if self.pause(pause.saturating_sub(lived))? {
                return Ok(code);
            }
            pause = (pause * 2).min(if self.served { SHORT_PAUSE } else { LAST_PAUSE });
        }
    }

    /// Whether a signal to end came meanwhile.
    fn pause(&mut self, length: Duration) -> Result<bool> {
        let end = Instant::now() + length;
        while !self.stopping {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            fd::wait_readable(&[self.signals.fd()], Some(left)).context("wait in", "the supervisor")?;
            self.pass_signals(None);
        }
        Ok(self.stopping)
    }

    fn run_child(&mut self, mut command: Command) -> Result<ExitStatus> {
        let (ours, theirs) = socket::pair().context("make", "a socket pair")?;
        command.env(VARIABLE, SupervisedStore::variable(&theirs)).process_group(0);
        process::inherit(&mut command, &theirs);
        let program = command.get_program().display().to_string();
        let mut child = command.spawn().context("start", program)?;
        drop(theirs);
        socket::set_timeout(ours.as_fd(), ANSWER).context("prepare", "a socket pair")?;
        let mut socket = Some(ours);
        self.deadline = None;
        loop {
            let fds: Vec<_> =
                std::iter::once(self.signals.fd()).chain(socket.as_ref().map(AsFd::as_fd)).collect();
            let left = self.deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let ready = fd::wait_readable(&fds, left).context("wait in", "the supervisor")?;
            if ready.get(1) == Some(&true) {
                self.serve(&mut socket);
            }
            self.pass_signals(Some(&child));
            if self.deadline.is_some_and(|at| at <= Instant::now()) {
                self.hung = true;
                let _ = process::kill(child.id(), libc::SIGKILL); // fails only when it is dead
                self.deadline = None;
            }
            if let Some(status) = child.try_wait().context("wait for", "the agent")? {
                // What it had asked for while it died still counts.
                while let Some(open) = &socket
                    && fd::wait_readable(&[open.as_fd()], Some(Duration::ZERO))
                        .is_ok_and(|ready| ready == [true])
                {
                    self.serve(&mut socket);
                }
                return Ok(status);
            }
        }
    }

    fn serve(&mut self, socket: &mut Option<OwnedFd>) {
        let Some(open) = socket else { return };
        match wire::serve(open.as_fd(), Peer::Agent, &mut self.held) {
            Ok(Served::Request) => self.served = true,
            Ok(Served::Deadline(limit)) => self.deadline = limit.map(|limit| Instant::now() + limit),
            Ok(Served::Closed | Served::Taken) => *socket = None,
            // The child died before it had its answer. Its end is seen by itself.
            Err(_) => *socket = None,
        }
    }

    fn pass_signals(&mut self, child: Option<&Child>) {
        while let Some(signal) = self.signals.next() {
            if signal == libc::SIGCHLD {
                continue;
            }
            self.stopping |= signal != libc::SIGHUP;
            if let Some(child) = child {
                let _ = process::kill(child.id(), signal); // fails only when it is dead
            }
        }
    }

    /// Whether a second SIGTERM, or SIGINT, came meanwhile.
    fn pause_parked(&mut self) -> Result<bool> {
        self.stopping = false;
        self.pause(LAST_PAUSE)
    }

    /// Leaves a process behind that keeps what is held. Listening begins before this process ends, so that the next
    /// agent always finds it.
    fn park(mut self, path: &Path, lock: File) -> Result<()> {
        let listener = loop {
            match parked::listen(path) {
                Ok(listener) => break listener,
                Err(e) => eprintln!("cowslip: devices are alive and held by this process: {e}; trying again"),
            }
            if self.pause_parked()? {
                return Ok(());
            }
        };
        // Before the split, which makes a second owner of the same lock: a successor may come as soon as this returns.
        fd::unlock(lock.as_fd()).context("unlock for", path.display())?;
        drop(lock);
        if !process::detach().context("split off", "the holder")? {
            return Ok(());
        }
        let _ = process::lock_memory(); // not inherited
        parked::wait(&listener, path, &mut self.signals, &mut self.held);
        std::process::exit(0);
    }
}
