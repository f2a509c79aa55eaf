//! `cowslip find`: names in a tree that meet all conditions, streamed. A file is looked at only where its name alone
//! does not decide.

use super::{Failures, Files, Located, glob::Glob};
use crate::cli::{
    Context,
    args::{FindArgs, TypeChoice},
    failure::{Failure, Result},
    model::FileRow,
    names::FileSource,
    output::escape,
    sizes, times,
};
use fuse_view::{Attr, FileKind, FsView, Ino, find, walk};
use std::{
    os::unix::ffi::OsStrExt,
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

/// What is looked for.
struct Conditions {
    name: Option<Glob>,
    kind: Option<FileKind>,
    /// Modified after this, seconds since the epoch.
    newer: Option<i64>,
    size: Option<SizeTest>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SizeTest {
    Above(u64),
    Below(u64),
    Exactly(u64),
}

impl SizeTest {
    fn parse(text: &str) -> Result<Self> {
        Ok(match text.as_bytes().first() {
            Some(b'+') => Self::Above(sizes::parse(&text[1..])?),
            Some(b'-') => Self::Below(sizes::parse(&text[1..])?),
            _ => Self::Exactly(sizes::parse(text)?),
        })
    }

    fn holds(self, size: u64) -> bool {
        match self {
            Self::Above(than) => size > than,
            Self::Below(than) => size < than,
            Self::Exactly(as_said) => size == as_said,
        }
    }
}

impl Conditions {
    fn parse(args: &FindArgs) -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Ok(Self {
            name: args.name.as_ref().map(|pattern| Glob::new(pattern.as_bytes())),
            kind: args.kind.map(|kind| match kind {
                TypeChoice::File => FileKind::File,
                TypeChoice::Dir => FileKind::Dir,
                TypeChoice::Symlink => FileKind::Symlink,
                TypeChoice::Chardev => FileKind::CharDev,
                TypeChoice::Blockdev => FileKind::BlockDev,
                TypeChoice::Fifo => FileKind::Fifo,
                TypeChoice::Socket => FileKind::Socket,
            }),
            newer: args.newer.as_deref().map(|text| times::parse_moment(text, now)).transpose()?,
            size: args.size.as_deref().map(SizeTest::parse).transpose()?,
        })
    }

    /// Whether the attributes have to be looked at.
    fn need_attr(&self) -> bool {
        self.newer.is_some() || self.size.is_some()
    }

    fn hold(&self, attr: &Attr) -> bool {
        let size = self.size.is_none_or(|size| attr.kind == FileKind::File && size.holds(attr.size));
        size && self.newer.is_none_or(|than| attr.mtime.seconds >= than)
    }
}

/// `cowslip find`. The exit code is that of the first thing that could not be read.
pub fn find(context: &mut Context, args: &FindArgs) -> Result<ExitCode> {
    let source = FileSource::parse(&args.source)?;
    let conditions = Conditions::parse(args)?;
    let mut files = Files::new();
    let mut search = Search { conditions, failures: Failures::default() };
    match files.locate(context, &source)? {
        Located::Inside { view, path, prefix, .. } => {
            search.tree(context, &source, &*view, &path, &prefix)?;
        }
        Located::Table(partitions) => {
            for partition in partitions {
                let path = format!("/{}", partition.directory).into_bytes();
                match files.locate(context, &FileSource { path, ..source.clone() }) {
                    Ok(Located::Inside { view, path, prefix, .. }) => {
                        search.tree(context, &source, &*view, &path, &prefix)?;
                    }
                    Ok(Located::Table(_)) => {}
                    // Swap and boot partitions hold no files; the others are still wanted.
                    Err(failure) => search.failures.tell(context, &failure)?,
                }
            }
        }
    }
    Ok(search.failures.exit_code())
}

struct Search {
    conditions: Conditions,
    failures: Failures,
}

impl Search {
    fn tree(
        &mut self,
        context: &mut Context,
        source: &FileSource,
        view: &dyn FsView,
        path: &[u8],
        prefix: &[u8],
    ) -> Result<()> {
        let found = walk::find(view, path, false).map_err(|e| Failure::from(e).at(&source.container))?;
        let below: &[u8] = if found.path == b"/" && !prefix.is_empty() { b"" } else { &found.path };
        let top = [prefix, below].concat();
        // Where a name decides first, few attributes are looked at.
        let attributes = self.conditions.need_attr() && self.conditions.name.is_none();
        find::walk(view, found.ino, &top, attributes, |item| match item {
            Ok(name) => self.meet(context, source, view, &name),
            Err(error) => {
                let failure = Failure::from(error.source).at(escape(&error.path)).at(&source.container);
                self.failures.tell(context, &failure)
            }
        })
    }

    fn meet(
        &mut self,
        context: &mut Context,
        source: &FileSource,
        view: &dyn FsView,
        found: &find::Found,
    ) -> Result<()> {
        let conditions = &self.conditions;
        if conditions.name.as_ref().is_some_and(|name| !name.matches(found.name()))
            || conditions.kind.is_some_and(|kind| kind != found.kind)
        {
            return Ok(());
        }
        if !conditions.need_attr() && !context.out.json {
            return context.out.line(&escape(found.path));
        }
        match row(view, found.ino) {
            Ok((attr, target)) if conditions.hold(&attr) => match context.out.json {
                true => context.out.json_line(&FileRow::new(found.path, &attr, target.as_deref())),
                false => context.out.line(&escape(found.path)),
            },
            Ok(_) => Ok(()),
            Err(error) => {
                let failure = Failure::from(error).at(escape(found.path)).at(&source.container);
                self.failures.tell(context, &failure)
            }
        }
    }
}

fn row(view: &dyn FsView, ino: Ino) -> fuse_view::Result<(Attr, Option<Vec<u8>>)> {
    let attr = view.attr(ino)?;
    let target = if attr.kind == FileKind::Symlink { Some(view.readlink(ino)?) } else { None };
    Ok((attr, target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_direction() {
        assert_eq!(SizeTest::parse("+4K").unwrap(), SizeTest::Above(4096));
        assert_eq!(SizeTest::parse("-1M").unwrap(), SizeTest::Below(1 << 20));
        assert_eq!(SizeTest::parse("0").unwrap(), SizeTest::Exactly(0));
        for text in ["", "+", "-x", "4 parsecs"] {
            assert_eq!(SizeTest::parse(text).unwrap_err().exit_code(), 2, "{text}");
        }
        assert!(SizeTest::Above(1).holds(2) && !SizeTest::Above(2).holds(2));
        assert!(SizeTest::Below(2).holds(1) && !SizeTest::Below(2).holds(2));
    }
}
