//! Objects to be looked at: each once, one after the other, those that failed again later.
//!
//! A key says which object, never what happened to it: whoever takes it reads the object as it is then. What is added
//! while it is being looked at is looked at again.

use super::error::Error;
use super::figures::Figures;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Debug;
use std::hash::Hash;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The first and the longest pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// When an object is to be looked at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// When it changes.
    Done,
    /// Then at the latest.
    After(Duration),
}

/// An object in a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

impl Key {
    /// The object with that metadata.
    pub fn of(object: &ObjectMeta) -> Self {
        let part = |part: &Option<String>| part.clone().unwrap_or_default();
        Self { namespace: part(&object.namespace), name: part(&object.name) }
    }

    /// The object that this one was made for.
    pub fn of_owner(object: &ObjectMeta) -> Option<Self> {
        let owner = object.owner_references.iter().flatten().next()?;
        Some(Self { name: owner.name.clone(), ..Self::of(object) })
    }
}

/// The keys that wait, each with its time.
pub struct Queue<K> {
    waiting: Mutex<HashMap<K, Instant>>,
    changed: Notify,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self { waiting: Mutex::default(), changed: Notify::new() }
    }
}

impl<K: Clone + Eq + Hash + Debug> Queue<K> {
    /// Looked at as soon as possible.
    pub fn add(&self, key: K) {
        self.add_at(key, Instant::now());
    }

    fn add_at(&self, key: K, due: Instant) {
        match self.waiting.lock().entry(key) {
            Entry::Vacant(vacant) => drop(vacant.insert(due)),
            Entry::Occupied(mut at) => *at.get_mut() = due.min(*at.get()),
        }
        self.changed.notify_one();
    }

    /// Takes the key that is due first, when it is due.
    async fn next(&self) -> K {
        loop {
            match self.take(Instant::now()) {
                Ok(key) => return key,
                Err(None) => self.changed.notified().await,
                Err(Some(due)) => {
                    // A change may be due earlier.
                    let _ = tokio::time::timeout_at(due, self.changed.notified()).await;
                }
            }
        }
    }

    /// Takes the key that is due first if that is by now; else when the first will be.
    fn take(&self, now: Instant) -> Result<K, Option<Instant>> {
        let mut waiting = self.waiting.lock();
        let first = waiting.iter().min_by_key(|(_, due)| **due).map(|(key, due)| (key.clone(), *due));
        match first {
            None => Err(None),
            Some((_, due)) if due > now => Err(Some(due)),
            Some((key, _)) => {
                waiting.remove(&key);
                Ok(key)
            }
        }
    }

    /// Looks at one key after the other, for ever.
    pub async fn work(
        &self,
        name: &'static str,
        figures: &Figures,
        look: impl AsyncFn(&K) -> Result<Next, Error>,
    ) {
        let mut failures = Failures::default();
        loop {
            let key = self.next().await;
            let looked = look(&key).await;
            figures.looked(name, looked.is_ok());
            if let Err(error) = &looked {
                // Somebody else was faster: that is no trouble.
                match error.is_conflict() {
                    true => tracing::debug!(work = name, ?key, "{error}"),
                    false => tracing::warn!(work = name, ?key, "{error}"),
                }
            }
            if let Some(pause) = failures.pause(&key, looked.ok()) {
                self.add_at(key, Instant::now() + pause);
            }
        }
    }
}

/// How often each key has failed in a row.
struct Failures<K>(HashMap<K, u32>);

impl<K> Default for Failures<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Clone + Eq + Hash> Failures<K> {
    /// When to look at the key again, after a look that ended so; None: it failed.
    fn pause(&mut self, key: &K, looked: Option<Next>) -> Option<Duration> {
        match looked {
            Some(next) => {
                self.0.remove(key);
                match next {
                    Next::Done => None,
                    Next::After(pause) => Some(pause),
                }
            }
            None => {
                let before = self.0.entry(key.clone()).or_default();
                let pause = pause_after(*before);
                *before = before.saturating_add(1);
                Some(pause)
            }
        }
    }
}

/// The pause after that many failures and one more.
fn pause_after(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << failures.min(16)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_key_waits_once_however_often_it_was_added() {
        let queue = Queue::default();
        queue.add("a");
        queue.add("a");
        let now = Instant::now();
        assert_eq!(queue.take(now), Ok("a"));
        assert_eq!(queue.take(now), Err(None));
    }

    #[test]
    fn the_first_that_is_due_comes_first() {
        let (queue, now) = (Queue::default(), Instant::now());
        queue.add_at("late", now + 2 * SECOND);
        queue.add_at("soon", now + SECOND);
        assert_eq!(queue.take(now), Err(Some(now + SECOND)));
        assert_eq!(queue.take(now + 3 * SECOND), Ok("soon"));
        assert_eq!(queue.take(now + 3 * SECOND), Ok("late"));
    }

    #[test]
    fn a_change_is_looked_at_before_its_time_and_not_after_it() {
        let (queue, now) = (Queue::default(), Instant::now());
        queue.add_at("a", now + 60 * SECOND);
        queue.add_at("a", now);
        queue.add_at("a", now + 30 * SECOND);
        assert_eq!(queue.take(now), Ok("a"));
        assert_eq!(queue.take(now + 90 * SECOND), Err(None));
    }

    #[tokio::test]
    async fn who_waits_hears_of_what_is_added() {
        let queue = Queue::default();
        queue.add_at("later", Instant::now() + 600 * SECOND);
        let (first, ()) = tokio::join!(queue.next(), async { queue.add("now") });
        assert_eq!(first, "now");
    }

    #[test]
    fn pauses_grow_with_failures_of_a_key_and_end_with_its_success() {
        let mut failures = Failures::default();
        let millis: Vec<_> =
            (0..4).filter_map(|_| failures.pause(&"a", None)).map(|p| p.as_millis()).collect();
        assert_eq!(millis, [250, 500, 1000, 2000]);
        assert_eq!(failures.pause(&"b", None), Some(FIRST_PAUSE));
        assert_eq!(failures.pause(&"a", Some(Next::After(SECOND))), Some(SECOND));
        assert_eq!(failures.pause(&"a", None), Some(FIRST_PAUSE));
        assert_eq!(failures.pause(&"a", Some(Next::Done)), None);
        assert_eq!(pause_after(u32::MAX), LONGEST_PAUSE);
    }
}
