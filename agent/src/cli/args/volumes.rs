//! Arguments of the commands about volumes and snapshots.

use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum VolumeCommand {
    /// Create a volume
    #[command(after_help = "\
Examples:
  cowslip volume create scratch --size 20G
  cowslip volume create db --size 1.5T --fs xfs --label team=web
  cowslip volume create db-test --from db@monday")]
    Create(VolumeCreateArgs),
    /// List the volumes
    #[command(after_help = "\
Examples:
  cowslip volume list
  cowslip volume list --json")]
    List,
    /// Show one volume
    #[command(after_help = "\
Examples:
  cowslip volume show db
  cowslip volume show db --json")]
    Show(VolumeName),
    /// Rename a volume; its snapshots follow
    #[command(after_help = "\
Examples:
  cowslip volume rename db-test db")]
    Rename(VolumeRenameArgs),
    /// Grow a volume and its device; a smaller size is refused
    #[command(after_help = "\
The file system in it is grown by its own tool afterwards: resize2fs, xfs_growfs, btrfs filesystem resize.

Examples:
  cowslip volume resize db 40G")]
    Resize(VolumeResizeArgs),
    /// Delete a volume that is not attached; its snapshots stay
    #[command(after_help = "\
Examples:
  cowslip volume delete db-test")]
    Delete(VolumeName),
    /// Attach a volume and print its block device
    #[command(after_help = "\
An attached volume stays so, also over restarts of the agent and the host.

Examples:
  cowslip volume attach db
  mount \"$(cowslip volume attach db)\" /mnt")]
    Attach(VolumeName),
    /// Take a volume's block device away; refused while it is mounted
    #[command(after_help = "\
Examples:
  cowslip volume detach db")]
    Detach(VolumeName),
    /// Make a volume of a raw disk image
    #[command(after_help = "\
FILE may be compressed (.zst) and is read sparsely; '-' is standard input. The BLAKE3 digest of the raw image is \
checked from end to end and printed. An interrupted import leaves no volume behind.

Examples:
  cowslip volume import web ./web.img
  cowslip volume import web ./web.img.zst --size 40G
  ssh old-host cat /dev/sdb | cowslip volume import web -")]
    Import(VolumeImportArgs),
    /// Write a volume or snapshot to a raw disk image
    #[command(after_help = "\
FILE is written sparsely, compressed when it ends in .zst, and appears under its name only when it is complete; '-' \
is standard output. The BLAKE3 digest of the raw image is checked from end to end and printed to stderr. A volume is \
exported as it is now, through a temporary snapshot.

Examples:
  cowslip volume export db@monday ./db.img
  cowslip volume export db ./db.img.zst
  cowslip volume export db@monday - | ssh other-host cowslip volume import db -")]
    Export(VolumeExportArgs),
}

#[derive(Debug, Args)]
pub struct VolumeName {
    /// The volume
    #[arg(value_name = "NAME")]
    pub name: String,
}

#[derive(Debug, Args)]
pub struct VolumeCreateArgs {
    /// Name of the new volume
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Size of the device, a multiple of 4K; with --from at least the snapshot's, and its by default
    #[arg(long, required_unless_present = "from")]
    pub size: Option<String>,
    /// Make this file system: ext4, xfs, btrfs or vfat
    #[arg(long, value_enum, value_name = "FS", hide_possible_values = true, conflicts_with = "from")]
    pub fs: Option<FsChoice>,
    /// Start with the content of this snapshot
    #[arg(long, value_name = "VOL@SNAP")]
    pub from: Option<String>,
    /// Keep KEY=VALUE with the volume; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,
}

/// A file system to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FsChoice {
    Ext4,
    Xfs,
    Btrfs,
    Vfat,
}

impl FsChoice {
    /// The word of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Vfat => "vfat",
        }
    }
}

#[derive(Debug, Args)]
pub struct VolumeRenameArgs {
    /// The volume
    #[arg(value_name = "OLD")]
    pub old: String,
    /// Its new name
    #[arg(value_name = "NEW")]
    pub new: String,
}

