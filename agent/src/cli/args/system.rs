//! Arguments of the commands about the pool, the agent and the host.

use crate::config::Transport;
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum PoolCommand {
    /// Make a pool in a directory or on a block device
    #[command(after_help = "\
Examples:
  cowslip pool init /var/lib/cowslip
  cowslip pool init /srv/pool --size 500G
  cowslip pool init /dev/sdb --force")]
    Init(PoolInitArgs),
    /// Show the pool that the agent serves, or the one of --pool
    #[command(after_help = "\
Examples:
  cowslip pool show
  cowslip --pool /var/lib/cowslip pool show --json")]
    Show,
    /// Check that a pool is consistent; never writes
    #[command(after_help = "\
Exit code 0: clean; 7: damaged, each finding on a line of its own.

Examples:
  cowslip pool check
  cowslip pool check /dev/sdb")]
    Check(PoolCheckArgs),
    /// Print the inner structures of a pool; never writes
    #[command(after_help = "\
WHAT is superblock, catalog, log, segments, volume:NAME or map:NAME.

Examples:
  cowslip pool dump /var/lib/cowslip superblock
  cowslip pool dump /var/lib/cowslip map:db --json")]
    Dump(PoolDumpArgs),
}

#[derive(Debug, Args)]
pub struct PoolInitArgs {
    /// A directory (made if absent; it will hold the pool file) or a block device
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// Size of the pool file [default: the room of the file system]
    #[arg(long)]
    pub size: Option<String>,
    /// Take a device or directory that holds something already; what it holds is lost
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct PoolCheckArgs {
    /// The pool [default: --pool, else /var/lib/cowslip]
    #[arg(value_name = "PATH")]
    pub path: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct PoolDumpArgs {
    /// The pool
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// superblock, catalog, log, segments, volume:NAME or map:NAME
    #[arg(value_name = "WHAT")]
    pub what: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The options win over the configuration file. Without --config, /etc/cowslip/config.toml is read if it exists.

Examples:
  cowslip agent
  cowslip agent --config /etc/cowslip/config.toml
  cowslip agent --pool ./pool --socket ./agent.sock --snapshots ./snapshots --transport loop")]
pub struct AgentArgs {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The pool to serve [default: /var/lib/cowslip]
    #[arg(long, value_name = "PATH")]
    pub pool: Option<PathBuf>,
    /// Where to listen [default: /run/cowslip/agent.sock]
    #[arg(long, value_name = "PATH", env = "COWSLIP_SOCKET", hide_env_values = true)]
    pub socket: Option<PathBuf>,
    /// Where to mount the snapshots, or none [default: /snapshots]
    #[arg(long, value_name = "DIR")]
    pub snapshots: Option<PathBuf>,
    /// How volumes become block devices: auto (ublk where the kernel has it, else loop), ublk, loop or none
    #[arg(long, value_name = "KIND", value_enum, hide_possible_values = true)]
    pub transport: Option<Transport>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cowslip status
  cowslip status --wait 10s
  cowslip --pool /var/lib/cowslip status --json")]
pub struct StatusArgs {
    /// Wait at most so long until the agent serves
    #[arg(long, value_name = "TIME")]
    pub wait: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
With --json each event is an object on a line of its own.

Examples:
  cowslip events
  cowslip events --follow --json")]
pub struct EventsArgs {
    /// Go on with events as they happen, until Ctrl-C
    #[arg(short, long)]
    pub follow: bool,
    /// Only events of this volume
    #[arg(long, value_name = "VOL")]
    pub volume: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Works with and without an agent. Exit code 0: nothing failed (warnings are no failure); 1: something did.

Examples:
  cowslip doctor
  cowslip doctor --json")]
pub struct DoctorArgs {}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cowslip completions bash > /etc/bash_completion.d/cowslip
  cowslip completions zsh > ~/.zfunc/_cowslip
  cowslip completions fish > ~/.config/fish/completions/cowslip.fish")]
pub struct CompletionsArgs {
    /// bash, zsh or fish
    #[arg(value_name = "SHELL", value_enum, hide_possible_values = true)]
    pub shell: ShellChoice,
}

/// A shell with completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ShellChoice {
    Bash,
    Zsh,
    Fish,
}

#[derive(Debug, Args)]
#[command(after_help = "\
One page for each command: cowslip.1, cowslip-volume.1, cowslip-volume-create.1, …

Examples:
  cowslip man /usr/local/share/man/man1")]
pub struct ManArgs {
    /// Directory for the pages; made if absent
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "\
What snapshots hold cannot change, so it has checksums: every read compares them, a scrub compares
all. Ctrl-C interrupts it, and the next scrub goes on there.

Exit code 0: no damage; 7: damage found, `cowslip events` and `cowslip status` say whose it is.

Examples:
  cowslip scrub
  cowslip scrub --rate 100M")]
pub struct ScrubArgs {
    /// Read at most so much a second [default: no limit]
    #[arg(long, value_name = "SIZE")]
    pub rate: Option<String>,
    /// From the beginning, also where an earlier one was interrupted
    #[arg(long)]
    pub restart: bool,
}
