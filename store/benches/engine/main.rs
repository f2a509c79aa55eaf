//! The store's speed, as ratios against fio on the same file in the same run: `make bench`.
//!
//! Every figure is the median of some rounds; in a round the store and its peer take turns, so that both meet the
//! same machine. Nothing here fails by a clock: it prints a table and writes it where `--out` says.
#![allow(missing_docs, unsafe_code)] // a program of its own; making a ring promises that no future is forgotten

mod ageing;
mod instructions;
mod jobs;
mod memory;
mod null;
mod peer;
mod report;
mod rig;

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
    pub dir: PathBuf,
    pub out: Option<PathBuf>,
    pub rounds: usize,
    pub seconds: u64,
    pub only: String,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        dir: PathBuf::from(env!("CARGO_TARGET_TMPDIR")),
        out: None,
        rounds: 5,
        seconds: 3,
        only: String::new(),
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value\n{USAGE}"));
        let number = |text: String| text.parse::<u64>().map_err(|e| format!("{text}: {e}"));
        match arg.as_str() {
            // What cargo itself adds.
            "--bench" => {}
            "--dir" => options.dir = value()?.into(),
            "--out" => options.out = Some(value()?.into()),
            "--rounds" => options.rounds = usize::try_from(number(value()?)?).unwrap_or(5).max(1),
            "--seconds" => options.seconds = number(value()?)?.max(1),
            "--only" => options.only = value()?,
            // For valgrind; nobody else calls it so.
            "--repeat" => {
                let (work, count) = (value()?, number(value()?)?);
                instructions::repeat(&work, count);
                std::process::exit(0);
            }
            _ => return Err(format!("{arg} is not known\n{USAGE}")),
        }
    }
    Ok(options)
}

fn main() -> std::process::ExitCode {
    let run = || -> Result<(), String> {
        let options = options()?;
        let mut report = Report::new(&options);
        null::run(&options, &mut report);
        jobs::run(&options, &mut report)?;
        ageing::run(&options, &mut report)?;
        memory::run(&options, &mut report)?;
        instructions::run(&options, &mut report)?;
        report.finish(&options)
    };
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            std::process::ExitCode::FAILURE
        }
    }
}
