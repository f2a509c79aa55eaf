//! The server dies, the device does not.

use super::Test;
use super::program::is_code_locked;
use super::rig::{Rig, run, wait_for};
use super::system;
use std::io::{Read, Seek, SeekFrom, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = &[
    ("survival::verified_load_under_20_kills", &["fio"], verified_load_under_20_kills),
    ("survival::kills_where_nothing_is_sent_again", &["fio"], kills_where_nothing_is_sent_again),
    ("survival::file_system_under_kills", &["mkfs.ext4", "e2fsck", "mount"], file_system_under_kills),
    ("survival::parked_and_taken_over", &[], parked_and_taken_over),
    ("survival::parked_twice_and_a_failing_agent", &[], parked_twice_and_a_failing_agent),
    ("survival::a_volume_not_to_be_served_fails", &[], a_volume_not_to_be_served_fails),
    ("survival::hung_in_recovery", &[], hung_in_recovery),
    ("survival::h7_dies_without_a_core", &[], h7_dies_without_a_core),
    ("survival::h7_the_program_stays_in_memory", &[], h7_the_program_stays_in_memory),
    ("survival::killed_at_once_after_each_start", &["blkdiscard"], killed_at_once_after_each_start),
];

const MIB: u64 = 1 << 20;

/// Milliseconds that nobody can foresee.
fn random_ms(below: u64) -> Duration {
    let mut bytes = [0; 8];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    Duration::from_micros(u64::from_le_bytes(bytes) % (below * 1000))
}

fn verified_load_under_20_kills() {
    no_kill_is_seen(&Rig::new(96 * MIB), 20);
}

/// As on kernels before 6.9: the next server answers what it finds in the memory of the last one.
fn kills_where_nothing_is_sent_again() {
    no_kill_is_seen(&Rig::keeping_requests(96 * MIB), 10);
}

fn no_kill_is_seen(rig: &Rig, kills: usize) {
    let device = rig.device_str();
    let stop = Arc::new(AtomicBool::new(false));
    let load = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let mut rounds = 0;
            // Each round writes and reads everything once, checks while it goes and at its end.
            while !stop.load(Ordering::SeqCst) || rounds == 0 {
                run(
                    "fio",
                    &[
                        "--name=verify",
                        &format!("--filename={device}"),
                        "--direct=1",
                        "--ioengine=libaio",
                        "--iodepth=32",
                        "--rw=randrw",
                        "--rwmixread=30",
                        "--bsrange=4k-1m",
                        "--blockalign=4k",
                        "--verify=crc32c",
                        "--verify_fatal=1",
                        "--verify_backlog=64",
                        "--verify_state_save=0",
                        "--randrepeat=0",
                        &format!("--randseed={rounds}"),
                        "--output-format=terse",
                    ],
                );
                rounds += 1;
            }
            rounds
        }
    });
    let mut gaps: Vec<u128> = Vec::new();
    for _ in 0..kills {
        std::thread::sleep(random_ms(300));
        gaps.push(rig.kill_server().as_millis());
    }
    stop.store(true, Ordering::SeqCst);
    let rounds = load.join().expect("no I/O error and no mismatch");
    gaps.sort_unstable();
    println!(
        "  {kills} kills in {rounds} rounds; ms from kill to service: median {}, most {}",
        gaps[kills / 2],
        gaps[kills - 1]
    );
}

fn file_system_under_kills() {
    let mut rig = Rig::new(64 * MIB);
    run("mkfs.ext4", &["-q", &rig.device_str()]);
    let point = rig.mount();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = std::thread::spawn({
        let (stop, point) = (Arc::clone(&stop), point.clone());
        move || {
            let mut written = 0u32;
            while !stop.load(Ordering::SeqCst) || written < 20 {
                let mut file = std::fs::File::create(point.join(format!("f{}", written % 50))).unwrap();
                file.write_all(&written.to_le_bytes().repeat(5000)).unwrap();
                file.sync_all().unwrap();
                written += 1;
            }
            written
        }
    });
    for _ in 0..6 {
        std::thread::sleep(random_ms(150));
        rig.kill_server();
    }
    stop.store(true, Ordering::SeqCst);
    let written = writer.join().unwrap();
    for last in written.saturating_sub(50)..written {
        let content = std::fs::read(point.join(format!("f{}", last % 50))).unwrap();
        assert!(content == last.to_le_bytes().repeat(5000), "file {last}");
    }
    rig.unmount();
    run("e2fsck", &["-fn", &rig.device_str()]);
}

/// Reads the first block of the device in a process of its own, past the page cache.
fn read_in_background(device: &str) -> std::process::Child {
    let args = [
        format!("if={device}"),
        "of=/dev/null".into(),
        "bs=4k".into(),
        "count=1".into(),
        "iflag=direct".into(),
    ];
    Command::new("dd").args(args).stderr(Stdio::null()).spawn().unwrap()
}

