//! The mount table (proc_pid_mountinfo(5)), and mounting.

use super::device::Device;
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where.
    pub mountpoint: PathBuf,
    /// The directory or file of the file system that is mounted there.
    pub root: PathBuf,
    /// Device number of the file system; btrfs has one of its own.
    pub device: (u32, u32),
    /// Type.
    pub fs_type: String,
    /// What was given to mount(2).
    pub source: PathBuf,
    /// Whether the mount itself is read only.
    pub read_only: bool,
    /// Options of the mount and of its file system, as the kernel shows them.
    pub options: Vec<String>,
}

/// The mounts that this process sees; later ones lie on top.
///
/// # Errors
/// Those of reading the table.
pub fn table() -> io::Result<Vec<Mount>> {
    Ok(fs::read("/proc/self/mountinfo")?.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

/// What is mounted at `path`, the topmost.
///
/// # Errors
/// Those of reading the table.
pub fn at(path: &Path) -> io::Result<Option<Mount>> {
    Ok(table()?.into_iter().rfind(|mount| mount.mountpoint == path))
}

impl Mount {
    /// Whether it shows the file system on `device`.
    pub fn is_of(&self, device: &Device) -> bool {
        self.device == device.number || device.is_node(&self.source)
    }

    /// Whether it is a node of `device` that was mounted on a file.
    pub fn is_node_of(&self, device: &Device) -> bool {
        device.is_node(&self.mountpoint)
    }
}

fn parse(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let separator = fields.iter().position(|field| *field == b"-")?;
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let device = text(fields.get(2)?);
    let lists = [text(fields.get(5)?), fields.get(separator + 3).map(|list| text(list)).unwrap_or_default()];
    let (major, minor) = device.split_once(':')?;
    Some(Mount {
        device: (major.parse().ok()?, minor.parse().ok()?),
        root: unescape(fields.get(3)?),
        mountpoint: unescape(fields.get(4)?),
        fs_type: text(fields.get(separator + 1)?),
        source: unescape(fields.get(separator + 2)?),
        read_only: lists[0].split(',').any(|option| option == "ro"),
        options: lists.iter().flat_map(|list| list.split(',')).map(str::to_owned).collect(),
    })
}

/// Undoes the kernel's octal escapes.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [byte, tail @ ..] = rest {
        let digits = tail.first_chunk::<3>().and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(value) if *byte == b'\\' => {
                out.push(value);
                rest = &tail[3..];
            }
            _ => {
                out.push(*byte);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

/// Options that are flags of mount(2); false: they take the flag away. What is not here goes to the file system.
const FLAGS: &[(&str, MountFlags, bool)] = &[
    ("defaults", MountFlags::empty(), true),
    ("ro", MountFlags::RDONLY, true),
    ("rw", MountFlags::RDONLY, false),
    ("nosuid", MountFlags::NOSUID, true),
    ("suid", MountFlags::NOSUID, false),
    ("nodev", MountFlags::NODEV, true),
    ("dev", MountFlags::NODEV, false),
    ("noexec", MountFlags::NOEXEC, true),
    ("exec", MountFlags::NOEXEC, false),
    ("sync", MountFlags::SYNCHRONOUS, true),
    ("async", MountFlags::SYNCHRONOUS, false),
    ("dirsync", MountFlags::DIRSYNC, true),
    ("noatime", MountFlags::NOATIME, true),
    ("atime", MountFlags::NOATIME, false),
    ("nodiratime", MountFlags::NODIRATIME, true),
    ("diratime", MountFlags::NODIRATIME, false),
    ("relatime", MountFlags::RELATIME, true),
    ("strictatime", MountFlags::STRICTATIME, true),
    ("lazytime", MountFlags::LAZYTIME, true),
];

/// Options apart: flags, and what the file system itself is told.
pub fn options(options: &[String]) -> (MountFlags, String) {
    let mut flags = MountFlags::empty();
    let mut data: Vec<&str> = Vec::new();
    for option in options.iter().filter(|option| !option.is_empty()) {
        match FLAGS.iter().find(|(name, ..)| name == option) {
            Some((_, flag, set)) => flags.set(*flag, *set),
            None => data.push(option),
        }
    }
    (flags, data.join(","))
}

/// Mounts the file system on `device`. An XFS gets `nouuid`: a clone beside its source has the same UUID.
///
/// # Errors
/// Those of mount(2).
pub fn mount(device: &Device, kind: &str, dir: &Path, wanted: &[String]) -> io::Result<()> {
    let (flags, mut data) = options(wanted);
    if kind == "xfs" && !data.split(',').any(|option| option == "nouuid") {
        data = if data.is_empty() { "nouuid".into() } else { format!("{data},nouuid") };
    }
    let data = CString::new(data)?;
    Ok(rustix::mount::mount(&device.node, dir, kind, flags, data.as_c_str())?)
}

/// Shows at `to` what is at `from`, read only if asked for.
///
/// # Errors
/// Those of mount(2); then nothing is mounted at `to`.
pub fn bind(from: &Path, to: &Path, extra: MountFlags) -> io::Result<()> {
    rustix::mount::mount_bind(from, to)?;
    if extra.is_empty() {
        return Ok(());
    }
    let kept = rustix::fs::statvfs(from).map(|stat| kept_flags(stat.f_flag)).unwrap_or(MountFlags::empty());
    let flags = extra | kept | MountFlags::BIND;
    rustix::mount::mount_remount(to, flags, "").map_err(|error| {
        // Without its restriction it must not stay.
        let _ = rustix::mount::unmount(to, UnmountFlags::DETACH);
        error.into()
    })
}

/// The flags that a bind mount has from its source and that a remount has to name again.
fn kept_flags(has: rustix::fs::StatVfsMountFlags) -> MountFlags {
    use rustix::fs::StatVfsMountFlags as Has;
    let all = [
        (Has::RDONLY, MountFlags::RDONLY),
        (Has::NOSUID, MountFlags::NOSUID),
        (Has::NODEV, MountFlags::NODEV),
        (Has::NOEXEC, MountFlags::NOEXEC),
        (Has::NOATIME, MountFlags::NOATIME),
        (Has::NODIRATIME, MountFlags::NODIRATIME),
        (Has::RELATIME, MountFlags::RELATIME),
    ];
    all.into_iter().filter(|(flag, _)| has.contains(*flag)).map(|(_, flag)| flag).collect()
}

/// Takes everything off `path` that is mounted there. A path where nothing is mounted, or that is not there, is fine.
///
/// # Errors
/// EBUSY while somebody uses it; others of umount(2).
pub fn unmount_all(path: &Path) -> io::Result<()> {
    // Each once: a mount that another one hides, at a directory above, cannot be reached by its path.
    for _ in table()?.iter().filter(|mount| mount.mountpoint == path) {
        match rustix::mount::unmount(path, UnmountFlags::NOFOLLOW) {
            // Somebody else did it.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_manual_page() {
        let line =
            b"36 35 98:0 /sub /mnt/a\\040b\\134c ro,noatime master:1 - xfs /dev/root rw,errors=continue";
        let mount = parse(line).unwrap();
        assert_eq!(mount.device, (98, 0));
        assert_eq!(mount.mountpoint, Path::new("/mnt/a b\\c"));
        assert_eq!(
            (mount.root.as_path(), mount.source.as_path()),
            (Path::new("/sub"), Path::new("/dev/root"))
        );
        assert_eq!((mount.fs_type.as_str(), mount.read_only), ("xfs", true));
        assert_eq!(mount.options, ["ro", "noatime", "rw", "errors=continue"]);
        for broken in [&b""[..], b"36 35 98 / / rw", b"36 35 x:0 / / rw - a b"] {
            assert_eq!(parse(broken), None);
        }
    }

    #[test]
    fn this_process_has_mounts() {
        assert_eq!(at(Path::new("/proc")).unwrap().unwrap().fs_type, "proc");
        assert_eq!(at(Path::new("/proc/self")).unwrap(), None);
        unmount_all(Path::new("/nonexistent/path")).unwrap();
    }

    #[test]
    fn options_are_flags_or_data() {
        let all = ["noatime", "discard", "ro", "rw", "", "commit=30", "defaults"].map(str::to_owned);
        assert_eq!(options(&all), (MountFlags::NOATIME, "discard,commit=30".to_owned()));
        assert_eq!(options(&[]), (MountFlags::empty(), String::new()));
    }
}
