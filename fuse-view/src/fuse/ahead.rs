//! Listings of directories, ahead of who reads them.
//!
//! A reply has room for some two dozen entries with attributes; making them in larger batches costs a fraction. What is
//! left is kept for the request that goes on there, and while it is handed out, a thread makes the batch after it. Only
//! directories in snapshots, which never change, are kept and read ahead.

use crate::{
    Attr, Result,
    tree::{Lifetime, Node, Tree, TreeEntry},
};
use parking_lot::{Condvar, Mutex};
use std::{
    collections::VecDeque,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
};

/// Entries listed at once in a directory that never changes, and in others.
const BATCH: usize = 256;
const SHORT_BATCH: usize = 64;
/// Listings kept: about one for each program that lists, and the one that follows.
const KEPT: usize = 32;

/// A part of a listing.
pub struct Ahead {
    dir: Node,
    /// The cookie after which the entries follow.
    pub after: u64,
    pub entries: VecDeque<(TreeEntry, Result<Attr>)>,
    /// Whether nothing follows them.
    pub end: bool,
    lasting: bool,
}

/// A place in a directory: behind that cookie.
type Place = (Node, u64);

enum Kept {
    Ready(Ahead),
    /// The thread is at it.
    Coming(Place),
}

impl Kept {
    fn place(&self) -> Place {
        match self {
            Self::Ready(ahead) => (ahead.dir, ahead.after),
            Self::Coming(place) => *place,
        }
    }
}

/// What is kept, the youngest at the end.
struct Shared {
    tree: Arc<dyn Tree>,
    kept: Mutex<VecDeque<Kept>>,
    arrived: Condvar,
}

/// The listings of a tree.
pub struct ReadAhead {
    shared: Arc<Shared>,
    /// What the thread is to list; None: there is no thread.
    wanted: Option<SyncSender<Place>>,
    thread: Option<JoinHandle<()>>,
}

impl ReadAhead {
    /// For that tree. Without a thread, which the system may refuse, nothing is read ahead.
    pub fn new(tree: Arc<dyn Tree>) -> Self {
        let shared = Arc::new(Shared { tree, kept: Mutex::default(), arrived: Condvar::new() });
        let (wanted, orders) = sync_channel(KEPT);
        let own = shared.clone();
        let thread = std::thread::Builder::new().name("fuse-ahead".into()).spawn(move || own.serve(&orders));
        let thread = thread.ok();
        Self { shared, wanted: thread.is_some().then_some(wanted), thread }
    }

    /// What follows `after` in `dir`: kept, or listed now. Nothing: that is the end.
    pub fn take(&self, dir: Node, after: u64) -> Result<Ahead> {
        let ahead = match self.shared.take((dir, after)) {
            Some(kept) => kept,
            None => self.shared.list((dir, after))?,
        };
        if let Some((last, _)) = ahead.entries.back()
            && ahead.lasting
            && !ahead.end
        {
            self.want((dir, last.cookie));
        }
        Ok(ahead)
    }

    /// Has the thread list what follows; not, if it has much to do.
    fn want(&self, place: Place) {
        let Some(wanted) = &self.wanted else { return };
        let mut kept = self.shared.kept.lock();
        if kept.iter().all(|kept| kept.place() != place) && wanted.try_send(place).is_ok() {
            Shared::push(&mut kept, Kept::Coming(place));
        }
    }

    /// Keeps a rest.
    pub fn keep(&self, ahead: Ahead) {
        if ahead.lasting {
            Shared::push(&mut self.shared.kept.lock(), Kept::Ready(ahead));
        }
    }
}