fn parked_and_taken_over() {
    let mut rig = Rig::new(16 * MIB);
    let (device, old) = (rig.device(), rig.server());
    assert_eq!(rig.terminate().code(), Some(0), "the command returns");
    assert!(!rig.processes().contains(&old));
    let parked = rig.processes();
    assert_eq!(parked.len(), 1, "one process holds the device");
    let files: Vec<_> = std::fs::read_dir(format!("/proc/{}/fd", parked[0]))
        .unwrap()
        .filter_map(|file| std::fs::read_link(file.ok()?.path()).ok())
        .collect();
    let image = rig.dir().join("disk.img");
    assert!(!files.contains(&image), "and has nothing of the pool: {files:?}");
    assert!(rig.is_ours(&device), "the device is alive");
    let mut reader = read_in_background(device.to_str().unwrap());
    std::thread::sleep(Duration::from_millis(100));
    assert!(reader.try_wait().unwrap().is_none(), "its I/O waits");
    rig.start();
    assert_eq!(rig.device(), device, "the next agent has it");
    assert!(reader.wait().unwrap().success(), "what waited is served");
    wait_for("the end of the parked holder", || !rig.processes().contains(&parked[0]));
    rig.kill_server();
    assert!(
        read_in_background(device.to_str().unwrap()).wait().unwrap().success(),
        "and it survives a kill as before"
    );
    rig.ask("detach").unwrap();
    assert_eq!(rig.terminate().code(), Some(0));
    wait_for("nothing to hold, nobody to hold it", || rig.processes().is_empty());
}

fn parked_twice_and_a_failing_agent() {
    let mut rig = Rig::new(16 * MIB);
    let device = rig.device();
    for _ in 0..2 {
        assert_eq!(rig.terminate().code(), Some(0));
        rig.start();
        assert_eq!(rig.device(), device);
    }
    // A second one with the same socket is refused and harms nothing.
    let second = Command::new("/proc/self/exe")
        .arg("supervise")
        .arg(rig.dir())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(second.code(), Some(1));
    assert_eq!(rig.terminate().code(), Some(0));
    // An agent that cannot start passes on its exit code, and the devices stay held.
    std::fs::rename(rig.dir().join("disk.img"), rig.dir().join("away")).unwrap();
    let failing = Command::new("/proc/self/exe")
        .arg("supervise")
        .arg(rig.dir())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(failing.code(), Some(101), "a panic's exit code, not a loop of restarts");
    std::fs::rename(rig.dir().join("away"), rig.dir().join("disk.img")).unwrap();
    // Somebody who connects and does not behave.
    let holder = rig.dir().join("agent.sock.holder");
    wait_for("the holder's socket", || holder.exists());
    rig.start();
    assert_eq!(rig.device(), device);
    assert!(read_in_background(device.to_str().unwrap()).wait().unwrap().success());
}

fn a_volume_not_to_be_served_fails() {
    let rig = Rig::new(16 * MIB);
    let device = rig.device();
    let mut open = std::fs::File::options().read(true).write(true).open(&device).unwrap();
    open.write_all(&[7; 8192]).unwrap();
    std::fs::write(rig.dir().join("refuse"), "").unwrap();
    rig.kill_server();
    assert_eq!(rig.device().to_str(), Some("-"));
    let result = open.sync_all();
    assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EIO));
    drop(open);
    wait_for("the device to go with its last user", || !rig.is_ours(&device));
    assert_eq!(std::fs::read_dir(rig.dir().join("links")).unwrap().count(), 0, "its link is gone");
}

/// Nobody but its parent notices a server that hangs before it serves.
fn hung_in_recovery() {
    let rig = Rig::new(16 * MIB);
    let device = rig.device_str();
    for _ in 0..2 {
        std::fs::write(rig.dir().join("hang"), "").unwrap();
        rig.kill_server();
        assert!(!rig.dir().join("hang").exists(), "one server hung");
        assert!(read_in_background(&device).wait().unwrap().success());
    }
}

fn killed_at_once_after_each_start() {
    let rig = Rig::new(16 * MIB);
    let device = rig.device_str();
    let mut file = std::fs::File::options().read(true).write(true).open(&device).unwrap();
    let start = Instant::now();
    for round in 0..10u8 {
        let pattern = vec![round; 1 << 20];
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(&pattern).unwrap();
        // The server after this one dies as soon as it runs, perhaps before it serves.
        let server = rig.server();
        system::kill(server, libc::SIGKILL);
        wait_for("the next server's process", || {
            rig.processes().len() == 2 && !rig.processes().contains(&server)
        });
        std::thread::sleep(random_ms(20));
        for pid in rig.processes().into_iter().filter(|&pid| pid != rig.supervisor()) {
            system::kill(pid, libc::SIGKILL);
        }
        file.sync_all().unwrap();
        wait_for("a server", || rig.processes().contains(&rig.server()));
    }
    println!("  20 kills in {:.1} s", start.elapsed().as_secs_f32());
    run("blkdiscard", &[&device]);
}

/// A dump into a file on the volume would wait for the next server, and that one for the end of this one.
fn h7_dies_without_a_core() {
    system::allow_core();
    let rig = Rig::new(16 * MIB);
    // Not SIGSEGV: Rust's handler lets a process go on that was only sent one.
    for signal in [libc::SIGABRT, libc::SIGILL] {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", rig.server())).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        let limit: Vec<&str> = core.split_whitespace().skip(4).take(2).collect();
        assert_eq!(limit, ["0", "0"], "{core}");
        rig.end_server(signal);
        std::fs::File::open(rig.device()).unwrap().read_exact(&mut [0; 4096]).unwrap();
    }
    // Where `core_pattern` names no other place, it would be in the server's directory.
    let left = std::fs::read_dir(rig.dir()).unwrap().map(|entry| entry.unwrap().file_name());
    let cores: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with("core")).collect();
    assert!(cores.is_empty(), "{cores:?}");
}

/// Its file may lie on the volume that it serves.
fn h7_the_program_stays_in_memory() {
    let rig = Rig::new(16 * MIB);
    assert!(is_code_locked(rig.server()));
}
