//! Restoring files and directories: what arrives, what is refused, what a failure leaves.

mod fuse_fake;

use fuse_fake::{FakeView, ROOT};
use fuse_view::{
    FileKind, FsView, Timestamp,
    restore::{Error, Options, Report, restore},
};
use std::{
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
};

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

fn run(view: &FakeView, source: &str, dest: &Path, options: &Options) -> Result<Report, Error> {
    restore(view, &[source.as_bytes().to_vec()], dest, options)
}

/// With everything as the caller may: owner only as root.
fn all() -> Options<'static> {
    Options { owner: is_root(), ..Options::default() }
}

/// Names in `dir`, sorted: also what a failed restore left behind.
fn names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let out = Command::new("getfattr").args(["-h", "--only-values", "-n", name]).arg(path).output().ok()?;
    out.status.success().then_some(out.stdout)
}

#[test]
fn a_file_goes_where_cp_would_put_it() {
    let mut view = FakeView::new();
    let dir = view.dir(ROOT, "dir");
    view.file(dir, "file", b"content");
    view.file(ROOT, "other", b"other content");
    let tmp = tempfile::tempdir().unwrap();
    let to = |name: &str| tmp.path().join(name);

    let report = run(&view, "/dir/file", tmp.path(), &all()).unwrap();
    assert_eq!((report.files, report.dirs, report.bytes), (1, 0, 7));
    assert_eq!(fs::read(to("file")).unwrap(), b"content");
    run(&view, "/dir/file", &to("new-name"), &all()).unwrap();
    run(&view, "/dir", &to("new-dir/"), &all()).unwrap();
    assert_eq!(fs::read(to("new-dir/file")).unwrap(), b"content");
    restore(&view, &[b"/dir".to_vec(), b"/other".to_vec()], tmp.path(), &all()).unwrap();
    run(&view, "/", &to("root"), &all()).unwrap();
    assert_eq!(names(tmp.path()), ["dir", "file", "new-dir", "new-name", "other", "root"]);
    assert_eq!(names(&to("root")), ["dir", "other"]);

    let several = restore(&view, &[b"/dir".to_vec(), b"/other".to_vec()], &to("file"), &all());
    assert!(several.unwrap_err().to_string().ends_with("file is not a directory"));
    assert!(run(&view, "/other", &to("none/"), &all()).is_err());
    let missing = run(&view, "/other", &to("none/deeper"), &all()).unwrap_err();
    assert_eq!(missing.errno(), Some(libc::ENOENT));
    assert!(missing.to_string().contains("/none: No such file"), "{missing}");
    let unknown = run(&view, "/nothing", tmp.path(), &all()).unwrap_err();
    assert_eq!(unknown.to_string(), "/nothing: not found: /nothing");
}

#[test]
fn what_exists_is_replaced_only_when_asked_and_never_by_another_kind() {
    let mut view = FakeView::new();
    let dir = view.dir(ROOT, "dir");
    view.file(dir, "file", b"new");
    view.file(ROOT, "file", b"new");
    let tmp = tempfile::tempdir().unwrap();
    let to = |name: &str| tmp.path().join(name);
    fs::write(to("file"), b"old").unwrap();
    fs::create_dir(to("dir")).unwrap();
    fs::write(to("dir/file"), b"old").unwrap();
    fs::write(to("dir/kept"), b"kept").unwrap();

    assert!(matches!(run(&view, "/file", tmp.path(), &all()), Err(Error::Exists(_))));
    assert!(matches!(run(&view, "/dir", tmp.path(), &all()), Err(Error::Exists(_))));
    assert!(matches!(run(&view, "/", tmp.path(), &all()), Err(Error::Exists(_))));
    let overwrite = Options { overwrite: true, ..all() };
    run(&view, "/file", tmp.path(), &overwrite).unwrap();
    run(&view, "/dir", tmp.path(), &overwrite).unwrap();
    assert_eq!(fs::read(to("file")).unwrap(), b"new");
    assert_eq!(fs::read(to("dir/file")).unwrap(), b"new");
    assert_eq!(names(&to("dir")), ["file", "kept"]);

    // A file called `dir`, a directory called `file`: neither replaces the other.
    let mut swapped = FakeView::new();
    swapped.file(ROOT, "dir", b"");
    swapped.dir(ROOT, "file");
    for name in ["/dir", "/file"] {
        let refused = run(&swapped, name, tmp.path(), &overwrite);
        assert!(matches!(refused, Err(Error::WrongKind(_))), "{name}");
    }
    assert_eq!(names(tmp.path()), ["dir", "file"]);
    assert_eq!(names(&to("dir")), ["file", "kept"]);
}

