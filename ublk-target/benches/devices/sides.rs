//! What is measured: each a block device, gone when dropped.

use crate::bench::{run, text};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use store::{Consistency, InitOptions, Labels, OpenOptions, Pool, SnapshotSpec};
use tempfile::TempDir;
use ublk_target::holder::Pocket;
use ublk_target::{Attached, FuseLoop, FuseLoopOptions, Identity, Transport, VolumeKey, freeze};

/// A block device.
pub trait Side {
    fn device(&self) -> PathBuf;
    /// In place of the last one; false: this has none.
    fn snapshot(&mut self) -> Result<bool, String>;
}

fn shown(e: impl std::fmt::Display) -> String {
    e.to_string()
}

/// A volume of a pool, through FUSE + loop.
pub struct Volume {
    dir: TempDir,
    _ring: TempDir,
    pool: Arc<Pool>,
    attached: Box<dyn Attached>,
    snapshots: u64,
}

impl Volume {
    pub fn new(parent: &Path, bytes: u64) -> Result<Self, String> {
        let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(parent).map_err(shown)?;
        let ring = tempfile::tempdir_in("/dev/shm").map_err(shown)?;
        let size = InitOptions { size_bytes: Some(bytes * 4), ..InitOptions::default() };
        Pool::init(dir.path(), &size).map_err(shown)?;
        let ring_dir = Some(ring.path().to_owned());
        let options = OpenOptions { ring_dir, wait_for_lock: true, cache_bytes: 64 << 20 };
        let pool = Pool::open(dir.path(), &options).map_err(shown)?;
        pool.create_volume("v", bytes, Labels::new()).map_err(shown)?;
        let volume = pool.open_volume("v").map_err(shown)?;
        let options = FuseLoopOptions { link_dir: dir.path().join("links"), ..FuseLoopOptions::default() };
        let key = VolumeKey { pool_id: "bench".into(), volume_id: std::process::id().into() };
        let transport = FuseLoop::new(Arc::new(Pocket::default()), options);
        let attached = transport.attach(volume, &Identity::new(key, "bench")).map_err(shown)?;
        Ok(Self { dir, _ring: ring, pool, attached, snapshots: 0 })
    }

    fn cut(&mut self) -> Result<(), String> {
        self.snapshots += 1;
        let name = format!("s{}", self.snapshots);
        let spec = SnapshotSpec { volume: "v".into(), name, consistency: Consistency::Crash };
        self.pool.create_snapshots(&[spec], Labels::new()).map(drop).map_err(shown)
    }

    /// A snapshot with the file system at rest, as the agent takes it; the older ones stay.
    pub fn snapshot_frozen(&mut self) -> Result<(), String> {
        let (device, run_dir) = (self.attached.device(), self.dir.path().join("run"));
        fs::create_dir_all(&run_dir).map_err(shown)?;
        let frozen = freeze::freeze(self.attached.device_number(), device, Duration::from_secs(10), &run_dir);
        let frozen = frozen.map_err(shown)?.ok_or("the volume is not mounted")?;
        self.cut()?;
        if frozen.thaw() { Ok(()) } else { Err("the file system was not frozen all the time".into()) }
    }
}

impl Side for Volume {
    fn device(&self) -> PathBuf {
        self.attached.device().to_owned()
    }

    fn snapshot(&mut self) -> Result<bool, String> {
        for s in self.pool.snapshots(Some("v")).map_err(shown)? {
            self.pool.delete_snapshot("v", &s.name).map_err(shown)?;
        }
        self.pool.settle().map_err(shown)?;
        self.cut().map(|()| true)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // udev may still look at it.
        for _ in 0..50 {
            match self.attached.detach() {
                Ok(()) => return,
                Err(e) => eprintln!("{e}"),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// A loop device of the kernel.
struct Loop(PathBuf);

impl Loop {
    fn over(file: &Path) -> Result<Self, String> {
        let name = run("losetup", &["-f", "--show", "--direct-io=on", "--sector-size=4096", &text(file)])?;
        Ok(Self(name.trim().into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Err(e) = run("losetup", &["-d", &text(&self.0)]) {
            eprintln!("{e}");
        }
    }
}

/// A loop device of the kernel on a plain file that the disk holds.
pub struct Plain {
    device: Loop,
    _dir: TempDir,
}

impl Plain {
    pub fn new(parent: &Path, bytes: u64) -> Result<Self, String> {
        let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(parent).map_err(shown)?;
        let path = dir.path().join("plain");
        let mut file = File::create(&path).map_err(shown)?;
        let piece = vec![0x55; 1 << 20];
        (0..bytes >> 20)
            .try_for_each(|_| file.write_all(&piece))
            .and_then(|()| file.sync_all())
            .map_err(shown)?;
        Ok(Self { device: Loop::over(&path)?, _dir: dir })
    }
}

impl Side for Plain {
    fn device(&self) -> PathBuf {
        self.device.0.clone()
    }
    fn snapshot(&mut self) -> Result<bool, String> {
        Ok(false)
    }
}

/// A qcow2 image that qemu shows as a file, and a loop device on that.
pub struct Qcow2 {
    /// None while the image is closed.
    served: Option<(Loop, Served)>,
    dir: TempDir,
    snapshots: u64,
}

/// qemu-storage-daemon.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        // Asked to end it writes its caches; it has no others' data.
        let _ = run("kill", &["-TERM", &self.0.id().to_string()]);
        let _ = self.0.wait();
    }
}

impl Qcow2 {
    pub fn new(parent: &Path, bytes: u64) -> Result<Self, String> {
        let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(parent).map_err(shown)?;
        let mut new = Self { served: None, dir, snapshots: 0 };
        File::create(new.shown_at()).map_err(shown)?;
        run("qemu-img", &["create", "-q", "-f", "qcow2", &text(&new.image()), &bytes.to_string()])?;
        new.serve()?;
        Ok(new)
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image.qcow2")
    }

    fn shown_at(&self) -> PathBuf {
        self.dir.path().join("shown")
    }

    fn serve(&mut self) -> Result<(), String> {
        let (image, at) = (text(&self.image()), text(&self.shown_at()));
        let file = format!("driver=file,node-name=file,filename={image},cache.direct=on,aio=io_uring");
        let child = Command::new("qemu-storage-daemon")
            .args(["--blockdev", &file])
            .args(["--blockdev", "driver=qcow2,node-name=image,file=file,cache.direct=on"])
            .args(["--export", &format!("type=fuse,id=bench,node-name=image,mountpoint={at},writable=on")])
            .stdin(Stdio::null())
            .spawn();
        let served = Served(child.map_err(|e| format!("qemu-storage-daemon: {e}"))?);
        // The file is empty until qemu is mounted on it.
        for _ in 0..1000 {
            if fs::metadata(self.shown_at()).is_ok_and(|now| now.len() > 0) {
                self.served = Some((Loop::over(&self.shown_at())?, served));
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err("qemu-storage-daemon shows nothing".into())
    }
}

impl Side for Qcow2 {
    fn device(&self) -> PathBuf {
        self.served.as_ref().expect("served but in a snapshot").0.0.clone()
    }

    fn snapshot(&mut self) -> Result<bool, String> {
        drop(self.served.take());
        let image = text(&self.image());
        if self.snapshots > 0 {
            run("qemu-img", &["snapshot", "-d", &self.snapshots.to_string(), &image])?;
        }
        self.snapshots += 1;
        run("qemu-img", &["snapshot", "-c", &self.snapshots.to_string(), &image])?;
        self.serve().map(|()| true)
    }
}
