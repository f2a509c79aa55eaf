//! The agent's log: plain lines on a terminal or in a file, fields of their own in the journal.

use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

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
    if stderr_is_journal()
        && let Ok(journal) = tracing_journald::layer()
    {
        // An error means that a subscriber is set already.
        let _ = registry.with(journal.with_field_prefix(Some("COWSLIP".into()))).try_init();
        return;
    }
    let terminal = std::io::stderr().is_terminal();
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(terminal).with_target(false);
    let _ = registry.with(lines).try_init();
}

/// What libraries tell of their own steps is not for the users of an agent, unless they ask for it.
fn with_quiet_libraries(filter: &str) -> String {
    if filter.contains("libublk") { filter.into() } else { format!("{filter},libublk=warn") }
}

/// systemd names the journal's stream by device and inode (systemd.exec(5), JOURNAL_STREAM); a
/// redirected stderr is another file.
fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(stderr) = std::io::stderr().as_fd().try_clone_to_owned() else { return false };
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
        for (filter, used) in [("debug", "debug,libublk=warn"), ("info,libublk=trace", "info,libublk=trace")]
        {
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
