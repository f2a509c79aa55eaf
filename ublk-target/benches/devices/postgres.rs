//! PostgreSQL on ext4, on a volume that gets snapshots and on the kernel's loop device of a plain file.

use crate::Options;
use crate::bench::{Table, median, run as program, spread, text};
use crate::sides::{Plain, Side, Volume};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

const SIZE: u64 = 3 << 30;
const RUNS: usize = 6;
/// 16 MiB of tables each.
const SCALE: &str = "20";
/// Whom Debian's package makes: a server refuses to run as root.
const USER: &str = "postgres";

/// The newest of Debian's servers.
fn binaries() -> Result<PathBuf, String> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok();
    let newest = versions.and_then(|all| all.flatten().map(|entry| entry.path()).max());
    newest.map(|dir| dir.join("bin")).ok_or("there is no PostgreSQL; `setup/run bench` installs it".into())
}

/// A server whose data lies on a device; stopped and unmounted when dropped.
struct Server {
    bin: PathBuf,
    /// Mountpoint; socket and log lie beside it.
    place: TempDir,
}

impl Server {
    fn on(device: &Path) -> Result<Self, String> {
        let place = tempfile::tempdir().map_err(|e| e.to_string())?;
        let server = Self { bin: binaries()?, place };
        program("chown", &[USER, &text(server.place.path())])?;
        fs::create_dir(server.mount()).map_err(|e| e.to_string())?;
        program(
            "mkfs.ext4",
            &["-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", &text(device)],
        )?;
        program("mount", &[&text(device), &text(&server.mount())])?;
        program("chown", &[USER, &text(&server.mount())])?;
        server.run("initdb", &["-A", "trust", "-D", &server.data()])?;
        let options =
            format!("-c listen_addresses='' -c unix_socket_directories='{}'", text(server.place.path()));
        let log = text(&server.place.path().join("log"));
        server.run("pg_ctl", &["-w", "-D", &server.data(), "-l", &log, "-o", &options, "start"])?;
        server.run("createdb", &["-h", &text(server.place.path()), "bench"])?;
        server.bench(&["-i", "-q", "-s", SCALE])?;
        server.rest()?;
        Ok(server)
    }

    fn mount(&self) -> PathBuf {
        self.place.path().join("mnt")
    }

    fn data(&self) -> String {
        text(&self.mount().join("data"))
    }

    /// One of PostgreSQL's programs, as its user.
    fn run(&self, tool: &str, args: &[&str]) -> Result<String, String> {
        let tool = text(&self.bin.join(tool));
        let (user, group) = (format!("--reuid={USER}"), format!("--regid={USER}"));
        program("setpriv", &[&[&*user, &*group, "--init-groups", &*tool], args].concat())
    }

    fn bench(&self, args: &[&str]) -> Result<String, String> {
        self.run("pgbench", &[&["-h", &*text(self.place.path())], args, &["bench"]].concat())
    }

    /// Transactions a second.
    fn measure(&self, seconds: u64) -> Result<f64, String> {
        let out = self.bench(&["-n", "-c", "4", "-T", &seconds.to_string()])?;
        let tps = out.lines().find_map(|line| line.strip_prefix("tps = "));
        let tps = tps.and_then(|rest| rest.split(' ').next()).and_then(|n| n.parse().ok());
        tps.ok_or(format!("pgbench tells no figure: {out}"))
    }

    /// Writes what it has put off, so that it does not do it while the other side is measured.
    fn rest(&self) -> Result<(), String> {
        self.run("psql", &["-q", "-h", &text(self.place.path()), "-c", "CHECKPOINT", "bench"]).map(drop)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // What failed to start cannot be stopped.
        let _ = self.run("pg_ctl", &["-w", "-m", "fast", "-D", &self.data(), "stop"]);
        if let Err(e) = program("umount", &[&text(&self.mount())]) {
            eprintln!("{e}");
        }
    }
}

/// One run while the volume gets a snapshot in the midst.
fn with_a_snapshot(server: &Server, volume: &mut Volume, seconds: u64) -> Result<f64, String> {
    std::thread::scope(|scope| {
        let run = scope.spawn(|| server.measure(seconds));
        std::thread::sleep(Duration::from_secs(seconds) / 2);
        volume.snapshot_frozen()?;
        run.join().expect("it does not panic")
    })
}

/// Runs the job if it was asked for.
pub fn run(options: &Options, table: &mut Table) -> Result<(), String> {
    if !options.all.wants("pgbench") {
        return Ok(());
    }
    // Servers go before what they lie on.
    let mut volume = Volume::new(&options.all.dir, SIZE)?;
    let plain = Plain::new(&options.all.dir, SIZE)?;
    let (ours, kernel) = (Server::on(&volume.device())?, Server::on(&plain.device())?);
    let mut rates: [Vec<f64>; 2] = Default::default();
    for round in 0..RUNS {
        for n in 0..2 {
            match (n + round) % 2 {
                0 => {
                    rates[0].push(with_a_snapshot(&ours, &mut volume, options.run_seconds)?);
                    ours.rest()?;
                }
                _ => {
                    rates[1].push(kernel.measure(options.run_seconds)?);
                    kernel.rest()?;
                }
            }
        }
    }
    let tps = |of: &[f64]| format!("{:.0} tps", median(of));
    let ratios: Vec<f64> = rates[0].iter().zip(&rates[1]).map(|(a, b)| a / b).collect();
    table.row(&[
        "pgbench, a snapshot in each run",
        &tps(&rates[0]),
        &tps(&rates[1]),
        &spread(&ratios),
        "0.8",
        "",
        "",
    ]);
    let [ours, kernel] = rates.map(|of| of[RUNS - 1] / of[0]);
    let (ours, kernel) = (format!("**{ours:.2}**"), format!("{kernel:.2}"));
    table.row(&[
        "pgbench, the last of six runs over the first",
        &ours,
        &kernel,
        "",
        "0.95 (of the volume)",
        "",
        "",
    ]);
    Ok(())
}
