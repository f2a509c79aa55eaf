//! The pool on a disk that records every write and flush (dm-log-writes): whatever a disk may hold when it loses its
//! power, a pool that recovers, and in it everything that was fsynced by then.

use crate::fsynced::Files;
use crate::rig_on;
use integration_tests::rig::{Ended, cowslip, ended, host_tool, tool, unmount};
use integration_tests::{seed, times};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Disks that the harness gives: what the pool lies on, its record, and where the record is played.
const POOL: &str = "/dev/ubdb";
const RECORD: &str = "/dev/ubdc";
const PLAYED: &str = "/dev/ubdd";

/// The kernel's names of what an entry is (admin-guide/device-mapper/log-writes).
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;
const MAGIC: u64 = 0x006a_7366_7773_6872;

/// A device of the device mapper.
struct Mapped(&'static str);

impl Mapped {
    fn create(name: &'static str, table: &str) -> Self {
        tool("dmsetup", ["create", name, "--table", table]);
        // There is no udev in the test kernel.
        tool("dmsetup", ["mknodes"]);
        Self(name)
    }

    fn path(&self) -> PathBuf {
        Path::new("/dev/mapper").join(self.0)
    }

    fn mark(&self, text: &str) {
        tool("dmsetup", ["message", self.0, "0", "mark", text]);
    }

    fn remove(&self) -> Ended {
        ended(host_tool("dmsetup").args(["remove", "--retry", self.0]))
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // It is gone already where a test has done with it.
        self.remove();
    }
}

/// One entry of the record.
struct Entry {
    flags: u64,
    /// Bytes on the disk.
    at: u64,
    length: u64,
    /// Where its data or text is in the record.
    data: u64,
    /// Length of a mark's text.
    text: u64,
}

/// A record, from its first entry on.
struct Record {
    disk: File,
    sector: u64,
    next: u64,
    left: u64,
}

fn word(bytes: &[u8], index: usize) -> u64 {
    u64::from_le_bytes(bytes[index * 8..][..8].try_into().expect("eight bytes"))
}

impl Record {
    fn open() -> Self {
        let disk = File::open(RECORD).expect("there is a record");
        let mut start = [0; 32];
        disk.read_exact_at(&mut start, 0).expect("it can be read");
        assert_eq!((word(&start, 0), word(&start, 1)), (MAGIC, 1), "this is no record");
        let sector = word(&start, 3) & 0xffff_ffff;
        Self { disk, sector, next: sector, left: word(&start, 2) }
    }

    fn data(&self, entry: &Entry, length: u64) -> Vec<u8> {
        let mut data = vec![0; usize::try_from(length).expect("it fits")];
        self.disk.read_exact_at(&mut data, entry.data).expect("it can be read");
        data
    }
}

impl Iterator for Record {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        self.left = self.left.checked_sub(1)?;
        let mut head = [0; 32];
        self.disk.read_exact_at(&mut head, self.next).expect("it can be read");
        let flags = word(&head, 2);
        let (at, length) = (word(&head, 0) * self.sector, word(&head, 1) * self.sector);
        // A mark's text is in the entry's own sector, the data of a write in those after it.
        let data = self.next + if flags & MARK == 0 { self.sector } else { 32 };
        self.next += self.sector + if flags & (DISCARD | MARK) == 0 { length } else { 0 };
        Some(Entry { flags, at, length, data, text: word(&head, 3) })
    }
}

fn play(record: &Record, entry: &Entry, disk: &File) -> io::Result<()> {
    if entry.flags & DISCARD != 0 {
        let zeros = vec![0; 1 << 20];
        let mut done = 0;
        while done < entry.length {
            let piece = (entry.length - done).min(1 << 20);
            disk.write_all_at(&zeros[..usize::try_from(piece).expect("it fits")], entry.at + done)?;
            done += piece;
        }
    } else if entry.flags & MARK == 0 && entry.length > 0 {
        disk.write_all_at(&record.data(entry, entry.length), entry.at)?;
    }
    Ok(())
}

fn sectors(device: &Path) -> u64 {
    tool("blockdev", ["--getsz".as_ref(), device.as_os_str()]).trim().parse().expect("a number")
}

