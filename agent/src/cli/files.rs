//! Files inside snapshots and images: where a source leads, and the commands that look at them.

mod diff;
mod find;
mod glob;
mod listing;
mod open;
mod versions;

pub use diff::run as diff;
pub use find::find;
pub use listing::ls;
pub use open::{Files, Located};
pub use versions::run as versions;

use super::{
    Context,
    args::CatArgs,
    failure::{Failure, Result},
    names::FileSource,
};
use fuse_view::{FileKind, FsView, Ino, walk};
use std::process::ExitCode;

const READ_BYTES: usize = 1 << 20;

/// What could not be shown while the rest was.
#[derive(Default)]
struct Failures {
    first: u8,
}

impl Failures {
    /// Tells a failure; the command goes on.
    fn tell(&mut self, context: &mut Context, failure: &Failure) -> Result<()> {
        context.out.flush()?;
        failure.report(context.out.json, false);
        if self.first == 0 {
            self.first = failure.exit_code();
        }
        Ok(())
    }

    /// The first failure's, 0 if there was none.
    fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.first)
    }
}

/// `cowslip cat`.
pub fn cat(context: &mut Context, args: &CatArgs) -> Result<()> {
    let sources: Vec<FileSource> =
        args.sources.iter().map(|text| FileSource::parse(text)).collect::<Result<_>>()?;
    let mut files = Files::new();
    for source in &sources {
        match files.locate(context, source)? {
            Located::Inside { view, path, .. } => {
                let ino = walk::lookup_path(&*view, &path, true)
                    .map_err(|e| Failure::from(e).at(&source.container))?;
                copy_out(context, source, &*view, ino)?;
            }
            Located::Table(_) => return Err(not_a_file(source, FileKind::Dir)),
        }
    }
    Ok(())
}

fn not_a_file(source: &FileSource, kind: FileKind) -> Failure {
    let failure =
        Failure::failed(format!("{source} is no regular file but a {}", super::model::kind_word(kind)));
    if kind == FileKind::Dir { failure.hint(format!("list it: cowslip ls {source}")) } else { failure }
}

fn copy_out(context: &mut Context, source: &FileSource, view: &dyn FsView, ino: Ino) -> Result<()> {
    let failed = |e| Failure::from(e).at(source);
    let attr = view.attr(ino).map_err(failed)?;
    if attr.kind != FileKind::File {
        return Err(not_a_file(source, attr.kind));
    }
    let mut buf = vec![0; READ_BYTES];
    let mut offset = 0;
    while offset < attr.size {
        let count = view.read_at(ino, offset, &mut buf).map_err(failed)?;
        if count == 0 {
            return Err(Failure::failed(format!(
                "{source} ends at {offset}, before its size of {}",
                attr.size
            )));
        }
        context.out.bytes(&buf[..count])?;
        offset += count as u64;
    }
    Ok(())
}
