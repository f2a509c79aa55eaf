//! Mounted trees, as the kernel and its callers see them.

mod fuse_fake;

use fuse_fake::{
    FakeView, ROOT,
    provider::{FakeProvider, files, tree},
};
use fuse_view::{
    FileKind, Timestamp,
    fuse::{Mounted, Options, mount_tree, mount_view},
    source::FileImage,
    tree::Contents,
};
use std::{
    fs,
    io::{ErrorKind, Read},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

/// Whether FUSE mounts can be made here; says what is missing otherwise.
fn can_mount() -> bool {
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    let device = fs::metadata("/dev/fuse").is_ok();
    if !root || !device {
        fuse_fake::skip("needs root and /dev/fuse (modprobe fuse)");
    }
    root && device
}

/// A directory to mount at; whatever is still mounted there is detached at the end, also after a failure.
struct MountPoint(Option<tempfile::TempDir>);

impl MountPoint {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Others must reach what is mounted in it.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self(Some(dir))
    }
    fn path(&self) -> &Path {
        self.0.as_ref().unwrap().path()
    }
    fn is_mounted(&self) -> bool {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        table.lines().any(|line| line.split(' ').nth(4) == self.path().to_str())
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        while self.is_mounted() {
            let done = Command::new("umount").arg("-l").arg(self.path()).status();
            if !done.is_ok_and(|status| status.success()) {
                // Better a directory left behind than a mount's files deleted.
                std::mem::forget(self.0.take());
                return;
            }
        }
    }
}

