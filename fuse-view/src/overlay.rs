//! A source with changes laid over it, such as those of a log that is replayed without writing.
//!
//! Changes are byte ranges, of any size and alignment: bytes of their own, or another range of the base (a block of
//! the log that is the new content of a block elsewhere). A later change wins. An [`OverlayBuilder`] takes them and can
//! be read in between; an [`Overlay`] never changes.
//!
//! Memory: bytes of their own count against the budget of a [`Scratch`], which all overlays of a process may share,
//! and lie in its file beyond that. The index costs 32 bytes for each range; neighbours that continue each other are
//! one range.

mod scratch;

pub(crate) use scratch::Arena;
pub use scratch::Scratch;

use crate::{BlockRead, Error, Piece, Result};
use std::{collections::BTreeMap, ops::Range, sync::Arc};

/// The unit of [`BlockRead::identity`].
const IDENTITY_BYTES: u64 = 4096;

/// Where the bytes of a changed range are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// At this position of the arena.
    Own(u64),
    /// At this offset of the base.
    Base(u64),
}

impl Place {
    /// The place `skip` bytes further on.
    fn after(self, skip: u64) -> Self {
        match self {
            Self::Own(at) => Self::Own(at + skip),
            Self::Base(at) => Self::Base(at + skip),
        }
    }
}

/// A changed range.
#[derive(Debug, Clone, Copy)]
struct Patch {
    start: u64,
    len: u64,
    place: Place,
}

impl Patch {
    fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// Collects changes; later ones win.
pub struct OverlayBuilder {
    base: Arc<dyn BlockRead>,
    /// By start: `(length, place)`. Ranges do not overlap.
    patches: BTreeMap<u64, (u64, Place)>,
    arena: Arena,
}

impl OverlayBuilder {
    /// No changes to `base` yet; what they need besides the index comes from `scratch`.
    pub fn new(base: Arc<dyn BlockRead>, scratch: &Scratch) -> Self {
        Self { base, patches: BTreeMap::new(), arena: Arena::new(scratch) }
    }

    /// Lays `bytes` over what is at `offset`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where the range leaves the base, [`Error::Io`] where the scratch file cannot be written.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let end = self.checked_end(offset, bytes.len() as u64, "a change")?;
        let mut at = offset;
        while at < end {
            let rest = &bytes[index(at - offset)..];
            // Bytes that were changed before are changed where they are: the arena holds each offset once.
            if let Some(Patch { start, len, place: Place::Own(own) }) = self.patch_at(at) {
                let count = (start + len).min(end) - at;
                self.arena.write(own + (at - start), &rest[..index(count)])?;
                at += count;
                continue;
            }
            let next = self.next_own(at, end);
            let own = self.arena.append(&rest[..index(next - at)])?;
            self.clear(at..next);
            self.insert(Patch { start: at, len: next - at, place: Place::Own(own) });
            at = next;
        }
        Ok(())
    }

    /// Lays the `len` bytes at `from` of the **base** over what is at `offset`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where either range leaves the base.
    pub fn redirect(&mut self, offset: u64, len: u64, from: u64) -> Result<()> {
        let end = self.checked_end(offset, len, "a change")?;
        self.checked_end(from, len, "the source of a change")?;
        self.clear(offset..end);
        if from != offset && len > 0 {
            self.insert(Patch { start: offset, len, place: Place::Base(from) });
        }
        Ok(())
    }

    /// Reads with the changes made so far.
    ///
    /// # Errors
    /// As [`BlockRead::read_at`].
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = self.checked_end(offset, buf.len() as u64, "a read")?;
        let first = self.patch_at(offset);
        let from = first.map_or(offset, |patch| patch.end());
        let later = self.patches.range(from..end.max(from)).map(|(&start, &(len, place))| Patch {
            start,
            len,
            place,
        });
        read_patched(&*self.base, &self.arena, first.into_iter().chain(later), offset, buf)
    }

    /// Whether there is no change yet.
    pub fn is_empty(&self) -> bool {
        self.patches.is_empty()
    }

    /// The base with all changes.
    pub fn build(self) -> Overlay {
        let patches =
            self.patches.into_iter().map(|(start, (len, place))| Patch { start, len, place }).collect();
        Overlay { base: self.base, patches, arena: self.arena }
    }

    fn checked_end(&self, offset: u64, len: u64, what: &str) -> Result<u64> {
        let all = self.base.len();
        offset.checked_add(len).filter(|&end| end <= all).ok_or_else(|| {
            Error::Corrupt(format!("{what} of {len} bytes at {offset} lies past the end, {all} bytes"))
        })
    }

    /// The change that covers byte `at`.
    fn patch_at(&self, at: u64) -> Option<Patch> {
        let (&start, &(len, place)) = self.patches.range(..=at).next_back()?;
        (at < start + len).then_some(Patch { start, len, place })
    }

    /// Where, from `at` on, the next range with bytes of its own begins, or `end`.
    fn next_own(&self, at: u64, end: u64) -> u64 {
        let own = |(_, (_, place)): &(&u64, &(u64, Place))| matches!(place, Place::Own(_));
        self.patches.range(at..end).find(own).map_or(end, |(&start, _)| start)
    }

    /// Forgets the changes within `range`.
    fn clear(&mut self, range: Range<u64>) {
        for at in [range.start, range.end] {
            if let Some(patch) = self.patch_at(at).filter(|patch| patch.start < at) {
                let before = at - patch.start;
                self.patches.insert(patch.start, (before, patch.place));
                self.patches.insert(at, (patch.len - before, patch.place.after(before)));
            }
        }
        while let Some((&start, _)) = self.patches.range(range.clone()).next() {
            self.patches.remove(&start);
        }
    }

    /// Enters a change over nothing, as part of the one before it if it continues that.
    fn insert(&mut self, patch: Patch) {
        if let Some((&start, (len, place))) = self.patches.range_mut(..patch.start).next_back()
            && start + *len == patch.start
            && place.after(*len) == patch.place
        {
            *len += patch.len;
        } else {
            self.patches.insert(patch.start, (patch.len, patch.place));
        }
    }
}

