//! Comparing everything that has a checksum, at a rate, and telling of damage.

use super::agent::Agent;
use super::errors::of_store;
use super::events::{Subject, now_seconds};
use api::v1;
use api::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use store::{DamagedBlock, ScrubProgress};
use tokio::sync::mpsc::Sender;

/// The scrub of the pool: one at a time. How far it is outlives the agent, in its run directory.
pub struct Scrub {
    file: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: bool,
    kept: Kept,
}

/// What the next agent goes on from.
#[derive(Default, Clone, Serialize, Deserialize)]
struct Kept {
    /// Segment to go on with; 0: none was interrupted.
    next: u64,
    /// End of the last complete one, seconds since the epoch.
    completed_at: Option<i64>,
}

/// Between two messages about the progress.
const TOLD: Duration = Duration::from_millis(200);

impl Scrub {
    /// As the last agent left it.
    pub fn load(run_dir: &Path, pool_id: &str) -> Self {
        let file = run_dir.join(format!("scrub-{pool_id}.json"));
        // Without it, or when it is cut short, the next scrub begins anew.
        let kept = std::fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok());
        Self { file, state: Mutex::new(State { running: false, kept: kept.unwrap_or_default() }) }
    }

    /// End of the last complete one, seconds since the epoch.
    pub fn completed_at(&self) -> Option<i64> {
        self.state.lock().kept.completed_at
    }

    fn begin(&self, restart: bool) -> Result<u64> {
        let mut state = self.state.lock();
        if state.running {
            return Err(Error::new(ErrorKind::Busy, "the pool is being scrubbed already"));
        }
        state.running = true;
        Ok(if restart { 0 } else { state.kept.next })
    }

    /// Has the next agent go on from here.
    fn reach(&self, next: u64) {
        let mut state = self.state.lock();
        state.kept.next = next;
        self.keep(&state.kept);
    }

    fn end(&self, next: u64, complete: bool) {
        let mut state = self.state.lock();
        state.running = false;
        state.kept.next = if complete { 0 } else { next };
        if complete {
            state.kept.completed_at = Some(now_seconds());
        }
        self.keep(&state.kept);
    }

    fn keep(&self, kept: &Kept) {
        let new = self.file.with_extension("new");
        let text = serde_json::to_vec(kept).expect("numbers are JSON");
        if let Err(e) = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &self.file)) {
            tracing::debug!(error = %e, "the next agent will scrub from the beginning");
        }
    }
}

/// Keeps the rate: sleeps when more was done than the time that passed allows.
struct Pace {
    start: Instant,
    bytes_per_second: u64,
}

impl Pace {
    fn keep(&self, done: u64) {
        if self.bytes_per_second > 0 {
            let due = Duration::from_secs_f64(done as f64 / self.bytes_per_second as f64);
            std::thread::sleep(due.saturating_sub(self.start.elapsed()));
        }
    }
}

impl Agent {
    /// Has every block that turns out to be damaged told as an event.
    pub fn watch_damage(self: &std::sync::Arc<Self>) {
        let events = self.events.clone();
        self.pool.on_damage(move |block| {
            // An event a holder, so that each of them is found under its own name.
            for holder in &block.holders {
                let (volume, snapshot) = holder.split_once('@').unwrap_or((holder, ""));
                events.error("damage", Subject::snapshot(volume, snapshot), describe(block));
            }
            if block.holders.is_empty() {
                events.error("damage", Subject::default(), describe(block));
            }
        });
    }

    /// Scrubs for as long as somebody listens; blocks. Whoever stops listening can go on later.
    pub fn scrub(&self, request: v1::ScrubRequest, out: &Sender<Result<v1::ScrubProgress>>) {
        let from = match self.scrub.begin(request.restart) {
            Ok(from) => from,
            Err(error) => {
                let _ = out.blocking_send(Err(error));
                return;
            }
        };
        let closing = self.closing();
        let pace = Pace { start: Instant::now(), bytes_per_second: request.bytes_per_second };
        let (mut next, mut told) = (from, None::<Instant>);
        let scrubbed = self.pool.scrub(from, &mut |progress| {
            next = progress.segment;
            pace.keep(progress.checked_bytes);
            let due = told.is_none_or(|at| at.elapsed() >= TOLD);
            if out.is_closed() || *closing.borrow() {
                return ControlFlow::Break(());
            }
            if due {
                told = Some(Instant::now());
                self.scrub.reach(next);
                if out.blocking_send(Ok(message(progress, false))).is_err() {
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        });
        let complete = scrubbed.as_ref().is_ok_and(|report| report.complete);
        self.scrub.end(next, complete);
        let last = scrubbed.map_err(of_store).map(|report| message(&report.progress, report.complete));
        if complete {
            self.events.info("scrub_done", Subject::default(), "everything that has a checksum was compared");
        }
        // Nobody may be left to hear it.
        let _ = out.blocking_send(last);
    }
}

fn message(progress: &ScrubProgress, complete: bool) -> v1::ScrubProgress {
    v1::ScrubProgress {
        segment: progress.segment,
        segments: progress.segments,
        checked_bytes: progress.checked_bytes,
        damaged_blocks: progress.damaged_blocks,
        complete,
    }
}

/// What is wrong, in words.
pub fn describe(block: &DamagedBlock) -> String {
    let place = block.offset.map_or_else(String::new, |offset| format!(" at byte {offset}"));
    let holders =
        if block.holders.is_empty() { "nobody that could be found" } else { &block.holders.join(", ") };
    format!("the block{place} of {holders} is damaged (block {} of the pool); reading it fails", block.block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_on_from_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let scrub = Scrub::load(dir.path(), "00ff");
        assert_eq!(scrub.begin(false).unwrap(), 0);
        assert_eq!(scrub.begin(false).unwrap_err().kind, ErrorKind::Busy);
        scrub.end(70, false);
        assert_eq!(scrub.begin(false).unwrap(), 70);
        scrub.end(80, false);
        assert_eq!(scrub.begin(true).unwrap(), 0);
        assert_eq!(scrub.completed_at(), None);
        scrub.end(90, true);
        assert!(scrub.completed_at().is_some());
        assert_eq!(scrub.begin(false).unwrap(), 0);
        // Killed in the middle: the next agent goes on.
        scrub.reach(42);
        let next = Scrub::load(dir.path(), "00ff");
        assert_eq!(next.completed_at(), scrub.completed_at());
        assert_eq!(next.begin(false).unwrap(), 42);
        std::fs::write(dir.path().join("scrub-00ff.json"), "{\"ne").unwrap();
        assert_eq!(Scrub::load(dir.path(), "00ff").begin(false).unwrap(), 0);
    }

    #[test]
    fn damage_is_told_with_its_holders() {
        let block = DamagedBlock { block: 7, offset: Some(8192), holders: vec!["db".into(), "db@a".into()] };
        let told = describe(&block);
        assert!(told.contains("at byte 8192 of db, db@a") && told.contains("block 7"), "{told}");
    }
}
