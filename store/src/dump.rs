//! Showing what is in a pool that nobody serves, as text or JSON lines. Nothing is written.

use crate::format::node::{Child, FANOUT, span};
use crate::format::record::Record;
use crate::io::BlockDev;
use crate::io::file::{FileDev, Lock};
use crate::log::replay;
use crate::map::tree::{leaf_view, upper_entries};
use crate::pool::open_for_check::{Segments, read_checkpoint, read_segments, read_superblock};
use crate::{Error, Pool, Result};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// Writes one line an item, JSON or `key=value`.
struct Lines<'a> {
    out: &'a mut dyn Write,
    json: bool,
}

impl Lines<'_> {
    fn line(&mut self, item: &Value) -> Result<()> {
        let text = match item {
            Value::Object(fields) if !self.json => {
                let pair = |(k, v): (&String, &Value)| match v {
                    Value::String(s) => format!("{k}={s}"),
                    v => format!("{k}={v}"),
                };
                fields.iter().map(pair).collect::<Vec<_>>().join(" ")
            }
            other => other.to_string(),
        };
        writeln!(self.out, "{text}").map_err(|e| Error::io("write the dump", e))
    }
}

impl Pool {
    /// Writes what `what` names of the pool at `path`: `superblock`, `catalog`, `log`, `segments`, or
    /// `map:VOLUME` and `map:VOLUME@SNAPSHOT`; one line an item.
    ///
    /// # Errors
    /// `Invalid` for an unknown `what`; as [`Pool::open_read_only`] for the pool.
    pub fn dump(path: &Path, what: &str, json: bool, out: &mut dyn Write) -> Result<()> {
        let dev: Arc<dyn BlockDev> = Arc::new(FileDev::open(path, Lock::Shared)?);
        let mut lines = Lines { out, json };
        match what {
            "superblock" => dump_superblock(&*dev, &mut lines),
            "catalog" => dump_catalog(&*dev, &mut lines),
            "log" => dump_log(&*dev, &mut lines),
            "segments" => dump_segments(&*dev, &mut lines),
            _ => match what.strip_prefix("map:") {
                Some(version) => dump_map(dev, version, &mut lines),
                None => Err(Error::invalid(format!("`{what}` cannot be dumped"))
                    .hint("superblock, catalog, log, segments, map:VOLUME or map:VOLUME@SNAPSHOT")),
            },
        }
    }
}

fn dump_superblock(dev: &dyn BlockDev, lines: &mut Lines<'_>) -> Result<()> {
    let sb = read_superblock(dev, false)?;
    let (l, c) = (sb.layout(), sb.checkpoint());
    let hex = |id: [u8; 16]| id.iter().map(|b| format!("{b:02x}")).collect::<String>();
    lines.line(&json!({
        "pool_id": hex(sb.pool_id()), "sequence": sb.sequence(), "generation": sb.generation(),
        "clean": sb.is_clean(), "boot_id": hex(sb.boot_id()), "has_ring": sb.has_ring(),
        "total_blocks": l.total_blocks, "log_start": l.log.0, "log_blocks": l.log.1,
        "segtab_start": l.segtab.0, "segtab_pages": l.segtab.1, "crctab_start": l.crctab.0,
        "crctab_blocks": l.crctab.1, "data_start": l.data_start, "checkpoint_number": c.number,
        "checkpoint_lsn": c.lsn.0, "checkpoint_log_index": c.log_index, "checkpoint_page": c.page.0,
        "checkpoint_bytes": c.bytes,
    }))
}

fn dump_catalog(dev: &dyn BlockDev, lines: &mut Lines<'_>) -> Result<()> {
    let (checkpoint, _) = read_checkpoint(dev, &read_superblock(dev, false)?)?;
    for v in checkpoint.catalog.volumes.values() {
        lines.line(&json!({
            "volume": v.id.0, "name": v.name, "head": v.head.map(|h| h.0), "origin": v.origin.map(|o| o.0),
            "created_at": v.created_at, "attached": v.attached, "labels": v.labels,
        }))?;
    }
    for v in checkpoint.catalog.versions.values() {
        lines.line(&json!({
            "version": v.id.0, "volume": v.volume.0, "name": crate::pool::open_for_check::snapshot_name(&v.kind),
            "parent": v.parent.map(|p| p.0), "epoch": v.epoch.0, "size_blocks": v.size_blocks,
            "mapped_blocks": v.mapped_blocks, "doomed": v.doomed, "cursor": v.cursor,
            "height": v.root.height, "root": child(v.root.child),
        }))?;
    }
    Ok(())
}

fn child(c: Child) -> Value {
    match c {
        Child::Hole => json!("hole"),
        Child::Node { p, birth, crc } => json!({ "node": p.0, "birth": birth.0, "crc": crc }),
        Child::Run { p, birth } => json!({ "run": p.0, "birth": birth.0 }),
    }
}

fn dump_log(dev: &dyn BlockDev, lines: &mut Lines<'_>) -> Result<()> {
    let sb = read_superblock(dev, false)?;
    replay::from_disk(dev, &sb, &mut |record, end| {
        let item = match &record {
            Record::Map { version, l, n, p } => {
                json!({ "end": end.0, "type": "map", "version": version.0, "l": l, "n": n, "p": p.0 })
            }
            Record::Unmap { version, l, n } => {
                json!({ "end": end.0, "type": "unmap", "version": version.0, "l": l, "n": n })
            }
            other => json!({ "end": end.0, "type": "catalog", "record": format!("{other:?}") }),
        };
        lines.line(&item)
    })?;
    Ok(())
}

fn dump_segments(dev: &dyn BlockDev, lines: &mut Lines<'_>) -> Result<()> {
    let sb = read_superblock(dev, false)?;
    let (checkpoint, _) = read_checkpoint(dev, &sb)?;
    let Segments { used: map, backed, .. } = read_segments(dev, &sb, &checkpoint.slots)?;
    for (s, backed) in (0..).zip(backed) {
        if backed {
            lines.line(&json!({ "segment": s, "used": 256 - map.free_in(s) }))?;
        }
    }
    Ok(())
}

fn dump_map(dev: Arc<dyn BlockDev>, version: &str, lines: &mut Lines<'_>) -> Result<()> {
    let sb = read_superblock(&*dev, false)?;
    let (checkpoint, _) = read_checkpoint(&*dev, &sb)?;
    let root = match version.split_once('@') {
        Some((volume, name)) => checkpoint.catalog.snapshot_named(volume, name)?.root,
        None => checkpoint.catalog.live_volume(version)?.1.root,
    };
    let cache = crate::map::NodeCache::new(dev, 64 << 20);
    let mut stack = vec![(root.child, root.height, 0u64)];
    while let Some((c, level, base)) = stack.pop() {
        match c {
            Child::Hole => {}
            Child::Node { p, crc, .. } if level > 0 => {
                lines.line(&json!({ "level": level, "l": base, "child": child(c) }))?;
                let size = span(level - 1);
                let children = upper_entries(&*cache.load_now(p, crc)?)?;
                for (i, c) in (0..FANOUT).zip(children).collect::<Vec<_>>().into_iter().rev() {
                    stack.push((c, level - 1, base + i * size));
                }
            }
            _ => {
                lines.line(&json!({ "level": 0, "l": base, "child": child(c) }))?;
                for (l, entry) in (base..).zip(leaf_view(&cache, c)?) {
                    if let (Some(e), Child::Node { .. }) = (entry, c) {
                        lines.line(&json!({ "l": l, "p": e.p.0, "birth": e.birth.map(|b| b.0) }))?;
                    }
                }
            }
        }
    }
    Ok(())
}
