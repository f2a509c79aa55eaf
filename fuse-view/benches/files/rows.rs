//! What is measured.

use crate::bench::{Options, run, text};
use crate::disks::{CROWD, Disks, LARGE_BYTES, MILLION, Mount, forget};
use crate::history::Snapshots;
use crate::report::Report;
use fuse_view::{
    BlockRead, FsView,
    cache::{CacheBudget, CachedBlocks},
    diff::{self, Ranges},
    find, fs as formats,
    fuse::{self, Options as FuseOptions},
    listing::Listing,
    source::FileImage,
    versions::{Told, versions},
    walk,
};
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// As the commands have it.
const CACHE_BYTES: u64 = 64 << 20;

fn timed<T>(what: impl FnOnce() -> Result<T, String>) -> Result<(f64, T), String> {
    let start = Instant::now();
    let value = what()?;
    Ok((start.elapsed().as_secs_f64(), value))
}

fn source(image: &Path) -> Result<Arc<dyn BlockRead>, String> {
    let image: Arc<dyn BlockRead> = Arc::new(FileImage::open(image).map_err(|e| e.to_string())?);
    Ok(Arc::new(CachedBlocks::new(image, &CacheBudget::new(CACHE_BYTES))))
}

fn view(image: &Path) -> Result<Arc<dyn FsView>, String> {
    formats::open(source(image)?).map_err(|e| e.to_string())
}

/// Runs the rows that are asked for.
pub fn run_all(options: &Options, disks: &Disks, report: &mut Report) -> Result<(), String> {
    type Row = fn(&Options, &Disks, &mut Report) -> Result<(), String>;
    let rows: [(&str, Row); 8] = [
        ("first byte", first_byte),
        ("first byte of a dirty snapshot", first_byte_dirty),
        ("ls", ls),
        ("sequential read", sequential),
        ("memory", memory),
        ("find", find_names),
        ("versions", follow),
        ("diff", compare),
    ];
    for (name, row) in rows {
        if options.wants(name) {
            row(options, disks, report)?;
        }
    }
    Ok(())
}

/// Opens, finds a file, reads its first byte.
fn read_first(image: &Path, path: &[u8]) -> Result<u8, String> {
    let view = view(image)?;
    let mut byte = [0; 1];
    let ino = walk::lookup_path(&*view, path, true).map_err(|e| e.to_string())?;
    view.read_at(ino, 0, &mut byte).map_err(|e| e.to_string())?;
    Ok(byte[0])
}

fn mount_and_read(image: &Path, at: &Path, options: &str, name: &str) -> Result<u8, String> {
    let mount = Mount::kernel(image, at, options)?;
    let mut byte = [0; 1];
    File::open(mount.0.join(name))
        .and_then(|mut file| file.read_exact(&mut byte))
        .map_err(|e| e.to_string())?;
    Ok(byte[0])
}

fn first_byte(options: &Options, disks: &Disks, report: &mut Report) -> Result<(), String> {
    let image = disks.crowd()?;
    let (mut ours, mut kernel) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        forget()?;
        let (time, a) = timed(|| read_first(&image, b"/large"))?;
        ours.push(time);
        forget()?;
        // Without what unmounting takes: it is not waited for.
        let (time, b) = timed(|| mount_and_read(&image, &disks.path("kernel"), "ro", "large"))?;
        kernel.push(time);
        assert_eq!(a, b);
    }
    report.times(
        "first byte of a file of a clean image, cold",
        &ours,
        &kernel,
        "",
        "≤ 3 × mount and read, 100 ms",
    );
    Ok(())
}

fn first_byte_dirty(options: &Options, disks: &Disks, report: &mut Report) -> Result<(), String> {
    let image = disks.dirty()?;
    let (mut ours, mut kernel, mut state) = (Vec::new(), Vec::new(), String::new());
    for _ in 0..options.rounds {
        forget()?;
        let (time, a) = timed(|| read_first(&image, b"/first"))?;
        ours.push(time);
        // The kernel writes what it replays, so it gets a copy.
        let copy = disks.path("dirty.copy");
        run("cp", &["--sparse=always", &text(&image), &text(&copy)])?;
        forget()?;
        let (time, b) = timed(|| mount_and_read(&copy, &disks.path("kernel"), "ro", "first"))?;
        kernel.push(time);
        fs::remove_file(&copy).map_err(|e| e.to_string())?;
        assert_eq!(a, b);
        state = view(&image)?.replay();
    }
    assert_eq!(state, "replayed");
    report.times("first byte with a full 128 MiB journal, cold", &ours, &kernel, "", "≤ 3 × mount and read");
    Ok(())
}

