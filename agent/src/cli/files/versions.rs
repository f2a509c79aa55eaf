//! `cowslip versions`: the distinct versions of a path over all snapshots of its volume.

use super::open::comparer;
use crate::changes::Wanted;
use crate::cli::{
    Context,
    args::VersionsArgs,
    backend::Backend,
    failure::{Failure, Kind, Result},
    model::{FileRow, kind_word, text_and_base64},
    names,
    output::escape,
    sizes::human,
    times::{minute, rfc3339},
};
use fuse_view::{
    BlockRead, FileKind,
    history::{Change, Changes, History},
    tree::SnapshotEntry,
    versions::{Event, Told, Version},
};
use serde::Serialize;
use std::{
    collections::HashMap, ffi::OsStr, io, ops::Range, os::unix::ffi::OsStrExt, process::ExitCode, sync::Arc,
};
use store::SnapshotBrief;

const HEADER: &str = "SNAPSHOT             TAKEN             CHANGE    HELD BY      SIZE  MODIFIED";

/// A row in JSON.
#[derive(Serialize)]
struct Row<'a> {
    volume: &'a str,
    snapshot: &'a str,
    created_at: String,
    /// `first`, `created`, `modified` or `deleted`.
    change: &'static str,
    /// The last snapshot with this version, and how many there are from the first to it.
    last_snapshot: &'a str,
    snapshots: usize,
    /// The other path, where the file was renamed.
    renamed_from: Option<String>,
    renamed_to: Option<String>,
    /// null once it was deleted.
    file: Option<FileRow>,
}

/// `cowslip versions`.
pub fn run(context: &mut Context, args: &VersionsArgs) -> Result<ExitCode> {
    let (volume, path) = volume_path(&args.path)?;
    let backend = context.reader()?;
    let history = VolumeHistory::new(&*backend, &volume)?;
    if history.snapshots.is_empty() {
        return Err(Failure::new(Kind::NotFound, format!("volume {volume} has no snapshots"))
            .hint(format!("take one: cowslip snapshot create {volume}@NAME")));
    }
    let mut code = 0;
    let mut headed = context.out.json;
    let found = comparer()?.versions(&volume, &history, &path, |told| -> Result<()> {
        match told {
            Told::Version(version) => {
                if !headed {
                    context.out.line(HEADER)?;
                    headed = true;
                }
                print(context, &volume, &path, &version)
            }
            Told::Unreadable(snapshot, error) => {
                let failure = Failure::from(error).at(format!("{volume}@{}", snapshot.name));
                context.out.flush()?;
                failure.report(context.out.json, false);
                if code == 0 {
                    code = failure.exit_code();
                }
                Ok(())
            }
        }
    })?;
    if found == 0 && code == 0 {
        return Err(Failure::new(Kind::NotFound, format!("no snapshot of {volume} has {}", escape(&path)))
            .hint(format!("look for it: cowslip find {volume}@latest --name …")));
    }
    Ok(ExitCode::from(code))
}

/// `VOL:/path`.
fn volume_path(text: &OsStr) -> Result<(String, Vec<u8>)> {
    let bytes = text.as_bytes();
    let shown = text.display();
    let split = bytes.windows(2).position(|pair| pair == b":/");
    let Some(at) = split else {
        return Err(Failure::usage(format!("'{shown}' names no file of a volume"))
            .hint("write VOL:/path, without a snapshot: all of them are looked at"));
    };
    let volume = std::str::from_utf8(&bytes[..at])
        .map_err(|_| Failure::usage(format!("'{shown}' begins with no volume")).hint("write VOL:/path"))?;
    Ok((names::volume(volume)?, bytes[at + 1..].to_vec()))
}

fn change_word(event: &Event) -> &'static str {
    match event {
        Event::First => "first",
        Event::Created(_) => "created",
        Event::Modified => "modified",
        Event::Deleted(_) => "deleted",
    }
}

