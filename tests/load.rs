//! Load that knows what it wrote: fio, over and over while something happens to the agent.

use crate::rig::{Ended, Rig, Running, host_tool, signal};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

/// What fio is to do.
pub struct Load(Vec<String>);

impl Load {
    /// Writes of many sizes, each read again and compared, and fsyncs between them.
    fn verified(name: &str, size_mib: u32) -> Vec<String> {
        let mut words: Vec<_> =
            ["--rw=randrw", "--rwmixread=30", "--bsrange=4k-64k", "--ioengine=libaio", "--iodepth=16"]
                .map(String::from)
                .into();
        words.extend(["--direct=1", "--fsync=128", "--randrepeat=0"].map(String::from));
        words.extend(["--verify=crc32c", "--verify_fatal=1", "--verify_backlog=256"].map(String::from));
        words.insert(0, format!("--size={size_mib}M"));
        words.insert(0, format!("--name={name}"));
        words
    }

    /// On files in a directory.
    pub fn on_files(dir: &Path) -> Self {
        let mut words = Self::verified("files", 200);
        words.push(format!("--directory={}", dir.display()));
        Self(words)
    }

    /// On the first part of a device.
    pub fn on_device(device: &Path, size_mib: u32) -> Self {
        let mut words = Self::verified("device", size_mib);
        words.push(format!("--filename={}", device.display()));
        Self(words)
    }

    /// Requests of these sizes (`4k-64k`), which begin at multiples of `align`.
    #[must_use]
    pub fn of_sizes(mut self, range: &str, align: u32) -> Self {
        self.0.extend([format!("--bsrange={range}"), format!("--blockalign={align}")]);
        self
    }

    /// Discards of another part of the same device meanwhile, at most `per_second` of 16 KiB.
    #[must_use]
    pub fn and_discards(mut self, device: &Path, from_mib: u32, size_mib: u32, per_second: u32) -> Self {
        let words = ["--name=discards", "--rw=randtrim", "--bs=16k", "--ioengine=libaio", "--direct=1"];
        self.0.extend(words.map(String::from));
        self.0.push(format!("--offset={from_mib}M"));
        self.0.push(format!("--size={size_mib}M"));
        self.0.push(format!("--rate_iops={per_second}"));
        self.0.push(format!("--filename={}", device.display()));
        self
    }

    fn command(&self) -> Command {
        let mut fio = host_tool("fio");
        // It would write its state into the directory that it is started in.
        fio.args(["--output-format=terse", "--verify_state_save=0"]).args(&self.0);
        fio.stdout(Stdio::null()).stderr(Stdio::piped());
        fio
    }

    /// Once.
    pub fn run(&self) -> Ended {
        Running::start(&mut self.command()).end()
    }

    /// Over and over until `done`, or until it fails.
    fn run_until(&self, done: &AtomicBool) -> (u32, Ended) {
        let mut runs = 1;
        loop {
            let ended = self.run();
            if ended.code != Some(0) || done.load(Ordering::SeqCst) {
                return (runs, ended);
            }
            runs += 1;
        }
    }
}

/// Runs the load over and over while `happens`; how many runs there were, none of which may fail.
///
/// # Panics
/// If the load meets an error or reads what it did not write, or if `happens` panics.
pub fn under_load(rig: &Rig, load: &Load, happens: impl FnOnce()) -> u32 {
    let done = AtomicBool::new(false);
    let (runs, ended) = std::thread::scope(|scope| {
        let running = scope.spawn(|| load.run_until(&done));
        let happened = catch_unwind(AssertUnwindSafe(happens));
        done.store(true, Ordering::SeqCst);
        if let Err(panic) = happened {
            // The load would wait for a device that nobody serves.
            rig.processes().into_iter().for_each(|pid| signal("KILL", pid));
            resume_unwind(panic);
        }
        running.join().expect("the load does not panic")
    });
    assert_eq!(ended.code, Some(0), "run {runs} of the load: {ended:?}\n{}", rig.log());
    runs
}
