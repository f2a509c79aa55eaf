//! Who waits for whom, in many interleavings: the gate, the I/O epochs and the log's group commit, with the locks and
//! atomics of shuttle. A schedule in which everybody waits is an error too. `make models` tries more of them.

use parking_lot::Mutex;
use shuttle::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use shuttle::thread;
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use store::format::log::{LogHeader, frame_bytes, read_frame};
use store::format::record::{CutEntry, Record};
use store::gate::{Gate, IoEpochs};
use store::io::port::block_on;
use store::io::{Io, Sink, Source};
use store::log::ring::SharedBytes;
use store::log::writer::{FlushError, Poison, Position, Resume};
use store::log::{Log, Ring};
use store::types::{Epoch, Lsn, Phys, VersionId, VolumeId};
use store::{Consistency, Labels};
use zerocopy::FromBytes;

/// Tries schedules at random, and such as change sides seldom, which show other mistakes.
fn check(model: impl Fn() + Send + Sync + Clone + 'static) {
    let tries = std::env::var("COWSLIP_MODELS").ok().and_then(|n| n.parse().ok()).unwrap_or(1000);
    shuttle::check_random(model.clone(), tries);
    shuttle::check_pct(model, tries, 3);
}

/// Runs closures on threads of their own, to their ends.
fn together(all: Vec<Box<dyn FnOnce() + Send>>) {
    let all: Vec<_> = all.into_iter().map(thread::spawn).collect();
    all.into_iter().for_each(|t| t.join().expect("it does not panic"));
}

/// H20, H29: changes of one block exclude each other, and whoever closed the gate is alone.
#[test]
fn the_gate_excludes() {
    check(|| {
        let gate = Arc::new(Gate::default());
        let inside = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
        let writer = |block: u64| -> Box<dyn FnOnce() + Send> {
            let (gate, inside) = (gate.clone(), inside.clone());
            Box::new(move || {
                let pass = block_on(gate.enter(block..block + 1));
                let here = &inside[usize::try_from(block).expect("small")];
                assert_eq!(here.fetch_add(1, Ordering::SeqCst), 0);
                thread::yield_now();
                here.fetch_sub(1, Ordering::SeqCst);
                drop(pass);
            })
        };
        let cutter = || -> Box<dyn FnOnce() + Send> {
            let (gate, inside) = (gate.clone(), inside.clone());
            Box::new(move || {
                let closed = gate.close();
                assert!(inside.iter().all(|n| n.load(Ordering::SeqCst) == 0));
                thread::yield_now();
                assert!(inside.iter().all(|n| n.load(Ordering::SeqCst) == 0));
                drop(closed);
            })
        };
        together(vec![writer(0), writer(0), writer(1), cutter(), cutter()]);
    });
}

/// H36: a copy that was made outside of the gate counts only if nothing was written meanwhile.
#[test]
fn a_copy_is_never_older_than_what_it_replaces() {
    check(|| {
        let gate = Arc::new(Gate::default());
        let place = Arc::new(AtomicU64::new(0));
        let content = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
        let at = |p: u64| usize::try_from(p).expect("small");
        let writer = || -> Box<dyn FnOnce() + Send> {
            let (gate, place, content) = (gate.clone(), place.clone(), content.clone());
            Box::new(move || {
                for _ in 0..2 {
                    let _pass = block_on(gate.enter(0..1));
                    let here = &content[at(place.load(Ordering::SeqCst))];
                    let seen = here.load(Ordering::SeqCst);
                    here.store(seen + 1, Ordering::SeqCst);
                }
            })
        };
        let copier = {
            let (gate, place, content) = (gate.clone(), place.clone(), content.clone());
            Box::new(move || {
                let Some(still) = gate.still() else { return };
                let old = place.load(Ordering::SeqCst);
                content[at(1 - old)].store(content[at(old)].load(Ordering::SeqCst), Ordering::SeqCst);
                if let Some(_pass) = gate.enter_if_still(still, 0..1) {
                    place.store(1 - old, Ordering::SeqCst);
                }
            })
        };
        together(vec![writer(), writer(), copier]);
        assert_eq!(content[at(place.load(Ordering::SeqCst))].load(Ordering::SeqCst), 4);
    });
}

/// H18: what is dropped is used again only when whoever looked it up before has ended.
#[test]
fn nothing_is_reused_under_an_io() {
    check(|| {
        let epochs = Arc::new(IoEpochs::default());
        let place = Arc::new(AtomicU64::new(0));
        let alive: Arc<[AtomicBool; 4]> = Arc::new(std::array::from_fn(|i| AtomicBool::new(i == 0)));
        let reader = || -> Box<dyn FnOnce() + Send> {
            let (epochs, place, alive) = (epochs.clone(), place.clone(), alive.clone());
            Box::new(move || {
                for _ in 0..2 {
                    let _io = epochs.begin();
                    let p = usize::try_from(place.load(Ordering::SeqCst)).expect("small");
                    thread::yield_now();
                    assert!(alive[p].load(Ordering::SeqCst), "the block is somebody else's");
                }
            })
        };
        let checkpointer = {
            let (epochs, place, alive) = (epochs.clone(), place.clone(), alive.clone());
            Box::new(move || {
                for (n, new) in (1u64..).zip(&alive[1..]) {
                    new.store(true, Ordering::SeqCst);
                    let old = place.swap(n, Ordering::SeqCst);
                    epochs.wait_for_earlier();
                    alive[usize::try_from(old).expect("small")].store(false, Ordering::SeqCst);
                }
            })
        };
        together(vec![reader(), reader(), checkpointer]);
    });
}

