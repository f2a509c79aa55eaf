//! Volumes over ublk, with and without copies, against a plain file and the kernel's loop device over it:
//! `bench_ublk [SECONDS [ROUNDS]]`.
//!
//! Needs root, the ublk driver and fio. Pool and file are made in the working directory, which should lie on the disk
//! to be measured; the pool's ring in /run. They run alternately, each round on a fresh volume; medians and ratios
//! are printed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use store::{Consistency, InitOptions, OpenOptions, Pool, SnapshotSpec};
use ublk_target::{Identity, Transport, Ublk, UblkOptions, VolumeKey};

const SIZE: u64 = 256 << 20;

/// Served with copies, and without.
const VOLUMES: [&str; 2] = ["copies", "none"];

/// Name, fio's options, and whether a snapshot is taken before it.
const JOBS: [(&str, &[&str], bool); 8] = [
    ("4 KiB random read, QD32", &["--rw=randread", "--bs=4k", "--iodepth=32"], false),
    ("4 KiB overwrite, QD32", &["--rw=randwrite", "--bs=4k", "--iodepth=32"], false),
    ("4 KiB random read, QD1", &["--rw=randread", "--bs=4k", "--iodepth=1"], false),
    ("4 KiB overwrite, QD1", &["--rw=randwrite", "--bs=4k", "--iodepth=1"], false),
    ("1 MiB read, QD4", &["--rw=read", "--bs=1m", "--iodepth=4"], false),
    ("1 MiB write, QD4", &["--rw=write", "--bs=1m", "--iodepth=4"], false),
    ("70/30 mixed, QD32", &["--rw=randrw", "--rwmixread=70", "--bs=4k", "--iodepth=32"], false),
    ("4 KiB write after a snapshot", &["--rw=randwrite", "--bs=4k", "--iodepth=32"], true),
];

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Requests a second.
fn fio(file: &Path, options: &[&str], seconds: &str) -> f64 {
    let (file, runtime) = (format!("--filename={}", file.display()), format!("--runtime={seconds}"));
    let size = format!("--size={SIZE}");
    let common = [
        "--name=b",
        &file,
        &size,
        "--direct=1",
        "--ioengine=io_uring",
        "--time_based",
        &runtime,
        "--minimal",
    ];
    let text = run("fio", &[&common, options].concat());
    let fields: Vec<f64> = text.split(';').map(|field| field.parse().unwrap_or(0.0)).collect();
    fields[7] + fields[48] // terse version 3: requests/s of reads, and of writes
}

fn fill(path: &Path) {
    let mut file = File::options().write(true).create(true).truncate(false).open(path).unwrap();
    for _ in 0..SIZE >> 20 {
        file.write_all(&[0x55; 1 << 20]).unwrap();
    }
    file.sync_all().unwrap();
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let mut args = std::env::args().skip(1);
    let seconds = args.next().unwrap_or_else(|| "3".into());
    let rounds: usize = args.next().map_or(3, |n| n.parse().expect("ROUNDS is a number"));
    let temp = tempfile::tempdir_in(".").unwrap();
    let ring = tempfile::tempdir_in("/run").unwrap();
    let plain = std::path::absolute(temp.path().join("plain")).unwrap();
    fill(&plain);
    let kernel_loop =
        run("losetup", &["-f", "--show", "--direct-io=on", "--sector-size=4096", plain.to_str().unwrap()]);
    let kernel_loop = Path::new(kernel_loop.trim());
    let pool_dir = temp.path().join("pool");
    let init = InitOptions { size_bytes: Some(8 * SIZE), ..InitOptions::default() };
    let pool_id = Pool::init(&pool_dir, &init).unwrap().id;
    let options = OpenOptions { ring_dir: Some(ring.path().into()), ..OpenOptions::default() };
    let pool = Pool::open(&pool_dir, &options).unwrap();
    let transport = |zero_copy| {
        let dir = ring.path().to_path_buf();
        let options =
            UblkOptions { link_dir: dir.clone(), properties_dir: dir, zero_copy, ..Default::default() };
        Ublk::new(&pool_id, options).unwrap()
    };
    let transports = [transport(false), transport(true)];
    let mut figures: BTreeMap<usize, [Vec<f64>; 4]> = BTreeMap::new();
    for _ in 0..rounds {
        let attach = |(name, transport): (&str, &Ublk)| {
            let volume = pool.create_volume(name, SIZE, Default::default()).unwrap();
            let key = VolumeKey { pool_id: pool_id.clone(), volume_id: volume.id };
            let attached =
                transport.attach(pool.open_volume(name).unwrap(), &Identity::new(key, name)).unwrap();
            fill(attached.device());
            attached
        };
        let attached: Vec<_> = VOLUMES.into_iter().zip(&transports).map(attach).collect();
        for (index, (_, options, snapshot)) in JOBS.iter().enumerate() {
            if *snapshot {
                let of = |name: &str| SnapshotSpec {
                    volume: name.into(),
                    name: "s".into(),
                    consistency: Consistency::Crash,
                };
                pool.create_snapshots(&VOLUMES.map(of), Default::default()).unwrap();
            }
            let targets = [&plain, kernel_loop, attached[0].device(), attached[1].device()];
            for (target, of_target) in targets.into_iter().zip(figures.entry(index).or_default()) {
                of_target.push(fio(target, options, &seconds));
            }
        }
        for (name, attached) in VOLUMES.into_iter().zip(attached) {
            while let Err(e) = attached.detach() {
                eprintln!("{e}");
            }
            drop(attached);
            pool.delete_snapshot(name, "s").unwrap();
            pool.delete_volume(name).unwrap();
        }
    }
    run("losetup", &["-d", kernel_loop.to_str().unwrap()]);
    for (index, mut of_job) in figures {
        let [plain, kernel_loop, copies, none] = [0, 1, 2, 3].map(|target| median(&mut of_job[target]));
        println!(
            "{:30} plain file {plain:7.0}  kernel loop {kernel_loop:7.0}  ublk {copies:7.0}  without copies {none:7.0} \
             IOPS; of the file {:.2}, {:.2}; without copies against with {:.2}",
            JOBS[index].0,
            copies / plain,
            none / plain,
            none / copies
        );
    }
    pool.close().unwrap();
}