impl Drop for ReadAhead {
    /// The tree is to be free of the thread, as if there had been none.
    fn drop(&mut self) {
        self.wanted = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn push(kept: &mut VecDeque<Kept>, one: Kept) {
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(one);
    }

    fn list(&self, (dir, after): Place) -> Result<Ahead> {
        let lasting = self.tree.lifetime(dir) == Lifetime::Forever;
        let listing = self.tree.list(dir, after, if lasting { BATCH } else { SHORT_BATCH })?;
        Ok(Ahead { dir, after, entries: listing.entries.into(), end: listing.end, lasting })
    }

    /// What is kept of a place; waits for what is coming.
    fn take(&self, place: Place) -> Option<Ahead> {
        let mut kept = self.kept.lock();
        loop {
            let at = kept.iter().position(|kept| kept.place() == place)?;
            if matches!(kept[at], Kept::Coming(_)) {
                self.arrived.wait(&mut kept);
            } else if let Some(Kept::Ready(ahead)) = kept.remove(at) {
                return Some(ahead);
            }
        }
    }

    /// The thread's work: until nobody is left to want anything.
    fn serve(&self, orders: &Receiver<Place>) {
        while let Ok(place) = orders.recv() {
            // Who needs it meets an error himself.
            let listed = self.list(place).ok();
            let mut kept = self.kept.lock();
            if let Some(at) = kept.iter().position(|kept| kept.place() == place) {
                kept.remove(at);
                if let Some(ahead) = listed {
                    Self::push(&mut kept, Kept::Ready(ahead));
                }
            }
            drop(kept);
            self.arrived.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Error, StatFs,
        tree::{OpenFile, TOP},
    };
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    const DIR: Node = Node { fs: 1, ino: TOP };

    /// A directory of so many names, which never changes.
    struct Names {
        count: u64,
        listed: AtomicU64,
        broken: AtomicBool,
    }

    fn unused<T>() -> Result<T> {
        Err(Error::NotFound("nobody asks for it".into()))
    }

    impl Tree for Names {
        fn root(&self) -> Node {
            DIR
        }
        fn is_static(&self) -> bool {
            true
        }
        fn lifetime(&self, _: Node) -> Lifetime {
            Lifetime::Forever
        }
        fn reveal(&self, _: Node) -> Result<bool> {
            Ok(false)
        }
        fn lookup(&self, _: Node, _: &[u8]) -> Result<Node> {
            unused()
        }
        fn readdir(&self, dir: Node, cookie: u64, max: usize) -> Result<Vec<TreeEntry>> {
            self.listed.fetch_add(1, Ordering::Relaxed);
            if cookie > 0 && self.broken.load(Ordering::Relaxed) {
                return Err(Error::Corrupt("the second part".into()));
            }
            let node = |ino| Node { ino, ..dir };
            let entry =
                |n: u64| TreeEntry { name: n.to_string().into_bytes(), node: node(n), kind: None, cookie: n };
            Ok((cookie + 1..=self.count).take(max).map(entry).collect())
        }
        fn attr(&self, _: Node) -> Result<Attr> {
            unused()
        }
        fn readlink(&self, _: Node) -> Result<Vec<u8>> {
            unused()
        }
        fn xattr(&self, _: Node, _: &[u8]) -> Result<Option<Vec<u8>>> {
            unused()
        }
        fn xattr_names(&self, _: Node) -> Result<Vec<Vec<u8>>> {
            unused()
        }
        fn open(&self, _: Node) -> Result<OpenFile> {
            unused()
        }
        fn statfs(&self, _: Node) -> Result<StatFs> {
            unused()
        }
    }

    fn names(count: u64) -> Arc<Names> {
        Arc::new(Names { count, listed: AtomicU64::new(0), broken: AtomicBool::new(false) })
    }

    /// The cookies that a program is given which takes `reply` entries at a time.
    fn cookies(ahead: &ReadAhead, reply: usize) -> Vec<u64> {
        let (mut all, mut after) = (Vec::new(), 0);
        loop {
            let mut part = ahead.take(DIR, after).unwrap();
            if part.entries.is_empty() {
                return all;
            }
            all.extend(part.entries.drain(..reply.min(part.entries.len())).map(|(entry, _)| entry.cookie));
            after = *all.last().unwrap();
            part.after = after;
            if !part.entries.is_empty() || part.end {
                ahead.keep(part);
            }
        }
    }

    #[test]
    fn everybody_is_given_every_name_once_and_in_order() {
        let tree = names(5000);
        let ahead = ReadAhead::new(tree.clone());
        let want: Vec<u64> = (1..=5000).collect();
        std::thread::scope(|scope| {
            for reply in [1, 7, 25, 300, 4000] {
                let (ahead, want) = (&ahead, &want);
                scope.spawn(move || assert!(cookies(ahead, reply) == *want, "{reply} at a time"));
            }
        });
        drop(ahead);
        // The thread is gone, and with it what it held.
        assert_eq!(Arc::strong_count(&tree), 1);
    }

    #[test]
    fn batches_are_listed_once() {
        let tree = names(100 * BATCH as u64);
        let ahead = ReadAhead::new(tree.clone());
        cookies(&ahead, 25);
        // And once for the end.
        assert_eq!(tree.listed.load(Ordering::Relaxed), 101);
    }

    #[test]
    fn who_needs_what_cannot_be_listed_is_told() {
        let tree = names(1000);
        tree.broken.store(true, Ordering::Relaxed);
        let ahead = ReadAhead::new(tree.clone());
        assert_eq!(ahead.take(DIR, 0).unwrap().entries.len(), BATCH);
        assert!(ahead.take(DIR, BATCH as u64).is_err());
        // What was met ahead is not kept for ever.
        tree.broken.store(false, Ordering::Relaxed);
        assert_eq!(ahead.take(DIR, BATCH as u64).unwrap().entries.len(), BATCH);
    }
}
