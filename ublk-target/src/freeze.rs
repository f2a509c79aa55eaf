//! A mounted file system held still while a snapshot is cut, and thawed whatever happens.
//!
//! FIFREEZE outlives the process that asked for it, and a frozen file system stops all who write to it. So it is done
//! by a process of its own, the *guard*: this executable again, with [`GUARD_ARGUMENT`]. The guard thaws on request,
//! when the pipe to the agent closes (the agent died), or at the deadline, whichever comes first. Before it freezes it
//! writes an *intent* file and locks it; if the guard itself is killed, [`Frozen::thaw`] or, after a death of both,
//! [`thaw_leftovers`] thaws what the intent names.

mod guard;

pub use guard::guard_main;

use crate::error::{Context, Result};
use crate::sys::{fd, loops, stat};
use crate::{Error, mounts};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

/// First argument of the guard: the program's `main` calls [`guard_main`] with those after it, before anything else.
pub const GUARD_ARGUMENT: &str = "__freeze-guard";

/// A frozen file system. Dropping it thaws too.
pub struct Frozen {
    /// None once it is left to itself.
    guard: Option<Child>,
    /// Closing it asks for the thaw.
    request: Option<ChildStdin>,
    report: BufReader<ChildStdout>,
    target: Target,
    intent: PathBuf,
    done: bool,
}

/// Freezes the file system on a block device `(major, minor)` whose usual path is `node`, for `deadline` at most.
///
/// Ok(None): it is not mounted, in no mount namespace. [`Error::Unsupported`]: its file system knows no freezing;
/// [`Error::Busy`]: somebody else froze it; [`Error::Timeout`]: it did not come to rest in time, and is thawed as soon
/// as it does. After any of these a snapshot is as after a power cut.
pub fn freeze(number: (u32, u32), node: &Path, deadline: Duration, run_dir: &Path) -> Result<Option<Frozen>> {
    let mut mounts = mounts::of_device(number, node);
    mounts.sort_by_key(|mount| mount.process.is_some());
    // Any mount will do, they share one file system; but a path may be covered by another mount.
    let mut refused = None;
    for mount in &mounts {
        let target = Target { path: mount.reachable(), mount_id: mount.id };
        match target.open() {
            Ok(_) => return start(target, number, node, deadline, run_dir).map(Some),
            Err(e) => refused = Some(Err(e).context("reach the mount", target.path.display())),
        }
    }
    refused.unwrap_or(Ok(None))
}

/// A mountpoint, and which mount must be found there.
struct Target {
    path: PathBuf,
    mount_id: u64,
}

impl Target {
    fn open(&self) -> io::Result<File> {
        let dir = File::open(&self.path)?;
        let found = stat::of_fd(dir.as_fd())?.mount_id;
        // Kernels before 5.8 do not tell.
        if found == self.mount_id || found == 0 {
            Ok(dir)
        } else {
            Err(io::Error::from_raw_os_error(libc::ESTALE))
        }
    }
}

fn intent_path(run_dir: &Path, number: (u32, u32)) -> PathBuf {
    run_dir.join(format!("freeze-{}-{}", number.0, number.1))
}

fn start(
    target: Target,
    number: (u32, u32),
    node: &Path,
    deadline: Duration,
    run_dir: &Path,
) -> Result<Frozen> {
    std::fs::create_dir_all(run_dir).context("make directory", run_dir.display())?;
    let intent = intent_path(run_dir, number);
    // The kernel's name of this program holds also after an upgrade has replaced its file.
    let mut guard = Command::new("/proc/self/exe")
        .arg0("cowslip-freeze-guard")
        .arg(GUARD_ARGUMENT)
        .arg(&target.path)
        .arg(target.mount_id.to_string())
        .arg(deadline.as_millis().to_string())
        .arg(&intent)
        .process_group(0) // a terminal's ^C must not end it before it has thawed
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("start the freeze guard for", target.path.display())?;
    let (Some(request), Some(report)) = (guard.stdin.take(), guard.stdout.take()) else {
        return Err(io::Error::from_raw_os_error(libc::EPIPE))
            .context("talk to the freeze guard of", node.display());
    };
    let report = BufReader::new(report);
    let mut frozen =
        Frozen { guard: Some(guard), request: Some(request), report, target, intent, done: false };
    let place = frozen.target.path.display().to_string();
    match frozen.next_report(deadline).as_deref() {
        Some("frozen") => Ok(frozen),
        None => {
            // Freezing waits for what is being written. The guard thaws as soon as it gets that far.
            frozen.abandon();
            Err(Error::Timeout { what: format!("freezing {place}"), limit: deadline })
        }
        Some(other) => {
            frozen.abandon(); // nothing was frozen: there is nothing to thaw
            let errno = other.strip_prefix("error ").and_then(|n| n.parse().ok()).unwrap_or(libc::EIO);
            Err(match errno {
                libc::EOPNOTSUPP | libc::ENOTTY => Error::Unsupported {
                    missing: format!("the file system on {place} cannot be frozen"),
                    hint: "the snapshot is crash consistent",
                },
                libc::EBUSY => Error::Busy {
                    volume: "-".into(),
                    device: node.display().to_string(),
                    holder: format!("{place} is frozen already, or by another snapshot"),
                },
                errno => Error::Io { what: "freeze", place, source: io::Error::from_raw_os_error(errno) },
            })
        }
    }
}

