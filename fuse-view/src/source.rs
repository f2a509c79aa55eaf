//! Sources of blocks: a disk image or block device, a range of another source, a snapshot of the pool.
//! All of them are opened read only and never written.

use crate::{BlockRead, Error, Piece, Result};
use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom},
    ops::Range,
    os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

/// A raw disk image: a regular file or a block device.
#[derive(Debug)]
pub struct FileImage {
    file: File,
    len: u64,
    path: PathBuf,
}

impl FileImage {
    /// Opens `path` for reading. Anything but a regular file or a block device is refused.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |source| Error::Io { what: format!("open {}", path.display()), source };
        // O_NONBLOCK: opening a FIFO must fail below, not wait for its writer.
        let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(io)?;
        let kind = file.metadata().map_err(io)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let what = if kind.is_dir() { "a directory" } else { "a special file" };
            return Err(Error::WrongKind(format!(
                "{} is {what}, not a disk image or a block device",
                path.display()
            )));
        }
        // The length of a block device is not in its metadata.
        let len = file.seek(SeekFrom::End(0)).map_err(io)?;
        Ok(Self { file, len, path: path.to_owned() })
    }
}

impl BlockRead for FileImage {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(offset, buf.len(), self.len)?;
        self.file.read_exact_at(buf, offset).map_err(|source| Error::Io {
            what: format!("read {} bytes at {offset} of {}", buf.len(), self.path.display()),
            source,
        })
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn has_identities(&self) -> bool {
        false
    }
}

/// A range of another source, such as one partition of a disk.
pub struct Slice {
    whole: Arc<dyn BlockRead>,
    start: u64,
    len: u64,
}

impl Slice {
    /// The bytes `range` of `whole`. A range that leaves `whole` is refused.
    pub fn new(whole: Arc<dyn BlockRead>, range: Range<u64>) -> Result<Self> {
        let len =
            range.end.checked_sub(range.start).filter(|_| range.end <= whole.len()).ok_or_else(|| {
                Error::Corrupt(format!(
                    "bytes {} to {} lie outside of a source of {} bytes",
                    range.start,
                    range.end,
                    whole.len()
                ))
            })?;
        Ok(Self { whole, start: range.start, len })
    }
}

impl BlockRead for Slice {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(offset, buf.len(), self.len)?;
        self.whole.read_at(self.start + offset, buf)
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn has_identities(&self) -> bool {
        self.whole.has_identities()
    }

    fn identity(&self, offset: u64) -> Option<(u64, u64)> {
        // A slice that starts inside of a block has no block of its own.
        if !self.start.is_multiple_of(store::BLOCK_BYTES) || offset >= self.len {
            return None;
        }
        self.whole.identity(self.start + offset)
    }

    fn identities(&self, range: Range<u64>) -> Option<Vec<(u64, u64)>> {
        if !self.start.is_multiple_of(store::BLOCK_BYTES) || range.end > self.len {
            return None;
        }
        self.whole.identities(self.start + range.start..self.start + range.end)
    }

    fn piece(&self, offset: u64, len: usize) -> Result<Piece> {
        check_range(offset, len, self.len)?;
        self.whole.piece(self.start + offset, len)
    }
}

/// Parts of another source, one behind the other.
pub struct Joined {
    whole: Arc<dyn BlockRead>,
    /// Where each begins here, and what it is there.
    parts: Vec<(u64, Range<u64>)>,
    len: u64,
}

impl Joined {
    /// The bytes `ranges` of `whole`. A range that leaves `whole` is refused.
    pub fn new(whole: Arc<dyn BlockRead>, ranges: Vec<Range<u64>>) -> Result<Self> {
        let mut len = 0_u64;
        let mut parts = Vec::with_capacity(ranges.len());
        for range in ranges.into_iter().filter(|range| range.start < range.end) {
            if range.end > whole.len() {
                return Err(Error::Corrupt(format!("bytes up to {} lie outside of a source", range.end)));
            }
            parts.push((len, range.clone()));
            len = len
                .checked_add(range.end - range.start)
                .ok_or_else(|| Error::Corrupt("parts longer than any source".into()))?;
        }
        Ok(Self { whole, parts, len })
    }

