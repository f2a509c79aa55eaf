//! Who uses a block device: mounts, in this mount namespace and in others, devices on top, swap, open files.

use crate::sys::stat;
use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// One mount of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where it is, in its own mount namespace.
    pub path: PathBuf,
    /// A process of that namespace; None: ours.
    pub process: Option<u32>,
    /// Id in mountinfo.
    pub id: u64,
    /// Type of the file system.
    pub fs_type: String,
}

impl Mount {
    /// A path that reaches it from here: through `/proc/PID/root` for other namespaces.
    pub fn reachable(&self) -> PathBuf {
        match self.process {
            None => self.path.clone(),
            Some(pid) => {
                let inside = self.path.strip_prefix("/").unwrap_or(&self.path);
                Path::new("/proc").join(pid.to_string()).join("root").join(inside)
            }
        }
    }
}

/// All mounts of the block device with this number, ours first. `node` is its usual path.
///
/// Some file systems (btrfs) have a number of their own in mountinfo: they are recognised by the source they name.
pub fn of_device(number: (u32, u32), node: &Path) -> Vec<Mount> {
    let mut found = parse_file(Path::new("/proc/self/mountinfo"), None, number, node);
    let mut seen: HashSet<PathBuf> = HashSet::new();
    seen.extend(std::fs::read_link("/proc/self/ns/mnt"));
    for pid in processes() {
        let dir = Path::new("/proc").join(pid.to_string());
        if let Ok(namespace) = std::fs::read_link(dir.join("ns/mnt"))
            && seen.insert(namespace)
        {
            found.extend(parse_file(&dir.join("mountinfo"), Some(pid), number, node));
        }
    }
    found
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").ok();
    entries.into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

fn parse_file(file: &Path, process: Option<u32>, number: (u32, u32), node: &Path) -> Vec<Mount> {
    // Bytes and not text: a path may hold anything.
    let Ok(text) = std::fs::read(file) else { return Vec::new() };
    text.split(|&b| b == b'\n').filter_map(|line| parse_line(line, process, number, node)).collect()
}

/// A line of mountinfo (proc(5)): `id parent major:minor root mountpoint options tags… - type source options`.
fn parse_line(line: &[u8], process: Option<u32>, number: (u32, u32), node: &Path) -> Option<Mount> {
    let mut fields = line.split(|&b| b == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = std::str::from_utf8(fields.nth(1)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let device: (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
    let path = unescape(fields.nth(1)?);
    let mut tail = fields.skip_while(|field| *field != b"-").skip(1);
    let fs_type = String::from_utf8_lossy(tail.next()?).into_owned();
    let source = PathBuf::from(unescape(tail.next()?));
    let by_source = device.0 == 0 && is_node(&source, process, number, node);
    (device == number || by_source).then(|| Mount { path: path.into(), process, id, fs_type })
}

/// Whether a mount's source is the device: by its path, or by what lies there (a link such as /dev/cowslip/NAME).
fn is_node(source: &Path, process: Option<u32>, number: (u32, u32), node: &Path) -> bool {
    if source == node {
        return true;
    }
    let Ok(inside) = source.strip_prefix("/dev") else { return false };
    let dev = process.map_or_else(|| PathBuf::from("/dev"), |pid| format!("/proc/{pid}/root/dev").into());
    stat::of_path(&dev.join(inside)).is_ok_and(|stat| stat.is_block && stat.node == number)
}

/// Mountinfo writes space, tab, newline and backslash as a backslash and three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| byte == b'\\').and_then(|digits| {
            digits.iter().try_fold(0u8, |value, &d| {
                (b'0'..=b'7').contains(&d).then(|| value.checked_mul(8)?.checked_add(d - b'0')).flatten()
            })
        });
        match octal {
            Some(value) => {
                out.push(value);
                rest = &after[3..];
            }
            None => {
                out.push(byte);
                rest = after;
            }
        }
    }
    OsString::from_vec(out)
}

/// One user of the device, in words; None: nobody uses it.
pub fn user_of(number: (u32, u32), node: &Path) -> Option<String> {
    if let Some(mount) = of_device(number, node).first() {
        let path = mount.path.display();
        return Some(match mount.process {
            None => format!("mounted on {path}"),
            Some(pid) => {
                format!("mounted on {path} in the mount namespace of process {pid}{}", command_of(pid))
            }
        });
    }
    let sys = format!("/sys/dev/block/{}:{}/holders", number.0, number.1);
    if let Some(holder) = std::fs::read_dir(sys).ok().and_then(|mut dir| dir.next()?.ok()) {
        return Some(format!("part of /dev/{}", holder.file_name().display()));
    }
    let swaps = std::fs::read("/proc/swaps").unwrap_or_default();
    let is_swap = |line: &[u8]| line.split(|&b| b == b' ').next() == Some(node.as_os_str().as_bytes());
    if swaps.split(|&b| b == b'\n').any(is_swap) {
        return Some("used for swap".into());
    }
    let pid = processes().find(|&pid| has_open(pid, number) && !is_udev(pid))?;
    Some(format!("open in process {pid}{}", command_of(pid)))
}

/// udev looks at a device for a moment whenever somebody has written to it. That is no use of it: who ends a device
/// waits until it has looked.
fn is_udev(pid: u32) -> bool {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    matches!(name.trim_end(), "(udev-worker)" | "systemd-udevd" | "udevd")
}

fn command_of(pid: u32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if name.is_empty() { name } else { format!(" ({})", name.trim_end()) }
}

/// Whether a process has the device open. It is asked by number, for containers give nodes other names.
fn has_open(pid: u32, number: (u32, u32)) -> bool {
    let Ok(files) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    files.flatten().map(|file| file.path()).any(|file| {
        // `socket:[1]` and its like are no paths. Others are asked without a round trip to a file server.
        let is_path = std::fs::read_link(&file).is_ok_and(|target| target.is_absolute());
        is_path && stat::of_path(&file).is_ok_and(|stat| stat.is_block && stat.node == number)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Option<Mount> {
        parse_line(line.as_bytes(), None, (7, 3), Path::new("/dev/loop3"))
    }

    #[test]
    fn lines_of_mountinfo() {
        let plain = parse("36 25 7:3 / /mnt/a\\040b\\134c rw,noatime shared:1 master:2 - ext4 /dev/loop3 rw")
            .unwrap();
        assert_eq!(plain.path, Path::new("/mnt/a b\\c"));
        assert_eq!((plain.id, plain.fs_type.as_str()), (36, "ext4"));
        assert!(parse("36 25 0:41 /sub /mnt rw - btrfs /dev/loop3 rw,subvol=/sub").is_some());
        for other in [
            "36 25 7:4 / /mnt rw - ext4 /dev/loop4 rw",
            "36 25 8:1 / /mnt rw - ext4 /dev/loop3 rw", // the number decides where it is a real one
            "36 25 0:41 / /mnt rw - btrfs /dev/loop4 rw",
            "36 25 0:41 / /mnt rw shared:1",
            "x",
            "",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn escapes() {
        for (from, to) in
            [("a\\011b", "a\tb"), ("\\", "\\"), ("\\04", "\\04"), ("\\777", "\\777"), ("\\09x", "\\09x")]
        {
            assert_eq!(unescape(from.as_bytes()), OsString::from(to), "{from}");
        }
    }
}
