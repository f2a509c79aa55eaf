//! A host of its own for a test: a pool, its agent with loop devices, mountpoints. Whatever a test leaves behind, on
//! failure too, goes with the rig: processes first, because an unmount would wait for ever for a device that nobody
//! serves, then mounts, loop devices and files. All of them are known by the rig's directory in their names.

use crate::{binary, has_program, ring, skip};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Only there so that a failure ends; no test asserts a clock.
const PATIENCE: Duration = Duration::from_secs(120);

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit code; None if a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it said.
    pub stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}

impl Ended {
    /// Fails the test unless this was the exit code.
    #[track_caller]
    pub fn with(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// Fails the test unless the error has all these words.
    #[track_caller]
    pub fn saying(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in {}", self.stderr);
        }
        self
    }

    /// What it printed, as one JSON value.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// The host of a test.
pub struct Rig {
    dir: TempDir,
    /// Loop devices have it in the names of what they show. Known when somebody served.
    pool_id: OnceLock<String>,
    /// The kernel's names of the devices that were attached.
    attached: Mutex<BTreeSet<String>>,
}

/// What the agents of the tests make devices with: `loop`, or what `COWSLIP_TEST_TRANSPORT` says.
pub fn transport() -> String {
    std::env::var("COWSLIP_TEST_TRANSPORT").unwrap_or_else(|_| "loop".into())
}

impl Rig {
    /// A running agent on a new pool of that size; None, said: this machine cannot.
    pub fn new(size: &str) -> Option<Self> {
        let rig = Self::without_agent()?;
        rig.init_pool(size);
        rig.start();
        Some(rig)
    }

    /// Directories and a configuration, but no pool yet.
    pub fn without_agent() -> Option<Self> {
        if let Some(why) = lacking() {
            skip(&why);
            return None;
        }
        // A pool is opened with O_DIRECT, which a tmpfs may refuse.
        let dir = tempfile::tempdir_in("/var/tmp").expect("a temporary directory");
        let rig = Self { dir, pool_id: OnceLock::new(), attached: Mutex::default() };
        let dir = rig.dir.path().display();
        let text = format!(
            "pool = '{dir}/pool'\nsocket = '{dir}/agent.sock'\nrun_dir = '{dir}/run'\ndevice_dir = '{dir}/dev'\n\
             snapshots_dir = '{dir}/snapshots'\ntransport = '{}'\n",
            transport()
        );
        fs::write(rig.path("config.toml"), text).expect("the directory is writable");
        Some(rig)
    }

    /// A word that the names of this rig's loop devices have in them, where the test serves them itself; it goes with them.
    pub fn own_devices(&self) -> &str {
        let name = self.dir.path().file_name().expect("it has a name").to_string_lossy();
        self.pool_id.get_or_init(|| name.chars().filter(char::is_ascii_alphanumeric).collect())
    }

    /// Makes the pool.
    pub fn init_pool(&self, size: &str) {
        let mut init = cowslip();
        init.args(["-q", "pool", "init", "--size", size]).arg(self.path("pool"));
        ended(&mut init).with(0);
    }

    /// A path in the rig's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What its agents logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// The agent on this rig's configuration, not started.
    pub fn agent(&self) -> Command {
        let mut command = cowslip();
        command.arg("agent").arg("--config").arg(self.path("config.toml"));
        command
    }

    /// Starts the agent and waits until it serves.
    pub fn start(&self) {
        let log = fs::File::options().create(true).append(true).open(self.path("log")).expect("a log");
        let log_too = log.try_clone().expect("a second descriptor");
        self.start_as(self.agent().stdout(log_too).stderr(log));
    }

    /// Starts the agent by this command and waits until it serves.
    pub fn start_as(&self, command: &mut Command) {
        let mut parent = command.spawn().expect("the agent starts");
        // Collects it whenever it ends.
        std::thread::spawn(move || parent.wait());
        let ready = self.run(["status", "--wait", "60s"]);
        assert_eq!(ready.code, Some(0), "{ready:?}\n{}", self.log());
        let id = || self.json("pool show")["id"].as_str().expect("a pool has an id").to_owned();
        self.pool_id.get_or_init(id);
    }

    /// A command to the agent, run in the rig's directory.
    pub fn command(&self) -> Command {
        let mut command = cowslip();
        command.arg("--socket").arg(self.path("agent.sock")).current_dir(self.dir.path());
        command
    }

    /// Runs a command to the agent.
    pub fn run<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Ended {
        ended(self.command().args(words))
    }

    /// Runs a line of words that must succeed; what it prints.
    #[track_caller]
    pub fn ok(&self, line: &str) -> String {
        let ended = self.run(line.split(' '));
        assert_eq!(ended.code, Some(0), "{line}: {ended:?}\n{}", self.log());
        ended.stdout
    }

    /// Runs a line of words that must succeed; the JSON that it prints.
    #[track_caller]
    pub fn json(&self, line: &str) -> serde_json::Value {
        let ended = self.run(["--json"].into_iter().chain(line.split(' ')));
        assert_eq!(ended.code, Some(0), "{line}: {ended:?}\n{}", self.log());
        ended.json()
    }

