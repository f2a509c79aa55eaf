//! What the words of a command line name: `VOL`, `VOL@SNAP`, `VOL@SNAP:/path`, `IMAGE:/path`, `KEY=VALUE`.
//! Checked before anything is sent; the store checks again.

use super::failure::{Failure, Result};
use std::{
    ffi::OsStr,
    fmt,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// The snapshot name that stands for the newest snapshot of a volume; no snapshot is called so.
pub const LATEST: &str = "latest";
const RULE: &str = "a name is UTF-8, 1 to 255 bytes, without '/' and '@', and neither '.' nor '..'";

/// Checks the name of a volume or snapshot.
pub fn check(name: &str) -> Result<()> {
    let why = match name {
        "" => "is empty",
        "." | ".." => "is reserved",
        _ if name.len() > 255 => "is longer than 255 bytes",
        _ if name.contains('/') => "contains '/'",
        _ if name.contains('@') => "contains '@'",
        _ if name.chars().any(char::is_control) => "contains a control character",
        _ => return Ok(()),
    };
    let shown: String = name.chars().take(60).collect();
    Err(Failure::usage(format!("name '{}' {why}", shown.escape_debug())).hint(RULE))
}

/// Parses and checks the name of a volume.
pub fn volume(text: &str) -> Result<String> {
    if let Some((volume, _)) = text.split_once('@') {
        return Err(Failure::usage(format!("'{text}' names a snapshot where a volume is expected"))
            .hint(format!("did you mean '{volume}'?")));
    }
    check(text)?;
    Ok(text.to_owned())
}

/// `VOL@SNAP`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SnapshotName {
    /// Volume.
    pub volume: String,
    /// Snapshot; may be [`LATEST`].
    pub name: String,
}

impl SnapshotName {
    /// Parses and checks `VOL@SNAP`.
    pub fn parse(text: &str) -> Result<Self> {
        let Some((volume, name)) = text.split_once('@') else {
            return Err(Failure::usage(format!("'{text}' names no snapshot"))
                .hint(format!("write VOLUME@SNAPSHOT, for example {text}@{LATEST}")));
        };
        check(volume)?;
        check(name)?;
        Ok(Self { volume: volume.to_owned(), name: name.to_owned() })
    }

    /// Parses the name of a snapshot to be made: `latest` is taken.
    pub fn parse_new(text: &str) -> Result<Self> {
        let parsed = Self::parse(text)?;
        if parsed.name == LATEST {
            return Err(Failure::usage(format!("'{text}': '{LATEST}' always means the newest snapshot"))
                .hint("choose another name"));
        }
        Ok(parsed)
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.volume, self.name)
    }
}

/// `VOL` or `VOL@SNAP`: something with the content of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskName {
    /// A live volume.
    Volume(String),
    /// A snapshot.
    Snapshot(SnapshotName),
}

impl DiskName {
    /// Parses `VOL[@SNAP]`.
    pub fn parse(text: &str) -> Result<Self> {
        if text.contains('@') {
            SnapshotName::parse(text).map(Self::Snapshot)
        } else {
            volume(text).map(Self::Volume)
        }
    }
}

impl fmt::Display for DiskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume(name) => f.write_str(name),
            Self::Snapshot(name) => name.fmt(f),
        }
    }
}

/// Where a file system is: in a snapshot, or in an image file or block device.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Container {
    /// `VOL@SNAP`.
    Snapshot(SnapshotName),
    /// A path that starts with `/` or `.`.
    Image(PathBuf),
}

impl Container {
    /// Parses a container without a path in it.
    pub fn parse(text: &OsStr) -> Result<Self> {
        let bytes = text.as_bytes();
        if matches!(bytes.first(), Some(b'/' | b'.')) {
            return Ok(Self::Image(PathBuf::from(text)));
        }
        let shown = text.display();
        let Some(text) = text.to_str() else {
            return Err(Failure::usage(format!("'{shown}' is not UTF-8")).hint(RULE));
        };
        if Path::new(text).exists() && !text.contains('@') {
            return Err(Failure::usage(format!("'{text}' names no snapshot"))
                .hint(format!("a file or device is written with its directory: ./{text}")));
        }
        SnapshotName::parse(text).map(Self::Snapshot)
    }
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Snapshot(name) => name.fmt(f),
            Self::Image(path) => path.display().fmt(f),
        }
    }
}

/// `CONTAINER[:/path]`: files inside a container. The path is bytes and starts with `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSource {
    /// Where the file system is.
    pub container: Container,
    /// Absolute path in it; `/` when none was given.
    pub path: Vec<u8>,
    /// Whether the path was given.
    pub has_path: bool,
}

impl FileSource {
    /// Parses a source. Names have no `/`, so a snapshot's path begins at the first `:/`. An image's path may
    /// hold `:/` itself: the split is the first whose left side exists as a file, else the first.
    pub fn parse(text: &OsStr) -> Result<Self> {
        let bytes = text.as_bytes();
        let is_image = matches!(bytes.first(), Some(b'/' | b'.'));
        let (container, path) = match split_position(bytes, is_image) {
            Some(at) => (&bytes[..at], Some(&bytes[at + 1..])),
            None if bytes.len() > 1 && bytes.ends_with(b":") && !Path::new(text).exists() => {
                (&bytes[..bytes.len() - 1], None)
            }
            None => (bytes, None),
        };
        Ok(Self {
            container: Container::parse(OsStr::from_bytes(container))?,
            path: path.unwrap_or(b"/").to_vec(),
            has_path: path.is_some(),
        })
    }

