//! Whether ublk works here: a tiny device is made, read and removed.

use super::abi::{Params, flag};
use super::control::{self, Control, REMOVAL};
use super::node::Node;
use super::queue::{Geometry, Served};
use super::server::Server;
use super::stamp::Stamp;
use crate::Disk;
use crate::error::{Context, Error, Result};
use crate::sys::buffer::{LockedBuffer, PAGE};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Every byte of the trial device.
const BYTE: u8 = 0xc5;

/// Its length: whoever looks for partitions finds where to look.
const LEN: u64 = 64 << 10;

/// A disk whose bytes are all the same.
struct Constant;

impl Disk for Constant {
    fn len(&self) -> u64 {
        LEN
    }
    fn read(&self, _: u64, buf: &mut [u8]) -> std::result::Result<(), i32> {
        buf.fill(BYTE);
        Ok(())
    }
    fn write(&self, _: u64, _: &[u8], _: bool) -> std::result::Result<(), i32> {
        Err(libc::EROFS)
    }
    fn flush(&self) -> std::result::Result<(), i32> {
        Ok(())
    }
    fn discard(&self, _: u64, _: u64) -> std::result::Result<(), i32> {
        Err(libc::EROFS)
    }
    fn write_zeroes(&self, _: u64, _: u64) -> std::result::Result<(), i32> {
        Err(libc::EROFS)
    }
}

/// Tries it out. An error says what is missing and what to do.
pub fn usable() -> Result<()> {
    let control = Arc::new(Control::open()?);
    let (sender, receiver) = mpsc::sync_channel(1);
    let run = move || drop(sender.send(try_out(&control)));
    std::thread::Builder::new()
        .name("cowslip-probe".into())
        .spawn(run)
        .context("start", "a thread for the trial of ublk")?;
    receiver.recv_timeout(LIMIT).unwrap_or_else(|_| {
        Err(Error::Timeout { what: format!("the trial of ublk on {}", control::kernel()), limit: LIMIT })
    })
}

fn try_out(control: &Arc<Control>) -> Result<()> {
    let geometry = Geometry {
        queues: 1,
        depth: 2,
        max_io_bytes: 64 << 10,
        threads_per_queue: 1,
        flags: flag::USER_RECOVERY | flag::USER_RECOVERY_REISSUE,
        stamp: Stamp::probe(),
    };
    let disk: Arc<dyn Disk> = Arc::new(Constant);
    let served = Served::add(control, geometry, &disk)?;
    let node = Node(served.id());
    let outcome = read_one(control, served, node);
    let removed = control.delete(node.0, REMOVAL);
    outcome.and(removed)
}

fn read_one(control: &Control, served: Served, node: Node) -> Result<()> {
    control::check_granted(served.info())?;
    control.set_params(node.0, Params::of_disk(LEN, 4096, served.info()))?;
    let server = Server::start(served)?;
    control.start(node.0)?;
    node.wait()?;
    let path = node.path();
    let mut block = LockedBuffer::new(PAGE).context("lock memory for", path.display())?;
    let mut file = File::options().read(true).custom_flags(libc::O_DIRECT).open(&path);
    let read = file.as_mut().map_or_else(|_| Ok(()), |file| file.read_exact(&mut block));
    drop(file.context("open", path.display())?);
    read.context("read", path.display())?;
    if block.iter().any(|&byte| byte != BYTE) {
        return Err(Error::Unsupported {
            missing: format!("a trial device of ublk on {} read wrong data", control::kernel()),
            hint: "use the transport `loop`, and report this kernel",
        });
    }
    control.stop(node.0)?;
    server.stop();
    Ok(())
}
