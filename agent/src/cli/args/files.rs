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
All conditions must hold. With --json each file is an object on a line of its own. On an IMAGE neither an agent nor \
root is needed.

Examples:
  cowslip find db@latest:/etc --name '*.conf'
  cowslip find db@monday --newer 2h --size +1M
  cowslip find ./disk.img:/p1/home --type dir --name .ssh")]
pub struct FindArgs {
    /// Where to look: VOL@SNAP[:/path] or IMAGE[:/path]
    #[arg(value_name = "SRC")]
    pub source: OsString,
    /// Names that match: '*', '?', '[a-z]'
    #[arg(long, value_name = "GLOB")]
    pub name: Option<OsString>,
    /// Modified since: an age (90m, 2h, 3d) or a moment (2026-01-31, 2026-01-31T12:00:00Z)
    #[arg(long, value_name = "WHEN")]
    pub newer: Option<String>,
    /// Files larger (+1M), smaller (-4K) or exactly as large (4096)
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub size: Option<String>,
    /// Only of this type
    #[arg(long = "type", value_name = "TYPE", value_enum)]
    pub kind: Option<TypeChoice>,
}

/// Types of files, as JSON has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum TypeChoice {
    File,
    Dir,
    Symlink,
    Chardev,
    Blockdev,
    Fifo,
    Socket,
}

#[derive(Debug, Args)]
#[command(after_help = "\
One line for each version, oldest first: the first snapshot that has it, what happened (first: it is in the oldest \
snapshot; created, modified, deleted), and how many snapshots in a row hold it. A file that was renamed tells its \
other path. A version ends where the content, type, mode, owner, modification time, target or extended attributes \
change. Only what changed is read, however many snapshots there are.

Examples:
  cowslip versions db:/etc/hosts
  cowslip --json versions db:/srv/report.odt | jq -r .snapshot")]
pub struct VersionsArgs {
    /// A path in a volume: VOL:/path
    #[arg(value_name = "VOL:/path")]
    pub path: OsString,
}

#[derive(Debug, Args)]
#[command(after_help = "\
One line for each difference: A added, D deleted, M modified, R renamed (old path -> new path). A file is modified \
where content, type, mode, owner, modification time, target or extended attributes differ; a directory where its mode, \
owner or extended attributes do. Between snapshots of one volume only what they do not share is read. Two images can \
be compared, too.

Examples:
  cowslip diff db@monday db@tuesday
  cowslip diff db@monday db@latest:/etc
  cowslip diff ./old.img ./new.img:/p1/etc")]
pub struct DiffArgs {
    /// The older snapshot: VOL@A (or IMAGE)
    #[arg(value_name = "OLD")]
    pub old: OsString,
    /// The newer snapshot, and the path to compare: VOL@B[:/path] (or IMAGE[:/path])
    #[arg(value_name = "NEW[:/path]")]
    pub new: OsString,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The last argument is DEST unless it has the form of a source. Without DEST, files of a snapshot go back to where they \
were, in the volume as it is mounted now. DEST is a directory to restore into, or the new name of a single file or \
directory. Each file appears complete or not at all; owner, mode, times, extended attributes, holes and hard links \
are kept. Existing files are not replaced without --overwrite. An interrupted restore goes on with --resume.

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
    /// Go on with an interrupted restore: leave files of the same size and time alone
    #[arg(long)]
    pub resume: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
A tar archive in the pax format with owners, modes, times to the nanosecond, hard links, device nodes and extended \
attributes (ACLs and capabilities too), for backup tools. Paths in it are relative to the directory. Holes are written \
as zeros, sockets are left out.

Examples:
  cowslip export db@monday:/etc --tar etc.tar
  cowslip export db@latest:/ --tar - | zstd > db.tar.zst
  cowslip export ./disk.img:/p1/home --tar home.tar")]
pub struct ExportFilesArgs {
    /// A directory or file: VOL@SNAP:/path or IMAGE:/path
    #[arg(value_name = "SRC")]
    pub source: OsString,
    /// Where the archive goes; `-` is standard output
    #[arg(long, value_name = "FILE")]
    pub tar: PathBuf,
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

#[derive(Debug, Args)]
pub struct CompleteArgs {
    /// The word so far
    #[arg(value_name = "WORD", default_value = "")]
    pub word: OsString,
}