#[test]
fn attributes_arrive_in_an_order_that_keeps_them() {
    let tmp = tempfile::tempdir().unwrap();
    let mut view = FakeView::new();
    let file = view.file(ROOT, "suid", b"#!");
    // cap_net_raw+ep, version 2 of struct vfs_cap_data.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].to_vec();
    let node = view.node(file);
    (node.attr.mode, node.attr.uid, node.attr.gid) = (0o6751, 1234, 5678);
    node.attr.mtime = Timestamp { seconds: -1_000_000, nanoseconds: 999_999_999 };
    node.attr.atime = Timestamp { seconds: 5_000_000_000, nanoseconds: 1 };
    node.xattrs = vec![
        (b"security.capability".to_vec(), capability.clone()),
        (b"user.empty".to_vec(), Vec::new()),
        (b"user.note".to_vec(), b"value".to_vec()),
    ];
    let report = run(&view, "/suid", tmp.path(), &Options::default()).unwrap();
    let restored = tmp.path().join("suid");
    let is = fs::symlink_metadata(&restored).unwrap();
    assert_eq!((is.mtime(), is.mtime_nsec()), (-1_000_000, 999_999_999));
    assert_eq!((is.atime(), is.atime_nsec()), (5_000_000_000, 1));
    if !is_root() {
        assert_eq!(is.mode() & 0o7777, 0o751);
        assert!(report.warnings.iter().any(|warning| warning.contains("owner")));
        fuse_fake::skip("owner and capabilities need root");
        return;
    }
    assert_eq!((is.mode() & 0o7777, is.uid(), is.gid()), (0o6751, 1234, 5678));
    if report.warnings.is_empty() && Command::new("getfattr").arg("--version").output().is_ok() {
        assert_eq!(xattr(&restored, "security.capability"), Some(capability));
        assert_eq!(xattr(&restored, "user.note").as_deref(), Some(&b"value"[..]));
        assert_eq!(xattr(&restored, "user.empty").as_deref(), Some(&b""[..]));
    } else {
        fuse_fake::skip("extended attributes need getfattr and a file system that has them");
    }

    let no_owner = Options { owner: false, overwrite: true, ..Options::default() };
    let report = run(&view, "/suid", tmp.path(), &no_owner).unwrap();
    let is = fs::symlink_metadata(&restored).unwrap();
    assert_eq!((is.mode() & 0o7777, is.uid()), (0o751, 0), "set-user-ID never goes to another owner");
    assert!(report.warnings.iter().any(|warning| warning.contains("set-user-ID")), "{report:?}");
}

#[test]
fn holes_and_sizes_are_kept() {
    let mut view = FakeView::new();
    let file = view.file(ROOT, "sparse", b"start");
    view.write(file, 64 << 20, b"end");
    view.node(file).attr.size = (1 << 30) + 7;
    view.file(ROOT, "empty", b"");
    let tmp = tempfile::tempdir().unwrap();
    let report = run(&view, "/sparse", tmp.path(), &all()).unwrap();
    run(&view, "/empty", tmp.path(), &all()).unwrap();
    let is = fs::metadata(tmp.path().join("sparse")).unwrap();
    assert_eq!((is.len(), report.bytes), ((1 << 30) + 7, 8));
    assert!(is.blocks() * 512 <= 1 << 20, "{} blocks", is.blocks());
    assert_eq!(fs::metadata(tmp.path().join("empty")).unwrap().len(), 0);
}

