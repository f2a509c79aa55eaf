//! What a device does while its server lives.

use super::Test;
use super::file_disk::FileDisk;
use super::rig::{Rig, run, wait_for};
use parking_lot::Mutex;
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use ublk_target::{Disk, FdStore, FuseLoop, FuseLoopOptions, Identity, Transport, VolumeKey};

pub const TESTS: &[Test] = &[
    ("device::requests_reach_the_disk", &["blkdiscard"], requests_reach_the_disk),
    ("device::flush_errors_are_passed_on", &[], flush_errors_are_passed_on),
    ("device::grows_while_mounted", &["mkfs.xfs", "xfs_growfs", "xfs_repair", "mount"], grows_while_mounted),
    ("device::ext4_grows", &["mkfs.ext4", "resize2fs", "e2fsck", "mount"], ext4_grows),
    ("device::busy_is_not_detached", &["mkfs.ext4", "mkfs.btrfs", "mount"], busy_is_not_detached),
    ("device::fifty_cycles_leak_nothing", &[], fifty_cycles_leak_nothing),
    ("device::bad_volumes_are_refused", &[], bad_volumes_are_refused),
    ("device::a_device_begins_with_few_threads", &[], a_device_begins_with_few_threads),
    ("device::cleared_from_outside", &["losetup"], cleared_from_outside),
];

const MIB: u64 = 1 << 20;

fn sys(device: &Path, attribute: &str) -> String {
    let name = device.file_name().unwrap().to_str().unwrap();
    std::fs::read_to_string(format!("/sys/block/{name}/{attribute}")).unwrap().trim().to_owned()
}

fn requests_reach_the_disk() {
    let rig = Rig::new(16 * MIB);
    let device = rig.device();
    assert_eq!(std::fs::read_link(rig.dir().join("links/ein Täst")).unwrap(), device);
    assert_eq!(sys(&device, "queue/logical_block_size"), "4096");
    assert_eq!(sys(&device, "loop/dio"), "1");
    assert!(sys(&device, "queue/scheduler").contains("[none]"), "{}", sys(&device, "queue/scheduler"));
    let open = |flags| File::options().read(true).write(true).custom_flags(flags).open(&device).unwrap();

    let file = open(0);
    file.write_all_at(&vec![0x5a; 2 << 20], MIB).unwrap();
    file.sync_all().unwrap();
    assert!(rig.events().contains(&"flush".into()), "fsync flushes");
    let mut image = vec![0; 4 << 20];
    File::open(rig.dir().join("disk.img")).unwrap().read_exact_at(&mut image, 0).unwrap();
    assert!(image[1 << 20..3 << 20].iter().all(|&b| b == 0x5a) && image[3 << 20..].iter().all(|&b| b == 0));

    rig.clear_events();
    open(libc::O_DSYNC).write_all_at(&[1; 4096], 0).unwrap();
    let events = rig.events();
    let position = |what: &str| events.iter().position(|event| event == what);
    assert!(position("write") < position("flush") && position("flush").is_some(), "FUA: {events:?}");

    rig.clear_events();
    run("blkdiscard", &["-o", "1M", "-l", "1M", device.to_str().unwrap()]);
    run("blkdiscard", &["-z", "-o", "2M", "-l", "64K", device.to_str().unwrap()]);
    let events = rig.events();
    assert!(events.contains(&format!("discard {MIB} {MIB}")), "{events:?}");
    assert!(events.contains(&format!("zero {} 65536", 2 * MIB)), "{events:?}");
    let mut zeros = vec![1; (1 << 20) + 65536];
    open(0).read_exact_at(&mut zeros, MIB).unwrap();
    assert!(zeros.iter().all(|&b| b == 0));
    let mut kept = [0; 4096];
    open(0).read_exact_at(&mut kept, 2 * MIB + 65536).unwrap();
    assert_eq!(kept, [0x5a; 4096]);
}

fn flush_errors_are_passed_on() {
    let rig = Rig::new(16 * MIB);
    let file = File::options().write(true).custom_flags(libc::O_DIRECT).open(rig.device()).unwrap();
    rig.ask("fail-flush on").unwrap();
    for _ in 0..2 {
        assert_eq!(file.sync_all().unwrap_err().raw_os_error(), Some(libc::EIO));
    }
    rig.ask("fail-flush off").unwrap();
    rig.clear_events();
    file.sync_all().unwrap();
    assert_eq!(rig.events(), ["flush"], "the kernel still asks");
}

