//! `cowslip export --tar`: the files below a path as an archive in the pax format.
//!
//! What does not fit a plain header (long paths, nanoseconds, large numbers, extended attributes) goes into records of
//! an extended header before it, which every tar of this century reads.

use super::{
    Context,
    args::ExportFilesArgs,
    failure::{Failure, Result},
    files::{Files, Located},
    interrupt,
    names::FileSource,
    output::escape,
    progress::{Progress, Unit},
};
use fuse_view::{Attr, FileKind, FsView, Ino, listing::Listing, walk};
use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
};
use tar::{EntryType, Header};

const PIECE_BYTES: usize = 1 << 20;
/// Bytes of a block of the archive.
const BLOCK: u64 = 512;
/// Largest size that the octal digits of a header hold.
const MAX_OCTAL_SIZE: u64 = (1 << 33) - 1;
/// Largest owner that they hold.
const MAX_OCTAL_ID: u32 = (1 << 21) - 1;
/// Bytes that a header has for a path, and for the target of a link.
const HEADER_NAME: usize = 100;

/// Runs the command. The exit code is that of the first file that could not be read.
pub fn run(context: &mut Context, args: &ExportFilesArgs) -> Result<ExitCode> {
    let source = FileSource::parse(&args.source)?;
    let mut files = Files::new();
    let (view, path) = match files.locate(context, &source)? {
        Located::Inside { view, path, .. } => (view, path),
        Located::Table(_) => {
            return Err(Failure::usage(format!("{source} is a partition table, not files"))
                .hint(format!("name a partition: {}:/p1/", source.container)));
        }
    };
    let found = walk::find(&*view, &path, false).map_err(|e| Failure::from(e).at(&source.container))?;
    interrupt::install()?;
    let to_stdout = super::image::is_stdio(&args.tar);
    let target: Box<dyn Write> = if to_stdout {
        Box::new(io::stdout().lock())
    } else {
        let new = File::options().write(true).create_new(true).open(&args.tar);
        Box::new(new.map_err(|e| Failure::io(format!("make {}", args.tar.display()), &e))?)
    };
    let mut archive = Archive {
        out: BufWriter::with_capacity(1 << 18, target),
        target: args.tar.clone(),
        view: &*view,
        links: HashMap::new(),
        progress: Progress::new("export", Unit::Bytes, None, context.out.quiet || to_stdout),
        written: 0,
    };
    let written = archive.all(context, &source, found.ino, &found.path);
    drop(archive);
    if written.is_err() && !to_stdout {
        // Half an archive is none.
        let _ = std::fs::remove_file(&args.tar);
    }
    written.map(ExitCode::from)
}

struct Archive<'a> {
    out: BufWriter<Box<dyn Write>>,
    target: PathBuf,
    view: &'a dyn FsView,
    /// Where inodes with several links were written first.
    links: HashMap<Ino, Vec<u8>>,
    progress: Progress,
    written: u64,
}

