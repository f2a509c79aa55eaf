//! The processes that parse images: what they may do, and what happens when they die. On images made here, with the
//! program's own workers and without an agent.

mod common;

use common::{eventually, tool};
use fuse_view::{
    BlockRead, Error, FsView, Ino,
    cache::CacheBudget,
    diff::{self, Difference, Found, Ranges},
    history::{Change, Changes, History},
    source::FileImage,
    tree::{Contents, SnapshotEntry},
    versions::{self, Told, Version},
    worker::{Event, EventKind, Holds, Options, Reader, Sides, Workers},
};
use std::{
    ffi::OsStr,
    fs,
    ops::Range,
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

/// An image, and what told of its workers.
struct Rig {
    _dir: tempfile::TempDir,
    file: PathBuf,
    events: Arc<Mutex<Vec<Event>>>,
    reader: Arc<Reader>,
}

/// An ext4 image and a reader for it; None, with the reason printed, where e2fsprogs is missing.
fn rig(change: impl FnOnce(&mut Options)) -> Option<Rig> {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("many")).unwrap();
    for n in 0..700 {
        fs::write(tree.join(format!("many/{n:03}")), format!("content of {n}")).unwrap();
    }
    let big: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).take(3_000_001).collect();
    fs::write(tree.join("big"), big).unwrap();
    fs::File::create(tree.join("holes")).unwrap().set_len(5 << 20).unwrap();
    symlink("many/007", tree.join("link")).unwrap();
    let file = dir.path().join("disk.img");
    fs::File::create(&file).unwrap().set_len(32 << 20).unwrap();
    let words = ["-q", "-F", "-t", "ext4", "-d"].map(OsStr::new);
    let words = [&words[..], &[tree.as_os_str(), file.as_os_str()]].concat();
    if tool("mke2fs", &words).is_none() {
        common::skip("mke2fs is missing; install e2fsprogs");
        return None;
    }
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    let mut options = Options {
        program: env!("CARGO_BIN_EXE_cowslip").into(),
        user: is_root.then_some((65534, 65534)),
        ..Options::default()
    };
    change(&mut options);
    let events = Arc::<Mutex<Vec<Event>>>::default();
    let told = events.clone();
    let workers = Workers::new(options, move |event| {
        // Kernels without one of the walls are told of elsewhere.
        if event.kind != EventKind::Unprotected {
            told.lock().unwrap().push(event.clone());
        }
    });
    Some(Rig { _dir: dir, file, events, reader: workers.reader(7, "vol") })
}

impl Rig {
    fn open(&self) -> Arc<dyn FsView> {
        match self.reader.open("snap", Arc::new(FileImage::open(&self.file).unwrap())) {
            Ok(Holds::Files(view)) => view,
            Ok(_) => panic!("no file system"),
            Err(error) => panic!("{error}\n{:?}", self.events.lock().unwrap()),
        }
    }

    fn pid(&self) -> u32 {
        self.reader.process_id().expect("a worker runs")
    }

    /// The only event so far.
    fn event(&self) -> Event {
        let events = self.events.lock().unwrap();
        assert_eq!(events.len(), 1, "{events:?}");
        events[0].clone()
    }
}

/// The same file system read in this process.
fn direct(file: &Path) -> Arc<dyn FsView> {
    let source = Arc::new(FileImage::open(file).unwrap());
    match Contents::open(source, &CacheBudget::new(8 << 20)).unwrap() {
        Contents::Files(view) => view,
        _ => panic!("no file system"),
    }
}

fn signal(name: &str, pid: u32) {
    let status = std::process::Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status();
    assert!(status.unwrap().success());
}

