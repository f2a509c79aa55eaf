//! Files that come back: complete with all that belongs to them, or not at all.

use crate::rig::{Rig, Running, noise, signal, tool, unmount};
use crate::tree::{assert_same, manifest, plant};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// A mounted volume `v` with a tree, and a snapshot `v@one` of it.
fn planted() -> Option<(Rig, PathBuf)> {
    let rig = Rig::new("1G")?;
    let device = rig.ext4("v", "256M");
    let dir = rig.mount(&device, "mnt", "acl,user_xattr");
    plant(&dir.join("tree"));
    rig.ok("-q snapshot create v@one");
    Some((rig, dir))
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a directory").flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

#[test]
fn files_and_directories_come_back_in_place_and_elsewhere() {
    let Some((rig, dir)) = planted() else { return };
    let before = manifest(&dir);
    fs::write(dir.join("tree/sub/file"), "overwritten").expect("the volume is writable");
    rig.run(["restore", "v@one:/tree/sub/file"]).with(4).saying(&["file", "--overwrite"]);
    rig.ok("-q restore --overwrite v@one:/tree/sub/file");
    let file = Path::new("tree/sub/file");
    assert_eq!(manifest(&dir).get(file), before.get(file));

    fs::remove_dir_all(dir.join("tree/sub")).expect("the volume is writable");
    rig.ok("-q restore v@one:/tree/sub");
    let (mut before, mut after) = (before, manifest(&dir));
    // Something was made in it.
    before.remove(Path::new("tree"));
    after.remove(Path::new("tree"));
    assert_same(&before, &after);

    rig.ok("-q restore v@one:/tree elsewhere");
    let original = manifest(&dir.join("tree"));
    assert_same(&manifest(&rig.path("elsewhere")), &original);
    let shown = rig.path("snapshots/v/one/tree");
    tool("cp", ["-a".as_ref(), shown.as_os_str(), rig.path("copied").as_os_str()]);
    assert_same(&manifest(&rig.path("copied")), &original);
    unmount(&dir);
    rig.run(["restore", "v@one:/tree/sub/file"]).with(3).saying(&["is not mounted", "hint: "]);
    rig.stop_and_check();
}

#[test]
fn what_is_in_the_way_stays() {
    let Some((rig, dir)) = planted() else { return };
    // A directory where the file was.
    fs::remove_file(dir.join("tree/sub/file")).expect("the volume is writable");
    fs::create_dir(dir.join("tree/sub/file")).expect("the volume is writable");
    fs::write(dir.join("tree/sub/file/inside"), "mine").expect("the volume is writable");
    for words in [&["restore"][..], &["restore", "--overwrite"]] {
        let ended = rig.run(words.iter().chain(&["v@one:/tree/sub/file"]));
        assert!(matches!(ended.code, Some(1 | 4)), "{ended:?}");
        ended.saying(&["mnt/tree/sub/file"]);
        assert_eq!(fs::read_to_string(dir.join("tree/sub/file/inside")).expect("it is whole"), "mine");
    }

    let small = rig.path("small");
    fs::create_dir(&small).expect("a mountpoint");
    for (options, code, word) in [("ro", 1, "ead-only"), ("", 5, "pace")] {
        tool(
            "mount",
            [
                "-t".as_ref(),
                "tmpfs".as_ref(),
                "-o".as_ref(),
                "size=1M".as_ref(),
                "none".as_ref(),
                small.as_os_str(),
            ],
        );
        fs::write(small.join("large"), "old").expect("there is room");
        if options == "ro" {
            tool("mount", ["-o".as_ref(), "remount,ro".as_ref(), small.as_os_str()]);
        }
        let ended = rig.run(["restore", "--overwrite", "v@one:/tree/sub/large", "small"]);
        ended.with(code).saying(&["error: ", "small", word]);
        assert_eq!(names(&small), ["large"]);
        assert_eq!(fs::read_to_string(small.join("large")).expect("it is whole"), "old");
        unmount(&small);
    }
    unmount(&dir);
    rig.stop_and_check();
}

/// Temporary names of a restore.
fn left(dir: &Path) -> Vec<String> {
    names(dir).into_iter().filter(|name| name.starts_with(".cowslip-restore-")).collect()
}

#[test]
fn an_interrupted_restore_leaves_the_old_file() {
    let Some(rig) = Rig::new("1G") else { return };
    let device = rig.ext4("v", "384M");
    let dir = rig.mount(&device, "mnt", "defaults");
    fs::create_dir(dir.join("big")).expect("the volume is writable");
    fs::write(dir.join("big/file"), noise(3, 256 << 20)).expect("there is room");
    rig.ok("-q snapshot create v@one");
    fs::write(dir.join("big/file"), "newer").expect("the volume is writable");

    let out = rig.path("out");
    fs::create_dir(&out).expect("the directory is writable");
    fs::write(out.join("file"), "older").expect("the directory is writable");
    for (destination, words) in [(out, &["out"][..]), (dir.join("big"), &[])] {
        let before = manifest(&destination);
        let mut restore = rig.command();
        restore.args(["restore", "--overwrite", "v@one:/big/file"]).args(words);
        let restore = Running::start(restore.stdout(Stdio::piped()).stderr(Stdio::piped()));
        rig.eventually("the restore is under way", || names(&destination).len() == 2);
        signal("INT", restore.0.id());
        restore.end().with(130).saying(&["interrupted"]);
        assert_same(&before, &manifest(&destination));

        // Killed, it cannot tidy up: what it had made is beside the old file, by a name that says whose it is.
        let mut restore = rig.command();
        restore.args(["restore", "--overwrite", "v@one:/big/file"]).args(words);
        let restore = Running::start(restore.stdout(Stdio::piped()).stderr(Stdio::piped()));
        rig.eventually("the restore is under way", || !left(&destination).is_empty());
        signal("KILL", restore.0.id());
        assert_eq!(restore.end().code, None);
        let left = left(&destination);
        assert_eq!(left.len(), 1, "{left:?}");
        fs::remove_file(destination.join(&left[0])).expect("it can be deleted");
        assert_same(&before, &manifest(&destination));
    }
    // And nothing of it is in the way.
    rig.ok("-q restore --overwrite v@one:/big/file out");
    assert_eq!(fs::read(rig.path("out/file")).expect("it is there"), noise(3, 256 << 20));
    assert_eq!(names(&rig.path("out")), ["file"]);
    unmount(&dir);
    rig.stop_and_check();
}
