//! The directory that is mounted on: what must be true of it before, and what the system tells of it after.

use super::{Error, sys};
use fuser::MountOption;
use std::{
    ffi::OsStr,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::Command,
};

/// Dead mounts, one over the other, that are detached before giving up.
const MAX_DEAD: usize = 16;
/// Read-ahead of the kernel, in KiB: eight requests of the largest size, so that threads fetch while the program copies.
/// The kernel begins with little and doubles it, up to this, for who reads on. With 1 MiB one request at a time is under
/// way, and a large file takes 1.4 times as long; 32 MiB are no faster.
const READ_AHEAD_KIB: u32 = 8 * 1024;

/// Makes sure that `dir` is an empty directory, detaching FUSE mounts there whose process died. Returns its
/// absolute path.
pub fn prepare(dir: &Path) -> Result<PathBuf, Error> {
    let refuse = |why: String| Error::MountPoint { path: dir.to_owned(), why };
    for _ in 0..MAX_DEAD {
        match sys::probe(dir).and_then(|()| fs::metadata(dir)) {
            Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
                detach_dead(dir).map_err(|error| refuse(format!("a dead mount is in the way: {error}")))?;
            }
            Err(error) => return Err(refuse(error.to_string())),
            Ok(metadata) if !metadata.is_dir() => return Err(refuse("not a directory".into())),
            Ok(_) => {
                let mut entries = fs::read_dir(dir).map_err(|error| refuse(error.to_string()))?;
                if entries.next().is_some() {
                    return Err(refuse("the directory is not empty".into()));
                }
                return dir.canonicalize().map_err(|error| refuse(error.to_string()));
            }
        }
    }
    Err(refuse(format!("{MAX_DEAD} dead mounts are in the way")))
}

fn detach_dead(dir: &Path) -> io::Result<()> {
    // The directory itself answers ENOTCONN; its parent does not.
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let path = match dir.file_name() {
        Some(name) => parent.canonicalize()?.join(name),
        None => dir.to_owned(),
    };
    tracing::info!(dir = %path.display(), "detaching a mount whose process died");
    super::detach(&path)
}

/// Detaches through fusermount3, as users other than root must.
pub fn helper_detach(dir: &Path) -> io::Result<()> {
    let out = Command::new("fusermount3").args(["-u", "-z", "--"]).arg(dir).output()?;
    if out.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&out.stderr).trim().to_owned()))
}

/// The options of a mount that fusermount3 makes for us; those of `sys::mount` otherwise.
pub fn helper_options() -> Vec<MountOption> {
    vec![
        MountOption::RO,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoExec,
        MountOption::DefaultPermissions,
        MountOption::FSName(sys::NAME.into()),
        MountOption::Subtype(sys::NAME.into()),
    ]
}

/// Device number of the uppermost mount at `dir`, by `/proc/self/mountinfo` (proc(5)): asking the mount itself
/// would wait for whoever serves it.
pub fn device(dir: &Path) -> Option<(u32, u32)> {
    let table = fs::read("/proc/self/mountinfo").ok()?;
    let mounts = table.split(|&byte| byte == b'\n').rev();
    mounts.filter_map(mount_line).find(|(at, _)| at == dir).map(|(_, device)| device)
}

/// Mount point and device of a line of mountinfo.
fn mount_line(line: &[u8]) -> Option<(PathBuf, (u32, u32))> {
    let mut fields = line.split(|&byte| byte == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let at = unescape(fields.nth(1)?);
    Some((PathBuf::from(OsStr::from_bytes(&at)), (major.parse().ok()?, minor.parse().ok()?)))
}

/// Undoes the kernel's `\040` for space, tab, newline and backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|digits| byte == b'\\' && digits.iter().all(u8::is_ascii_digit));
        let code = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(code) => {
                bytes.push(code);
                rest = &tail[3..];
            }
            None => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    bytes
}

/// Raises the read-ahead of a mount, where we may.
pub fn set_read_ahead((major, minor): (u32, u32)) {
    let file = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = fs::write(&file, READ_AHEAD_KIB.to_string()) {
        tracing::debug!(file, %error, "read-ahead left as it is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo_are_read() {
        let line =
            br"36 35 98:0 /mnt1 /mnt\0402/a\134b rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        assert_eq!(mount_line(line), Some((PathBuf::from(r"/mnt 2/a\b"), (98, 0))));
        for bad in [&b""[..], b"36 35", b"36 35 98 / /mnt", b"36 35 x:y / /mnt"] {
            assert_eq!(mount_line(bad), None);
        }
        assert_eq!(unescape(br"\04"), br"\04");
        assert_eq!(unescape(br"\999x"), br"\999x");
    }

    #[test]
    fn only_empty_directories_are_mounted_on() {
        let tmp = tempfile::tempdir().unwrap();
        let message = |dir: &Path| prepare(dir).unwrap_err().to_string();
        assert_eq!(prepare(tmp.path()).unwrap(), tmp.path().canonicalize().unwrap());
        fs::write(tmp.path().join("file"), "").unwrap();
        assert!(message(tmp.path()).ends_with("the directory is not empty"));
        assert!(message(&tmp.path().join("file")).ends_with("not a directory"));
        assert!(message(&tmp.path().join("none")).contains("No such file"));
    }
}