    /// Whether `text` has the form of a source with a path, so that it is not a destination.
    pub fn looks_like(text: &OsStr) -> bool {
        text.as_bytes().windows(2).any(|pair| pair == b":/")
    }
}

fn split_position(bytes: &[u8], is_image: bool) -> Option<usize> {
    let mut splits = (0..bytes.len().saturating_sub(1)).filter(|&at| &bytes[at..at + 2] == b":/");
    if !is_image {
        // `a::/x` is the path `/x` in `a:`: the first `:/` is the second colon.
        return splits.next();
    }
    let exists =
        |at: &usize| Path::new(OsStr::from_bytes(&bytes[..*at])).metadata().is_ok_and(|m| !m.is_dir());
    splits.clone().find(exists).or_else(|| splits.next())
}

impl fmt::Display for FileSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.container, super::output::escape(&self.path))
    }
}

/// `KEY=VALUE` of `--label`.
pub fn label(text: &str) -> Result<(String, String)> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => {
            Err(Failure::usage(format!("'{text}' is not a label"))
                .hint("write KEY=VALUE, for example team=web"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for name in ["a", "data 1", "ärger", "a:b", "...", "-x", &"x".repeat(255), "latest"] {
            assert!(check(name).is_ok(), "{name}");
        }
        for name in ["", ".", "..", "a/b", "a@b", &"x".repeat(256), "a\nb", "\u{1b}[1m"] {
            assert_eq!(check(name).unwrap_err().exit_code(), 2, "{name:?}");
        }
    }

    #[test]
    fn snapshot_names() {
        let parsed = SnapshotName::parse("db@monday").unwrap();
        assert_eq!((parsed.volume.as_str(), parsed.name.as_str()), ("db", "monday"));
        assert_eq!(parsed.to_string(), "db@monday");
        for text in ["db", "@", "db@", "@monday", "db@a@b", "db@a/b", "../db@x"] {
            assert_eq!(SnapshotName::parse(text).unwrap_err().exit_code(), 2, "{text}");
        }
        assert!(SnapshotName::parse("db@latest").is_ok());
        assert_eq!(SnapshotName::parse_new("db@latest").unwrap_err().exit_code(), 2);
        assert_eq!(volume("db@x").unwrap_err().hint_text(), Some("did you mean 'db'?"));
    }

    #[test]
    fn disks() {
        assert_eq!(DiskName::parse("db").unwrap(), DiskName::Volume("db".into()));
        assert_eq!(DiskName::parse("db@x").unwrap().to_string(), "db@x");
        assert!(DiskName::parse("db@").is_err());
    }

    fn source(text: &str) -> (String, String) {
        let source = FileSource::parse(OsStr::new(text)).unwrap();
        (source.container.to_string(), String::from_utf8(source.path).unwrap())
    }

    #[test]
    fn sources() {
        for (text, container, path) in [
            ("db@x:/etc/passwd", "db@x", "/etc/passwd"),
            ("db@latest", "db@latest", "/"),
            ("db@x:", "db@x", "/"),
            ("db@x:/", "db@x", "/"),
            ("db@x::/a", "db@x:", "/a"),
            ("db@x:/a:/b", "db@x", "/a:/b"),
            ("./disk.img:/p1/a", "./disk.img", "/p1/a"),
            ("/dev/sdz9:/a@b", "/dev/sdz9", "/a@b"),
            ("../x.img", "../x.img", "/"),
        ] {
            assert_eq!(source(text), (container.to_owned(), path.to_owned()), "{text}");
        }
        for text in ["db:/etc", "db", "", ":/x", "a/b@c:/x", "Cargo.toml:/x"] {
            assert_eq!(FileSource::parse(OsStr::new(text)).unwrap_err().exit_code(), 2, "{text}");
        }
        let hint = FileSource::parse(OsStr::new("Cargo.toml")).unwrap_err();
        assert_eq!(hint.hint_text(), Some("a file or device is written with its directory: ./Cargo.toml"));
    }

    #[test]
    fn an_image_path_may_hold_the_separator() {
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("a:");
        std::fs::create_dir(&odd).unwrap();
        let image = odd.join("disk.img");
        std::fs::write(&image, b"x").unwrap();
        let text = format!("{}:/etc", image.display());
        assert_eq!(source(&text), (image.display().to_string(), "/etc".to_owned()));
    }

    #[test]
    fn paths_need_not_be_utf8() {
        let source = FileSource::parse(OsStr::from_bytes(b"db@x:/\xff")).unwrap();
        assert_eq!(source.path, b"/\xff");
        assert_eq!(source.to_string(), "db@x:/\\xff");
    }

    #[test]
    fn labels() {
        assert_eq!(label("k=v=w").unwrap(), ("k".into(), "v=w".into()));
        assert_eq!(label("k=").unwrap(), ("k".into(), String::new()));
        for text in ["k", "=v", ""] {
            assert_eq!(label(text).unwrap_err().exit_code(), 2, "{text}");
        }
    }
}
