//! ublk without copies: which requests go so, and what becomes of those that cannot.

use integration_tests::rig::{noise, random};
use integration_tests::seed;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use store::io::AlignedBuf;
use store::{InitOptions, Labels, OpenOptions, Pool};
use tempfile::TempDir;
use ublk_target::{Attached, Identity, Transport, Ublk, UblkOptions, VolumeKey};

/// Of the device, each thread's own.
const PART: u64 = 8 << 20;

/// A device that this process serves itself.
struct Device {
    attached: Box<dyn Attached>,
    pool: Arc<Pool>,
    /// Memory that its queues locked, in KiB.
    locked_kib: u64,
    _dirs: [TempDir; 2],
}

impl Device {
    fn new(options: &UblkOptions, block_size: u32) -> Self {
        let dirs = ["/var/tmp", "/run"].map(|parent| tempfile::tempdir_in(parent).expect("it is writable"));
        let [on_disk, in_memory] = dirs.each_ref().map(|dir| dir.path().to_owned());
        let init = InitOptions { size_bytes: Some(256 << 20), ..InitOptions::default() };
        let id = Pool::init(&on_disk.join("pool"), &init).expect("there is room").id;
        let open = OpenOptions { ring_dir: Some(in_memory.clone()), ..OpenOptions::default() };
        let pool = Pool::open(&on_disk.join("pool"), &open).expect("it was just made");
        let volume = pool.create_volume("v", 64 << 20, Labels::new()).expect("there is room");
        let links = UblkOptions { link_dir: in_memory.clone(), properties_dir: in_memory, ..options.clone() };
        let key = VolumeKey { pool_id: id.clone(), volume_id: volume.id };
        let identity = Identity { block_size, ..Identity::new(key, "v") };
        let disk = pool.open_volume("v").expect("it was just made");
        let before = locked_kib();
        let attached = Ublk::new(&id, links)
            .and_then(|ublk| ublk.attach(disk, &identity))
            .expect("this kernel has ublk");
        Self { attached, pool, locked_kib: locked_kib() - before, _dirs: dirs }
    }

    /// Writes and reads of 1 to 16 times `unit` bytes, eight at once, all compared; how often data were copied for them.
    /// By threads: this process serves the device, and its rings do not survive a fork in this kernel.
    fn copies_under_load(&self, unit: u64) -> Option<u64> {
        let work = |part: u64| {
            let mut options = File::options();
            options.read(true).write(true).custom_flags(libc::O_DIRECT);
            let file = options.open(self.attached.device()).expect("the device opens");
            let mut state = seed() + part;
            for _ in 0..200 {
                let len = usize::try_from((1 + random(&mut state) % 16) * unit).expect("small");
                let at = part * PART + random(&mut state) % (PART / 2 / unit) * unit;
                let (mut written, mut read) = (AlignedBuf::zeroed(len), AlignedBuf::zeroed(len));
                written.copy_from_slice(&noise(state, len));
                file.write_all_at(&written, at).expect("no write fails");
                file.read_exact_at(&mut read, at).expect("no read fails");
                assert!(written[..] == read[..], "{len} bytes at {at} are others");
            }
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|part| scope.spawn(move || work(part))).collect();
            threads.into_iter().for_each(|thread| thread.join().expect("all is what was written"));
        });
        self.attached.copies()
    }

    fn end(self) {
        self.attached.detach().expect("nobody uses it");
        drop(self.attached);
        self.pool.close().expect("nothing failed");
    }
}

/// Memory of this process that is locked, in KiB.
fn locked_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("there is /proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).expect("it is told");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn requests_of_whole_blocks_are_not_copied() {
    let device = Device::new(&UblkOptions::default(), 4096);
    assert_eq!(device.copies_under_load(4096), Some(0), "this kernel offers it");
    assert_eq!(device.locked_kib, 0, "there is no memory to copy to");
    device.end();
}

#[test]
fn requests_whose_pages_cannot_be_registered_are_copied() {
    let device = Device::new(&UblkOptions { zero_copy_places: 1, ..UblkOptions::default() }, 4096);
    let copies = device.copies_under_load(4096).expect("it goes without where it can");
    assert!(copies > 100, "one request of a queue can be registered at a time: {copies} were copied");
    println!("{copies} copies");
    device.end();
}

#[test]
fn requests_of_parts_of_blocks_are_copied() {
    let device = Device::new(&UblkOptions::default(), 512);
    let copies = device.copies_under_load(512).expect("it goes without where it can");
    assert!(copies > 100, "{copies}");
    device.end();
}

#[test]
fn without_zero_copy_all_are_copied_to_locked_memory() {
    let device = Device::new(&UblkOptions { zero_copy: false, ..UblkOptions::default() }, 4096);
    assert_eq!(device.copies_under_load(4096), None);
    assert!(device.locked_kib > 0);
    device.end();
}
