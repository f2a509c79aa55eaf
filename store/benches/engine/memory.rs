//! Memory after ten million writes all over a volume of 1 TiB. The disk is a file that keeps what is not zeros: the
//! metadata, for the data of this job is zeros.

use crate::Options;
use crate::null::pool_on;
use crate::report::{Report, Row};
use crate::rig::{BLOCK, GIB, Rng, to_f64};
use parking_lot::Mutex;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use store::io::BlockDev;

const WRITES: u64 = 10_000_000;
const POOL: u64 = 128 * GIB;

struct Metadata {
    file: File,
    /// A bit for each block that is in the file.
    held: Mutex<Vec<u64>>,
}

fn place(block: u64) -> (usize, u64) {
    (usize::try_from(block / 64).expect("64-bit host"), 1 << (block % 64))
}

impl BlockDev for Metadata {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        for (block, out) in (offset / BLOCK..).zip(buf.chunks_mut(4096)) {
            let (word, bit) = place(block);
            if self.held.lock()[word] & bit == 0 {
                out.fill(0);
            } else {
                self.file.read_exact_at(out, block * BLOCK)?;
            }
        }
        Ok(())
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        for (block, part) in (offset / BLOCK..).zip(buf.chunks(4096)) {
            let (word, bit) = place(block);
            if part.iter().all(|b| *b == 0) {
                self.held.lock()[word] &= !bit;
            } else {
                self.file.write_all_at(part, block * BLOCK)?;
                self.held.lock()[word] |= bit;
            }
        }
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn back(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn len(&self) -> u64 {
        POOL
    }
    fn host_free(&self) -> Option<u64> {
        None
    }
}

/// Resident memory of this process in MiB, files excepted.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or_default() / 1024.0
}

/// Runs the job if it was asked for.
pub fn run(options: &Options, report: &mut Report) -> Result<(), String> {
    if !"memory".contains(&options.only) {
        return Ok(());
    }
    let file = tempfile::tempfile_in(&options.dir).map_err(|e| e.to_string())?;
    // Touched before the first look, so that it does not count.
    let held = Mutex::new(vec![1; usize::try_from(POOL / BLOCK / 64).expect("64-bit host")]);
    held.lock().fill(0);
    let before = resident();
    let (pool, volume) = pool_on(Arc::new(Metadata { file, held }), 1024 * GIB, true);
    let idle = resident() - before;
    let zeros = vec![0; 4096];
    let mut rng = Rng(11);
    let mut most = 0.0_f64;
    for n in 0..WRITES {
        volume
            .write_at(rng.below(volume.size_bytes() / BLOCK) * BLOCK, &zeros, false)
            .map_err(|e| e.to_string())?;
        if n.is_multiple_of(100_000) {
            most = most.max(resident() - before);
        }
    }
    pool.checkpoint().map_err(|e| e.to_string())?;
    let after = resident() - before;
    let name = format!("memory: {} M random writes, 1 TiB sparse", to_f64(WRITES) / 1e6);
    report.row(&Row::alone("memory: pool and volume open", idle, "MiB", "32 MiB + 4 MiB"));
    report.row(&Row::alone(
        &format!("{name}, most"),
        most,
        "MiB",
        "+ 64 MiB cache, two memtables of 100 MiB",
    ));
    report.row(&Row::alone(&format!("{name}, after a checkpoint"), after, "MiB", "+ 64 MiB cache"));
    Ok(())
}
