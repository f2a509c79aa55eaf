//! Paths and listings over a file system in memory, honest and hostile.

mod fuse_fake;

use fuse_fake::{FakeView, ROOT};
use fuse_view::{
    Error, FileKind,
    listing::Listing,
    walk::{find, lookup_path},
};

/// `/dir/file`, `/dir/sub/deep`, and links to them.
fn sample() -> FakeView {
    let mut view = FakeView::new();
    let dir = view.dir(ROOT, "dir");
    view.file(dir, "file", b"content");
    let sub = view.dir(dir, "sub");
    view.file(sub, "deep", b"");
    view.symlink(ROOT, "to-dir", b"dir");
    view.symlink(sub, "up", b"../file");
    view.symlink(sub, "absolute", b"/dir/sub");
    view.symlink(ROOT, "chain", b"to-dir/sub/absolute/deep");
    view.symlink(ROOT, "escape", b"../../../dir/file");
    view.symlink(ROOT, "loop", b"loop");
    view.symlink(ROOT, "dangling", b"dir/none");
    view.symlink(ROOT, "empty", b"");
    view
}

fn found(view: &FakeView, path: &str) -> String {
    match find(view, path.as_bytes(), true) {
        Ok(found) => String::from_utf8(found.path).unwrap(),
        Err(Error::NotFound(what)) => format!("not found: {what}"),
        Err(Error::WrongKind(what)) => format!("wrong: {what}"),
        Err(other) => panic!("{path}: {other}"),
    }
}

#[test]
fn paths_are_followed_inside_the_image_only() {
    let view = sample();
    for (path, expected) in [
        ("/", "/"),
        ("", "/"),
        ("..", "/"),
        ("/dir/file", "/dir/file"),
        ("dir//./file", "/dir/file"),
        ("/dir/sub/../file", "/dir/file"),
        ("/to-dir/file", "/dir/file"),
        ("/to-dir/", "/dir"),
        ("/dir/sub/up", "/dir/file"),
        ("/chain", "/dir/sub/deep"),
        ("/escape", "/dir/file"),
        ("/dir/../../dir/sub/absolute/../sub", "/dir/sub"),
        ("/none", "not found: /none"),
        ("/dir/none/deeper", "not found: /dir/none/deeper (no /dir/none)"),
        ("/dangling", "not found: /dangling (no /dir/none)"),
        ("/loop", "wrong: /loop: too many symbolic links"),
        ("/dir/file/x", "wrong: /dir/file/x: /dir/file is not a directory"),
        ("/dir/file/..", "wrong: /dir/file/..: /dir/file is not a directory"),
        ("/dir/file/", "wrong: /dir/file/ is not a directory"),
        ("/a\nb", "not found: /a\\nb"),
    ] {
        assert_eq!(found(&view, path), expected, "{path:?}");
    }
}

#[test]
fn the_last_link_is_followed_only_when_asked() {
    let view = sample();
    let link = lookup_path(&view, b"/to-dir", false).unwrap();
    let dir = lookup_path(&view, b"/to-dir", true).unwrap();
    assert_eq!(view.nodes[&link].attr.kind, FileKind::Symlink);
    assert_eq!(view.nodes[&dir].attr.kind, FileKind::Dir);
    assert_eq!(lookup_path(&view, b"/to-dir/", false).unwrap(), dir);
    assert_eq!(
        lookup_path(&view, b"/dangling", false).unwrap(),
        lookup_path(&view, b"dangling", false).unwrap()
    );
}

#[test]
fn a_chain_of_links_ends_at_the_limit() {
    let mut view = FakeView::new();
    view.file(ROOT, "l0", b"");
    for i in 1..60 {
        view.symlink(ROOT, format!("l{i}"), format!("l{}", i - 1).as_bytes());
    }
    assert!(lookup_path(&view, b"/l40", true).is_ok());
    assert!(matches!(lookup_path(&view, b"/l41", true), Err(Error::WrongKind(_))));
    // Every link names the one before it twice: the path to go would grow without end.
    for i in 1..40 {
        view.symlink(ROOT, format!("d{i}"), format!("d{0}/../d{0}", i - 1).as_bytes());
    }
    assert!(lookup_path(&view, b"/d39", true).is_err());
}

fn list(view: &FakeView, recursive: bool) -> Vec<String> {
    let mut listed = Vec::new();
    for item in Listing::new(view, ROOT, b"/", recursive) {
        match item {
            Ok(entry) => {
                let target = entry.target.map(|target| format!(" -> {}", String::from_utf8_lossy(&target)));
                let path = String::from_utf8_lossy(&entry.path).into_owned();
                listed.push(path + target.as_deref().unwrap_or(""));
            }
            Err(error) => listed.push(format!("! {error}")),
        }
        assert!(listed.len() < 100_000, "endless");
    }
    listed
}

#[test]
fn a_tree_is_listed_with_paths_and_targets() {
    let mut view = FakeView::new();
    let dir = view.dir(ROOT, "a");
    let sub = view.dir(dir, "b");
    view.symlink(sub, "link", b"/etc/passwd");
    view.file(dir, "c", b"");
    view.file(ROOT, "d", b"");
    assert_eq!(list(&view, true), ["/", "/a", "/a/b", "/a/b/link -> /etc/passwd", "/a/c", "/d"]);
    assert_eq!(list(&view, false), ["/", "/a", "/d"]);
}

#[test]
fn large_directories_are_listed_whole_at_every_depth() {
    let mut view = FakeView::new();
    let mut dir = ROOT;
    for depth in 0..5 {
        for i in 0..700 {
            view.file(dir, format!("f{depth}-{i}"), b"");
        }
        dir = view.dir(dir, "sub");
        view.file(dir, format!("after-{depth}"), b"");
    }
    assert_eq!(list(&view, true).len(), 1 + 5 * 702);
}

#[test]
fn hostile_directories_end_in_errors_not_in_loops() {
    let mut view = FakeView::new();
    let dir = view.dir(ROOT, "dir");
    view.link(dir, "again", dir);
    view.link(dir, "root", ROOT);
    view.link(ROOT, "dir2", dir);
    for name in ["..", ".", "", "a/b", "nul\0"] {
        view.link(dir, name, dir);
    }
    view.node(dir).children.push((b"lost".to_vec(), 999));
    let listed = list(&view, true);
    assert_eq!(&listed[..2], ["/", "/dir"]);
    assert!(listed[2..].iter().all(|line| line.starts_with("! /dir")), "{listed:?}");
    assert!(listed.contains(&"! /dir/again: damaged: directory 3 is met a second time".to_owned()));
    assert!(listed.contains(&"! /dir/..: damaged: a name that no file can have".to_owned()));
    assert!(listed.contains(&"! /dir/lost: not found: inode 999".to_owned()));
    assert_eq!(listed.len(), 2 + 2 + 5 + 1 + 1);
}
