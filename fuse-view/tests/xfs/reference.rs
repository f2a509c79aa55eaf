//! A busy file system, and the kernel's mount of its cuts as the reference.

use crate::common::cuts::{CloneSpace, DeviceMount, Loop, clone};
use crate::common::tree::{Mask, differences, of_mount, of_view};
use crate::image::{mkfs_at, set_incompat};
use fuse_view::fs::open;
use fuse_view::source::FileImage;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Size of a disk in MiB.
const DISK_MIB: u64 = 96;

/// How a file system is made and mounted.
#[derive(Debug, Clone, Copy)]
pub struct Features {
    pub mkfs: &'static str,
    pub mount: &'static str,
    /// Bits of incompatible features set after mkfs.
    pub incompat: u32,
}

/// A mounted file system of which cuts are taken.
pub struct Busy {
    mount: Option<DeviceMount>,
    space: CloneSpace,
    disk: PathBuf,
    what: String,
    cuts: u64,
    /// Cuts that had something to replay.
    pub replayed: u64,
}

impl Busy {
    /// None, with a word about it, where this machine cannot.
    pub fn new(features: Features, what: &str) -> Option<Self> {
        Self::with(features, what, |_| ())
    }

    /// `before` gets the image before it is mounted.
    pub fn with(features: Features, what: &str, before: impl FnOnce(&Path)) -> Option<Self> {
        let space = CloneSpace::new(1 << 12)?;
        let disk = space.path("disk");
        mkfs_at(&disk, DISK_MIB, features.mkfs)?;
        if features.incompat != 0 {
            set_incompat(&disk, features.incompat);
        }
        before(&disk);
        let options = format!("noatime,{}", features.mount);
        let mount = DeviceMount::new(Loop::direct(&disk), &space.path("busy"), options.trim_end_matches(','))
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        Some(Self { mount: Some(mount), space, disk, what: what.into(), cuts: 0, replayed: 0 })
    }

    /// Where it is mounted.
    pub fn root(&self) -> &Path {
        &self.mount.as_ref().expect("it is mounted until the end").at
    }

    /// How often the log was begun anew: the cycle of its first sector.
    pub fn log_cycle(&self) -> u64 {
        let log = Log::of(&self.disk);
        log.cycle(0)
    }

    /// A copy of the disk as it is now.
    pub fn copy(&self, name: &str) -> PathBuf {
        let to = self.space.path(name);
        clone(&self.disk, &to);
        to
    }

    /// Takes a cut and compares it with the kernel's mount; its state of replay.
    pub fn cut(&mut self) -> String {
        // A name of its own: the loop device of the cut before may still be letting go of its file.
        let cut = self.copy(&format!("cut{}", self.cuts));
        let state = self.compare(&cut);
        let _ = std::fs::remove_file(&cut);
        state
    }

    /// Compares an image, which the kernel's recovery then changes.
    pub fn compare(&mut self, image: &Path) -> String {
        self.cuts += 1;
        let what = format!("{}, cut {}", self.what, self.cuts);
        let state = compare(image, &self.space.path("reference"), &what, Mask::default())
            .unwrap_or_else(|e| panic!("{what}: the kernel refuses: {e}"));
        self.replayed += u64::from(state == "replayed");
        state
    }

    /// Ends the mount cleanly and gives the disk out.
    pub fn unmount(&mut self) -> PathBuf {
        self.mount = None;
        self.disk.clone()
    }
}

/// Compares what the reader shows of `image` with what the kernel shows after its recovery, mounted at `at`; the error
/// is the kernel's refusal, which the reader must not answer with a claim.
pub fn compare(image: &Path, at: &Path, what: &str, mask: Mask) -> Result<String, String> {
    let before = std::fs::metadata(image).unwrap().modified().unwrap();
    let fs = open(Arc::new(FileImage::open(image).unwrap()));
    let ours = fs.as_ref().ok().map(|fs| of_view(&**fs));
    assert_eq!(
        before,
        std::fs::metadata(image).unwrap().modified().unwrap(),
        "{what}: the image was written"
    );
    // The kernel recovers in place; what differs is wanted as it was.
    let keep = std::env::var("COWSLIP_REPLAY_KEEP").ok();
    let kept = image.with_extension("kept");
    if keep.is_some() {
        std::fs::copy(image, &kept).unwrap();
    }
    let mount = match DeviceMount::new(Loop::new(image), at, "ro,nouuid,noatime") {
        Ok(mount) => mount,
        Err(e) => {
            let told = fs.map_or_else(|e| e.to_string(), |fs| fs.replay());
            assert!(!matches!(&told[..], "clean" | "replayed"), "{what}: the kernel refuses {e}, we: {told}");
            return Err(e);
        }
    };
    let fs = fs.unwrap_or_else(|e| panic!("{what}: {e}"));
    let theirs = of_mount(&mount.at);
    let found = differences(&ours.unwrap_or_default(), &theirs, |_, _| mask);
    if !found.is_empty() {
        if let Some(keep) = keep {
            std::fs::copy(&kept, keep).unwrap();
        }
        let some = found[..found.len().min(20)].join("\n");
        panic!("{what}, {}: {} differences:\n{some}", fs.replay(), found.len());
    }
    assert!(theirs.values().all(|r| r.error.is_none()), "{what}: the kernel's own tree has errors");
    let state = fs.replay();
    assert!(matches!(&state[..], "clean" | "replayed"), "{what}: {state}");
    Ok(state)
}

/// The log of an image.
pub struct Log {
    file: File,
    /// Byte where it starts.
    pub start: u64,
    /// Sectors.
    pub len: u64,
}

impl Log {
    pub fn of(image: &Path) -> Self {
        let file = File::open(image).unwrap();
        let be = |at: u64, len: usize| {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes[8 - len..], at).unwrap();
            u64::from_be_bytes(bytes)
        };
        let (block, start, group_bits) = (be(4, 4), be(48, 8), be(124, 1));
        let start = ((start >> group_bits) * be(84, 4) + (start & ((1 << group_bits) - 1))) * block;
        let len = be(96, 4) * block / 512;
        Self { file, start, len }
    }

    /// Where it lies in the image.
    pub fn bytes(&self) -> std::ops::Range<usize> {
        let start = usize::try_from(self.start).unwrap();
        start..start + usize::try_from(self.len).unwrap() * 512
    }

    pub fn sector(&self, at: u64) -> [u8; 512] {
        let mut sector = [0; 512];
        self.file.read_exact_at(&mut sector, self.start + at * 512).unwrap();
        sector
    }

    /// Cycle in which sector `at` was written.
    pub fn cycle(&self, at: u64) -> u64 {
        let sector = self.sector(at);
        let word = |at: usize| u32::from_be_bytes(sector[at..at + 4].try_into().unwrap());
        u64::from(if word(0) == 0xFEED_BABE { word(4) } else { word(0) })
    }
}
