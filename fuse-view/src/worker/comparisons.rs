//! The host's side of comparisons: what a worker needs for one, and what it finds, on its way to who asked.
//!
//! Invariants: a worker gets the sources that are compared, no others; it names snapshots by numbers that the host has
//! given; what it tells goes on at once, so that there is nothing that it could fill.

use super::{
    Reader,
    process::{Broken, Host},
    remote::Source,
    wire::{self, Call, Question, Shape},
};
use crate::{
    BlockRead, Error, Result,
    diff::{Found, Ranges},
    history::{Changes, History, MAX_CHANGES},
    listing::ListingError,
    tree::SnapshotEntry,
    versions::{Told, Version},
};
use serde::Serialize;
use std::{
    collections::HashMap,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Most snapshots that a worker may have open at once: those of one answer, that it looks at one after the other, the
/// last ones that it looked at, and one in which it looks for another name.
const MAX_OPEN: usize = MAX_CHANGES + 16;

/// What [`Reader::diff`] compares.
pub struct Sides<'a> {
    /// The older one.
    pub old: Arc<dyn BlockRead>,
    /// The newer one.
    pub new: Arc<dyn BlockRead>,
    /// Where both may differ.
    pub changed: &'a Ranges,
}

impl Reader {
    /// As [`crate::diff::diff`], by a worker; each thing found is handed to `each`, in order. `label` is what both are
    /// called in messages. `cancel`: whether to give up, which is [`Error::Io`] with `Interrupted`.
    ///
    /// # Errors
    /// Those of [`crate::diff::diff`] and what `each` answers; [`Error::Io`] also when the worker died over it.
    pub fn diff<E: From<Error>>(
        self: &Arc<Self>,
        label: &str,
        sides: Sides<'_>,
        path: &[u8],
        cancel: &AtomicBool,
        each: impl FnMut(Found) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let Sides { old, new, changed } = sides;
        let [old, new] = [old, new].map(|blocks| self.source(label, blocks));
        let [old_shape, shape] = [&old, &new].map(|source| Shape::of(&*source.blocks));
        let call = Call::Diff { shape, old: old.number, old_shape, path: path.to_vec() };
        let host = Diff { old: &old, new: &new, changed, cancel, each, failed: None };
        self.compare(&new, call, host)
    }

    /// As [`crate::versions::versions`], by a worker. `label` is what the volume is called in messages.
    ///
    /// # Errors
    /// Those of [`crate::versions::versions`]; [`Error::Io`] also when the worker died over it.
    pub fn versions<E: From<Error>>(
        self: &Arc<Self>,
        label: &str,
        history: &dyn History,
        path: &[u8],
        each: impl FnMut(Told) -> std::result::Result<(), E>,
    ) -> std::result::Result<usize, E> {
        // It has no blocks of its own: those of snapshots are asked for.
        let source = self.source(label, Arc::new(Nothing));
        let (mut told, opened, path) = (0, HashMap::new(), path.to_vec());
        let host =
            Versions { history, snapshots: None, opened, next: 0, each, told: &mut told, failed: None };
        self.compare(&source, Call::Versions { path }, host)?;
        Ok(told)
    }

    fn source(self: &Arc<Self>, label: &str, blocks: Arc<dyn BlockRead>) -> Source {
        let number = self.next_source.fetch_add(1, Ordering::Relaxed);
        Source::new(self.clone(), number, label.to_owned(), blocks)
    }

    fn compare<E: From<Error>>(
        &self,
        source: &Source,
        call: Call,
        mut host: impl Host + Failed<E>,
    ) -> std::result::Result<(), E> {
        let process = self.process(source)?;
        let done = self.ask_with(&process, source, &mut host, call, |_, ()| Ok(()));
        match host.failed() {
            Some(error) => Err(error),
            None => Ok(done?),
        }
    }
}

/// What `each` answered, if that ended the comparison.
trait Failed<E> {
    fn failed(self) -> Option<E>;
}

struct Nothing;

