//! A disk that remembers every write and every flush: each state that a power cut could leave can be made from it.
//!
//! The disk is a file of a small FUSE file system under a loop device with direct I/O, so what the kernel sends to a
//! disk arrives here in its order, flushes too. Between two flushes a real disk may keep any part of what was written;
//! [`Cuts::torn`] makes such states by sectors.

use super::support::{Chance, run};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, INodeNo, KernelConfig, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};
use parking_lot::Mutex;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

const SECTOR: usize = 512;
const DISK: INodeNo = INodeNo(2);
const TTL: Duration = Duration::from_secs(3600);

/// What reached the disk.
#[derive(Debug, Clone)]
pub enum Event {
    Write { at: usize, bytes: Vec<u8> },
    Zero { at: usize, len: usize },
    Flush,
}

#[derive(Default)]
struct State {
    disk: Vec<u8>,
    events: Vec<Event>,
}

/// The disk while it is in use; dropping it unmounts and detaches everything.
pub struct Recorder {
    state: Arc<Mutex<State>>,
    first: Vec<u8>,
    session: Option<fuser::BackgroundSession>,
    dir: PathBuf,
    device: Option<String>,
    mounted: Option<PathBuf>,
}

impl Recorder {
    /// A disk with the content of `image`, mounted with `options` at `dir/mnt`.
    pub fn mount(image: &[u8], dir: &Path, options: &str) -> Result<Self, String> {
        let state = Arc::new(Mutex::new(State { disk: image.to_vec(), events: Vec::new() }));
        let fuse = dir.join("disk");
        std::fs::create_dir_all(&fuse).map_err(|e| e.to_string())?;
        let server = Server { state: state.clone() };
        let session = fuser::spawn_mount(server, &fuse, &fuser::Config::default());
        let session = session.map_err(|e| format!("mounting the recorder: {e}"))?;
        let mut recorder = Self {
            state,
            first: image.to_vec(),
            session: Some(session),
            dir: fuse.clone(),
            device: None,
            mounted: None,
        };
        let file = fuse.join("disk");
        let device = run("losetup", &["--direct-io=on", "--find", "--show", file.to_str().unwrap()])?;
        let device = device.trim().to_owned();
        recorder.device = Some(device.clone());
        let at = dir.join("mnt");
        std::fs::create_dir_all(&at).map_err(|e| e.to_string())?;
        run("mount", &["-o", options, &device, at.to_str().unwrap()])?;
        recorder.mounted = Some(at);
        Ok(recorder)
    }

    /// Where the file system is mounted.
    pub fn root(&self) -> &Path {
        self.mounted.as_deref().expect("it is mounted until the end")
    }

    /// Device under the file system.
    pub fn device(&self) -> &str {
        self.device.as_deref().expect("it is attached until the end")
    }

    /// Number of events so far, to cut there.
    pub fn now(&self) -> usize {
        self.state.lock().events.len()
    }

    /// Content of the disk as it is now.
    pub fn disk(&self) -> Vec<u8> {
        self.state.lock().disk.clone()
    }

    /// What a power cut could have left up to now.
    pub fn cuts(&self) -> Cuts {
        Cuts { disk: self.first.clone(), done: 0, events: self.state.lock().events.clone() }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if let Some(at) = self.mounted.take() {
            let at = at.to_str().unwrap();
            if run("umount", &[at]).is_err() {
                let _ = run("umount", &["-l", at]);
            }
        }
        if let Some(device) = self.device.take() {
            let _ = run("losetup", &["--detach", &device]);
        }
        // The loop device lets go of the file a little later; until then a plain unmount is busy.
        let _ = run("umount", &["-l", self.dir.to_str().unwrap()]);
        if let Some(session) = self.session.take() {
            let _ = session.umount_and_join();
        }
    }
}

/// States of the disk in the order of time.
pub struct Cuts {
    disk: Vec<u8>,
    /// Events that `disk` holds.
    done: usize,
    events: Vec<Event>,
}