#[test]
fn a_tree_keeps_links_special_files_and_directory_times() {
    let mut view = FakeView::new();
    let dir = view.dir(ROOT, "tree");
    let one = view.file(dir, "one", b"shared");
    let sub = view.dir(dir, "sub");
    view.link(sub, "two", one);
    let link = view.symlink(dir, "link", b"/etc/passwd");
    view.link(sub, "same-link", link);
    view.symlink(dir, b"bad-utf8-\xff", b"../../\xfe");
    view.add(dir, "fifo", FileKind::Fifo, 0o620);
    view.add(dir, "socket", FileKind::Socket, 0o700);
    let device = view.add(dir, "null", FileKind::CharDev, 0o666);
    view.node(device).attr.rdev = (1, 3);
    view.node(sub).attr.mode = 0o555;
    view.node(dir).attr.mode = 0o1777;
    let tmp = tempfile::tempdir().unwrap();
    let report = run(&view, "/tree", tmp.path(), &all()).unwrap();
    let to = |name: &str| tmp.path().join("tree").join(name);
    assert_eq!((report.files, report.dirs), (7 + u64::from(is_root()), 2), "{report:?}");
    let ino = |name: &str| fs::symlink_metadata(to(name)).unwrap().ino();
    assert_eq!(ino("one"), ino("sub/two"));
    assert_eq!(ino("link"), ino("sub/same-link"));
    assert_eq!(fs::read_link(to("link")).unwrap(), Path::new("/etc/passwd"));
    let odd = to("").join(std::ffi::OsStr::from_bytes(b"bad-utf8-\xff"));
    assert_eq!(fs::read_link(odd).unwrap().as_os_str().as_bytes(), b"../../\xfe");
    assert!(fs::symlink_metadata(to("fifo")).unwrap().file_type().is_fifo());
    assert!(fs::symlink_metadata(to("socket")).unwrap().file_type().is_socket());
    if is_root() {
        let null = fs::symlink_metadata(to("null")).unwrap();
        assert!(null.file_type().is_char_device());
        assert_eq!(null.rdev(), libc::makedev(1, 3));
    }
    for name in ["", "sub", "link", "fifo"] {
        let is = fs::symlink_metadata(to(name)).unwrap();
        assert_eq!((is.mtime(), is.mtime_nsec()), (1_600_000_000, 123_456_789), "{name}");
    }
    assert_eq!(fs::metadata(to("")).unwrap().mode() & 0o7777, 0o1777);
    assert_eq!(fs::metadata(to("sub")).unwrap().mode() & 0o7777, 0o555);
    assert_eq!(names(tmp.path()), ["tree"], "no temporary names");
    fs::set_permissions(to("sub"), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn merging_keeps_hard_links_between_new_and_existing_directories() {
    let mut view = FakeView::new();
    let tree = view.dir(ROOT, "tree");
    let new = view.dir(tree, "a-new");
    let old = view.dir(tree, "b-old");
    let file = view.file(new, "first", b"shared");
    view.link(old, "second", file);
    let tmp = tempfile::tempdir().unwrap();
    fs::create_dir_all(tmp.path().join("tree/b-old")).unwrap();
    let overwrite = Options { overwrite: true, ..all() };
    for round in 0..2 {
        let report = run(&view, "/tree", tmp.path(), &overwrite).unwrap();
        let is = fs::metadata(tmp.path().join("tree/a-new/first")).unwrap();
        assert_eq!(is.ino(), fs::metadata(tmp.path().join("tree/b-old/second")).unwrap().ino(), "{round}");
        assert_eq!(report.warnings, Vec::<String>::new());
        assert_eq!(names(&tmp.path().join("tree/b-old")), ["second"]);
        assert_eq!(names(&tmp.path().join("tree/a-new")), ["first"]);
    }
}

#[test]
fn links_at_the_destination_are_not_followed() {
    let outside = tempfile::tempdir().unwrap();
    let tmp = tempfile::tempdir().unwrap();
    let mut view = FakeView::new();
    let tree = view.dir(ROOT, "tree");
    let sub = view.dir(tree, "sub");
    view.file(sub, "file", b"hostile");
    let overwrite = Options { overwrite: true, ..all() };
    fs::create_dir(tmp.path().join("tree")).unwrap();
    symlink(outside.path(), tmp.path().join("tree/sub")).unwrap();
    assert!(matches!(run(&view, "/tree", tmp.path(), &overwrite), Err(Error::WrongKind(_))));
    // The image brings the link itself, then a directory of the same name behind it.
    let mut double = FakeView::new();
    let tree = double.dir(ROOT, "tree2");
    double.symlink(tree, "sub", outside.path().as_os_str().as_bytes());
    let sub = double.dir(tree, "sub");
    double.file(sub, "file", b"hostile");
    assert!(run(&double, "/tree2", tmp.path(), &overwrite).is_err());
    assert_eq!(names(outside.path()), Vec::<String>::new());
    assert_eq!(names(tmp.path()), ["tree"]);
}

#[test]
fn hostile_names_and_loops_are_refused_and_leave_nothing() {
    for name in ["..", ".", "", "a/b", "../../x", "nul\0"] {
        let tmp = tempfile::tempdir().unwrap();
        let mut view = FakeView::new();
        let tree = view.dir(ROOT, "tree");
        view.file(tree, "good", b"");
        view.file(tree, name, b"hostile");
        let error = run(&view, "/tree", tmp.path(), &all()).unwrap_err().to_string();
        assert!(error.contains("a name that no file can have"), "{error}");
        assert_eq!(names(tmp.path()), Vec::<String>::new());
    }
    let tmp = tempfile::tempdir().unwrap();
    let mut view = FakeView::new();
    let tree = view.dir(ROOT, "tree");
    view.link(tree, "again", tree);
    view.link(tree, "and-again", tree);
    let dry = Options { dry_run: true, ..all() };
    assert!(run(&view, "/tree", tmp.path(), &dry).is_err());
    let error = run(&view, "/tree", tmp.path(), &all()).unwrap_err();
    assert!(error.to_string().len() < 5000);
    assert_eq!(names(tmp.path()), Vec::<String>::new());
}

#[test]
fn an_unreadable_file_fails_by_name_and_the_old_one_stays() {
    let mut view = FakeView::new();
    let tree = view.dir(ROOT, "tree");
    let file = view.file(tree, "file", &[7; 5000]);
    view.bad_data = Some((file, 4096));
    let tmp = tempfile::tempdir().unwrap();
    fs::write(tmp.path().join("file"), b"old").unwrap();
    let overwrite = Options { overwrite: true, ..all() };
    for source in ["/tree/file", "/tree"] {
        let error = run(&view, source, tmp.path(), &overwrite).unwrap_err();
        assert!(error.to_string().ends_with("/file: damaged: checksum"), "{error}");
        assert_eq!(error.errno(), Some(libc::EIO));
    }
    assert_eq!(fs::read(tmp.path().join("file")).unwrap(), b"old");
    assert_eq!(names(tmp.path()), ["file"]);
}

#[test]
fn cancelling_leaves_nothing_half_done() {
    let mut view = FakeView::new();
    let tree = view.dir(ROOT, "tree");
    for i in 0..10 {
        view.file(tree, format!("f{i}"), b"data");
    }
    let tmp = tempfile::tempdir().unwrap();
    fs::write(tmp.path().join("f0"), b"old").unwrap();
    for (source, after) in [("/tree", 5), ("/tree", 1), ("/tree/f0", 0)] {
        let cancel = AtomicBool::new(false);
        let progress =
            |now: fuse_view::restore::Progress| cancel.store(now.files >= after, Ordering::Relaxed);
        let options = Options { overwrite: true, cancel: Some(&cancel), progress: Some(&progress), ..all() };
        assert!(matches!(run(&view, source, tmp.path(), &options), Err(Error::Cancelled)));
        assert_eq!(names(tmp.path()), ["f0"]);
        assert_eq!(fs::read(tmp.path().join("f0")).unwrap(), b"old");
    }
}

#[test]
fn a_dry_run_tells_and_changes_nothing() {
    let mut view = FakeView::new();
    let tree = view.dir(ROOT, "tree");
    let file = view.file(tree, "file", b"12345");
    view.write(file, 1 << 20, b"678");
    view.symlink(tree, "link", b"file");
    view.link(tree, "hard", file);
    let tmp = tempfile::tempdir().unwrap();
    let dry = Options { dry_run: true, ..all() };
    let report = run(&view, "/tree", tmp.path(), &dry).unwrap();
    assert_eq!((report.files, report.dirs, report.bytes), (3, 1, 8));
    assert_eq!(names(tmp.path()), Vec::<String>::new());
    fs::create_dir(tmp.path().join("tree")).unwrap();
    assert!(matches!(run(&view, "/tree", tmp.path(), &dry), Err(Error::Exists(_))));
    let dry = Options { overwrite: true, ..dry };
    assert_eq!(run(&view, "/tree", tmp.path(), &dry).unwrap().files, 3);
    assert_eq!(names(&tmp.path().join("tree")), Vec::<String>::new());
    // And it tells what is then done.
    let report = run(&view, "/tree", tmp.path(), &Options { overwrite: true, ..all() }).unwrap();
    assert_eq!((report.files, report.dirs, report.bytes), (3, 1, 8));
}

/// A tmpfs of 1 MiB, unmounted when dropped.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn new(options: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "none"]).arg(dir.path()).output();
        mount.ok()?.status.success().then_some(Self(dir))
    }
    fn path(&self) -> PathBuf {
        self.0.path().to_owned()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).output();
    }
}