/// Steps on ext4, snapshots between them, a mark after each.
fn record_a_workload(steps: u32) {
    let recorded =
        Mapped::create("recorded", &format!("0 {} log-writes {POOL} {RECORD}", sectors(Path::new(POOL))));
    ended(cowslip().args(["-q", "pool", "init"]).arg(recorded.path())).with(0);
    let rig = rig_on(&recorded.path());
    rig.start();
    let device = rig.ext4("v", "128M");
    let dir = rig.mount(&device, "mnt", "discard").join("work");
    fs::create_dir(&dir).expect("the volume is writable");
    tool("sync", ["-f".as_ref(), dir.as_os_str()]);
    let mut files = Files::new(seed());
    recorded.mark("step-0");
    for step in 1..=steps {
        files.step_in(&dir).unwrap_or_else(|e| panic!("step {step}: {e}"));
        recorded.mark(&format!("step-{step}"));
        match step % 10 {
            5 => drop(rig.ok(&format!("-q snapshot create v@s{step}"))),
            0 => drop(rig.ok(&format!("-q snapshot delete v@s{}", step - 5))),
            _ => {}
        }
    }
    unmount(dir.parent().expect("it has a parent"));
    rig.ok("-q volume detach v");
    rig.stop_and_check();
    recorded.remove().with(0);
}

/// Serves what was played so far, changes kept apart, and looks at the files.
fn open_and_compare(steps: u64) -> usize {
    let played = Path::new(PLAYED);
    let changes = tempfile::NamedTempFile::new_in("/var/tmp").expect("a temporary file");
    changes.as_file().set_len(512 << 20).expect("there is room");
    let changes_disk = tool("losetup", ["--find".as_ref(), "--show".as_ref(), changes.path().as_os_str()]);
    let changes_disk = changes_disk.trim();
    let table = format!("0 {} snapshot {PLAYED} {changes_disk} N 8", sectors(played));
    let apart = Mapped::create("apart", &table);
    let rig = rig_on(&apart.path());
    rig.start();
    let device = rig.attach("v");
    let dir = rig.mount(&device, "mnt", "defaults");
    let compared = Files::check(seed(), steps, &dir.join("work"));
    unmount(&dir);
    tool("e2fsck", [Path::new("-fn"), &device]);
    rig.ok("-q volume detach v");
    rig.stop_and_check();
    drop(rig);
    apart.remove().with(0);
    tool("losetup", ["-d", changes_disk]);
    compared
}

#[test]
fn the_pool_recovers_from_every_flush() {
    record_a_workload(times("COWSLIP_STEPS", 20));
    let is_flush = |entry: &Entry| entry.flags & (FLUSH | FUA) != 0;
    let flushes = Record::open().filter(is_flush).count();
    let wanted = times("COWSLIP_REPLAYS", 4) as usize;
    let played = File::options().write(true).open(PLAYED).expect("there is a disk");
    let (mut steps, mut seen, mut checked, mut opened) = (None, 0, 0, 0);
    let reader = Record::open();
    for entry in Record::open() {
        if entry.flags & MARK != 0 {
            let text = String::from_utf8(reader.data(&entry, entry.text)).expect("text");
            let text = text.trim_end_matches('\0');
            // The kernel puts one of its own at the end.
            if let Some(step) = text.strip_prefix("step-") {
                steps = Some(step.parse().expect("a number"));
            }
        }
        play(&reader, &entry, &played).expect("the disk takes it");
        if !is_flush(&entry) {
            continue;
        }
        seen += 1;
        let Some(steps) = steps else { continue };
        played.sync_all().expect("the disk takes it");
        let check = ended(cowslip().args(["pool", "check", PLAYED]));
        assert_eq!(check.code, Some(0), "flush {seen} of {flushes}, after step {steps}: {check:?}");
        checked += 1;
        if seen % flushes.div_ceil(wanted) == 0 || seen == flushes {
            let compared = open_and_compare(steps);
            println!("flush {seen} of {flushes}, after step {steps}: {compared} files are what they were");
            opened += 1;
        }
    }
    assert!(checked > 0 && opened > 0, "{flushes} flushes, {checked} checked");
    println!("{checked} of {flushes} flushes were checked, {opened} opened, seed {}", seed());
}
