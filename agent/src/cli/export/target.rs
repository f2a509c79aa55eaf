//! Where an exported image goes: a new file (sparse, or compressed by its name), a device, or standard output.

use crate::cli::{
    failure::{Failure, Kind, Result},
    image::{for_zeros, is_compressed, is_stdio},
};
use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Receives the image in ascending order.
pub struct Target {
    writer: Writer,
    place: Place,
    size_bytes: u64,
    /// End of what was written.
    position: u64,
}

enum Writer {
    /// Positions; what is not written stays a hole.
    Sparse(File),
    /// Every byte in order, zeros too.
    Stream(Box<dyn Write>),
    /// A stream that ends with a frame of its own.
    Zstd(Box<zstd::Encoder<'static, File>>),
}

/// Where the bytes stay.
enum Place {
    /// A file that gets its name at the end.
    File {
        temp: TempFile,
        name: PathBuf,
        force: bool,
        handle: File,
    },
    /// A device that is to be synced.
    Device {
        name: PathBuf,
        handle: File,
    },
    Pipe,
}

/// A file that goes away unless it is kept.
struct TempFile(Option<PathBuf>);

impl Drop for TempFile {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            // It is ours alone, and nothing is left to do if it cannot go.
            let _ = fs::remove_file(path);
        }
    }
}

impl Target {
    /// Opens `path`; `-` is standard output. A file that exists, or a block device, needs `force`.
    pub fn create(path: &Path, force: bool) -> Result<Self> {
        let new = |writer, place| Self { writer, place, size_bytes: 0, position: 0 };
        if is_stdio(path) {
            return Ok(new(Writer::Stream(Box::new(io::stdout())), Place::Pipe));
        }
        let failed = |e| Failure::io(format!("write {}", path.display()), &e);
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => {
                Err(Failure::usage(format!("{} is a directory", path.display())).hint("name a file"))
            }
            Ok(metadata) if metadata.is_file() && !force => Err(exists(path)),
            Ok(metadata) if metadata.file_type().is_block_device() && !force => {
                Err(Failure::new(Kind::Exists, format!("{} is a block device", path.display()))
                    .hint("--force overwrites what it holds"))
            }
            Ok(metadata) if !metadata.is_file() => {
                let mut options = File::options();
                options.write(true);
                if metadata.file_type().is_block_device() {
                    // The kernel then refuses a device that is mounted or otherwise held.
                    options.custom_flags(libc::O_EXCL);
                }
                let file = options.open(path).map_err(failed)?;
                let handle = file.try_clone().map_err(failed)?;
                Ok(new(Writer::Stream(Box::new(file)), Place::Device { name: path.to_owned(), handle }))
            }
            _ => {
                let (file, temp) = temporary(path)?;
                let handle = file.try_clone().map_err(failed)?;
                let writer = if is_compressed(path) {
                    Writer::Zstd(Box::new(zstd::Encoder::new(file, 0).map_err(failed)?))
                } else {
                    Writer::Sparse(file)
                };
                Ok(new(writer, Place::File { temp, name: path.to_owned(), force, handle }))
            }
        }
    }

    fn failure(&self, error: &io::Error) -> Failure {
        match &self.place {
            Place::Pipe => Failure::output(error),
            Place::File { name, .. } | Place::Device { name, .. } => {
                Failure::io(format!("write {}", name.display()), error)
            }
        }
    }

    /// The length of the image.
    pub fn begin(&mut self, size_bytes: u64) -> Result<()> {
        self.size_bytes = size_bytes;
        match &self.writer {
            Writer::Sparse(file) => file.set_len(size_bytes).map_err(|e| self.failure(&e)),
            Writer::Stream(_) | Writer::Zstd(_) => Ok(()),
        }
    }

    /// Bytes at `offset`, after all earlier ones.
    pub fn chunk(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        if offset < self.position {
            return Err(Failure::failed(format!("the image went back from {} to {offset}", self.position)));
        }
        self.fill_to(offset)?;
        let written = match &mut self.writer {
            Writer::Sparse(file) => file.write_all_at(data, offset),
            Writer::Stream(stream) => stream.write_all(data),
            Writer::Zstd(encoder) => encoder.write_all(data),
        };
        written.map_err(|e| self.failure(&e))?;
        self.position = offset + data.len() as u64;
        Ok(())
    }

    fn fill_to(&mut self, offset: u64) -> Result<()> {
        let count = offset.saturating_sub(self.position);
        let stream: &mut dyn Write = match &mut self.writer {
            Writer::Sparse(_) => return Ok(()),
            Writer::Stream(stream) => stream,
            Writer::Zstd(encoder) => encoder,
        };
        let mut error = None;
        let filled = for_zeros(count, |zeros| {
            crate::cli::interrupt::check()?;
            stream.write_all(zeros).map_err(|e| {
                let failure = Failure::failed("write zeros");
                error = Some(e);
                failure
            })
        });
        self.position = self.position.max(offset);
        match error {
            Some(error) => Err(self.failure(&error)),
            None => filled,
        }
    }

    /// Completes the image, makes it durable and gives it its name.
    pub fn finish(mut self) -> Result<()> {
        self.fill_to(self.size_bytes)?;
        let ended = match std::mem::replace(&mut self.writer, Writer::Stream(Box::new(io::sink()))) {
            Writer::Sparse(_) => Ok(()),
            Writer::Stream(mut stream) => stream.flush(),
            Writer::Zstd(encoder) => encoder.finish().map(drop),
        };
        ended.map_err(|e| self.failure(&e))?;
        match &mut self.place {
            Place::Pipe => Ok(()),
            Place::Device { name, handle } => sync(handle, name),
            Place::File { temp, name, force, handle } => {
                sync(handle, name)?;
                publish(temp, name, *force)
            }
        }
    }
}

