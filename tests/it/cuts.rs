//! The power fails under a file system on a volume: ext4 and XFS through FUSE + loop over a pool on a simulated disk, which loses,
//! keeps or reorders whatever no sync covered, at the end of a sync or in the middle of writes. Then the pool is opened again,
//! checked, mounted, and what had been fsynced is there. As xfstests generic/455, 457 and 482 ask it of a block device.

use crate::fsynced::Files;
use crate::rig::{Rig, random, tool, unmount};
use integration_tests::{has_program, seed, skip, times};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use store::io::BlockDev;
use store::io::sim::{SimDev, Survival};
use store::log::Ring;
use store::log::ring::SharedBytes;
use store::pool::{Environment, format_device, ring_bytes};
use store::{Consistency, Labels, Pool, SnapshotSpec, check_device};
use ublk_target::holder::Pocket;
use ublk_target::{Attached, FuseLoop, FuseLoopOptions, Identity, Transport, VolumeKey};

const POOL: u64 = 768 << 20;
const LOG: u64 = 8 << 20;
/// XFS is not made smaller.
const VOLUME: u64 = 320 << 20;
/// Steps of the workload for each cut.
const STEPS_A_CUT: u32 = 8;

/// When a cut is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// A sync has just ended.
    Flush,
    /// A write has just been done.
    Write,
}

/// A disk as it was at a cut: the writes that no sync covered are told apart.
struct Cut {
    when: When,
    /// Steps of the workload that had ended before.
    steps: u64,
    disk: SimDev,
}

/// A simulated disk that is copied when that was asked for.
struct Recorder {
    disk: SimDev,
    steps: AtomicU64,
    wanted: Mutex<Option<(When, u64)>>,
    cuts: Mutex<Vec<Cut>>,
}

impl Recorder {
    fn new(disk: SimDev) -> Arc<Self> {
        Arc::new(Self { disk, steps: AtomicU64::new(0), wanted: Mutex::default(), cuts: Mutex::default() })
    }

    /// Asks for a cut at such a moment, after `skip` others.
    fn want(&self, when: When, skip: u64) {
        *self.wanted.lock().expect("nobody panics with it") = Some((when, skip));
    }

    fn pass(&self, now: When) {
        let mut wanted = self.wanted.lock().expect("nobody panics with it");
        match &mut *wanted {
            Some((when, skip)) if *when == now => {
                if let Some(less) = skip.checked_sub(1) {
                    *skip = less;
                    return;
                }
            }
            _ => return,
        }
        *wanted = None;
        // In this order: what had ended then is on the disk that is copied.
        let steps = self.steps.load(Ordering::SeqCst);
        let cut = Cut { when: now, steps, disk: self.disk.copy() };
        self.cuts.lock().expect("nobody panics with it").push(cut);
    }
}

impl BlockDev for Recorder {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.disk.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let done = self.disk.write_at(offset, buf);
        self.pass(When::Write);
        done
    }
    fn sync(&self) -> io::Result<()> {
        let done = self.disk.sync();
        self.pass(When::Flush);
        done
    }
    fn back(&self, offset: u64, len: u64) -> io::Result<()> {
        self.disk.back(offset, len)
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.disk.punch(offset, len)
    }
    fn len(&self) -> u64 {
        self.disk.len()
    }
    fn host_free(&self) -> Option<u64> {
        self.disk.host_free()
    }
}

/// A pool on a disk, its volume a block device; both end with it.
struct Served {
    pool: Arc<Pool>,
    attached: Box<dyn Attached>,
}

impl Served {
    /// `boot` tells the lives of the machine apart: the ring of an earlier one is gone.
    fn on(disk: Arc<dyn BlockDev>, boot: u8, rig: &Rig) -> Self {
        let environment = Environment {
            path: "sim".into(),
            boot_id: [boot; 16],
            ring: &mut |_, _| Ok(Ring::heap(SharedBytes::new(ring_bytes(LOG / 4096)))),
            read_only: false,
            background: true,
            cache_bytes: 4 << 20,
            slice_leaves: 64,
        };
        let pool = Pool::open_on(disk, environment).expect("the pool opens");
        if pool.volumes().is_empty() {
            pool.create_volume("v", VOLUME, Labels::new()).expect("there is room");
        }
        let options = FuseLoopOptions { link_dir: rig.path("links"), ..FuseLoopOptions::default() };
        let transport = FuseLoop::new(Arc::new(Pocket::default()), options);
        let key = VolumeKey { pool_id: rig.own_devices().into(), volume_id: 1 };
        let volume = pool.open_volume("v").expect("it is there");
        let attached = transport.attach(volume, &Identity::new(key, "v")).expect("it is attached");
        Self { pool, attached }
    }

