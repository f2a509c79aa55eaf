//! Everything of a snapshot by reading all of it.

use fuse_view::{Attr, BlockRead, FileKind, FsView, Timestamp, fs, listing::Listing};
use std::{collections::BTreeMap, sync::Arc};

/// What is compared of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    kind: FileKind,
    mode: u16,
    owner: (u32, u32),
    size_and_time: Option<(u64, Timestamp)>,
    target: Option<Vec<u8>>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    content: Vec<u8>,
}

pub type Manifest = BTreeMap<Vec<u8>, Shown>;

/// With `dir_times`, the size and time of directories too: a diff leaves them to the names in it.
pub fn manifest(source: Arc<dyn BlockRead>, dir_times: bool) -> Manifest {
    let view = fs::open(source).unwrap();
    let listing = Listing::new(&*view, view.root(), b"/", true);
    listing
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.path, shown(&*view, &entry.attr, entry.target, dir_times)))
        .collect()
}

fn shown(view: &dyn FsView, attr: &Attr, target: Option<Vec<u8>>, dir_times: bool) -> Shown {
    let mut content = Vec::new();
    if attr.kind == FileKind::File {
        content.resize(usize::try_from(attr.size).unwrap(), 0);
        let count = view.read_at(attr.ino, 0, &mut content).unwrap();
        assert_eq!(count, content.len());
    }
    Shown {
        kind: attr.kind,
        mode: attr.mode,
        owner: (attr.uid, attr.gid),
        size_and_time: (dir_times || attr.kind != FileKind::Dir).then_some((attr.size, attr.mtime)),
        target,
        xattrs: view.xattrs(attr.ino).unwrap(),
        content,
    }
}
