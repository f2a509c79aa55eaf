//! Cuts: what a power cut would leave of a file system that is mounted and busy.
//!
//! The disk is a file on an XFS of its own, behind a loop device with direct I/O; a clone of that file, taken at any
//! moment, holds what had reached the disk by then. The kernel's mount of the clone, with its own recovery, is what a
//! reader must show.

use super::support::run;
use super::sys;
use std::fs::File;
use std::path::{Path, PathBuf};

/// A scratch file system whose files can be cloned, in an image that goes away with it.
pub struct CloneSpace {
    _mount: super::support::Mount,
    root: PathBuf,
    /// Last: the directory cannot go while something is mounted in it.
    _dir: super::support::WorkDir,
}

impl CloneSpace {
    /// Room for `mib` MiB of disks and cuts; None, with a word about it, where it cannot be made.
    pub fn new(mib: u64) -> Option<Self> {
        if !sys::is_root() {
            super::skip::skip("cuts of a mounted file system need root");
            return None;
        }
        let dir = super::support::workdir();
        let image = dir.path().join("space");
        File::create(&image).unwrap().set_len(mib << 20).unwrap();
        if let Err(e) = run("mkfs.xfs", &["-q", "-f", "-m", "reflink=1", image.to_str().unwrap()]) {
            super::skip::skip(&format!("a file system with clones cannot be made: {e} (package xfsprogs)"));
            return None;
        }
        let root = dir.path().join("spacemnt");
        let mount = super::support::Mount::with(&image, &root, "rw").unwrap();
        Some(Self { _mount: mount, root, _dir: dir })
    }

    /// A place for a file of this name.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }
}

/// A loop device on a file; it goes away when it is dropped.
pub struct Loop(pub PathBuf);

impl Loop {
    /// With direct I/O, so that the file holds what the device has completed.
    pub fn direct(file: &Path) -> Self {
        Self::attach(&["--direct-io=on"], file)
    }

    /// Through the page cache: quicker for one mount.
    pub fn new(file: &Path) -> Self {
        Self::attach(&[], file)
    }

    fn attach(options: &[&str], file: &Path) -> Self {
        let mut args = vec!["--find", "--show"];
        args.extend(options);
        args.push(file.to_str().unwrap());
        Self(PathBuf::from(run("losetup", &args).unwrap().trim()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = run("losetup", &["-d", self.0.to_str().unwrap()]);
    }
}

/// A mount of a device; it goes away when it is dropped.
pub struct DeviceMount {
    pub at: PathBuf,
    _device: Loop,
}

impl DeviceMount {
    pub fn new(device: Loop, at: &Path, options: &str) -> Result<Self, String> {
        std::fs::create_dir_all(at).unwrap();
        run("mount", &["-o", options, device.0.to_str().unwrap(), at.to_str().unwrap()])?;
        Ok(Self { at: at.to_path_buf(), _device: device })
    }
}

impl Drop for DeviceMount {
    fn drop(&mut self) {
        if run("umount", &[self.at.to_str().unwrap()]).is_err() {
            let _ = run("umount", &["-l", self.at.to_str().unwrap()]);
        }
    }
}

/// Clones the file `from` to the new file `to`: the cut.
pub fn clone(from: &Path, to: &Path) {
    let (from, to) = (File::open(from).unwrap(), File::create(to).unwrap());
    sys::clone_file(&from, &to).unwrap();
}
