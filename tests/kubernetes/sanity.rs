//! csi-sanity, the conformance test of the specification's own project, with every capability on.

use crate::csi_rig::Driver;
use crate::program;
use crate::rig::{Rig, resident_mib};
use std::fs;
use std::process::Command;

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

fn sanity(access: &str, more: &[&str]) {
    let Some(program) = program("csi-sanity") else { return };
    let Some(rig) = Rig::new("8G") else { return };
    let driver = Driver::start(&rig);
    rig.eventually("the driver listens", || driver.socket().exists());
    let report = rig.path("report.json");
    let output = Command::new(program)
        .arg("--csi.endpoint")
        .arg(format!("unix://{}", driver.socket().display()))
        .arg("--csi.mountdir")
        .arg(rig.path("kubelet-mount"))
        .arg("--csi.stagingdir")
        .arg(rig.path("kubelet-staging"))
        .args(["--csi.testvolumeaccesstype", access])
        .args(more)
        .arg("--ginkgo.no-color")
        .arg(format!("--ginkgo.json-report={}", report.display()))
        .output()
        .expect("csi-sanity runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", fs::read_to_string(&driver.log).unwrap_or_default());
    let report = serde_json::from_str(&fs::read_to_string(report).expect("a report")).expect("JSON");
    let (passed, skipped) = (specs(&report, "passed"), specs(&report, "skipped"));
    assert_eq!(specs(&report, "failed"), [] as [String; 0]);
    assert!(passed.len() >= 70, "{} passed: {text}", passed.len());
    for name in &skipped {
        let why = SKIPPED.iter().find(|(part, _)| name.contains(part));
        let (_, why) = why.unwrap_or_else(|| panic!("csi-sanity skips what it should not: {name}"));
        println!("csi-sanity left out: {name}: {why}");
    }
    let resident = resident_mib(driver.pid());
    println!("csi-sanity, {access} {more:?}: {} passed, driver {resident} MiB", passed.len());
    assert!(resident <= 32, "the driver has {resident} MiB resident");
    // It deleted everything that it made.
    assert_eq!(rig.json("volume list").as_array().map(Vec::len), Some(0));
    assert_eq!(rig.json("snapshot list").as_array().map(Vec::len), Some(0));
    assert_eq!(rig.mounts().iter().filter(|at| at.contains("kubelet")).count(), 0, "{:?}", rig.mounts());
    drop(driver);
    rig.stop_and_check();
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
