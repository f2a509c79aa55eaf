//! Paths inside one file system: components, `..` and symbolic links, never leaving its root.

use crate::{Error, FileKind, FsView, Ino, Result};

/// Symbolic links followed in one lookup before it is given up, as in the kernel.
pub const MAX_SYMLINKS: u32 = 40;
/// Longest path looked up, in bytes, with the symbolic links still to be followed in it.
const MAX_PATH_BYTES: usize = 64 * 1024;

/// What a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Inode.
    pub ino: Ino,
    /// The path without symbolic links and `..`, starting with `/`.
    pub path: Vec<u8>,
}

/// Finds `path`; relative paths start at the root. With `follow_last` a symbolic link at its end is
/// followed, too.
pub fn lookup_path(view: &dyn FsView, path: &[u8], follow_last: bool) -> Result<Ino> {
    find(view, path, follow_last).map(|found| found.ino)
}

/// Like [`lookup_path`], and tells the path that was found in the end.
pub fn find(view: &dyn FsView, path: &[u8], follow_last: bool) -> Result<Found> {
    let mut walk = Walk { view, asked: path, parents: Vec::new(), names: Vec::new(), symlinks: 0 };
    // The components still to go, the next one last.
    let mut rest = components(path);
    while let Some(name) = rest.pop() {
        let last = rest.is_empty();
        // `link/` means what the link leads to.
        let follow = !last || follow_last || path.ends_with(b"/");
        walk.step(name, follow, &mut rest)?;
    }
    let ino = walk.here();
    if (path.ends_with(b"/") || path.ends_with(b"/.")) && view.attr(ino)?.kind != FileKind::Dir {
        return Err(Error::WrongKind(format!("{} is not a directory", show(path))));
    }
    let mut found = Vec::new();
    for name in &walk.names {
        found.push(b'/');
        found.extend_from_slice(name);
    }
    if found.is_empty() {
        found.push(b'/');
    }
    Ok(Found { ino, path: found })
}

/// A path as text for messages, with bytes that are not UTF-8 or not printable escaped.
pub fn show(path: &[u8]) -> String {
    let mut text = String::new();
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() { text.extend(c.escape_default()) } else { text.push(c) }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// Whether `name` may be a name in a directory. Readers promise it; who makes paths of names checks it.
pub fn is_plain_name(name: &[u8]) -> bool {
    !name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/') && !name.contains(&0)
}

struct Walk<'a> {
    view: &'a dyn FsView,
    asked: &'a [u8],
    /// Inodes below the root down to the place reached.
    parents: Vec<Ino>,
    names: Vec<Vec<u8>>,
    symlinks: u32,
}

impl Walk<'_> {
    fn here(&self) -> Ino {
        self.parents.last().copied().unwrap_or_else(|| self.view.root())
    }

    fn step(&mut self, name: Vec<u8>, follow: bool, rest: &mut Vec<Vec<u8>>) -> Result<()> {
        let dir = self.here();
        if self.view.attr(dir)?.kind != FileKind::Dir {
            let at = show(&self.names.join(&b'/'));
            return Err(Error::WrongKind(format!("{}: /{at} is not a directory", show(self.asked))));
        }
        if name == b".." {
            self.parents.pop();
            self.names.pop();
            return Ok(());
        }
        let ino = self.view.lookup(dir, &name).map_err(|error| match error {
            Error::NotFound(_) => Error::NotFound(self.missing(&name)),
            other => other,
        })?;
        if follow && self.view.attr(ino)?.kind == FileKind::Symlink {
            return self.enter_symlink(ino, rest);
        }
        self.parents.push(ino);
        self.names.push(name);
        Ok(())
    }

    fn enter_symlink(&mut self, link: Ino, rest: &mut Vec<Vec<u8>>) -> Result<()> {
        self.symlinks += 1;
        let target = self.view.readlink(link)?;
        let pending: usize = rest.iter().map(|name| name.len() + 1).sum();
        if self.symlinks > MAX_SYMLINKS || pending + target.len() > MAX_PATH_BYTES {
            return Err(Error::WrongKind(format!("{}: too many symbolic links", show(self.asked))));
        }
        if target.starts_with(b"/") {
            self.parents.clear();
            self.names.clear();
        }
        rest.extend(components(&target));
        Ok(())
    }

    /// The path as asked, and where it broke off if that is not plain from it.
    fn missing(&self, name: &[u8]) -> String {
        let mut at = self.names.join(&b'/');
        if !at.is_empty() {
            at.push(b'/');
        }
        at.extend_from_slice(name);
        let (asked, at) = (show(self.asked), show(&at));
        if asked.trim_matches('/') == at { asked } else { format!("{asked} (no /{at})") }
    }
}

/// The components of `path` in reverse, without empty ones and `.`.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|&byte| byte == b'/').rev();
    parts.filter(|name| !name.is_empty() && *name != b".").map(<[u8]>::to_vec).collect()
}
