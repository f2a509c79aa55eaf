//! `cowslip restore`: copies files out, to a destination or back to where they were.

mod place;

use super::{
    Context,
    args::RestoreArgs,
    failure::{Failure, Kind, Result},
    files::{Files, Located},
    interrupt,
    names::{Container, FileSource},
    progress::{Progress, Unit},
    sizes::human,
};
use fuse_view::{FsView, restore as engine, walk};
use place::Place;
use serde::Serialize;
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Mutex},
};

#[derive(Serialize, Default)]
struct Restored {
    dry_run: bool,
    files: u64,
    dirs: u64,
    bytes: u64,
    /// Files that were there already, with `--resume`.
    kept: u64,
    warnings: Vec<String>,
}

/// Runs the command.
pub fn run(context: &mut Context, args: &RestoreArgs) -> Result<ExitCode> {
    let (sources, dest) = split(&args.arguments)?;
    let mut files = Files::new();
    let mut jobs = Vec::new();
    for source in &sources {
        jobs.push(plan(context, &mut files, source, dest.as_deref())?);
    }
    interrupt::install()?;
    let mut total = Restored { dry_run: args.dry_run, ..Restored::default() };
    let progress = Mutex::new(Progress::new("restore", Unit::Bytes, None, context.out.quiet || args.dry_run));
    for job in &jobs {
        let report = job.run(args, &progress, total.bytes)?;
        total.files += report.files;
        total.dirs += report.dirs;
        total.bytes += report.bytes;
        total.kept += report.kept;
        total.warnings.extend(report.warnings);
    }
    drop(progress);
    tell(context, &total)
}

fn tell(context: &mut Context, total: &Restored) -> Result<ExitCode> {
    if context.out.json {
        context.out.json_line(total)?;
        return Ok(ExitCode::SUCCESS);
    }
    for warning in &total.warnings {
        context.out.warn(warning);
    }
    let verb = if total.dry_run { "would restore" } else { "restored" };
    let plural =
        |count: u64, one: &str, many: &str| format!("{count} {}", if count == 1 { one } else { many });
    let kept = match total.kept {
        0 => String::new(),
        kept => format!("; {} there already", plural(kept, "file was", "files were")),
    };
    let what = format!(
        "{verb} {} and {}, {}{kept}",
        plural(total.files, "file", "files"),
        plural(total.dirs, "directory", "directories"),
        if total.bytes < 1024 { plural(total.bytes, "byte", "bytes") } else { human(total.bytes) }
    );
    if total.dry_run {
        // The answer to the question, so it is data.
        context.out.line(&what)?;
    } else {
        context.out.note(&what);
    }
    Ok(ExitCode::SUCCESS)
}

/// The sources, and the destination if the last argument does not look like a source.
fn split(arguments: &[OsString]) -> Result<(Vec<FileSource>, Option<PathBuf>)> {
    let (sources, dest) = match arguments.split_last() {
        Some((last, sources)) if !FileSource::looks_like(last) => (sources, Some(PathBuf::from(last))),
        _ => (arguments, None),
    };
    if sources.is_empty() {
        let given = dest.as_deref().unwrap_or(Path::new("")).display();
        return Err(Failure::usage(format!("'{given}' names no file to restore"))
            .hint("write VOL@SNAP:/path or IMAGE:/path; all of it is VOL@SNAP:/"));
    }
    let sources: Vec<FileSource> =
        sources.iter().map(|text| FileSource::parse(text)).collect::<Result<_>>()?;
    if let Some(no_path) = sources.iter().find(|source| !source.has_path) {
        return Err(Failure::usage(format!("'{}' names no file to restore", no_path.container))
            .hint(format!("all of it is {}:/", no_path.container)));
    }
    match &dest {
        Some(dest) if sources.len() > 1 && !dest.is_dir() => Err(Failure::usage(format!(
            "{} is not a directory, and there are several files to restore",
            dest.display()
        ))
        .hint("make the directory first")),
        _ => Ok((sources, dest)),
    }
}

/// One source and where it goes.
struct Job {
    source: FileSource,
    view: Arc<dyn FsView>,
    path: Vec<u8>,
    place: Place,
}

fn plan(context: &Context, files: &mut Files, source: &FileSource, dest: Option<&Path>) -> Result<Job> {
    let (view, path, partition) = match files.locate(context, source)? {
        Located::Inside { view, path, partition, .. } => (view, path, partition),
        Located::Table(_) => {
            return Err(Failure::usage(format!("{source} is a partition table, not files"))
                .hint(format!("name a partition: {}:/p1/", source.container)));
        }
    };
    let found = walk::find(&*view, &path, false).map_err(|e| Failure::from(e).at(&source.container))?;
    let place = match (dest, &source.container) {
        (Some(dest), _) => Place::Given(dest.to_owned()),
        (None, Container::Image(_)) => {
            return Err(Failure::usage(format!("where {source} came from is not known"))
                .hint("say where to restore it: cowslip restore SRC:/path DEST"));
        }
        (None, Container::Snapshot(name)) => {
            let mounts =
                files.reader(context)?.mountpoints(&name.volume).map_err(|failure| match failure.kind() {
                    Kind::NotFound => failure.or_hint("the volume is gone: say where to restore to"),
                    _ => failure,
                })?;
            place::in_volume(name, &mounts, partition, &found.path)?
        }
    };
    Ok(Job { source: source.clone(), view, path: found.path, place })
}

impl Job {
    fn run(&self, args: &RestoreArgs, progress: &Mutex<Progress>, before: u64) -> Result<engine::Report> {
        let tell = |done: engine::Progress| {
            if let Ok(mut progress) = progress.lock() {
                progress.set(before + done.bytes);
            }
        };
        let options = engine::Options {
            dry_run: args.dry_run,
            owner: !args.no_owner,
            overwrite: args.overwrite,
            resume: args.resume,
            progress: Some(&tell),
            cancel: Some(interrupt::flag()),
        };
        let sources = [self.path.clone()];
        engine::restore(&*self.view, &sources, &self.place.path(), &options)
            .map_err(|error| self.explain(error))
    }

    fn explain(&self, error: engine::Error) -> Failure {
        let failure = match error {
            engine::Error::Source { source, .. } => Failure::from(source).at(&self.source),
            engine::Error::Destination { what, path, source } => {
                Failure::io(format!("{what} {path}"), &source)
            }
            engine::Error::Exists(_) => {
                Failure::new(Kind::Exists, error.to_string()).hint("--overwrite replaces what exists")
            }
            engine::Error::WrongKind(_) => Failure::failed(error.to_string()),
            engine::Error::Cancelled => Failure::interrupted(),
        };
        self.place.name_in(failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split_words(words: &[&str]) -> Result<(Vec<FileSource>, Option<PathBuf>)> {
        split(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn the_last_argument_is_the_destination_unless_it_is_a_source() {
        let (sources, dest) = split_words(&["db@x:/a", "db@x:/b", "."]).unwrap();
        assert_eq!((sources.len(), dest), (2, Some(PathBuf::from("."))));
        let (sources, dest) = split_words(&["db@x:/a", "db@x:/b"]).unwrap();
        assert_eq!((sources.len(), dest), (2, None));
        let (_, dest) = split_words(&["./x.img:/a", "out"]).unwrap();
        assert_eq!(dest, Some(PathBuf::from("out")));
        for words in [&["db@x"][..], &["/tmp"], &["db@x", "/tmp"], &["db@x:/a", "db@x:/b", "/none/such"]] {
            assert_eq!(split_words(words).err().map(|f| f.exit_code()), Some(2), "{words:?}");
        }
    }
}
