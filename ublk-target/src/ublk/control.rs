//! Commands to `/dev/ublk-control`, each with a deadline, answered as the kernel answered (EBUSY stays EBUSY).

use super::abi::{CONTROL, Command, DeviceInfo, Op, Params, flag};
use crate::error::{Context, Error, Result};
use crate::sys::uring::{COMMAND, CommandRing};
use parking_lot::Mutex;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, IntoBytes};

/// What every command but a removal ends within: they take milliseconds.
const LIMIT: Duration = Duration::from_secs(10);
/// How long a device may be waited for that is being taken away.
pub(super) const REMOVAL: Duration = Duration::from_secs(10);
/// Between two questions whether a dead server's files are closed.
const POLL: Duration = Duration::from_micros(500);
/// Rings kept for the next command.
const KEPT_RINGS: usize = 4;

/// What the driver can do (GET_FEATURES); nothing before kernel 6.5.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Features(u64);

impl Features {
    pub(super) fn has(self, bits: u64) -> bool {
        self.0 & bits == bits
    }
}

/// The control device.
pub(super) struct Control {
    node: File,
    rings: Mutex<Vec<CommandRing>>,
    features: Features,
    encoded: bool,
}

/// What this kernel is, for errors.
pub(super) fn kernel() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("kernel {}", release.trim())
}

fn open_node() -> Result<File> {
    match File::options().read(true).write(true).open(CONTROL) {
        Ok(node) => Ok(node),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENXIO)) => {
            Err(Error::Unsupported {
                missing: format!("no {CONTROL} on this machine ({})", kernel()),
                hint: "`modprobe ublk_drv`; the kernel must be 6.1 or later and built with CONFIG_BLK_DEV_UBLK",
            })
        }
        Err(e) => Err(e).context("open", CONTROL),
    }
}

