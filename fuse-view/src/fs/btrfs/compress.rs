//! Compressed extents: zlib, LZO and zstd, as the kernel lays them out.

use crate::fs::bytes::le32;
use flate2::{Decompress, FlushDecompress};
use std::io::Read;

/// Most bytes one compressed extent may hold when unpacked. The kernel writes at most 128 KiB.
pub(super) const MAX_UNPACKED: u64 = 1 << 20;
/// Most bytes on disk of one.
pub(super) const MAX_PACKED: u64 = 1 << 20;
/// The largest window that the kernel's zstd uses here, as a power of two.
const ZSTD_WINDOW_LOG: u32 = 17;
/// Bytes of the lengths in the LZO layout.
const LZO_LEN: usize = 4;

/// Unpacks at most `len` bytes; fewer where the stream ends before. `sector` is the unit of the LZO layout.
pub(super) fn unpack(method: u8, packed: &[u8], len: usize, sector: usize) -> Result<Vec<u8>, String> {
    let mut out = vec![0; len];
    let got = match method {
        1 => zlib(packed, &mut out),
        2 => lzo(packed, &mut out, sector),
        3 => zstd(packed, &mut out),
        other => Err(format!("compression method {other} is not known")),
    }?;
    out.truncate(got);
    Ok(out)
}

fn zlib(packed: &[u8], out: &mut [u8]) -> Result<usize, String> {
    let mut stream = Decompress::new(true);
    stream.decompress(packed, out, FlushDecompress::Finish).map_err(|e| format!("zlib: {e}"))?;
    usize::try_from(stream.total_out()).map_err(|e| e.to_string())
}

fn zstd(packed: &[u8], out: &mut [u8]) -> Result<usize, String> {
    let text = |e: std::io::Error| format!("zstd: {e}");
    // What follows the frame fills up the sector.
    let mut stream = zstd::stream::read::Decoder::with_buffer(packed).map_err(text)?.single_frame();
    stream.window_log_max(ZSTD_WINDOW_LOG).map_err(text)?;
    let mut done = 0;
    while done < out.len() {
        match stream.read(&mut out[done..]).map_err(text)? {
            0 => break,
            n => done += n,
        }
    }
    Ok(done)
}

/// A total length, then segments of up to a sector, each with its length, which never crosses the end of a sector.
fn lzo(packed: &[u8], out: &mut [u8], sector: usize) -> Result<usize, String> {
    let length = |at: usize| -> Option<usize> {
        packed.get(at..at + LZO_LEN)?;
        usize::try_from(le32(packed, at)).ok()
    };
    let total =
        length(0).filter(|&total| total <= packed.len()).ok_or("lzo: the length of all is impossible")?;
    let (mut at, mut done) = (LZO_LEN, 0);
    while at < total && done < out.len() {
        let rest = sector - at % sector;
        if rest < LZO_LEN {
            at += rest;
            continue;
        }
        let len = length(at).ok_or("lzo: a segment without length")?;
        at += LZO_LEN;
        let end = at.checked_add(len).filter(|&end| end <= total && len > 0);
        let end = end.ok_or("lzo: the length of a segment is impossible")?;
        let room = out.len().min(done + sector);
        // The last segment of an extent that was cut short unpacks to a whole sector all the same.
        let mut piece = vec![0; sector];
        let got = lzokay::decompress::decompress(&packed[at..end], &mut piece)
            .map_err(|e| format!("lzo: {e:?}"))?;
        let used = got.min(room - done);
        out[done..done + used].copy_from_slice(&piece[..used]);
        done += used;
        at = end;
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const TEXT: &[u8] = b"the same words, the same words, the same words, and then an end";

    #[test]
    fn zlib_and_zstd() {
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        zlib.write_all(TEXT).unwrap();
        let mut packed = [(1, zlib.finish().unwrap()), (3, zstd::bulk::compress(TEXT, 3).unwrap())];
        for (method, bytes) in &mut packed {
            bytes.resize(4096, 0);
            assert_eq!(unpack(*method, bytes, 4096, 4096).unwrap(), TEXT);
            assert_eq!(unpack(*method, bytes, 10, 4096).unwrap(), &TEXT[..10]);
            bytes[3] ^= 0x55;
            bytes[9] ^= 0x55;
            assert!(unpack(*method, bytes, 4096, 4096).is_err_and(|why| why.len() > 6), "{method}");
        }
        assert!(unpack(4, TEXT, 10, 4096).is_err());
    }

    #[test]
    fn lzo_segments() {
        // A stream of literals only: 17 + 4 as first byte, four bytes, the end marker.
        let stream = [21, b'a', b'b', b'c', b'd', 17, 0, 0];
        let mut packed = vec![0; 4];
        for _ in 0..2 {
            packed.extend(8u32.to_le_bytes());
            packed.extend(stream);
        }
        let total = u32::try_from(packed.len()).unwrap();
        packed[..4].copy_from_slice(&total.to_le_bytes());
        packed.resize(4096, 0);
        assert_eq!(unpack(2, &packed, 100, 4096).unwrap(), b"abcdabcd");
        for (at, value) in [(0, 3), (3, 1), (4, 0), (4, 200), (7, 1), (8, 0xFF)] {
            let mut bad = packed.clone();
            bad[at] = value;
            let _ = unpack(2, &bad, 100, 4096);
        }
        assert!(unpack(2, &[], 10, 4096).is_err());
    }
}
