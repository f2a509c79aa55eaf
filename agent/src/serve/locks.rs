//! One operation on a volume at a time.
//!
//! Invariants: locks of several names are taken in the order of the names, so two operations never
//! wait for each other; a name that nobody holds or awaits takes no memory.

use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use tokio::sync::OwnedMutexGuard;

type Lock = tokio::sync::Mutex<()>;

/// Locks by volume name.
#[derive(Default)]
pub struct Locks(Mutex<BTreeMap<String, Weak<Lock>>>);

/// Held locks; move them into the thread that does the work, so that a caller who goes away does not
/// open them while the work goes on.
pub struct Guards(#[allow(dead_code, reason = "held for its Drop")] Vec<OwnedMutexGuard<()>>);

impl Locks {
    /// Waits until the caller alone works on the volumes `names`.
    pub async fn lock<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Guards {
        let names: BTreeSet<&str> = names.into_iter().collect();
        let mut guards = Vec::with_capacity(names.len());
        for name in names {
            guards.push(self.of(name).lock_owned().await);
        }
        Guards(guards)
    }

    fn of(&self, name: &str) -> Arc<Lock> {
        let mut locks = self.0.lock();
        if let Some(lock) = locks.get(name).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(Lock::new(()));
        locks.insert(name.to_owned(), Arc::downgrade(&lock));
        lock
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    fn is_pending(future: impl Future<Output = Guards>) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        matches!(pin!(future).poll(&mut context), Poll::Pending)
    }

    #[tokio::test]
    async fn one_name_excludes_and_others_do_not() {
        let locks = Locks::default();
        let held = locks.lock(["b", "a", "b"]).await;
        assert!(is_pending(locks.lock(["a"])));
        assert!(is_pending(locks.lock(["c", "b"])));
        assert!(!is_pending(locks.lock(["c"])));
        drop(held);
        assert!(!is_pending(locks.lock(["a", "b"])));
    }

    #[tokio::test]
    async fn unused_names_are_forgotten() {
        let locks = Locks::default();
        for n in 0..100 {
            drop(locks.lock([format!("v{n}").as_str()]).await);
        }
        assert!(locks.0.lock().len() <= 1);
    }
}