impl Cuts {
    /// Number of events.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Positions right before each flush, where all that was written may be there; and the end.
    pub fn flushes(&self) -> Vec<usize> {
        let mut found: Vec<usize> = self
            .events
            .iter()
            .enumerate()
            .filter(|(_, event)| matches!(event, Event::Flush))
            .map(|(at, _)| at)
            .collect();
        found.push(self.events.len());
        found
    }

    /// The disk with the first `upto` events; not before an earlier call's.
    pub fn state(&mut self, upto: usize) -> &[u8] {
        assert!(upto >= self.done, "cuts go forward");
        for event in &self.events[self.done..upto] {
            apply(&mut self.disk, event, &mut |_| true);
        }
        self.done = upto;
        &self.disk
    }

    /// As [`Cuts::state`] with the events up to the last flush before `upto`, and of those after it some sectors only.
    pub fn torn(&mut self, upto: usize, chance: &mut Chance) -> Vec<u8> {
        let flushed =
            self.events[..upto].iter().rposition(|event| matches!(event, Event::Flush)).unwrap_or(0);
        // What was asked for before stays; then everything is there up to that point.
        let mut disk = self.state(flushed.max(self.done).min(upto)).to_vec();
        // Whole writes are lost, or kept, or torn.
        for event in &self.events[self.done..upto] {
            match chance.below(3) {
                0 => {}
                1 => apply(&mut disk, event, &mut |_| true),
                _ => apply(&mut disk, event, &mut |_| chance.below(2) == 0),
            }
        }
        disk
    }
}

fn apply(disk: &mut [u8], event: &Event, keep: &mut dyn FnMut(usize) -> bool) {
    let zeros;
    let (at, bytes) = match event {
        Event::Write { at, bytes } => (*at, &bytes[..]),
        Event::Zero { at, len } => {
            zeros = vec![0; *len];
            (*at, &zeros[..])
        }
        Event::Flush => return,
    };
    for (i, sector) in bytes.chunks(SECTOR).enumerate() {
        if keep(i) {
            disk[at + i * SECTOR..][..sector.len()].copy_from_slice(sector);
        }
    }
}

struct Server {
    state: Arc<Mutex<State>>,
}

impl Server {
    fn attr(&self, ino: INodeNo) -> FileAttr {
        let is_disk = ino == DISK;
        let size = if is_disk { self.state.lock().disk.len() as u64 } else { 0 };
        let epoch = SystemTime::UNIX_EPOCH;
        FileAttr {
            ino,
            size,
            blocks: size / 512,
            atime: epoch,
            mtime: epoch,
            ctime: epoch,
            crtime: epoch,
            kind: if is_disk { FileType::RegularFile } else { FileType::Directory },
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    fn range(&self, offset: u64, len: u64) -> Option<std::ops::Range<usize>> {
        let (start, len) = (usize::try_from(offset).ok()?, usize::try_from(len).ok()?);
        let end = start.checked_add(len)?;
        (end <= self.state.lock().disk.len()).then_some(start..end)
    }
}

impl Filesystem for Server {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let _ = config.set_max_write(1 << 20);
        Ok(())
    }

    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "disk" {
            reply.entry(&TTL, &self.attr(DISK), fuser::Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(ino));
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = self.state.lock();
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(state.disk.len());
        let end = start.saturating_add(usize::try_from(size).unwrap()).min(state.disk.len());
        reply.data(&state.disk[start..end]);
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Some(range) = self.range(offset, data.len() as u64) else { return reply.error(Errno::ENOSPC) };
        let mut state = self.state.lock();
        state.events.push(Event::Write { at: range.start, bytes: data.to_vec() });
        state.disk[range].copy_from_slice(data);
        reply.written(u32::try_from(data.len()).unwrap());
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        let Some(range) = self.range(offset, length) else { return reply.error(Errno::ENOSPC) };
        let mut state = self.state.lock();
        state.events.push(Event::Zero { at: range.start, len: range.len() });
        state.disk[range].fill(0);
        reply.ok();
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.state.lock().events.push(Event::Flush);
        reply.ok();
    }
}
