//! The same snapshot twice: as the snapshots' directory shows it, and as the kernel mounts a clone of it.

use crate::rig::{Rig, tool, unmount};
use crate::tree::{assert_same, manifest, plant};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// A tree that every machine that builds this has.
fn real_tree() -> PathBuf {
    let candidates = ["/usr/include", "/usr/share/doc", "/etc"].map(PathBuf::from);
    candidates.into_iter().find(|path| path.is_dir()).expect("a host has /etc")
}

/// Makes, renames and removes files until `done`.
fn keep_busy(dir: &Path, done: &AtomicBool) {
    fs::create_dir(dir).expect("the volume is writable");
    for round in 0u32.. {
        if done.load(Ordering::SeqCst) {
            return;
        }
        let name = |number: u32| dir.join(format!("file {}", number % 200));
        fs::write(name(round), vec![7; 10_000 + (round % 5000) as usize]).expect("the volume is writable");
        fs::rename(name(round), name(round + 100)).expect("it was made");
        if round % 3 == 0 {
            fs::remove_file(name(round + 100)).expect("it was made");
        }
    }
}

#[test]
fn the_view_of_a_busy_volume_is_the_kernels() {
    let Some(rig) = Rig::new("2G") else { return };
    let device = rig.ext4("v", "1G");
    let dir = rig.mount(&device, "mnt", "acl,user_xattr");
    plant(&dir.join("small"));
    tool("cp", ["-a".as_ref(), real_tree().as_os_str(), dir.join("real").as_os_str()]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| keep_busy(&dir.join("busy"), &done));
        rig.eventually("the volume is busy", || dir.join("busy/file 150").exists());
        let taken = rig.run(["--json", "snapshot", "create", "v@s"]);
        done.store(true, Ordering::SeqCst);
        busy.join().expect("the volume can be written");
        assert_eq!(taken.with(0).json()[0]["consistency"], "fs");
    });
    rig.ok("-q clone v@s c");
    let clone = rig.mount(&rig.attach("c"), "clone", "ro");

    let (ours, theirs) = (manifest(&rig.path("snapshots/v/s")), manifest(&clone));
    assert!(ours.len() > 200 && ours.contains_key(Path::new("small/sub/sparse")), "{} files", ours.len());
    assert_same(&ours, &theirs);
    println!("{} files are the same", ours.len());
    unmount(&clone);
    unmount(&dir);
    rig.stop_and_check();
}
