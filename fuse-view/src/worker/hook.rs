//! How tests make a worker fail: `--panic-at NAME`, `--spin-at NAME` and `--probe-at NAME` do so when that name is
//! looked up. Only in builds with debug assertions; others refuse every argument.

use crate::{Attr, Error, Ino, Result};
use rustix::process::Pid;
use std::{ffi::OsString, io, os::unix::ffi::OsStringExt};

/// What is to happen.
#[derive(Default)]
pub struct Hook {
    panic: Option<Vec<u8>>,
    spin: Option<Vec<u8>>,
    probe: Option<Vec<u8>>,
    /// Whom a probe tries to signal.
    parent: Option<Pid>,
}

impl Hook {
    /// As the arguments say.
    pub fn of(arguments: Vec<OsString>) -> io::Result<Self> {
        let mut hook = Self { parent: rustix::process::getppid(), ..Self::default() };
        let mut words = arguments.into_iter();
        while let Some(word) = words.next() {
            let name = words.next().map(OsString::into_vec);
            let place = match word.to_str() {
                _ if !cfg!(debug_assertions) => None,
                Some("--panic-at") => Some(&mut hook.panic),
                Some("--spin-at") => Some(&mut hook.spin),
                Some("--probe-at") => Some(&mut hook.probe),
                _ => None,
            };
            match (place, name) {
                (Some(place), Some(name)) => *place = Some(name),
                _ => return Err(io::Error::other("a worker is started by the agent and takes no arguments")),
            }
        }
        Ok(hook)
    }

    /// Fails at this name if it is to.
    pub fn looks_up(&self, name: &[u8]) {
        let is = |wanted: &Option<Vec<u8>>| wanted.as_deref() == Some(name);
        assert!(!is(&self.panic), "the test wants a panic");
        while is(&self.spin) {
            std::hint::spin_loop();
        }
    }

    /// What the worker may still do, as an error; None at other names.
    pub fn report(&self, name: &[u8]) -> Option<Result<(Ino, Attr)>> {
        (self.probe.as_deref() == Some(name)).then(|| Err(Error::Unsupported(probe(self.parent))))
    }
}

/// Tries what is forbidden; the names of what worked.
fn probe(parent: Option<Pid>) -> String {
    let signal = || rustix::process::test_kill_process(parent?).ok();
    let thread = || std::thread::Builder::new().spawn(|| ()).is_ok();
    let executable = std::process::Command::new("/bin/true").spawn().is_ok();
    let socket = rustix::net::AddressFamily::UNIX;
    let tried = [
        ("open", std::fs::File::open("/etc/passwd").is_ok()),
        ("create", std::fs::File::create("/tmp/cowslip-probe").is_ok()),
        ("stat", std::fs::metadata("/").is_ok()),
        ("socket", rustix::net::socket(socket, rustix::net::SocketType::STREAM, None).is_ok()),
        ("udp", std::net::UdpSocket::bind("127.0.0.1:0").is_ok()),
        ("process", executable),
        ("thread", thread()),
        ("signal", signal().is_some()),
        ("user", rustix::thread::set_thread_uid(rustix::process::Uid::ROOT).is_ok()),
        ("dup", rustix::io::dup(io::stdin()).is_ok()),
    ];
    let worked: Vec<&str> = tried.into_iter().filter(|(_, worked)| *worked).map(|(what, _)| what).collect();
    format!("worked: {}.", worked.join(" "))
}
