//! Raw images in and out.
//!
//! Each transfer has a thread of its own that works on the store, and a bounded queue between it and
//! the connection. Invariants: an import that does not reach its end leaves no volume behind; an
//! export's temporary snapshot goes away with the export, or at the next start of the agent.

use super::agent::Agent;
use super::convert;
use super::errors::{invalid, of_store};
use super::events::Subject;
use api::v1::{self, Chunk, TransferEnd, export_response, import_request};
use api::{Error, ErrorKind, MAX_DATA_BYTES, Result};
use std::ops::Range;
use std::sync::Arc;
use store::{BLOCK_BYTES, Consistency, Labels, Snapshot, SnapshotInfo, Volume};
use tokio::sync::mpsc;

/// Messages between a connection and its worker: at most this many MiB of memory a transfer.
pub const QUEUE: usize = 4;

/// Marks snapshots that live only as long as an export or a copy of a volume.
pub const TEMPORARY_LABEL: &str = "cowslip.io/temporary";

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Parts of an import as they arrive; the sender's end without an `End` is a cut-off transfer.
pub type Parts = mpsc::Receiver<import_request::Part>;

impl Agent {
    /// Makes a volume of the parts that arrive.
    pub fn import(&self, header: v1::ImportHeader, mut parts: Parts) -> Result<v1::ImportResponse> {
        let v1::ImportHeader { volume, size_bytes, labels, digest } = header;
        // A volume has at least one block; it grows if no size was given.
        let first_size = if size_bytes == 0 { BLOCK_BYTES } else { size_bytes };
        self.pool.create_volume(&volume, first_size, labels.into_iter().collect()).map_err(of_store)?;
        let received = self.receive(&volume, size_bytes == 0, digest, &mut parts);
        match received {
            Ok(blake3) => {
                let message = format!("volume {volume} was imported");
                self.events.info("volume_imported", Subject::volume(&volume), message);
                Ok(v1::ImportResponse { volume: Some(self.get_volume(&volume)?), blake3 })
            }
            Err(error) => {
                if let Err(left) = self.pool.delete_volume(&volume) {
                    let message = format!("an import failed, and its volume {volume} is left behind: {left}");
                    self.events.error("volume_left", Subject::volume(&volume), message);
                }
                Err(error)
            }
        }
    }

    fn receive(&self, name: &str, grows: bool, digest: bool, parts: &mut Parts) -> Result<Vec<u8>> {
        let volume = self.pool.open_volume(name).map_err(of_store)?;
        let mut image = Image::new(digest);
        while let Some(part) = parts.blocking_recv() {
            match part {
                import_request::Part::Header(_) => return Err(invalid("a second header came in an import")),
                import_request::Part::Chunk(chunk) => {
                    image.accept(&chunk)?;
                    self.fit(name, &volume, grows, image.end)?;
                    volume.write_at(chunk.offset, &chunk.data, false).map_err(of_store)?;
                }
                import_request::Part::End(end) => {
                    let blake3 = image.finish(&end)?;
                    self.fit(name, &volume, grows, end.total_bytes)?;
                    volume.flush().map_err(of_store)?;
                    return Ok(blake3);
                }
            }
        }
        Err(Error::new(ErrorKind::Unreachable, format!("the import of volume {name} was cut off")))
    }

    /// Makes room for an image of `end` bytes.
    fn fit(&self, name: &str, volume: &Volume, grows: bool, end: u64) -> Result<()> {
        let size = volume.size_bytes();
        if end <= size {
            return Ok(());
        }
        if !grows {
            return Err(invalid(format!("the image does not fit volume {name} of {size} bytes"))
                .hint("give the image's size or a larger one, or leave the size out"));
        }
        let too_large = || invalid(format!("the image for volume {name} is too large"));
        let end = end.checked_next_multiple_of(BLOCK_BYTES).ok_or_else(too_large)?;
        self.pool.resize_volume(name, end).map(drop).map_err(of_store)
    }

