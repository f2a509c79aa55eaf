//! Opens an image, replays its log, and reads the first bytes of a file; prints what that took.
//!
//! `cargo run --release -p fuse-view --example cat -- IMAGE PATH`

use fuse_view::{
    BlockRead,
    cache::{CacheBudget, CachedBlocks},
    fs,
    source::FileImage,
};
use std::{error::Error, path::Path, sync::Arc, time::Instant};

/// What the metadata may take in memory.
const CACHE_BYTES: u64 = 64 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [image, path] = &args[..] else { return Err("usage: cat IMAGE PATH".into()) };
    let begin = Instant::now();
    let image = Arc::new(FileImage::open(Path::new(image))?);
    let dev: Arc<dyn BlockRead> = Arc::new(CachedBlocks::new(image, &CacheBudget::new(CACHE_BYTES)));
    let fs = fs::open(dev)?;
    let mut ino = fs.root();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        ino = fs.lookup(ino, name.as_bytes())?;
    }
    let mut first = [0; 4096];
    let count = fs.read_at(ino, 0, &mut first)?;
    println!("{}: {count} bytes after {:.1} ms", fs.replay(), begin.elapsed().as_secs_f64() * 1000.0);
    Ok(())
}
