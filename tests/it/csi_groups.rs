//! Groups, changed blocks, listings, races, browsing, and an agent that dies.

use crate::csi_rig::{Csi, Driver, MIB, block, code, from_snapshot, mount, text, volume};
use crate::rig::{Rig, noise, tool};
use csi_shim::csi;
use csi_shim::csi::node_client::NodeClient;
use csi_shim::csi::volume_capability::AccessType;
use csi_shim::csi::volume_capability::MountVolume;
use csi_shim::csi::volume_capability::access_mode::Mode;
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tokio_stream::StreamExt;
use tonic::Code;

fn group(name: &str, ids: &[&str]) -> csi::CreateVolumeGroupSnapshotRequest {
    csi::CreateVolumeGroupSnapshotRequest {
        name: name.into(),
        source_volume_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_cut_at_one_point_and_goes_as_one() {
    let Some(mut csi) = Csi::new("2G").await else { return };
    let ext4 = mount("ext4");
    let mut ids = Vec::new();
    for name in ["a", "b"] {
        let made = csi.create(volume(name, 64 * MIB, ext4.clone())).await.expect("a volume");
        csi.publish(&made.volume_id, name, &ext4).await.expect("it is published");
        ids.push(made.volume_id);
    }
    let both = [ids[0].as_str(), ids[1].as_str()];
    let made = csi.groups.create_volume_group_snapshot(group("g", &both)).await.expect("a group");
    let made = made.into_inner().group_snapshot.expect("an answer has the group");
    let sources: Vec<&str> = made.snapshots.iter().map(|one| one.source_volume_id.as_str()).collect();
    assert_eq!(sources, both);
    assert!(made.ready_to_use && made.snapshots.iter().all(|one| one.ready_to_use));
    assert!(made.snapshots.iter().all(|one| one.group_snapshot_id == made.group_snapshot_id));
    for name in ["a", "b"] {
        assert_eq!(csi.rig.json(&format!("snapshot show {name}@g"))["consistency"], "fs");
    }
    let again = csi.groups.create_volume_group_snapshot(group("g", &both)).await.expect("the same");
    assert_eq!(again.into_inner().group_snapshot.as_ref(), Some(&made));
    let other = csi.groups.create_volume_group_snapshot(group("g", &both[..1])).await;
    assert_eq!(code(other), Code::AlreadyExists);
    let missing = csi.groups.create_volume_group_snapshot(group("h", &[both[0], "v1:none"])).await;
    assert_eq!(code(missing), Code::NotFound);
    assert_eq!(csi.rig.json("snapshot list").as_array().map(Vec::len), Some(2), "nothing was cut");

    let members: Vec<String> = made.snapshots.iter().map(|one| one.snapshot_id.clone()).collect();
    let get = |ids: Vec<String>| csi::GetVolumeGroupSnapshotRequest {
        group_snapshot_id: made.group_snapshot_id.clone(),
        snapshot_ids: ids,
        ..Default::default()
    };
    let got = csi.groups.get_volume_group_snapshot(get(members.clone())).await.expect("the group");
    assert_eq!(got.into_inner().group_snapshot.as_ref(), Some(&made));
    let stranger = csi.cut("s", &ids[0], &[]).await.expect("a snapshot").snapshot_id;
    assert_eq!(
        code(csi.groups.get_volume_group_snapshot(get(vec![stranger.clone()])).await),
        Code::InvalidArgument
    );
    let delete = |ids: Vec<String>| csi::DeleteVolumeGroupSnapshotRequest {
        group_snapshot_id: made.group_snapshot_id.clone(),
        snapshot_ids: ids,
        ..Default::default()
    };
    assert_eq!(
        code(csi.groups.delete_volume_group_snapshot(delete(vec![stranger])).await),
        Code::InvalidArgument
    );
    for _ in 0..2 {
        csi.groups.delete_volume_group_snapshot(delete(members.clone())).await.expect("it goes, or is gone");
    }
    assert_eq!(csi.rig.json("snapshot list").as_array().map(Vec::len), Some(1), "the stranger stays");
    assert_eq!(code(csi.groups.get_volume_group_snapshot(get(members)).await), Code::NotFound);
    for (id, name) in ids.iter().zip(["a", "b"]) {
        csi.unpublish(id, name).await.expect("it goes");
    }
    csi.finish();
}

/// The blocks that a list of ranges touches.
fn blocks(ranges: &[csi::BlockMetadata]) -> BTreeSet<i64> {
    ranges
        .iter()
        .flat_map(|r| (r.byte_offset / 4096)..((r.byte_offset + r.size_bytes + 4095) / 4096))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_blocks_are_those_that_a_comparison_finds() {
    let Some(mut csi) = Csi::new("2G").await else { return };
    let made = csi.create(volume("v", 64 * MIB, block())).await.expect("a volume");
    let node = csi.publish(&made.volume_id, "v", &block()).await.expect("it is published");
    let device = fs::File::options().write(true).open(&node).expect("a device");
    let mut seed = 5;
    let mut write = |count: u64| {
        for _ in 0..count {
            let at = crate::rig::random(&mut seed) % (64 * MIB / 4096) * 4096;
            device.write_all_at(&noise(seed, 4096), at).expect("the device takes it");
        }
        device.sync_all().expect("it is written");
    };
    write(300);
    let first = csi.cut("s1", &made.volume_id, &[]).await.expect("a snapshot").snapshot_id;
    write(200);
    let second = csi.cut("s2", &made.volume_id, &[]).await.expect("a snapshot").snapshot_id;
    let read = |name: &str| {
        let file = csi.rig.path(name);
        csi.rig.ok(&format!("-q volume export v@{name} {}", file.display()));
        fs::read(file).expect("it was exported")
    };
    let (old, new) = (read("s1"), read("s2"));
    let differ = |n: &i64| {
        let at = usize::try_from(*n * 4096).expect("an offset");
        old[at..at + 4096] != new[at..at + 4096]
    };
    let all = 0..i64::try_from(64 * MIB / 4096).expect("a number");
    let changed: BTreeSet<i64> = all.clone().filter(differ).collect();
    let used: BTreeSet<i64> = all
        .filter(|n| {
            let at = usize::try_from(*n * 4096).expect("an offset");
            new[at..at + 4096].iter().any(|byte| *byte != 0)
        })
        .collect();

    for max_results in [0, 7] {
        let request = csi::GetMetadataDeltaRequest {
            base_snapshot_id: first.clone(),
            target_snapshot_id: second.clone(),
            max_results,
            ..Default::default()
        };
        let mut answers = csi.metadata.get_metadata_delta(request).await.expect("it answers").into_inner();
        let mut found = Vec::new();
        while let Some(answer) = answers.next().await {
            let answer = answer.expect("a message");
            assert_eq!(answer.volume_capacity_bytes, crate::csi_rig::bytes(64 * MIB));
            assert_eq!(answer.block_metadata_type(), csi::BlockMetadataType::VariableLength);
            assert!(max_results == 0 || answer.block_metadata.len() <= 7);
            found.extend(answer.block_metadata);
        }
        assert!(found.is_sorted_by(|a, b| a.byte_offset + a.size_bytes <= b.byte_offset));
        assert!(found.iter().all(|one| one.size_bytes > 0));
        assert_eq!(blocks(&found), changed);
    }
    let starting_offset = crate::csi_rig::bytes(32 * MIB);
    let request = csi::GetMetadataAllocatedRequest {
        snapshot_id: second.clone(),
        starting_offset,
        ..Default::default()
    };
    let mut answers = csi.metadata.get_metadata_allocated(request).await.expect("it answers").into_inner();
    let mut found = Vec::new();
    while let Some(answer) = answers.next().await {
        found.extend(answer.expect("a message").block_metadata);
    }
    let upper: BTreeSet<i64> = used.into_iter().filter(|n| n * 4096 >= starting_offset).collect();
    assert_eq!(blocks(&found), upper);

    let mut request = csi::GetMetadataDeltaRequest {
        base_snapshot_id: second,
        target_snapshot_id: first,
        ..Default::default()
    };
    assert_eq!(code(csi.metadata.get_metadata_delta(request.clone()).await.map(drop)), Code::InvalidArgument);
    std::mem::swap(&mut request.base_snapshot_id, &mut request.target_snapshot_id);
    request.starting_offset = -1;
    assert_eq!(code(csi.metadata.get_metadata_delta(request).await.map(drop)), Code::OutOfRange);
    drop(device);
    csi.unpublish(&made.volume_id, "v").await.expect("it goes");
    csi.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_at_a_time_and_every_name_once() {
    let Some(csi) = Csi::new("2G").await else { return };
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..50 {
        // Two calls for each name; every fifth pair does not want the same.
        for twin in 0..2 {
            let mut controller = csi.controller.clone();
            calls.spawn(async move {
                let size = if n % 5 == 0 { (1 + twin) * MIB } else { MIB };
                let wanted = volume(&format!("pvc-{n}"), size, block());
                let made = loop {
                    match controller.create_volume(wanted.clone()).await {
                        Err(status) if status.code() == Code::Aborted => tokio::task::yield_now().await,
                        made => break made,
                    }
                };
                let id = match made {
                    Ok(made) => made.into_inner().volume.expect("an answer has the volume").volume_id,
                    Err(status) => {
                        // The larger one lost; the smaller one is content with what it finds.
                        assert_eq!((status.code(), n % 5, twin), (Code::AlreadyExists, 0, 1), "{status}");
                        return;
                    }
                };
                let request = csi::CreateSnapshotRequest {
                    name: format!("snapshot-{n}"),
                    source_volume_id: id,
                    ..Default::default()
                };
                loop {
                    match controller.create_snapshot(request.clone()).await {
                        Err(status) if status.code() == Code::Aborted => tokio::task::yield_now().await,
                        cut => break cut.map(drop).expect("a snapshot"),
                    }
                }
            });
        }
    }
    while let Some(ended) = calls.join_next().await {
        ended.expect("the call does not panic");
    }
    assert_eq!(csi.rig.json("volume list").as_array().map(Vec::len), Some(50));
    assert_eq!(csi.rig.json("snapshot list").as_array().map(Vec::len), Some(50));

    let mut controller = csi.controller.clone();
    let (mut token, mut seen) = (String::new(), BTreeSet::new());
    loop {
        let request =
            csi::ListSnapshotsRequest { max_entries: 7, starting_token: token, ..Default::default() };
        let page = controller.list_snapshots(request).await.expect("a page").into_inner();
        assert!(page.entries.len() <= 7);
        seen.extend(page.entries.into_iter().filter_map(|entry| Some(entry.snapshot?.snapshot_id)));
        token = page.next_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(seen.len(), 50);
    csi.finish();
}

/// A volume of the claim `data` in the namespace `shop`, where it is published, and the snapshot `monday` with `old` in `file`.
async fn snapshot_of_claim(csi: &mut Csi) -> (csi::Volume, PathBuf) {
    let ext4 = mount("ext4");
    let mut wanted = volume("pvc-1", 64 * MIB, ext4.clone());
    wanted.parameters =
        [("csi.storage.k8s.io/pvc/name", "data"), ("csi.storage.k8s.io/pvc/namespace", "shop")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
    let made = csi.create(wanted).await.expect("a volume");
    let dir = csi.publish(&made.volume_id, "v", &ext4).await.expect("it is published");
    fs::write(dir.join("file"), "old").expect("the pod writes");
    csi.cut("monday", &made.volume_id, &[]).await.expect("a snapshot");
    (made, dir)
}

/// What kubelet asks for an inline volume of a pod in that namespace.
fn inline(csi: &Csi, name: &str, claim: &str, namespace: &str) -> csi::NodePublishVolumeRequest {
    let context = [
        ("csi.storage.k8s.io/ephemeral", "true"),
        ("csi.storage.k8s.io/pod.namespace", namespace),
        ("snapshotsOf", claim),
    ];
    csi::NodePublishVolumeRequest {
        volume_id: "csi-0123456789".into(),
        target_path: text(&csi.target(name)),
        volume_capability: Some(crate::csi_rig::capability(
            AccessType::Mount(MountVolume::default()),
            Mode::SingleNodeWriter,
        )),
        volume_context: context.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_browses_the_snapshots_of_its_own_namespace_only() {
    let Some(mut csi) = Csi::new("2G").await else { return };
    let (made, dir) = snapshot_of_claim(&mut csi).await;
    fs::write(dir.join("file"), "new").expect("the pod writes");
    csi.create(volume("other", 64 * MIB, mount("ext4"))).await.expect("a volume of somebody else");

    for (claim, namespace) in
        [("data", "bank"), ("other", "shop"), ("../other", "shop"), ("pvc-1", "shop"), ("*", "shop")]
    {
        let request = inline(&csi, "browser", claim, namespace);
        assert_eq!(code(csi.node.node_publish_volume(request).await), Code::NotFound, "{namespace}/{claim}");
    }
    for _ in 0..2 {
        let request = inline(&csi, "browser", "data", "shop");
        csi.node.node_publish_volume(request).await.expect("it is shown");
    }
    let seen = csi.target("browser");
    assert_eq!(fs::read_to_string(seen.join("monday/file")).expect("it is there"), "old");
    let names: Vec<_> =
        fs::read_dir(&seen).expect("it can be listed").flatten().map(|e| e.file_name()).collect();
    assert!(
        names.iter().any(|name| name == "monday") && !names.iter().any(|name| name == "other"),
        "{names:?}"
    );
    let refused = fs::write(seen.join("monday/file"), "x").expect_err("nobody writes there");
    assert_eq!(refused.raw_os_error(), Some(30), "EROFS");
    csi.unpublish_only("csi-0123456789", "browser").await.expect("it goes");
    assert!(!seen.exists());
    csi.unpublish(&made.volume_id, "v").await.expect("it goes");
    csi.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_browses_again_when_the_agent_is_there_again() {
    let Some(mut csi) = Csi::new("2G").await else { return };
    let (made, _) = snapshot_of_claim(&mut csi).await;
    // Where kubelet has such a volume.
    let name = "uid/volumes/kubernetes.io~csi/browser";
    let request = inline(&csi, name, "data", "shop");
    csi.node.node_publish_volume(request).await.expect("it is shown");
    let file = csi.target(name).join("monday/file");
    let sees = || fs::read_to_string(&file).is_ok_and(|read| read == "old");
    assert!(sees());
    csi.rig.kill_and_wait();
    csi.rig.eventually("the pod sees the snapshots again", sees);
    // While no driver was there.
    csi.driver.kill();
    csi.rig.kill_and_wait();
    assert!(!sees(), "nobody mounts it");
    csi.driver = Driver::start(&csi.rig);
    csi.rig.eventually("the pod sees the snapshots again", sees);
    csi.node = NodeClient::new(csi.driver.channel().await);
    csi.unpublish_only("csi-0123456789", name).await.expect("it goes, with all that was below");
    assert!(!csi.target(name).exists());
    csi.unpublish(&made.volume_id, "v").await.expect("it goes");
    csi.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_dies_is_waited_for_and_nothing_is_lost_or_made_twice() {
    let Some(mut csi) = Csi::new("2G").await else { return };
    let ext4 = mount("ext4");
    let made = csi.create(volume("v", 64 * MIB, ext4.clone())).await.expect("a volume");
    let dir = csi.publish(&made.volume_id, "v", &ext4).await.expect("it is published");
    fs::write(dir.join("file"), "kept").expect("the pod writes");
    let mut made_ids = HashMap::new();
    for round in 0..5 {
        let killer = {
            let pid = csi.rig.pid();
            std::thread::spawn(move || {
                std::thread::sleep(std::time::Duration::from_millis(3 * round));
                crate::rig::signal("KILL", pid);
                pid
            })
        };
        let wanted = volume(&format!("w{round}"), MIB, block());
        let mut cut = None;
        let mut other = None;
        for _ in 0..3000 {
            if cut.is_none() {
                cut = csi.cut(&format!("s{round}"), &made.volume_id, &[]).await.ok();
            }
            if other.is_none() {
                other = csi.create(wanted.clone()).await.ok();
            }
            if cut.is_some() && other.is_some() && killer.is_finished() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        let pid = killer.join().expect("it kills");
        csi.rig.wait_for_another(pid);
        let other = other.expect("a volume, in the end");
        let cut = cut.expect("a snapshot, in the end");
        // What was acknowledged is there after the kill, and there once.
        assert_eq!(csi.create(wanted).await.expect("the same"), other);
        assert_eq!(csi.cut(&format!("s{round}"), &made.volume_id, &[]).await.expect("the same"), cut);
        assert!(made_ids.insert(other.volume_id, ()).is_none());
        fs::write(dir.join(format!("after-{round}")), "thawed").expect("the file system is not frozen");
    }
    assert_eq!(csi.rig.json("volume list").as_array().map(Vec::len), Some(6));
    assert_eq!(csi.rig.json("snapshot list").as_array().map(Vec::len), Some(5));
    csi.unpublish(&made.volume_id, "v").await.expect("it goes");
    csi.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn it_stays_small() {
    let Some(rig) = Rig::new("1G") else { return };
    let mut csi = Csi::on(rig).await;
    for n in 0..100 {
        let made = csi.create(volume(&format!("v{n}"), MIB, block())).await.expect("a volume");
        let cut = csi.cut(&format!("s{n}"), &made.volume_id, &[]).await.expect("a snapshot");
        let mut wanted = volume(&format!("w{n}"), MIB, block());
        wanted.volume_content_source = from_snapshot(&cut.snapshot_id);
        csi.create(wanted).await.expect("a volume");
    }
    let list = csi::ListVolumesRequest::default();
    assert_eq!(csi.controller.list_volumes(list).await.expect("a list").into_inner().entries.len(), 200);
    let resident = crate::rig::resident_mib(csi.driver.pid());
    assert!(resident <= 32, "{resident} MiB are resident");
    let mode = tool("stat", [Path::new("-c%a"), csi.driver.socket()]);
    assert_eq!(mode.trim(), "600");
    csi.finish();
}
