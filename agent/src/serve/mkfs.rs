//! Making a file system on a new volume, with the host's own tools in a process of their own.

use super::errors::of_io;
use api::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What can be made: name, arguments, the Debian package that has the tool. A new volume reads as
/// zeros and is thin, so nothing is discarded or zeroed in advance.
const MAKERS: [(&str, &[&str], &str); 4] = [
    ("ext4", &["-q", "-F", "-E", "nodiscard"], "e2fsprogs"),
    ("xfs", &["-q", "-f", "-K"], "xfsprogs"),
    ("btrfs", &["-q", "-f", "-K"], "btrfs-progs"),
    ("vfat", &[], "dosfstools"),
];

/// A tool that was found.
#[derive(Debug)]
pub struct Maker {
    tool: PathBuf,
    arguments: &'static [&'static str],
}

/// Names of the file systems that can be made.
pub fn names() -> impl Iterator<Item = &'static str> {
    MAKERS.iter().map(|(name, ..)| *name)
}

/// The tool that makes `fs`.
///
/// # Errors
/// Invalid for another name, Unsupported if the tool is not installed.
pub fn find(fs: &str) -> Result<Maker> {
    let Some((name, arguments, package)) = MAKERS.iter().find(|(name, ..)| *name == fs) else {
        let known: Vec<&str> = names().collect();
        return Err(Error::new(ErrorKind::Invalid, format!("file system `{fs}` cannot be made here"))
            .hint(format!("one of {}", known.join(", "))));
    };
    let tool = find_tool(&format!("mkfs.{name}"), package).map_err(|error| {
        error.hint(format!("install it (Debian: `apt install {package}`), or leave --fs out"))
    })?;
    Ok(Maker { tool, arguments })
}

/// A tool of the host, of that Debian package.
///
/// # Errors
/// Unsupported if it is not installed.
pub fn find_tool(tool: &str, package: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Not in everybody's PATH, but where the tools are.
    let directories = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    directories.map(|directory| directory.join(tool)).find(|file| file.is_file()).ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, format!("{tool} is not installed on this host"))
            .hint(format!("install it (Debian: `apt install {package}`)"))
    })
}

impl Maker {
    /// Makes the file system on `device`; ends when it is made and the device is closed.
    pub fn run(&self, device: &Path) -> Result<()> {
        let name = self.tool.display();
        let output = Command::new(&self.tool)
            .args(self.arguments)
            .arg(device)
            .stdin(Stdio::null())
            .output()
            .map_err(|e| of_io(format!("run {name}"), &e))?;
        if output.status.success() {
            return Ok(());
        }
        let text =
            String::from_utf8_lossy(if output.stderr.is_empty() { &output.stdout } else { &output.stderr });
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).take(4).collect();
        Err(Error::new(ErrorKind::Io, format!("{name} {} failed: {}", device.display(), lines.join("; "))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_file_system_is_refused_with_the_known_ones() {
        let error = find("zfs").unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.hint.unwrap().contains("ext4, xfs, btrfs, vfat"));
    }

    #[test]
    fn a_failing_tool_says_why() {
        let maker =
            Maker { tool: "/bin/sh".into(), arguments: &["-c", "echo '  too small' >&2; exit 1", "sh"] };
        let error = maker.run(Path::new("/dev/none")).unwrap_err();
        assert!(error.message.ends_with("/dev/none failed: too small"), "{error}");
        let maker = Maker { tool: "/nonexistent/mkfs".into(), arguments: &[] };
        assert!(maker.run(Path::new("/dev/none")).unwrap_err().message.contains("/nonexistent/mkfs"));
    }
}