#[test]
fn a_full_or_read_only_disk_fails_by_name_and_leaves_the_old() {
    let mut view = FakeView::new();
    let tree = view.dir(ROOT, "tree");
    view.file(tree, "small", b"x");
    view.file(tree, "large", &vec![1; 2 << 20]);
    let (Some(small), Some(read_only)) = (Tmpfs::new("size=1M"), Tmpfs::new("ro")) else {
        fuse_fake::skip("mounting a tmpfs needs root");
        return;
    };
    fs::write(small.path().join("large"), b"old").unwrap();
    let overwrite = Options { overwrite: true, ..Options::default() };
    for source in ["/tree/large", "/tree"] {
        let error = run(&view, source, &small.path(), &overwrite).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOSPC), "{error}");
        assert!(error.to_string().contains("/large: No space left"), "{error}");
        assert_eq!(names(&small.path()), ["large"]);
        assert_eq!(fs::read(small.path().join("large")).unwrap(), b"old");
    }
    for source in ["/tree/small", "/tree"] {
        let error = run(&view, source, &read_only.path(), &overwrite).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EROFS), "{error}");
    }
}

#[test]
fn where_one_may_not_write_the_old_stays() {
    if !is_root() {
        fuse_fake::skip("becoming another user needs root");
        return;
    }
    let mut view = FakeView::new();
    let tree = view.dir(ROOT, "tree");
    view.file(tree, "file", b"new");
    let tmp = tempfile::tempdir().unwrap();
    let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    set(tmp.path(), 0o755);
    // Nobody makes anything in the first; in the second nobody replaces what is somebody else's.
    let cases = [("closed", 0o755, libc::EACCES), ("sticky", 0o1777, libc::EPERM)];
    for (name, mode, _) in cases {
        let dir = tmp.path().join(name);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("file"), b"old").unwrap();
        set(&dir, mode);
    }
    let view = &view;
    let errors = std::thread::scope(|scope| {
        let as_nobody = scope.spawn(|| {
            // Of this thread alone.
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(65534)).unwrap();
            let options = || Options { overwrite: true, owner: false, ..Options::default() };
            let sources = ["/tree/file", "/tree"];
            cases.map(|(name, ..)| {
                sources.map(|source| run(view, source, &tmp.path().join(name), &options()).err())
            })
        });
        as_nobody.join().unwrap()
    });
    for ((name, _, errno), [file, dir]) in cases.into_iter().zip(errors) {
        let error = file.expect("it is refused");
        assert_eq!(error.errno(), Some(errno), "{error}");
        assert!(error.to_string().contains(&format!("/{name}/file: ")), "{error}");
        let there = names(&tmp.path().join(name));
        if name == "closed" {
            assert_eq!(dir.and_then(|error| error.errno()), Some(errno));
            assert_eq!(there, ["file"]);
        } else {
            assert!(dir.is_none(), "a directory beside it is one's own: {dir:?}");
            assert_eq!(there, ["file", "tree"]);
        }
        assert_eq!(fs::read(tmp.path().join(name).join("file")).unwrap(), b"old");
    }
}

