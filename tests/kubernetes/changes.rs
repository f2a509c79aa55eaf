//! What backup programs ask for: claims cut together, and what changed between two snapshots.

use crate::cluster::{Cluster, Namespace};
use crate::csi_rig::connect;
use crate::groups;
use crate::objects::{as_block, block_pod, claim, pod, restored};
use csi_shim::csi::snapshot_metadata_client::SnapshotMetadataClient;
use csi_shim::csi::{self, BlockMetadata};
use serde_json::json;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;

/// A pod counts in two file systems by turns; whenever both are cut together, the second is never ahead of the first, nor
/// more than one step behind.
#[test]
fn a_group_is_cut_at_one_point() {
    let Some(ns) = Namespace::new("group") else { return };
    let claims = ["first", "second"];
    for name in claims {
        let mut claim = claim(name, "64Mi");
        claim["metadata"]["labels"] = json!({"app": "counter"});
        ns.apply(&claim);
    }
    ns.pod(&pod("counter", &[("first", "/first"), ("second", "/second")]));
    let step = "for d in /first /second; do echo $i >$d/new; mv $d/new $d/n; done";
    ns.shell("counter", &format!("(i=0; while :; do i=$((i+1)); {step}; done) >/dev/null 2>&1 &"));
    ns.apply(&groups::class());
    ns.apply(&groups::group("both", "counter"));
    ns.wait("jsonpath={.status.readyToUse}=true volumegroupsnapshot/both");
    let members = groups::two_members(&ns, "both");
    let mut counted = Vec::new();
    for claim in claims {
        let (_, snapshot) = members.iter().find(|(of, _)| of == claim).expect("each claim has a snapshot");
        let copy = format!("copy-{claim}");
        ns.apply(&restored(&copy, "64Mi", snapshot));
        ns.pod(&pod(&copy, &[(&copy, "/data")]));
        counted.push(ns.shell(&copy, "cat /data/n").trim().parse::<u64>().expect("a number"));
    }
    assert!(counted[0] == counted[1] || counted[0] == counted[1] + 1, "{counted:?}");
    assert!(counted[0] > 0);
    // The copies go on without the group, whose snapshots go with it.
    ns.kubectl("delete volumegroupsnapshot both");
    ns.cluster.eventually("its snapshots go with the group", || {
        ns.get("volumesnapshots")["items"].as_array().is_some_and(Vec::is_empty)
    });
    assert_eq!(ns.shell("copy-first", "cat /data/n").trim(), counted[0].to_string());
    ns.end();
}

/// What the driver's SnapshotMetadata service says of a node's snapshots.
struct Metadata {
    client: SnapshotMetadataClient<tonic::transport::Channel>,
}

impl Metadata {
    async fn of(cluster: &Cluster, node: u32) -> Self {
        let socket = cluster.kubelet(node, "plugins/csi.cowslip.io/csi.sock");
        Self { client: SnapshotMetadataClient::new(connect(&socket).await) }
    }

    async fn allocated(&mut self, snapshot: &str) -> Vec<Range<u64>> {
        let request = csi::GetMetadataAllocatedRequest { snapshot_id: snapshot.into(), ..Default::default() };
        let mut stream = self.client.get_metadata_allocated(request).await.expect("an answer").into_inner();
        let mut all = Vec::new();
        while let Some(page) = stream.message().await.expect("a page") {
            all.extend(page.block_metadata.iter().map(range));
        }
        all
    }

    async fn delta(&mut self, base: &str, target: &str) -> Vec<Range<u64>> {
        let request = csi::GetMetadataDeltaRequest {
            base_snapshot_id: base.into(),
            target_snapshot_id: target.into(),
            // Small pages: they have to fit together.
            max_results: 7,
            ..Default::default()
        };
        let mut stream = self.client.get_metadata_delta(request).await.expect("an answer").into_inner();
        let mut all = Vec::new();
        while let Some(page) = stream.message().await.expect("a page") {
            assert!(page.block_metadata.len() <= 7);
            all.extend(page.block_metadata.iter().map(range));
        }
        all
    }
}

