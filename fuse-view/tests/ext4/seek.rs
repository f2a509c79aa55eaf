//! A seek in a large sparse file reads a path through the tree of extents, not the tree.

use crate::common::support::{CountingImage, Mount, mke2fs, workdir};
use crate::common::sys;
use fuse_view::fs::open;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

const FAR: u64 = 1 << 40;
const PIECES: u64 = 6000;

fn check(options: &str, far: u64) {
    if !sys::is_root() {
        crate::common::skip::skip("a sparse file of this size is made by a mount, which needs root");
        return;
    }
    let dir = workdir();
    let Some(image) = mke2fs(dir.path(), 128, options) else { return };
    {
        let mount = Mount::new(&image, &dir.path().join("mnt"), "rw").unwrap();
        let file = File::create(mount.0.join("sparse")).unwrap();
        for i in 0..PIECES {
            file.write_all_at(b"x", i * 16384).unwrap();
        }
        file.write_all_at(b"the end", far).unwrap();
    }
    let dev = Arc::new(CountingImage::open(&image));
    let block = 4096;
    for (from, start, end) in [
        (PIECES * 16384, far / block * block, far + 7),
        (100 * 16384 + block, 101 * 16384, 101 * 16384 + block),
        (far, far, far + 7),
    ] {
        let fs = open(dev.cached()).unwrap();
        let ino = fs.lookup(fs.root(), b"sparse").unwrap();
        fs.attr(ino).unwrap();
        dev.take();
        assert_eq!(fs.next_data(ino, from).unwrap(), Some(start..end), "{options}");
        let (reads, _) = dev.take();
        assert!(reads <= 8, "{options}: {reads} reads to seek from {from}");
        let mut buf = [1; 100];
        fs.read_at(ino, from, &mut buf).unwrap();
        assert!(dev.take().0 <= 8, "{options}: reads at {from}");
    }
}

#[test]
fn in_extents() {
    check("-t ext4 -b 4096", FAR);
}

#[test]
fn in_block_pointers() {
    check("-t ext2 -b 4096", FAR);
}