    /// What an export reads: the named snapshot, or a temporary one of the live volume.
    pub fn open_export(self: &Arc<Self>, request: &v1::ExportRequest) -> Result<Export> {
        let v1::ExportRequest { volume, snapshot, freeze, digest } = request;
        let mut warnings = Vec::new();
        let mut temporary = None;
        let info = if snapshot.is_empty() {
            let wanted = [v1::SnapshotRef { volume: volume.clone(), name: temporary_name("export")? }];
            let labels = Labels::from([(TEMPORARY_LABEL.to_owned(), "export".to_owned())]);
            let cut = self.create_snapshots(&wanted, *freeze, labels)?;
            warnings = cut.warnings;
            let info = cut.snapshots.into_iter().next().ok_or_else(|| invalid("the cut gave no snapshot"))?;
            temporary = Some(Temporary { agent: Arc::clone(self), info: info.clone() });
            Ok(info)
        } else {
            self.pool.snapshot(volume, snapshot)
        };
        let info = info.map_err(of_store)?;
        let snapshot = self.pool.open_snapshot(volume, &info.name).map_err(of_store)?;
        Ok(Export {
            snapshot,
            consistency: info.consistency,
            warnings,
            digest: *digest,
            _temporary: temporary,
        })
    }

    /// Deletes temporary snapshots that an earlier agent left.
    pub fn delete_temporary_snapshots(&self) {
        let Ok(snapshots) = self.pool.snapshots(None) else { return };
        let left: Vec<_> = snapshots.into_iter().filter(|s| s.labels.contains_key(TEMPORARY_LABEL)).collect();
        self.discard(&left);
    }
}

/// Where the messages of an export go.
pub type Sink = mpsc::Sender<Result<v1::ExportResponse>>;

/// What is exported. Fields are dropped in this order: the handle first, then what it reads.
pub struct Export {
    snapshot: Arc<Snapshot>,
    consistency: Consistency,
    warnings: Vec<String>,
    digest: bool,
    _temporary: Option<Temporary>,
}

impl Export {
    /// Sends the image, failures too. Ends early when the client goes away.
    pub fn send(&self, sink: &Sink) {
        if let Err(error) = self.send_image(sink) {
            // Nobody is left to be told if this fails.
            let _ = sink.blocking_send(Err(error));
        }
    }

    fn send_image(&self, sink: &Sink) -> Result<()> {
        let size_bytes = self.snapshot.size_bytes();
        let header = v1::ExportHeader {
            size_bytes,
            consistency: convert::consistency(self.consistency).into(),
            warnings: self.warnings.clone(),
        };
        let send = |part| sink.blocking_send(Ok(v1::ExportResponse { part: Some(part) })).is_ok();
        let mut listening = send(export_response::Part::Header(header));
        let mut image = Image::new(self.digest);
        let mut at = 0;
        while listening && at < size_bytes {
            let Some(data) = self.snapshot.next_data(at).map_err(of_store)? else { break };
            at = data.end;
            for piece in pieces(data) {
                let chunk = self.read(&piece)?;
                image.accept(&chunk)?;
                listening = send(export_response::Part::Chunk(chunk));
                if !listening {
                    break;
                }
            }
        }
        if listening {
            let mut end = TransferEnd { total_bytes: size_bytes, blake3: Vec::new() };
            end.blake3 = image.finish(&end)?;
            send(export_response::Part::End(end));
        }
        Ok(())
    }

    fn read(&self, piece: &Range<u64>) -> Result<Chunk> {
        let length = usize::try_from(piece.end - piece.start).map_err(|e| invalid(e.to_string()))?;
        let mut chunk = Chunk { offset: piece.start, data: vec![0; length] };
        self.snapshot.read_at(chunk.offset, &mut chunk.data).map_err(of_store)?;
        Ok(chunk)
    }
}

/// A snapshot that goes away with its export.
struct Temporary {
    agent: Arc<Agent>,
    info: SnapshotInfo,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        self.agent.discard(std::slice::from_ref(&self.info));
    }
}

/// A name that nobody has, for a snapshot that lives as long as what it is for.
pub fn temporary_name(purpose: &str) -> Result<String> {
    let random = getrandom::u64().map_err(|e| Error::new(ErrorKind::Io, format!("random number: {e}")))?;
    Ok(format!("{purpose}-{random:016x}"))
}

/// A range in pieces that fit a message, cut at multiples of their size.
fn pieces(data: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let most = MAX_DATA_BYTES as u64;
    let mut at = data.start;
    std::iter::from_fn(move || {
        let piece = at..data.end.min((at / most + 1) * most);
        at = piece.end;
        (piece.start < piece.end).then_some(piece)
    })
}

/// What has been transferred of a raw image: chunks ascend, holes are zeros.
struct Image {
    end: u64,
    hasher: Option<Box<blake3::Hasher>>,
}

impl Image {
    fn new(digest: bool) -> Self {
        Self { end: 0, hasher: digest.then(|| Box::new(blake3::Hasher::new())) }
    }

