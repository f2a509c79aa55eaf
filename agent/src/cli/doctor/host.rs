//! What can be seen of the host without an agent and without root.

use super::Finding;
use crate::cli::mount::mounts;
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::mpsc,
    time::Duration,
};

/// The oldest kernel that `make test-kernel` boots.
const TESTED_KERNEL: (u32, u32) = (6, 1);
/// Locked memory that a few devices need.
const MEMLOCK_BYTES: u64 = 64 << 20;
/// How long a mount may take to answer before it counts as stuck.
const MOUNT_PATIENCE: Duration = Duration::from_secs(2);
/// Where the agent's ring lives, or the directory above it before the first start.
const RING_DIRS: [&str; 2] = ["/run/cowslip", "/run"];

/// Looks at everything.
pub fn findings() -> Vec<Finding> {
    let mut findings = vec![kernel(), device("fuse", "/dev/fuse", "modprobe fuse")];
    findings.push(device("loop", "/dev/loop-control", "modprobe loop"));
    findings.push(ublk(Path::new("/dev/ublk-control")));
    findings.push(ring());
    findings.push(memlock(&fs::read_to_string("/proc/self/limits").unwrap_or_default()));
    findings.push(swap(&fs::read_to_string("/proc/swaps").unwrap_or_default()));
    findings.extend(["ext4", "xfs", "btrfs", "vfat"].map(mkfs));
    findings.push(stale_mounts());
    findings
}

fn kernel() -> Finding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    kernel_release(release.trim())
}

fn kernel_release(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().ok());
    let (Some(Some(major)), Some(Some(minor))) = (numbers.next(), numbers.next()) else {
        return Finding::warn(
            "kernel",
            format!("release '{release}' is not understood"),
            "Linux 6.1 or newer is best",
        );
    };
    if (major, minor) >= TESTED_KERNEL {
        return Finding::ok("kernel", format!("{release}: devices survive a killed agent"));
    }
    Finding::warn(
        "kernel",
        format!("{release}: older than any that devices were tried with"),
        "use Linux 6.1 or newer",
    )
}

fn device(name: &str, path: &str, hint: &str) -> Finding {
    match File::options().read(true).write(true).open(path) {
        Ok(_) => Finding::ok(name, format!("{path} can be used")),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Finding::warn(
            name,
            format!("{path} is there; only root may use it"),
            "run doctor as root to be sure",
        ),
        Err(e) => Finding::fail(name, format!("{path}: {e}"), hint),
    }
}

/// Without ublk, FUSE and loop serve as well: no failure.
fn ublk(control: &Path) -> Finding {
    if control.exists() {
        return Finding::ok("ublk", format!("{} is there", control.display()));
    }
    Finding::warn(
        "ublk",
        "absent: volumes are FUSE files under loop devices, which are slower",
        "`modprobe ublk_drv`, on Linux 6.1 or newer built with CONFIG_BLK_DEV_UBLK",
    )
}

fn ring() -> Finding {
    let mounts = mounts();
    let dir = RING_DIRS.iter().map(Path::new).find(|dir| dir.exists());
    match dir.and_then(|dir| Some((dir, type_of(dir, &mounts)?))) {
        Some((dir, fs_type)) if fs_type == "tmpfs" => {
            Finding::ok("ring", format!("{} is a tmpfs", dir.display()))
        }
        Some((dir, fs_type)) => Finding::warn(
            "ring",
            format!("{} is {fs_type}, not tmpfs: each write waits for the disk", dir.display()),
            "mount a tmpfs at /run, or set ring_dir to a directory on one",
        ),
        None => Finding::warn("ring", "/run does not exist", "mount a tmpfs at /run"),
    }
}

/// The type of the file system that holds `path`.
fn type_of(path: &Path, mounts: &[(PathBuf, String)]) -> Option<String> {
    let holding = mounts.iter().filter(|(dir, _)| path.starts_with(dir));
    // Among mounts at the same place the last one is on top.
    holding.max_by_key(|(dir, _)| dir.components().count()).map(|(_, fs_type)| fs_type.clone())
}

/// Limits of this process, which an agent started from the same shell would inherit.
fn memlock(limits: &str) -> Finding {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    match line.and_then(|line| line.split_whitespace().next()).map(str::parse::<u64>) {
        Some(Ok(bytes)) if bytes < MEMLOCK_BYTES => Finding::warn(
            "memlock",
            format!("{} KiB of memory can be locked", bytes >> 10),
            "the systemd unit sets LimitMEMLOCK=infinity; elsewhere `ulimit -l unlimited` as root",
        ),
        _ => Finding::ok("memlock", "enough memory can be locked"),
    }
}

