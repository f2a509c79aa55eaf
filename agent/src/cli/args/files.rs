//! Arguments of the commands about files inside snapshots and images.

use clap::Args;
use std::{ffi::OsString, path::PathBuf};

#[derive(Debug, Args)]
#[command(after_help = "\
With --json each file is an object on a line of its own. On an IMAGE neither an agent nor root is needed; a partition \
is the first part of the path: /p1/etc.

Examples:
  cowslip ls db@latest:/
  cowslip ls -lR db@monday:/etc
  cowslip ls ./disk.img:/p1/home")]
pub struct LsArgs {
    /// What to list: VOL@SNAP:/path or IMAGE:/path
    #[arg(value_name = "SRC", required = true)]
    pub sources: Vec<OsString>,
    /// Type, mode, owner, size and time too
    #[arg(short = 'l', long = "long")]
    pub long: bool,
    /// Whole trees
    #[arg(short = 'R', long = "recursive")]
    pub recursive: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cowslip cat db@latest:/etc/hosts
  cowslip cat ./disk.img:/var/log/syslog | less")]
pub struct CatArgs {
    /// Files to print: VOL@SNAP:/path or IMAGE:/path
    #[arg(value_name = "SRC", required = true)]
    pub sources: Vec<OsString>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The last argument is DEST unless it has the form of a source. Without DEST, files of a snapshot go back to where they \
were, in the volume as it is mounted now. DEST is a directory to restore into, or the new name of a single file or \
directory. Each file appears complete or not at all; owner, mode, times, extended attributes, holes and hard links \
are kept. Existing files are not replaced without --overwrite.

Examples:
  cowslip restore db@monday:/etc/hosts
  cowslip restore db@monday:/srv/www /tmp/www
  cowslip restore ./disk.img:/p1/home/ann . --no-owner
  cowslip restore db@latest:/etc /tmp --dry-run")]
#[command(override_usage = "cowslip restore [OPTIONS] <SRC>... [DEST]")]
pub struct RestoreArgs {
    /// Files and directories to restore (VOL@SNAP:/path or IMAGE:/path), then where to
    #[arg(value_name = "SRC", required = true)]
    pub arguments: Vec<OsString>,
    /// Only tell what would be restored
    #[arg(long)]
    pub dry_run: bool,
    /// Do not restore owners and groups
    #[arg(long)]
    pub no_owner: bool,
    /// Replace files that exist
    #[arg(long)]
    pub overwrite: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Returns when the files can be seen, and serves them from the background until `cowslip umount`.

Examples:
  cowslip mount ./disk.img /mnt
  cowslip mount db@monday /mnt --foreground")]
pub struct MountArgs {
    /// VOL@SNAP or IMAGE
    #[arg(value_name = "SRC")]
    pub source: OsString,
    /// An existing directory
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Stay in the foreground; Ctrl-C unmounts
    #[arg(long)]
    pub foreground: bool,
    /// Tells on standard output that the mount is up
    #[arg(long, hide = true)]
    pub announce: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cowslip umount /mnt")]
pub struct UmountArgs {
    /// Where it is mounted
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}
