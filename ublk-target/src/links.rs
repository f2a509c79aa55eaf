//! `/dev/cowslip/<volume>`: links under the volumes' names to their devices.

use crate::error::{Context, Error, Result};
use std::io;
use std::path::{Path, PathBuf};

/// The directory of links.
#[derive(Debug, Clone)]
pub struct Links {
    dir: PathBuf,
}

impl Links {
    /// Links in `dir`, usually `/dev/cowslip`; made when first needed.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Refuses what cannot be a file name.
    pub(crate) fn check(name: &str) -> Result<()> {
        let why = match name {
            "" => "is empty",
            "." | ".." => "is a directory's own name",
            _ if name.len() > 255 => "is longer than 255 bytes",
            _ if name.contains(['/', '\0', '@']) => "contains '/', '@' or a NUL",
            _ => return Ok(()),
        };
        Err(Error::Invalid { what: format!("volume name {name:?}"), why: why.into() })
    }

    /// Path of a volume's link.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Points the link at `device`, at once: a reader sees the old target or the new one.
    pub(crate) fn set(&self, name: &str, device: &Path) -> Result<()> {
        Self::check(name)?;
        let (path, dir) = (self.path(name), self.dir.display());
        if std::fs::read_link(&path).is_ok_and(|target| target == device) {
            return Ok(());
        }
        std::fs::create_dir_all(&self.dir).context("make directory", dir)?;
        // No volume's name has an '@'.
        let temporary = self.dir.join(format!("@new.{}", std::process::id()));
        let _ = std::fs::remove_file(&temporary);
        std::os::unix::fs::symlink(device, &temporary).context("make link", temporary.display())?;
        std::fs::rename(&temporary, &path).context("make link", path.display())
    }

    /// Removes the link, if it points at `device`: another device may have the name by now.
    pub(crate) fn remove(&self, name: &str, device: &Path) -> Result<()> {
        let path = self.path(name);
        if std::fs::read_link(&path).is_ok_and(|target| target == device) {
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(e).context("remove", path.display());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes links to devices `PREFIXn` for which `is_live(n)` is false, and what a killed [`set`](Self::set) left.
    pub(crate) fn sweep(&self, prefix: &str, is_live: impl Fn(u32) -> bool) {
        for entry in std::fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let Ok(target) = std::fs::read_link(entry.path()) else { continue };
            let number = target.to_str().and_then(|t| t.strip_prefix(prefix)?.parse().ok());
            let left_over = entry.file_name().as_encoded_bytes().starts_with(b"@new.");
            if left_over || number.is_some_and(|number| !is_live(number)) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_follow_their_device_only() {
        let dir = tempfile::tempdir().unwrap();
        let links = Links::new(dir.path().join("made"));
        let (first, second) = (Path::new("/dev/loop1001"), Path::new("/dev/loop1002"));
        for name in ["vol", "mit Leerzeichen", "ключ", "-rf", "a\nb", &"x".repeat(255)] {
            links.set(name, first).unwrap();
            links.set(name, second).unwrap();
            links.remove(name, first).unwrap();
            assert_eq!(std::fs::read_link(links.path(name)).unwrap(), second, "{name:?}");
        }
        links.remove("vol", second).unwrap();
        links.set("vol", first).unwrap();
        links.sweep("/dev/loop", |number| number == 1001);
        links.sweep("/dev/ublkb", |_| false);
        let left: Vec<_> =
            std::fs::read_dir(dir.path().join("made")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["vol"]);
    }

    #[test]
    fn names_that_are_no_file_names_are_refused() {
        for bad in ["", ".", "..", "a/b", "a\0b", "a@b", &"x".repeat(256)] {
            assert!(matches!(Links::check(bad), Err(Error::Invalid { .. })), "{bad:?}");
        }
    }
}
