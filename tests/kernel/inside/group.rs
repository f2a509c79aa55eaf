//! Control groups: processes that a test gives little of something.

use std::fs;
use std::path::{Path, PathBuf};

/// A group of processes; it goes with this machine at the latest.
pub struct Group(PathBuf);

impl Group {
    /// A group of a test's own, in which `controller` limits what it is for.
    pub fn new(name: &str, controller: &str) -> Self {
        let groups = Path::new("/sys/fs/cgroup");
        fs::write(groups.join("cgroup.subtree_control"), format!("+{controller}"))
            .expect("the kernel has the controller");
        let group = Self(groups.join(name));
        // A test that failed may have left it, with a process in it.
        fs::create_dir_all(&group.0).expect("a group");
        group
    }

    /// Sets a limit, as `memory.max`.
    pub fn limit(&self, file: &str, value: &str) {
        fs::write(self.0.join(file), value).expect("the limit is taken");
    }

    /// The file to which a process writes its number to be one of the group.
    pub fn members(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }

    pub fn add(&self, pid: u32) {
        fs::write(self.members(), pid.to_string()).expect("the process lives");
    }

    /// A number of a file of several, as `oom_kill` of `memory.events`.
    pub fn count(&self, file: &str, of: &str) -> u64 {
        let text = fs::read_to_string(self.0.join(file)).expect("the group counts");
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        let (_, number) = lines.find(|(name, _)| *name == of).expect("it counts that");
        number.parse().expect("a number")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Not before its last process has been reaped; an empty group does no harm.
        let _ = fs::remove_dir(&self.0);
    }
}
