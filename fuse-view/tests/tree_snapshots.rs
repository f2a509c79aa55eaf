//! The tree of volumes and snapshots, without FUSE.

mod fuse_fake;

use fuse_fake::{
    FakeView, ROOT,
    provider::{Bytes, FakeProvider, files, tree},
};
use fuse_view::{
    Error, FileKind, Result,
    container::Partition,
    tree::{Contents, Lifetime, Node, REPLAY_XATTR, SnapshotEntry, SnapshotTree, Tree},
};
use std::sync::Arc;

fn walk(tree: &SnapshotTree, path: &str) -> Result<Node> {
    let names = path.split('/').filter(|name| !name.is_empty());
    names.into_iter().try_fold(tree.root(), |dir, name| tree.lookup(dir, name.as_bytes()))
}

fn names(tree: &SnapshotTree, path: &str) -> Vec<String> {
    let dir = walk(tree, path).unwrap();
    let (mut names, mut cookie) = (Vec::new(), 0);
    loop {
        // Two at a time: cookies must lead on.
        let batch = tree.readdir(dir, cookie, 2).unwrap();
        let Some(last) = batch.last() else { return names };
        cookie = last.cookie;
        names.extend(batch.into_iter().map(|entry| String::from_utf8(entry.name).unwrap()));
    }
}

fn read(tree: &SnapshotTree, path: &str) -> String {
    let file = tree.open(walk(tree, path).unwrap()).unwrap();
    let mut buf = vec![0; 4096];
    let count = file.view.read_at(file.ino, 0, &mut buf).unwrap();
    String::from_utf8(buf[..count].to_vec()).unwrap()
}

fn sample() -> Arc<FakeProvider> {
    let provider = Arc::new(FakeProvider::default());
    provider.add("web", "monday", 10);
    provider.add("web", "tuesday", 20);
    provider.add("db", "only", 15);
    provider
}

#[test]
fn volumes_snapshots_and_latest_are_listed_without_opening() {
    let provider = sample();
    let tree = tree(&provider, 4, files);
    assert_eq!(names(&tree, "/"), ["web", "db"]);
    assert_eq!(names(&tree, "/web"), ["monday", "tuesday", "latest", "by-time"]);
    for path in ["/", "/web", "/web/monday", "/web/latest"] {
        let node = walk(&tree, path).unwrap();
        tree.attr(node).unwrap();
        tree.xattr(node, b"system.posix_acl_access").unwrap();
        tree.xattr_names(node).unwrap();
        tree.statfs(node).unwrap();
        assert_ne!(tree.lifetime(node), Lifetime::Forever, "{path}");
    }
    let latest = walk(&tree, "/web/latest").unwrap();
    assert_eq!(tree.attr(latest).unwrap().kind, FileKind::Symlink);
    assert_eq!(tree.readlink(latest).unwrap(), b"tuesday");
    assert!(matches!(walk(&tree, "/none"), Err(Error::NotFound(_))));
    assert!(matches!(walk(&tree, "/web/none"), Err(Error::NotFound(_))));
    assert_eq!((provider.opens(), tree.open_count()), (0, 0));

    assert_eq!(read(&tree, "/web/monday/name"), "web@monday");
    assert_eq!(names(&tree, "/web/monday"), ["name", "dir"]);
    assert_eq!((provider.opens(), tree.open_count()), (1, 1));
    assert_eq!(tree.lifetime(walk(&tree, "/web/monday/name").unwrap()), Lifetime::Forever);
}

#[test]
fn new_deleted_and_replaced_snapshots_are_told_apart() {
    let provider = sample();
    let tree = tree(&provider, 4, files);
    let before = walk(&tree, "/web/latest").unwrap();
    let monday = walk(&tree, "/web/monday").unwrap();
    let file = walk(&tree, "/web/monday/name").unwrap();
    provider.add("web", "wednesday", 30);
    assert_eq!(names(&tree, "/web"), ["monday", "tuesday", "wednesday", "latest", "by-time"]);
    let after = walk(&tree, "/web/latest").unwrap();
    assert_ne!(before, after, "a cached target must not be shown for the new one");
    assert_eq!(tree.readlink(after).unwrap(), b"wednesday");

    provider.remove("web", "monday");
    provider.add("web", "monday", 40);
    assert!(tree.close(&[10]));
    assert!(matches!(tree.attr(file), Err(Error::NotFound(_))));
    assert_ne!(walk(&tree, "/web/monday").unwrap(), monday);
    assert_eq!(tree.readlink(walk(&tree, "/web/latest").unwrap()).unwrap(), b"monday");
}