    fn device(&self) -> &Path {
        self.attached.device()
    }

    fn end(self, rig: &Rig) {
        let Self { pool, attached } = self;
        // udev may still look at it.
        rig.eventually("the device is not in use", || attached.detach().is_ok());
        drop(attached);
        pool.close().expect("the pool closes");
    }
}

/// Steps, a cut in each row of some, and snapshots in between, so that blocks are written in place and elsewhere.
fn record(rig: &Rig, recorder: &Arc<Recorder>, mkfs: &[&str], cuts: u32, seed: u64) {
    let served = Served::on(recorder.clone(), 1, rig);
    tool(mkfs[0], mkfs[1..].iter().map(OsStr::new).chain([served.device().as_os_str()]));
    let dir = rig.mount(served.device(), "mnt", "defaults").join("work");
    fs::create_dir(&dir).expect("the volume is writable");
    tool("sync", ["-f".as_ref(), dir.as_os_str()]);
    let (mut files, mut draw) = (Files::new(seed), seed);
    for cut in 0..cuts {
        for step in 0..STEPS_A_CUT {
            if step == STEPS_A_CUT / 2 {
                match cut % 2 {
                    0 => recorder.want(When::Flush, random(&mut draw) % 4),
                    _ => recorder.want(When::Write, random(&mut draw) % 24),
                }
            }
            files.step_in(&dir).expect("the volume works");
            recorder.steps.store(files.steps(), Ordering::SeqCst);
        }
        let (volume, name) = ("v".to_owned(), format!("s{cut}"));
        let spec = SnapshotSpec { volume, name, consistency: Consistency::Crash };
        served.pool.create_snapshots(&[spec], Labels::new()).expect("there is room");
        if cut >= 2 {
            served.pool.delete_snapshot("v", &format!("s{}", cut - 2)).expect("it is there");
        }
    }
    unmount(dir.parent().expect("it has a parent"));
    served.end(rig);
}

/// What the disk may hold after a cut, opened, mounted and compared: how many files.
fn look(rig: &Rig, cut: &Cut, how: Survival, fsck: &[&str], seed: u64, draw: &mut u64) -> usize {
    let disk: Arc<dyn BlockDev> = Arc::new(cut.disk.after_cut(how, &mut || random(draw)));
    let found = check_device(&disk, &mut |_, _| {}).expect("the pool can be checked").findings;
    assert_eq!(found, vec![], "after step {}, {:?}, {how:?}", cut.steps, cut.when);
    let served = Served::on(disk, 2, rig);
    let dir = rig.mount(served.device(), "mnt", "defaults");
    let compared = Files::check(seed, cut.steps, &dir.join("work"));
    unmount(&dir);
    tool(fsck[0], fsck[1..].iter().map(OsStr::new).chain([served.device().as_os_str()]));
    served.end(rig);
    compared
}

/// `tears`: single sectors of a write may be lost, too.
fn nothing_fsynced_is_missing(mkfs: &[&str], fsck: &[&str], package: &str, tears: Survival) {
    if !has_program(mkfs[0]) {
        return skip(&format!("{} is missing: install {package}", mkfs[0]));
    }
    let Some(rig) = Rig::without_agent() else { return };
    let (seed, cuts) = (seed(), times("COWSLIP_CUTS", 4));
    let disk = SimDev::new(POOL);
    // Whoever reads a block that was never written sees this.
    disk.poison(0xa5);
    format_device(&disk, LOG).expect("a pool fits");
    let recorder = Recorder::new(disk);
    record(&rig, &recorder, mkfs, cuts, seed);
    let recorded = std::mem::take(&mut *recorder.cuts.lock().expect("nobody panics with it"));
    assert!(recorded.len() * 2 > cuts as usize, "{} of {cuts} cuts were made", recorded.len());
    let mut draw = !seed;
    for cut in &recorded {
        let ways = [Survival::Nothing, Survival::Writes, tears, Survival::All];
        let how = ways[usize::try_from(random(&mut draw) % 4).expect("small")];
        let compared = look(&rig, cut, how, fsck, seed, &mut draw);
        println!("after step {}, {:?}, {how:?}: {compared} files are what they were", cut.steps, cut.when);
    }
}

#[test]
fn ext4_keeps_what_was_fsynced() {
    nothing_fsynced_is_missing(&["mkfs.ext4", "-q"], &["e2fsck", "-fn"], "e2fsprogs", Survival::Sectors);
}

#[test]
fn xfs_keeps_what_was_fsynced() {
    nothing_fsynced_is_missing(&["mkfs.xfs", "-q"], &["xfs_repair", "-n"], "xfsprogs", Survival::Writes);
}
