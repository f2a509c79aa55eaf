//! The ring of an agent that was killed. Tests of other crates include this file by its path.

use std::path::Path;

/// Takes away the ring in /dev/shm of an agent that had this run directory, which is no tmpfs. One that was stopped has
/// done so itself.
pub fn remove(run_dir: &Path) {
    let name = run_dir.display().to_string().trim_matches('/').replace('/', "-");
    let _ = std::fs::remove_dir_all(Path::new("/dev/shm").join(format!("{name}-ring")));
}
