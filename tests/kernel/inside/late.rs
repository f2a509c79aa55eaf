//! Writes that a dead agent's disk has not done yet: whoever serves next waits for them, however long that takes.

use crate::gaps::O_DIRECT;
use crate::group::Group;
use crate::rig_on;
use integration_tests::rig::{Rig, cowslip, ended, signal};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

/// A disk that the harness gives.
const DISK: &str = "/dev/ubde";
/// Time in which an agent that waits for nothing does its harm.
const CHANCE: Duration = Duration::from_millis(1500);

#[repr(align(4096))]
struct Piece([u8; 64 << 10]);

/// A group of processes whose writes to [`DISK`] get nowhere.
struct Slow(Group);

impl Slow {
    fn new() -> Self {
        let slow = Self(Group::new("slow", "io"));
        slow.limit("1024");
        slow
    }

    /// Bytes a second that its processes write.
    fn limit(&self, bytes: &str) {
        let number = fs::metadata(DISK).expect("the disk is there").rdev();
        let device = format!("{}:{} wbps={bytes}", libc::major(number), libc::minor(number));
        self.0.limit("io.max", &device);
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.limit("max");
    }
}

fn pool_on_disk() -> Rig {
    ended(cowslip().args(["-q", "pool", "init", DISK])).with(0);
    let rig = rig_on(Path::new(DISK));
    rig.start();
    rig
}

#[test]
fn late_writes_of_a_dead_agent_are_waited_for() {
    let rig = pool_on_disk();
    rig.ok("-q volume create v --size 64M");
    let device = rig.attach("v");
    let open = || File::options().read(true).write(true).custom_flags(O_DIRECT).open(&device);
    let file = open().expect("the device opens");
    let write = |file: &File, byte: u8| file.write_all_at(&Box::new(Piece([byte; 64 << 10])).0, 0);
    write(&file, 1).expect("the device takes it");
    let slow = Slow::new();
    let pid = rig.pid();
    slow.0.add(pid);
    let late = open().expect("the device opens");
    // Not a scoped one: where the device hangs, the test must be able to fail.
    let writer = std::thread::spawn(move || write(&late, 2).expect("no write fails"));
    std::thread::sleep(CHANCE / 3);
    assert!(!writer.is_finished(), "the disk is as slow as it was asked to be");
    signal("KILL", pid);
    // Whoever serves now is not slowed down, and is asked for the same write again.
    std::thread::sleep(CHANCE);
    assert!(!writer.is_finished(), "somebody served before the last write of the dead agent had landed");
    slow.limit("max");
    writer.join().expect("the write did not fail");
    rig.wait_for_another(pid);
    write(&file, 3).expect("the device takes it");
    let mut got = Box::new(Piece([0; 64 << 10]));
    file.read_exact_at(&mut got.0, 0).expect("the device answers");
    assert!(got.0.iter().all(|byte| *byte == 3), "an old write has overtaken a newer one");
    drop((file, slow));
    rig.ok("-q volume detach v");
    rig.stop_and_check();
}
