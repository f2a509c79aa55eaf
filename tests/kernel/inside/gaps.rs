//! How long a device answers nobody: a reader that asks every millisecond.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Asks no page cache.
const O_DIRECT: i32 = libc::O_DIRECT;

#[repr(align(4096))]
struct Page([u8; 4096]);

/// A reader of a device's first block.
pub struct Prober {
    done: Arc<AtomicBool>,
    /// When each read came back.
    answers: Arc<Mutex<Vec<Instant>>>,
    reader: JoinHandle<()>,
}

impl Prober {
    pub fn start(device: &Path) -> Self {
        let file = File::options().read(true).custom_flags(O_DIRECT).open(device).expect("the device opens");
        let done = Arc::new(AtomicBool::new(false));
        let answers = Arc::new(Mutex::new(Vec::new()));
        let (stop, times) = (Arc::clone(&done), Arc::clone(&answers));
        // A thread of its own and not a scoped one: where the device hangs, the test must be able to fail.
        let reader = std::thread::spawn(move || {
            let mut page = Box::new(Page([0; 4096]));
            while !stop.load(Ordering::SeqCst) {
                file.read_exact_at(&mut page.0, 0).expect("no read fails");
                times.lock().expect("nobody panics with it").push(Instant::now());
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Self { done, answers, reader }
    }

    /// When the device answered first after `then`, if it did.
    pub fn answered_after(&self, then: Instant) -> Option<Duration> {
        let answers = self.answers.lock().expect("nobody panics with it");
        let first = answers.partition_point(|at| *at <= then);
        // The one after it: the first may have been on its way already.
        answers.get(first + 1).map(|at| *at - then)
    }

    /// Ends; fails the test if a read failed.
    pub fn stop(self) {
        self.done.store(true, Ordering::SeqCst);
        self.reader.join().expect("no read failed");
    }
}

/// Prints what the gaps were.
pub fn report(what: &str, gaps: &[Duration]) {
    let mut ms: Vec<u128> = gaps.iter().map(Duration::as_millis).collect();
    ms.sort_unstable();
    let at = |part: usize| ms.get((ms.len().max(1) - 1) * part / 100).copied().unwrap_or_default();
    println!("{what}: {} kills, gap in ms: median {}, 90 % {}, max {}", ms.len(), at(50), at(90), at(100));
}