#[test]
fn the_fake_holds_what_it_was_given() {
    let mut view = FakeView::new();
    let file = view.file(ROOT, "file", b"abc");
    view.write(file, 10, b"xyz");
    let mut buf = [9; 16];
    assert_eq!(view.read_at(file, 1, &mut buf).unwrap(), 12);
    assert_eq!(&buf[..12], b"bc\0\0\0\0\0\0\0xyz");
    assert_eq!(view.next_data(file, 3).unwrap(), Some(10..13));
}

#[test]
fn an_interrupted_restore_goes_on() {
    let mut view = FakeView::new();
    let dir = view.dir(ROOT, "tree");
    let sub = view.dir(dir, "sub");
    view.file(dir, "first", b"first");
    view.file(sub, "second", b"second");
    let out = tempfile::tempdir().unwrap();
    let resume = || Options { resume: true, owner: false, ..Options::default() };
    let dest = out.path().join("tree");
    let report = run(&view, "/tree", out.path(), &resume()).unwrap();
    assert_eq!((report.files, report.dirs, report.kept), (2, 2, 0));
    // One is gone, one is half there: another size.
    fs::remove_file(dest.join("sub/second")).unwrap();
    fs::write(dest.join("first"), "fir").unwrap();
    let again = run(&view, "/tree", out.path(), &resume());
    assert!(matches!(again, Err(Error::Exists(_))), "what is not ours is not replaced unasked: {again:?}");
    let report = run(&view, "/tree", out.path(), &Options { overwrite: true, ..resume() }).unwrap();
    // The one that was gone came back before the other one ended the second run, or now.
    assert_eq!(report.files + report.kept, 2);
    assert!(report.files > 0);
    let report = run(&view, "/tree", out.path(), &resume()).unwrap();
    assert_eq!((report.files, report.kept, report.bytes), (0, 2, 0));
    assert_eq!(fs::read(dest.join("first")).unwrap(), b"first");
    assert_eq!(fs::read(dest.join("sub/second")).unwrap(), b"second");
    assert_eq!(names(&dest), ["first", "sub"]);
}