impl Archive<'_> {
    fn all(&mut self, context: &mut Context, source: &FileSource, top: Ino, path: &[u8]) -> Result<u8> {
        let mut code = 0;
        // Names in the archive begin with that of what was asked for; those of a whole file system with a dot.
        let base = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        let base = if base.is_empty() { b"." } else { base };
        let view = self.view;
        for item in Listing::new(view, top, base, true) {
            interrupt::check()?;
            let told = match item {
                Ok(entry) => match self.entry(&entry.path, &entry.attr, entry.target.as_deref()) {
                    Ok(Some(warning)) => {
                        context.out.warn(&format!("{}: {warning}", escape(&entry.path)));
                        continue;
                    }
                    Ok(None) => continue,
                    Err(Unwritten::Target(error)) => return Err(self.failed(&error)),
                    Err(Unwritten::Interrupted) => return Err(Failure::interrupted()),
                    Err(Unwritten::Source(error)) => Failure::from(error).at(escape(&entry.path)),
                },
                Err(error) => Failure::from(error.source).at(escape(&error.path)),
            };
            told.clone().at(&source.container).report(context.out.json, false);
            code = if code == 0 { told.exit_code() } else { code };
        }
        // Two empty blocks end an archive.
        let end = [0; 2 * 512];
        self.out.write_all(&end).and_then(|()| self.out.flush()).map_err(|e| self.failed(&e))?;
        Ok(code)
    }

    fn failed(&self, error: &io::Error) -> Failure {
        if super::image::is_stdio(&self.target) {
            return Failure::output(error);
        }
        Failure::io(format!("write {}", self.target.display()), error)
    }

    /// Writes one file. A warning: it was left out.
    fn entry(
        &mut self,
        path: &[u8],
        attr: &Attr,
        target: Option<&[u8]>,
    ) -> std::result::Result<Option<&'static str>, Unwritten> {
        let kind = match attr.kind {
            FileKind::File => EntryType::Regular,
            FileKind::Dir => EntryType::Directory,
            FileKind::Symlink => EntryType::Symlink,
            FileKind::CharDev => EntryType::Char,
            FileKind::BlockDev => EntryType::Block,
            FileKind::Fifo => EntryType::Fifo,
            FileKind::Socket => return Ok(Some("a socket, left out: an archive has none")),
        };
        if attr.kind != FileKind::Dir && attr.nlink > 1 {
            if let Some(first) = self.links.get(&attr.ino).cloned() {
                self.head(EntryType::Link, path, attr, Some(&first), Vec::new(), 0)?;
                return Ok(None);
            }
            self.links.insert(attr.ino, path.to_vec());
        }
        let xattrs = self.view.xattrs(attr.ino).map_err(Unwritten::Source)?;
        if attr.kind != FileKind::File {
            self.head(kind, path, attr, target, xattrs, 0)?;
            return Ok(None);
        }
        // The first bytes are read before the header is written: what cannot be read is not begun.
        let mut buf = vec![0; PIECE_BYTES];
        let mut count = self.view.read_at(attr.ino, 0, &mut buf).map_err(Unwritten::Source)?;
        self.head(kind, path, attr, None, xattrs, attr.size)?;
        let mut offset = 0;
        let mut damaged = None;
        while offset < attr.size {
            if interrupt::check().is_err() {
                return Err(Unwritten::Interrupted);
            }
            if count == 0 {
                // The size is in the archive already: what is missing is zeros, and told.
                let left = attr.size - offset;
                buf.fill(0);
                count = usize::try_from(left).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
            }
            self.out.write_all(&buf[..count]).map_err(Unwritten::Target)?;
            offset += count as u64;
            self.written += count as u64;
            self.progress.set(self.written);
            count = match damaged {
                Some(_) => 0,
                None if offset < attr.size => {
                    self.view.read_at(attr.ino, offset, &mut buf).unwrap_or_else(|error| {
                        damaged = Some(error);
                        0
                    })
                }
                None => 0,
            };
        }
        self.pad(attr.size)?;
        damaged.map_or(Ok(None), |error| Err(Unwritten::Source(error)))
    }

    fn pad(&mut self, len: u64) -> std::result::Result<(), Unwritten> {
        let rest = usize::try_from(len.next_multiple_of(BLOCK) - len).unwrap_or(0);
        self.out.write_all(&[0; 512][..rest]).map_err(Unwritten::Target)
    }

    /// Writes the header of an entry, and an extended one before it where that is needed.
    fn head(
        &mut self,
        kind: EntryType,
        path: &[u8],
        attr: &Attr,
        target: Option<&[u8]>,
        xattrs: Vec<(Vec<u8>, Vec<u8>)>,
        size: u64,
    ) -> std::result::Result<(), Unwritten> {
        let mut records = Records::default();
        let mut path = path.to_vec();
        if kind == EntryType::Directory {
            path.push(b'/');
        }
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(u32::from(attr.mode));
        header.set_uid(u64::from(attr.uid.min(MAX_OCTAL_ID)));
        header.set_gid(u64::from(attr.gid.min(MAX_OCTAL_ID)));
        header.set_size(if size <= MAX_OCTAL_SIZE { size } else { 0 });
        header.set_mtime(u64::try_from(attr.mtime.seconds).unwrap_or(0).min(MAX_OCTAL_SIZE));
        if matches!(kind, EntryType::Char | EntryType::Block) {
            let device =
                header.set_device_major(attr.rdev.0).and_then(|()| header.set_device_minor(attr.rdev.1));
            device.map_err(Unwritten::Target)?;
        }
        records.number("uid", u64::from(attr.uid), u64::from(attr.uid) > u64::from(MAX_OCTAL_ID));
        records.number("gid", u64::from(attr.gid), u64::from(attr.gid) > u64::from(MAX_OCTAL_ID));
        records.number("size", size, size > MAX_OCTAL_SIZE);
        records.time("mtime", attr);
        for (field, key, value) in [(0, "path", Some(&path[..])), (157, "linkpath", target)] {
            let Some(value) = value else { continue };
            if value.len() > HEADER_NAME || value.iter().any(|byte| !byte.is_ascii()) {
                records.add(key.as_bytes(), value);
            }
            let room = &mut header.as_mut_bytes()[field..field + HEADER_NAME];
            let fits = value.len().min(HEADER_NAME);
            room[..fits].copy_from_slice(&value[..fits]);
        }
        for (name, value) in xattrs {
            // A record ends its key with `=`: such a name cannot be written, and is not.
            if !name.contains(&b'=') {
                records.add(&[b"SCHILY.xattr.", &name[..]].concat(), &value);
            }
        }
        if !records.0.is_empty() {
            let mut extended = Header::new_ustar();
            extended.set_entry_type(EntryType::XHeader);
            extended.set_size(records.0.len() as u64);
            extended.set_mode(0o644);
            extended.as_mut_bytes()[..10].copy_from_slice(b"PaxHeaders");
            extended.set_cksum();
            self.out.write_all(extended.as_bytes()).map_err(Unwritten::Target)?;
            self.out.write_all(&records.0).map_err(Unwritten::Target)?;
            self.pad(records.0.len() as u64)?;
        }
        header.set_cksum();
        self.out.write_all(header.as_bytes()).map_err(Unwritten::Target)
    }
}

