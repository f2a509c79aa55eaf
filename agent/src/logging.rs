//! The agent's log: plain lines on a terminal or in a file, fields of their own in the journal.
//!
//! Invariant: after [`wait_for_nobody`] no line waits until somebody takes it: whoever takes it may be waiting for a
//! volume of this agent (H7).

mod journal;

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;
use std::time::Duration;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};
use ublk_target::serving::Lines;

/// How long the end of the process waits for its last lines to be taken.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Where the log goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Stderr,
    Journal,
}

static PLACE: OnceLock<Place> = OnceLock::new();
static LINES: OnceLock<Lines> = OnceLock::new();

/// Whether `filter` can be used as one; says what is wrong with it.
pub fn check_filter(filter: &str) -> Result<(), String> {
    EnvFilter::builder().parse(filter).map(drop).map_err(|error| error.to_string())
}

/// Starts logging. `filter` is `info`, `warn,store=debug`, …; one that is not valid counts as `info`.
/// The first caller in a process decides, later calls change nothing.
pub fn init(filter: &str) {
    let filter = with_quiet_libraries(filter);
    let filter = EnvFilter::builder().parse(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    let place = if stderr_is_journal() && journal::is_there() { Place::Journal } else { Place::Stderr };
    // An error means that a subscriber is set already.
    let set = match place {
        Place::Journal => {
            registry.with(fmt::layer().event_format(journal::Fields).with_writer(|| Out)).try_init()
        }
        Place::Stderr => {
            let terminal = io::stderr().is_terminal();
            registry.with(fmt::layer().with_writer(|| Out).with_ansi(terminal).with_target(false)).try_init()
        }
    };
    if set.is_ok() {
        let _ = PLACE.set(place);
    }
}

/// From now on lines go through a queue, and those that do not fit it are dropped and counted. What is left has a moment
/// at the end, when the answer is dropped. Starts a thread.
///
/// # Errors
/// When there can be no more threads.
pub fn wait_for_nobody() -> io::Result<LastWords> {
    let lines = match place() {
        Place::Stderr => Lines::start(to_stderr, |count| {
            format!("cowslip: {count} lines of the log were dropped: nobody took them\n").into_bytes()
        }),
        Place::Journal => Lines::start(journal::send, journal::dropped),
    }?;
    let _ = LINES.set(lines);
    // The default one writes to stderr itself, and the process does not end before that is done.
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("{panic}");
        drain();
    }));
    Ok(LastWords)
}

/// Hands the last lines on when it is dropped.
pub struct LastWords;

impl Drop for LastWords {
    fn drop(&mut self) {
        drain();
    }
}

fn drain() {
    if let Some(lines) = LINES.get() {
        lines.drain(LAST_WORDS);
    }
}

fn place() -> Place {
    *PLACE.get().unwrap_or(&Place::Stderr)
}

fn to_stderr(line: &[u8]) -> io::Result<()> {
    io::stderr().write_all(line)
}

/// Takes one event with each call.
struct Out;

impl Write for Out {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        match (LINES.get(), place()) {
            (Some(lines), _) => lines.put(event),
            (None, Place::Stderr) => to_stderr(event)?,
            (None, Place::Journal) => journal::send(event)?,
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What libraries tell of their own steps is not for the users of an agent, unless they ask for it.
/// fuser tells of each answer that the kernel did not take: somebody stopped waiting, or it was answered already.
fn with_quiet_libraries(filter: &str) -> String {
    let quiet = [("libublk", "libublk=warn"), ("fuser", "fuser::reply=off")];
    let quiet = quiet.iter().filter(|(library, _)| !filter.contains(library)).map(|(_, quiet)| *quiet);
    std::iter::once(filter).chain(quiet).collect::<Vec<_>>().join(",")
}

/// systemd names the journal's stream by device and inode (systemd.exec(5), JOURNAL_STREAM); a
/// redirected stderr is another file.
fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(stderr) = io::stderr().as_fd().try_clone_to_owned() else { return false };
    std::fs::File::from(stderr).metadata().is_ok_and(|meta| names_stream(&stream, meta.dev(), meta.ino()))
}

fn names_stream(stream: &str, dev: u64, ino: u64) -> bool {
    let Some((want_dev, want_ino)) = stream.split_once(':') else { return false };
    want_dev.parse() == Ok(dev) && want_ino.parse() == Ok(ino)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_stream_is_device_and_inode() {
        assert!(names_stream("9:1234", 9, 1234));
        for other in ["9:1235", "8:1234", "9", "", "9:", "x:1234", "9:1234:5"] {
            assert!(!names_stream(other, 9, 1234), "{other}");
        }
    }

    #[test]
    fn libraries_are_quiet_unless_asked() {
        for (filter, used) in [
            ("debug", "debug,libublk=warn,fuser::reply=off"),
            ("info,libublk=trace", "info,libublk=trace,fuser::reply=off"),
            ("info,fuser=warn", "info,fuser=warn,libublk=warn"),
        ] {
            assert_eq!(with_quiet_libraries(filter), used);
            assert_eq!(check_filter(used), Ok(()));
        }
    }

    #[test]
    fn filters() {
        for good in ["info", "warn,store=debug", "off", "agent::serve=trace"] {
            assert_eq!(check_filter(good), Ok(()), "{good}");
        }
        assert!(check_filter("info,=,=x").is_err());
        assert!(check_filter("store=loud").is_err());
    }
}