fn exists(path: &Path) -> Failure {
    Failure::new(Kind::Exists, format!("{} exists already", path.display())).hint("--force overwrites it")
}

fn sync(file: &File, name: &Path) -> Result<()> {
    match file.sync_all() {
        // What cannot be synced, such as a terminal or /dev/null, keeps nothing.
        Err(e) if e.raw_os_error() != Some(libc::EINVAL) => {
            Err(Failure::io(format!("write {}", name.display()), &e))
        }
        _ => Ok(()),
    }
}

/// A file of our own beside `path`, so that a rename can put it there.
fn temporary(path: &Path) -> Result<(File, TempFile)> {
    let name = path.file_name().ok_or_else(|| Failure::usage(format!("{} names no file", path.display())))?;
    for attempt in 0..1000_u32 {
        let mut temp = std::ffi::OsString::from(".");
        temp.push(name);
        temp.push(format!(".{}-{attempt}.part", std::process::id()));
        let temp = path.with_file_name(temp);
        match File::options().write(true).create_new(true).open(&temp) {
            Ok(file) => return Ok((file, TempFile(Some(temp)))),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(Failure::io(format!("create {}", path.display()), &e)),
        }
    }
    Err(Failure::failed(format!("create {}: no free name for a temporary file beside it", path.display())))
}

/// Gives the temporary file its name. Without `force` a file that appeared meanwhile is not replaced.
fn publish(temp: &mut TempFile, name: &Path, force: bool) -> Result<()> {
    let Some(path) = &temp.0 else { return Ok(()) };
    if !force {
        match fs::hard_link(path, name) {
            // The drop of `temp` removes the other name.
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(exists(name)),
            // Some file systems have no hard links.
            Err(_) if name.symlink_metadata().is_ok() => return Err(exists(name)),
            Err(_) => {}
        }
    }
    fs::rename(path, name).map_err(|e| Failure::io(format!("create {}", name.display()), &e))?;
    temp.0 = None;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn write(path: &Path, force: bool) -> Result<()> {
        let mut target = Target::create(path, force)?;
        target.begin(8 << 20)?;
        target.chunk(1 << 20, b"abc")?;
        target.chunk(5 << 20, &[7; 4096])?;
        target.finish()
    }

    fn image() -> Vec<u8> {
        let mut image = vec![0; 8 << 20];
        image[1 << 20..(1 << 20) + 3].copy_from_slice(b"abc");
        image[5 << 20..(5 << 20) + 4096].fill(7);
        image
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_raw_image_is_sparse_and_complete() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.img");
        write(&path, false).unwrap();
        assert!(fs::read(&path).unwrap() == image());
        assert!(fs::metadata(&path).unwrap().blocks() * 512 < 1 << 20);
        assert_eq!(names(dir.path()), ["x.img"]);
    }

    #[test]
    fn a_compressed_image_unpacks_to_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.img.zst");
        write(&path, false).unwrap();
        assert!(zstd::decode_all(File::open(&path).unwrap()).unwrap() == image());
    }

    #[test]
    fn an_unfinished_image_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut target = Target::create(&dir.path().join("x.img"), false).unwrap();
        target.begin(1 << 20).unwrap();
        target.chunk(0, b"x").unwrap();
        assert_eq!(names(dir.path()).len(), 1);
        drop(target);
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn what_exists_needs_force() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.img");
        fs::write(&path, b"old").unwrap();
        assert_eq!(write(&path, false).unwrap_err().exit_code(), 4);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        write(&path, true).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 8 << 20);
        assert_eq!(write(dir.path(), true).unwrap_err().exit_code(), 2);
        assert_eq!(write(&dir.path().join("none/x"), false).unwrap_err().exit_code(), 3);
        write(Path::new("/dev/null"), false).unwrap();
    }

    #[test]
    fn a_file_that_appears_meanwhile_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.img");
        let mut target = Target::create(&path, false).unwrap();
        target.begin(4096).unwrap();
        fs::write(&path, b"theirs").unwrap();
        assert_eq!(target.finish().unwrap_err().exit_code(), 4);
        assert_eq!(fs::read(&path).unwrap(), b"theirs");
        assert_eq!(names(dir.path()), ["x.img"]);
    }
}
