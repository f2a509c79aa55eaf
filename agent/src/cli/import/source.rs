//! The image to import, as pieces of data between holes: a raw file (whose holes are skipped), a block device,
//! a compressed file or standard input (whose zeros are found by looking).

use crate::cli::{
    failure::{Failure, Result},
    image::{Digest, ImageHasher, data_runs, is_compressed, is_stdio},
    sys,
};
use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
};
use tokio::sync::mpsc::Sender;

const PIECE_BYTES: usize = api::MAX_DATA_BYTES;

/// A part of the image, in ascending order.
pub enum Piece {
    /// Bytes that are not all zeros.
    Data { offset: u64, data: Vec<u8> },
    /// The end.
    End { total_bytes: u64, digest: Option<Digest> },
}

enum Input {
    /// A file or device with positions and a length.
    Raw { file: File, len: u64 },
    /// Bytes in order.
    Stream(Box<dyn Read + Send>),
}

/// An image opened for reading.
pub struct Source {
    input: Input,
    path: PathBuf,
    hasher: ImageHasher,
}

impl Source {
    /// Opens `path`; `-` is standard input.
    pub fn open(path: &Path, digest: bool) -> Result<Self> {
        let hasher = ImageHasher::new(digest);
        let new = |input| Self { input, path: path.to_owned(), hasher };
        if is_stdio(path) {
            return Ok(new(Input::Stream(Box::new(io::stdin()))));
        }
        let failed = |e| Failure::io(format!("open image {}", path.display()), &e);
        let mut file = File::options().read(true).custom_flags(libc::O_CLOEXEC).open(path).map_err(failed)?;
        let kind = file.metadata().map_err(failed)?.file_type();
        if kind.is_dir() {
            return Err(Failure::usage(format!("{} is a directory, not an image", path.display())));
        }
        if is_compressed(path) {
            let decoder = zstd::Decoder::new(file).map_err(failed)?;
            return Ok(new(Input::Stream(Box::new(decoder))));
        }
        if kind.is_file() || kind.is_block_device() {
            // The length of a block device is not in its metadata.
            let len = file.seek(SeekFrom::End(0)).map_err(failed)?;
            return Ok(new(Input::Raw { file, len }));
        }
        Ok(new(Input::Stream(Box::new(file))))
    }

    /// The length of the raw image, where it is known before the end.
    pub fn len(&self) -> Option<u64> {
        match &self.input {
            Input::Raw { len, .. } => Some(*len),
            Input::Stream(_) => None,
        }
    }

    /// Reads everything into `pieces`; a failure is the last thing sent. Stops when nobody listens any more.
    pub fn read_into(self, pieces: &Sender<Result<Piece>>) {
        let Self { input, path, mut hasher } = self;
        let read = match input {
            Input::Raw { file, len } => read_raw(&file, len, &mut hasher, pieces).map(|()| len),
            Input::Stream(stream) => read_stream(stream, &mut hasher, pieces),
        };
        let last = match read {
            Ok(total_bytes) => Ok(Piece::End { total_bytes, digest: hasher.finish(total_bytes) }),
            Err(e) => Err(Failure::io(format!("read image {}", path.display()), &e)),
        };
        // Nobody listens once the transfer has failed; that failure is told already.
        let _ = pieces.blocking_send(last);
    }
}

fn read_raw(
    file: &File,
    len: u64,
    hasher: &mut ImageHasher,
    pieces: &Sender<Result<Piece>>,
) -> io::Result<()> {
    let mut buf = vec![0; PIECE_BYTES];
    let mut offset = 0;
    while let Some(data) = sys::next_data(file, offset, len)? {
        offset = data.start;
        while offset < data.end {
            let want = usize::try_from(data.end - offset).unwrap_or(usize::MAX).min(PIECE_BYTES);
            file.read_exact_at(&mut buf[..want], offset)?;
            if !send(offset, &buf[..want], hasher, pieces) {
                return Ok(());
            }
            offset += want as u64;
        }
    }
    Ok(())
}