/// Everything that a view tells, as text.
fn all_of(view: &dyn FsView) -> String {
    let mut text = format!("{} {} {} {:?}\n", view.format(), view.label(), view.replay(), view.statfs());
    let mut pending: Vec<(String, Ino)> = vec![("/".into(), view.root())];
    while let Some((path, dir)) = pending.pop() {
        let mut cookie = 0;
        loop {
            let listing = view.list(dir, cookie, 100).unwrap();
            let Some((last, _)) = listing.entries.last() else { break };
            cookie = last.cookie;
            for (entry, attr) in listing.entries {
                let attr = attr.unwrap();
                let name = format!("{path}{}", String::from_utf8_lossy(&entry.name));
                assert_eq!(view.lookup_attr(dir, &entry.name).unwrap(), (entry.ino, attr.clone()));
                assert_eq!(view.attr(entry.ino).unwrap(), attr);
                let kind = attr.kind;
                text.push_str(&format!("{name} {attr:?} {:?}\n", view.xattrs(entry.ino).unwrap()));
                match kind {
                    fuse_view::FileKind::Dir => pending.push((format!("{name}/"), entry.ino)),
                    fuse_view::FileKind::Symlink => {
                        text.push_str(&format!("{:?}\n", view.readlink(entry.ino).unwrap()));
                    }
                    _ => text.push_str(&content(view, entry.ino)),
                }
            }
        }
    }
    text
}

/// A file's content read in pieces of several sizes, as a digest, and where it lies.
fn content(view: &dyn FsView, ino: Ino) -> String {
    let mut digest = blake3::Hasher::new();
    let (mut at, mut sizes) = (0, [700, 4096, 100_000, 1 << 20, 2_000_000].into_iter().cycle());
    loop {
        let mut buf = vec![0xee; sizes.next().unwrap()];
        let count = view.read_at(ino, at, &mut buf).unwrap();
        digest.update(&buf[..count]);
        at += count as u64;
        if count < buf.len() {
            break;
        }
    }
    let (data, extent) = (view.next_data(ino, 0).unwrap(), view.extent(ino, 0).unwrap());
    format!("{} {at} {data:?} {extent:?} {:?}\n", digest.finalize(), view.inode_at(ino).unwrap())
}

#[test]
fn a_worker_shows_what_its_readers_do() {
    let Some(rig) = rig(|_| ()) else { return };
    let view = rig.open();
    assert_eq!(all_of(&*view), all_of(&*direct(&rig.file)));
    assert!(matches!(view.lookup(view.root(), b"none"), Err(Error::NotFound(_))));
    assert!(matches!(view.readlink(view.root()), Err(Error::WrongKind(_))));
    assert_eq!(view.bookkeeping().unwrap(), direct(&rig.file).bookkeeping().unwrap());
    assert!(rig.events.lock().unwrap().is_empty());
}

#[test]
fn partitions_and_raw_bytes_are_found() {
    let Some(rig) = rig(|_| ()) else { return };
    let mut disk = vec![0; 1 << 20];
    disk[446 + 4] = 0x83;
    disk[446 + 8..446 + 12].copy_from_slice(&2048_u32.to_le_bytes());
    disk[446 + 12..446 + 16].copy_from_slice(&65536_u32.to_le_bytes());
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk.extend(fs::read(&rig.file).unwrap());
    let file = rig.file.with_file_name("parted.img");
    fs::write(&file, disk).unwrap();
    let image: Arc<dyn BlockRead> = Arc::new(FileImage::open(&file).unwrap());
    let Ok(Holds::Partitions(table)) = rig.reader.open("disk", image) else { panic!("no partitions") };
    assert_eq!((table.len(), table[0].0.number, table[0].0.offset), (1, 1, 1 << 20));
    let Ok(Holds::Files(view)) = rig.reader.open("disk", table[0].1.clone()) else { panic!("no files") };
    assert_eq!(all_of(&*view), all_of(&*direct(&rig.file)));

    fs::write(&file, vec![0; 1 << 20]).unwrap();
    let image = Arc::new(FileImage::open(&file).unwrap());
    assert!(matches!(rig.reader.open("raw", image), Ok(Holds::Raw)));
}

