//! `cowslip ls`: streams one file a line, as text or as JSON. What cannot be read is told on stderr, and the
//! listing goes on.

use super::{Failures, Files, Located};
use crate::cli::{
    Context,
    args::LsArgs,
    failure::{Failure, Result},
    model::{FileRow, kind_letter},
    names::FileSource,
    output::escape,
    times::{minute, rfc3339},
};
use fuse_view::{
    Attr, Error, FileKind, FsView, Timestamp,
    container::Partition,
    listing::{Entry, Listing},
    walk,
};
use std::process::ExitCode;

/// Names of one directory that are sorted for people; a larger one is listed in its own order.
const MAX_SORTED: usize = 100_000;
const HEADER: &str = "MODE       LINKS   UID   GID         SIZE MODIFIED         NAME";

/// `cowslip ls`. The exit code is that of the first file that could not be listed.
pub fn ls(context: &mut Context, args: &LsArgs) -> Result<ExitCode> {
    let sources: Vec<FileSource> =
        args.sources.iter().map(|text| FileSource::parse(text)).collect::<Result<_>>()?;
    let mut files = Files::new();
    let mut printer = Printer { args, failures: Failures::default() };
    if args.long && !context.out.json {
        context.out.line(HEADER)?;
    }
    for source in &sources {
        match files.locate(context, source)? {
            Located::Inside { view, path, prefix, .. } => {
                printer.tree(context, source, &*view, &path, &prefix)?;
            }
            Located::Table(partitions) => {
                printer.table(context, &partitions)?;
                if args.recursive {
                    printer.below_table(context, &mut files, source, &partitions)?;
                }
            }
        }
    }
    Ok(printer.failures.exit_code())
}

struct Printer<'a> {
    args: &'a LsArgs,
    failures: Failures,
}

impl Printer<'_> {
    fn tree(
        &mut self,
        context: &mut Context,
        source: &FileSource,
        view: &dyn FsView,
        path: &[u8],
        prefix: &[u8],
    ) -> Result<()> {
        // As ls(1) does: `-l` shows a symbolic link itself, without it what it leads to.
        let found = match walk::find(view, path, !self.args.long) {
            Err(Error::NotFound(_)) if !self.args.long => walk::find(view, path, false),
            other => other,
        };
        let found = found.map_err(|e| Failure::from(e).at(&source.container))?;
        let mut shown = prefix.to_vec();
        if prefix.is_empty() || found.path != b"/" {
            shown.extend_from_slice(&found.path);
        }
        let mut listing = Listing::new(view, found.ino, &shown, self.args.recursive);
        let sorted = !context.out.json && !self.args.recursive;
        let mut batch = Vec::new();
        for item in &mut listing {
            match item {
                // A directory is what it holds.
                Ok(entry) if entry.depth == 0 && entry.attr.kind == FileKind::Dir => {}
                Ok(entry) if sorted && batch.len() < MAX_SORTED => batch.push(entry),
                Ok(entry) => {
                    self.sorted(context, &mut batch)?;
                    self.entry(context, &entry)?;
                }
                Err(error) => {
                    let failure = Failure::from(error.source).at(escape(&error.path)).at(&source.container);
                    self.failures.tell(context, &failure)?;
                }
            }
        }
        self.sorted(context, &mut batch)
    }

    fn sorted(&self, context: &mut Context, batch: &mut Vec<Entry>) -> Result<()> {
        batch.sort_by(|a, b| a.path.cmp(&b.path));
        batch.drain(..).try_for_each(|entry| self.entry(context, &entry))
    }

    fn entry(&self, context: &mut Context, entry: &Entry) -> Result<()> {
        if context.out.json {
            return context.out.json_line(&FileRow::new(&entry.path, &entry.attr, entry.target.as_deref()));
        }
        // A tree needs whole paths; so does a file that was asked for by its own.
        let whole = self.args.recursive || entry.depth == 0;
        let name = if whole { &entry.path } else { base_name(&entry.path) };
        if !self.args.long {
            return context.out.line(&escape(name));
        }
        let line = long_line(&entry.attr, name, entry.target.as_deref());
        context.out.line(&line)
    }

    fn table(&self, context: &mut Context, partitions: &[Partition]) -> Result<()> {
        for partition in partitions {
            let path = format!("/{}", partition.directory).into_bytes();
            let entry = Entry { path, attr: partition_attr(partition), target: None, depth: 1 };
            self.entry(context, &entry)?;
        }
        Ok(())
    }

    fn below_table(
        &mut self,
        context: &mut Context,
        files: &mut Files,
        source: &FileSource,
        partitions: &[Partition],
    ) -> Result<()> {
        for partition in partitions {
            let path = format!("/{}", partition.directory).into_bytes();
            let below = FileSource { path, ..source.clone() };
            match files.locate(context, &below) {
                Ok(Located::Inside { view, path, prefix, .. }) => {
                    self.tree(context, source, &*view, &path, &prefix)?;
                }
                Ok(Located::Table(_)) => {}
                // Swap and boot partitions hold no files; the others are still wanted.
                Err(failure) => self.failures.tell(context, &failure)?,
            }
        }
        Ok(())
    }
}

