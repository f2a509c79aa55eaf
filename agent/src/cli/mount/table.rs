//! The mounts of this process, by `/proc/self/mountinfo` (proc_pid_mountinfo(5)). Asking the mounts themselves
//! would wait for whoever serves them.

use crate::cli::failure::{Failure, Kind, Result};
use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

/// A line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where.
    pub dir: PathBuf,
    /// Type, with the subtype of FUSE mounts.
    pub fs_type: String,
}

/// All mounts, in the order they were made.
pub fn read() -> Result<Vec<Mount>> {
    let table = fs::read("/proc/self/mountinfo").map_err(|e| Failure::io("read /proc/self/mountinfo", &e))?;
    Ok(parse(&table))
}

/// The type of the uppermost mount at `dir`, an absolute path.
pub fn type_at(dir: &Path) -> Result<Option<String>> {
    Ok(read()?.into_iter().rev().find(|mount| mount.dir == dir).map(|mount| mount.fs_type))
}

fn parse(table: &[u8]) -> Vec<Mount> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// `36 35 98:0 /root /dir options optional… - type source super-options`
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let dir = unescape(fields.nth(4)?);
    let fs_type = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(Mount { dir: PathBuf::from(dir), fs_type: String::from_utf8_lossy(fs_type).into_owned() })
}

/// Undoes the table's `\040`.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| tail.get(..3)).flatten();
        let value = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match value {
            Some(value) => {
                bytes.push(value);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes)
}

/// The absolute path of a directory without asking what is mounted on it.
pub fn absolute(dir: &Path) -> Result<PathBuf> {
    let failed = |e| Failure::io(format!("find {}", dir.display()), &e);
    let absolute = std::path::absolute(dir).map_err(failed)?;
    let trimmed = Path::new(OsStr::from_bytes(trim_slashes(absolute.as_os_str().as_bytes())));
    match (trimmed.parent(), trimmed.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize().map_err(failed)?.join(name)),
        _ if trimmed == Path::new("/") => Ok(trimmed.to_owned()),
        _ => Err(Failure::new(Kind::Usage, format!("{} does not end in a name", dir.display()))),
    }
}

fn trim_slashes(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(1, |at| at + 1);
    &path[..end.min(path.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_table() {
        let table = b"36 35 98:0 / /mnt/a\\040b\\134 ro,nosuid shared:1 master:2 - fuse.cowslip cowslip ro\n\
                      37 35 0:5 / /proc rw - proc proc rw\nbroken\n\n38 1 0:6 / /x rw -\n";
        let mount = |dir: &str, fs_type: &str| Mount { dir: dir.into(), fs_type: fs_type.into() };
        assert_eq!(parse(table), [mount("/mnt/a b\\", "fuse.cowslip"), mount("/proc", "proc")]);
    }

    #[test]
    fn this_process_has_mounts() {
        assert!(type_at(Path::new("/")).unwrap().is_some());
        assert_eq!(type_at(Path::new("/proc/no/mount")).unwrap(), None);
    }

    #[test]
    fn absolute_paths() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        std::os::unix::fs::symlink(&real, real.join("link")).unwrap();
        assert_eq!(absolute(&real.join("link/x/")).unwrap(), real.join("x"));
        assert_eq!(absolute(Path::new("/")).unwrap(), Path::new("/"));
        assert_eq!(absolute(&real.join("none/x")).unwrap_err().exit_code(), 3);
    }
}