#[test]
fn a_worker_has_no_privileges() {
    let Some(rig) = rig(|options| options.arguments = ["--probe-at", "probe"].map(Into::into).to_vec())
    else {
        return;
    };
    let view = rig.open();
    let pid = rig.pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim_start_matches(':').split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Seccomp"), "2");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        assert_eq!(field("Uid"), "65534 65534 65534 65534");
        assert_eq!(field("Gid"), "65534 65534 65534 65534");
        assert_eq!(field("Groups"), "");
        // Not dumpable: its files in /proc are root's.
        assert_eq!(fs::metadata(format!("/proc/{pid}/mem")).unwrap().uid(), 0);
        for descriptor in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
            let path = descriptor.unwrap().path();
            let shows = fs::read_link(&path).unwrap().display().to_string();
            let known = ["socket:", "pipe:", "/memfd:cowslip-lane", "/dev/null"];
            let scratch = shows.ends_with("(deleted)") && shows.contains('#');
            assert!(scratch || known.iter().any(|known| shows.starts_with(known)), "{shows}");
        }
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().nth(1).unwrap_or_default().to_owned()
    };
    assert_eq!((limit("Max core file size"), limit("Max processes")), ("0".into(), "0".into()));
    assert!(limit("Max data size").parse::<u64>().unwrap() < 1 << 30);
    assert!(limit("Max open files").parse::<u64>().unwrap() < 64);
    let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    assert_eq!(score.trim(), "500");

    // What it tries all the same.
    let report = view.lookup(view.root(), b"probe").unwrap_err().to_string();
    assert_eq!(report, "worked: .");
    assert_eq!(rig.pid(), pid, "the attempt does not end it");
}

#[test]
fn a_killed_worker_is_replaced() {
    let Some(rig) = rig(|_| ()) else { return };
    let view = rig.open();
    let before = all_of(&*view);
    let link = view.lookup(view.root(), b"link").unwrap();
    for round in 1..=3 {
        let pid = rig.pid();
        signal("KILL", pid);
        assert!(matches!(view.readlink(link), Err(Error::Io { .. })));
        assert_ne!(rig.pid(), pid);
        assert_eq!(all_of(&*view), before);
        let events = rig.events.lock().unwrap();
        assert_eq!(events.len(), round);
        let event = &events[round - 1];
        assert_eq!(
            (event.kind, event.reader.as_str(), event.source.as_str()),
            (EventKind::Ended, "vol", "snap")
        );
        assert!(event.message.contains("vol@snap") && event.message.contains("SIGKILL"), "{event:?}");
    }
}

#[test]
fn under_load_no_byte_is_wrong_however_often_it_is_killed() {
    let Some(rig) = rig(|_| ()) else { return };
    let (view, expected) = (rig.open(), direct(&rig.file));
    let (stop, wrong, right) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    let dir = expected.lookup(expected.root(), b"many").unwrap();
    let read_all = |seed: u32| {
        for n in (0..u32::MAX).map(|n| (n * 13 + seed) % 700) {
            let name = format!("{n:03}");
            let file = view.lookup(dir, name.as_bytes());
            let read = file.and_then(|ino| {
                let mut buf = [0; 64];
                let count = view.read_at(ino, 0, &mut buf)?;
                Ok(buf[..count].to_vec())
            });
            match read {
                Ok(bytes) if bytes == format!("content of {n}").as_bytes() => {
                    right.fetch_add(1, Ordering::SeqCst)
                }
                Err(Error::Io { .. }) => 0,
                other => {
                    eprintln!("{name}: {other:?}");
                    wrong.fetch_add(1, Ordering::SeqCst)
                }
            };
            if stop.load(Ordering::SeqCst) {
                break;
            }
        }
    };
    std::thread::scope(|scope| {
        for seed in 0..6 {
            scope.spawn(move || read_all(seed * 100));
        }
        for _ in 0..8 {
            let before = right.load(Ordering::SeqCst);
            eventually("they read on", || right.load(Ordering::SeqCst) > before + 50);
            if let Some(pid) = rig.reader.process_id() {
                signal("KILL", pid);
            }
        }
        let before = right.load(Ordering::SeqCst);
        eventually("they read on", || right.load(Ordering::SeqCst) > before + 50);
        stop.store(true, Ordering::SeqCst);
    });
    assert_eq!(wrong.load(Ordering::SeqCst), 0);
    assert_eq!(rig.events.lock().unwrap().len(), 8);
}

