//! What this host offers, seen from the agent.

use super::agent::Agent;
use super::mkfs;
use api::v1::Fact;
use api::v1::fact::Level;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use store::{PoolState, Recovery};

/// Locked memory that a few devices need, bytes.
const MEMLOCK_BYTES: u64 = 64 << 20;
/// In the mask of effective capabilities.
const CAP_IPC_LOCK: u64 = 1 << 14;

impl Agent {
    /// The answer to `doctor`.
    pub fn doctor_facts(&self) -> Vec<Fact> {
        let mut facts = vec![
            self.pool_fact(),
            self.ring_fact(),
            self.io_fact(),
            self.transport_fact(),
            self.supervisor_fact(),
        ];
        facts.push(device_fact("fuse", "/dev/fuse", "`modprobe fuse`; the agent needs root for devices"));
        facts.push(device_fact(
            "loop",
            "/dev/loop-control",
            "`modprobe loop`; the agent needs root for devices",
        ));
        facts.push(ublk_fact(self.devices.kind(), self.devices.reason()));
        facts.push(memlock_fact());
        facts.push(self.snapshots_fact());
        facts.extend(mkfs::names().map(mkfs_fact));
        facts
    }

    fn pool_fact(&self) -> Fact {
        let info = self.pool.info();
        let detail = format!("{}: {}, {} MiB free", info.path, info.state.as_str(), info.free_bytes >> 20);
        match info.state {
            PoolState::Ok => ok("pool", detail),
            PoolState::Low => warn("pool", detail, "delete snapshots or volumes, or grow the pool"),
            PoolState::Full => fail("pool", detail, "delete snapshots or volumes"),
            PoolState::Failed => {
                fail("pool", detail, "look at the kernel's log and the disk, then restart the agent")
            }
        }
    }

    fn ring_fact(&self) -> Fact {
        let detail = format!("{} ({})", self.pool.info().ring, self.ring.reason);
        if self.pool.recovery() == Recovery::RingLost {
            return warn("ring", detail, "the last agent's ring was lost: see `cowslip events`");
        }
        if self.pool.info().ring.starts_with("ring") {
            return ok("ring", detail);
        }
        warn("ring", detail, "each write waits for the disk: set ring_dir to a directory on a tmpfs")
    }

    fn io_fact(&self) -> Fact {
        let engine = self.pool.info().io;
        if engine == "io_uring" {
            return ok("io", engine.to_owned());
        }
        let how = "allow io_uring: `sysctl kernel.io_uring_disabled=0`, and the container's seccomp profile";
        warn("io", engine.to_owned(), how)
    }

    fn transport_fact(&self) -> Fact {
        let detail = format!("{}: {}", self.devices.kind(), self.devices.reason());
        match self.devices.require() {
            Ok(_) => ok("transport", detail),
            Err(_) => {
                fail("transport", detail, "volumes cannot be attached; images, clones and snapshots work")
            }
        }
    }

    fn supervisor_fact(&self) -> Fact {
        match self.supervisor {
            "nobody" => {
                warn("supervisor", "nobody keeps devices alive", "start the agent under systemd, or as root")
            }
            who => ok("supervisor", format!("{who} keeps devices alive while the agent restarts")),
        }
    }

    fn snapshots_fact(&self) -> Fact {
        match (self.snapshots_mount.failure(), self.snapshots_mount.dir()) {
            (Some(why), _) => fail("snapshots", why, "`cowslip ls VOL@SNAP:/` works without it"),
            (None, Some(dir)) => ok("snapshots", format!("mounted at {}", dir.display())),
            (None, None) => ok("snapshots", "not mounted, as configured"),
        }
    }
}

fn fact(level: Level, name: &str, detail: impl Into<String>, hint: &str) -> Fact {
    Fact { name: name.into(), level: level.into(), detail: detail.into(), hint: hint.into() }
}

fn ok(name: &str, detail: impl Into<String>) -> Fact {
    fact(Level::Ok, name, detail, "")
}

