//! A supervised server in a directory of its own, and everything it made undone at the end, also after a failure.

use super::{server, system};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything may take before it counts as hung. Not a measure of speed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for a condition.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs a program; fails with what it said unless it succeeds.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {}\n{text}", output.status);
    text
}

/// The rig.
pub struct Rig {
    temp: TempDir,
    supervisor: Option<Child>,
    mounts: Vec<PathBuf>,
    devices: Vec<PathBuf>,
}

impl Rig {
    /// A volume of `len` bytes, served.
    pub fn new(len: u64) -> Self {
        Self::of(tempfile::tempdir().unwrap(), len)
    }

    /// Its servers do not ask the kernel to send requests again.
    pub fn keeping_requests(len: u64) -> Self {
        let temp = tempfile::tempdir().unwrap();
        File::create(temp.path().join("keep")).unwrap();
        Self::of(temp, len)
    }

    fn of(temp: TempDir, len: u64) -> Self {
        File::create(temp.path().join("disk.img")).unwrap().set_len(len).unwrap();
        let mut rig = Self { temp, supervisor: None, mounts: Vec::new(), devices: Vec::new() };
        rig.start();
        rig
    }

    pub fn dir(&self) -> &Path {
        self.temp.path()
    }

    /// Starts a supervisor, which starts a server.
    pub fn start(&mut self) {
        let _ = std::fs::remove_file(self.dir().join("ready"));
        let mut command = Command::new("/proc/self/exe");
        command.arg("supervise").arg(self.dir()).current_dir(self.dir());
        let child = command.spawn().unwrap();
        self.supervisor = Some(child);
        self.wait_ready(0);
        let device = self.device();
        if !self.devices.contains(&device) {
            self.devices.push(device);
        }
    }

    /// Process id of the server and the device, once it serves.
    fn ready(&self) -> Option<(u32, PathBuf)> {
        let text = std::fs::read_to_string(self.dir().join("ready")).ok()?;
        let (pid, device) = text.split_once(' ')?;
        Some((pid.parse().ok()?, device.into()))
    }

    /// Waits for a server that is not process `old`.
    pub fn wait_ready(&self, old: u32) {
        wait_for("a new server", || self.ready().is_some_and(|(pid, _)| pid != old));
    }

    pub fn server(&self) -> u32 {
        self.ready().unwrap().0
    }

    pub fn device(&self) -> PathBuf {
        self.ready().unwrap().1
    }

    pub fn device_str(&self) -> String {
        self.device().to_str().unwrap().to_owned()
    }

    pub fn supervisor(&self) -> u32 {
        self.supervisor.as_ref().unwrap().id()
    }

    /// SIGKILL to the server; how long it took until the next one serves.
    pub fn kill_server(&self) -> Duration {
        self.end_server(libc::SIGKILL)
    }

    /// A deadly signal to the server; how long it took until the next one serves.
    pub fn end_server(&self, signal: libc::c_int) -> Duration {
        let (pid, start) = (self.server(), Instant::now());
        system::kill(pid, signal);
        self.wait_ready(pid);
        start.elapsed()
    }

    /// SIGTERM to the supervisor, and its exit status.
    pub fn terminate(&mut self) -> ExitStatus {
        let mut child = self.supervisor.take().unwrap();
        system::kill(child.id(), libc::SIGTERM);
        child.wait().unwrap()
    }

    pub fn ask(&self, request: &str) -> Result<(), String> {
        server::ask(self.dir(), request)
    }

    pub fn events(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir().join("events")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    pub fn clear_events(&self) {
        File::options().write(true).truncate(true).open(self.dir().join("events")).unwrap();
    }

    /// Mounts the device on a new directory.
    pub fn mount(&mut self) -> PathBuf {
        let point = self.dir().join("mnt 0");
        std::fs::create_dir_all(&point).unwrap();
        run("mount", &[&self.device_str(), point.to_str().unwrap()]);
        self.mounts.push(point.clone());
        point
    }

    pub fn unmount(&mut self) {
        let point = self.mounts.pop().unwrap();
        run("umount", &[point.to_str().unwrap()]);
    }

    /// Processes of this program that work in this directory: its name is in their arguments.
    pub fn processes(&self) -> Vec<u32> {
        let dir = self.dir().as_os_str().as_encoded_bytes().to_vec();
        let works_here = |pid: &u32| {
            let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            arguments.split(|&b| b == 0).skip(1).take(2).any(|argument| argument == dir)
        };
        std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(works_here)
            .collect()
    }

    fn backing(device: &Path) -> Option<String> {
        let name = device.file_name()?.to_str()?;
        std::fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()
    }

    /// Whether the device is one of this rig's volume (its number may have gone to somebody else).
    pub fn is_ours(&self, device: &Path) -> bool {
        let id = format!(".{:x}.", server::identity(self.dir()).key.volume_id);
        Self::backing(device).is_some_and(|name| name.contains(&id))
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let quiet = |program: &str, args: &[&str]| {
            let _ = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
        };
        let _ = self.ask("thaw");
        for point in self.mounts.drain(..).rev() {
            quiet("umount", &[point.to_str().unwrap()]);
        }
        let _ = self.ask("detach");
        // Whatever a failed test has left of it.
        let left: Vec<&PathBuf> = self.devices.iter().filter(|device| self.is_ours(device)).collect();
        for device in left {
            quiet("losetup", &["-d", device.to_str().unwrap()]);
        }
        if self.supervisor.is_some() {
            self.terminate();
        }
        // What is left is a parked holder, and none when all went well.
        for pid in self.processes() {
            system::kill(pid, libc::SIGTERM);
        }
    }
}
