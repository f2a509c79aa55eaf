//! The file view beside the kernel's read-only mount of the same image, in the same run: `make bench-files`.
//!
//! Every figure is the median of some rounds, in which both take turns; "cold" is with the caches of the system
//! dropped. Nothing here fails by a clock: it prints a table and writes it where `--out` says. Images take minutes to
//! make and are kept in `--dir`; `--prepare` only makes them. Needs root, loop devices, FUSE and e2fsprogs.
#![allow(missing_docs)] // a program of its own

#[path = "../../../tests/bench.rs"]
mod bench;
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
--only     only rows with WORD: first byte (of a dirty snapshot), ls, sequential read, memory, find, versions, diff
--prepare  only makes the images";

/// What the command line asks for; `prepare`: only the images.
fn options(prepare: &mut bool) -> Result<bench::Options, String> {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("files");
    bench::Options::parse(USAGE, dir, |arg, value| {
        match arg {
            "--prepare" => *prepare = true,
            // In a process of its own, so that its memory is nothing else's.
            "--list" => {
                println!("{}", rows::list_in_this_process(&value()?, rows::By::Here)?);
                std::process::exit(0);
            }
            "--list-with-worker" => {
                println!("{}", rows::list_in_this_process(&value()?, rows::By::Worker)?);
                std::process::exit(0);
            }
            _ => return Ok(false),
        }
        Ok(true)
    })
}

fn main() -> std::process::ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == fuse_view::worker::ARGUMENT) {
        return fuse_view::worker::main(arguments);
    }
    bench::main(|| {
        let mut prepare = false;
        let options = options(&mut prepare)?;
        std::fs::create_dir_all(&options.dir).map_err(|e| e.to_string())?;
        let disks = disks::Disks::new(&options.dir);
        if prepare {
            return disks.prepare();
        }
        let mut report = Report::new(&options);
        rows::run_all(&options, &disks, &mut report)?;
        report.finish(&options)
    })
}