/// A source with changes laid over it.
pub struct Overlay {
    base: Arc<dyn BlockRead>,
    /// In order, none overlapping another.
    patches: Vec<Patch>,
    arena: Arena,
}

impl Overlay {
    /// Whether any of the `len` bytes from `offset` on is changed.
    pub fn changes(&self, offset: u64, len: u64) -> bool {
        self.from(offset).first().is_some_and(|patch| patch.start < offset.saturating_add(len))
    }

    /// The changes that reach beyond `offset`.
    fn from(&self, offset: u64) -> &[Patch] {
        &self.patches[self.patches.partition_point(|patch| patch.end() <= offset)..]
    }

    /// The only place of a range that is not in several; None for several.
    fn whole(&self, range: Range<u64>) -> Option<Place> {
        match self.from(range.start).first() {
            Some(patch) if patch.start < range.end => (patch.start <= range.start
                && patch.end() >= range.end)
                .then(|| patch.place.after(range.start - patch.start)),
            _ => Some(Place::Base(range.start)),
        }
    }
}

impl BlockRead for Overlay {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let patches = self.from(offset).iter().copied();
        read_patched(&*self.base, &self.arena, patches, offset, buf)
    }

    fn len(&self) -> u64 {
        self.base.len()
    }

    /// That of the base where nothing changed; that of the source where all of a block came from one block.
    fn identity(&self, offset: u64) -> Option<(u64, u64)> {
        let start = offset - offset % IDENTITY_BYTES;
        let end = start.saturating_add(IDENTITY_BYTES).min(self.len());
        match self.whole(start..end)? {
            Place::Base(from) if from.is_multiple_of(IDENTITY_BYTES) && start < end => {
                // The last block of a source may be short: then only itself is the same.
                (from == start || end - start == IDENTITY_BYTES).then(|| self.base.identity(from))?
            }
            _ => None,
        }
    }

    fn piece(&self, offset: u64, len: usize) -> Result<Piece> {
        match self.whole(offset..offset.saturating_add(len as u64)) {
            Some(Place::Base(from)) => self.base.piece(from, len),
            _ => {
                let mut bytes = vec![0; len];
                self.read_at(offset, &mut bytes)?;
                Ok(bytes.into())
            }
        }
    }
}

/// Fills `buf` from `base`, where no patch lies, and from the patches, which come in order.
fn read_patched(
    base: &dyn BlockRead,
    arena: &Arena,
    patches: impl Iterator<Item = Patch>,
    offset: u64,
    buf: &mut [u8],
) -> Result<()> {
    let end = offset.saturating_add(buf.len() as u64);
    if end > base.len() {
        return base.read_at(offset, buf);
    }
    let mut at = offset;
    for patch in patches.take_while(|patch| patch.start < end) {
        if patch.start > at {
            base.read_at(at, &mut buf[index(at - offset)..index(patch.start - offset)])?;
            at = patch.start;
        }
        let upto = patch.end().min(end);
        let part = &mut buf[index(at - offset)..index(upto - offset)];
        match patch.place.after(at - patch.start) {
            Place::Own(own) => arena.read(own, part)?,
            Place::Base(from) => base.read_at(from, part)?,
        }
        at = upto;
    }
    if at < end { base.read_at(at, &mut buf[index(at - offset)..]) } else { Ok(()) }
}

/// A distance within a buffer.
fn index(distance: u64) -> usize {
    usize::try_from(distance).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