#[test]
fn a_stopped_worker_is_noticed() {
    let Some(rig) = rig(|_| ()) else { return };
    let view = rig.open();
    let pid = rig.pid();
    signal("STOP", pid);
    let stat = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    eventually("it is stopped", || stat().contains(") T "));
    assert!(matches!(view.attr(view.root()), Err(Error::Io { .. })));
    assert!(rig.event().message.contains("stopped"), "{:?}", rig.event());
    assert!(view.attr(view.root()).is_ok());
}

#[test]
fn a_worker_that_does_not_answer_is_killed() {
    let hook = ["--spin-at", "many"].map(Into::into).to_vec();
    let Some(rig) = rig(|options| (options.arguments, options.patience) = (hook, Duration::from_millis(300)))
    else {
        return;
    };
    let view = rig.open();
    let pid = rig.pid();
    assert!(matches!(view.lookup(view.root(), b"many"), Err(Error::Io { .. })));
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "it still runs");
    assert!(rig.event().message.contains("did not answer"), "{:?}", rig.event());
    assert!(view.lookup(view.root(), b"big").is_ok());
}

#[test]
fn a_panic_is_an_error_of_io_and_its_words_are_told() {
    let Some(rig) = rig(|options| options.arguments = ["--panic-at", "big"].map(Into::into).to_vec()) else {
        return;
    };
    let view = rig.open();
    assert!(matches!(view.lookup(view.root(), b"big"), Err(Error::Io { .. })));
    assert!(view.lookup(view.root(), b"many").is_ok());
    let message = rig.event().message;
    assert!(message.contains("the test wants a panic") && message.contains("another one runs"), "{message}");
}

#[test]
fn dying_over_and_over_costs_little() {
    let Some(rig) = rig(|options| options.arguments = ["--panic-at", "big"].map(Into::into).to_vec()) else {
        return;
    };
    let view = rig.open();
    eventually("it is not started any more", || {
        let error = view.lookup(view.root(), b"big").unwrap_err().to_string();
        error.contains("too often")
    });
    // And again some time later.
    eventually("another one serves", || view.lookup(view.root(), b"many").is_ok());
}

/// An image that counts who asks it for identities.
struct Asked {
    image: FileImage,
    has: bool,
    times: AtomicU64,
}

impl BlockRead for Asked {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.image.read_at(offset, buf)
    }

    fn len(&self) -> u64 {
        self.image.len()
    }

    fn has_identities(&self) -> bool {
        self.has
    }

    fn identity(&self, offset: u64) -> Option<(u64, u64)> {
        self.times.fetch_add(1, Ordering::SeqCst);
        Some((offset, 1))
    }
}

#[test]
fn identities_are_asked_for_where_there_are_some() {
    for has in [true, false] {
        let Some(rig) = rig(|_| ()) else { return };
        let image = FileImage::open(&rig.file).unwrap();
        let blocks = Arc::new(Asked { image, has, times: AtomicU64::new(0) });
        let Holds::Files(view) = rig.reader.open("snap", blocks.clone()).unwrap() else {
            panic!("no file system");
        };
        assert_eq!(all_of(&*view), all_of(&*direct(&rig.file)));
        assert_eq!(blocks.times.load(Ordering::SeqCst) > 0, has);
    }
}

#[test]
fn a_program_that_is_no_worker_is_told() {
    let Some(rig) = rig(|options| options.program = "/bin/false".into()) else { return };
    let image = Arc::new(FileImage::open(&rig.file).unwrap());
    assert!(matches!(rig.reader.open("snap", image), Err(Error::Io { .. })));
    assert_eq!(rig.event().kind, EventKind::NotStarted);
}

#[test]
fn a_worker_ends_with_its_host() {
    let Some(rig) = rig(|_| ()) else { return };
    let view = rig.open();
    let pid = rig.pid();
    let Rig { reader, .. } = rig;
    drop(reader);
    assert!(Path::new(&format!("/proc/{pid}")).exists(), "a file system is open");
    drop(view);
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "it still runs");
}

/// Images as the snapshots of one volume, numbered from 1, each shown `repeated` times.
struct Images {
    all: Vec<Vec<u8>>,
    repeated: usize,
}

/// An image in memory.
struct Memory(Vec<u8>);