/// Swapping to a volume would make the agent wait for itself.
fn swap(swaps: &str) -> Finding {
    let devices = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    let ours: Vec<&str> = devices.filter(|device| is_volume(Path::new(device))).collect();
    if ours.is_empty() {
        return Finding::ok("swap", "no swap on a volume");
    }
    Finding::fail(
        "swap",
        format!("swap on {}: the agent can wait for itself for ever", ours.join(", ")),
        "`swapoff` it, and keep swap off volumes",
    )
}

fn is_volume(device: &Path) -> bool {
    let Some(name) = device.file_name().and_then(|name| name.to_str()) else { return false };
    if device.starts_with("/dev/cowslip") || name.starts_with("ublkb") {
        return true;
    }
    let backing = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).unwrap_or_default();
    Path::new(backing.trim()).starts_with("/run/cowslip")
}

fn mkfs(fs_type: &str) -> Finding {
    let name = format!("mkfs.{fs_type}");
    let package = match fs_type {
        "ext4" => "e2fsprogs",
        "xfs" => "xfsprogs",
        "btrfs" => "btrfs-progs",
        _ => "dosfstools",
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    match std::env::split_paths(&path).chain(usual).map(|dir| dir.join(&name)).find(|tool| tool.is_file()) {
        Some(tool) => Finding::ok(&name, format!("{}", tool.display())),
        None => Finding::warn(&name, "not found", &format!("install the package {package}")),
    }
}

/// FUSE mounts of ours whose server died: every use of them fails.
fn stale_mounts() -> Finding {
    let ours = mounts().into_iter().filter(|(_, fs_type)| fs_type.starts_with("fuse.cowslip"));
    let dead: Vec<String> = ours.filter_map(|(dir, _)| why_dead(&dir)).collect();
    if dead.is_empty() {
        return Finding::ok("mounts", "no stale mounts");
    }
    Finding::fail(
        "mounts",
        format!("stale: {}", dead.join(", ")),
        "the agent detaches its own when it starts; `umount -l DIR` detaches others",
    )
}

fn why_dead(dir: &Path) -> Option<String> {
    let (sender, receiver) = mpsc::channel();
    let asked = dir.to_owned();
    // A mount that is stuck keeps the thread; the process ends all the same.
    std::thread::spawn(move || sender.send(fs::symlink_metadata(asked).err()));
    match receiver.recv_timeout(MOUNT_PATIENCE) {
        Ok(None) => None,
        Ok(Some(e)) if e.raw_os_error() == Some(libc::ENOTCONN) => {
            Some(format!("{} (no server)", dir.display()))
        }
        Ok(Some(_)) => None,
        Err(_) => Some(format!("{} (does not answer)", dir.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn kernels() {
        for (release, level) in [
            ("6.9.0", Level::Ok),
            ("6.18.44-fc", Level::Ok),
            ("7.0-rc1", Level::Ok),
            ("6.1.0-50-amd64", Level::Ok),
            ("5.15.0", Level::Warn),
            ("", Level::Warn),
        ] {
            assert_eq!(kernel_release(release).level, level, "{release}");
        }
    }

    #[test]
    fn the_innermost_mount_holds_a_path() {
        let mounts: Vec<(PathBuf, String)> =
            [("/", "ext4"), ("/run", "ext4"), ("/run", "tmpfs"), ("/run/x", "xfs")]
                .map(|(dir, fs_type)| (dir.into(), fs_type.into()))
                .to_vec();
        assert_eq!(type_of(Path::new("/run/cowslip"), &mounts).as_deref(), Some("tmpfs"));
        assert_eq!(type_of(Path::new("/running"), &mounts).as_deref(), Some("ext4"));
    }

    #[test]
    fn swap_on_a_volume_is_a_failure() {
        let table = |device: &str| format!("Filename Type Size Used Priority\n{device} partition 1 0 -2\n");
        assert_eq!(swap(&table("/dev/ublkb0")).level, Level::Fail);
        assert_eq!(swap(&table("/dev/cowslip/db")).level, Level::Fail);
        assert_eq!(swap(&table("/dev/sda2")).level, Level::Ok);
        assert_eq!(swap("").level, Level::Ok);
    }

    #[test]
    fn limits_and_devices() {
        assert_eq!(memlock("Max locked memory  65536  65536  bytes").level, Level::Warn);
        assert_eq!(memlock("Max locked memory  unlimited  unlimited  bytes").level, Level::Ok);
        assert_eq!(memlock("").level, Level::Ok);
        assert_eq!(device("x", "/dev/no-such-device", "h").level, Level::Fail);
        assert_eq!(ublk(Path::new("/dev/no-such-device")).level, Level::Warn);
    }

    #[test]
    fn every_finding_but_ok_has_a_hint() {
        for finding in findings() {
            assert_eq!(finding.hint.is_none(), finding.level == Level::Ok, "{finding:?}");
        }
    }
}
