//! `cowslip volume export`: a file appears under its name when it is complete, and not at all before.

mod target;

use super::{
    Context,
    args::VolumeExportArgs,
    backend::{ExportOptions, ImageSink},
    failure::{Failure, Kind, Result},
    image::{Digest, ImageHasher, is_stdio},
    interrupt,
    names::DiskName,
    progress::{Progress, Unit},
};
use serde::Serialize;
use std::io::IsTerminal;
use target::Target;

#[derive(Serialize)]
struct Exported {
    file: String,
    total_bytes: u64,
    blake3: Option<String>,
}

/// Runs the command.
pub fn run(context: &mut Context, args: &VolumeExportArgs) -> Result<()> {
    let disk = DiskName::parse(&args.source)?;
    if is_stdio(&args.file) && std::io::stdout().is_terminal() {
        return Err(Failure::usage("standard output is a terminal").hint("name a file, or pipe the image on"));
    }
    let reader = context.reader()?;
    interrupt::install()?;
    let quiet = context.out.quiet;
    let mut sink = Sink {
        disk: disk.to_string(),
        target: Some(Target::create(&args.file, args.force)?),
        hasher: Some(ImageHasher::new(!args.no_digest)),
        progress: Progress::new("export", Unit::Bytes, None, quiet),
        warnings: Vec::new(),
        total_bytes: 0,
        digest: None,
    };
    let options = ExportOptions { freeze: !args.no_freeze, digest: !args.no_digest };
    reader.export(&disk, options, &mut sink)?;
    let (total_bytes, digest, warnings) = (sink.total_bytes, sink.digest, std::mem::take(&mut sink.warnings));
    drop(sink);
    for warning in &warnings {
        context.out.warn(warning);
    }
    report(context, args, total_bytes, digest)
}

/// Standard output may be the image, so the digest goes to stderr; JSON goes there only if it is.
fn report(
    context: &mut Context,
    args: &VolumeExportArgs,
    total_bytes: u64,
    digest: Option<Digest>,
) -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let file = super::output::escape(args.file.as_os_str().as_bytes());
    let blake3 = digest.map(|digest| digest.to_string());
    if context.out.json {
        let exported = Exported { file, total_bytes, blake3 };
        if is_stdio(&args.file) {
            eprintln!("{}", super::model::json(&exported)?);
            return Ok(());
        }
        return context.out.json_line(&exported);
    }
    if let Some(blake3) = blake3.filter(|_| !context.out.quiet) {
        eprintln!("{blake3}  {file}");
    }
    Ok(())
}

struct Sink {
    disk: String,
    /// None once it is complete.
    target: Option<Target>,
    hasher: Option<ImageHasher>,
    progress: Progress,
    warnings: Vec<String>,
    total_bytes: u64,
    digest: Option<Digest>,
}

impl ImageSink for Sink {
    fn begin(&mut self, size_bytes: u64, warnings: &[String]) -> Result<()> {
        self.total_bytes = size_bytes;
        self.warnings = warnings.to_vec();
        self.progress.set_total(size_bytes);
        self.target.as_mut().map_or(Ok(()), |target| target.begin(size_bytes))
    }

    fn chunk(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        interrupt::check()?;
        let end = offset.checked_add(data.len() as u64).filter(|end| *end <= self.total_bytes);
        let Some(end) = end else {
            return Err(Failure::failed(format!("data past the end of {}", self.disk)));
        };
        if let Some(hasher) = &mut self.hasher {
            hasher.update(offset, data);
        }
        if let Some(target) = &mut self.target {
            target.chunk(offset, data)?;
        }
        self.progress.set(end);
        Ok(())
    }

    fn end(&mut self, blake3: Option<[u8; 32]>) -> Result<()> {
        self.digest = self.hasher.take().and_then(|hasher| hasher.finish(self.total_bytes));
        if let (Some(ours), Some(theirs)) = (self.digest, blake3.map(Digest))
            && ours != theirs
        {
            return Err(Failure::new(
                Kind::Damaged,
                format!("{} arrived with digest {ours}, and was sent with {theirs}", self.disk),
            )
            .hint("export again; if it happens again, check the host's memory"));
        }
        interrupt::check()?;
        match self.target.take() {
            Some(target) => target.finish(),
            None => Ok(()),
        }
    }
}
