//! The process that freezes and thaws. One thread, no descriptor but its pipes, the mountpoint and the intent file.

use super::Target;
use crate::sys::{fd, loops};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// `main` of the guard. Arguments: mountpoint, mount id, deadline in milliseconds, path of the intent file.
///
/// It reports on its output: `frozen` or `error ERRNO`, then `thawed on request`, `thawed at deadline` or `not frozen`.
pub fn guard_main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(task) = Task::parse(&args.collect::<Vec<_>>()) else {
        eprintln!("this command is for the agent's own use");
        return ExitCode::from(2);
    };
    match task.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            report(&format!("error {}", e.raw_os_error().unwrap_or(libc::EIO)));
            ExitCode::FAILURE
        }
    }
}

/// The agent may be dead; then nobody listens.
fn report(line: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(format!("{line}\n").as_bytes());
    let _ = out.flush();
}

struct Task {
    target: Target,
    deadline: Duration,
    intent: PathBuf,
}

impl Task {
    fn parse(args: &[OsString]) -> Option<Self> {
        let [path, mount_id, deadline_ms, intent] = args else { return None };
        Some(Self {
            target: Target { path: path.into(), mount_id: mount_id.to_str()?.parse().ok()? },
            deadline: Duration::from_millis(deadline_ms.to_str()?.parse().ok()?),
            intent: intent.into(),
        })
    }

    fn run(&self) -> io::Result<()> {
        let end = Instant::now() + self.deadline;
        let dir = self.target.open()?;
        let intent = self.announce()?;
        if let Err(e) = loops::freeze(dir.as_fd()) {
            std::fs::remove_file(&self.intent)?;
            return Err(e);
        }
        report("frozen");
        let asked = wait_until(end);
        // EINVAL: somebody else has thawed it. It is not frozen in either case.
        let outcome = match loops::thaw(dir.as_fd()) {
            Ok(()) if asked => "thawed on request",
            Ok(()) => "thawed at deadline",
            Err(_) => "not frozen",
        };
        let removed = std::fs::remove_file(&self.intent);
        drop(intent);
        report(outcome);
        removed
    }

    /// Writes down what is about to be frozen. The lock on the file says that a guard is alive; EBUSY: another one is.
    fn announce(&self) -> io::Result<File> {
        let mut file = File::options().create(true).append(true).open(&self.intent)?;
        if !fd::try_lock(file.as_fd())? {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        file.set_len(0)?;
        file.write_all(&intent_text(&self.target))?;
        Ok(file)
    }
}

/// Waits for the agent to close its end; false: the time is over.
fn wait_until(end: Instant) -> bool {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match fd::wait_readable(&[io::stdin().as_fd()], Some(left)) {
            Ok(ready) if ready == [true] => return true,
            Ok(_) if left.is_zero() => return false,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}

/// `MOUNT_ID PATH`, and a newline that says that it is whole.
fn intent_text(target: &Target) -> Vec<u8> {
    let mut text = format!("{} ", target.mount_id).into_bytes();
    text.extend_from_slice(target.path.as_os_str().as_bytes());
    text.push(b'\n');
    text
}

/// None: not whole.
pub(super) fn parse_intent(text: &[u8]) -> Option<Target> {
    let text = text.strip_suffix(b"\n")?;
    let space = text.iter().position(|&b| b == b' ')?;
    let mount_id = std::str::from_utf8(&text[..space]).ok()?.parse().ok()?;
    let path = Path::new(&OsString::from_vec(text[space + 1..].to_vec())).to_owned();
    Some(Target { path, mount_id })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intents_survive_a_round_trip_and_torn_ones_are_refused() {
        let target = Target { path: "/mnt/a b\nc".into(), mount_id: 77 };
        let text = intent_text(&target);
        let read = parse_intent(&text).unwrap();
        assert_eq!((read.path, read.mount_id), (target.path, 77));
        for len in 0..text.len() {
            // A newline inside the path can end a torn one early; the mount id then refuses it.
            if text[..len].last() != Some(&b'\n') {
                assert!(parse_intent(&text[..len]).is_none(), "{len}");
            }
        }
    }
}