#[derive(Debug, Args)]
pub struct VolumeResizeArgs {
    /// The volume
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Its new size, a multiple of 4K
    #[arg(value_name = "SIZE")]
    pub size: String,
}

#[derive(Debug, Args)]
pub struct VolumeImportArgs {
    /// Name of the new volume
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The image: a file, a block device, or '-'
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Size of the volume, at least the image's [default: the image's, rounded up to 4K]
    #[arg(long)]
    pub size: Option<String>,
    /// Refuse an image whose BLAKE3 digest is not this one
    #[arg(long, value_name = "HEX")]
    pub digest: Option<String>,
    /// Do not compute the digest, which covers the holes too: a huge sparse image takes minutes
    #[arg(long, conflicts_with = "digest")]
    pub no_digest: bool,
    /// Keep KEY=VALUE with the volume; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,
}

#[derive(Debug, Args)]
pub struct VolumeExportArgs {
    /// The volume or snapshot
    #[arg(value_name = "VOL[@SNAP]")]
    pub source: String,
    /// The image to write, or '-'
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Overwrite FILE if it exists; needed to write to a block device
    #[arg(long)]
    pub force: bool,
    /// Do not compute the digest, which covers the holes too: a huge sparse image takes minutes
    #[arg(long)]
    pub no_digest: bool,
    /// Do not freeze a mounted file system for the temporary snapshot of a volume
    #[arg(long)]
    pub no_freeze: bool,
}

#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum SnapshotCommand {
    /// Take snapshots, of several volumes at one consistent point
    #[command(after_help = "\
A mounted file system is frozen for the instant of the cut; where that fails or with --no-freeze, the snapshot is \
what a power cut would leave, which file systems recover from.

Examples:
  cowslip snapshot create db@monday
  cowslip snapshot create db@v2 log@v2 --label release=2.0")]
    Create(SnapshotCreateArgs),
    /// List the snapshots, oldest first
    #[command(after_help = "\
Examples:
  cowslip snapshot list
  cowslip snapshot list db --json")]
    List(SnapshotListArgs),
    /// Show one snapshot
    #[command(after_help = "\
Examples:
  cowslip snapshot show db@latest")]
    Show(SnapshotRef),
    /// Delete snapshots; all are looked up before the first is deleted
    #[command(after_help = "\
Examples:
  cowslip snapshot delete db@monday db@tuesday")]
    Delete(SnapshotDeleteArgs),
}

#[derive(Debug, Args)]
pub struct SnapshotCreateArgs {
    /// Volume and name of each new snapshot
    #[arg(value_name = "VOL@NAME", required = true)]
    pub snapshots: Vec<String>,
    /// Do not freeze mounted file systems
    #[arg(long)]
    pub no_freeze: bool,
    /// Keep KEY=VALUE with the snapshots; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,
}

#[derive(Debug, Args)]
pub struct SnapshotListArgs {
    /// Only of this volume
    #[arg(value_name = "VOL")]
    pub volume: Option<String>,
}

#[derive(Debug, Args)]
pub struct SnapshotRef {
    /// The snapshot
    #[arg(value_name = "VOL@NAME")]
    pub snapshot: String,
}

#[derive(Debug, Args)]
pub struct SnapshotDeleteArgs {
    /// The snapshots
    #[arg(value_name = "VOL@NAME", required = true)]
    pub snapshots: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cowslip clone db@monday db-test")]
pub struct CloneArgs {
    /// The snapshot
    #[arg(value_name = "VOL@NAME")]
    pub snapshot: String,
    /// Name of the new volume
    #[arg(value_name = "NEW")]
    pub new: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
What was written since the snapshot is lost; older and newer snapshots stay. Refused while the volume is mounted.

Examples:
  cowslip snapshot create db@before-rollback
  cowslip rollback db@monday")]
pub struct RollbackArgs {
    /// The snapshot
    #[arg(value_name = "VOL@NAME")]
    pub snapshot: String,
}