/// `ls -lR` of a mount.
fn list(at: &Path) -> Result<f64, String> {
    let (time, out) = timed(|| run("ls", &["-lR", &text(at)]))?;
    assert!(out.lines().count() > CROWD, "all names are listed");
    Ok(time)
}

fn ls(options: &Options, disks: &Disks, report: &mut Report) -> Result<(), String> {
    let image = disks.crowd()?;
    let (at, peer) = (disks.path("fuse"), disks.path("kernel"));
    fs::create_dir_all(&at).map_err(|e| e.to_string())?;
    let mut times: [Vec<f64>; 4] = Default::default();
    for _ in 0..options.rounds {
        forget()?;
        let mounted =
            fuse::mount_view(view(&image)?, &at, &FuseOptions::default()).map_err(|e| e.to_string())?;
        times[0].push(list(&at)?);
        times[1].push(list(&at)?);
        drop(mounted);
        let mounted = Mount::kernel(&image, &peer, "ro")?;
        forget()?;
        times[2].push(list(&peer)?);
        times[3].push(list(&peer)?);
        drop(mounted);
    }
    let others = match Mount::fuse2fs(&image, &disks.path("fuse2fs")) {
        Some(mounted) => limited("fuse2fs", 60, "ls", &["-lR", &text(&mounted.0)]),
        None => String::new(),
    };
    let [cold, warm, kernel_cold, kernel_warm] = &times;
    report.times(
        "`ls -lR` of 100,000 files in a directory, cold",
        cold,
        kernel_cold,
        &others,
        "≤ 1.5 × kernel",
    );
    report.times("the same a second time", warm, kernel_warm, "", "≤ 1.0 × kernel");
    Ok(())
}

/// What a program takes, given up after some seconds.
fn limited(peer: &str, most: u64, program: &str, args: &[&str]) -> String {
    let limit = most.to_string();
    let all = [&["-s", "KILL", &limit, program], args].concat();
    match timed(|| run("timeout", &all)) {
        Ok((time, _)) => format!("{peer} {time:.2} s"),
        Err(_) => format!("{peer} not within {most} s"),
    }
}

fn read_all(path: &Path) -> Result<f64, String> {
    let mut file = File::open(path).map_err(|e| e.to_string())?;
    let mut buf = vec![0; 1 << 20];
    let (time, len) = timed(|| {
        let mut len = 0;
        loop {
            match file.read(&mut buf).map_err(|e| e.to_string())? {
                0 => return Ok(len),
                got => len += got,
            }
        }
    })?;
    assert_eq!(len, LARGE_BYTES);
    Ok(time)
}

fn sequential(options: &Options, disks: &Disks, report: &mut Report) -> Result<(), String> {
    let image = disks.crowd()?;
    let (at, peer) = (disks.path("fuse"), disks.path("kernel"));
    fs::create_dir_all(&at).map_err(|e| e.to_string())?;
    // Both over an image that is in memory: a disk would be all that is measured.
    run("cat", &[&text(&image)])
        .map(drop)
        .or_else(|_| fs::read(&image).map(drop).map_err(|e| e.to_string()))?;
    let (mut ours, mut kernel) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let mounted =
            fuse::mount_view(view(&image)?, &at, &FuseOptions::default()).map_err(|e| e.to_string())?;
        ours.push(read_all(&at.join("large"))?);
        drop(mounted);
        let mounted = Mount::kernel(&image, &peer, "ro")?;
        kernel.push(read_all(&peer.join("large"))?);
        drop(mounted);
    }
    let others = match Mount::fuse2fs(&image, &disks.path("fuse2fs")) {
        Some(mounted) => {
            read_all(&mounted.0.join("large")).map_or(String::new(), |time| format!("fuse2fs {time:.2} s"))
        }
        None => String::new(),
    };
    report.times(
        "512 MiB read in pieces of 1 MiB, image in memory",
        &ours,
        &kernel,
        &others,
        "≤ 1.11 × kernel",
    );
    Ok(())
}

/// Lists all of an image and tells how much memory that took: bytes, and of these the cache's.
pub fn list_in_this_process(image: &str) -> Result<String, String> {
    let view = view(Path::new(image))?;
    let count = Listing::new(&*view, view.root(), b"/", true).filter(Result::is_ok).count();
    let status = fs::read_to_string("/proc/self/status").map_err(|e| e.to_string())?;
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    Ok(format!("{count} {}", most.trim().trim_end_matches(" kB")))
}

