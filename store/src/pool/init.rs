//! Making a pool. The superblock goes last, so a pool that was not finished is none.

use super::Pool;
use crate::alloc::{SegmentMap, SegmentState};
use crate::catalog::Catalog;
use crate::checkpoint::{link_pages, segment_page};
use crate::format::checkpoint::{Checkpoint, PAGE_PAYLOAD};
use crate::format::superblock::{CheckpointRef, Layout, SLOTS, Superblock, plan};
use crate::io::file::{FileDev, Lock, POOL_FILE, set_nocow, statfs};
use crate::io::{AlignedBuf, BlockDev};
use crate::types::{BLOCK, BLOCK_BYTES, Lsn, Phys, mem};
use crate::{Error, PoolInfo, Result};
use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use zerocopy::IntoBytes;

/// How to make a pool.
#[derive(Debug, Clone, Default)]
pub struct InitOptions {
    /// Size of the pool; None: the whole device, or what the host's file system has free.
    pub size_bytes: Option<u64>,
    /// Bytes of the log; None: 1/32 of the pool, 8 to 128 MiB.
    pub log_bytes: Option<u64>,
    /// Make it even where something is already.
    pub force: bool,
}

/// Bytes zeroed by one request.
const ZERO_STEP: usize = 1 << 20;

impl Pool {
    /// Makes a pool at `path`: a directory (made if absent; it will hold the pool file) or a block device.
    ///
    /// # Errors
    /// `Exists` when something is there already and `force` is not set, `Invalid` for sizes and places that
    /// cannot hold a pool, `NoSpace`, `Io`. Nothing of a pool is left then.
    pub fn init(path: &Path, options: &InitOptions) -> Result<PoolInfo> {
        let name = path.display();
        let meta = fs::metadata(path);
        match meta {
            Ok(m) if m.file_type().is_block_device() => init_device(path, options)?,
            Ok(m) if !m.is_dir() => {
                return Err(Error::invalid(format!("{name} is neither a directory nor a block device"))
                    .hint("give a directory for the pool, or a whole disk or partition"));
            }
            _ => init_directory(path, options)?,
        }
        Ok(Self::open_read_only(path)?.info())
    }
}

fn init_directory(dir: &Path, options: &InitOptions) -> Result<()> {
    let name = dir.display();
    let existed = dir.exists();
    fs::create_dir_all(dir).map_err(|e| Error::io(format!("make directory {name}"), e))?;
    let outcome = init_in(dir, options);
    if outcome.is_err() && !existed {
        let _ = fs::remove_dir(dir);
    }
    outcome
}

fn init_in(dir: &Path, options: &InitOptions) -> Result<()> {
    let name = dir.display();
    if !options.force {
        refuse_used_directory(dir)?;
    }
    let temp = dir.join(".pool.cowslip.new");
    let what = |e| Error::io(format!("make pool in {name}"), e);
    let pool = dir.join(POOL_FILE);
    if pool.exists() {
        // Nobody may have the old pool open while it is replaced.
        FileDev::open(&pool, Lock::Exclusive)?.close();
    }
    let file = File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(&temp);
    let result = file.map_err(what).and_then(|file| {
        judge_host(&file, options)?;
        set_nocow(&file);
        let size = match options.size_bytes {
            Some(n) => n,
            None => {
                statfs(&file).map(|s| s.f_bavail * u64::try_from(s.f_bsize).unwrap_or(0)).map_err(what)?
            }
        };
        drop(file);
        let layout = layout(size, options)?;
        let mut dev = FileDev::open(&temp, Lock::Exclusive)?;
        dev.truncate(layout.total_blocks * BLOCK_BYTES).map_err(what)?;
        format(&dev, layout, false)?;
        fs::rename(&temp, &pool).map_err(what)?;
        File::open(dir).and_then(|d| d.sync_all()).map_err(what)?;
        dev.close();
        Ok(())
    });
    if result.is_err() {
        let _ = fs::remove_file(&temp);
    }
    result
}

fn refuse_used_directory(dir: &Path) -> Result<()> {
    let name = dir.display();
    if dir.join(POOL_FILE).exists() {
        return Err(Error::exists(format!("{name} holds a pool already"))
            .hint("--force makes a new one and loses the old one's data"));
    }
    let entries = fs::read_dir(dir).map_err(|e| Error::io(format!("read directory {name}"), e))?;
    for entry in entries.flatten() {
        let entry = entry.file_name();
        if entry != "lost+found" && entry != ".pool.cowslip.new" {
            return Err(Error::exists(format!("{name} is not empty: it holds `{}`", entry.display()))
                .hint("give an empty directory, or --force"));
        }
    }
    Ok(())
}

/// File systems that cannot carry a pool safely (H30).
fn judge_host(file: &File, options: &InitOptions) -> Result<()> {
    const NFS: i64 = 0x6969;
    const OVERLAY: i64 = 0x794c_7630;
    const TMPFS: i64 = 0x0102_1994;
    let kind = statfs(file).map_err(|e| Error::io("ask the host's file system", e))?.f_type;
    match kind {
        NFS => Err(Error::invalid("a pool cannot lie on NFS").hint("use a local file system or a disk")),
        OVERLAY => Err(Error::invalid("a pool cannot lie on an overlay file system")
            .hint("use a volume or a host path of the container")),
        TMPFS if !options.force => {
            Err(Error::invalid("a tmpfs loses the pool at the next boot").hint("--force makes one for tests"))
        }
        _ => Ok(()),
    }
}

