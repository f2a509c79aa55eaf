//! Instructions of a look-up and of an overwrite in place, counted by valgrind: times are noisy, these are not.
//! This program runs itself with two numbers of repetitions; the difference is theirs alone.

use crate::Options;
use crate::null::{Nothing, fragmented, pool};
use crate::report::{Report, Row};
use crate::rig::{BLOCK, GIB, Rng, to_f64};
use std::process::Command;
use store::io::port::block_on;
use store::io::{Sink, Source};

const COUNTS: [u64; 2] = [10_000, 30_000];

/// Does the work `count` times: what valgrind looks at.
pub fn repeat(work: &str, count: u64) {
    let (_dev, pool, volume) = pool(4 * GIB, GIB / 2, false);
    fragmented(&volume);
    pool.checkpoint().expect("checkpoints");
    let blocks = volume.size_bytes() / BLOCK;
    let io = volume.on(&Nothing);
    let mut buf = vec![0; 4096];
    let mut rng = Rng(9);
    for _ in 0..count {
        // What `fragmented` has written, in this epoch: a hole would be filled with zeros, which is all that is counted then.
        let own = rng.below(blocks / 8) * 8 * BLOCK;
        match work {
            "read" => block_on(io.read(own, Sink::Memory(&mut buf))).expect("reads"),
            _ => block_on(io.write(own, Source::Memory(&buf), false)).expect("writes"),
        }
    }
}

fn counted(work: &str, count: u64) -> Result<f64, String> {
    let exe = std::env::current_exe().map_err(|e| e.to_string())?;
    let out = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(exe)
        .args(["--repeat", work, &count.to_string()])
        .output()
        .map_err(|e| format!("valgrind: {e}; apt-get install valgrind"))?;
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    let line = text.lines().find_map(|l| l.split_once("Collected :")).map(|(_, n)| n.trim());
    line.and_then(|n| n.parse().ok()).ok_or(format!("valgrind counts nothing: {text}"))
}

/// Runs the jobs if they were asked for.
pub fn run(options: &Options, report: &mut Report) -> Result<(), String> {
    if !options.all.wants("instructions") {
        return Ok(());
    }
    for (work, name) in [("read", "look-up and read"), ("write", "overwrite in place")] {
        let [few, many] = [counted(work, COUNTS[0])?, counted(work, COUNTS[1])?];
        let each = (many - few) / to_f64(COUNTS[1] - COUNTS[0]);
        report.row(&Row::alone(&format!("instructions: {name}, null device"), each, "", "printed"));
    }
    Ok(())
}