fn memory(_: &Options, disks: &Disks, report: &mut Report) -> Result<(), String> {
    let (image, _) = disks.million()?;
    let own = std::env::current_exe().map_err(|e| e.to_string())?;
    let out = run(&text(&own), &["--list", &text(&image)])?;
    let numbers: Vec<usize> = out.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    let [count, kib] = numbers[..] else { return Err(format!("no figures: {out}")) };
    assert!(count > MILLION);
    let cache = CACHE_BYTES >> 20;
    report.row(
        "memory after listing 1,000,000 files",
        &format!("{} MiB", kib >> 10),
        "",
        "",
        "",
        &format!("≤ 64 MiB and the cache, {cache} MiB"),
    );
    Ok(())
}

fn find_names(options: &Options, disks: &Disks, report: &mut Report) -> Result<(), String> {
    let (image, _) = disks.million()?;
    let peer = disks.path("kernel");
    let (mut ours, mut kernel) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        forget()?;
        let (time, found) = timed(|| {
            let view = view(&image)?;
            let mut found = 0;
            find::walk(&*view, view.root(), b"/", false, |met| -> Result<(), String> {
                found += usize::from(met.map_err(|e| e.to_string())?.name().ends_with(b"-77.txt"));
                Ok(())
            })?;
            Ok(found)
        })?;
        ours.push(time);
        let mounted = Mount::kernel(&image, &peer, "ro")?;
        forget()?;
        let (time, out) = timed(|| run("find", &[&text(&peer), "-name", "*-77.txt"]))?;
        kernel.push(time);
        drop(mounted);
        assert_eq!((found, out.lines().count()), (1000, 1000));
    }
    let others = match Mount::fuse2fs(&image, &disks.path("fuse2fs")) {
        Some(mounted) => limited("fuse2fs", 60, "find", &[&text(&mounted.0), "-name", "*-77.txt"]),
        None => String::new(),
    };
    report.times("a name among 1,000,000 files, cold", &ours, &kernel, &others, "≤ 1.0 × mount and `find`");
    Ok(())
}

fn follow(options: &Options, disks: &Disks, report: &mut Report) -> Result<(), String> {
    let snapshots = Snapshots::new(&disks.versions(10)?, 10_000);
    let mut ours = Vec::new();
    for _ in 0..options.rounds {
        let mut found = 0;
        let (time, ()) = timed(|| {
            versions(&snapshots, b"/home/ann/thesis", |told| -> Result<(), fuse_view::Error> {
                found += usize::from(matches!(told, Told::Version(_)));
                Ok(())
            })
            .map_err(|e| e.to_string())
            .map(drop)
        })?;
        ours.push(time);
        assert_eq!(found, 10);
    }
    report.times("versions of a file over 10,000 snapshots, 10 versions", &ours, &[], "", "≤ 1 s");
    Ok(())
}

/// Where two images differ, as the pool knows it of two snapshots.
fn differing(a: &Path, b: &Path) -> Result<Ranges, String> {
    let open = |path: &Path| File::open(path).map_err(|e| e.to_string());
    let (mut a, mut b) = (open(a)?, open(b)?);
    let (mut x, mut y) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let (mut ranges, mut at) = (Vec::new(), 0u64);
    while a.read_exact(&mut x).and_then(|()| b.read_exact(&mut y)).is_ok() {
        for (i, (one, two)) in x.chunks(4096).zip(y.chunks(4096)).enumerate() {
            if one != two {
                let start = at + i as u64 * 4096;
                ranges.push(start..start + 4096);
            }
        }
        at += x.len() as u64;
    }
    Ok(Ranges::new(ranges))
}

fn compare(options: &Options, disks: &Disks, report: &mut Report) -> Result<(), String> {
    let (old, new) = disks.million()?;
    let changed = differing(&old, &new)?;
    let mut ours = Vec::new();
    for _ in 0..options.rounds {
        forget()?;
        let (time, found) = timed(|| {
            let (old, new) = (source(&old)?, source(&new)?);
            diff::diff(&old, &new, b"/", &changed, &AtomicBool::new(false)).map_err(|e| e.to_string())
        })?;
        ours.push(time);
        assert_eq!((found.differences.len(), found.errors.len()), (100, 0));
    }
    let mounts =
        [Mount::kernel(&old, &disks.path("kernel"), "ro")?, Mount::kernel(&new, &disks.path("other"), "ro")?];
    let [a, b] = mounts.each_ref().map(|mount| text(&mount.0));
    forget()?;
    let rsync = limited("`rsync -n`", 90, "rsync", &["-rlptn", "--delete", &format!("{a}/"), &b]);
    forget()?;
    // Its exit code is 1, as there are differences.
    let script = format!("diff -rq {a} {b} >/dev/null; [ $? -le 1 ]");
    let diff = limited("`diff -rq`", 120, "sh", &["-c", &script]);
    let name = format!("100 changes between two snapshots of {MILLION} files, cold");
    report.times(&name, &ours, &[], &format!("{rsync}; {diff} on two kernel mounts"), "≤ 1 s");
    Ok(())
}