fn grows_while_mounted() {
    let mut rig = Rig::new(320 * MIB);
    let device = rig.device();
    let sectors = |mib: u64| (mib * MIB / 512).to_string();
    run("mkfs.xfs", &["-q", "-K", device.to_str().unwrap()]);
    let point = rig.mount();
    std::fs::write(point.join("before"), "kept").unwrap();
    rig.ask(&format!("grow {}", 480 * MIB)).unwrap();
    assert_eq!(sys(&device, "size"), sectors(480));
    run("xfs_growfs", &[point.to_str().unwrap()]);
    // More than there was room for before.
    std::fs::write(point.join("large"), vec![9; 340 << 20]).unwrap();
    assert_eq!(std::fs::read_to_string(point.join("before")).unwrap(), "kept");
    // The next server finds the size, and can grow it too.
    rig.kill_server();
    rig.ask(&format!("grow {}", 512 * MIB)).unwrap();
    assert_eq!(sys(&device, "size"), sectors(512));
    run("xfs_growfs", &[point.to_str().unwrap()]);
    rig.unmount();
    run("xfs_repair", &["-n", device.to_str().unwrap()]);
    // The end of the device is the end of the disk.
    let file = File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(&device).unwrap();
    let mut end = vec![0; 8192];
    let at = end.as_ptr().align_offset(4096);
    file.read_exact_at(&mut end[at..at + 4096], 512 * MIB - 4096).unwrap();
    assert_eq!(file.read_at(&mut end[at..at + 4096], 512 * MIB).unwrap(), 0);
}

/// The file system's own way to grow while mounted; some machines do not let root do it (CAP_SYS_RESOURCE).
fn ext4_grows() {
    let mut rig = Rig::new(32 * MIB);
    let device = rig.device_str();
    run("mkfs.ext4", &["-q", "-E", "nodiscard", &device]);
    let point = rig.mount();
    rig.ask(&format!("grow {}", 96 * MIB)).unwrap();
    let online = std::process::Command::new("resize2fs").arg(&device).output().unwrap();
    if !online.status.success() {
        let said = String::from_utf8_lossy(&online.stderr).into_owned();
        assert!(said.contains("Permission denied"), "{said}");
        println!("  note: growing ext4 while it is mounted needs CAP_SYS_RESOURCE; grown unmounted instead");
        rig.unmount();
        run("e2fsck", &["-fp", &device]);
        run("resize2fs", &[&device]);
        rig.mount();
    }
    std::fs::write(point.join("large"), vec![9; 60 << 20]).unwrap();
    let refused = rig.ask(&format!("grow {}", 64 * MIB)).unwrap_err();
    assert!(refused.contains("cannot shrink"), "{refused}");
    rig.ask(&format!("grow {}", 96 * MIB)).unwrap();
    rig.unmount();
    run("e2fsck", &["-fn", &device]);
}

fn busy_is_not_detached() {
    let mut rig = Rig::new(128 * MIB);
    let device = rig.device_str();
    for make in ["mkfs.ext4", "mkfs.btrfs"] {
        let force = if make == "mkfs.ext4" { "-F" } else { "-f" };
        run(make, &["-q", force, &device]);
        let point = rig.mount();
        let busy = rig.ask("detach").unwrap_err();
        assert!(busy.contains("in use") && busy.contains(point.to_str().unwrap()), "{busy}");
        std::fs::write(point.join("file"), "goes on").unwrap();
        rig.unmount();
    }
    let open = File::open(&device).unwrap();
    let busy = rig.ask("detach").unwrap_err();
    assert!(busy.contains(&format!("open in process {}", std::process::id())), "{busy}");
    drop(open);
    rig.ask("detach").unwrap();
    rig.ask("detach").expect("twice is as good as once");
    assert!(!rig.is_ours(Path::new(&device)));
    assert!(!rig.dir().join("links/ein Täst").exists());
}

/// A store without a holder.
#[derive(Default)]
struct Pocket(Mutex<Vec<(String, OwnedFd)>>);

impl FdStore for Pocket {
    fn put(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.0.lock().push((name.to_owned(), fd.try_clone_to_owned()?));
        Ok(())
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.lock().retain(|(held, _)| held != name);
        Ok(())
    }
    fn take_all(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        self.0.lock().iter().map(|(name, fd)| Ok((name.clone(), fd.try_clone()?))).collect()
    }
}

fn count(dir: &str) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

fn named(name: &str) -> Identity {
    let key = VolumeKey {
        pool_id: "11111111111111111111111111111111".into(),
        volume_id: std::process::id().into(),
    };
    Identity::new(key, name)
}

fn transport(dir: &Path) -> (Arc<Pocket>, FuseLoop) {
    with_threads(dir, 2)
}

fn with_threads(dir: &Path, threads: usize) -> (Arc<Pocket>, FuseLoop) {
    let store = Arc::new(Pocket::default());
    let options = FuseLoopOptions { link_dir: dir.join("links"), threads, resend: true };
    (Arc::clone(&store), FuseLoop::new(store, options))
}

fn disk(dir: &Path, len: u64) -> Arc<FileDisk> {
    let path = dir.join("disk.img");
    File::create(&path).unwrap().set_len(len).unwrap();
    Arc::new(FileDisk::open(&path, None).unwrap())
}