    /// Where byte `offset` lies in the whole, and how many bytes follow it there.
    fn place(&self, offset: u64) -> Option<(u64, u64)> {
        let after = self.parts.partition_point(|(start, _)| *start <= offset);
        let (start, range) = self.parts.get(after.checked_sub(1)?)?;
        let at = range.start + (offset - start);
        (at < range.end).then(|| (at, range.end - at))
    }
}

impl BlockRead for Joined {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(offset, buf.len(), self.len)?;
        let mut done = 0;
        while let Some((at, left)) = self.place(offset + done as u64).filter(|_| done < buf.len()) {
            let count = usize::try_from(left).map_or(buf.len() - done, |left| left.min(buf.len() - done));
            self.whole.read_at(at, &mut buf[done..done + count])?;
            done += count;
        }
        Ok(())
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn has_identities(&self) -> bool {
        self.whole.has_identities()
    }

    fn identity(&self, offset: u64) -> Option<(u64, u64)> {
        let (at, left) = self.place(offset)?;
        let is_whole = at.is_multiple_of(store::BLOCK_BYTES) && left >= store::BLOCK_BYTES;
        is_whole.then(|| self.whole.identity(at)).flatten()
    }
}

/// A snapshot of the pool.
pub struct SnapshotSource(pub Arc<store::Snapshot>);

impl BlockRead for SnapshotSource {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(offset, buf.len(), self.0.size_bytes())?;
        self.0.read_at(offset, buf).map_err(|error| Error::Io {
            what: format!("read {} bytes at {offset} of snapshot {}", buf.len(), self.0.id()),
            source: io::Error::other(error),
        })
    }

    fn len(&self) -> u64 {
        self.0.size_bytes()
    }

    fn identity(&self, offset: u64) -> Option<(u64, u64)> {
        self.0.identity(offset).ok().flatten()
    }
}

/// A read past the end: the image led its reader there.
fn check_range(offset: u64, count: usize, len: u64) -> Result<()> {
    let end = u64::try_from(count).ok().and_then(|count| offset.checked_add(count));
    match end {
        Some(end) if end <= len => Ok(()),
        _ => Err(Error::Corrupt(format!("{count} bytes at {offset} lie past the end, {len} bytes"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_and_slices_are_read_within_their_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        let bytes: Vec<u8> = (0..=255).cycle().take(9000).collect();
        std::fs::write(&path, &bytes).unwrap();
        let image: Arc<dyn BlockRead> = Arc::new(FileImage::open(&path).unwrap());
        assert_eq!(image.len(), 9000);
        let mut buf = [0; 100];
        image.read_at(8900, &mut buf).unwrap();
        assert_eq!(buf, bytes[8900..]);
        assert!(matches!(image.read_at(8901, &mut buf), Err(Error::Corrupt(_))));
        assert!(matches!(image.read_at(u64::MAX, &mut buf), Err(Error::Corrupt(_))));

        let slice = Slice::new(image.clone(), 1000..1100).unwrap();
        slice.read_at(0, &mut buf).unwrap();
        assert_eq!(buf, bytes[1000..1100]);
        assert!(matches!(slice.read_at(1, &mut buf), Err(Error::Corrupt(_))));
        assert!(Slice::new(image.clone(), 8000..9001).is_err());
        #[allow(clippy::reversed_empty_ranges)] // what a hostile partition table says
        let reversed = Slice::new(image, 10..5);
        assert!(reversed.is_err());
    }

    #[test]
    fn only_files_and_block_devices_are_images() {
        let dir = tempfile::tempdir().unwrap();
        let message = |path: &Path| FileImage::open(path).unwrap_err().to_string();
        assert!(message(dir.path()).contains("is a directory"));
        assert!(message(Path::new("/dev/null")).contains("is a special file"));
        assert!(message(&dir.path().join("none")).contains("No such file"));
    }
}
