//! `cowslip mount` and `umount`: the files of a snapshot or image as a FUSE mount, served by a process of its
//! own until it is unmounted.

mod table;

use super::{
    Context,
    args::{MountArgs, UmountArgs},
    failure::{Failure, Kind, Result},
    files::{Files, Located},
    interrupt,
    names::FileSource,
    sys,
};
use fuse_view::{
    FsView,
    fuse::{self, Mounted},
};
use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

/// What the serving process prints once the files can be seen.
const UP: &str = "mounted";
/// How often the serving process looks whether it is to end.
const WATCH_INTERVAL: Duration = Duration::from_millis(200);

/// Directory and type of every mount of this process; none where the table cannot be read.
pub fn mounts() -> Vec<(PathBuf, String)> {
    let table = table::read().unwrap_or_default();
    table.into_iter().map(|mount| (mount.dir, mount.fs_type)).collect()
}

/// `cowslip mount`.
pub fn mount(context: &mut Context, args: &MountArgs) -> Result<()> {
    let source = FileSource::parse(&args.source)?;
    if !args.foreground {
        return in_background(context, args);
    }
    if args.announce {
        sys::new_session().map_err(|e| Failure::io("leave the terminal", &e))?;
    }
    let view = open(context, &source)?;
    interrupt::install()?;
    let mounted = fuse::mount_view(view, &args.dir, &fuse::Options::default()).map_err(|e| explain(&e))?;
    if args.announce {
        context.out.line(UP)?;
        context.out.flush()?;
        sys::silence().map_err(|e| Failure::io("leave the terminal", &e))?;
    } else {
        context.out.note(&format!(
            "mounted {} at {}; Ctrl-C unmounts",
            args.source.display(),
            args.dir.display()
        ));
    }
    serve(mounted)
}

fn open(context: &Context, source: &FileSource) -> Result<Arc<dyn FsView>> {
    match Files::new().locate(context, source)? {
        Located::Inside { view, path, .. } if path == b"/" => Ok(view),
        Located::Inside { .. } => Err(Failure::usage(format!("{source} is inside of a file system"))
            .hint("a whole file system is mounted: leave the path out")),
        Located::Table(partitions) => {
            let names: Vec<&str> = partitions.iter().map(|p| &p.directory[..]).collect();
            Err(Failure::usage(format!("{} has partitions", source.container)).hint(format!(
                "it has {}: mount {}:/{}",
                names.join(", "),
                source.container,
                names.first().copied().unwrap_or("p1")
            )))
        }
    }
}

/// Serves until somebody unmounts or a signal comes.
fn serve(mounted: Mounted) -> Result<()> {
    while mounted.is_alive() {
        if interrupt::check().is_err() {
            return mounted.unmount().map_err(|e| Failure::io("unmount", &e));
        }
        std::thread::sleep(WATCH_INTERVAL);
    }
    Ok(())
}

fn explain(error: &fuse::Error) -> Failure {
    match error {
        fuse::Error::MountPoint { path, .. } if !path.exists() => {
            Failure::new(Kind::NotFound, error.to_string())
                .hint(format!("make it first: mkdir {}", path.display()))
        }
        fuse::Error::MountPoint { .. } => Failure::failed(error.to_string()).hint("give an empty directory"),
        fuse::Error::System { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            Failure::new(Kind::Unsupported, error.to_string()).hint(
                "FUSE is missing: `modprobe fuse`, and without root the package fuse3; see `cowslip doctor`",
            )
        }
        fuse::Error::System { .. } => Failure::failed(error.to_string()).hint("see `cowslip doctor`"),
    }
}

/// Starts this program again to serve, and returns when the files can be seen.
fn in_background(context: &mut Context, args: &MountArgs) -> Result<()> {
    let mut command = Command::new("/proc/self/exe");
    if let Some(socket) = &context.global.socket {
        command.arg("--socket").arg(socket);
    }
    if let Some(pool) = &context.global.pool {
        command.arg("--pool").arg(pool);
    }
    if context.out.json {
        command.arg("--json");
    }
    command.args(["mount", "--foreground", "--announce", "--"]).arg(&args.source).arg(&args.dir);
    let failed = |e| Failure::io("start the serving process", &e);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    let mut first = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut first).map_err(failed)?;
    }
    if first.trim_end() == UP {
        context.out.note(&format!("mounted {} at {}", args.source.display(), args.dir.display()));
        return Ok(());
    }
    let mut told = Vec::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_end(&mut told).map_err(failed)?;
    }
    let status = child.wait().map_err(failed)?;
    Err(Failure::from_report(&told, status.code()))
}

/// `cowslip umount`.
pub fn umount(context: &mut Context, args: &UmountArgs) -> Result<()> {
    let dir = table::absolute(&args.dir)?;
    let shown = args.dir.display();
    match table::type_at(&dir)?.as_deref() {
        Some("fuse.cowslip") => {}
        Some(other) => {
            return Err(Failure::failed(format!("{shown} has a mount of type {other}, not one of cowslip"))
                .hint("umount(8) unmounts others"));
        }
        None => return Err(Failure::new(Kind::NotFound, format!("nothing is mounted at {shown}"))),
    }
    match sys::umount(&dir) {
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => by_helper(&dir),
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => Err(busy(&dir)),
        other => other.map_err(|e| Failure::io(format!("unmount {shown}"), &e)),
    }?;
    context.out.note(&format!("unmounted {shown}"));
    Ok(())
}

fn busy(dir: &Path) -> Failure {
    Failure::new(Kind::Busy, format!("{} is in use", dir.display()))
        .hint(format!("who uses it: fuser -vm {}", dir.display()))
}

/// Users but root unmount through fusermount3, which checks that the mount is theirs.
fn by_helper(dir: &Path) -> Result<()> {
    let output = Command::new("fusermount3").args(["-u", "--"]).arg(dir).output();
    let output = output.map_err(|e| Failure::io("run fusermount3", &e).hint("install the package fuse3"))?;
    if output.status.success() {
        return Ok(());
    }
    let told = String::from_utf8_lossy(&output.stderr);
    if told.contains("busy") { Err(busy(dir)) } else { Err(Failure::failed(told.trim().to_owned())) }
}
