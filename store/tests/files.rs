//! Pools on real files: made, refused, locked, full, reopened.

#[path = "../../tests/skip.rs"]
mod skip;

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use store::{ErrorKind, InitOptions, Labels, OpenOptions, Pool, Recovery};

fn options(size: u64) -> InitOptions {
    InitOptions { size_bytes: Some(size), ..InitOptions::default() }
}

fn kind<T>(r: store::Result<T>) -> ErrorKind {
    match r {
        Ok(_) => panic!("it was accepted"),
        Err(e) => e.kind(),
    }
}

/// A directory on tmpfs for rings, taken away at the end.
fn ring_dir() -> Option<tempfile::TempDir> {
    tempfile::tempdir_in("/dev/shm").ok()
}

#[test]
fn a_pool_on_a_file_lives_on() {
    let dir = tempfile::tempdir().expect("makes a directory");
    let path = dir.path().join("pool");
    Pool::init(&path, &options(64 << 20)).expect("makes a pool");
    let ring = ring_dir();
    let open = OpenOptions { ring_dir: ring.as_ref().map(|d| d.path().into()), ..OpenOptions::default() };
    let data: Vec<u8> = (0..1_000_000u32).map(|i| u8::try_from(i % 251).expect("small")).collect();
    {
        let pool = Pool::open(&path, &open).expect("opens");
        pool.create_volume("v", 16 << 20, Labels::new()).expect("creates");
        let v = pool.open_volume("v").expect("opens");
        // Odd offset and length: the store rounds to blocks on its own.
        v.write_at(12_345, &data, false).expect("writes");
        // Dropped without closing: as if the process had died.
    }
    let pool = Pool::open(&path, &open).expect("opens again");
    assert_eq!(pool.recovery(), Recovery::Resumed);
    let v = pool.open_volume("v").expect("opens");
    let mut got = vec![1; data.len() + 2];
    v.read_at(12_344, &mut got).expect("reads");
    assert_eq!((got[0], got[data.len() + 1]), (0, 0));
    assert!(got[1..=data.len()] == data[..]);
    drop(v);
    pool.close().expect("closes");
    drop(pool);
    let pool = Pool::open(&path, &open).expect("opens");
    assert_eq!(pool.recovery(), Recovery::Clean);
    assert_eq!(pool.volume("v").expect("shows").used_bytes / 4096, 245);
    drop(pool);
    assert!(Pool::check(&path, &mut |_, _| {}).expect("checks").findings.is_empty());
}

/// H1: while one owner has the pool nobody else gets it; the next one may wait for it.
#[test]
fn h1_one_owner_at_a_time() {
    let dir = tempfile::tempdir().expect("makes a directory");
    Pool::init(dir.path(), &options(64 << 20)).expect("makes a pool");
    let pool = Pool::open(dir.path(), &OpenOptions::default()).expect("opens");
    assert_eq!(kind(Pool::open(dir.path(), &OpenOptions::default())), ErrorKind::Busy);
    assert_eq!(kind(Pool::open_read_only(dir.path())), ErrorKind::Busy);
    assert_eq!(kind(Pool::check(dir.path(), &mut |_, _| {})), ErrorKind::Busy);
    let force = InitOptions { force: true, ..options(64 << 20) };
    assert_eq!(kind(Pool::init(dir.path(), &force)), ErrorKind::Busy);
    let path = dir.path().to_owned();
    let waiter = std::thread::spawn(move || {
        let wait = OpenOptions { wait_for_lock: true, ..OpenOptions::default() };
        Pool::open(&path, &wait).expect("gets the pool").volumes().len()
    });
    pool.create_volume("last", 4096, Labels::new()).expect("creates");
    drop(pool);
    assert_eq!(waiter.join().expect("ends"), 1, "the waiter read the pool after its owner was gone");
}

/// H3: the pool is written past the page cache, and the ring is memory that stays: no write of the pool waits for
/// pages that only a write of the pool can clean.
#[test]
fn h3_no_write_waits_for_the_page_cache() {
    let Some(ring) = ring_dir() else { return skip::skip("no tmpfs at /dev/shm to put a ring on") };
    // Not on a tmpfs, which has nothing but pages.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("makes a directory");
    Pool::init(dir.path(), &options(64 << 20)).expect("makes a pool");
    let open = OpenOptions { ring_dir: Some(ring.path().into()), ..OpenOptions::default() };
    let pool = Pool::open(dir.path(), &open).expect("opens");
    pool.create_volume("v", 1 << 20, Labels::new()).expect("creates");
    let volume = pool.open_volume("v").expect("opens");

    let descriptor = volume.descriptor().expect("a pool on a file has one").as_raw_fd();
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).expect("tells");
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("has flags").trim();
    let flags = i32::from_str_radix(flags, 8).expect("octal");
    assert_ne!(flags & libc::O_DIRECT, 0, "{info}");

    // `lo` among the flags of the mapping: locked (proc_pid_smaps(5)).
    let maps = fs::read_to_string("/proc/self/smaps").expect("tells");
    let place = ring.path().to_str().expect("UTF-8");
    let mut mapping = maps.lines().skip_while(|line| !line.contains(place));
    let flags = mapping.find_map(|line| line.strip_prefix("VmFlags:")).expect("the ring is mapped");
    let locked = flags.split(' ').any(|flag| flag == "lo");
    if !locked && fs::metadata("/proc/self").expect("is there").uid() != 0 {
        return skip::skip("this user may not lock as much memory as a ring takes (ulimit -l)");
    }
    assert!(locked, "the ring can be paged out: {flags}");
}