fn fifty_cycles_leak_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, transport) = transport(dir.path());
    let disk = disk(dir.path(), 8 * MIB);
    let mut before = None;
    for round in 0..50u8 {
        let mut attached = transport.attach(disk.clone(), &named("cycle")).unwrap();
        let block = [round; 4096];
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_SYNC)
            .open(attached.device())
            .unwrap();
        file.write_all_at(&block, 4096).unwrap();
        drop(file);
        if round % 10 == 3 {
            attached.rename("renamed").unwrap();
            // Served again in the same process: dropping leaves the device alive.
            drop(attached);
            let resolve = |_: &VolumeKey| Some(("again".to_owned(), disk.clone() as Arc<dyn Disk>));
            let mut found = transport.recover(&resolve);
            let Some(ublk_target::Recovered::Live(live)) = found.pop() else { panic!("not recovered") };
            attached = live;
            assert!(dir.path().join("links/again").exists() && !dir.path().join("links/cycle").exists());
        }
        let mut read = [0; 4096];
        File::open(attached.device()).unwrap().read_exact_at(&mut read, 4096).unwrap();
        assert_eq!(read, block);
        wait_for("nobody (udev) to have it open", || attached.detach().is_ok());
        assert!(!attached.is_alive());
        drop(attached);
        assert!(store.0.lock().is_empty());
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let fuse_mounts = mounts.lines().filter(|line| line.contains("- fuse cowslip ")).count();
        let now = (count("/proc/self/fd"), count("/proc/self/task"), fuse_mounts);
        assert_eq!(*before.get_or_insert(now), now, "descriptors, threads, mounts after round {round}");
    }
    let ours = format!(".{:x}.", std::process::id());
    let left = std::fs::read_dir("/sys/block").unwrap().filter_map(|entry| {
        std::fs::read_to_string(entry.ok()?.path().join("loop/backing_file"))
            .ok()
            .filter(|name| name.contains(&ours))
    });
    assert_eq!(left.count(), 0, "loop devices");
    // A link from an earlier life points at a name that is not recovered; the one that was renamed away is gone too.
    transport.recover(&|_| None);
    assert_eq!(count(dir.path().join("links").to_str().unwrap()), 0, "links");
}

fn bad_volumes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (store, transport) = transport(dir.path());
    let disk = disk(dir.path(), 8 * MIB);
    for bad in ["", "..", "a/b", "a\0b", &"x".repeat(256)] {
        let error = transport.attach(disk.clone(), &named(bad)).err().expect("refused").to_string();
        assert!(error.contains("volume name"), "{error}");
    }
    for len in [0, 4095, 4097] {
        disk.grow(len).unwrap();
        let error = transport.attach(disk.clone(), &named("size")).err().expect("refused").to_string();
        assert!(error.contains("multiple of 4096"), "{error}");
    }
    assert!(store.0.lock().is_empty() && !dir.path().join("links").exists());
}

/// Threads of this process with that name.
fn threads(name: &str) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks.filter(|task| is_called(&task.as_ref().unwrap().path(), name)).count()
}

fn is_called(task: &Path, name: &str) -> bool {
    // One that has just ended has none.
    std::fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim_end() == name)
}

fn a_device_begins_with_few_threads() {
    let dir = tempfile::tempdir().unwrap();
    let (store, transport) = with_threads(dir.path(), 16);
    let disk = disk(dir.path(), 8 * MIB);
    let write = |device: &Path, fill: u8| {
        let file = File::options().write(true).custom_flags(libc::O_SYNC).open(device).unwrap();
        file.write_all_at(&[fill; 4096], 4096).unwrap();
    };
    // Gone again before the others come.
    for fill in 1..4 {
        let begun = Instant::now();
        let attached = transport.attach(disk.clone(), &named("few")).unwrap();
        write(attached.device(), fill);
        assert!(threads("cowslip-loop") <= 2 || begun.elapsed() >= Duration::from_secs(1));
        wait_for("nobody (udev) to have it open", || attached.detach().is_ok());
        assert!(!attached.is_alive());
        drop(attached);
        // A thread that was waited for may be listed for a moment more.
        wait_for("no thread", || threads("cowslip-loop") == 0 && threads("cowslip-later") == 0);
        assert!(store.0.lock().is_empty());
    }
    let attached = transport.attach(disk, &named("all")).unwrap();
    wait_for("all threads", || threads("cowslip-loop") == 16 && threads("cowslip-later") == 0);
    write(attached.device(), 9);
    let mut read = [0; 4096];
    File::open(attached.device()).unwrap().read_exact_at(&mut read, 4096).unwrap();
    assert!(read == [9; 4096]);
    wait_for("nobody (udev) to have it open", || attached.detach().is_ok());
    drop(attached);
    wait_for("no thread", || threads("cowslip-loop") == 0);
}

fn cleared_from_outside() {
    let dir = tempfile::tempdir().unwrap();
    let (store, transport) = transport(dir.path());
    let attached = transport.attach(disk(dir.path(), 8 * MIB), &named("cleared")).unwrap();
    run("losetup", &["-d", attached.device().to_str().unwrap()]);
    wait_for("the connection's end", || !attached.is_alive());
    assert!(attached.resize().unwrap_err().to_string().contains("is gone"));
    attached.detach().unwrap();
    assert!(store.0.lock().is_empty());
}
