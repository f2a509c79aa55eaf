//! What volumes are compared with. None of it is taken down: it ends with the machine.

use super::jobs::processors;
use integration_tests::rig::{Rig, ended, tool};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Of each device, in MiB.
pub const SIZE_MIB: u64 = 512;
/// What dm-thin calls 64 KiB, and what it and volumes may grow to: old and new content side by side.
const CHUNK_SECTORS: u64 = 128;
pub const ROOM_MIB: u64 = 3 * SIZE_MIB;
/// Room of dm-thin's own data, in MiB.
const THIN_METADATA_MIB: u64 = 32;
/// Disks that the harness gives: dm-thin's data and metadata.
const THIN_DISKS: [&str; 2] = ["/dev/ubdb", "/dev/ubdc"];

/// Writes all of it once, so that nothing that is measured meets a hole.
pub fn fill(path: &Path) {
    let to = format!("of={}", path.display());
    let count = format!("count={SIZE_MIB}");
    tool("dd", ["if=/dev/zero", &to, "bs=1M", &count, "oflag=direct", "conv=notrunc,fsync", "status=none"]);
}

pub fn file(rig: &Rig, name: &str, mib: u64) -> PathBuf {
    let path = rig.path(name);
    // Blocks of its own, which belong to it already.
    tool("fallocate", ["-l".as_ref(), format!("{mib}M").as_ref(), path.as_os_str()]);
    path
}

/// The kernel's loop device over a file.
pub fn kernel_loop(file: &Path) -> PathBuf {
    let options = ["-f", "--show", "--direct-io=on", "--sector-size=4096"].map(AsRef::as_ref);
    tool("losetup", options.into_iter().chain([file.as_os_str()])).trim().into()
}

fn ublk_devices() -> BTreeSet<PathBuf> {
    let entries = fs::read_dir("/dev").expect("there is /dev").flatten().map(|entry| entry.path());
    entries.filter(|path| path.to_string_lossy().starts_with("/dev/ublkb")).collect()
}

/// A device of the public crate rublk, with as many queues as ours have; its qcow2 has one at most.
pub fn rublk(target: &str, file: &Path, options: &[&str]) -> PathBuf {
    let before = ublk_devices();
    let program = std::env::var_os("COWSLIP_RUBLK").expect("`make bench-kernel` says where rublk is");
    let queues = if target == "qcow2" { 1 } else { processors() }.to_string();
    let mut add = Command::new(program);
    add.args(["add", target, "--queue", &queues, "--file"]).arg(file).args(options);
    ended(&mut add).with(0);
    ublk_devices().difference(&before).next().expect("rublk made a device").clone()
}

/// A thin device of the device mapper with chunks of 64 KiB.
pub struct Thin {
    name: &'static str,
    next: u32,
}

impl Thin {
    /// On a disk of its own.
    pub fn on_disk() -> Self {
        Self::new("disk", THIN_DISKS.map(Path::new))
    }

    /// On loop devices over files in the file system that everything else is on.
    pub fn on_files(rig: &Rig) -> Self {
        let [data, metadata] = [("thin-data", ROOM_MIB), ("thin-metadata", THIN_METADATA_MIB)]
            .map(|(name, mib)| kernel_loop(&file(rig, name, mib)));
        Self::new("file", [&data, &metadata])
    }

    fn new(name: &'static str, [data, metadata]: [&Path; 2]) -> Self {
        // A first block of zeros says that it is new.
        let to = format!("of={}", metadata.display());
        tool("dd", ["if=/dev/zero", &to, "bs=4K", "count=1", "oflag=direct", "status=none"]);
        // As fast as it can be: all chunks are written whole before they are read.
        let table = format!(
            "0 {} thin-pool {} {} {CHUNK_SECTORS} 0 1 skip_block_zeroing",
            ROOM_MIB << 11,
            metadata.display(),
            data.display()
        );
        tool("dmsetup", ["create", &format!("pool-{name}"), "--table", &table]);
        Self { name, next: 0 }
    }

    fn message(&self, text: &str) {
        tool("dmsetup", ["message", &format!("pool-{}", self.name), "0", text]);
    }

    pub fn device(&self) -> PathBuf {
        format!("/dev/mapper/thin-{}", self.name).into()
    }

    /// A new device instead of the last one and its snapshot, written once.
    pub fn renew(&mut self) {
        let device = format!("thin-{}", self.name);
        if self.next > 0 {
            tool("dmsetup", ["remove", "--retry", &device]);
            (self.next - 2..self.next).for_each(|old| self.message(&format!("delete {old}")));
        }
        self.message(&format!("create_thin {}", self.next));
        let table = format!("0 {} thin /dev/mapper/pool-{} {}", SIZE_MIB << 11, self.name, self.next);
        tool("dmsetup", ["mknodes"]);
        tool("dmsetup", ["create", &device, "--table", &table]);
        // There is no udev in the test kernel.
        tool("dmsetup", ["mknodes"]);
        self.next += 2;
        fill(&self.device());
    }

    pub fn snapshot(&self) {
        let device = format!("thin-{}", self.name);
        tool("dmsetup", ["suspend", &device]);
        self.message(&format!("create_snap {} {}", self.next - 1, self.next - 2));
        tool("dmsetup", ["resume", &device]);
    }
}
