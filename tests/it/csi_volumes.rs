//! Volumes and snapshots through CSI, as a cluster uses them.

use crate::csi_rig::{
    Csi, MIB, NODE, block, bytes, capability, code, from_snapshot, from_volume, mount, volume,
};
use crate::rig::{noise, tool};
use csi_shim::csi::volume_capability::access_mode::Mode;
use csi_shim::csi::volume_capability::{AccessType, MountVolume};
use csi_shim::csi::{self, Topology, TopologyRequirement};
use csi_shim::ids::{Host, Id, Kind};
use integration_tests::{has_program, may_grow_ext4, skip};
use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use tonic::Code;

fn sync(dir: &Path) {
    tool("sync", [Path::new("-f"), dir]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_used_cut_and_restored_to_a_larger_one_beside_it() {
    let Some(mut csi) = Csi::new("4G").await else { return };
    let ext4 = mount("ext4");
    let source = csi.create(volume("pvc-1", 64 * MIB, ext4.clone())).await.expect("a volume");
    assert_eq!(source.capacity_bytes, bytes(64 * MIB));
    assert_eq!(source.accessible_topology[0].segments["topology.csi.cowslip.io/node"], NODE);
    let dir = csi.publish(&source.volume_id, "a", &ext4).await.expect("it is published");
    csi.publish(&source.volume_id, "a", &ext4).await.expect("once more is fine");
    let old = noise(1, 300_000);
    fs::write(dir.join("file"), &old).expect("the pod writes");

    // Not synced: the freeze writes it back.
    let cut = csi.cut("snapshot-1", &source.volume_id, &[("consistency", "fs")]).await.expect("a snapshot");
    assert!(cut.ready_to_use);
    assert_eq!((cut.size_bytes, cut.source_volume_id.as_str()), (bytes(64 * MIB), source.volume_id.as_str()));
    assert_eq!(csi.rig.json("snapshot show pvc-1@snapshot-1")["consistency"], "fs");
    let crash =
        csi.cut("snapshot-2", &source.volume_id, &[("consistency", "crash")]).await.expect("a snapshot");
    assert_eq!(csi.rig.json("snapshot show pvc-1@snapshot-2")["consistency"], "crash");
    fs::write(dir.join("file"), "new").expect("the pod writes");

    let mut wanted = volume("pvc-2", 256 * MIB, ext4.clone());
    wanted.volume_content_source = from_snapshot(&cut.snapshot_id);
    let restored = csi.create(wanted.clone()).await.expect("a restored volume");
    assert_eq!(
        (restored.capacity_bytes, &restored.content_source),
        (bytes(256 * MIB), &wanted.volume_content_source)
    );
    let beside = csi.publish(&restored.volume_id, "b", &ext4).await.expect("it is published");
    assert!(fs::read(beside.join("file")).expect("the old file is there") == old);
    let usage = csi.stats(&restored.volume_id, &beside).await.expect("figures");
    assert!(usage[0].total > bytes(200 * MIB), "the file system fills the larger device: {usage:?}");
    assert!(usage.iter().all(|one| one.used > 0 && one.available > 0), "{usage:?}");

    let mut wanted = volume("pvc-3", 64 * MIB, ext4.clone());
    wanted.volume_content_source = from_volume(&source.volume_id);
    let copy = csi.create(wanted).await.expect("a copied volume");
    let third = csi.publish(&copy.volume_id, "c", &ext4).await.expect("it is published");
    assert_eq!(fs::read_to_string(third.join("file")).expect("it is there"), "new");
    let names: Vec<_> = csi.rig.json("snapshot list").as_array().expect("a list").clone();
    assert_eq!(names.len(), 2, "the copy left no snapshot behind: {names:?}");

    // The source goes first, then a snapshot, then what was restored of it.
    assert_eq!(code(csi.delete(&source.volume_id).await), Code::FailedPrecondition, "a pod uses it");
    csi.unpublish(&source.volume_id, "a").await.expect("it goes");
    csi.delete(&source.volume_id).await.expect("snapshots outlive their volume");
    csi.delete_snapshot(&cut.snapshot_id).await.expect("volumes outlive their snapshot");
    assert!(fs::read(beside.join("file")).expect("the old file is there") == old);
    for (id, name) in [(&restored.volume_id, "b"), (&copy.volume_id, "c"), (&source.volume_id, "a")] {
        for _ in 0..2 {
            csi.unpublish(id, name).await.expect("it goes, or is gone");
            csi.delete(id).await.expect("it goes, or is gone");
        }
    }
    let mut wanted = volume("pvc-4", 64 * MIB, ext4.clone());
    wanted.volume_content_source = from_snapshot(&crash.snapshot_id);
    let last = csi.create(wanted).await.expect("the snapshot of a deleted volume can be restored");
    csi.publish(&last.volume_id, "d", &ext4).await.expect("its journal is replayed");
    csi.unpublish(&last.volume_id, "d").await.expect("it goes");
    csi.delete_snapshot(&crash.snapshot_id).await.expect("it goes");
    csi.delete(&last.volume_id).await.expect("it goes");
    assert_eq!(csi.rig.mounts().iter().filter(|at| at.contains("kubelet")).count(), 0);
    assert_eq!(csi.rig.json("volume list").as_array().map(Vec::len), Some(0));
    csi.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_xfs_stands_beside_its_source_and_grows_while_it_is_used() {
    beside_its_source_and_growing("xfs", "xfsprogs", 300).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_btrfs_stands_beside_its_source_and_grows_while_it_is_used() {
    beside_its_source_and_growing("btrfs", "btrfs-progs", 128).await;
}

/// A file system that needs so many MiB, and whose copy has its UUID.
async fn beside_its_source_and_growing(fs_type: &str, package: &str, least_mib: u64) {
    if !has_program(&format!("mkfs.{fs_type}")) {
        return skip(&format!("mkfs.{fs_type} is missing: install {package}"));
    }
    let Some(mut csi) = Csi::new("4G").await else { return };
    let xfs = mount(fs_type);
    let source = csi.create(volume("x", 10 * MIB, xfs.clone())).await.expect("a volume");
    assert_eq!(source.capacity_bytes, bytes(least_mib * MIB), "it needs that much");
    let dir = csi.publish(&source.volume_id, "x", &xfs).await.expect("it is published");
    fs::write(dir.join("file"), "kept").expect("the pod writes");
    let cut = csi.cut("s", &source.volume_id, &[]).await.expect("a snapshot");
    let mut wanted = volume("y", least_mib * MIB, xfs.clone());
    wanted.volume_content_source = from_snapshot(&cut.snapshot_id);
    let restored = csi.create(wanted).await.expect("a restored volume");
    let beside = csi.publish(&restored.volume_id, "y", &xfs).await.expect("its UUID is that of its source");
    assert_eq!(fs::read_to_string(beside.join("file")).expect("it is there"), "kept");

    assert_eq!(
        csi.expand(&restored.volume_id, &beside, 600 * MIB).await.expect("it grows"),
        bytes(600 * MIB)
    );
    assert_eq!(csi.expand(&restored.volume_id, &beside, 600 * MIB).await.expect("again"), bytes(600 * MIB));
    assert_eq!(csi.expand(&restored.volume_id, &beside, MIB).await.expect("no less"), bytes(600 * MIB));
    let usage = csi.stats(&restored.volume_id, &beside).await.expect("figures");
    assert!(usage[0].total > bytes(500 * MIB), "{usage:?}");
    assert_eq!(
        code(csi.expand(&restored.volume_id, &dir, MIB).await),
        Code::NotFound,
        "the path is another's"
    );
    assert_eq!(code(csi.stats(&restored.volume_id, &dir).await), Code::NotFound);
    for (id, name) in [(source.volume_id, "x"), (restored.volume_id, "y")] {
        csi.unpublish(&id, name).await.expect("it goes");
    }
    csi.finish();
}

/// The kernel lets only processes with CAP_SYS_RESOURCE grow an ext4 that is mounted. Where it lets this one, as the test kernel
/// does, that grows under an open file; elsewhere the call says why not, and it grows when nobody uses it any more.
#[tokio::test(flavor = "multi_thread")]
async fn an_ext4_grows_while_it_is_used() {
    let Some(mut csi) = Csi::new("2G").await else { return };
    let ext4 = mount("ext4");
    let made = csi.create(volume("v", 64 * MIB, ext4.clone())).await.expect("a volume");
    let dir = csi.publish(&made.volume_id, "v", &ext4).await.expect("it is published");
    let mut file = fs::File::create(dir.join("file")).expect("the pod writes");
    file.write_all(b"before ").expect("the pod writes");
    let grown = csi.expand(&made.volume_id, &dir, 256 * MIB).await;
    file.write_all(b"after").expect("the pod goes on");
    let total = async |csi: &mut Csi| csi.stats(&made.volume_id, &dir).await.expect("figures")[0].total;
    if may_grow_ext4() {
        assert_eq!(grown.expect("it grows"), bytes(256 * MIB));
    } else {
        let refused = grown.expect_err("the kernel refuses");
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains("CAP_SYS_RESOURCE"), "{refused}");
        assert!(total(&mut csi).await < bytes(64 * MIB));
    }
    drop(file);
    csi.expand(&made.volume_id, &dir, 256 * MIB).await.expect("it has grown, or nobody uses it now");
    assert!(total(&mut csi).await > bytes(200 * MIB));
    assert_eq!(fs::read_to_string(dir.join("file")).expect("it is there"), "before after");
    csi.unpublish(&made.volume_id, "v").await.expect("it goes");
    csi.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_volume_is_a_device_file_and_takes_its_source_along() {
    let Some(mut csi) = Csi::new("2G").await else { return };
    let source = csi.create(volume("b", 8 * MIB, block())).await.expect("a volume");
    let node = csi.publish(&source.volume_id, "b", &block()).await.expect("it is published");
    csi.publish(&source.volume_id, "b", &block()).await.expect("once more is fine");
    assert!(fs::metadata(&node).expect("it is there").file_type().is_block_device());
    let old = noise(3, 65536);
    fs::write(&node, &old).expect("the pod writes");
    tool("blockdev", [Path::new("--flushbufs"), &node]);
    let usage = csi.stats(&source.volume_id, &node).await.expect("figures");
    assert_eq!((usage.len(), usage[0].total), (1, bytes(8 * MIB)));

    let mut wanted = volume("c", 8 * MIB, block());
    wanted.volume_content_source = from_volume(&source.volume_id);
    let copy = csi.create(wanted).await.expect("a copy");
    let copied = csi.publish(&copy.volume_id, "c", &block()).await.expect("it is published");
    assert!(fs::read(&copied).expect("it can be read")[..65536] == old);
    assert_eq!(csi.expand(&copy.volume_id, &copied, 16 * MIB).await.expect("it grows"), bytes(16 * MIB));
    assert_eq!(fs::read(&copied).expect("it can be read").len() as u64, 16 * MIB);
    for (id, name) in [(source.volume_id, "b"), (copy.volume_id, "c")] {
        csi.unpublish(&id, name).await.expect("it goes");
        assert!(!csi.target(name).exists(), "so does the file");
    }
    csi.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_call_again_answers_the_same_and_another_is_refused() {
    let Some(mut csi) = Csi::new("2G").await else { return };
    let ext4 = mount("ext4");
    let wanted = volume("v", 64 * MIB, ext4.clone());
    let made = csi.create(wanted.clone()).await.expect("a volume");
    assert_eq!(csi.create(wanted.clone()).await.expect("the same"), made);
    csi.driver.kill();
    let rig = csi.rig;
    let mut csi = Csi::on(rig).await;
    assert_eq!(csi.create(wanted).await.expect("another driver knows it too"), made);
    let snapshot = csi.cut("s", &made.volume_id, &[]).await.expect("a snapshot");
    assert_eq!(csi.cut("s", &made.volume_id, &[]).await.expect("the same"), snapshot);

    assert_eq!(code(csi.create(volume("v", 128 * MIB, ext4.clone())).await), Code::AlreadyExists, "size");
    assert_eq!(code(csi.create(volume("v", 64 * MIB, block())).await), Code::AlreadyExists, "access type");
    let mut sourced = volume("v", 64 * MIB, ext4.clone());
    sourced.volume_content_source = from_snapshot(&snapshot.snapshot_id);
    assert_eq!(code(csi.create(sourced.clone()).await), Code::AlreadyExists, "source");
    let other = csi.create(volume("w", 64 * MIB, ext4.clone())).await.expect("a volume");
    assert_eq!(code(csi.cut("s", &other.volume_id, &[]).await), Code::AlreadyExists, "volume");
    let crash = [("consistency", "crash")];
    assert_eq!(code(csi.cut("s", &made.volume_id, &crash).await), Code::AlreadyExists, "consistency");

    sourced.name = "n".into();
    sourced.capacity_range = volume("", 32 * MIB, block()).capacity_range;
    assert_eq!(code(csi.create(sourced.clone()).await), Code::OutOfRange, "smaller than its source");
    let topology = |node: &str| {
        Some(TopologyRequirement {
            requisite: vec![Topology {
                segments: HashMap::from([("topology.csi.cowslip.io/node".to_owned(), node.to_owned())]),
            }],
            preferred: Vec::new(),
        })
    };
    let mut elsewhere = volume("e", 64 * MIB, ext4.clone());
    elsewhere.accessibility_requirements = topology("there");
    assert_eq!(code(csi.create(elsewhere.clone()).await), Code::ResourceExhausted);
    elsewhere.accessibility_requirements = topology(NODE);
    csi.create(elsewhere).await.expect("here it may be");
    // Of another pool: neither here nor gone.
    let host = Host::parse("00000000000000000000000000000001").expect("a pool's id");
    let foreign = |kind| Id { host, kind, number: 7 }.to_string();
    assert_eq!(code(csi.delete(&foreign(Kind::Volume)).await), Code::FailedPrecondition);
    assert_eq!(code(csi.delete_snapshot(&foreign(Kind::Snapshot)).await), Code::FailedPrecondition);
    sourced.volume_content_source = from_snapshot(&foreign(Kind::Snapshot));
    assert_eq!(code(csi.create(sourced.clone()).await), Code::ResourceExhausted, "the scheduler moves on");
    sourced.volume_content_source = from_snapshot("v1:none");
    assert_eq!(code(csi.create(sourced).await), Code::NotFound);
    // The same name again after its volume has gone, though a snapshot keeps the old one's name.
    csi.delete(&made.volume_id).await.expect("it goes");
    let again = csi.create(volume("v", 64 * MIB, ext4)).await.expect("a volume");
    assert_ne!(again.volume_id, made.volume_id);
    csi.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_may_say_is_refused_and_changes_nothing() {
    let Some(mut csi) = Csi::new("1G").await else { return };
    let long = "x".repeat(129);
    let huge = "x".repeat(10 << 20);
    let tricks = [
        "../../etc",
        "/etc/passwd",
        "v1:../..:..",
        "a\0b",
        "a\u{1b}[2J",
        "v1::",
        long.as_str(),
        huge.as_str(),
    ];
    for id in tricks {
        let asked = csi.delete(id).await.map_err(|status| status.code());
        assert!(asked == Ok(()) || asked == Err(Code::OutOfRange), "{asked:?}");
        assert!(matches!(code(csi.cut("s", id, &[]).await), Code::NotFound | Code::OutOfRange));
        assert!(matches!(code(csi.stage(id, "n", &mount("")).await), Code::NotFound | Code::OutOfRange));
        assert!(matches!(
            code(csi.expand(id, Path::new("/tmp"), 0).await),
            Code::NotFound | Code::OutOfRange
        ));
    }
    for name in ["", "a\0b", "a\u{1b}[2J", "a\u{85}", long.as_str()] {
        assert_eq!(code(csi.create(volume(name, MIB, block())).await), Code::InvalidArgument, "{name:?}");
    }
    assert!(matches!(code(csi.create(volume(&huge, MIB, block())).await), Code::OutOfRange));
    for (key, value) in [
        ("iops", "1"),
        ("fsType", "../ext4"),
        ("pool", "/etc"),
        ("consistency", "a\nb"),
        ("k", &long.repeat(100)),
    ] {
        let mut wanted = volume("p", MIB, block());
        wanted.parameters = HashMap::from([(key.to_owned(), value.to_owned())]);
        assert_eq!(code(csi.create(wanted).await), Code::InvalidArgument, "{key}");
    }
    for mode in [Mode::MultiNodeMultiWriter, Mode::MultiNodeReaderOnly, Mode::Unknown] {
        let access = AccessType::Mount(MountVolume::default());
        assert_eq!(code(csi.create(volume("m", MIB, capability(access, mode))).await), Code::InvalidArgument);
    }
    assert_eq!(csi.rig.json("volume list").as_array().map(Vec::len), Some(0), "nothing was made");

    // Names of any kind are taken, and mean what they say.
    let names = ["..", "a/b@c", "größe 1", "latest", "-x", &"é".repeat(64)];
    for name in names {
        let made = csi.create(volume(name, MIB, block())).await.expect("a volume");
        csi.cut(name, &made.volume_id, &[]).await.expect("a snapshot");
    }
    assert_eq!(csi.rig.json("volume list").as_array().map(Vec::len), Some(names.len()));

    let made = csi.create(volume("v", MIB, block())).await.expect("a volume");
    csi.stage(&made.volume_id, "v", &block()).await.expect("it is staged");
    for path in ["relative/path", "/tmp/../etc/x", "/", "/a\nb"] {
        let mut request = csi.publication(&made.volume_id, "v", &block());
        request.target_path = path.into();
        assert_eq!(code(csi.node.node_publish_volume(request).await), Code::InvalidArgument, "{path:?}");
        let request =
            csi::NodeUnpublishVolumeRequest { volume_id: made.volume_id.clone(), target_path: path.into() };
        assert_eq!(code(csi.node.node_unpublish_volume(request).await), Code::InvalidArgument, "{path:?}");
    }
    // A file that is in the way is nobody's but its owner's.
    let mine = csi.rig.path("mine");
    fs::write(&mine, "mine").expect("the directory is writable");
    let request = csi::NodeUnpublishVolumeRequest {
        volume_id: made.volume_id.clone(),
        target_path: crate::csi_rig::text(&mine),
    };
    code(csi.node.node_unpublish_volume(request).await);
    assert_eq!(fs::read_to_string(&mine).expect("it is there"), "mine");
    csi.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_in_no_log() {
    let Some(mut csi) = Csi::new("1G").await else { return };
    let secrets = HashMap::from([("key".to_owned(), "do-not-tell".to_owned())]);
    let mut wanted = volume("v", MIB, block());
    wanted.secrets = secrets.clone();
    let made = csi.create(wanted.clone()).await.expect("a volume");
    wanted.capacity_range = volume("", 2 * MIB, block()).capacity_range;
    assert_eq!(code(csi.create(wanted).await), Code::AlreadyExists);
    let request = csi::NodeStageVolumeRequest {
        volume_id: made.volume_id,
        staging_target_path: "relative".into(),
        secrets,
        ..Default::default()
    };
    code(csi.node.node_stage_volume(request).await);
    let log = fs::read_to_string(&csi.driver.log).expect("there is a log");
    assert!(log.contains("CreateVolume") && log.contains("NodeStageVolume"), "failures are told: {log}");
    assert!(!log.contains("do-not-tell") && !csi.rig.log().contains("do-not-tell"));
    csi.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_formatted_wholly_or_again_and_never_when_it_holds_something() {
    let Some(mut csi) = Csi::new("2G").await else { return };
    let ext4 = mount("ext4");
    let made = csi.create(volume("v", 64 * MIB, ext4.clone())).await.expect("a volume");
    // What an agent leaves that was killed while mkfs ran: the intent, and half a file system.
    csi.rig.ok("-q snapshot create v@.mkfs --label cowslip.io/mkfs=ext4");
    let device = csi.rig.attach("v");
    fs::write(&device, noise(9, 8192)).expect("the device takes it");
    tool("sync", [&device]);
    let dir = csi.publish(&made.volume_id, "v", &ext4).await.expect("it is formatted again");
    fs::write(dir.join("file"), "kept").expect("the pod writes");
    sync(&dir);
    csi.unpublish(&made.volume_id, "v").await.expect("it goes");
    assert_eq!(csi.rig.json("snapshot list").as_array().map(Vec::len), Some(0), "the intent has gone");
    let dir = csi.publish(&made.volume_id, "v", &ext4).await.expect("it is published again");
    assert_eq!(fs::read_to_string(dir.join("file")).expect("it is there"), "kept");
    csi.unpublish(&made.volume_id, "v").await.expect("it goes");

    let raw = csi.create(volume("raw", 64 * MIB, ext4.clone())).await.expect("a volume");
    let device = csi.rig.attach("raw");
    fs::write(&device, noise(10, 8192)).expect("the device takes it");
    tool("sync", [&device]);
    csi.rig.ok("-q volume detach raw");
    assert_eq!(code(csi.stage(&raw.volume_id, "raw", &ext4).await), Code::FailedPrecondition);
    let device = csi.rig.attach("raw");
    assert!(fs::read(&device).expect("it can be read")[..8192] == noise(10, 8192), "it was left alone");
    csi.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_pod_at_a_time_and_readers_that_only_read() {
    let Some(mut csi) = Csi::new("2G").await else { return };
    let access = || AccessType::Mount(MountVolume { fs_type: "ext4".into(), ..Default::default() });
    let single = capability(access(), Mode::SingleNodeSingleWriter);
    let many = capability(access(), Mode::SingleNodeMultiWriter);
    let made = csi.create(volume("v", 64 * MIB, single.clone())).await.expect("a volume");
    csi.publish(&made.volume_id, "v", &single).await.expect("it is published");
    let second = |csi: &Csi, capability| {
        let mut request = csi.publication(&made.volume_id, "v", capability);
        request.target_path = crate::csi_rig::text(&csi.target("second"));
        request
    };
    let request = second(&csi, &single);
    assert_eq!(code(csi.node.node_publish_volume(request).await), Code::FailedPrecondition);
    let mut request = second(&csi, &many);
    request.readonly = true;
    csi.node.node_publish_volume(request).await.expect("many may");
    fs::write(csi.target("v").join("file"), "seen").expect("the first writes");
    let readers = csi.target("second");
    assert_eq!(fs::read_to_string(readers.join("file")).expect("it is there"), "seen");
    let refused = fs::write(readers.join("file"), "x").expect_err("the second only reads");
    assert_eq!(refused.raw_os_error(), Some(30), "EROFS");
    csi.unpublish_only(&made.volume_id, "second").await.expect("it goes");
    csi.unpublish(&made.volume_id, "v").await.expect("it goes");
    csi.finish();
}