impl Control {
    /// Opens it and asks what the driver can do.
    pub(super) fn open() -> Result<Self> {
        let mut control =
            Self { node: open_node()?, rings: Mutex::default(), features: Features(0), encoded: true };
        let mut bits = 0u64;
        match control.send(Op::GET_FEATURES, u32::MAX, 0, bits.as_mut_bytes(), LIMIT) {
            Ok(_) => control.features = Features(bits),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ETIMEDOUT | libc::EPERM | libc::ENOSYS)) => {
                return Err(unusable(&e));
            }
            // Older than 6.5. What it grants is read back from each device that is added.
            Err(_) => control.encoded = false,
        }
        Ok(control)
    }

    pub(super) fn features(&self) -> Features {
        self.features
    }

    fn send(&self, op: Op, id: u32, data: u64, buffer: &mut [u8], limit: Duration) -> io::Result<u32> {
        let buffer_len = u16::try_from(buffer.len()).map_err(io::Error::other)?;
        let prepare = |address| encode(id, data, if buffer_len == 0 { 0 } else { address }, buffer_len);
        let mut ring = self.rings.lock().pop().unwrap_or_default();
        let answer = ring.send(self.node.as_fd(), op.code(self.encoded), prepare, buffer, limit);
        let mut rings = self.rings.lock();
        if rings.len() < KEPT_RINGS {
            rings.push(ring);
        }
        answer
    }

    fn tell(&self, op: Op, id: u32, data: u64) -> io::Result<()> {
        self.send(op, id, data, &mut [], LIMIT).map(drop)
    }

    /// The devices that there are.
    pub(super) fn devices() -> Vec<u32> {
        let entries = std::fs::read_dir("/sys/class/ublk-char").into_iter().flatten().flatten();
        let mut ids: Vec<u32> = entries
            .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("ublkc")?.parse().ok())
            .collect();
        ids.sort_unstable();
        ids
    }

    /// A device as the kernel sees it; None: there is none, or it is being taken away.
    pub(super) fn info(&self, id: u32) -> Result<Option<DeviceInfo>> {
        let mut bytes = [0; size_of::<DeviceInfo>()];
        match self.send(Op::GET_DEV_INFO, id, 0, &mut bytes, LIMIT) {
            Ok(_) => Ok(DeviceInfo::read_from_bytes(&bytes).ok()),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => Ok(None),
            Err(e) => Err(e).context("ask about", place(id)),
        }
    }

    pub(super) fn set_params(&self, id: u32, mut params: Params) -> Result<()> {
        self.send(Op::SET_PARAMS, id, 0, params.as_mut_bytes(), LIMIT)
            .map(drop)
            .context("set the parameters of", place(id))
    }

    /// Makes the block device of an added one, whose server must be fetching.
    pub(super) fn start(&self, id: u32) -> Result<()> {
        self.tell(Op::START_DEV, id, u64::from(std::process::id())).context("start", place(id))
    }

    /// Waits until the dead server's last file is closed and its last I/O has ended, then prepares the device for the
    /// next one. `limit`: a server that lives, or hangs, never lets go.
    pub(super) fn start_recovery(&self, id: u32, limit: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            match self.tell(Op::START_USER_RECOVERY, id, 0) {
                Ok(()) => return Ok(()),
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                    if start.elapsed() >= limit {
                        return Err(Error::Timeout {
                            what: format!(
                                "the wait for the last server of {} (another process has {} open)",
                                place(id),
                                place(id)
                            ),
                            limit,
                        });
                    }
                    std::thread::sleep(POLL);
                }
                Err(e) => return Err(e).context("recover", place(id)),
            }
        }
    }

    /// Hands the device to this process, whose threads must be fetching.
    pub(super) fn end_recovery(&self, id: u32) -> Result<()> {
        self.tell(Op::END_USER_RECOVERY, id, u64::from(std::process::id())).context("take over", place(id))
    }

    /// Stops the device if nobody has it open; false: somebody has.
    pub(super) fn try_stop(&self, id: u32) -> Result<bool> {
        match self.tell(Op::TRY_STOP_DEV, id, 0) {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => Ok(false),
            Err(e) => Err(e).context("stop", place(id)),
        }
    }

    /// Stops the device, whoever has it open.
    pub(super) fn stop(&self, id: u32) -> Result<()> {
        self.tell(Op::STOP_DEV, id, 0).context("stop", place(id))
    }

    /// Takes the device away; I/O that waits fails. Ends when the last user has closed it: [`Error::Timeout`] when
    /// that is not within `limit`, and the device goes then by itself.
    pub(super) fn delete(&self, id: u32, limit: Duration) -> Result<()> {
        match self.send(Op::DEL_DEV, id, 0, &mut [], limit) {
            Ok(_) => Ok(()),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => Ok(()),
            Err(e) if e.raw_os_error() == Some(libc::ETIMEDOUT) => {
                Err(Error::Timeout { what: format!("removing {}", place(id)), limit })
            }
            Err(e) => Err(e).context("remove", place(id)),
        }
    }

    pub(super) fn update_size(&self, id: u32, sectors: u64) -> Result<()> {
        self.tell(Op::UPDATE_SIZE, id, sectors).context("resize", place(id))
    }
}

/// What a new device must have been granted.
pub(super) fn check_granted(info: &DeviceInfo) -> Result<()> {
    let needed = flag::USER_RECOVERY | flag::USER_RECOVERY_REISSUE;
    if info.flags & needed == needed {
        return Ok(());
    }
    Err(Error::Unsupported {
        missing: format!("the ublk driver of this {} cannot keep a device whose server died", kernel()),
        hint: "use kernel 6.1 or later, or the transport `loop`",
    })
}

fn place(id: u32) -> String {
    format!("/dev/ublkc{id}")
}

fn unusable(error: &io::Error) -> Error {
    let hint = match error.raw_os_error() {
        Some(libc::ETIMEDOUT) => {
            "the driver does not answer: see the kernel's log, or use the transport `loop`"
        }
        _ => "run the agent as root, and let it use io_uring (sysctl kernel.io_uring_disabled=0)",
    };
    Error::Unsupported { missing: format!("{CONTROL} of {} takes no commands: {error}", kernel()), hint }
}

/// Why a device could not be added, and what to do.
pub(super) fn explain_add(errno: i32) -> Error {
    let missing = format!("{} adds no ublk device: {}", kernel(), io::Error::from_raw_os_error(errno));
    let hint = match errno {
        libc::EACCES | libc::ENOSPC => {
            "the driver's limit of devices is reached (64 on kernels 6.3 to 6.14): \
             raise /sys/module/ublk_drv/parameters/ublks_max, or detach volumes"
        }
        libc::EPERM => "run the agent as root",
        libc::ENOMEM => "free some memory, or attach fewer volumes",
        _ => "see the kernel's log, or use the transport `loop`",
    };
    Error::Unsupported { missing, hint }
}

