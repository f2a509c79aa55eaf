//! Damage by the disk: found by a scrub and by reads, told by name, never returned.

use crate::rig::{Rig, noise};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

/// Flips a bit of the block that holds `content`, behind the agent's back.
fn damage(rig: &Rig, content: &[u8]) {
    let path = rig.path("pool/pool.cowslip");
    let pool = fs::read(&path).expect("the pool is a file");
    let at = pool.chunks_exact(4096).position(|block| block == content).expect("the pool holds it") * 4096;
    let file = File::options().write(true).open(&path).expect("it can be written");
    file.write_all_at(&[content[100] ^ 4], at as u64 + 100).expect("there is room");
    file.sync_all().expect("it syncs");
}

#[test]
fn a_damaged_block_is_found_and_told_and_not_returned() {
    let Some(rig) = Rig::new("512M") else { return };
    let image = noise(7, 16 << 20);
    fs::write(rig.path("in.img"), &image).expect("there is room");
    rig.ok("-q volume import v in.img");
    rig.ok("-q snapshot create v@s");
    // In the background, in its own time.
    rig.eventually("everything that the snapshot holds has a checksum", || {
        rig.json("status")["pool"]["sealed_bytes"] == image.len()
    });
    let scrub = rig.json("scrub");
    assert_eq!((&scrub["complete"], &scrub["checked_bytes"]), (&true.into(), &image.len().into()));
    assert!(rig.json("status")["pool"]["scrubbed_at"].is_string());

    damage(&rig, &image[5 << 20..][..4096]);
    rig.run(["-q", "scrub", "--restart", "--rate", "1G"]).with(7).saying(&["damage", "cowslip events"]);
    let events = rig.ok("events");
    for holder in ["v", "v@s"] {
        assert!(
            events.contains(&format!("damage {holder}: the block at byte {} of v, v@s", 5 << 20)),
            "{events}"
        );
    }
    let status = rig.json("status");
    assert_eq!(status["pool"]["damaged_blocks"], 1);
    assert!(status["warnings"].to_string().contains("is damaged"), "{status}");

    // It is not returned; what lies around it is.
    rig.run(["-q", "volume", "export", "v@s", "out.img"]).with(7).saying(&["checksum"]);
    assert!(!rig.path("out.img").exists());
    // The checksums outlive the agent that made them, and so does the time of the last scrub.
    rig.kill_and_wait();
    assert!(rig.json("status")["pool"]["scrubbed_at"].is_string());
    rig.run(["-q", "volume", "export", "v@s", "out.img"]).with(7).saying(&["checksum"]);
    rig.stop_and_check();
}