impl BlockRead for Nothing {
    fn read_at(&self, offset: u64, _buf: &mut [u8]) -> Result<()> {
        Err(Error::Corrupt(format!("byte {offset} of nothing")))
    }

    fn len(&self) -> u64 {
        0
    }
}

fn encoded(answer: &impl Serialize) -> std::result::Result<Result<Vec<u8>>, Broken> {
    postcard::to_stdvec(answer).map(Ok).map_err(|_| Broken::Nonsense)
}

fn answered(answer: Result<impl Serialize>) -> std::result::Result<Result<Vec<u8>>, Broken> {
    answer.map_or_else(|error| Ok(Err(error)), |answer| encoded(&answer))
}

/// Tells `each` of something; whatever it answers but Ok ends the comparison.
fn told<E>(
    done: std::result::Result<(), E>,
    failed: &mut Option<E>,
) -> std::result::Result<Result<Vec<u8>>, Broken> {
    match done {
        Ok(()) => encoded(&()),
        Err(error) => {
            *failed = Some(error);
            Err(Broken::GivenUp)
        }
    }
}

struct Diff<'a, F, E> {
    old: &'a Source,
    new: &'a Source,
    changed: &'a Ranges,
    cancel: &'a AtomicBool,
    each: F,
    failed: Option<E>,
}

impl<F, E> Failed<E> for Diff<'_, F, E> {
    fn failed(self) -> Option<E> {
        self.failed
    }
}

impl<F: FnMut(Found) -> std::result::Result<(), E>, E> Host for Diff<'_, F, E> {
    fn blocks(&self, source: u32) -> Option<&Arc<dyn BlockRead>> {
        let found = [self.old, self.new].into_iter().find(|side| side.number == source);
        found.map(|side| &side.blocks)
    }

    fn answer(&mut self, question: Question) -> std::result::Result<Result<Vec<u8>>, Broken> {
        let each = &mut self.each;
        let done = match question {
            Question::Changed => return encoded(&self.changed.as_slice()),
            Question::Differs(all) => all.into_iter().try_for_each(|one| each(Found::Difference(one))),
            Question::Failed(all) => all.into_iter().try_for_each(|(path, fault)| {
                each(Found::Unreadable(ListingError { path, source: fault.into() }))
            }),
            _ => return Err(Broken::Nonsense),
        };
        told(done, &mut self.failed)
    }

    fn is_over(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    fn is_short(&self) -> bool {
        false
    }
}

struct Versions<'a, F, E> {
    history: &'a dyn History,
    /// By id; None: not asked for yet.
    snapshots: Option<HashMap<u64, SnapshotEntry>>,
    opened: HashMap<u32, Arc<dyn BlockRead>>,
    /// Number of the source that is opened next.
    next: u32,
    each: F,
    told: &'a mut usize,
    failed: Option<E>,
}

impl<F, E> Failed<E> for Versions<'_, F, E> {
    fn failed(self) -> Option<E> {
        self.failed
    }
}

impl<F: FnMut(Told) -> std::result::Result<(), E>, E> Versions<'_, F, E> {
    fn snapshot(&self, id: u64) -> std::result::Result<SnapshotEntry, Broken> {
        self.snapshots.as_ref().and_then(|all| all.get(&id)).cloned().ok_or(Broken::Nonsense)
    }

    fn close(&mut self, closed: &[u32]) {
        for source in closed {
            self.opened.remove(source);
        }
    }

    fn open(&mut self, snapshot: &SnapshotEntry) -> Result<(u32, u64)> {
        if self.opened.len() >= MAX_OPEN {
            return Err(Error::Unsupported(format!("more than {MAX_OPEN} snapshots open at once")));
        }
        let blocks = self.history.open(snapshot)?;
        let opened = (self.next, blocks.len());
        self.next = self.next.wrapping_add(1);
        self.opened.insert(opened.0, blocks);
        Ok(opened)
    }

    fn changes(
        &mut self,
        from: u64,
        read: &[Range<u64>],
        watch: &[Range<u64>],
    ) -> Result<(Changes, Vec<(u32, u64)>)> {
        let changes = self.history.changes(from, read, watch)?;
        let mut opened = Vec::new();
        for change in &changes.changes {
            // One that is not in the list was made since, and is not looked at.
            opened.push(match self.snapshot(change.id) {
                Ok(snapshot) => self.open(&snapshot)?,
                Err(_) => (u32::MAX, 0),
            });
        }
        Ok((changes, opened))
    }
}

