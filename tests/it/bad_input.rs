//! Bad input: one error that says what was wrong, the exit code that is promised, and nothing has changed.

use crate::rig::{Rig, cowslip, ended, host_tool, noise, tool, unmount};
use integration_tests::binary;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;

/// A rig with a volume `v`, attached, and a snapshot `v@s`.
fn rig_with_a_volume() -> Option<Rig> {
    let rig = Rig::new("512M")?;
    rig.ext4("v", "64M");
    rig.ok("-q snapshot create v@s");
    Some(rig)
}

/// What must not change.
fn contents(rig: &Rig) -> [serde_json::Value; 3] {
    let pool = rig.json("pool show");
    [rig.json("volume list"), rig.json("snapshot list"), pool["id"].clone()]
}

/// Runs each line, whose words are separated by `|`, and compares how it ended.
#[track_caller]
fn check(rig: &Rig, table: &[(&[u8], i32, &str)]) {
    let before = contents(rig);
    for (line, code, word) in table {
        let words: Vec<&OsStr> = line.split(|byte| *byte == b'|').map(OsStr::from_bytes).collect();
        let ended = rig.run(&words);
        assert_eq!(ended.code, Some(*code), "{words:?}: {ended:?}");
        assert!(ended.stderr.contains("error: ") && ended.stderr.contains(word), "{words:?}: {ended:?}");
        assert_eq!(contents(rig), before, "{words:?} changed something");
    }
}

#[test]
fn bad_names() {
    let Some(rig) = rig_with_a_volume() else { return };
    let names: [(&[u8], &str); 8] = [
        (b"", "empty"),
        (&[b'x'; 256], "255 bytes"),
        (b"a/b", "'/'"),
        (b"a@b", "hint"),
        (b".", "reserved"),
        (b"..", "reserved"),
        (b"a\nb", "control character"),
        (b"\xff\xfe", "UTF-8"),
    ];
    for (name, word) in names {
        let line = |words: &[&[u8]]| words.join(&b'|');
        check(
            &rig,
            &[
                (&line(&[b"volume", b"create", name, b"--size", b"4M"]), 2, word),
                (&line(&[b"volume", b"rename", b"v", name]), 2, word),
                (&line(&[b"clone", b"v@s", name]), 2, word),
                (&line(&[b"volume", b"import", name, b"config.toml"]), 2, word),
                (
                    &line(&[b"snapshot", b"create", &[b"v@", name].concat()]),
                    2,
                    if name == b"a@b" { "'@'" } else { word },
                ),
            ],
        );
    }
    check(
        &rig,
        &[
            (b"snapshot|create|v@latest", 2, "newest"),
            (b"snapshot|create|v", 2, "names no snapshot"),
            (b"snapshot|create|v@new|none@new", 3, "none"),
            (b"snapshot|create|v@s", 4, "exists"),
            (b"volume|create|v|--size|4M", 4, "exists"),
            (b"clone|v@none|x", 3, "v@none"),
            (b"volume|delete|none", 3, "none"),
            (b"snapshot|delete|v@s|v@none", 3, "v@none"),
            (b"volume|create|x|--size|4M|--fs|zfs", 2, "zfs"),
            (b"volume|create|x|--size|4M|--label|novalue", 2, "novalue"),
        ],
    );
}

#[test]
fn bad_sizes() {
    let Some(rig) = rig_with_a_volume() else { return };
    check(
        &rig,
        &[
            (b"volume|create|x|--size|0", 2, "4K"),
            (b"volume|create|x|--size|4097", 2, "4K and 8K"),
            (b"volume|create|x|--size=-4K", 2, "negative"),
            (b"volume|create|x|--size|18446744073709551616", 2, "too large"),
            (b"volume|create|x|--size|9223372036854775808", 2, "too large"),
            (b"volume|create|x|--size|9223372036854771712", 2, "1 PiB"),
            (b"volume|create|x|--size|1Z", 2, "unit"),
            (b"volume|create|x|--size|many", 2, "not a size"),
            (b"volume|create|x|--size|", 2, "size"),
            (b"volume|create|x", 2, "size"),
            (b"volume|resize|v|4K", 2, "shrink"),
            (b"volume|resize|v|67108865", 2, "multiple"),
            (b"volume|resize|v|8E", 2, "too large"),
            (b"volume|create|x|--size|4M|--from|v@s", 2, "64"),
        ],
    );
}

#[test]
fn volumes_in_use_stay() {
    let Some(rig) = rig_with_a_volume() else { return };
    check(&rig, &[(b"volume|delete|v", 4, "attached"), (b"volume|delete|v", 4, "hint: ")]);
    let dir = rig.mount(&rig.attach("v"), "mnt", "defaults");
    let mountpoint = dir.display().to_string();
    fs::write(dir.join("file"), "mine").expect("the volume is writable");
    tool("sync", [Path::new("-f"), &dir]);
    check(
        &rig,
        &[
            (b"volume|delete|v", 4, &mountpoint),
            (b"volume|detach|v", 4, &mountpoint),
            (b"rollback|v@s", 4, &mountpoint),
        ],
    );
    assert_eq!(fs::read_to_string(dir.join("file")).expect("it is there"), "mine");
    unmount(&dir);
    rig.stop_and_check();
}