    /// The serving process, if there is one.
    pub fn serving(&self) -> Option<u32> {
        let ended = self.run(["--json", "status"]);
        (ended.code == Some(0)).then(|| ended.json()["agent"]["pid"].as_u64()).flatten()?.try_into().ok()
    }

    /// The serving process, which there must be.
    pub fn pid(&self) -> u32 {
        self.serving().unwrap_or_else(|| panic!("no agent serves:\n{}", self.log()))
    }

    /// Kills the serving process and waits until another one serves.
    pub fn kill_and_wait(&self) -> Duration {
        let pid = self.pid();
        signal("KILL", pid);
        self.wait_for_another(pid)
    }

    /// Waits until a process that is not `pid` serves; how long that was.
    pub fn wait_for_another(&self, pid: u32) -> Duration {
        let started = Instant::now();
        self.eventually("another process serves", || self.serving().is_some_and(|now| now != pid));
        started.elapsed()
    }

    /// Asks the agent to stop, and waits until its serving process is gone.
    pub fn terminate(&self) {
        let pid = self.pid();
        signal("TERM", parent(pid));
        self.eventually("the agent stops", || !Path::new(&format!("/proc/{pid}")).exists());
    }

    /// Stops the agent, which nobody uses any more, and checks its pool.
    pub fn stop_and_check(&self) {
        self.terminate();
        self.eventually("all processes end", || self.processes().is_empty());
        let snapshots = self.path("snapshots").display().to_string();
        assert!(!self.mounts().contains(&snapshots), "the snapshots are still mounted");
        let check = ended(cowslip().args(["pool", "check"]).arg(self.path("pool")));
        assert_eq!(check.code, Some(0), "{check:?}");
    }

    /// Waits for a condition; fails the test if that takes too long.
    #[track_caller]
    pub fn eventually(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let started = Instant::now();
        while !condition() {
            assert!(started.elapsed() < PATIENCE, "waited in vain: {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A new attached volume with an ext4 file system; its device.
    pub fn ext4(&self, name: &str, size: &str) -> PathBuf {
        self.ok(&format!("-q volume create {name} --size {size} --fs ext4"));
        self.attach(name)
    }

    /// Attaches a volume; its device.
    pub fn attach(&self, name: &str) -> PathBuf {
        let device = PathBuf::from(self.ok(&format!("volume attach {name}")).trim_end());
        let node = fs::canonicalize(&device).unwrap_or_else(|e| panic!("{}: {e}", device.display()));
        let node = node.file_name().expect("a device has a name").to_string_lossy().into_owned();
        self.attached.lock().expect("nobody panics with it").insert(node);
        device
    }

    /// Mounts a device on a directory of the rig.
    pub fn mount(&self, device: &Path, at: &str, options: &str) -> PathBuf {
        let dir = self.path(at);
        fs::create_dir_all(&dir).expect("a mountpoint");
        tool("mount", [OsStr::new("-o"), options.as_ref(), device.as_ref(), dir.as_ref()]);
        dir
    }

    /// Processes that name the rig's directory.
    pub fn processes(&self) -> Vec<u32> {
        let place = self.dir.path().display().to_string();
        let entries = fs::read_dir("/proc").expect("there is /proc").flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let ours = |pid: &u32| {
            fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&place))
        };
        pids.filter(ours).collect()
    }

    /// Mountpoints below the rig's directory, the latest first.
    pub fn mounts(&self) -> Vec<String> {
        let place = self.dir.path().display().to_string();
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        let mut ours: Vec<_> = points.filter(|point| point.starts_with(&place)).map(str::to_owned).collect();
        ours.reverse();
        ours
    }

    /// Devices of this rig's volumes that the kernel has.
    pub fn devices(&self) -> Vec<String> {
        if transport() == "loop" {
            return self.loops();
        }
        let attached = self.attached.lock().expect("nobody panics with it");
        attached.iter().filter(|name| Path::new("/sys/block").join(name).exists()).cloned().collect()
    }

    /// Loop devices over files below the rig's directory, and those of its volumes.
    pub fn loops(&self) -> Vec<String> {
        let place = self.dir.path().display().to_string();
        let id = self.pool_id.get();
        let entries = fs::read_dir("/sys/block").expect("there is /sys").flatten();
        let ours = |name: &String| {
            fs::read_to_string(format!("/sys/block/{name}/loop/backing_file"))
                .is_ok_and(|file| file.starts_with(&place) || id.is_some_and(|id| file.contains(id)))
        };
        entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(ours).collect()
    }
}

impl Rig {
    /// What a failed test left on ublk devices is taken down while somebody serves them: they outlive their server, and
    /// an unmount would wait for ever for the next one.
    fn take_down(&self) {
        if self.serving().is_none() {
            return;
        }
        for point in self.mounts() {
            quiet("umount", &[&point]);
        }
        let volumes = self.run(["--json", "volume", "list"]);
        let volumes: serde_json::Value = serde_json::from_str(&volumes.stdout).unwrap_or_default();
        for name in volumes.as_array().into_iter().flatten().filter_map(|volume| volume["name"].as_str()) {
            self.run(["-q", "volume", "detach", name]);
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if transport() != "loop" && !self.devices().is_empty() {
            self.take_down();
        }
        for pid in self.processes() {
            quiet("kill", &["-KILL", &pid.to_string()]);
        }
        if transport() != "loop" && !self.devices().is_empty() {
            // Only the end of the machine frees these, and whoever looks into their mounts hangs.
            self.dir.disable_cleanup(true);
            return;
        }
        for point in self.mounts() {
            quiet("umount", &["-l", &point]);
        }
        for name in self.loops() {
            quiet("losetup", &["-d", &format!("/dev/{name}")]);
        }
        ring::remove(&self.path("run"));
    }
}

/// A child that is killed if the test does not wait for it.
pub struct Running(pub Child);

impl Running {
    /// Starts it.
    pub fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap_or_else(|e| panic!("{command:?}: {e}")))
    }

