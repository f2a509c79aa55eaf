//! The process that the tests kill: a small agent with one volume, in a directory that has everything of it.
//!
//! `disk.img` the volume, `agent.sock` the control socket (a line in, a line out), `links/` the device's link, `ready`
//! the server's process id and the device once it serves, `events` what the disk was asked for, `refuse` if the volume
//! is not to be served again, `hang` (removed by the server that obeys it) if its recovery is not to end, `keep` if requests are kept and not asked for again.

use super::file_disk::FileDisk;
use super::system;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use ublk_target::{
    Attached, Disk, FuseLoop, FuseLoopOptions, Identity, Recovered, Transport, VolumeKey, freeze, holder,
    serving,
};

/// The test volume.
pub fn identity(dir: &Path) -> Identity {
    // The directory's name makes it one of this run.
    let id = dir
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0u64, |h, &b| h.wrapping_mul(31).wrapping_add(b.into()));
    let key = VolumeKey { pool_id: "00000000000000000000000000000000".into(), volume_id: id };
    Identity::new(key, "ein Täst")
}

/// The supervisor of a server in `dir`.
pub fn supervise(dir: &Path) -> ExitCode {
    let make = || {
        let mut command = Command::new("/proc/self/exe");
        command.arg("serve").arg(dir);
        command
    };
    match holder::supervise(make, &dir.join("agent.sock")) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

/// The server.
pub fn serve(dir: &Path) -> ExitCode {
    system::catch_signals();
    serving::never_dump().unwrap();
    serving::stay_in_memory().unwrap();
    let store = holder::from_environment().unwrap().expect("started by supervise");
    let hang = std::fs::remove_file(dir.join("hang")).is_ok();
    store.set_deadline(Some(Duration::from_millis(if hang { 200 } else { 60_000 }))).unwrap();
    if hang {
        loop {
            std::thread::park();
        }
    }
    let deadline = Arc::clone(&store);
    let disk = Arc::new(FileDisk::open(&dir.join("disk.img"), Some(dir.join("events"))).unwrap());
    let resend = !dir.join("keep").exists();
    let options = FuseLoopOptions { link_dir: dir.join("links"), resend, ..Default::default() };
    let transport = FuseLoop::new(store, options);
    let identity = identity(dir);
    let refuse = dir.join("refuse").exists();
    let resolve = |key: &VolumeKey| {
        assert_eq!(*key, identity.key);
        (!refuse).then(|| (identity.volume_name.clone(), Arc::clone(&disk) as Arc<dyn Disk>))
    };
    let mut live: Option<Box<dyn Attached>> = None;
    for recovered in transport.recover(&resolve) {
        match recovered {
            Recovered::Live(attached) => live = Some(attached),
            Recovered::Failed { reason, .. } => eprintln!("failed: {reason}"),
            Recovered::Waiting { reason, .. } => panic!("{reason}"),
        }
    }
    deadline.set_deadline(None).unwrap();
    if live.is_none() && !refuse {
        live = Some(transport.attach(disk.clone(), &identity).unwrap());
    }
    let device = live.as_ref().map_or("-".into(), |live| live.device().display().to_string());
    control(dir, live.as_deref(), &disk, &format!("{} {device}", std::process::id()));
    ExitCode::SUCCESS // leaves the device alive
}

fn control(dir: &Path, live: Option<&dyn Attached>, disk: &FileDisk, ready: &str) {
    let path = dir.join("agent.sock");
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    std::fs::write(dir.join("ready.new"), ready).unwrap();
    std::fs::rename(dir.join("ready.new"), dir.join("ready")).unwrap();
    let mut frozen = None;
    while !system::asked_to_end() {
        let Ok((mut peer, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        peer.set_nonblocking(false).unwrap();
        let mut line = String::new();
        BufReader::new(&peer).read_line(&mut line).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match (&words[..], live) {
            (["grow", len], Some(live)) => {
                disk.grow(len.parse().unwrap()).unwrap();
                live.resize().map_err(|e| e.to_string())
            }
            (["detach"], Some(live)) => live.detach().map_err(|e| e.to_string()),
            (["fail-flush", on], _) => {
                disk.fail_flush.store(*on == "on", Ordering::SeqCst);
                Ok(())
            }
            (["freeze", ms], Some(live)) => {
                let deadline = Duration::from_millis(ms.parse().unwrap());
                match freeze::freeze(live.device_number(), live.device(), deadline, &dir.join("run")) {
                    Ok(Some(guard)) => {
                        frozen = Some(guard);
                        Ok(())
                    }
                    Ok(None) => Err("not mounted".into()),
                    Err(e) => Err(e.to_string()),
                }
            }
            (["thaw"], _) => match frozen.take().map(freeze::Frozen::thaw) {
                Some(true) => Ok(()),
                Some(false) => Err("was not frozen all the time".into()),
                None => Err("not frozen".into()),
            },
            (["thaw-leftovers"], _) => match freeze::thaw_leftovers(&dir.join("run")) {
                1 => Ok(()),
                count => Err(format!("{count} left over")),
            },
            _ => Err(format!("no such request: {line}")),
        };
        let text = answer.map_or_else(|e| format!("error {e}\n"), |()| "ok\n".into());
        let _ = peer.write_all(text.as_bytes());
    }
    if let Some(frozen) = frozen {
        frozen.thaw();
    }
}

/// Asks the server in `dir`.
pub fn ask(dir: &Path, request: &str) -> Result<(), String> {
    let mut stream = UnixStream::connect(dir.join("agent.sock")).map_err(|e| e.to_string())?;
    stream.write_all(format!("{request}\n").as_bytes()).map_err(|e| e.to_string())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).map_err(|e| e.to_string())?;
    match line.trim_end() {
        "ok" => Ok(()),
        other => Err(other.to_owned()),
    }
}