fn range(of: &BlockMetadata) -> Range<u64> {
    let start = u64::try_from(of.byte_offset).expect("an offset");
    start..start + u64::try_from(of.size_bytes).expect("a size")
}

const BLOCK: usize = 4096;

/// The bytes of a snapshot, written by the agent to a file of the host.
fn bytes_of(ns: &Namespace, node: u32, volume: &str, snapshot: &str) -> Vec<u8> {
    let file: PathBuf = ns.cluster.kubelet(node, &format!("{snapshot}.img"));
    let mut export = ns.cluster.inside(node, "cowslip");
    let ended = export
        .args(["-q", "volume", "export", "--no-digest", &format!("{volume}@{snapshot}")])
        .arg(&file)
        .output();
    let ended: integration_tests::rig::Ended = ended.expect("the command runs").into();
    ended.with(0);
    let bytes = fs::read(&file).expect("the image is there");
    fs::remove_file(&file).expect("it can be removed");
    bytes
}

/// Ranges of blocks of which `differs` says so.
fn blocks(count: usize, differs: impl Fn(Range<usize>) -> bool) -> Vec<usize> {
    (0..count).filter(|n| differs(n * BLOCK..(n + 1) * BLOCK)).collect()
}

fn covers(ranges: &[Range<u64>], block: usize) -> bool {
    let at = (block * BLOCK) as u64;
    ranges.iter().any(|range| range.start <= at && at + BLOCK as u64 <= range.end)
}

#[test]
fn changed_blocks_are_what_a_byte_wise_diff_finds() {
    let Some(ns) = Namespace::new("changed") else { return };
    ns.apply(&as_block(claim("disk", "64Mi")));
    ns.pod(&block_pod("writer", &[("disk", "/dev/disk")]));
    // Some blocks here and there, some twice, and a run of them.
    let write = |at: &[usize]| {
        let one = |n: &usize| {
            format!("head -c 4096 /dev/urandom | dd of=/dev/disk bs=4096 seek={n} conv=notrunc 2>/dev/null")
        };
        ns.shell("writer", &(at.iter().map(one).collect::<Vec<_>>().join("; ") + "; sync /dev/disk"));
    };
    write(&[0, 1, 2, 77, 500, 501, 4000, 9000, 16383]);
    ns.snapshot("before", "disk");
    write(&[1, 78, 500, 4001, 12000]);
    ns.shell(
        "writer",
        "head -c 2097152 /dev/urandom | dd of=/dev/disk bs=1M seek=20 conv=notrunc 2>/dev/null; sync /dev/disk",
    );
    ns.snapshot("after", "disk");
    write(&[3, 9000]);
    let node = ns.node_of("writer");
    let volume = ns.volume_name("disk");
    let [before, after] =
        ["before", "after"].map(|name| bytes_of(&ns, node, &volume, &ns.snapshot_name(name)));
    let [base, target] = ["before", "after"].map(|name| ns.snapshot_handle(name));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (delta, allocated) = runtime.block_on(async {
        let mut metadata = Metadata::of(ns.cluster, node).await;
        (metadata.delta(&base, &target).await, metadata.allocated(&target).await)
    });
    let count = before.len() / BLOCK;
    assert_eq!(count, 16384);
    let differ = blocks(count, |at| before[at.clone()] != after[at]);
    assert_eq!(differ.len(), 5 + 512);
    let held = blocks(count, |at| after[at].iter().any(|byte| *byte != 0));
    let told = blocks(count, |at| covers(&delta, at.start / BLOCK));
    assert!(differ.iter().all(|block| told.contains(block)), "{differ:?} {delta:?}");
    // Random bytes: what was written differs. An agent at rest also puts stretches in order whose blocks lie scattered, and then
    // what they hold counts as changed.
    let more: Vec<_> = told.iter().filter(|block| !differ.contains(block)).collect();
    assert!(more.iter().all(|block| held.contains(block)), "{more:?}");
    assert_eq!(blocks(count, |at| covers(&allocated, at.start / BLOCK)), held);
    assert!(delta.windows(2).all(|pair| pair[0].end <= pair[1].start), "in order: {delta:?}");
    ns.end();
}