fn print(context: &mut Context, volume: &str, path: &[u8], version: &Version) -> Result<()> {
    let taken = rfc3339(version.snapshot.created_at, 0);
    if context.out.json {
        let text = |path: &Vec<u8>| text_and_base64(path).0;
        let (from, to) = match &version.event {
            Event::Created(from) => (from.as_ref().map(text), None),
            Event::Deleted(to) => (None, to.as_ref().map(text)),
            _ => (None, None),
        };
        let file = version.file.as_ref();
        return context.out.json_line(&Row {
            volume,
            snapshot: &version.snapshot.name,
            created_at: taken,
            change: change_word(&version.event),
            last_snapshot: &version.last.name,
            snapshots: version.count,
            renamed_from: from,
            renamed_to: to,
            file: file.map(|(attr, target)| FileRow::new(path, attr, target.as_deref())),
        });
    }
    let (size, modified) = match &version.file {
        Some((attr, _)) => (
            if attr.kind == FileKind::File { human(attr.size) } else { kind_word(attr.kind).to_owned() },
            minute(&rfc3339(attr.mtime.seconds, 0)),
        ),
        None => ("-".to_owned(), String::new()),
    };
    let note = match (&version.event, &version.file) {
        (Event::Created(Some(from)), _) => format!("  was {}", escape(from)),
        (Event::Deleted(Some(to)), _) => format!("now {}", escape(to)),
        (_, Some((_, Some(target)))) => format!("  -> {}", escape(target)),
        _ => String::new(),
    };
    let line = format!(
        "{:<20} {:<16}  {:<8}  {:>7}  {size:>8}  {modified}{note}",
        version.snapshot.name,
        minute(&taken),
        change_word(&version.event),
        version.count,
    );
    context.out.line(line.trim_end())
}

/// The snapshots of a volume, from an agent or a pool.
struct VolumeHistory<'a> {
    backend: &'a dyn Backend,
    volume: &'a str,
    snapshots: HashMap<u64, SnapshotBrief>,
}

impl<'a> VolumeHistory<'a> {
    fn new(backend: &'a dyn Backend, volume: &'a str) -> Result<Self> {
        let snapshots = backend.history(volume)?.into_iter().map(|brief| (brief.id, brief)).collect();
        Ok(Self { backend, volume, snapshots })
    }

    fn lost(&self, failure: Failure) -> fuse_view::Error {
        fuse_view::Error::Io { what: format!("read {}", self.volume), source: io::Error::other(failure) }
    }
}

impl History for VolumeHistory<'_> {
    fn snapshots(&self) -> fuse_view::Result<Vec<SnapshotEntry>> {
        let entry = |of: &SnapshotBrief| SnapshotEntry {
            name: of.name.clone(),
            id: of.id,
            created_at: of.created_at,
        };
        let mut all: Vec<SnapshotEntry> = self.snapshots.values().map(entry).collect();
        all.sort_by_key(|snapshot| snapshot.id);
        Ok(all)
    }

    fn open(&self, snapshot: &SnapshotEntry) -> fuse_view::Result<Arc<dyn BlockRead>> {
        let missing = || fuse_view::Error::NotFound(snapshot.name.clone());
        let brief = self.snapshots.get(&snapshot.id).ok_or_else(missing)?;
        self.backend.open_brief(self.volume, brief).map_err(|failure| self.lost(failure))
    }

    fn changes(&self, from: u64, read: &[Range<u64>], watch: &[Range<u64>]) -> fuse_view::Result<Changes> {
        let wanted = Wanted { read: read.to_vec(), watch: watch.to_vec() };
        let found = self.backend.changes(self.volume, from, &wanted).map_err(|failure| self.lost(failure))?;
        let change = |of: crate::changes::Change| Change {
            id: of.snapshot.id,
            watched: of.watched,
            blocks: of.blocks,
        };
        let changes = found.changes.into_iter().map(change).collect();
        Ok(Changes { changes, through: found.through, end: found.end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_a_volume_names_no_snapshot() {
        let parsed = volume_path(OsStr::new("db:/etc/a:/b")).unwrap();
        assert_eq!(parsed, ("db".to_owned(), b"/etc/a:/b".to_vec()));
        for text in ["db", "db:", "db@x:/a", ":/a", "./x.img:/a", ""] {
            assert_eq!(volume_path(OsStr::new(text)).unwrap_err().exit_code(), 2, "{text}");
        }
    }

    #[test]
    fn rows_stand_under_the_header() {
        for (title, at) in [("TAKEN", 21), ("CHANGE", 39), ("MODIFIED", 68)] {
            assert_eq!(HEADER.find(title), Some(at), "{title}");
        }
    }
}