/// The command in a ring's entry: struct ublksrv_ctrl_cmd, then zeros.
fn encode(id: u32, data: u64, buffer: u64, buffer_len: u16) -> [u8; COMMAND] {
    let command =
        Command { id, queue: u16::MAX, buffer_len, buffer, data, path_len: 0, padding: 0, reserved: 0 };
    let mut bytes = [0; COMMAND];
    bytes[..size_of::<Command>()].copy_from_slice(command.as_bytes());
    bytes
}

/// Whether any ublk device on this machine waits for a server: of whom is known only when a pool is open.
pub(super) fn any_unserved() -> bool {
    if !Path::new(CONTROL).exists() {
        return false;
    }
    let ids = Control::devices();
    if ids.is_empty() {
        return false;
    }
    let Ok(control) = Control::open() else { return false };
    ids.into_iter()
        .any(|id| matches!(control.info(id), Ok(Some(info)) if info.stamp != 0 && is_ending(info.server_pid)))
}

/// Whether this process exists. The kernel forgets a dead server's id only when its files are closed.
pub(super) fn is_running(pid: i32) -> bool {
    pid > 0 && Path::new(&format!("/proc/{pid}")).exists()
}

/// Whether this process is gone, or on its way: one that was killed loses its memory, with its command line, before its
/// files are closed and its locks are given up.
fn is_ending(pid: i32) -> bool {
    pid <= 0 || std::fs::read(format!("/proc/{pid}/cmdline")).map_or(true, |line| line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_process_is_ending_before_it_is_gone() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        // It has a command line as soon as it runs.
        while is_ending(pid) {
            assert!(is_running(pid));
            std::thread::yield_now();
        }
        child.kill().unwrap();
        while !is_ending(pid) {
            std::thread::yield_now();
        }
        assert!(is_running(pid), "nobody has collected it");
        child.wait().unwrap();
        assert!(!is_running(pid) && is_ending(pid));
        assert!(is_ending(0) && is_ending(-1));
    }

    #[test]
    fn a_command_is_laid_out_as_the_kernel_reads_it() {
        let bytes = encode(0x0403_0201, 0x1817_1615_1413_1211, 0x0807_0605_0403_0201, 0x2221);
        assert_eq!(bytes[..4], *0x0403_0201_u32.as_bytes());
        assert_eq!(bytes[4..6], [0xff; 2], "no queue");
        assert_eq!(bytes[6..8], *0x2221_u16.as_bytes());
        assert_eq!(bytes[8..16], *0x0807_0605_0403_0201_u64.as_bytes());
        assert_eq!(bytes[16..24], *0x1817_1615_1413_1211_u64.as_bytes());
        assert!(bytes[24..].iter().all(|&b| b == 0));
    }

    #[test]
    fn only_a_driver_that_keeps_devices_will_do() {
        let all = flag::USER_RECOVERY | flag::USER_RECOVERY_REISSUE;
        let granted = |flags| check_granted(&DeviceInfo { flags, ..DeviceInfo::default() });
        granted(all | 1).unwrap();
        for flags in [0, flag::USER_RECOVERY, flag::USER_RECOVERY_REISSUE] {
            assert!(matches!(granted(flags), Err(Error::Unsupported { .. })));
        }
    }

    #[test]
    fn a_refused_device_is_explained() {
        for (errno, word) in [(libc::EACCES, "ublks_max"), (libc::EPERM, "root"), (libc::EINVAL, "log")] {
            let text = explain_add(errno).to_string();
            assert!(text.contains(word) && text.contains("kernel"), "{text}");
        }
    }

    #[test]
    fn a_process_that_ended_does_not_run() {
        assert!(is_running(i32::try_from(std::process::id()).unwrap()));
        assert!(!is_running(-1) && !is_running(0) && !is_running(i32::MAX));
    }

    #[test]
    fn a_machine_without_ublk_says_what_to_do() {
        if Path::new(CONTROL).exists() {
            return;
        }
        let Err(Error::Unsupported { missing, hint }) = Control::open() else { panic!("it is not there") };
        assert!(missing.contains(CONTROL) && hint.contains("modprobe ublk_drv") && hint.contains("6.1"));
        assert!(!any_unserved());
    }
}