fn warn(name: &str, detail: impl Into<String>, hint: &str) -> Fact {
    fact(Level::Warn, name, detail, hint)
}

fn fail(name: &str, detail: impl Into<String>, hint: &str) -> Fact {
    fact(Level::Fail, name, detail, hint)
}

fn device_fact(name: &str, path: &str, hint: &str) -> Fact {
    match usable(Path::new(path)) {
        Ok(()) => ok(name, format!("{path} can be used")),
        Err(error) => fail(name, format!("{path}: {error}"), hint),
    }
}

/// Whether a control device can be opened.
pub fn usable(device: &Path) -> io::Result<()> {
    File::options().read(true).write(true).open(device).map(drop)
}

/// Without ublk, FUSE and loop serve as well: no failure.
fn ublk_fact(used: &str, reason: &str) -> Fact {
    let control = "/dev/ublk-control";
    match (used, usable(Path::new(control))) {
        ("ublk", _) => ok("ublk", "used"),
        (_, Ok(())) if reason.contains("not ublk") => warn("ublk", reason, "see the kernel's log"),
        (_, Ok(())) => ok("ublk", format!("{control} can be used; another transport is configured")),
        (_, Err(error)) => warn(
            "ublk",
            format!("{control}: {error}: volumes are FUSE files under loop devices, which are slower"),
            "`modprobe ublk_drv`, on kernel 6.1 or later built with CONFIG_BLK_DEV_UBLK; then restart the agent",
        ),
    }
}

fn mkfs_fact(fs: &str) -> Fact {
    let name = format!("mkfs.{fs}");
    match mkfs::find(fs) {
        Ok(_) => ok(&name, "found"),
        Err(error) => warn(&name, error.message, error.hint.as_deref().unwrap_or_default()),
    }
}

fn memlock_fact() -> Fact {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    match locked_memory_limit(&limits) {
        Some(bytes) if bytes < MEMLOCK_BYTES && !may_lock_memory(&status) => warn(
            "memlock",
            format!("{} MiB of memory can be locked", bytes >> 20),
            "set LimitMEMLOCK=infinity for the service: a device's buffers must not be swapped",
        ),
        _ => ok("memlock", "enough memory can be locked"),
    }
}

/// Whether the process has CAP_IPC_LOCK, for which there is no limit (capabilities(7)).
fn may_lock_memory(status: &str) -> bool {
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).is_some_and(|set| set & CAP_IPC_LOCK != 0)
}

/// The soft limit; None: there is none.
fn locked_memory_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_proc() {
        let table = |soft: &str| {
            format!(
                "Limit  Soft Limit  Hard Limit  Units\nMax locked memory         {soft}    9999    bytes\n"
            )
        };
        assert_eq!(locked_memory_limit(&table("8388608")), Some(8 << 20));
        assert_eq!(locked_memory_limit(&table("unlimited")), None);
        assert_eq!(locked_memory_limit(""), None);
    }

    #[test]
    fn capabilities_of_proc() {
        assert!(may_lock_memory("Name:\tx\nCapEff:\t000001ffffffffff\n"));
        assert!(!may_lock_memory("CapEff:\t0000000000000000\n") && !may_lock_memory(""));
    }

    #[test]
    fn ublk_is_told_of_as_it_is_used() {
        assert_eq!(ublk_fact("ublk", "").level(), Level::Ok);
        if !Path::new("/dev/ublk-control").exists() {
            let fact = ublk_fact("loop", "why");
            assert_eq!(fact.level(), Level::Warn);
            assert!(fact.hint.contains("modprobe ublk_drv") && fact.hint.contains("CONFIG_BLK_DEV_UBLK"));
        }
    }

    #[test]
    fn a_missing_device_is_a_failure_with_a_hint() {
        let fact = device_fact("x", "/nonexistent", "do");
        assert_eq!((fact.level(), fact.hint.as_str()), (Level::Fail, "do"));
        assert!(fact.detail.contains("/nonexistent"));
    }
}
