//! A log that nobody waits for.
//!
//! Invariants: [`Lines::put`] makes no system call that can wait. What does not fit the queue is dropped and counted,
//! and the count is told as soon as lines are taken again.

use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use store::mutation::Mutation;

/// Bytes that wait at most. Some seconds of everything an agent can say.
const CAPACITY: usize = 1 << 20;

/// Takes one line, or message, at a time; may wait as long as it likes.
type Sink = Box<dyn FnMut(&[u8]) -> io::Result<()> + Send>;

/// A queue of lines, and the thread that hands them on.
#[derive(Clone)]
pub struct Lines(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    dropped: u64,
    /// A line is with the sink.
    busy: bool,
    /// The bug that lines wait for the sink.
    sink: Option<Sink>,
}

impl Queue {
    /// The next line; after the last one how many are missing behind it.
    fn next(&mut self, told: &dyn Fn(u64) -> Vec<u8>) -> Option<Vec<u8>> {
        if let Some(line) = self.lines.pop_front() {
            self.bytes -= line.len();
            return Some(line);
        }
        (self.dropped > 0).then(|| told(std::mem::take(&mut self.dropped)))
    }
}

impl Lines {
    /// Starts the thread. `told` makes the line that says how many were dropped.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub fn start(
        mut sink: impl FnMut(&[u8]) -> io::Result<()> + Send + 'static,
        told: impl Fn(u64) -> Vec<u8> + Send + 'static,
    ) -> io::Result<Self> {
        let lines = Self(Arc::new(Shared { queue: Mutex::default(), changed: Condvar::new() }));
        if Mutation::WaitingLog.on() {
            lines.0.queue.lock().sink = Some(Box::new(sink));
            return Ok(lines);
        }
        let shared = Arc::clone(&lines.0);
        std::thread::Builder::new().name("cowslip-log".into()).stack_size(128 << 10).spawn(move || {
            let mut queue = shared.queue.lock();
            loop {
                let Some(line) = queue.next(&told) else {
                    shared.changed.wait(&mut queue);
                    continue;
                };
                queue.busy = true;
                drop(queue);
                // There is nowhere to tell of an error.
                let _ = sink(&line);
                queue = shared.queue.lock();
                queue.busy = false;
                shared.changed.notify_all();
            }
        })?;
        Ok(lines)
    }

    /// Hands on a line, or drops it.
    pub fn put(&self, line: &[u8]) {
        let mut queue = self.0.queue.lock();
        if let Some(sink) = &mut queue.sink {
            let _ = sink(line);
            return;
        }
        // Once one is dropped, so are all until that is told: what is missing is then in one place.
        if queue.dropped > 0 || queue.bytes + line.len() > CAPACITY {
            queue.dropped += 1;
            return;
        }
        queue.bytes += line.len();
        queue.lines.push_back(line.to_vec());
        drop(queue);
        self.0.changed.notify_all();
    }

    /// Waits until every line is with whoever takes them, but no longer than `limit`. For the end of the process.
    pub fn drain(&self, limit: Duration) {
        let mut queue = self.0.queue.lock();
        let done = |queue: &mut Queue| !queue.busy && queue.lines.is_empty() && queue.dropped == 0;
        self.0.changed.wait_while_for(&mut queue, |queue| !done(queue), limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::sync::mpsc;

    const LINES: usize = 100_000;

    fn told(dropped: u64) -> Vec<u8> {
        format!("dropped {dropped}\n").into_bytes()
    }

    #[test]
    fn h7_a_pipe_that_nobody_reads_holds_nobody_up() {
        let (reader, mut writer) = io::pipe().unwrap();
        let (done, ended) = mpsc::channel();
        std::thread::spawn(move || {
            let lines = Lines::start(move |line| writer.write_all(line), told).unwrap();
            (0..LINES).for_each(|n| lines.put(format!("this is line {n}\n").as_bytes()));
            lines.drain(Duration::from_millis(10));
            done.send(lines).unwrap();
        });
        // Only there so that a failure ends.
        let lines = ended.recv_timeout(Duration::from_secs(10)).expect("the log holds its writers up");

        // Each line is there, in order, or counted.
        let mut next = 0;
        for line in BufReader::new(reader).lines().map(Result::unwrap) {
            match line.strip_prefix("dropped ") {
                Some(count) => next += count.parse::<usize>().unwrap(),
                None => {
                    assert_eq!(line, format!("this is line {next}"));
                    next += 1;
                }
            }
            if next == LINES {
                break;
            }
        }
        lines.drain(Duration::from_secs(30));
        assert_eq!(next, LINES);
    }

    #[test]
    fn the_last_lines_are_not_lost() {
        let (mut reader, mut writer) = io::pipe().unwrap();
        let lines = Lines::start(move |line| writer.write_all(line), told).unwrap();
        (0..100).for_each(|n| lines.put(format!("{n:9}\n").as_bytes()));
        lines.drain(Duration::from_secs(30));
        let mut bytes = [0; 1000];
        io::Read::read_exact(&mut reader, &mut bytes).unwrap();
        assert!(bytes.ends_with(b"       99\n"));
    }
}
