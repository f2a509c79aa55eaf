//! `cowslip diff`: what differs between two snapshots.

use super::{Files, open::comparer};
use crate::cli::{
    Context,
    args::DiffArgs,
    failure::{Failure, Result},
    interrupt,
    model::FileRow,
    names::{Container, FileSource},
    output::escape,
};
use fuse_view::{
    diff::{Difference, Found, Kind, Ranges},
    worker::Sides,
};
use serde::Serialize;
use std::process::ExitCode;

/// A row in JSON: the file, and what happened to it.
#[derive(Serialize)]
struct Row {
    /// `A`, `D`, `M` or `R`.
    change: &'static str,
    /// The old path of what was renamed.
    from: Option<String>,
    from_base64: Option<String>,
    /// Whether what was renamed was modified, too.
    modified: bool,
    #[serde(flatten)]
    file: FileRow,
}

fn letter(kind: Kind) -> &'static str {
    match kind {
        Kind::Added => "A",
        Kind::Deleted => "D",
        Kind::Modified => "M",
        Kind::Renamed => "R",
    }
}

/// `cowslip diff`. The exit code is that of the first thing that could not be read; differences are none.
pub fn run(context: &mut Context, args: &DiffArgs) -> Result<ExitCode> {
    let old = FileSource::parse(&args.old)?;
    let new = FileSource::parse(&args.new)?;
    if old.has_path && old.path != new.path {
        return Err(Failure::usage(format!("{old} and {new} are different paths"))
            .hint("the same path is compared in both: cowslip diff VOL@A VOL@B:/path"));
    }
    let mut files = Files::new();
    let [a, b] = [&old, &new].map(|side| files.source(context, &side.container));
    let changed = match (&old.container, &new.container) {
        (Container::Snapshot(a), Container::Snapshot(b)) if a.volume == b.volume => {
            Ranges::new(files.reader(context)?.differences(a, b)?)
        }
        // Of different disks nothing is known to be shared.
        _ => Ranges::everything(),
    };
    let place = format!("{} {}", old.container, new.container);
    let sides = Sides { old: a?, new: b?, changed: &changed };
    let mut code = 0;
    let compared = comparer()?.diff("both", sides, &new.path, interrupt::flag(), |found| -> Result<()> {
        match found {
            Found::Difference(difference) => print(context, &difference),
            Found::Unreadable(error) => {
                let failure = Failure::from(error.source).at(escape(&error.path)).at(&place);
                context.out.flush()?;
                failure.report(context.out.json, false);
                code = if code == 0 { failure.exit_code() } else { code };
                Ok(())
            }
        }
    });
    compared.map_err(|failure| failure.at(&place))?;
    Ok(ExitCode::from(code))
}

fn print(context: &mut Context, difference: &Difference) -> Result<()> {
    let Difference { kind, path, from, modified, attr, target } = difference;
    if context.out.json {
        let from = from.as_deref().map(crate::cli::model::text_and_base64);
        let (from, from_base64) = from.map_or((None, None), |(text, bytes)| (Some(text), bytes));
        let file = FileRow::new(path, attr, target.as_deref());
        return context.out.json_line(&Row {
            change: letter(*kind),
            from,
            from_base64,
            modified: *modified,
            file,
        });
    }
    let arrow = from.as_ref().map(|from| format!("{} -> ", escape(from))).unwrap_or_default();
    context.out.line(&format!("{} {arrow}{}", letter(*kind), escape(path)))
}