impl Frozen {
    /// Lets the file system go on. True: it was frozen from the time [`freeze`] returned until this call. False: the
    /// deadline or somebody else thawed it before, and what was cut meanwhile is crash consistent only.
    pub fn thaw(mut self) -> bool {
        self.finish()
    }

    /// A line from the guard; None: it did not come in time, or the guard is dead.
    fn next_report(&mut self, limit: Duration) -> Option<String> {
        let ready = fd::wait_readable(&[self.report.get_ref().as_fd()], Some(limit)).ok()?;
        if self.report.buffer().is_empty() && ready != [true] {
            return None;
        }
        let mut line = String::new();
        // The guard writes whole lines, and a short one each.
        self.report.by_ref().take(64).read_line(&mut line).ok()?;
        line.strip_suffix('\n').map(str::to_owned)
    }

    fn finish(&mut self) -> bool {
        if std::mem::replace(&mut self.done, true) {
            return false;
        }
        self.request = None;
        let mut line = String::new();
        let report = self.report.by_ref().take(64).read_line(&mut line);
        if let Some(guard) = &mut self.guard {
            let _ = guard.wait();
        }
        match (report, line.trim_end()) {
            (Ok(_), "thawed on request") => true,
            (Ok(_), "") | (Err(_), _) => {
                // The guard was killed: the file system is as it left it.
                let thawed = self.target.open().and_then(|dir| loops::thaw(dir.as_fd()));
                let _ = std::fs::remove_file(&self.intent);
                thawed.is_ok()
            }
            _ => false,
        }
    }

    /// Leaves the guard to itself; a thread collects its exit status.
    fn abandon(mut self) {
        self.done = true;
        self.request = None;
        if let Some(mut guard) = self.guard.take() {
            std::thread::spawn(move || {
                let _ = guard.wait();
            });
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Thaws what guards that were killed have left frozen; to be called at the agent's start. How many there were.
pub fn thaw_leftovers(run_dir: &Path) -> usize {
    let mut count = 0;
    for entry in std::fs::read_dir(run_dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_intent = entry.file_name().to_str().is_some_and(|name| name.starts_with("freeze-"));
        if !is_intent {
            continue;
        }
        match thaw_leftover(&path) {
            Ok(thawed) => count += usize::from(thawed),
            Err(e) => {
                tracing::error!(intent = %path.display(), error = %e, "a file system may still be frozen");
            }
        }
    }
    count
}

fn thaw_leftover(intent: &Path) -> io::Result<bool> {
    let mut file = File::open(intent)?;
    if !fd::try_lock(file.as_fd())? {
        return Ok(false); // its guard lives and will thaw
    }
    let mut text = Vec::new();
    file.by_ref().take(8192).read_to_end(&mut text)?;
    let thawed =
        match guard::parse_intent(&text) {
            // A path through a process that is gone, or a covered one: look for another mount of the device.
            Some(target) => {
                let mut dirs: Vec<File> = target.open().into_iter().collect();
                if dirs.is_empty()
                    && let Some(number) = number_of(intent)
                {
                    let node = PathBuf::from(format!("/dev/block/{}:{}", number.0, number.1));
                    dirs.extend(mounts::of_device(number, &node).iter().filter_map(|mount| {
                        Target { path: mount.reachable(), mount_id: mount.id }.open().ok()
                    }));
                }
                dirs.iter().any(|dir| loops::thaw(dir.as_fd()).is_ok())
            }
            None => false, // cut off while it was written: nothing was frozen yet
        };
    std::fs::remove_file(intent)?;
    Ok(thawed)
}

/// Device number in an intent's file name.
fn number_of(intent: &Path) -> Option<(u32, u32)> {
    let (major, minor) = intent.file_name()?.to_str()?.strip_prefix("freeze-")?.split_once('-')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
