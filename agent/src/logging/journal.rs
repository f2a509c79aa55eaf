//! systemd's journal, in its own protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): a datagram of `FIELD=value` lines.
//!
//! Not by `tracing-journald`, which sends in the thread that logs: that one would wait while the journal takes nothing.

use std::fmt;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

const SOCKET: &str = "/run/systemd/journal/socket";

/// Whether there is a journal.
pub fn is_there() -> bool {
    Path::new(SOCKET).exists()
}

/// Sends one message; waits while the journal takes none.
pub fn send(message: &[u8]) -> io::Result<()> {
    UnixDatagram::unbound()?.send_to(message, SOCKET).map(drop)
}

/// The message that so many were dropped.
pub fn dropped(count: u64) -> Vec<u8> {
    format!(
        "PRIORITY=4\nSYSLOG_IDENTIFIER=cowslip\nMESSAGE={count} messages were dropped: nobody took them\n"
    )
    .into_bytes()
}

/// Writes an event as such a message.
pub struct Fields;

impl<S, N> FormatEvent<S, N> for Fields
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let about = event.metadata();
        let (priority, target) = (priority(*about.level()), about.target());
        write!(writer, "PRIORITY={priority}\nSYSLOG_IDENTIFIER=cowslip\nTARGET={target}\n")?;
        let mut lines = Lines { writer, result: Ok(()) };
        event.record(&mut lines);
        lines.result
    }
}

/// syslog(3)'s.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 5,
        Level::DEBUG => 6,
        Level::TRACE => 7,
    }
}

struct Lines<'a> {
    writer: Writer<'a>,
    result: fmt::Result,
}

impl Visit for Lines<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let line = line(field.name(), &format!("{value:?}"));
        self.result = self.result.and_then(|()| self.writer.write_str(&line));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.result = self.result.and_then(|()| self.writer.write_str(&line(field.name(), value)));
    }
}

/// The name as the journal allows it, with a prefix of our own. A value is one line: a second one would be another field.
fn line(name: &str, value: &str) -> String {
    let value = value.replace('\n', "; ");
    if name == "message" {
        return format!("MESSAGE={value}\n");
    }
    let allowed = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    format!("COWSLIP_{}={value}\n", name.chars().map(allowed).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use tracing_subscriber::layer::SubscriberExt;

    #[derive(Clone, Default)]
    struct Taken(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Taken {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_event_is_one_message_of_fields() {
        let taken = Taken::default();
        let writer = taken.clone();
        let layer = tracing_subscriber::fmt::layer().event_format(Fields).with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::warn!(target: "here", volume = "a\nb", io.code = 5, error = %io::Error::other("bad"), "it {}", "fails");
        });
        let text = String::from_utf8(taken.0.lock().unwrap().clone()).unwrap();
        let mut fields: Vec<&str> = text.lines().collect();
        fields.sort_unstable();
        assert_eq!(
            fields,
            [
                "COWSLIP_ERROR=bad",
                "COWSLIP_IO_CODE=5",
                "COWSLIP_VOLUME=a; b",
                "MESSAGE=it fails",
                "PRIORITY=4",
                "SYSLOG_IDENTIFIER=cowslip",
                "TARGET=here"
            ]
        );
    }
}