fn read_stream(
    mut stream: Box<dyn Read + Send>,
    hasher: &mut ImageHasher,
    pieces: &Sender<Result<Piece>>,
) -> io::Result<u64> {
    let mut offset = 0;
    let mut buf = vec![0; PIECE_BYTES];
    loop {
        let filled = fill(&mut stream, &mut buf)?;
        if filled == 0 || !send(offset, &buf[..filled], hasher, pieces) {
            return Ok(offset);
        }
        offset += filled as u64;
    }
}

/// Reads until `buf` is full or the stream ends.
fn fill(stream: &mut dyn Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match stream.read(&mut buf[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// Sends the data of a piece without its zeros; false: nobody listens.
fn send(offset: u64, data: &[u8], hasher: &mut ImageHasher, pieces: &Sender<Result<Piece>>) -> bool {
    hasher.update(offset, data);
    data_runs(data).into_iter().all(|run| {
        let piece = Piece::Data { offset: offset + run.start as u64, data: data[run].to_vec() };
        pieces.blocking_send(Ok(piece)).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn pieces_of(path: &Path) -> Vec<Result<Piece>> {
        let source = Source::open(path, true).unwrap();
        let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
        let reader = std::thread::spawn(move || source.read_into(&sender));
        let mut pieces = Vec::new();
        while let Some(piece) = receiver.blocking_recv() {
            pieces.push(piece);
        }
        reader.join().unwrap();
        pieces
    }

    /// Puts the pieces together again; checks that they ascend and carry no block of zeros.
    fn assemble(path: &Path) -> (Vec<u8>, Option<Digest>) {
        let mut image = Vec::new();
        for piece in pieces_of(path) {
            match piece.unwrap() {
                Piece::Data { offset, data } => {
                    let offset = usize::try_from(offset).unwrap();
                    assert!(offset >= image.len() && data.len() <= PIECE_BYTES);
                    assert!(data.chunks(4096).all(|block| block.iter().any(|b| *b != 0)));
                    image.resize(offset, 0);
                    image.extend_from_slice(&data);
                }
                Piece::End { total_bytes, digest } => {
                    image.resize(usize::try_from(total_bytes).unwrap(), 0);
                    return (image, digest);
                }
            }
        }
        panic!("no end");
    }

    #[test]
    fn raw_compressed_and_piped_images_are_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let mut image = vec![0_u8; (3 << 20) + 777];
        image[5000] = 1;
        image[(2 << 20) - 1..(2 << 20) + 1].fill(7);
        *image.last_mut().unwrap() = 9;
        let raw = dir.path().join("raw.img");
        let file = File::create(&raw).unwrap();
        file.set_len(image.len() as u64).unwrap();
        for run in data_runs(&image) {
            file.write_all_at(&image[run.clone()], run.start as u64).unwrap();
        }
        let packed = dir.path().join("raw.img.zst");
        let mut encoder = zstd::Encoder::new(File::create(&packed).unwrap(), 1).unwrap();
        encoder.write_all(&image).unwrap();
        encoder.finish().unwrap();
        let digest = Some(Digest(*blake3::hash(&image).as_bytes()));
        for path in [raw, packed] {
            let (read, found) = assemble(&path);
            assert!(read == image, "{}", path.display());
            assert_eq!(found, digest);
        }
    }

    #[test]
    fn a_broken_compressed_image_is_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.zst");
        std::fs::write(&path, b"this is no zstd frame").unwrap();
        let last = pieces_of(&path).pop().unwrap();
        assert!(last.is_err_and(|failure| failure.message().contains("x.zst")));
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let code = |path: &Path| Source::open(path, true).err().map(|failure| failure.exit_code());
        assert_eq!(code(dir.path()), Some(2));
        assert_eq!(code(&dir.path().join("none")), Some(3));
    }
}
