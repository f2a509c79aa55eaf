//! Walks all of an image, asking for the attributes of every file, and prints what that took.
//!
//! `cargo run --release -p fuse-view --example walk -- IMAGE [--content]`

use fuse_view::{
    BlockRead, FileKind, FsView,
    cache::{CacheBudget, CachedBlocks},
    fs,
    source::FileImage,
};
use std::{error::Error, path::Path, sync::Arc, time::Instant};

/// What the metadata may take in memory.
const CACHE_BYTES: u64 = 64 << 20;

#[derive(Default)]
struct Counts {
    directories: u64,
    files: u64,
    others: u64,
    bytes: u64,
    errors: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (image, content) = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [image] => (image, false),
        [image, "--content"] => (image, true),
        _ => return Err("usage: walk IMAGE [--content]".into()),
    };
    let begin = Instant::now();
    let dev: Arc<dyn BlockRead> = Arc::new(CachedBlocks::new(
        Arc::new(FileImage::open(Path::new(image))?),
        &CacheBudget::new(CACHE_BYTES),
    ));
    let fs = fs::open(dev)?;
    println!("{}, {}, {}", fs.format(), fs.label(), fs.replay());
    let Counts { directories, files, others, bytes, errors } = walk(&*fs, content);
    println!("{directories} directories, {files} files, {others} others, {bytes} bytes, {errors} errors");
    println!("{:.3} s, {} MiB of memory at most", begin.elapsed().as_secs_f64(), peak_kib()? >> 10);
    Ok(())
}

fn walk(fs: &dyn FsView, content: bool) -> Counts {
    let mut counts = Counts::default();
    let mut buf = vec![0; if content { 1 << 20 } else { 0 }];
    let mut todo = vec![fs.root()];
    while let Some(dir) = todo.pop() {
        counts.directories += 1;
        let mut cookie = 0;
        loop {
            let entries = match fs.readdir(dir, cookie, 256) {
                Ok(entries) => entries,
                Err(e) => {
                    eprintln!("{e}");
                    counts.errors += 1;
                    break;
                }
            };
            let Some(last) = entries.last() else { break };
            cookie = last.cookie;
            for entry in &entries {
                match fs.attr(entry.ino) {
                    Ok(attr) if attr.kind == FileKind::Dir => todo.push(entry.ino),
                    Ok(attr) if attr.kind == FileKind::File => {
                        counts.files += 1;
                        if content {
                            counts.bytes += read(fs, entry.ino, &mut buf);
                        }
                    }
                    Ok(_) => counts.others += 1,
                    Err(e) => {
                        eprintln!("{}: {e}", String::from_utf8_lossy(&entry.name));
                        counts.errors += 1;
                    }
                }
            }
        }
    }
    counts
}

/// Reads what a file holds, holes left out.
fn read(fs: &dyn FsView, ino: u64, buf: &mut [u8]) -> u64 {
    let (mut at, mut total) = (0, 0);
    while let Ok(Some(range)) = fs.next_data(ino, at) {
        at = range.start;
        while at < range.end {
            match fs.read_at(ino, at, buf) {
                Ok(got) if got > 0 => {
                    at += got as u64;
                    total += got as u64;
                }
                _ => return total,
            }
        }
    }
    total
}

/// The high water mark of resident memory.
fn peak_kib() -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM in /proc")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}