#[test]
fn open_snapshots_are_bounded_and_those_in_use_stay() {
    let provider = Arc::new(FakeProvider::default());
    for id in 1..=10 {
        provider.add("v", &format!("s{id}"), id);
    }
    let tree = tree(&provider, 3, files);
    let held = tree.open(walk(&tree, "/v/s1/name").unwrap()).unwrap();
    for id in 2..=10 {
        assert_eq!(read(&tree, &format!("/v/s{id}/name")), format!("v@s{id}"));
        assert!(tree.open_count() <= 3, "{}", tree.open_count());
    }
    assert_eq!(provider.opens(), 10);
    assert!(!tree.close(&[1]), "a file of it is open");
    let mut buf = [0; 4];
    held.view.read_at(held.ino, 0, &mut buf).unwrap();
    assert_eq!(&buf, b"v@s1");
    read(&tree, "/v/s1/name");
    assert_eq!(provider.opens(), 10, "held open: not opened again");
    drop(held);
    tree.close_idle();
    read(&tree, "/v/s10/name");
    tree.close_idle();
    assert_eq!(tree.open_count(), 1, "only what was used since the call before");
    tree.close_idle();
    assert_eq!(tree.open_count(), 0);
    assert_eq!(read(&tree, "/v/s1/name"), "v@s1");
    assert_eq!(provider.opens(), 11);
}

#[test]
fn what_is_no_file_system_is_shown_raw_with_the_reason() {
    let provider = sample();
    let tree = tree(&provider, 4, |text| match text {
        "web@monday" => Ok(Contents::Raw),
        "web@tuesday" => Err(Error::Unsupported("zfs is not read yet".into())),
        "db@only" => Ok(Contents::Partitions(vec![
            (Partition::new(1, 0, 5, String::new()), Arc::new(Bytes(b"first".to_vec()))),
            (Partition::new(5, 5, 5, String::new()), Arc::new(Bytes(b"fifth".to_vec()))),
        ])),
        "first" => files(text),
        _ => Err(Error::Corrupt("superblock".into())),
    });
    assert_eq!(names(&tree, "/web/monday"), ["volume.raw"]);
    assert_eq!(read(&tree, "/web/monday/volume.raw"), "web@monday");
    let raw = tree.attr(walk(&tree, "/web/monday/volume.raw").unwrap()).unwrap();
    assert_eq!((raw.mode, raw.uid), (0o400, 0), "its files' permissions do not hold in it");

    assert_eq!(names(&tree, "/web/tuesday"), ["README.cowslip", "volume.raw"]);
    assert!(read(&tree, "/web/tuesday/README.cowslip").contains("zfs is not read yet"));

    assert_eq!(names(&tree, "/db/only"), ["p1", "p5"]);
    assert_eq!(read(&tree, "/db/only/p1/name"), "first");
    assert_eq!(names(&tree, "/db/only/p5"), ["README.cowslip", "partition.raw"]);
    assert!(read(&tree, "/db/only/p5/README.cowslip").contains("damaged: superblock"));
    let replay = |path| {
        let value = tree.xattr(walk(&tree, path).unwrap(), REPLAY_XATTR).unwrap();
        String::from_utf8(value.unwrap()).unwrap()
    };
    assert_eq!(replay("/db/only/p1/name"), "clean");
    assert_eq!(replay("/db/only/p5"), "partial: damaged: superblock");
    assert_eq!(replay("/web/tuesday"), "partial: zfs is not read yet");
}