fn init_device(path: &Path, options: &InitOptions) -> Result<()> {
    let dev = FileDev::open(path, Lock::Exclusive)?;
    if !options.force {
        refuse_used_device(&dev, path)?;
    }
    let size = options.size_bytes.unwrap_or(dev.len());
    if size > dev.len() {
        return Err(Error::invalid(format!("{} has only {} bytes", path.display(), dev.len())));
    }
    format(&dev, layout(size, options)?, true)?;
    dev.close();
    Ok(())
}

/// Whatever a file system, a partition table or a volume manager left would be in these places.
fn refuse_used_device(dev: &dyn BlockDev, path: &Path) -> Result<()> {
    let window = 256 * 1024;
    let last = (dev.len() - dev.len() % BLOCK_BYTES).saturating_sub(window);
    for at in [0, last] {
        let mut buf = AlignedBuf::zeroed(mem(window.min(dev.len() - dev.len() % BLOCK_BYTES)));
        dev.read_at(at, &mut buf).map_err(|e| Error::io(format!("read {}", path.display()), e))?;
        if buf.iter().any(|b| *b != 0) {
            return Err(Error::exists(format!("{} is not empty: there is data at its ends", path.display()))
                .hint("wipefs shows what it is; --force overwrites it"));
        }
    }
    Ok(())
}

fn layout(size: u64, options: &InitOptions) -> Result<Layout> {
    let log = options.log_bytes.unwrap_or((size / 32).clamp(8 << 20, 128 << 20));
    plan(size, log - log % BLOCK_BYTES)
}

/// Makes a pool of the device's whole length on `dev`, whatever is there.
///
/// # Errors
/// `Invalid` when it is too small, `NoSpace`, `Io`.
pub fn format_device(dev: &dyn BlockDev, log_bytes: u64) -> Result<()> {
    let options = InitOptions { log_bytes: Some(log_bytes), ..InitOptions::default() };
    format(dev, layout(dev.len(), &options)?, false)
}

/// Writes an empty pool. `backed`: the device has all its space already.
fn format(dev: &dyn BlockDev, layout: Layout, backed: bool) -> Result<()> {
    let what = |what: &'static str| move |e| Error::io(what, e);
    let (segtab, pages) = layout.segtab;
    // Old superblocks go first: from here to the end there is no pool.
    for slot in SLOTS {
        dev.write_at(slot.offset(), &AlignedBuf::zeroed(BLOCK)).map_err(what("wipe superblock"))?;
    }
    dev.sync().map_err(what("sync"))?;
    dev.back(0, layout.data_start * BLOCK_BYTES).map_err(what("allocate the pool's tables"))?;
    zero(dev, layout.log.0, layout.log.1)?;
    zero(dev, segtab, 2 * pages)?;
    let home = Phys(layout.data_start);
    dev.back(home.offset(), 256 * BLOCK_BYTES).map_err(what("allocate the first segment"))?;
    let slots = vec![0; mem(pages.div_ceil(8))];
    let blob = Checkpoint { number: 1, slots, catalog: Catalog::new() }.encode();
    let count = blob.len().div_ceil(PAGE_PAYLOAD) as u64;
    assert!(count <= 256, "the first checkpoint of 1 PiB fits a segment");
    let first_segment = home.segment();
    let mut map = SegmentMap::new(layout.total_blocks / 256);
    map.change(Phys(0), layout.data_start, true)?;
    map.change(home, count, true)?;
    let segment = |s: u64| SegmentState {
        used: map.words(s),
        backed: backed || s <= first_segment,
        ..SegmentState::default()
    };
    let segments = layout.total_blocks / 256;
    for index in 0..pages {
        let page = segment_page(index, 1, segments, segment);
        let at = Phys(segtab + index).offset();
        dev.write_at(at, page.as_bytes()).map_err(what("write segment table"))?;
    }
    let places: Vec<Phys> = (0..count).map(|i| home.plus(i)).collect();
    let (sum, images) = link_pages(&blob, &places);
    for (p, image) in places.iter().zip(&images) {
        dev.write_at(p.offset(), image).map_err(what("write checkpoint"))?;
    }
    dev.sync().map_err(what("sync"))?;
    let mut pool_id = [0; 16];
    getrandom::fill(&mut pool_id).map_err(|e| Error::invalid(format!("no random numbers: {e}")))?;
    let mut sb = Superblock::new(pool_id, layout);
    sb.set_checkpoint(&CheckpointRef {
        lsn: Lsn(0),
        page: home,
        crc: sum,
        bytes: blob.len() as u64,
        number: 1,
        ..CheckpointRef::default()
    });
    let (slot, bytes) = sb.seal();
    dev.write_at(slot.offset(), bytes).map_err(what("write superblock"))?;
    dev.sync().map_err(what("sync"))
}

fn zero(dev: &dyn BlockDev, start: u64, blocks: u64) -> Result<()> {
    let zeros = AlignedBuf::zeroed(ZERO_STEP);
    let (mut at, end) = (start * BLOCK_BYTES, (start + blocks) * BLOCK_BYTES);
    while at < end {
        let n = (end - at).min(ZERO_STEP as u64);
        dev.write_at(at, &zeros[..mem(n)]).map_err(|e| Error::io("zero the pool's tables", e))?;
        at += n;
    }
    Ok(())
}
