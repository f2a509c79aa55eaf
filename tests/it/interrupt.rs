//! Ctrl-C in the middle of long work: exit code 130, and nothing half done.

use crate::rig::{Rig, Running, cowslip, ended, noise, signal};
use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

#[test]
fn an_interrupted_import_leaves_no_volume() {
    let Some(rig) = Rig::new("512M") else { return };
    let before = rig.json("volume list");
    let mut import = rig.command();
    import.args(["volume", "import", "v", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut import = Running(import.spawn().expect("it starts"));
    // More than is on its way at once: when it is written, the import is under way and the signal is caught.
    let mut stdin = import.0.stdin.take().expect("it is piped");
    stdin.write_all(&noise(1, 24 << 20)).expect("it reads");
    signal("INT", import.0.id());
    import.end().with(130).saying(&["interrupted"]);
    rig.eventually("the volume goes", || rig.json("volume list") == before);
    rig.ok("-q volume create v --size 4M");
    rig.stop_and_check();
}

#[test]
fn an_interrupted_export_leaves_no_file_and_no_snapshot() {
    let Some(rig) = Rig::new("1G") else { return };
    fs::write(rig.path("in.img"), noise(2, 256 << 20)).expect("there is room");
    rig.ok("-q volume import v in.img");
    let before = rig.json("snapshot list");
    fs::create_dir(rig.path("out")).expect("the directory is writable");
    let files = || fs::read_dir(rig.path("out")).expect("a directory").count();
    for old in [false, true] {
        if old {
            fs::write(rig.path("out/v.img"), "old").expect("the directory is writable");
        }
        let kept = files();
        let mut export = rig.command();
        export.args(["volume", "export", "--force", "v", "out/v.img"]);
        let export = Running::start(export.stdout(Stdio::piped()).stderr(Stdio::piped()));
        rig.eventually("the export is under way", || files() > kept);
        signal("INT", export.0.id());
        export.end().with(130).saying(&["interrupted"]);
        assert_eq!(files(), kept);
        rig.eventually("its snapshot goes", || rig.json("snapshot list") == before);
    }
    assert_eq!(fs::read_to_string(rig.path("out/v.img")).expect("it is whole"), "old");
    rig.stop_and_check();
}

#[test]
fn an_interrupted_check_changes_nothing() {
    let Some(rig) = Rig::new("512M") else { return };
    fs::write(rig.path("in.img"), noise(2, 64 << 20)).expect("there is room");
    rig.ok("-q volume import v in.img");
    rig.stop_and_check();
    let pool = rig.path("pool");
    let digest = || blake3::hash(&fs::read(pool.join("pool.cowslip")).expect("the pool is a file"));
    let before = digest();
    // Signals all the time, as a check is short; one that they come too late for proves nothing and is made again.
    let interrupted = (0..100).any(|_| {
        let mut check = cowslip();
        check.args(["pool", "check"]).arg(&pool).stdout(Stdio::null()).stderr(Stdio::null());
        let mut check = Running(check.spawn().expect("it starts"));
        let status = loop {
            match check.0.try_wait().expect("it can be waited for") {
                Some(status) => break status,
                None => signal("INT", check.0.id()),
            }
        };
        // What a SIGINT ends before there is a handler, a shell calls 130 too.
        let interrupted = status.code() == Some(130) || status.signal() == Some(2);
        assert!(interrupted || status.success(), "{status}");
        interrupted
    });
    assert!(interrupted, "no signal came in time");
    assert!(digest() == before, "a check wrote to the pool");
    ended(cowslip().args(["pool", "check"]).arg(&pool)).with(0);
}
