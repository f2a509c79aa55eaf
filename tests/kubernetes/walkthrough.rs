//! The first steps of docs/kubernetes.md, to the letter.

use crate::cluster::Cluster;
use integration_tests::rig::Ended;
use integration_tests::root;

/// The commands of that section: what is indented by four spaces.
fn commands(section: &str) -> String {
    let text = std::fs::read_to_string(root().join("docs/kubernetes.md")).expect("the page is there");
    let from = text.split_once(&format!("\n## {section}\n")).expect("it has the section").1;
    let section = from.split("\n## ").next().unwrap_or_default();
    section.lines().filter_map(|line| line.strip_prefix("    ")).map(|line| format!("{line}\n")).collect()
}

#[test]
fn first_steps() {
    let Some(cluster) = Cluster::running() else { return };
    let commands = commands("First steps");
    assert!(commands.lines().count() > 50, "{commands}");
    let ended: Ended = cluster.beside("sh").args(["-ec", &commands]).output().expect("a shell runs").into();
    let ended = ended.with(0);
    let printed: Vec<&str> =
        ended.stdout.lines().filter(|line| matches!(*line, "first" | "second")).collect();
    assert_eq!(printed, ["second", "first", "first"], "{ended:?}");
    let left = cluster.get("pvc,pods,volumesnapshots");
    assert_eq!(left["items"].as_array().map(Vec::len), Some(0), "{left}");
}
