//! Where devices are mounted, and whether anybody holds them (proc_pid_mountinfo(5), sysfs).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// One line of a mount table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mount {
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The directory of the file system that is mounted there.
    pub root: PathBuf,
    /// Device number of the file system; btrfs has one of its own.
    pub device: (u32, u32),
    /// Type.
    pub fs_type: String,
    /// What was given to mount(2).
    pub source: PathBuf,
    /// Whether the mount or its file system is read only.
    pub read_only: bool,
}

/// A mount of a block device or of one of its partitions.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceMount {
    /// The mount.
    pub mount: Mount,
    /// Partition number, 0 for the whole device.
    pub partition: u32,
}

/// The mounts of the agent's mount namespace, then those of init's where it is another.
fn visible_mounts() -> io::Result<Vec<Mount>> {
    let mut mounts = parse(&fs::read("/proc/self/mountinfo")?);
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    if namespace("1").is_some_and(|init| Some(init) != namespace("self"))
        && let Ok(table) = fs::read("/proc/1/mountinfo")
    {
        mounts.extend(parse(&table));
    }
    Ok(mounts)
}

/// All mounts of the block device at `node` and of its partitions, without duplicates.
pub fn of_device(node: &Path) -> io::Result<Vec<DeviceMount>> {
    let parts = numbers(node)?;
    let mut found: Vec<DeviceMount> = visible_mounts()?
        .into_iter()
        .filter_map(|mount| {
            let partition = parts.get(&mount.device).or_else(|| parts.get(&block_number(&mount.source)?))?;
            Some(DeviceMount { partition: *partition, mount })
        })
        .collect();
    found.sort();
    found.dedup();
    Ok(found)
}

/// Opens the block device for this caller alone: fails with EBUSY while a mount, a partition's mount,
/// swap, device mapper or RAID of any mount namespace holds it, and keeps them away while it is open.
pub fn claim(node: &Path) -> io::Result<File> {
    File::options().read(true).write(true).custom_flags(libc::O_EXCL | libc::O_CLOEXEC).open(node)
}

/// Type of the file system that `path` (which exists) lies on.
pub fn fs_type(path: &Path) -> io::Result<String> {
    let path = fs::canonicalize(path)?;
    // Later lines lie on top of earlier ones.
    let mounts = parse(&fs::read("/proc/self/mountinfo")?);
    let best = mounts
        .iter()
        .filter(|mount| path.starts_with(&mount.mountpoint))
        .max_by_key(|mount| mount.mountpoint.as_os_str().len());
    Ok(best.map(|mount| mount.fs_type.clone()).unwrap_or_default())
}

/// Device numbers of a block device and its partitions, with the partition number.
fn numbers(node: &Path) -> io::Result<BTreeMap<(u32, u32), u32>> {
    let whole = block_number(node).ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("{} is no block device", node.display()))
    })?;
    let mut numbers = BTreeMap::from([(whole, 0)]);
    let Ok(entries) = fs::read_dir(format!("/sys/dev/block/{}:{}", whole.0, whole.1)) else {
        return Ok(numbers);
    };
    for entry in entries.flatten() {
        let read = |name: &str| fs::read_to_string(entry.path().join(name)).ok();
        let partition = read("partition").and_then(|text| text.trim().parse().ok());
        let device = read("dev").and_then(|text| pair(text.trim()));
        if let (Some(partition), Some(device)) = (partition, device) {
            numbers.insert(device, partition);
        }
    }
    Ok(numbers)
}

fn block_number(node: &Path) -> Option<(u32, u32)> {
    let meta = fs::metadata(node).ok().filter(|meta| meta.file_type().is_block_device())?;
    Some((libc::major(meta.rdev()), libc::minor(meta.rdev())))
}

fn pair(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Parses a mountinfo table; lines that are not of its form are left out.
pub fn parse(table: &[u8]) -> Vec<Mount> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let separator = fields.iter().position(|field| *field == b"-")?;
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let (fs_type, source) = (fields.get(separator + 1)?, fields.get(separator + 2)?);
    let no_options: &[u8] = b"";
    let options = [*fields.get(5)?, fields.get(separator + 3).copied().unwrap_or(no_options)];
    Some(Mount {
        device: pair(&text(fields.get(2)?))?,
        root: unescape(fields.get(3)?),
        mountpoint: unescape(fields.get(4)?),
        fs_type: text(fs_type),
        source: unescape(source),
        read_only: options.iter().any(|list| list.split(|byte| *byte == b',').any(|option| option == b"ro")),
    })
}

/// Undoes the kernel's octal escapes of space, tab, newline and backslash.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [byte, tail @ ..] = rest {
        rest = tail;
        if *byte == b'\\'
            && let Some(value) = tail.first_chunk::<3>().and_then(octal)
        {
            out.push(value);
            rest = &tail[3..];
        } else {
            out.push(*byte);
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

fn octal(digits: &[u8; 3]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

impl From<DeviceMount> for api::v1::Mount {
    fn from(found: DeviceMount) -> Self {
        Self {
            mountpoint: found.mount.mountpoint.as_os_str().as_bytes().to_vec(),
            root: found.mount.root.as_os_str().as_bytes().to_vec(),
            fs_type: found.mount.fs_type,
            partition: found.partition,
            read_only: found.mount.read_only,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_manual_page() {
        let table = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n\
            40 35 7:3 / /mnt/a\\040b\\134c\\011\xff ro,nosuid - xfs /dev/loop3 rw\n\
            41 35 0:50 /sub /b rw shared:2 master:3 - btrfs /dev/loop4 ro,subvol=/sub\n\
            broken line\n42 35 x:y / / rw - a b c\n";
        let mounts = parse(table);
        assert_eq!(mounts.len(), 3);
        assert_eq!(mounts[0].device, (98, 0));
        assert_eq!(mounts[0].root, Path::new("/mnt1"));
        assert_eq!((mounts[0].fs_type.as_str(), mounts[0].read_only), ("ext3", false));
        assert_eq!(mounts[1].mountpoint.as_os_str().as_bytes(), b"/mnt/a b\\c\t\xff");
        assert!(mounts[1].read_only && mounts[2].read_only);
        assert_eq!(mounts[2].source, Path::new("/dev/loop4"));
    }

    #[test]
    fn escapes_that_are_none_stay() {
        for (field, path) in [("a\\", "a\\"), ("\\04", "\\04"), ("\\999x", "\\999x"), ("\\040", " ")] {
            assert_eq!(unescape(field.as_bytes()), Path::new(path));
        }
    }

    #[test]
    fn this_process_has_mounts_and_a_file_has_none() {
        assert!(!visible_mounts().unwrap().is_empty());
        assert_eq!(fs_type(Path::new("/proc")).unwrap(), "proc");
        assert!(of_device(Path::new("/proc/self/status")).is_err());
    }
}
