//! The file view beside the kernel's read-only mount of the same image, in the same run: `make bench-files`.
//!
//! Every figure is the median of some rounds, in which both take turns; "cold" is with the caches of the system
//! dropped. Nothing here fails by a clock: it prints a table and writes it where `--out` says. Images take minutes to
//! make and are kept in `--dir`; `--prepare` only makes them. Needs root, loop devices, FUSE and e2fsprogs.
#![allow(missing_docs)] // a program of its own

mod disks;
mod history;
mod report;
mod rows;

use report::Report;
use std::path::PathBuf;

const USAGE: &str = "usage: files [--dir DIR] [--out FILE] [--rounds N] [--only WORD] [--prepare]

--dir      where images are made and kept: a directory on a disk (the default is cargo's own temporary directory)
--out      writes the table there as Markdown too
--rounds   rounds of each row (5)
--only     only rows whose names contain WORD
--prepare  only makes the images";

/// What the command line asks for.
pub struct Options {
    pub dir: PathBuf,
    pub out: Option<PathBuf>,
    pub rounds: usize,
    pub only: String,
    pub prepare: bool,
}

fn options() -> Result<Options, String> {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("files");
    let mut options = Options { dir, out: None, rounds: 5, only: String::new(), prepare: false };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value\n{USAGE}"));
        match arg.as_str() {
            // What cargo itself adds.
            "--bench" => {}
            "--dir" => options.dir = value()?.into(),
            "--out" => options.out = Some(value()?.into()),
            "--rounds" => options.rounds = value()?.parse::<usize>().map_err(|e| e.to_string())?.max(1),
            "--only" => options.only = value()?,
            "--prepare" => options.prepare = true,
            // In a process of its own, so that its memory is nothing else's.
            "--list" => {
                println!("{}", rows::list_in_this_process(&value()?)?);
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
        std::fs::create_dir_all(&options.dir).map_err(|e| e.to_string())?;
        let disks = disks::Disks::new(&options.dir);
        if options.prepare {
            return disks.prepare();
        }
        let mut report = Report::new(&options);
        rows::run_all(&options, &disks, &mut report)?;
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
