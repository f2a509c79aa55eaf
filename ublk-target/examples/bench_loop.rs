//! FUSE + loop against the kernel's loop device over the same plain file:
//! `bench_loop [--only=JOB] [SECONDS [THREADS…]]`.
//!
//! Needs root and fio. The file is made in the working directory, which should lie on the disk to be measured. Both
//! run alternately, five times; medians and ratios are printed.

#[allow(dead_code)] // the tests need more of it
#[path = "../tests/it/file_disk.rs"]
mod file_disk;
#[path = "../tests/it/system.rs"]
mod system;

use file_disk::FileDisk;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use ublk_target::{FdStore, FuseLoop, FuseLoopOptions, Identity, Transport, VolumeKey};

const SIZE: u64 = 1 << 30;
const ROUNDS: usize = 5;

/// Name, fio's options, and whether requests (or else MiB) a second are counted.
const JOBS: [(&str, &[&str], bool); 6] = [
    ("4 KiB random read, QD32", &["--rw=randread", "--bs=4k", "--iodepth=32"], true),
    ("4 KiB random write, QD32", &["--rw=randwrite", "--bs=4k", "--iodepth=32"], true),
    ("4 KiB random read, QD1", &["--rw=randread", "--bs=4k", "--iodepth=1"], true),
    ("4 KiB random write, QD1", &["--rw=randwrite", "--bs=4k", "--iodepth=1"], true),
    ("1 MiB sequential read, QD8", &["--rw=read", "--bs=1m", "--iodepth=8"], false),
    ("1 MiB sequential write, QD8", &["--rw=write", "--bs=1m", "--iodepth=8"], false),
];

/// Keeps descriptors in this process only.
#[derive(Default)]
struct Pocket(Mutex<BTreeMap<String, OwnedFd>>);

impl FdStore for Pocket {
    fn put(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.0.lock().unwrap().insert(name.to_owned(), fd.try_clone_to_owned()?);
        Ok(())
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.lock().unwrap().remove(name);
        Ok(())
    }
    fn take_all(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        Ok(Vec::new())
    }
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Requests or MiB a second.
fn fio(device: &Path, options: &[&str], count_requests: bool, seconds: &str) -> f64 {
    let (file, runtime) = (format!("--filename={}", device.display()), format!("--runtime={seconds}"));
    let common =
        ["--name=b", &file, "--direct=1", "--ioengine=libaio", "--time_based", &runtime, "--minimal"];
    let text = run("fio", &[&common, options].concat());
    let fields: Vec<f64> = text.split(';').map(|field| field.parse().unwrap_or(0.0)).collect();
    // Terse version 3: bandwidth in KiB/s and requests/s of reads, then of writes.
    if count_requests { fields[7] + fields[48] } else { (fields[6] + fields[47]) / 1024.0 }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// One measurement on a kernel loop device.
fn on_kernel_loop(path: &str, job: (&str, &[&str], bool), seconds: &str) -> f64 {
    let device = run("losetup", &["-f", "--show", "--direct-io=on", "--sector-size=4096", path]);
    let device = Path::new(device.trim());
    let figure = fio(device, job.1, job.2, seconds);
    run("losetup", &["-d", device.to_str().unwrap()]);
    figure
}

/// One measurement on a device of ours.
fn on_fuse_loop(path: &str, threads: usize, job: (&str, &[&str], bool), seconds: &str) -> f64 {
    let options = FuseLoopOptions { threads, link_dir: "/tmp/cowslip-bench".into(), resend: true };
    let transport = FuseLoop::new(Arc::new(Pocket::default()), options);
    let key = VolumeKey { pool_id: "bench".into(), volume_id: std::process::id().into() };
    let disk = Arc::new(FileDisk::open(Path::new(path), None).unwrap());
    let attached = transport.attach(disk, &Identity::new(key, "bench")).unwrap();
    let figure = fio(attached.device(), job.1, job.2, seconds);
    while let Err(e) = attached.detach() {
        eprintln!("{e}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    figure
}

fn main() {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let only = args.first().and_then(|arg| arg.strip_prefix("--only=")).map(str::to_owned);
    if only.is_some() {
        args.remove(0);
    }
    let seconds = args.first().cloned().unwrap_or_else(|| "4".into());
    let mut threads: Vec<usize> =
        args.iter().skip(1).map(|n| n.parse().expect("THREADS is a number")).collect();
    if threads.is_empty() {
        threads.push(FuseLoopOptions::default().threads);
    }
    let temp = tempfile::tempdir_in(".").unwrap();
    let path = temp.path().join("disk.img");
    {
        use std::io::Write;
        let mut file = File::create(&path).unwrap();
        for _ in 0..SIZE >> 20 {
            file.write_all(&[0x55; 1 << 20]).unwrap();
        }
        file.sync_all().unwrap();
    }
    let path = path.to_str().unwrap();
    for job in JOBS.into_iter().filter(|job| only.as_ref().is_none_or(|only| job.0.contains(only))) {
        let mut kernel = Vec::new();
        let mut ours = vec![Vec::new(); threads.len()];
        for _ in 0..ROUNDS {
            kernel.push(on_kernel_loop(path, job, &seconds));
            for (figures, &threads) in ours.iter_mut().zip(&threads) {
                figures.push(on_fuse_loop(path, threads, job, &seconds));
            }
        }
        let kernel = median(kernel);
        let unit = if job.2 { "IOPS" } else { "MiB/s" };
        print!("{:28} kernel loop {kernel:9.0} {unit:5}", job.0);
        for (figures, threads) in ours.into_iter().zip(&threads) {
            let figure = median(figures);
            print!(" | {threads} threads {figure:9.0}, ratio {:.2}", figure / kernel);
        }
        println!();
    }
}