impl BlockRead for Memory {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let past = || Error::Corrupt("past the end".into());
        let at = usize::try_from(offset).map_err(|_| past())?;
        buf.copy_from_slice(self.0.get(at..at + buf.len()).ok_or_else(past)?);
        Ok(())
    }

    fn len(&self) -> u64 {
        self.0.len() as u64
    }
}

impl Images {
    fn of(&self, id: u64) -> &[u8] {
        &self.all[(usize::try_from(id).unwrap() - 1) / self.repeated]
    }
}

impl History for Images {
    fn snapshots(&self) -> Result<Vec<SnapshotEntry>, Error> {
        let entry = |id: u64| SnapshotEntry { name: format!("snapshot-number-{id}"), id, created_at: 7 };
        Ok((1..=(self.all.len() * self.repeated) as u64).map(entry).collect())
    }

    fn open(&self, snapshot: &SnapshotEntry) -> Result<Arc<dyn BlockRead>, Error> {
        Ok(Arc::new(Memory(self.of(snapshot.id).to_vec())))
    }

    fn changes(&self, from: u64, read: &[Range<u64>], watch: &[Range<u64>]) -> Result<Changes, Error> {
        // Up to the next snapshot that is another image.
        let next = (from - 1) / self.repeated as u64 * self.repeated as u64 + self.repeated as u64 + 1;
        if next > (self.all.len() * self.repeated) as u64 {
            return Ok(Changes { end: true, through: next - 1, ..Changes::default() });
        }
        let at = |offset: u64| {
            let start = usize::try_from(offset).unwrap();
            start..start + 4096
        };
        let differ = |offset: &u64| self.of(from)[at(*offset)] != self.of(next)[at(*offset)];
        let blocks = |ranges: &[Range<u64>]| -> Vec<u64> {
            let of = |range: &Range<u64>| (range.start & !4095..range.end).step_by(4096);
            ranges.iter().flat_map(of).filter(differ).collect()
        };
        let bytes = |offset: u64| (offset, self.of(next)[at(offset)].to_vec());
        let blocks_read = blocks(read).into_iter().map(bytes).collect();
        let change = Change { id: next, watched: !blocks(watch).is_empty(), blocks: blocks_read };
        Ok(Changes { changes: vec![change], through: next, end: false })
    }
}

/// The rig's image and two of its later states.
fn states(rig: &Rig) -> Vec<Vec<u8>> {
    let mut all = vec![fs::read(&rig.file).unwrap()];
    let text = rig.file.with_file_name("text");
    fs::write(&text, vec![b'x'; 2_000_000]).unwrap();
    for command in [format!("write {} many/new", text.display()), "rm many/007".to_owned()] {
        let words = [OsStr::new("-w"), OsStr::new("-R"), OsStr::new(&command), rig.file.as_os_str()];
        tool("debugfs", &words).expect("e2fsprogs has it");
        all.push(fs::read(&rig.file).unwrap());
    }
    all
}

/// What a worker finds, or what ended it.
fn diff_of(rig: &Rig, sides: [&[u8]; 2], path: &[u8]) -> Result<Vec<Difference>, Error> {
    let [old, new] = sides.map(|image| -> Arc<dyn BlockRead> { Arc::new(Memory(image.to_vec())) });
    let (mut all, changed) = (Vec::new(), Ranges::everything());
    let sides = Sides { old, new, changed: &changed };
    rig.reader.diff("both", sides, path, &AtomicBool::new(false), |found| match found {
        Found::Difference(difference) => {
            all.push(difference);
            Ok(())
        }
        Found::Unreadable(error) => Err(error.source),
    })?;
    Ok(all)
}