#[test]
fn images_that_are_none() {
    let Some(rig) = rig_with_a_volume() else { return };
    let good = rig.path("good.img");
    fs::File::create(&good).and_then(|file| file.set_len(64 << 20)).expect("the directory is writable");
    tool("mkfs.ext4", ["-q".as_ref(), good.as_os_str()]);
    fs::write(rig.path("noise.img"), noise(1, 1 << 20)).expect("the directory is writable");
    fs::write(rig.path("empty.img"), "").expect("the directory is writable");
    fs::copy(&good, rig.path("short.img")).expect("there is room");
    let short = fs::File::options().write(true).open(rig.path("short.img")).expect("it was copied");
    short.set_len(3 << 20).expect("it can be cut");
    fs::copy(&good, rig.path("lying.img")).expect("there is room");
    let lying = fs::File::options().write(true).open(rig.path("lying.img")).expect("it was copied");
    // s_blocks_count_lo of the superblock (kernel, Documentation/filesystems/ext4/super.rst).
    lying.write_all_at(&[0xff, 0xff, 0xff, 0x7f], 1024 + 4).expect("it can be written");
    check(
        &rig,
        &[
            (b"restore|./noise.img:/etc|out", 8, "no file system"),
            (b"restore|./empty.img:/etc|out", 8, "no file system"),
            (b"restore|./short.img:/lost+found|out", 7, "past the end"),
            (b"restore|./lying.img:/lost+found|out", 7, "superblock"),
            (b"restore|./none.img:/etc|out", 3, "none.img"),
            (b"restore|./good.img:/none|out", 3, "none"),
            (b"restore|./good.img:/lost+found", 2, "DEST"),
            (b"restore|v@none:/etc|out", 3, "v@none"),
        ],
    );
    assert!(!rig.path("out").exists());
    rig.ok("-q restore ./good.img:/lost+found out");
}

#[test]
fn pools_are_not_made_over_something() {
    let Some(rig) = Rig::without_agent() else { return };
    let init = |place: &Path| ended(cowslip().args(["pool", "init"]).arg(place));
    fs::create_dir(rig.path("taken")).expect("the directory is writable");
    fs::write(rig.path("taken/file"), "mine").expect("the directory is writable");
    init(&rig.path("taken")).with(4).saying(&["not empty", "`file`", "--force"]);
    assert_eq!(fs::read_dir(rig.path("taken")).expect("a directory").count(), 1);
    let file = init(&rig.path("taken/file"));
    assert!(matches!(file.code, Some(2 | 4)), "{file:?}");

    let image = rig.path("disk.img");
    fs::File::create(&image).and_then(|file| file.set_len(64 << 20)).expect("the directory is writable");
    tool("mkfs.ext4", ["-q".as_ref(), image.as_os_str()]);
    let before = blake3::hash(&fs::read(&image).expect("it is there"));
    let device = tool("losetup", ["-f".as_ref(), "--show".as_ref(), image.as_os_str()]);
    init(Path::new(device.trim_end())).with(4).saying(&["not empty", "--force"]);
    tool("losetup", ["-d", device.trim_end()]);
    assert!(blake3::hash(&fs::read(&image).expect("it is there")) == before, "the file system is whole");
}

#[test]
fn two_agents_do_not_share_a_pool() {
    let Some(rig) = rig_with_a_volume() else { return };
    let (pid, before) = (rig.pid(), contents(&rig));
    ended(&mut rig.agent()).with(4).saying(&["another agent", "hint: "]);
    let mut elsewhere = rig.agent();
    elsewhere.arg("--socket").arg(rig.path("second.sock")).args(["--snapshots", "none"]);
    ended(&mut elsewhere).with(4).saying(&["pool", "hint: "]);
    assert!(!rig.path("second.sock").exists());
    assert_eq!((rig.pid(), contents(&rig)), (pid, before));
    assert!(rig.path("snapshots/v/s").is_dir(), "the first one's tree is there");

    fs::write(rig.path("bad.toml"), "pool = '/none'\nsoket = '/none'\n").expect("the directory is writable");
    let mut agent = cowslip();
    agent.arg("agent").arg("--config").arg(rig.path("bad.toml"));
    ended(&mut agent).with(2).saying(&["bad.toml:2:", "soket"]);
    rig.stop_and_check();
}

#[test]
fn others_may_not_talk_to_the_agent() {
    let Some(rig) = rig_with_a_volume() else { return };
    let nobody = |rig: &Rig, words: &[&str]| {
        // Where nobody can reach it.
        let mut command = host_tool(&rig.path("cowslip").display().to_string());
        command.arg("--socket").arg(rig.path("agent.sock")).args(words).uid(65534).gid(65534);
        ended(&mut command)
    };
    let program = rig.path("cowslip");
    if fs::hard_link(binary("cowslip"), &program).is_err() {
        fs::copy(binary("cowslip"), &program).expect("there is room");
    }
    let open = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
    open(program.parent().expect("it has one"), 0o755);
    nobody(&rig, &["status"]).with(1).saying(&["no permission", "agent.sock", "hint: "]);
    // The agent asks who it is, whatever the mode of the socket says.
    open(&rig.path("agent.sock"), 0o666);
    let before = contents(&rig);
    for words in [&["status"][..], &["volume", "list"], &["volume", "create", "x", "--size", "4M"]] {
        nobody(&rig, words).with(1).saying(&["65534", "hint: "]);
    }
    assert_eq!(contents(&rig), before);
    rig.stop_and_check();
}
