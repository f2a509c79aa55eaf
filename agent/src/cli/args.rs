//! The command line's grammar and its help. Names, sizes and sources stay text here and are parsed by the
//! commands, so that what is wrong with them is told in one way, with a hint, also in JSON.

mod files;
mod system;
mod volumes;

pub use files::*;
pub use system::*;
pub use volumes::*;

use super::output::ColorChoice;
use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand};
use std::path::PathBuf;

const AFTER_HELP: &str = "\
Names:
  VOL               a volume: UTF-8, 1 to 255 bytes, without '/' and '@'
  VOL@SNAP          a snapshot; VOL@latest is the newest
  VOL@SNAP:/path    a file in a snapshot
  IMAGE:/path       a file in a raw disk image or block device; IMAGE starts with '/' or '.'
Sizes are bytes or 4K, 20G, 1.5T (powers of 1024).

Exit codes:
  0 done   1 failed   2 usage   3 not found   4 exists, busy or conflict   5 no space
  6 agent not reachable   7 damage found   8 not supported here   130 interrupted

Examples:
  cowslip volume create db --size 20G --fs ext4
  cowslip snapshot create db@monday
  cowslip ls -l db@latest:/etc
  cowslip restore db@monday:/etc/hosts /tmp/hosts";

/// Copy-on-write volumes whose snapshots can be browsed as files
#[derive(Debug, Parser)]
#[command(name = "cowslip", version, after_help = AFTER_HELP, max_term_width = 100)]
#[command(subcommand_required = true, arg_required_else_help = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of all commands.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Socket of the agent [default: /run/cowslip/agent.sock]
    #[arg(long, global = true, value_name = "PATH", env = "COWSLIP_SOCKET", hide_env_values = true)]
    pub socket: Option<PathBuf>,
    /// Read this pool without an agent; refused while an agent holds it
    #[arg(long, global = true, value_name = "PATH")]
    pub pool: Option<PathBuf>,
    /// Print JSON, one array, object or object a line; errors too
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress and no notes
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Log more to stderr (-v, -vv, -vvv)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// When to use colour
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        value_enum,
        default_value_t,
        hide_possible_values = true
    )]
    #[arg(help = "When to use colour: auto, always or never")]
    pub color: ColorChoice,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make, show, check and dump pools
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Run the agent: serve the pool's volumes and snapshots
    Agent(AgentArgs),
    /// Show the agent, its pool and what needs attention
    Status(StatusArgs),
    /// Create, list, change, attach, import and export volumes
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Create, list, show and delete snapshots
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Make a new volume of a snapshot, at once and without copying
    Clone(CloneArgs),
    /// Set a volume back to one of its snapshots
    Rollback(RollbackArgs),
    /// List files in a snapshot or disk image
    Ls(LsArgs),
    /// Print a file of a snapshot or disk image
    Cat(CatArgs),
    /// Find files in a snapshot or disk image
    Find(FindArgs),
    /// Show the versions of a file over all snapshots
    Versions(VersionsArgs),
    /// Show what differs between two snapshots
    Diff(DiffArgs),
    /// Copy files out of a snapshot or disk image
    Restore(RestoreArgs),
    /// Write the files of a snapshot or disk image as a tar archive
    Export(ExportFilesArgs),
    /// Mount the files of a snapshot or disk image, read only
    Mount(MountArgs),
    /// Unmount what `cowslip mount` mounted
    Umount(UmountArgs),
    /// Compare everything that has a checksum
    Scrub(ScrubArgs),
    /// Show what happened to the pool, its volumes and snapshots
    Events(EventsArgs),
    /// Look for what is missing or wrong on this host
    Doctor(DoctorArgs),
    /// Print a shell's completion script
    Completions(CompletionsArgs),
    /// Print what a word that a shell is to complete may go on with
    #[command(name = "__complete", hide = true)]
    Complete(CompleteArgs),
    /// Write the manual pages
    Man(ManArgs),
}

/// The whole grammar, for help, completions and manual pages.
pub fn grammar() -> clap::Command {
    Cli::command()
}