    /// Waits for its end, with its output where that is piped.
    pub fn end(mut self) -> Ended {
        let read = |stream: Option<&mut dyn std::io::Read>| {
            let mut text = Vec::new();
            if let Some(stream) = stream {
                stream.read_to_end(&mut text).expect("a pipe can be read");
            }
            String::from_utf8_lossy(&text).into_owned()
        };
        let stderr = read(self.0.stderr.as_mut().map(|stream| stream as _));
        let stdout = read(self.0.stdout.as_mut().map(|stream| stream as _));
        Ended { code: self.0.wait().expect("a child can be waited for").code(), stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The next of a sequence of random numbers (SplitMix64), the same for the same seed.
pub fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Bytes that no compression and no hole shortens.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut seed = seed;
    let words = std::iter::repeat_with(|| random(&mut seed).to_le_bytes());
    words.flatten().take(length).collect()
}

/// The program, away from the terminal and from what the caller's environment says.
pub fn cowslip() -> Command {
    let mut command = Command::new(binary("cowslip"));
    for variable in ["COWSLIP_SOCKET", "COLUMNS", "NOTIFY_SOCKET", "LISTEN_FDS", "WATCHDOG_USEC"] {
        command.env_remove(variable);
    }
    command.stdin(Stdio::null());
    command
}

/// Runs a command to its end.
pub fn ended(command: &mut Command) -> Ended {
    command.output().unwrap_or_else(|e| panic!("{command:?}: {e}")).into()
}

/// Runs a tool of the host, which must succeed; what it prints.
#[track_caller]
pub fn tool<S: AsRef<OsStr> + Debug>(name: &str, words: impl IntoIterator<Item = S>) -> String {
    let mut command = host_tool(name);
    command.args(words);
    let ended = ended(&mut command);
    assert_eq!(ended.code, Some(0), "{command:?}: {ended:?}");
    ended.stdout
}

/// A tool of the host, also where only root looks for it.
pub fn host_tool(name: &str) -> Command {
    let mut command = Command::new(name);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).env("LC_ALL", "C").stdin(Stdio::null());
    command
}

/// Sends a signal, by its name without SIG.
#[track_caller]
pub fn signal(name: &str, pid: u32) {
    tool("kill", [format!("-{name}"), pid.to_string()]);
}

/// The process that started `pid`.
pub fn parent(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("it has a parent");
    line.trim().parse().expect("a number")
}

/// Memory of a process that is in use, in MiB.
pub fn resident_mib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") >> 10
}

/// Unmounts, which must succeed. A program that another test has just started has, until it runs, what this process has open:
/// that makes a file system busy that nobody uses, for an instant.
#[track_caller]
pub fn unmount(dir: &Path) {
    let started = Instant::now();
    loop {
        let ended = ended(host_tool("umount").arg(dir));
        let busy = ended.code == Some(32) && ended.stderr.contains("busy");
        if !busy || started.elapsed() > PATIENCE {
            ended.with(0);
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn quiet(program: &str, words: &[&str]) -> bool {
    host_tool(program).args(words).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// What this machine lacks for devices and mounts.
fn lacking() -> Option<String> {
    let usable = |path: &str| fs::File::options().read(true).write(true).open(path).is_ok();
    if let Some(path) = ["/dev/fuse", "/dev/loop-control"].into_iter().find(|path| !usable(path)) {
        return Some(format!("{path} cannot be used: run as root where there are FUSE and loop devices"));
    }
    if !quiet("unshare", &["--mount", "true"]) {
        return Some("mounting is not allowed here: run as root".into());
    }
    let needed = [("mkfs.ext4", "e2fsprogs"), ("getfattr", "attr")];
    let missing = needed.into_iter().find(|(program, _)| !has_program(program));
    missing.map(|(program, package)| format!("{program} is missing: install {package}"))
}
