//! The store's speed, as ratios against fio on the same file and qemu on a qcow2 in the same run: `make bench`.
//!
//! Every figure is the median of some rounds; in a round the store and its peer take turns, so that both meet the
//! same machine. Nothing here fails by a clock: it prints a table and writes it where `--out` says.
#![allow(missing_docs, unsafe_code)] // a program of its own; making a ring promises that no future is forgotten

mod ageing;
#[path = "../../../tests/bench.rs"]
mod bench;
mod instructions;
mod jobs;
mod memory;
mod null;
mod peer;
mod qcow2;
mod report;
mod rig;
mod sparse;

use report::Report;
use std::path::PathBuf;

const USAGE: &str = "usage: engine [--dir DIR] [--out FILE] [--rounds N] [--seconds N] [--only WORD]

--dir      where the pool file is made: a directory on a disk (the default is cargo's own temporary directory)
--out      writes the table there as Markdown too
--rounds   rounds of each job (5)
--seconds  how long each side of a round takes (3)
--only     only jobs whose names contain WORD";

/// What the command line asks for.
pub struct Options {
    pub all: bench::Options,
    /// Of each side of a round.
    pub seconds: u64,
}

fn options() -> Result<Options, String> {
    let mut seconds = 3;
    let all = bench::Options::parse(USAGE, PathBuf::from(env!("CARGO_TARGET_TMPDIR")), |arg, value| {
        match arg {
            "--seconds" => seconds = bench::number::<u64>(&value()?)?.max(1),
            // For valgrind; nobody else calls it so.
            "--repeat" => {
                instructions::repeat(&value()?, bench::number(&value()?)?);
                std::process::exit(0);
            }
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(Options { all, seconds })
}

fn main() -> std::process::ExitCode {
    bench::main(|| {
        let options = options()?;
        let mut report = Report::new(&options);
        // First: what others leave to the process would be taken for nothing.
        memory::run(&options, &mut report)?;
        null::run(&options, &mut report);
        jobs::run(&options, &mut report)?;
        qcow2::run(&options, &mut report)?;
        ageing::run(&options, &mut report)?;
        instructions::run(&options, &mut report)?;
        report.finish(&options)
    })
}
