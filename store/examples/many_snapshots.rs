//! Fills a new pool with many snapshots of a disk image, to measure what follows files through them:
//! `cargo run --release -p store --example many_snapshots -- POOL COUNT FIRST.img SECOND.img [EVERY]`.
//!
//! The volume is called `v`, the snapshots `s1`, `s2`, …; in each the block of the superblock's time differs, and every
//! EVERY snapshots (1000) the content changes from one image to the other. Make the images with `-O ^metadata_csum`: that
//! time is not under a checksum then.

use std::path::Path;
use store::{Consistency, InitOptions, Labels, OpenOptions, Pool, SnapshotSpec};

const BLOCK: usize = 4096;
/// Bytes of a superblock of ext4 that hold the time of the last write.
const TIME: std::ops::Range<usize> = 1024 + 0x30..1024 + 0x34;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [pool, count, first, second, every @ ..] = &arguments[..] else {
        return Err("usage: many_snapshots POOL COUNT FIRST.img SECOND.img [EVERY]".into());
    };
    let (count, every) = (count.parse::<u32>()?, every.first().map_or(Ok(1000), |text| text.parse::<u32>())?);
    let images = [std::fs::read(first)?, std::fs::read(second)?];
    let size = images[0].len() as u64;
    Pool::init(
        Path::new(pool),
        &InitOptions { size_bytes: Some(size * 8 + (4 << 30)), ..InitOptions::default() },
    )?;
    let pool = Pool::open(Path::new(pool), &OpenOptions::default())?;
    pool.create_volume("v", size, Labels::new())?;
    let volume = pool.open_volume("v")?;
    let mut shown = vec![0; images[0].len()];
    for number in 1..=count {
        let image = &images[usize::try_from(number / every % 2)?];
        for (at, (new, old)) in (0..).zip(image.chunks(BLOCK).zip(shown.chunks_mut(BLOCK))) {
            if at > 0 && new != old {
                volume.write_at(at * BLOCK as u64, new, false)?;
                old.copy_from_slice(new);
            }
        }
        let mut head = image[..BLOCK].to_vec();
        head[TIME].copy_from_slice(&number.to_le_bytes());
        volume.write_at(0, &head, false)?;
        let name = format!("s{number}");
        let spec = SnapshotSpec { volume: "v".into(), name, consistency: Consistency::Detached };
        pool.create_snapshots(&[spec], Labels::new())?;
    }
    drop(volume);
    pool.close()?;
    Ok(())
}