/// A partition looks like a directory as large as it.
fn partition_attr(partition: &Partition) -> Attr {
    Attr {
        ino: u64::from(partition.number),
        kind: FileKind::Dir,
        mode: 0o555,
        uid: 0,
        gid: 0,
        size: partition.len,
        blocks_512: partition.len / 512,
        nlink: 2,
        rdev: (0, 0),
        atime: Timestamp::default(),
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
        btime: None,
    }
}

fn base_name(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or(path)
}

/// One line of `ls -l`; device nodes have their numbers in place of a size.
fn long_line(attr: &Attr, name: &[u8], target: Option<&[u8]>) -> String {
    let size = match attr.kind {
        FileKind::CharDev | FileKind::BlockDev => format!("{}, {}", attr.rdev.0, attr.rdev.1),
        _ => attr.size.to_string(),
    };
    let modified = minute(&rfc3339(attr.mtime.seconds, 0));
    let arrow = target.map(|target| format!(" -> {}", escape(target))).unwrap_or_default();
    format!(
        "{} {:>5} {:>5} {:>5} {size:>12} {modified:16} {}{arrow}",
        mode_text(attr),
        attr.nlink,
        attr.uid,
        attr.gid,
        escape(name)
    )
}

/// `drwxr-sr-t`.
fn mode_text(attr: &Attr) -> String {
    let mut text = String::from(kind_letter(attr.kind));
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = attr.mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (attr.mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attr(kind: FileKind, mode: u16) -> Attr {
        let partition = Partition::new(1, 0, 4096, String::new());
        Attr { kind, mode, ..partition_attr(&partition) }
    }

    #[test]
    fn modes() {
        for (kind, mode, text) in [
            (FileKind::File, 0o644, "-rw-r--r--"),
            (FileKind::Dir, 0o1777, "drwxrwxrwt"),
            (FileKind::File, 0o6755, "-rwsr-sr-x"),
            (FileKind::File, 0o7000, "---S--S--T"),
            (FileKind::Fifo, 0, "p---------"),
        ] {
            assert_eq!(mode_text(&attr(kind, mode)), text);
        }
    }

    #[test]
    fn long_lines_stand_under_the_header() {
        let line = long_line(&attr(FileKind::Symlink, 0o777), b"a\n", Some(b"b"));
        assert_eq!(line, "lrwxrwxrwx     2     0     0         4096 1970-01-01 00:00 a\\n -> b");
        assert_eq!(line.find("4096").map(|at| at + 4), HEADER.find("SIZE").map(|at| at + 4));
        assert_eq!(line.find("1970"), HEADER.find("MODIFIED"));
        let device = Attr { rdev: (8, 1), ..attr(FileKind::BlockDev, 0o660) };
        assert!(long_line(&device, b"sda1", None).contains(" 8, 1 "));
    }
}
