//! How long a device answers nobody: a reader that asks every millisecond.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Asks no page cache.
pub const O_DIRECT: i32 = libc::O_DIRECT;

#[repr(align(4096))]
struct Page([u8; 4096]);

/// Reads the first block of each of these devices, all at once, and prints how long after `then` they answered.
pub fn report_answers(what: &str, devices: &[PathBuf], then: Instant) {
    let ask = |device: &Path| {
        let file = File::options().read(true).custom_flags(O_DIRECT).open(device).expect("the device opens");
        file.read_exact_at(&mut Box::new(Page([0; 4096])).0, 0).expect("no read fails");
        then.elapsed()
    };
    let answers: Vec<Duration> = std::thread::scope(|scope| {
        let asking: Vec<_> = devices.iter().map(|device| scope.spawn(move || ask(device))).collect();
        asking.into_iter().map(|asking| asking.join().expect("no read fails")).collect()
    });
    report(what, &answers);
}

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

    /// How many answers there were.
    pub fn answers(&self) -> usize {
        self.answers.lock().expect("nobody panics with it").len()
    }

    /// The longest time between two answers, of which the second came after `then`.
    pub fn longest_silence_since(&self, then: Instant) -> Duration {
        let answers = self.answers.lock().expect("nobody panics with it");
        let pairs = answers.windows(2).filter(|pair| pair[1] > then);
        pairs.map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
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
    println!("{what}: {} silences, in ms: median {}, 90 % {}, max {}", ms.len(), at(50), at(90), at(100));
}
