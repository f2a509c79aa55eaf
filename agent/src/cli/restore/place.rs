//! Where restored files go. Back into a mounted volume the path is resolved inside of that mount: a symbolic
//! link that somebody put there meanwhile never leads to the host's own files, nor into another mount.

use crate::cli::{
    backend::Mountpoint,
    failure::{Failure, Kind, Result},
    names::SnapshotName,
    output::escape,
    sys,
};
use std::{
    ffi::OsStr,
    fs::File,
    os::{fd::AsRawFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

/// A destination.
pub enum Place {
    /// Named by the user.
    Given(PathBuf),
    /// A directory opened inside a mounted volume.
    Back {
        dir: File,
        /// For messages.
        name: String,
    },
}

impl Place {
    /// The path to restore to.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Given(path) => path.clone(),
            Self::Back { dir, .. } => PathBuf::from(descriptor(dir)),
        }
    }

    /// Puts the directory's name where the failure has its descriptor.
    pub fn name_in(&self, failure: Failure) -> Failure {
        match self {
            Self::Given(_) => failure,
            Self::Back { dir, name } => {
                let renamed = Failure::new(failure.kind(), failure.message().replace(&descriptor(dir), name));
                match failure.hint_text() {
                    Some(hint) => renamed.hint(hint),
                    None => renamed,
                }
            }
        }
    }
}

fn descriptor(dir: &File) -> String {
    format!("/proc/self/fd/{}", dir.as_raw_fd())
}

/// The directory that held `path` of a snapshot, where its volume is mounted now.
pub fn in_volume(
    snapshot: &SnapshotName,
    mounts: &[Mountpoint],
    partition: u32,
    path: &[u8],
) -> Result<Place> {
    let volume = snapshot.volume.as_str();
    let (mount, below) = choose(volume, mounts, partition, path)?;
    let parent = match below.iter().rposition(|byte| *byte == b'/') {
        Some(at) => &below[..at],
        None => &[],
    };
    let mount_dir = Path::new(OsStr::from_bytes(&mount.dir));
    let name = escape(mount_dir.join(OsStr::from_bytes(parent)).as_os_str().as_bytes());
    let failed = |e| Failure::io(format!("open {name}"), &e);
    let top = File::open(mount_dir).map_err(failed)?;
    let dir =
        sys::open_dir_inside(&top, Path::new(OsStr::from_bytes(parent))).map_err(|error| {
            match error.raw_os_error() {
                Some(libc::ENOENT) => {
                    let original = directory_in_image(path, partition);
                    Failure::new(Kind::NotFound, format!("{name}, where the file was, is not there any more"))
                        .hint(format!(
                            "restore the directory itself, {snapshot}:{original}, or say where to restore to"
                        ))
                }
                Some(libc::EXDEV) => {
                    Failure::failed(format!("{name} lies on another mount, not on volume {volume}"))
                        .hint("say where to restore to")
                }
                _ => failed(error),
            }
        })?;
    Ok(Place::Back { dir, name })
}

/// How a source names the directory of `path`.
fn directory_in_image(path: &[u8], partition: u32) -> String {
    let prefix = if partition == 0 { String::new() } else { format!("/p{partition}") };
    let end = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    format!("{prefix}{}", escape(&path[..end]))
}

/// The mount that shows `path`, and the path below it.
fn choose<'a>(
    volume: &str,
    mounts: &'a [Mountpoint],
    partition: u32,
    path: &'a [u8],
) -> Result<(&'a Mountpoint, &'a [u8])> {
    let showing: Vec<(&Mountpoint, &[u8])> = mounts
        .iter()
        .filter(|mount| mount.partition == partition)
        .filter_map(|mount| Some((mount, below(&mount.root, path)?)))
        .collect();
    if let Some(found) = showing.iter().find(|(mount, _)| !mount.read_only) {
        return Ok(*found);
    }
    let hint = "say where to restore to: cowslip restore SRC:/path DEST";
    match showing.first() {
        Some((mount, _)) => {
            Err(Failure::failed(format!("volume {volume} is mounted read only at {}", escape(&mount.dir)))
                .hint(hint))
        }
        None => Err(Failure::new(
            Kind::NotFound,
            format!("volume {volume} is not mounted where {} was", escape(path)),
        )
        .hint(hint)),
    }
}

/// `path` relative to `root`, if it lies below it.
fn below<'a>(root: &[u8], path: &'a [u8]) -> Option<&'a [u8]> {
    let root = root.strip_suffix(b"/").unwrap_or(root);
    let rest = path.strip_prefix(root)?;
    match rest.first() {
        // The mounted directory itself has no name below the mount, unless it is the whole file system.
        None => None,
        Some(b'/') => Some(&rest[1..]),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn mount(dir: &Path, root: &str, partition: u32, read_only: bool) -> Mountpoint {
        Mountpoint { dir: dir.as_os_str().as_bytes().to_vec(), root: root.into(), partition, read_only }
    }

    #[test]
    fn paths_below_a_mount() {
        assert_eq!(below(b"/", b"/a/b"), Some(&b"a/b"[..]));
        assert_eq!(below(b"/", b"/"), Some(&b""[..]));
        assert_eq!(below(b"/a", b"/a/b"), Some(&b"b"[..]));
        assert_eq!(below(b"/a", b"/ab"), None);
        assert_eq!(below(b"/a", b"/a"), None);
    }

    #[test]
    fn directories_are_named_as_sources_name_them() {
        assert_eq!(directory_in_image(b"/etc/sub/b", 0), "/etc/sub");
        assert_eq!(directory_in_image(b"/etc/b", 2), "/p2/etc");
    }

    #[test]
    fn a_writable_mount_of_the_partition_is_chosen() {
        let dir = Path::new("/m");
        let mounts = [mount(dir, "/", 1, false), mount(dir, "/", 0, true), mount(dir, "/sub", 0, false)];
        let chosen = choose("db", &mounts, 0, b"/sub/x").unwrap();
        assert_eq!((chosen.0, chosen.1), (&mounts[2], &b"x"[..]));
        assert_eq!(choose("db", &mounts, 0, b"/x").unwrap_err().exit_code(), 1);
        assert_eq!(choose("db", &mounts, 2, b"/x").unwrap_err().exit_code(), 3);
    }

    #[test]
    fn links_in_the_volume_do_not_lead_out_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        let inside = dir.path().join("volume");
        fs::create_dir_all(inside.join("real")).unwrap();
        fs::create_dir(&outside).unwrap();
        std::os::unix::fs::symlink(&outside, inside.join("trap")).unwrap();
        std::os::unix::fs::symlink("/real", inside.join("link")).unwrap();
        let mounts = [mount(&inside, "/", 0, false)];
        let name = SnapshotName { volume: "db".into(), name: "x".into() };
        let place = |path: &str| in_volume(&name, &mounts, 0, path.as_bytes());
        for (path, dir) in [("/real/x", "real"), ("/link/x", "real"), ("/x", "")] {
            let found = place(path).unwrap();
            let want = fs::canonicalize(inside.join(dir)).unwrap();
            assert_eq!(fs::canonicalize(found.path()).unwrap(), want, "{path}");
        }
        assert_eq!(place("/trap/x").err().map(|f| f.exit_code()), Some(3));
        assert_eq!(place("/gone/x").err().map(|f| f.exit_code()), Some(3));
        assert_eq!(
            fs::canonicalize(place("/x").unwrap().path()).unwrap(),
            fs::canonicalize(&inside).unwrap()
        );
    }
}
