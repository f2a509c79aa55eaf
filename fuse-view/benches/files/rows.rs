//! What is measured.

use crate::bench::{Options, run, text};
use crate::disks::{CROWD, DIRS, Disks, LARGE_BYTES, MILLION, Mount, forget};
use crate::history::Snapshots;
use crate::report::{Report, Times};
use fuse_view::{
    BlockRead, FsView,
    cache::{CacheBudget, CachedBlocks},
    diff::{self, Found, Ranges},
    find, fs as formats,
    fuse::{self, Options as FuseOptions},
    listing::Listing,
    source::FileImage,
    versions::{Told, versions},
    walk,
    worker::{self, Reader, Sides},
};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// As the commands have it.
const CACHE_BYTES: u64 = 64 << 20;

/// Who parses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// A process of its own.
    Worker,
    /// This process.
    Here,
}

const BOTH: [By; 2] = [By::Worker, By::Here];

impl By {
    fn times(self, times: &mut Times) -> &mut Vec<f64> {
        match self {
            Self::Worker => &mut times.worker,
            Self::Here => &mut times.here,
        }
    }
}

fn timed<T>(what: impl FnOnce() -> Result<T, String>) -> Result<(f64, T), String> {
    let start = Instant::now();
    let value = what()?;
    Ok((start.elapsed().as_secs_f64(), value))
}

fn image(image: &Path) -> Result<Arc<dyn BlockRead>, String> {
    Ok(Arc::new(FileImage::open(image).map_err(|e| e.to_string())?))
}

fn source(of: &Path) -> Result<Arc<dyn BlockRead>, String> {
    Ok(Arc::new(CachedBlocks::new(image(of)?, &CacheBudget::new(CACHE_BYTES))))
}

/// A reader as the commands have it, of another user.
fn reader() -> Arc<Reader> {
    let options =
        worker::Options { user: Some((65534, 65534)), cache_bytes: CACHE_BYTES, ..Default::default() };
    worker::Workers::new(options, |event| eprintln!("{event:?}")).reader(0, "")
}

/// A file system, and who reads it if somebody else does.
type Opened = (Arc<dyn FsView>, Option<Arc<Reader>>);

fn opened(of: &Path, by: By) -> Result<Opened, String> {
    if by == By::Here {
        return Ok((formats::open(source(of)?).map_err(|e| e.to_string())?, None));
    }
    let reader = reader();
    match reader.open("image", image(of)?).map_err(|e| e.to_string())? {
        worker::Holds::Files(view) => Ok((view, Some(reader))),
        _ => Err(format!("{} holds no file system", of.display())),
    }
}

fn view(of: &Path, by: By) -> Result<Arc<dyn FsView>, String> {
    Ok(opened(of, by)?.0)
}

type Row = fn(&Options, &Disks, &mut Report) -> Result<(), String>;