fn mount(view: FakeView, at: &MountPoint) -> Mounted {
    mount_view(Arc::new(view), at.path(), &Options::default()).unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn getfattr(path: &Path, name: &str) -> Option<String> {
    let out = Command::new("getfattr").args(["-h", "--only-values", "-n", name]).arg(path).output().unwrap();
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Runs a shell command as the user nobody; its exit and what it wrote.
fn as_nobody(command: &str) -> (bool, String) {
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).uid(65534).gid(65534);
    let out = shell.output().unwrap();
    let text = [out.stdout, out.stderr].concat();
    (out.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn every_kind_of_file_is_served_as_it_is() {
    if !can_mount() {
        return;
    }
    let mut view = FakeView::new();
    let file = view.file(ROOT, "file", b"content");
    let dir = view.dir(ROOT, "dir");
    view.link(dir, "same", file);
    view.symlink(dir, "link", b"../file");
    view.add(dir, "fifo", FileKind::Fifo, 0o600);
    view.add(dir, "socket", FileKind::Socket, 0o600);
    let device = view.add(dir, "device", FileKind::BlockDev, 0o640);
    view.node(device).attr.rdev = (259, 70_001);
    let node = view.node(file);
    (node.attr.mode, node.attr.uid, node.attr.gid) = (0o4751, 4_000_000_000, 7);
    node.attr.mtime = Timestamp { seconds: -2, nanoseconds: 800_000_000 };
    node.attr.atime = Timestamp { seconds: 1 << 34, nanoseconds: 1 };
    node.xattrs = vec![
        (b"security.test".to_vec(), b"hidden".to_vec()),
        (b"trusted.test".to_vec(), b"hidden".to_vec()),
        (b"user.note".to_vec(), b"value".to_vec()),
    ];
    view.file(ROOT, b"odd\n\xff", b"");
    view.replay = "replayed".into();
    let at = MountPoint::new();
    let options = Options { allow_other: true, ..Options::default() };
    let mounted = mount_view(Arc::new(view), at.path(), &options).unwrap();
    let to = |name: &str| at.path().join(name);

    assert_eq!(fs::read(to("file")).unwrap(), b"content");
    assert_eq!(fs::read(to("dir/link")).unwrap(), b"content");
    assert_eq!(fs::read_link(to("dir/link")).unwrap(), Path::new("../file"));
    let is = fs::metadata(to("file")).unwrap();
    assert_eq!((is.mode() & 0o7777, is.uid(), is.gid(), is.nlink()), (0o4751, 4_000_000_000, 7, 2));
    assert_eq!((is.mtime(), is.mtime_nsec()), (-2, 800_000_000));
    assert_eq!((is.atime(), is.atime_nsec()), (1 << 34, 1));
    assert_eq!(is.ino(), fs::metadata(to("dir/same")).unwrap().ino());
    let device = fs::symlink_metadata(to("dir/device")).unwrap();
    assert_eq!((device.rdev(), device.mode() & 0o7777), (libc::makedev(259, 70_001), 0o640));
    assert!(fs::symlink_metadata(to("dir/fifo")).unwrap().file_type().is_fifo());
    assert!(fs::symlink_metadata(to("dir/socket")).unwrap().file_type().is_socket());
    let odd = fs::read_dir(at.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(odd.filter(|name| name.as_bytes() == b"odd\n\xff").count(), 1);
    assert_eq!(fs::write(to("new"), "").unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    assert_eq!(fs::metadata(to("none")).unwrap_err().kind(), ErrorKind::NotFound);

    assert_eq!(getfattr(&to("file"), "user.note").as_deref(), Some("value"));
    assert_eq!(getfattr(&to("file"), "trusted.test").as_deref(), Some("hidden"));
    assert_eq!(getfattr(&to("dir"), "user.cowslip.replay").as_deref(), Some("replayed"));
    let shown = as_nobody(&format!("getfattr -m - -d {}", to("file").display())).1;
    assert!(shown.contains("user.note") && !shown.contains("hidden"), "{shown}");
    assert!(!shown.contains("user.cowslip"), "a copy with all attributes would carry it away: {shown}");

    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.contains(at.path().to_str().unwrap())).unwrap();
    for option in ["ro,nosuid,nodev,noexec", "fuse.cowslip cowslip", "default_permissions", "allow_other"] {
        assert!(line.contains(option), "{option}: {line}");
    }
    let device = line.split(' ').nth(2).unwrap();
    let read_ahead = fs::read_to_string(format!("/sys/class/bdi/{device}/read_ahead_kb"));
    assert!(read_ahead.is_err() || read_ahead.unwrap().trim() == "8192");
    drop(mounted);
    assert!(!at.is_mounted());
}

#[test]
fn data_and_holes_are_told_apart() {
    if !can_mount() {
        return;
    }
    let mut view = FakeView::new();
    let file = view.file(ROOT, "sparse", b"");
    view.write(file, 8192, &[1; 4096]);
    view.write(file, 1 << 20, b"end");
    view.node(file).attr.size = (1 << 20) + 4096;
    let at = MountPoint::new();
    let _mounted = mount(view, &at);
    let file = fs::File::open(at.path().join("sparse")).unwrap();
    let script = "import os,sys\n\
        f=os.open(sys.argv[1],os.O_RDONLY)\n\
        def at(o,w):\n try: return os.lseek(f,o,w)\n except OSError as e: return -e.errno\n\
        print(at(0,3),at(0,4),at(8192,4),at(9000,3),at(12288,3),at(1<<20,4),at((1<<20)+3,3),at(1<<21,3))\n";
    let python = Command::new("python3").args(["-c", script]).arg(at.path().join("sparse")).output();
    match python {
        Ok(out) => {
            let expected = format!("8192 0 12288 9000 1048576 {} -6 -6", (1 << 20) + 3);
            assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), expected);
        }
        Err(_) => fuse_fake::skip("SEEK_DATA needs python3"),
    }
    let mut buf = [9; 4097];
    file.read_exact_at(&mut buf, 8191).unwrap();
    assert_eq!((buf[0], &buf[1..]), (0, &[1; 4096][..]));
}

#[test]
fn damage_is_an_error_of_the_file_alone() {
    if !can_mount() {
        return;
    }
    let mut view = FakeView::new();
    view.file(ROOT, "good", b"good");
    let bad = view.file(ROOT, "bad", &[1; 10_000]);
    view.bad_data = Some((bad, 5000));
    view.node(ROOT).children.push((b"lost".to_vec(), 999));
    let dir = view.dir(ROOT, "dir");
    for name in ["a/b", "..", ".", ""] {
        view.link(dir, name, ROOT);
    }
    view.link(dir, "loop", dir);
    view.link(dir, "root", ROOT);
    view.file(dir, "fine", b"");
    let at = MountPoint::new();
    let mounted = mount(view, &at);
    let to = |name: &str| at.path().join(name);
    assert_eq!(names(at.path()), ["bad", "dir", "good", "lost"]);
    assert!(fs::symlink_metadata(to("lost")).is_err());
    assert_eq!(fs::read(to("good")).unwrap(), b"good");
    assert_eq!(fs::read(to("bad")).unwrap_err().raw_os_error(), Some(libc::EIO));
    assert!(names(&to("dir")).contains(&"fine".to_owned()));
    let walked = Command::new("find").arg(at.path()).output().unwrap();
    assert!(String::from_utf8_lossy(&walked.stdout).lines().count() < 20);
    assert!(mounted.is_alive());
}

/// Has the kernel forget the entries of `dir` that it lists from its cache, and nothing of the files.
fn forget_listing(dir: &Path) {
    let dir = fs::File::open(dir).unwrap();
    rustix::fs::fadvise(&dir, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

#[test]
fn a_listing_that_is_asked_for_again_keeps_what_is_known_of_the_files() {
    if !can_mount() {
        return;
    }
    let mut view = FakeView::new();
    let dir = view.dir(ROOT, "dir");
    // Of one name each; a directory, a hard link and a broken entry are among them.
    for i in 0..600 {
        view.file(dir, format!("file-{i}"), b"content");
    }
    let acl = [&2_u32.to_le_bytes()[..], &[1, 0, 6, 0], &[255; 4], &[4, 0, 4, 0], &[255; 4]].concat();
    let acl = [acl, [&[32, 0, 4, 0][..], &[255; 4]].concat()].concat();
    let named = view.file(dir, "named", b"");
    view.node(named).xattrs.push((b"system.posix_acl_access".to_vec(), acl));
    view.dir(dir, "inner");
    let twice = view.file(dir, "one-name", b"twice");
    view.link(ROOT, "other-name", twice);
    view.node(dir).children.push((b"lost".to_vec(), 9999));
    let view = Arc::new(view);
    let at = MountPoint::new();
    let _mounted = mount_view(view.clone(), at.path(), &Options::default()).unwrap();
    let listed = at.path().join("dir");
    // As ls -l: the entries, and of each its attributes and its access list.
    let list = || {
        let of = |name: &String| {
            let (path, mut acl) = (listed.join(name), [0; 64]);
            let is = fs::symlink_metadata(&path).ok();
            let acl = rustix::fs::lgetxattr(&path, "system.posix_acl_access", &mut acl[..]);
            (name.clone(), is.map(|is| (is.ino(), is.mode(), is.len(), is.mtime_nsec())), acl.ok())
        };
        names(&listed).iter().map(of).collect::<Vec<_>>()
    };
    let asked = || {
        let calls = &view.calls;
        [&calls.readdir, &calls.lookup, &calls.xattrs].map(|of| of.load(std::sync::atomic::Ordering::Relaxed))
    };
    let first = list();
    assert_eq!(first.len(), 604);
    assert_eq!(first.iter().filter(|(_, is, _)| is.is_none()).count(), 1, "the broken one");
    let [_, _, xattrs] = asked();
    assert!(xattrs >= 603, "every access list was asked for: {xattrs}");
    for _ in 0..3 {
        let [readdir, lookup, xattrs] = asked();
        forget_listing(&listed);
        assert_eq!(list(), first);
        let [readdir_then, lookup_then, xattrs_then] = asked();
        assert!(readdir_then > readdir, "the kernel did ask for the listing again");
        // The hard link is told in full each time, and the broken one looked up.
        assert!(
            xattrs_then - xattrs <= 1 && lookup_then - lookup <= 2,
            "{:?} then {:?}",
            (lookup, xattrs),
            (lookup_then, xattrs_then)
        );
    }
    // What the kernel drops it is told again.
    if fs::write("/proc/sys/vm/drop_caches", "2").is_ok() {
        forget_listing(&listed);
        assert_eq!(list(), first);
    }
}

#[test]
fn snapshots_appear_at_once_and_latest_follows() {
    if !can_mount() {
        return;
    }
    let provider = Arc::new(FakeProvider::default());
    provider.add("web", "one", 1);
    let snapshots = tree(&provider, 2, files);
    let at = MountPoint::new();
    let _mounted = mount_tree(snapshots.clone(), at.path(), &Options::default()).unwrap();
    let web = at.path().join("web");
    assert_eq!(names(at.path()), ["web"]);
    let latest = || fs::read_to_string(web.join("latest/name")).unwrap();
    for id in 2..6_u64 {
        let name = format!("s{id}");
        assert_eq!(fs::metadata(web.join(&name)).unwrap_err().kind(), ErrorKind::NotFound);
        names(&web);
        provider.add("web", &name, id);
        assert!(names(&web).contains(&name), "listed at once");
        assert!(fs::metadata(web.join(&name)).unwrap().is_dir());
        assert_eq!(latest(), format!("web@{name}"));
        assert_eq!(fs::read_link(web.join("latest")).unwrap(), Path::new(&name));
    }
    provider.add("new volume", "first", 50);
    assert_eq!(names(at.path()), ["new volume", "web"]);
    assert_eq!(names(&at.path().join("new volume/first/dir")), ["deep"]);
    let held = fs::File::open(web.join("one/name")).unwrap();
    for id in 2..6_u64 {
        names(&web.join(format!("s{id}")));
    }
    assert!(snapshots.open_count() <= 3, "two, and the one held");
    let mut text = String::new();
    (&held).read_to_string(&mut text).unwrap();
    assert_eq!(text, "web@one");
}

#[test]
fn listing_many_snapshots_opens_none() {
    if !can_mount() {
        return;
    }
    let provider = Arc::new(FakeProvider::default());
    for id in 1..=1000 {
        provider.add("v", &format!("s{id}"), id);
    }
    let snapshots = tree(&provider, 2, files);
    let at = MountPoint::new();
    let _mounted = mount_tree(snapshots, at.path(), &Options::default()).unwrap();
    let listed =
        Command::new("ls").args(["-la", "--color=always"]).arg(at.path().join("v")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&listed.stdout).lines().count(), 1 + 2 + 1000 + 2);
    assert_eq!(provider.opens(), 0);
}

#[test]
fn permissions_of_the_image_hold_from_the_first_look() {
    if !can_mount() {
        return;
    }
    let provider = Arc::new(FakeProvider::default());
    for (id, name) in (1..).zip(["closed", "closed-too", "open"]) {
        provider.add("v", name, id);
    }
    let snapshots = tree(&provider, 4, |text| {
        let mut view = FakeView::new();
        view.file(ROOT, "public", b"public");
        let private = view.file(ROOT, "private", b"private");
        view.node(private).attr.mode = 0o600;
        if text.starts_with("v@closed") {
            view.node(ROOT).attr.mode = 0o700;
        }
        Ok(Contents::Files(Arc::new(view)))
    });
    let at = MountPoint::new();
    let options = Options { allow_other: true, ..Options::default() };
    let _mounted = mount_tree(snapshots, at.path(), &options).unwrap();
    let v = at.path().join("v").display().to_string();
    // The stand-in attributes are known to the kernel before anybody looks inside.
    assert!(as_nobody(&format!("ls -l {v}")).0);
    for command in [
        format!("cat {v}/closed/public"),
        format!("ls {v}/closed"),
        format!("cd {v}/closed-too && ls"),
        format!("cd {v}/closed-too && cat public"),
        format!("cat {v}/open/private"),
    ] {
        let (done, text) = as_nobody(&command);
        let denied = text.contains("Permission denied") || text.contains("can't cd");
        assert!(!done && denied, "{command}: {text}");
    }
    let opened = as_nobody(&format!("cat {v}/open/public && cd {v}/open && ls"));
    assert_eq!(opened, (true, "publicprivate\npublic\n".to_owned()));
    assert_eq!(fs::read(at.path().join("v/closed/private")).unwrap(), b"private");
}

#[test]
fn walkers_in_parallel_see_everything() {
    if !can_mount() {
        return;
    }
    let mut view = FakeView::new();
    let mut expected = 1;
    for d in 0..10 {
        let dir = view.dir(ROOT, format!("d{d}"));
        for f in 0..100 {
            view.file(dir, format!("f{f}"), format!("{d}/{f}").as_bytes());
        }
        expected += 101;
    }
    let provider = Arc::new(FakeProvider::default());
    let view: Arc<FakeView> = Arc::new(view);
    for id in 1..=4 {
        provider.add("v", &format!("s{id}"), id);
    }
    let snapshots = tree(&provider, 2, move |_| Ok(Contents::Files(view.clone())));
    let at = MountPoint::new();
    let _mounted = mount_tree(snapshots, at.path(), &Options::default()).unwrap();
    std::thread::scope(|scope| {
        for walker in 0..8 {
            let root = at.path().join(format!("v/s{}", walker % 4 + 1));
            scope.spawn(move || assert_eq!(read_all(&root), expected));
        }
    });
}

/// Reads every file below `path`, whose content is its own path's end; the number of files and directories.
fn read_all(path: &Path) -> usize {
    if !path.is_dir() {
        let end: PathBuf = path.iter().rev().take(2).collect::<Vec<_>>().into_iter().rev().collect();
        let text = fs::read_to_string(path).unwrap();
        assert_eq!(end.to_str().unwrap().replace(['d', 'f'], ""), text);
        return 1;
    }
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    1 + entries.map(|entry| read_all(&entry)).sum::<usize>()
}

#[test]
fn dropping_unmounts_also_while_files_are_open() {
    if !can_mount() {
        return;
    }
    let at = MountPoint::new();
    let sample = || {
        let mut view = FakeView::new();
        view.file(ROOT, "file", &[7; 100_000]);
        view
    };
    let mounted = mount(sample(), &at);
    let held = fs::File::open(at.path().join("file")).unwrap();
    drop(mounted);
    assert!(!at.is_mounted());
    let mut buf = [0; 10];
    held.read_exact_at(&mut buf, 70_000).unwrap();
    assert_eq!(buf, [7; 10], "served until it is closed");
    drop(held);
    mount(sample(), &at).unmount().unwrap();
    assert!(!at.is_mounted());

    let mounted = mount(sample(), &at);
    assert!(mounted.is_alive());
    assert!(Command::new("umount").arg(at.path()).status().unwrap().success());
    mounted.join().unwrap();
}

#[test]
fn what_was_mounted_there_later_is_left_alone() {
    if !can_mount() {
        return;
    }
    let at = MountPoint::new();
    let first = mount(FakeView::new(), &at);
    assert!(Command::new("umount").arg(at.path()).status().unwrap().success());
    let second = mount(FakeView::new(), &at);
    drop(first);
    assert!(at.is_mounted() && second.is_alive());
    // An empty mount may be mounted on; dropping the lower one first leaves the upper one.
    let third = mount(FakeView::new(), &at);
    drop(second);
    assert!(at.is_mounted() && third.is_alive());
}

#[test]
fn unfit_mount_points_are_refused() {
    let tmp = tempfile::tempdir().unwrap();
    fs::create_dir(tmp.path().join("full")).unwrap();
    fs::write(tmp.path().join("full/file"), "").unwrap();
    let view: Arc<FakeView> = Arc::new(FakeView::new());
    for (name, why) in
        [("full", "the directory is not empty"), ("full/file", "not a directory"), ("none", "No such file")]
    {
        let dir = tmp.path().join(name);
        let refused = mount_view(view.clone(), &dir, &Options::default()).err().unwrap().to_string();
        assert!(refused.contains(why) && refused.contains(dir.to_str().unwrap()), "{refused}");
    }
}

/// Not a test by itself: serves a mount until it is killed, for the test below.
#[test]
fn child_that_serves_a_mount() {
    let Some(dir) = std::env::var_os("FUSE_TEST_SERVE_AT") else { return };
    let at = PathBuf::from(dir);
    let mut view = FakeView::new();
    view.file(ROOT, "from-child", b"");
    let mounted = mount_view(Arc::new(view), &at, &Options::default()).unwrap();
    mounted.join().unwrap();
}

#[test]
fn a_mount_whose_process_was_killed_is_replaced() {
    if !can_mount() {
        return;
    }
    let at = MountPoint::new();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_serves_a_mount"])
        .env("FUSE_TEST_SERVE_AT", at.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    while !at.path().join("from-child").exists() {
        assert!(child.try_wait().unwrap().is_none(), "the child ended");
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(at.is_mounted());
    assert!(fs::File::open(at.path().join("from-child")).and_then(|mut file| file.read(&mut [0])).is_err());
    let mut view = FakeView::new();
    view.file(ROOT, "new", b"");
    let mounted = mount(view, &at);
    assert_eq!(names(at.path()), ["new"]);
    drop(mounted);
    assert!(!at.is_mounted(), "the dead one is gone, too");
    assert!(names(at.path()).is_empty());
}

#[test]
fn an_ext4_image_shows_the_tree_it_was_made_of() {
    if !can_mount() {
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    let source = tmp.path().join("source");
    fs::create_dir_all(source.join("a/b")).unwrap();
    for i in 0..2000 {
        fs::write(source.join(format!("a/file-{i}")), format!("content {i}").repeat(i)).unwrap();
    }
    fs::hard_link(source.join("a/file-7"), source.join("a/b/linked")).unwrap();
    std::os::unix::fs::symlink("../file-9", source.join("a/b/link")).unwrap();
    fs::set_permissions(source.join("a/b"), fs::Permissions::from_mode(0o2750)).unwrap();
    let image = tmp.path().join("disk.img");
    let made =
        Command::new("mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(&source).arg(&image).arg("64M").output();
    if !made.is_ok_and(|out| out.status.success()) {
        fuse_fake::skip("needs mke2fs (e2fsprogs)");
        return;
    }
    let view = fuse_view::fs::open(Arc::new(FileImage::open(&image).unwrap())).unwrap();
    let at = MountPoint::new();
    let _mounted = mount_view(view, at.path(), &Options::default()).unwrap();
    compare(&source, at.path());
    assert_eq!(
        fs::metadata(at.path().join("a/file-7")).unwrap().ino(),
        fs::metadata(at.path().join("a/b/linked")).unwrap().ino()
    );
    assert_eq!(getfattr(&at.path().join("a"), "user.cowslip.replay").as_deref(), Some("clean"));
}

/// Compares two trees: names, types, modes, owners, times, links and content.
fn compare(a: &Path, b: &Path) {
    let shown = names(b).into_iter().filter(|name| name != "lost+found");
    assert!(names(a).into_iter().eq(shown), "{}", b.display());
    for name in names(a) {
        let (a, b) = (a.join(&name), b.join(&name));
        let (one, two) = (fs::symlink_metadata(&a).unwrap(), fs::symlink_metadata(&b).unwrap());
        let of = |is: &fs::Metadata| (is.mode(), is.uid(), is.gid(), is.nlink(), is.mtime());
        assert_eq!(of(&one), of(&two), "{}", b.display());
        match one.file_type() {
            kind if kind.is_dir() => compare(&a, &b),
            kind if kind.is_symlink() => assert_eq!(fs::read_link(&a).unwrap(), fs::read_link(&b).unwrap()),
            _ => assert!(fs::read(&a).unwrap() == fs::read(&b).unwrap(), "{}", b.display()),
        }
    }
}