impl<F: FnMut(Told) -> std::result::Result<(), E>, E> Host for Versions<'_, F, E> {
    fn blocks(&self, source: u32) -> Option<&Arc<dyn BlockRead>> {
        self.opened.get(&source)
    }

    fn answer(&mut self, question: Question) -> std::result::Result<Result<Vec<u8>>, Broken> {
        let tell = match question {
            Question::Snapshots => match self.history.snapshots() {
                Err(error) => return Ok(Err(error)),
                Ok(all) => {
                    let answer = encoded(&all);
                    self.snapshots = Some(all.into_iter().map(|one| (one.id, one)).collect());
                    return answer;
                }
            },
            Question::Snapshot { id, closed } => {
                self.close(&closed);
                let snapshot = self.snapshot(id)?;
                return answered(self.open(&snapshot));
            }
            Question::Changes { from, read, watch, closed } => {
                self.close(&closed);
                return answered(self.changes(from, &read, &watch));
            }
            Question::Version(wire::Version { event, snapshot, last, count, file }) => {
                *self.told += 1;
                let (snapshot, last) = (self.snapshot(snapshot)?, self.snapshot(last)?);
                Told::Version(Box::new(Version { event, snapshot, last, count, file }))
            }
            Question::Unreadable(id, fault) => Told::Unreadable(self.snapshot(id)?, fault.into()),
            _ => return Err(Broken::Nonsense),
        };
        told((self.each)(tell), &mut self.failed)
    }

    fn is_short(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Change;

    /// Ten snapshots without a byte.
    struct Empty;

    impl History for Empty {
        fn snapshots(&self) -> Result<Vec<SnapshotEntry>> {
            Ok((0..10).map(|id| SnapshotEntry { name: id.to_string(), id, created_at: 0 }).collect())
        }

        fn open(&self, _: &SnapshotEntry) -> Result<Arc<dyn BlockRead>> {
            Ok(Arc::new(Nothing))
        }

        fn changes(&self, _: u64, _: &[Range<u64>], _: &[Range<u64>]) -> Result<Changes> {
            let change = |id| Change { id, watched: true, blocks: Vec::new() };
            Ok(Changes { changes: (1..10).map(change).collect(), through: 9, end: true })
        }
    }

    #[test]
    fn a_worker_has_no_more_snapshots_open_than_it_can_use() {
        let mut told = 0;
        let each = |_: Told| -> Result<()> { panic!("nothing is told") };
        let mut host = Versions {
            history: &Empty,
            snapshots: None,
            opened: HashMap::new(),
            next: 0,
            each,
            told: &mut told,
            failed: None::<Error>,
        };
        let mut ask = |question| host.answer(question).expect("it goes on");
        assert!(ask(Question::Snapshots).is_ok());
        let open = |closed| Question::Snapshot { id: 3, closed };
        let first = MAX_OPEN - 5;
        for number in 0..first {
            assert!(ask(open(Vec::new())).is_ok(), "{number}");
        }
        // Nine more are four too many. Those that came first are open.
        let changes = |closed| Question::Changes { from: 0, read: Vec::new(), watch: Vec::new(), closed };
        for question in [changes(Vec::new()), open(Vec::new()), changes(vec![7, 8, 9])] {
            let Err(Error::Unsupported(why)) = ask(question) else { panic!("there is no end") };
            assert!(why.contains(&MAX_OPEN.to_string()), "{why}");
        }
        // Closing makes room again.
        assert!(ask(changes((100..200).collect())).is_ok());
        assert!(ask(open(Vec::new())).is_ok());
        assert!(host.opened.len() <= MAX_OPEN);
    }
}