/// A disk with a cache: what was written is durable after a sync that began later.
#[derive(Default)]
struct Disk {
    cache: Mutex<Cache>,
    /// The sync that fails; 0: none.
    bad_sync: u64,
}

#[derive(Default)]
struct Cache {
    written: BTreeSet<u64>,
    durable: BTreeSet<u64>,
    syncs: u64,
    running: u64,
    failed: bool,
}

/// A record that stands for the data `id`: the mapping of a new block, or a cut after a write in place; or one that
/// changes the catalog alone.
fn record(id: u64) -> (Record, bool) {
    let (version, volume) = (VersionId(id), VolumeId(id));
    match id % 3 {
        0 => (Record::Map { version, l: 0, n: 1, p: Phys(0) }, true),
        1 => {
            let (snapshot, head_epoch, name) = (version, Epoch(0), String::new());
            let entry = CutEntry { volume, snapshot, head_epoch, consistency: Consistency::Crash, name };
            (Record::Cut { created_at: 0, entries: vec![entry], labels: Labels::new() }, true)
        }
        _ => (Record::Attach { volume, attached: true }, false),
    }
}

/// The data that the records of a log block stand for.
fn data_of(block: &[u8]) -> Vec<u64> {
    let (header, body) = LogHeader::ref_from_prefix(block).expect("a whole block");
    let (mut lsn, mut stream) = (Lsn(header.lsn.get()), &body[..usize::from(header.len.get())]);
    let mut all = Vec::new();
    while let Some(payload) = read_frame(stream, lsn) {
        match Record::decode(payload).expect("a whole record") {
            Record::Map { version, .. } => all.push(version.0),
            Record::Cut { entries, .. } => all.extend(entries.iter().map(|e| e.volume.0)),
            _ => {}
        }
        let bytes = frame_bytes(payload.len());
        (lsn, stream) = (Lsn(lsn.0 + bytes as u64), &stream[bytes..]);
    }
    all
}

impl Io for Disk {
    async fn read(&self, _: u64, _: Sink<'_>) -> io::Result<()> {
        unreachable!("a log is not read while it is written")
    }

    async fn write(&self, _: u64, from: Source<'_>) -> io::Result<()> {
        let Source::Memory(blocks) = from else { unreachable!("the log writes from memory") };
        for id in blocks.chunks(4096).flat_map(data_of) {
            assert!(self.cache.lock().durable.contains(&id), "a record goes before its data (H2)");
        }
        shuttle::future::yield_now().await;
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        let before = {
            let mut c = self.cache.lock();
            c.syncs += 1;
            c.running += 1;
            assert_eq!(c.running, 1, "two syncs at once (H11)");
            assert!(!c.failed, "a sync after one that failed");
            c.written.clone()
        };
        shuttle::future::yield_now().await;
        let mut c = self.cache.lock();
        c.running -= 1;
        if c.syncs == self.bad_sync {
            c.failed = true;
            return Err(io::Error::other("the disk"));
        }
        c.durable.extend(before);
        Ok(())
    }
}

fn group_commit(bad_sync: u64) {
    let disk = Arc::new(Disk { bad_sync, ..Disk::default() });
    let start = Resume { durable: Lsn(0), head: Lsn(0), next: Position { index: 0, chain: 0 }, tail: 0 };
    let ring = Ring::heap(SharedBytes::new(8192));
    let log = Arc::new(Log::new(ring, (0, 64), [1; 16], 1, Arc::new(Poison::default()), start));
    let client = |t: u64| -> Box<dyn FnOnce() + Send> {
        let (disk, log) = (disk.clone(), log.clone());
        Box::new(move || {
            for id in [2 * t, 2 * t + 1] {
                let (record, of_data) = record(id);
                if of_data {
                    disk.cache.lock().written.insert(id);
                }
                assert!(log.try_reserve(Log::frame_len(&record)));
                let (lsn, _) = log.append([&record]);
                match block_on(log.flush(&*disk, false)) {
                    Ok(()) => {
                        assert!(
                            !of_data || disk.cache.lock().durable.contains(&id),
                            "answered by a sync begun before (H10)"
                        );
                        assert!(log.durable() >= lsn, "the record is not on disk");
                    }
                    Err(FlushError::Failed(_)) => assert!(disk.cache.lock().failed),
                    Err(FlushError::NeedCheckpoint) => unreachable!("the log is large enough"),
                }
            }
        })
    };
    together((0..3).map(client).collect());
}

/// H2, H8, H10: a flush that is answered made everything before it durable, whoever ran the sync.
#[test]
fn a_flush_covers_what_came_before_it() {
    check(|| group_commit(0));
}

/// H11: after a failed sync no flush is answered as if nothing had happened, and none waits for ever.
#[test]
fn a_failed_sync_fails_everybody() {
    for bad in [1, 2, 3] {
        check(move || group_commit(bad));
    }
}