/// Why an entry was not written.
enum Unwritten {
    Source(fuse_view::Error),
    Target(io::Error),
    Interrupted,
}

/// Records of an extended header: `LENGTH KEY=VALUE\n`, the length being that of all of it.
#[derive(Default)]
struct Records(Vec<u8>);

impl Records {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut digits = 1;
        while (rest + digits).to_string().len() > digits {
            digits += 1;
        }
        self.0.extend_from_slice(format!("{} ", rest + digits).as_bytes());
        self.0.extend_from_slice(key);
        self.0.push(b'=');
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }

    fn number(&mut self, key: &str, value: u64, needed: bool) {
        if needed {
            self.add(key.as_bytes(), value.to_string().as_bytes());
        }
    }

    /// A time that is not whole seconds within what a header holds.
    fn time(&mut self, key: &str, attr: &Attr) {
        let (seconds, nanoseconds) = (attr.mtime.seconds, attr.mtime.nanoseconds);
        let plain = nanoseconds == 0 && u64::try_from(seconds).is_ok_and(|s| s <= MAX_OCTAL_SIZE);
        if plain {
            return;
        }
        // Before 1970 the fraction counts towards the past, too.
        let text = match (seconds < 0, nanoseconds) {
            (_, 0) => seconds.to_string(),
            (false, _) => format!("{seconds}.{nanoseconds:09}"),
            (true, _) => format!("-{}.{:09}", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanoseconds),
        };
        self.add(key.as_bytes(), text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_count_themselves() {
        let record = |key: &str, value: &str| {
            let mut records = Records::default();
            records.add(key.as_bytes(), value.as_bytes());
            String::from_utf8(records.0).unwrap()
        };
        assert_eq!(record("path", "x"), "9 path=x\n");
        assert_eq!(record("path", ""), "8 path=\n");
        for len in [80, 89, 90, 91, 92, 985, 986, 990, 991, 992, 993] {
            let text = record("k", &"v".repeat(len));
            let told: usize = text.split_once(' ').unwrap().0.parse().unwrap();
            assert_eq!(told, text.len(), "{len}");
        }
    }
}
