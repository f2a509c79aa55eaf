//! Where the ring lives: a tmpfs that outlives the agent and not the boot.

use super::mounts;
use super::socket::make_dir;
use crate::config::Config;
use api::{Error, ErrorKind, Result};
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

const SHARED_MEMORY: &str = "/dev/shm";

/// The ring's directory, or why there is none.
#[derive(Debug, PartialEq, Eq)]
pub struct RingDir {
    /// The directory.
    pub path: Option<PathBuf>,
    /// Why this one, or none.
    pub reason: String,
    /// It is in /dev/shm under a name of this agent alone, and is of no use once the pool is closed.
    passing: bool,
}

impl RingDir {
    /// Gives its memory back after the pool was closed. The pool's lock must still be held: the next
    /// agent may choose the same directory.
    pub fn remove(&self) {
        if let Some(path) = self.path.as_ref().filter(|_| self.passing)
            && let Err(error) = fs::remove_dir_all(path)
        {
            tracing::warn!("{} stays: {error}", path.display());
        }
    }

    /// Takes it away if there is no ring in it: no pool was opened, and none was left by an agent that was killed.
    pub fn remove_unused(&self) {
        if let Some(path) = self.path.as_ref().filter(|_| self.passing) {
            let _ = fs::remove_dir(path);
        }
    }
}

/// Chooses and makes the directory: the configured one, else one in the run directory, else one in
/// /dev/shm; only on a tmpfs.
///
/// # Errors
/// A configured directory that cannot be used.
pub fn choose(config: &Config) -> Result<RingDir> {
    if let Some(dir) = &config.ring_dir {
        make_dir(dir, 0o700)?;
        if !on_tmpfs(dir) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("ring_dir {} is not on a tmpfs", dir.display()),
            )
            .hint("name a directory under /run or /dev/shm, or leave ring_dir out"));
        }
        return Ok(RingDir {
            path: Some(dir.clone()),
            reason: format!("ring_dir {}", dir.display()),
            passing: false,
        });
    }
    let shared = Path::new(SHARED_MEMORY).join(shared_name(&config.run_dir));
    for (base, dir) in
        [(config.run_dir.as_path(), config.run_dir.join("ring")), (Path::new(SHARED_MEMORY), shared)]
    {
        if on_tmpfs(base) && make_private(&dir) {
            return Ok(RingDir {
                reason: format!("{} is on a tmpfs", dir.display()),
                passing: base == Path::new(SHARED_MEMORY),
                path: Some(dir),
            });
        }
    }
    let reason = format!("neither {} nor {SHARED_MEMORY} is a tmpfs of ours", config.run_dir.display());
    Ok(RingDir { path: None, reason, passing: false })
}

fn on_tmpfs(dir: &Path) -> bool {
    mounts::fs_type(dir).is_ok_and(|fs_type| fs_type == "tmpfs")
}

/// A name of its own for each run directory: two agents never share a ring directory.
fn shared_name(run_dir: &Path) -> String {
    let text = run_dir.to_string_lossy();
    let name = text.trim_matches('/').replace('/', "-");
    format!("{name}-ring")
}

/// Makes `dir` with mode 0700. In /dev/shm anybody may have made it before: it must be ours alone.
fn make_private(dir: &Path) -> bool {
    if fs::DirBuilder::new().mode(0o700).create(dir).is_ok() {
        return true;
    }
    let own = fs::metadata("/proc/self").map(|meta| meta.uid());
    match (fs::symlink_metadata(dir), own) {
        (Ok(meta), Ok(own)) => meta.is_dir() && meta.uid() == own && meta.permissions().mode() & 0o077 == 0,
        _ => false,
    }
}

#[cfg(test)]
#[path = "../../../tests/skip.rs"]
mod skip;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AgentOptions;

    fn config(run_dir: &Path, ring_dir: Option<PathBuf>) -> Config {
        let file = tempfile::NamedTempFile::new().unwrap();
        let options = AgentOptions { config: Some(file.path().into()), ..AgentOptions::default() };
        Config { run_dir: run_dir.into(), ring_dir, ..Config::load(&options).unwrap() }
    }

    #[test]
    fn a_run_directory_on_disk_gets_a_private_ring_in_shared_memory() {
        let disk = tempfile::tempdir_in("/var/tmp").unwrap();
        if !on_tmpfs(Path::new(SHARED_MEMORY)) || on_tmpfs(disk.path()) {
            skip::skip("/dev/shm is no tmpfs, or /var/tmp is one");
            return;
        }
        let chosen = choose(&config(disk.path(), None)).unwrap();
        let ring = chosen.path.clone().unwrap();
        assert!(ring.starts_with(SHARED_MEMORY), "{}", ring.display());
        assert_eq!(fs::metadata(&ring).unwrap().permissions().mode() & 0o777, 0o700);
        fs::set_permissions(&ring, fs::Permissions::from_mode(0o755)).unwrap();
        let refused = choose(&config(disk.path(), None)).unwrap();
        fs::write(ring.join("left"), "").unwrap();
        chosen.remove_unused();
        assert!(ring.exists(), "with the ring of an agent that was killed");
        fs::remove_file(ring.join("left")).unwrap();
        chosen.remove_unused();
        assert!(!ring.exists());
        let chosen = choose(&config(disk.path(), None)).unwrap();
        chosen.remove();
        assert!(!ring.exists());
        assert_eq!(refused.path, None);
    }

    #[test]
    fn a_run_directory_on_a_tmpfs_holds_the_ring() {
        if !on_tmpfs(Path::new(SHARED_MEMORY)) {
            skip::skip("/dev/shm is no tmpfs");
            return;
        }
        let run = tempfile::tempdir_in(SHARED_MEMORY).unwrap();
        let chosen = choose(&config(run.path(), None)).unwrap();
        assert_eq!(chosen.path, Some(run.path().join("ring")));
        chosen.remove();
        assert!(run.path().join("ring").exists(), "not ours alone");
    }

    #[test]
    fn a_configured_directory_must_be_on_a_tmpfs() {
        let error = choose(&config(Path::new("/nonexistent"), Some("/proc/self".into()))).unwrap_err();
        assert!(error.message.contains("/proc/self"), "{error}");
    }
}
