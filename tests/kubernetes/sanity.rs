//! csi-sanity, the conformance test of the specification's own project, with every capability on. It lists what a pool has, so
//! it runs while nobody else makes anything.

use crate::cluster::Cluster;
use crate::program;
use integration_tests::rig::Ended;
use std::fs;

/// Where it runs.
const NODE: u32 = 1;

/// Why a part is skipped: csi-sanity's own reasons, which are the design's.
const SKIPPED: &[(&str, &str)] = &[
    ("ControllerPublishVolume", "a volume is on one node: there is nothing to publish to"),
    ("ControllerUnpublishVolume", "as above"),
    ("volume lifecycle", "as above: it is the lifecycle of ControllerPublishVolume"),
    ("ExpandVolume [Controller Server]", "the node grows volumes, while they are used"),
    ("ModifyVolume", "the agent has no limits that could be modified"),
    ("volume attribute class", "as above"),
    ("single node multi writer capability", "it has it, and the test is for those without"),
];

/// The specs of csi-sanity's report with that state, by name.
fn specs(report: &serde_json::Value, state: &str) -> Vec<String> {
    let all = report[0]["SpecReports"].as_array().expect("a report has specs");
    let name = |spec: &serde_json::Value| {
        let outer = spec["ContainerHierarchyTexts"].as_array().cloned().unwrap_or_default();
        let parts: Vec<String> = outer
            .iter()
            .chain([&spec["LeafNodeText"]])
            .filter_map(|t| t.as_str().map(str::to_owned))
            .collect();
        parts.join(" ")
    };
    all.iter().filter(|spec| spec["State"] == state && spec["LeafNodeType"] == "It").map(name).collect()
}

/// Runs it in a node, against the driver as `deploy/` installs it.
fn sanity(access: &str, more: &[&str]) {
    let (Some(cluster), Some(program)) = (Cluster::running(), program("csi-sanity")) else { return };
    let at = |name: &str| format!("/var/lib/kubelet/sanity/{name}");
    let place = cluster.kubelet(NODE, "sanity");
    fs::create_dir_all(&place).expect("the node's directory is writable");
    let ended: Ended = cluster
        .inside(NODE, &program.display().to_string())
        .args(["--csi.endpoint", "unix:///var/lib/kubelet/plugins/csi.cowslip.io/csi.sock"])
        .args(["--csi.mountdir", &at("mount"), "--csi.stagingdir", &at("staging")])
        .args(["--csi.testvolumeaccesstype", access])
        .args(more)
        .arg("--ginkgo.no-color")
        .arg(format!("--ginkgo.json-report={}", at("report.json")))
        .output()
        .expect("csi-sanity runs")
        .into();
    assert_eq!(ended.code, Some(0), "{}", ended.stdout);
    let report = fs::read_to_string(place.join("report.json")).expect("a report");
    let report = serde_json::from_str(&report).expect("JSON");
    let (passed, skipped) = (specs(&report, "passed"), specs(&report, "skipped"));
    assert_eq!(specs(&report, "failed"), [] as [String; 0]);
    assert!(passed.len() >= 70, "{} passed: {}", passed.len(), ended.stdout);
    for name in &skipped {
        let why = SKIPPED.iter().find(|(part, _)| name.contains(part));
        let (_, why) = why.unwrap_or_else(|| panic!("csi-sanity skips what it should not: {name}"));
        println!("csi-sanity left out: {name}: {why}");
    }
    let resident_kib = cluster.resident_kib(NODE, "cowslip-csi node");
    println!("csi-sanity, {access} {more:?}: {} passed, driver {resident_kib} KiB", passed.len());
    assert!(resident_kib <= 32 << 10, "the driver has {resident_kib} KiB resident");
    // It deleted everything that it made.
    for kind in ["volume", "snapshot"] {
        assert_eq!(cluster.agent(NODE, &format!("{kind} list")).as_array().map(Vec::len), Some(0), "{kind}");
    }
    let mounts = cluster.inside(NODE, "cat").arg("/proc/self/mounts").output().expect("cat runs");
    assert!(!String::from_utf8_lossy(&mounts.stdout).contains("kubelet/sanity"), "{mounts:?}");
}

const ONE_GIB: &[&str] = &["--csi.testvolumesize", "1073741824", "--csi.testvolumeexpandsize", "2147483648"];

#[test]
fn csi_sanity_mount() {
    sanity("mount", &[]);
}

#[test]
fn csi_sanity_mount_1_gib() {
    sanity("mount", ONE_GIB);
}

#[test]
fn csi_sanity_block() {
    sanity("block", &[]);
}

#[test]
fn csi_sanity_block_1_gib() {
    sanity("block", ONE_GIB);
}
