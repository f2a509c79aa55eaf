//! File systems on volumes that an orchestrator made: mkfs that an interruption cannot leave half done, and growth
//! while nobody has it mounted.
//!
//! Invariant: a snapshot of the blank volume, the *intent*, exists from before mkfs writes its first block until it
//! has ended well. Whoever finds one puts the volume back to it: nothing else has been written since.

use super::agent::Agent;
use super::errors::{of_io, of_store};
use super::mkfs;
use api::v1::SnapshotRef;
use api::{Error, ErrorKind, Result};
use std::path::Path;
use std::process::{Command, Stdio};
use store::{Labels, VolumeInfo};

/// Name of the intent, and its label.
const INTENT: &str = ".mkfs";
const INTENT_LABEL: &str = "cowslip.io/mkfs";

impl Agent {
    /// Makes the file system `fs` on an attached volume that holds nothing. False: it holds something.
    pub fn format_volume(&self, info: &VolumeInfo, fs: &str) -> Result<bool> {
        let maker = mkfs::find(fs)?;
        let device = self.devices.get(info.id).ok_or_else(|| {
            Error::new(ErrorKind::Busy, format!("volume {} is not attached", info.name))
                .hint(format!("cowslip volume attach {}", info.name))
        })?;
        // What is mounted, or held open by somebody, holds something.
        drop(self.devices.claim(&device, &info.name)?);
        if let Some(intent) = self.intent(info)? {
            self.rollback(&intent)?;
            self.delete_snapshots(std::slice::from_ref(&intent))?;
        }
        let now = self.pool.volume_by_id(info.id).map_err(of_store)?;
        if now.used_bytes > 0 {
            return Ok(false);
        }
        let intent = SnapshotRef { volume: now.name, name: INTENT.to_owned() };
        let labels = Labels::from([(INTENT_LABEL.to_owned(), fs.to_owned())]);
        self.create_snapshots(std::slice::from_ref(&intent), false, labels)?;
        let node = device.read().device().to_owned();
        drop(device);
        let made = maker.run(&node);
        if made.is_err() {
            self.rollback(&intent)?;
        }
        self.delete_snapshots(&[intent])?;
        made.map(|()| true)
    }

    fn intent(&self, info: &VolumeInfo) -> Result<Option<SnapshotRef>> {
        if !info.snapshots.iter().any(|name| name == INTENT) {
            return Ok(None);
        }
        let found = self.pool.snapshot(&info.name, INTENT).map_err(of_store)?;
        let ours = found.labels.contains_key(INTENT_LABEL);
        Ok(ours.then(|| SnapshotRef { volume: info.name.clone(), name: INTENT.to_owned() }))
    }

    /// Removes the intent of a volume that is about to be deleted.
    pub fn undo_format(&self, info: &VolumeInfo) -> Result<()> {
        match self.intent(info)? {
            Some(intent) => self.delete_snapshots(&[intent]),
            None => Ok(()),
        }
    }

    /// Grows the ext4 file system on an attached, unmounted volume to the size of its device.
    pub fn grow_file_system(&self, info: &VolumeInfo) -> Result<()> {
        let device = self.devices.get(info.id).ok_or_else(|| {
            Error::new(ErrorKind::Busy, format!("volume {} is not attached", info.name))
                .hint(format!("cowslip volume attach {}", info.name))
        })?;
        drop(self.devices.claim(&device, &info.name)?);
        let node = device.read().device().to_owned();
        // resize2fs demands a check after the last mount; 1: errors were corrected.
        run("e2fsck", &["-f", "-p"], &node, &[0, 1])?;
        run("resize2fs", &[], &node, &[0])
    }
}

fn run(tool: &str, arguments: &[&str], device: &Path, good: &[i32]) -> Result<()> {
    let path = mkfs::find_tool(tool, "e2fsprogs")?;
    let output = Command::new(&path)
        .args(arguments)
        .arg(device)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| of_io(format!("run {tool}"), &e))?;
    if output.status.code().is_some_and(|code| good.contains(&code)) {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).take(4).collect();
    Err(Error::new(ErrorKind::Io, format!("{tool} {} failed: {}", device.display(), lines.join("; "))))
}