    fn accept(&mut self, chunk: &Chunk) -> Result<()> {
        let Chunk { offset, data } = chunk;
        if data.len() > MAX_DATA_BYTES {
            return Err(invalid(format!("a chunk of {} bytes is larger than {MAX_DATA_BYTES}", data.len())));
        }
        if *offset < self.end {
            return Err(invalid(format!(
                "the chunk at {offset} begins before the last one ended, {}",
                self.end
            )));
        }
        let end = offset.checked_add(data.len() as u64);
        let end =
            end.ok_or_else(|| invalid(format!("the chunk at {offset} ends past the largest offset")))?;
        self.hash_zeros(*offset);
        if let Some(hasher) = &mut self.hasher {
            hasher.update(data);
        }
        self.end = end;
        Ok(())
    }

    /// The digest of the whole, checked against the one that came with it.
    fn finish(mut self, end: &TransferEnd) -> Result<Vec<u8>> {
        if end.total_bytes < self.end {
            return Err(invalid(format!(
                "an image of {} bytes cannot have data up to {}",
                end.total_bytes, self.end
            )));
        }
        self.hash_zeros(end.total_bytes);
        let Some(hasher) = self.hasher else { return Ok(Vec::new()) };
        let digest = hasher.finalize();
        if !end.blake3.is_empty() && end.blake3 != digest.as_bytes() {
            return Err(Error::new(
                ErrorKind::Damaged,
                "what arrived is not what was sent: the digests differ",
            )
            .hint("try again; a source that is being written while it is read does this too"));
        }
        Ok(digest.as_bytes().to_vec())
    }

    fn hash_zeros(&mut self, until: u64) {
        let Some(hasher) = &mut self.hasher else { return };
        let mut at = self.end;
        while at < until {
            let piece = usize::try_from(until - at).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
            hasher.update(&ZEROS[..piece]);
            at += piece as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(offset: u64, data: &[u8]) -> Chunk {
        Chunk { offset, data: data.to_vec() }
    }

    #[test]
    fn holes_are_hashed_as_zeros() {
        let mut raw = vec![0u8; 200_001];
        raw[5..8].copy_from_slice(b"abc");
        raw[150_000..150_003].copy_from_slice(b"xyz");
        let mut image = Image::new(true);
        image.accept(&chunk(5, b"abc")).unwrap();
        image.accept(&chunk(150_000, b"xyz")).unwrap();
        let expected = blake3::hash(&raw).as_bytes().to_vec();
        let end = TransferEnd { total_bytes: 200_001, blake3: expected.clone() };
        assert_eq!(image.finish(&end), Ok(expected));
    }

    #[test]
    fn another_digest_is_damage() {
        let mut image = Image::new(true);
        image.accept(&chunk(0, b"abc")).unwrap();
        let end = TransferEnd { total_bytes: 3, blake3: blake3::hash(b"abd").as_bytes().to_vec() };
        assert_eq!(image.finish(&end).unwrap_err().kind, ErrorKind::Damaged);
    }

    #[test]
    fn bad_chunks_are_refused() {
        let refused = |chunks: &[Chunk]| {
            let mut image = Image::new(false);
            let error = chunks.iter().find_map(|chunk| image.accept(chunk).err());
            error.map(|error| error.kind)
        };
        assert_eq!(refused(&[chunk(0, b"ab"), chunk(2, b"c"), chunk(9, b"")]), None);
        assert_eq!(refused(&[chunk(0, b"ab"), chunk(1, b"c")]), Some(ErrorKind::Invalid));
        assert_eq!(refused(&[chunk(u64::MAX, b"ab")]), Some(ErrorKind::Invalid));
        assert_eq!(refused(&[chunk(0, &vec![0; MAX_DATA_BYTES + 1])]), Some(ErrorKind::Invalid));
        let mut image = Image::new(false);
        image.accept(&chunk(4, b"ab")).unwrap();
        let short = TransferEnd { total_bytes: 5, blake3: Vec::new() };
        assert_eq!(image.finish(&short).unwrap_err().kind, ErrorKind::Invalid);
    }

    #[test]
    fn pieces_cover_the_range_and_fit() {
        let most = MAX_DATA_BYTES as u64;
        let all: Vec<_> = pieces(most - 10..3 * most + 5).collect();
        assert_eq!(all, [most - 10..most, most..2 * most, 2 * most..3 * most, 3 * most..3 * most + 5]);
        assert_eq!(pieces(7..7).count(), 0);
    }
}