#[test]
fn init_refuses_what_is_not_empty_and_leaves_it_alone() {
    let dir = tempfile::tempdir().expect("makes a directory");
    fs::write(dir.path().join("notes"), "mine").expect("writes");
    assert_eq!(kind(Pool::init(dir.path(), &options(64 << 20))), ErrorKind::Exists);
    assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 1);
    let file = dir.path().join("notes");
    assert_eq!(kind(Pool::init(&file, &options(64 << 20))), ErrorKind::Invalid);
    let new = dir.path().join("new");
    for size in [0, 4096, 1 << 20, 1 << 61] {
        assert_eq!(kind(Pool::init(&new, &options(size))), ErrorKind::Invalid);
        assert!(!new.exists(), "nothing is left of a pool that was refused");
    }
    Pool::init(&new, &options(64 << 20)).expect("makes a pool");
    assert_eq!(kind(Pool::init(&new, &options(64 << 20))), ErrorKind::Exists);
    assert_eq!(kind(Pool::open(&dir.path().join("absent"), &OpenOptions::default())), ErrorKind::NotFound);
    assert_eq!(kind(Pool::open(Path::new("/dev/null"), &OpenOptions::default())), ErrorKind::Invalid);
}

#[test]
fn names_and_sizes_are_judged_before_anything_changes() {
    let dir = tempfile::tempdir().expect("makes a directory");
    Pool::init(dir.path(), &options(64 << 20)).expect("makes a pool");
    let pool = Pool::open(dir.path(), &OpenOptions::default()).expect("opens");
    let long = "x".repeat(256);
    for name in ["", ".", "..", "a/b", "a@b", "a\nb", "\u{7f}", &long] {
        assert_eq!(kind(pool.create_volume(name, 4096, Labels::new())), ErrorKind::Invalid, "{name:?}");
    }
    for size in [0, 1, 4095, 4097, u64::MAX, 1 << 63, (1 << 50) + 4096] {
        assert_eq!(kind(pool.create_volume("v", size, Labels::new())), ErrorKind::Invalid, "{size}");
    }
    assert!(pool.volumes().is_empty());
    let longest = "é".repeat(127);
    pool.create_volume(&longest, 1 << 50, Labels::new()).expect("the limits themselves are fine");
    assert_eq!(kind(pool.create_volume(&longest, 4096, Labels::new())), ErrorKind::Exists);
    assert_eq!(kind(pool.resize_volume(&longest, 4096)), ErrorKind::Invalid);
    assert_eq!(kind(pool.snapshot(&longest, "latest")), ErrorKind::NotFound);
    let v = pool.open_volume(&longest).expect("opens");
    assert_eq!(kind(v.write_at(1 << 50, &[0], false)), ErrorKind::Invalid);
    assert_eq!(kind(v.read_at(u64::MAX, &mut [0])), ErrorKind::Invalid);
    assert_eq!(kind(pool.delete_volume(&longest)), ErrorKind::Busy);
    drop(v);
    pool.delete_volume(&longest).expect("deletes");
}

#[test]
fn a_ring_needs_a_tmpfs() {
    let dir = tempfile::tempdir_in("/var/tmp").expect("makes a directory");
    Pool::init(&dir.path().join("p"), &options(64 << 20)).expect("makes a pool");
    let open = OpenOptions { ring_dir: Some(dir.path().join("ring")), ..OpenOptions::default() };
    let pool = Pool::open(&dir.path().join("p"), &open).expect("opens all the same");
    assert!(pool.info().ring.starts_with("write-through: "), "{}", pool.info().ring);
}

/// H31, on a real file: discarded space leaves the pool's file, and the volume goes on.
#[test]
fn h31_a_discard_makes_the_file_smaller() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().expect("makes a directory");
    Pool::init(dir.path(), &options(128 << 20)).expect("makes a pool");
    let pool = Pool::open(dir.path(), &OpenOptions::default()).expect("opens");
    pool.create_volume("v", 96 << 20, Labels::new()).expect("creates");
    let v = pool.open_volume("v").expect("opens");
    let held = || fs::metadata(dir.path().join("pool.cowslip")).expect("is there").blocks() * 512;
    let chunk = vec![7; 1 << 20];
    (0..80u64).for_each(|i| v.write_at(i << 20, &chunk, false).expect("writes"));
    let full = held();
    v.discard(1 << 20, 79 << 20).expect("discards");
    pool.checkpoint().expect("checkpoints");
    pool.checkpoint().expect("the first freed blocks, this one lets them go");
    assert!(held() + (20 << 20) < full, "{full} bytes before, {} after", held());
    (0..80u64).for_each(|i| v.write_at(i << 20, &chunk, false).expect("writes again"));
    let mut got = vec![0; 1 << 20];
    v.read_at(40 << 20, &mut got).expect("reads");
    assert!(got == chunk);
    drop(v);
    pool.close().expect("closes");
    drop(pool);
    assert!(Pool::check(dir.path(), &mut |_, _| {}).expect("checks").findings.is_empty());
}
