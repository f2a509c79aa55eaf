//! What happened: a bounded history that clients read and follow, and the same in the log.
//!
//! Invariants: sequence numbers count from 1 without gaps; the history holds the newest
//! [`HISTORY`] events; a follower that is too slow sees a gap, it never slows the agent down.

use api::v1::Event;
use api::v1::event::Severity;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// Events kept in memory.
pub const HISTORY: usize = 4096;

/// The history. One a process.
pub struct Events {
    history: Mutex<VecDeque<Event>>,
    /// Sequence number of the newest event.
    newest: watch::Sender<u64>,
}

/// What an event is about.
#[derive(Debug, Clone, Copy, Default)]
pub struct Subject<'a> {
    pub volume: &'a str,
    pub snapshot: &'a str,
}

impl<'a> Subject<'a> {
    /// A volume.
    pub fn volume(volume: &'a str) -> Self {
        Self { volume, snapshot: "" }
    }

    /// A snapshot.
    pub fn snapshot(volume: &'a str, snapshot: &'a str) -> Self {
        Self { volume, snapshot }
    }
}

impl Events {
    /// An empty history.
    pub fn new() -> Self {
        Self { history: Mutex::new(VecDeque::new()), newest: watch::Sender::new(0) }
    }

    /// Records that something happened as it should.
    pub fn info(&self, kind: &str, subject: Subject<'_>, message: impl Into<String>) {
        let message = message.into();
        tracing::info!(kind, volume = subject.volume, snapshot = subject.snapshot, "{message}");
        self.push(Severity::Info, kind, subject, message);
    }

    /// Records something that somebody should look at.
    pub fn warn(&self, kind: &str, subject: Subject<'_>, message: impl Into<String>) {
        let message = message.into();
        tracing::warn!(kind, volume = subject.volume, snapshot = subject.snapshot, "{message}");
        self.push(Severity::Warning, kind, subject, message);
    }

    /// Records a failure that users feel.
    pub fn error(&self, kind: &str, subject: Subject<'_>, message: impl Into<String>) {
        let message = message.into();
        tracing::error!(kind, volume = subject.volume, snapshot = subject.snapshot, "{message}");
        self.push(Severity::Error, kind, subject, message);
    }

    fn push(&self, severity: Severity, kind: &str, subject: Subject<'_>, message: String) {
        let mut history = self.history.lock();
        let sequence = *self.newest.borrow() + 1;
        if history.len() == HISTORY {
            history.pop_front();
        }
        history.push_back(Event {
            sequence,
            time_ms: now_ms(),
            severity: severity.into(),
            kind: kind.into(),
            volume: subject.volume.into(),
            snapshot: subject.snapshot.into(),
            message,
        });
        // Still under the lock: nobody is told of an event that cannot be read.
        self.newest.send_replace(sequence);
    }

    /// Events of the history after `sequence`, oldest first, at most `max`.
    pub fn after(&self, sequence: u64, max: usize) -> Vec<Event> {
        let history = self.history.lock();
        let from = history.partition_point(|event| event.sequence <= sequence);
        history.range(from..).take(max).cloned().collect()
    }

    /// Changes whenever there is a new event.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Seconds since the epoch.
pub fn now_seconds() -> i64 {
    now_ms() / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_history_is_bounded_and_counts_on() {
        let events = Events::new();
        for n in 0..HISTORY + 10 {
            events.push(Severity::Info, "test", Subject::volume("v"), format!("{n}"));
        }
        let all = events.after(0, usize::MAX);
        assert_eq!(all.len(), HISTORY);
        assert_eq!(all[0].sequence, 11);
        assert_eq!(all[HISTORY - 1].sequence, HISTORY as u64 + 10);
        assert_eq!(*events.subscribe().borrow(), HISTORY as u64 + 10);
        let last = events.after(HISTORY as u64 + 8, 1);
        assert_eq!((last.len(), last[0].message.as_str()), (1, "4104"));
        assert!(events.after(HISTORY as u64 + 10, 9).is_empty());
    }

    #[tokio::test]
    async fn a_follower_wakes_up() {
        let events = Events::new();
        let mut newest = events.subscribe();
        events.warn("freeze_failed", Subject::snapshot("v", "s"), "why");
        newest.changed().await.unwrap();
        let event = events.after(0, 10).remove(0);
        assert_eq!((event.sequence, event.severity()), (1, Severity::Warning));
        assert_eq!(
            (event.kind.as_str(), event.volume.as_str(), event.snapshot.as_str()),
            ("freeze_failed", "v", "s")
        );
    }
}
