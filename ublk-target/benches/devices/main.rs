//! A volume as a block device through FUSE + loop, beside a kernel loop device of a plain file and a qcow2 image that qemu serves
//! through FUSE to a loop device; then PostgreSQL on ext4 on the volume while snapshots are taken: `make bench-devices`.
//!
//! Every figure is the median of some rounds, in which all take turns. Nothing here fails by a clock: it prints a table
//! and writes it where `--out` says. Needs root, /dev/fuse, loop devices and what `setup/run bench` installs.
#![allow(missing_docs)] // a program of its own

#[path = "../../../tests/bench.rs"]
mod bench;
mod jobs;
mod postgres;
mod sides;

use bench::{Table, said, text};
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: devices [--dir DIR] [--out FILE] [--rounds N] [--seconds N] [--run N] [--only WORD]

--dir      where pool, file and image are made: a directory on a disk (the default is cargo's own temporary directory)
--out      writes the table there as Markdown too
--rounds   rounds of each job (5)
--seconds  how long each side of a round takes (2)
--run      how long each run of pgbench takes (20)
--only     only jobs whose names contain WORD";

/// What the command line asks for.
pub struct Options {
    pub all: bench::Options,
    /// Of each side of a round, and of a run of pgbench.
    pub seconds: u64,
    pub run_seconds: u64,
}

fn options() -> Result<Options, String> {
    let (mut seconds, mut run_seconds) = (2, 20);
    let all = bench::Options::parse(USAGE, PathBuf::from(env!("CARGO_TARGET_TMPDIR")), |arg, value| {
        match arg {
            "--seconds" => seconds = bench::number::<u64>(&value()?)?.max(1),
            "--run" => run_seconds = bench::number::<u64>(&value()?)?.max(1),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(Options { all, seconds, run_seconds })
}

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == ublk_target::freeze::GUARD_ARGUMENT) {
        return ublk_target::freeze::guard_main(args);
    }
    bench::main(|| {
        let options = options()?;
        let mut table = Table::new();
        jobs::run(&options, &mut table)?;
        postgres::run(&options, &mut table)?;
        finish(&options, &table)
    })
}

fn finish(options: &Options, table: &Table) -> Result<(), String> {
    let Some(path) = &options.all.out else { return Ok(()) };
    let intro = format!(
        "Written by `make bench-devices`; {} rounds of {} s a side, all by turns, medians (lowest – highest ratio of a round). \
         The volume is a pool's on a file, served by the process that measures; the kernel's loop device has direct I/O on a \
         plain file beside it, and so has the one on the file that `qemu-storage-daemon --export type=fuse` shows of a qcow2 image. All \
         were written once from begin to end. fio drives all three with libaio and direct I/O. Only the ratios mean something: \
         the machine is what it is, and was shared.\n\n\
         pgbench: six runs of {} s with four clients on ext4, on the volume and on the kernel's loop device by turns, the other one's \
         server at rest after a checkpoint. The volume gets a snapshot in each of its runs, with the file system frozen as the agent does it.",
        options.all.rounds, options.seconds, options.run_seconds,
    );
    let disk = said("findmnt", &["-no", "FSTYPE,OPTIONS,SIZE", "-T", &text(&options.all.dir)]);
    let facts = [
        ("file system, disk", disk),
        ("fio", said("fio", &["--version"])),
        ("qemu", said("qemu-storage-daemon", &["--version"])),
        ("PostgreSQL", said("pgbench", &["--version"])),
    ];
    let columns =
        ["what", "volume", "kernel loop", "volume ÷ kernel loop", "at least", "qcow2", "volume ÷ qcow2"];
    let page = table.page("Benchmarks of block devices", &intro, &facts, &columns);
    std::fs::write(path, page).map_err(|e| format!("{}: {e}", path.display()))
}