#[test]
fn a_source_that_fails_is_an_error_and_is_tried_again() {
    let provider = sample();
    let failing = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let flag = failing.clone();
    let tree = tree(&provider, 4, move |text| {
        if flag.load(std::sync::atomic::Ordering::SeqCst) {
            let source = std::io::Error::from_raw_os_error(libc::EIO);
            return Err(Error::Io { what: "read".into(), source });
        }
        files(text)
    });
    let monday = walk(&tree, "/web/monday").unwrap();
    assert_eq!(tree.lookup(monday, b"name").unwrap_err().errno(), libc::EIO);
    failing.store(false, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(read(&tree, "/web/monday/name"), "web@monday");
}

#[test]
fn attributes_of_the_root_are_revealed_once_it_is_open() {
    let provider = sample();
    let tree = tree(&provider, 1, |text| {
        let mut view = FakeView::new();
        view.node(ROOT).attr.mode = if text == "db@only" { 0o700 } else { 0o755 };
        Ok(Contents::Files(Arc::new(view)))
    });
    let only = walk(&tree, "/db/only").unwrap();
    assert_eq!(tree.attr(only).unwrap().mode, 0o755, "a stand-in");
    assert!(tree.reveal(only).unwrap());
    assert_eq!(tree.attr(only).unwrap().mode, 0o700);
    assert!(!tree.reveal(only).unwrap(), "only once");
    let monday = walk(&tree, "/web/monday").unwrap();
    tree.attr(monday).unwrap();
    assert!(!tree.reveal(monday).unwrap(), "the stand-in was right");
    assert_eq!(tree.open_count(), 1);
    assert_eq!(tree.attr(only).unwrap().mode, 0o700, "remembered when it is closed");
    assert_eq!(provider.opens(), 2);
}

#[test]
fn many_threads_open_a_snapshot_once() {
    let provider = sample();
    let tree = tree(&provider, 1, |text| {
        std::thread::yield_now();
        files(text)
    });
    let node = walk(&tree, "/web/monday").unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let held = tree.open(tree.lookup(node, b"name").unwrap()).unwrap();
                assert_eq!(held.view.attr(held.ino).unwrap().size, 10);
            });
        }
    });
    assert_eq!(provider.opens(), 1);
}

#[test]
fn snapshots_are_found_by_their_time() {
    let provider = sample();
    let tree = tree(&provider, 4, files);
    let [ten, twenty] = ["@GMT-1970.01.01-00.00.10", "@GMT-1970.01.01-00.00.20"];
    assert_eq!(names(&tree, "/web/by-time"), [ten, twenty]);
    for dir in ["/web/by-time", "/web"] {
        let node = walk(&tree, &format!("{dir}/{ten}")).unwrap();
        assert_eq!(tree.attr(node).unwrap().kind, FileKind::Dir);
        assert!(matches!(walk(&tree, &format!("{dir}/@GMT-1970.01.01-00.00.11")), Err(Error::NotFound(_))));
        assert!(matches!(walk(&tree, &format!("{dir}/@GMT-nonsense")), Err(Error::NotFound(_))));
    }
    assert_eq!(provider.opens(), 0);
    assert_eq!(read(&tree, &format!("/web/{twenty}/name")), "web@tuesday");
    assert_eq!(read(&tree, &format!("/web/by-time/{ten}/name")), "web@monday");
    // A directory has one name only: those of a time are directories of their own.
    let (own, timed) = (walk(&tree, "/web/monday").unwrap(), walk(&tree, &format!("/web/{ten}")).unwrap());
    assert_ne!(own, timed);
    // Of two in one second the later one has the name; a snapshot that has the directory's name keeps it.
    let later = SnapshotEntry { name: "by-time".into(), id: 16, created_at: 15 };
    provider.volumes.lock().unwrap()[1].1.push(later);
    assert_eq!(names(&tree, "/db"), ["only", "by-time", "latest"]);
    assert_eq!(read(&tree, "/db/by-time/name"), "db@by-time");
    assert_eq!(read(&tree, "/db/@GMT-1970.01.01-00.00.15/name"), "db@by-time");
    provider.remove("web", "monday");
    assert!(walk(&tree, &format!("/web/{ten}")).is_err());
    assert_eq!(names(&tree, "/web/by-time"), [twenty]);
}

#[test]
fn thousands_of_snapshots_are_listed_without_opening_one() {
    let provider = Arc::new(FakeProvider::default());
    for id in 1..=5000 {
        provider.add("web", &format!("s{id}"), id);
    }
    let tree = tree(&provider, 4, files);
    for (path, count) in [("/web", 5002), ("/web/by-time", 5000)] {
        let dir = walk(&tree, path).unwrap();
        let (mut cookie, mut seen) = (0, 0);
        loop {
            let batch = tree.readdir(dir, cookie, 500).unwrap();
            let Some(last) = batch.last() else { break };
            cookie = last.cookie;
            seen += batch.len();
        }
        assert_eq!(seen, count, "{path}");
    }
    assert_eq!((provider.opens(), tree.open_count()), (0, 0));
}
