//! Who is inside: the gate of a volume, and the I/O epochs of a pool.

use crate::io::port::{Waiters, block_on};
use crate::mutation::Mutation;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, rest};
use crate::types::mem;
use std::future::poll_fn;
use std::ops::Range;
use std::task::Poll;
use std::time::Duration;

/// Gate of one volume. Every write, discard and write-zeroes passes it with the range it changes.
///
/// Invariants: two changes of one block are never inside together (H29); nobody waits for anything but
/// device I/O while inside, so a cut that closes the gate always ends (H20). Reads and flushes do not pass it.
#[derive(Default)]
pub struct Gate {
    inside: Mutex<Inside>,
}

#[derive(Default)]
struct Inside {
    ranges: Vec<Range<u64>>,
    closed: bool,
    /// Times that anybody entered or closed it.
    passages: u64,
    /// Who wants to enter or to close.
    waiting: Waiters,
}

/// A moment at which no change was inside.
#[derive(Debug, Clone, Copy)]
pub struct Still(u64);

/// A change that is inside.
pub struct Pass<'a> {
    gate: &'a Gate,
    range: Range<u64>,
}

/// A closed and empty gate; opens when dropped.
pub struct Closed<'a>(&'a Gate);

impl Gate {
    /// Waits until the gate is open and no change of these blocks is inside.
    pub async fn enter(&self, range: Range<u64>) -> Pass<'_> {
        poll_fn(|cx| {
            let mut i = self.inside.lock();
            let excluded = |r: &Range<u64>| {
                r.start < range.end && range.start < r.end && !Mutation::NoRangeExclusion.on()
            };
            if i.closed || i.ranges.iter().any(excluded) {
                i.waiting.add(cx.waker());
                return Poll::Pending;
            }
            i.ranges.push(range.clone());
            i.passages += 1;
            Poll::Ready(())
        })
        .await;
        Pass { gate: self, range }
    }

    /// A mark, while nobody is inside: as long as [`Gate::is_still`] holds for it, nothing of the volume has changed.
    pub fn still(&self) -> Option<Still> {
        let i = self.inside.lock();
        (!i.closed && i.ranges.is_empty()).then_some(Still(i.passages))
    }

    /// Whether nobody entered or closed the gate since the mark.
    pub fn is_still(&self, since: Still) -> bool {
        self.inside.lock().passages == since.0
    }

    /// Enters at once if nothing has changed since the mark.
    pub fn enter_if_still(&self, since: Still, range: Range<u64>) -> Option<Pass<'_>> {
        let mut i = self.inside.lock();
        if i.passages != since.0 && !Mutation::BlindOrder.on() {
            return None;
        }
        i.ranges.push(range.clone());
        i.passages += 1;
        drop(i);
        Some(Pass { gate: self, range })
    }

    /// Lets nobody in and waits until all are out. The thread sleeps meanwhile: not for one that drives changes.
    pub fn close(&self) -> Closed<'_> {
        block_on(poll_fn(|cx| {
            let mut i = self.inside.lock();
            if i.closed {
                i.waiting.add(cx.waker());
                return Poll::Pending;
            }
            i.closed = true;
            i.passages += 1;
            Poll::Ready(())
        }));
        let closed = Closed(self);
        block_on(poll_fn(|cx| {
            let mut i = self.inside.lock();
            if i.ranges.is_empty() || Mutation::OpenGate.on() {
                return Poll::Ready(());
            }
            i.waiting.add(cx.waker());
            Poll::Pending
        }));
        closed
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let mut i = self.gate.inside.lock();
        let at = i.ranges.iter().position(|r| *r == self.range).expect("entered before");
        i.ranges.swap_remove(at);
        let woken = i.waiting.take();
        drop(i);
        woken.wake();
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        let mut i = self.0.inside.lock();
        i.closed = false;
        let woken = i.waiting.take();
        drop(i);
        woken.wake();
    }
}

/// I/O epochs: what a mapping dropped is reused only when every read and write begun before the drop has
/// ended (H18). Two counters for each of two phases; the checkpointer turns the phase and waits until as many of
/// the old one have ended as began.
#[derive(Default)]
pub struct IoEpochs {
    phase: AtomicU64,
    begun: [AtomicU64; 2],
    ended: [AtomicU64; 2],
}

/// An I/O under way; it counts as ended when dropped.
pub struct IoGuard<'a>(&'a AtomicU64);

/// Waits between two looks at the I/O that has to end.
const POLL: Duration = Duration::from_micros(50);

impl IoEpochs {
    /// Begins an I/O; the mapping is looked up after this.
    pub fn begin(&self) -> IoGuard<'_> {
        loop {
            let phase = self.phase.load(Ordering::SeqCst);
            let side = mem(phase & 1);
            self.begun[side].fetch_add(1, Ordering::SeqCst);
            if self.phase.load(Ordering::SeqCst) == phase {
                return IoGuard(&self.ended[side]);
            }
            self.ended[side].fetch_add(1, Ordering::SeqCst);
        }
    }

    /// I/Os begun so far: how busy the pool is.
    pub fn begun(&self) -> u64 {
        self.begun.iter().map(|n| n.load(Ordering::Relaxed)).fold(0, u64::wrapping_add)
    }

    /// Waits for every I/O begun before the call. One caller at a time.
    pub fn wait_for_earlier(&self) {
        let old = mem(self.phase.fetch_add(1, Ordering::SeqCst) & 1);
        loop {
            // In this order: what ended by the first look had begun by the second, so equal numbers mean that nobody
            // was inside at the first.
            let ended = self.ended[old].load(Ordering::SeqCst);
            if self.begun[old].load(Ordering::SeqCst) == ended {
                return;
            }
            rest(POLL);
        }
    }
}

impl Drop for IoGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    /// Under Miri each of them takes a thousand times as long.
    fn rounds(usual: u64) -> u64 {
        if cfg!(miri) { usual / 100 } else { usual }
    }

    #[test]
    fn a_closed_gate_is_empty_and_ranges_exclude_each_other() {
        let gate = Gate::default();
        let inside = AtomicU64::new(0);
        let block = AtomicBool::new(false);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for i in 0..rounds(2000) {
                        let pass = block_on(gate.enter(0..1 + i % 3));
                        assert!(!block.swap(true, Ordering::SeqCst));
                        inside.fetch_add(1, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        block.store(false, Ordering::SeqCst);
                        drop(pass);
                    }
                });
            }
            for _ in 0..rounds(200) {
                let closed = gate.close();
                assert_eq!(inside.load(Ordering::SeqCst), 0);
                drop(closed);
            }
        });
    }

    #[test]
    fn waiting_ends_after_every_earlier_io() {
        let epochs = IoEpochs::default();
        let value = AtomicU64::new(1);
        std::thread::scope(|s| {
            for _ in 0..2 {
                s.spawn(|| {
                    for _ in 0..rounds(20_000) {
                        let guard = epochs.begin();
                        let seen = value.load(Ordering::SeqCst);
                        assert_ne!(seen, 0, "retired before the reader was out");
                        drop(guard);
                    }
                });
            }
            s.spawn(|| {
                for _ in 0..rounds(100) {
                    value.store(2, Ordering::SeqCst);
                    epochs.wait_for_earlier();
                    value.store(1, Ordering::SeqCst);
                }
            });
        });
    }
}