/// Runs the rows that are asked for.
pub fn run_all(options: &Options, disks: &Disks, report: &mut Report) -> Result<(), String> {
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
fn read_first(image: &Path, by: By, path: &[u8]) -> Result<u8, String> {
    let view = view(image, by)?;
    let mut byte = [0; 1];
    let ino = walk::lookup_path(&*view, path, true).map_err(|e| e.to_string())?;
    view.read_at(ino, 0, &mut byte).map_err(|e| e.to_string())?;
    Ok(byte[0])
}

fn first_of(mount: &Mount, name: &str) -> Result<u8, String> {
    let mut byte = [0; 1];
    File::open(mount.0.join(name))
        .and_then(|mut file| file.read_exact(&mut byte))
        .map_err(|e| e.to_string())?;
    Ok(byte[0])
}

fn first_byte(options: &Options, disks: &Disks, report: &mut Report) -> Result<(), String> {
    let image = disks.crowd()?;
    let mut times = Times::default();
    for _ in 0..options.rounds {
        // Without what unmounting takes: it is not waited for.
        forget()?;
        let (time, (theirs, mount)) = timed(|| {
            let mount = Mount::kernel(&image, &disks.path("kernel"), "ro")?;
            Ok((first_of(&mount, "large")?, mount))
        })?;
        drop(mount);
        times.kernel.push(time);
        for by in BOTH {
            forget()?;
            let (time, ours) = timed(|| read_first(&image, by, b"/large"))?;
            by.times(&mut times).push(time);
            assert_eq!(ours, theirs);
        }
    }
    report.times("first byte of a file of a clean image, cold", &times, "", "≤ 3 × mount and read, 100 ms");
    Ok(())
}

fn first_byte_dirty(options: &Options, disks: &Disks, report: &mut Report) -> Result<(), String> {
    let image = disks.dirty()?;
    let mut times = Times::default();
    for _ in 0..options.rounds {
        // The kernel writes what it replays, so it gets a copy.
        let copy = disks.path("dirty.copy");
        run("cp", &["--sparse=always", &text(&image), &text(&copy)])?;
        forget()?;
        let (time, (theirs, mount)) = timed(|| {
            let mount = Mount::replayed(&copy, &disks.path("kernel"))?;
            Ok((first_of(&mount, "first")?, mount))
        })?;
        drop(mount);
        times.kernel.push(time);
        fs::remove_file(&copy).map_err(|e| e.to_string())?;
        for by in BOTH {
            forget()?;
            let (time, ours) = timed(|| read_first(&image, by, b"/first"))?;
            by.times(&mut times).push(time);
            assert_eq!(ours, theirs);
        }
    }
    assert_eq!(view(&image, By::Here)?.replay(), "replayed");
    let name = "first byte with 90 MiB of a 128 MiB journal to replay, cold";
    report.times(name, &times, "", "≤ 3 × mount and read");
    Ok(())
}

/// `ls -lR` of a mount.
fn list(at: &Path) -> Result<f64, String> {
    let (time, out) = timed(|| run("ls", &["-lR", &text(at)]))?;
    assert!(out.lines().count() > CROWD, "all names are listed");
    Ok(time)
}

fn ls(options: &Options, disks: &Disks, report: &mut Report) -> Result<(), String> {
    ls_on("ext4", &disks.crowd()?, options, disks, report)?;
    for format in ["xfs", "btrfs"] {
        ls_on(format, &disks.crowd_on(format)?, options, disks, report)?;
    }
    Ok(())
}

fn ls_on(
    format: &str,
    image: &Path,
    options: &Options,
    disks: &Disks,
    report: &mut Report,
) -> Result<(), String> {
    let (at, peer) = (disks.path("fuse"), disks.path("kernel"));
    fs::create_dir_all(&at).map_err(|e| e.to_string())?;
    let (mut cold, mut warm) = (Times::default(), Times::default());
    for _ in 0..options.rounds {
        for by in BOTH {
            forget()?;
            let mounted = fuse::mount_view(view(image, by)?, &at, &FuseOptions::default());
            let mounted = mounted.map_err(|e| e.to_string())?;
            by.times(&mut cold).push(list(&at)?);
            by.times(&mut warm).push(list(&at)?);
            drop(mounted);
        }
        let mounted = Mount::kernel(image, &peer, "ro")?;
        forget()?;
        cold.kernel.push(list(&peer)?);
        warm.kernel.push(list(&peer)?);
        drop(mounted);
    }
    let other = match format {
        "ext4" => "fuse2fs",
        "xfs" => "xfs-fuse",
        _ => "btrfs-fuse",
    };
    forget()?;
    let mounted = match format {
        "ext4" => Mount::fuse2fs(image, &disks.path(other)),
        _ => Mount::by(other, image, &disks.path(other)),
    };
    let others = mounted.map_or(String::new(), |mount| limited(other, 60, "ls", &["-lR", &text(&mount.0)]));
    let name = format!("`ls -lR` of 100,000 files in a directory of {format}, cold");
    report.times(&name, &cold, &others, "≤ 1.5 × kernel");
    report.times("the same a second time", &warm, "", "≤ 1.0 × kernel");
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
    for (name, prepare) in [
        ("512 MiB read in pieces of 1 MiB, cold", &forget as &dyn Fn() -> Result<(), String>),
        // Where no disk takes any of the time.
        ("the same with the image in memory", &|| read_in(&image)),
    ] {
        let mut times = Times::default();
        for _ in 0..options.rounds {
            for by in BOTH {
                let mounted = fuse::mount_view(view(&image, by)?, &at, &FuseOptions::default());
                let mounted = mounted.map_err(|e| e.to_string())?;
                prepare()?;
                by.times(&mut times).push(read_all(&at.join("large"))?);
                drop(mounted);
            }
            let mounted = Mount::kernel(&image, &peer, "ro")?;
            prepare()?;
            times.kernel.push(read_all(&peer.join("large"))?);
            drop(mounted);
        }
        prepare()?;
        let others = match Mount::fuse2fs(&image, &disks.path("fuse2fs")) {
            Some(mounted) => read_all(&mounted.0.join("large"))
                .map_or(String::new(), |time| format!("fuse2fs {time:.2} s")),
            None => String::new(),
        };
        report.times(name, &times, &others, "≤ 1.11 × kernel");
    }
    Ok(())
}

/// Reads a file into the system's cache.
fn read_in(path: &Path) -> Result<(), String> {
    File::open(path)
        .and_then(|mut file| io::copy(&mut file, &mut io::sink()))
        .map(drop)
        .map_err(|e| e.to_string())
}

/// Lists all of an image: how many files there are, and the most memory that took, that of a worker too, in KiB.
pub fn list_in_this_process(of: &str, by: By) -> Result<String, String> {
    let (view, reader) = opened(Path::new(of), by)?;
    let count = Listing::new(&*view, view.root(), b"/", true).filter(Result::is_ok).count();
    let most = |process: &str| -> Result<u64, String> {
        let status = fs::read_to_string(format!("/proc/{process}/status")).map_err(|e| e.to_string())?;
        let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
        most.trim().trim_end_matches(" kB").parse().map_err(|_| format!("no VmHWM of {process}"))
    };
    let worker = reader.and_then(|reader| reader.process_id());
    let worker = worker.map_or(Ok(0), |pid| most(&pid.to_string()))?;
    Ok(format!("{count} {}", most("self")? + worker))
}

fn memory(_: &Options, disks: &Disks, report: &mut Report) -> Result<(), String> {
    let (image, _) = disks.million()?;
    let own = std::env::current_exe().map_err(|e| e.to_string())?;
    let measured = |how: &str| -> Result<String, String> {
        let out = run(&text(&own), &[how, &text(&image)])?;
        let numbers: Vec<usize> = out.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        let [count, kib] = numbers[..] else { return Err(format!("no figures: {out}")) };
        assert!(count > MILLION);
        Ok(format!("{} MiB", kib >> 10))
    };
    let (worker, here) = (measured("--list-with-worker")?, measured("--list")?);
    let goal = format!("≤ 64 MiB and the cache, {} MiB", CACHE_BYTES >> 20);
    report.row(&["memory after listing 1,000,000 files", &worker, "", "", &here, "", &goal]);
    Ok(())
}

fn find_names(options: &Options, disks: &Disks, report: &mut Report) -> Result<(), String> {
    let (image, _) = disks.million()?;
    let peer = disks.path("kernel");
    let mut times = Times::default();
    for _ in 0..options.rounds {
        for by in BOTH {
            forget()?;
            let (time, found) = timed(|| {
                let view = view(&image, by)?;
                let mut found = 0;
                find::walk(&*view, view.root(), b"/", false, |met| -> Result<(), String> {
                    found += usize::from(met.map_err(|e| e.to_string())?.name().ends_with(b"-77.txt"));
                    Ok(())
                })?;
                Ok(found)
            })?;
            by.times(&mut times).push(time);
            assert_eq!(found, DIRS);
        }
        forget()?;
        let (time, found) = timed(|| {
            let mounted = Mount::kernel(&image, &peer, "ro")?;
            let out = run("find", &[&text(&peer), "-name", "*-77.txt"])?;
            Ok((out.lines().count(), mounted))
        })?;
        times.kernel.push(time);
        assert_eq!(found.0, DIRS);
    }
    let others = match Mount::fuse2fs(&image, &disks.path("fuse2fs")) {
        Some(mounted) => limited("fuse2fs", 60, "find", &[&text(&mounted.0), "-name", "*-77.txt"]),
        None => String::new(),
    };
    report.times("a name among 1,000,000 files, cold", &times, &others, "≤ 1.0 × mount and `find`");
    Ok(())
}

fn follow(options: &Options, disks: &Disks, report: &mut Report) -> Result<(), String> {
    let snapshots = Snapshots::new(&disks.versions(10)?, 10_000);
    let mut times = Times::default();
    for _ in 0..options.rounds {
        for by in BOTH {
            let mut found = 0;
            let told = |told| -> Result<(), fuse_view::Error> {
                found += usize::from(matches!(told, Told::Version(_)));
                Ok(())
            };
            let path = b"/home/ann/thesis";
            let (time, _) = timed(|| {
                let done = match by {
                    By::Worker => reader().versions("volume", &snapshots, path, told),
                    By::Here => versions(&snapshots, path, told),
                };
                done.map_err(|e| e.to_string())
            })?;
            by.times(&mut times).push(time);
            assert_eq!(found, 10);
        }
    }
    report.times("versions of a file over 10,000 snapshots, 10 versions", &times, "", "≤ 1 s");
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
    let mut times = Times::default();
    let cancel = AtomicBool::new(false);
    for _ in 0..options.rounds {
        forget()?;
        let (time, found) = timed(|| {
            let (old, new) = (source(&old)?, source(&new)?);
            diff::diff(&old, &new, b"/", &changed, &cancel).map_err(|e| e.to_string())
        })?;
        times.here.push(time);
        assert_eq!((found.differences.len(), found.errors.len()), (100, 0));
        forget()?;
        let mut found = 0;
        let (time, ()) = timed(|| {
            let sides = Sides { old: image(&old)?, new: image(&new)?, changed: &changed };
            let each = |one: Found| -> Result<(), fuse_view::Error> {
                found += usize::from(matches!(one, Found::Difference(_)));
                Ok(())
            };
            reader().diff("both", sides, b"/", &cancel, each).map_err(|e| e.to_string())
        })?;
        times.worker.push(time);
        assert_eq!(found, 100);
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
    let others = format!("{rsync}; {diff} on two kernel mounts");
    report.times("100 changes between two snapshots of 1,000,000 files, cold", &times, &others, "≤ 1 s");
    Ok(())
}
