//! Memory after ten million writes all over a volume of 1 TiB. The disk is a file that keeps what is not zeros: the
//! metadata, for the data of this job is zeros.

use crate::Options;
use crate::null::pool_on;
use crate::report::{Report, Row};
use crate::rig::{BLOCK, GIB, Rng, to_f64};
use crate::sparse::{InFile, Sparse};
use std::sync::Arc;

const WRITES: u64 = 10_000_000;
const POOL: u64 = 128 * GIB;

/// Resident memory of this process in MiB, files excepted.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or_default() / 1024.0
}

/// Runs the job if it was asked for.
pub fn run(options: &Options, report: &mut Report) -> Result<(), String> {
    if !options.all.wants("memory") {
        return Ok(());
    }
    let file = tempfile::tempfile_in(&options.all.dir).map_err(|e| e.to_string())?;
    // Made before the first look, so that it does not count.
    let disk = Sparse::new(POOL, InFile::new(file, POOL));
    let before = resident();
    let (pool, volume) = pool_on(Arc::new(disk), 1024 * GIB, true);
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