#[test]
fn a_worker_compares_as_its_readers_do() {
    let Some(rig) = rig(|_| ()) else { return };
    let states = states(&rig);
    let sources = [0, 2].map(|at: usize| -> Arc<dyn BlockRead> { Arc::new(Memory(states[at].clone())) });
    let [old, new] = &sources;
    let direct =
        diff::diff(old, new, b"/", &Ranges::everything(), &AtomicBool::new(false)).unwrap().differences;
    let paths: Vec<_> = direct.iter().map(|found| String::from_utf8_lossy(&found.path)).collect();
    assert_eq!(paths, ["/many/007", "/many/new"]);
    assert_eq!(diff_of(&rig, [&states[0], &states[2]], b"/").unwrap(), direct);
    assert!(matches!(diff_of(&rig, [&states[0], &states[2]], b"/none"), Err(Error::NotFound(_))));

    // More than one message: all that one has and the other, which is empty, has not.
    let empty = rig.file.with_file_name("empty.img");
    fs::File::create(&empty).unwrap().set_len(8 << 20).unwrap();
    tool("mke2fs", &["-q", "-F"].map(OsStr::new).into_iter().chain([empty.as_os_str()]).collect::<Vec<_>>())
        .unwrap();
    let all = diff_of(&rig, [&fs::read(&empty).unwrap(), &states[0]], b"/").unwrap();
    assert!(all.len() > 700 && all.is_sorted_by_key(|found| found.path.clone()), "{}", all.len());
    assert!(rig.events.lock().unwrap().is_empty());
}

#[test]
fn a_worker_follows_a_file_as_its_readers_do() {
    let Some(rig) = rig(|_| ()) else { return };
    let all = states(&rig);
    // So many that their list is longer than a message; opened are those in which something changes.
    let images = Images { all, repeated: 25_000 };
    for path in [&b"/many/007"[..], b"/many/new", b"/many", b"/big", b"/none"] {
        let told = |told: Told, all: &mut Vec<Version>| match told {
            Told::Version(version) => {
                all.push(*version);
                Ok(())
            }
            Told::Unreadable(_, error) => Err(error),
        };
        let (mut direct, mut remote) = (Vec::new(), Vec::new());
        versions::versions(&images, path, |one| told(one, &mut direct)).unwrap();
        let count = rig.reader.versions("vol", &images, path, |one| told(one, &mut remote)).unwrap();
        assert_eq!((&remote, count), (&direct, direct.len()), "{}", path.escape_ascii());
        assert_eq!(direct.is_empty(), path == b"/none");
    }
    assert!(rig.events.lock().unwrap().is_empty());
}

#[test]
fn a_comparison_ends_with_its_worker_and_when_nobody_wants_it() {
    let Some(rig) = rig(|options| options.arguments = ["--panic-at", "/big"].map(Into::into).to_vec()) else {
        return;
    };
    let states = states(&rig);
    let sides = [&states[0][..], &states[2][..]];
    let error = diff_of(&rig, sides, b"/big").unwrap_err();
    assert!(error.to_string().contains("read both: its reader ended"), "{error}");
    assert!(rig.event().message.contains("the test wants a panic"), "{:?}", rig.event());
    let images = Images { all: states.clone(), repeated: 1 };
    let followed = rig.reader.versions("vol", &images, b"/big", |_| Ok::<_, Error>(()));
    assert!(matches!(followed, Err(Error::Io { .. })), "{followed:?}");
    assert_eq!(diff_of(&rig, sides, b"/").unwrap().len(), 2);
    assert_eq!(rig.events.lock().unwrap().len(), 2);

    // What the caller answers ends it as it is; nothing of that is an event.
    let refused = || Error::WrongKind("the caller's own".into());
    let followed = rig.reader.versions("vol", &images, b"/many", |_| Err(refused()));
    assert_eq!(followed.unwrap_err().to_string(), "the caller's own");
    let [old, new] = sides.map(|image| -> Arc<dyn BlockRead> { Arc::new(Memory(image.to_vec())) });
    let (cancel, changed) = (AtomicBool::new(true), Ranges::everything());
    let sides = Sides { old, new, changed: &changed };
    let ended = rig.reader.diff("both", sides, b"/", &cancel, |_| Ok::<_, Error>(()));
    let Err(Error::Io { source, .. }) = ended else { panic!("{ended:?}") };
    assert_eq!(source.kind(), std::io::ErrorKind::Interrupted);
    assert_eq!(rig.reader.process_id(), None);
    assert_eq!(rig.events.lock().unwrap().len(), 2);
}
