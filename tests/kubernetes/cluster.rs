//! The cluster that `tests/kubernetes/test` has started, and a namespace of it for each test.

use crate::objects;
use integration_tests::rig::{Ended, Running};
use integration_tests::{root, skip};
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Only there so that a failure ends, on a machine however busy; no test asserts a clock.
const PATIENCE: Duration = Duration::from_secs(600);

/// The nodes, by their numbers; the test kernel's cluster has the first only.
pub const NODES: [u32; 2] = [1, 2];

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
}

impl Cluster {
    /// The one that runs; None, said: there is none.
    pub fn running() -> Option<&'static Self> {
        static CLUSTER: OnceLock<Option<Cluster>> = OnceLock::new();
        let find = || std::env::var_os("COWSLIP_CLUSTER").map(|dir| Cluster { dir: dir.into() });
        let found = CLUSTER.get_or_init(find).as_ref();
        if found.is_none() {
            skip("no cluster runs: tests/kubernetes/test starts one, as make test-kubernetes does");
        }
        found
    }

    /// The nodes that it has.
    fn nodes(&self) -> impl Iterator<Item = u32> {
        NODES.into_iter().filter(|node| self.dir.join(format!("node-{node}")).is_dir())
    }

    /// A file of node N, by its path below its /var/lib/kubelet.
    pub fn kubelet(&self, node: u32, path: &str) -> PathBuf {
        self.dir.join(format!("node-{node}/kubelet")).join(path)
    }

    /// Where node N keeps what its containers print.
    pub fn logs_of_pods(&self, node: u32) -> PathBuf {
        self.dir.join(format!("node-{node}/log/pods"))
    }

    fn script(&self, action: &str) -> Command {
        let mut command = Command::new(root().join("tests/kubernetes/cluster"));
        command.arg(action).arg(&self.dir).stdin(Stdio::null());
        command
    }

    /// A command beside the control plane.
    pub fn beside(&self, program: &str) -> Command {
        let mut command = self.script("exec");
        command.arg(program);
        command
    }

    /// A command in node N.
    pub fn inside(&self, node: u32, program: &str) -> Command {
        let mut command = self.script("exec");
        command.args(["-n", &node.to_string(), program]);
        command
    }

    /// Pulls the plug of node N (`crash`), or switches it on again (`start`).
    pub fn power(&self, action: &str, node: u32) {
        let ended: Ended =
            self.script(action).arg(node.to_string()).output().expect("the script runs").into();
        ended.with(0);
    }

    /// Runs kubectl, whatever comes of it.
    pub fn try_kubectl(&self, words: &[&str]) -> Ended {
        self.beside("kubectl").args(words).output().expect("kubectl runs").into()
    }

    /// Runs kubectl on a line of words; what it prints.
    #[track_caller]
    pub fn kubectl(&self, line: &str) -> String {
        let words: Vec<&str> = line.split(' ').collect();
        self.try_kubectl(&words).with(0).stdout
    }

    /// An object, or a list of them.
    #[track_caller]
    pub fn get(&self, line: &str) -> Value {
        let words: Vec<&str> = ["get", "-o", "json"].into_iter().chain(line.split(' ')).collect();
        self.try_kubectl(&words).with(0).json()
    }

    /// Applies objects to a namespace, whatever comes of it.
    pub fn try_apply(&self, namespace: &str, objects: &str) -> Ended {
        self.fed(&["apply", "-n", namespace, "-f", "-"], objects)
    }

    /// Runs kubectl with objects to read.
    fn fed(&self, words: &[&str], objects: &str) -> Ended {
        let mut command = self.beside("kubectl");
        command.args(words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("kubectl runs");
        let mut stdin = child.stdin.take().expect("it was piped");
        stdin.write_all(objects.as_bytes()).expect("kubectl reads");
        drop(stdin);
        Running(child).end()
    }

    /// What the agent of node N says to a line of words.
    pub fn try_agent(&self, node: u32, line: &str) -> Ended {
        let mut command = self.inside(node, "cowslip");
        command.arg("--json").args(line.split(' ')).output().expect("the agent's command runs").into()
    }

    /// The same, which must succeed.
    #[track_caller]
    pub fn agent(&self, node: u32, line: &str) -> Value {
        self.try_agent(node, line).with(0).json()
    }

    /// What the agents have: (node, volume or snapshot).
    pub fn pooled(&self, kind: &str) -> Vec<(u32, Value)> {
        let of = |node| {
            let all = self.agent(node, &format!("{kind} list"));
            all.as_array().expect("a list").iter().map(|one| (node, one.clone())).collect::<Vec<_>>()
        };
        self.nodes().flat_map(of).collect()
    }

    /// A figure in KiB from /proc/PID/status of the processes of node N whose command lines have these words: the largest.
    #[track_caller]
    pub fn memory_kib(&self, node: u32, words: &str, field: &str) -> u64 {
        let script = format!("pgrep -f '{words}' | while read pid; do cat /proc/$pid/status; done");
        let read = self.inside(node, "sh").args(["-c", &script]).output().expect("a shell runs");
        let text = String::from_utf8_lossy(&read.stdout).into_owned();
        let figure = |line: &str| {
            line.strip_prefix(field)?.strip_prefix(':')?.trim().strip_suffix(" kB")?.parse().ok()
        };
        text.lines().filter_map(figure).max().unwrap_or_else(|| panic!("no {field} of {words}: {text}"))
    }

    /// Memory of such a process now.
    #[track_caller]
    pub fn resident_kib(&self, node: u32, words: &str) -> u64 {
        self.memory_kib(node, words, "VmRSS")
    }

    /// Waits for a condition; fails the test if that takes too long.
    #[track_caller]
    pub fn eventually(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let started = Instant::now();
        while !condition() {
            assert!(started.elapsed() < PATIENCE, "waited in vain: {what}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// A namespace of a test's own. What a failed test leaves in it goes with the cluster.
#[derive(Debug)]
pub struct Namespace {
    pub cluster: &'static Cluster,
    pub name: String,
}

impl Namespace {
    /// A new one; None, said: no cluster runs.
    pub fn new(name: &str) -> Option<Self> {
        let cluster = Cluster::running()?;
        cluster.kubectl(&format!("create namespace {name}"));
        // Pods are refused before it is there.
        cluster.kubectl(&format!("wait --for=create serviceaccount/default -n {name} --timeout=60s"));
        Some(Self { cluster, name: name.to_owned() })
    }

    /// Runs kubectl on a line of words in this namespace; what it prints.
    #[track_caller]
    pub fn kubectl(&self, line: &str) -> String {
        self.cluster.kubectl(&format!("-n {} {line}", self.name))
    }

    /// An object, or a list of them.
    #[track_caller]
    pub fn get(&self, line: &str) -> Value {
        self.cluster.get(&format!("-n {} {line}", self.name))
    }

    /// Makes or changes an object.
    #[track_caller]
    pub fn apply(&self, object: &Value) {
        self.apply_text(&object.to_string());
    }

    /// Makes or changes the objects of a manifest.
    #[track_caller]
    pub fn apply_text(&self, manifest: &str) {
        self.cluster.try_apply(&self.name, manifest).with(0);
    }

    /// Makes the objects of a manifest; what kubectl prints.
    #[track_caller]
    pub fn create_text(&self, manifest: &str) -> String {
        self.cluster.fed(&["create", "-n", &self.name, "-f", "-"], manifest).with(0).stdout
    }

    /// Waits until `kubectl wait --for` is content: `jsonpath={.status.phase}=Bound pvc/data`.
    #[track_caller]
    pub fn wait(&self, line: &str) {
        let timeout = PATIENCE.as_secs();
        let words = format!("-n {} wait --timeout={timeout}s --for={line}", self.name);
        let words: Vec<&str> = words.split(' ').collect();
        let ended = self.cluster.try_kubectl(&words);
        assert_eq!(ended.code, Some(0), "{line}: {}\n{}", ended.stderr, self.told());
    }

    /// The newest events, for whoever looks at a failure.
    pub fn told(&self) -> String {
        let line = [
            "-n",
            &self.name,
            "get",
            "events,pods,pvc,volumesnapshots",
            "--sort-by=.metadata.creationTimestamp",
        ];
        self.cluster.try_kubectl(&line).stdout
    }

    /// What the events of an object say.
    #[track_caller]
    pub fn told_of(&self, name: &str) -> String {
        let events = self.get(&format!("events --field-selector=involvedObject.name={name}"));
        let messages = events["items"].as_array().expect("a list").iter();
        messages.filter_map(|event| event["message"].as_str()).collect::<Vec<_>>().join("\n")
    }

    /// Makes an object and waits until it is as it should be.
    #[track_caller]
    fn made(&self, object: &Value, kind: &str, condition: &str) {
        self.apply(object);
        self.wait(&format!("{condition} {kind}/{}", object["metadata"]["name"].as_str().expect("a name")));
    }

    /// A pod, until it is ready.
    #[track_caller]
    pub fn pod(&self, pod: &Value) {
        self.made(pod, "pod", "condition=Ready");
    }

    /// A claim of that size without data, and a pod of the same name that has it at /data, until it runs.
    #[track_caller]
    pub fn claim_in_pod(&self, name: &str, size: &str) {
        self.apply(&objects::claim(name, size));
        self.pod(&objects::pod(name, &[(name, "/data")]));
    }

    /// A snapshot of a claim, until it can be used.
    #[track_caller]
    pub fn snapshot(&self, name: &str, claim: &str) {
        self.made(&objects::snapshot(name, claim), "volumesnapshot", "jsonpath={.status.readyToUse}=true");
    }

    /// Runs a shell command in a pod; what it prints.
    #[track_caller]
    pub fn shell(&self, pod: &str, command: &str) -> String {
        self.try_shell(pod, command).with(0).stdout
    }

    /// The same, whatever comes of it.
    pub fn try_shell(&self, pod: &str, command: &str) -> Ended {
        self.cluster.try_kubectl(&["-n", &self.name, "exec", pod, "--", "sh", "-c", command])
    }

    /// The number of the node that a pod runs on.
    #[track_caller]
    pub fn node_of(&self, pod: &str) -> u32 {
        let pod = self.get(&format!("pod {pod}"));
        let node = pod["spec"]["nodeName"].as_str().and_then(|name| name.strip_prefix("node-"));
        node.and_then(|number| number.parse().ok()).expect("the pod has a node")
    }

    /// The handle by which the driver knows a claim's volume.
    #[track_caller]
    pub fn volume_handle(&self, claim: &str) -> String {
        let claim = self.get(&format!("pvc {claim}"));
        let volume = claim["spec"]["volumeName"].as_str().expect("the claim is bound").to_owned();
        let volume = self.cluster.get(&format!("pv {volume}"));
        volume["spec"]["csi"]["volumeHandle"].as_str().expect("a volume of the driver").to_owned()
    }

    /// The name of the volume of a claim in the pool of its node: what Kubernetes calls its PersistentVolume.
    #[track_caller]
    pub fn volume_name(&self, claim: &str) -> String {
        let claim = self.get(&format!("pvc {claim}"));
        claim["spec"]["volumeName"].as_str().expect("the claim is bound").to_owned()
    }

    /// The handle by which the driver knows a snapshot.
    #[track_caller]
    pub fn snapshot_handle(&self, name: &str) -> String {
        let content = self.content_name(name);
        let content = self.cluster.get(&format!("volumesnapshotcontent {content}"));
        content["status"]["snapshotHandle"].as_str().expect("a snapshot that was cut").to_owned()
    }

    /// The name of a snapshot in the pool of its node.
    #[track_caller]
    pub fn snapshot_name(&self, name: &str) -> String {
        let uid = self.get(&format!("volumesnapshot {name}"))["metadata"]["uid"].clone();
        format!("snapshot-{}", uid.as_str().expect("an object has a uid"))
    }

    /// The content of a snapshot, by its name.
    #[track_caller]
    pub fn content_name(&self, name: &str) -> String {
        let snapshot = self.get(&format!("volumesnapshot {name}"));
        snapshot["status"]["boundVolumeSnapshotContentName"].as_str().expect("a bound snapshot").to_owned()
    }

    /// Names of the volumes and snapshots that the agents have of this namespace.
    pub fn pooled(&self) -> Vec<String> {
        let labels = ["csi.storage.k8s.io/pvc/namespace", "csi.storage.k8s.io/volumesnapshot/namespace"];
        let all = ["volume", "snapshot"].into_iter().flat_map(|kind| self.cluster.pooled(kind));
        let of_this =
            all.filter(|(_, one)| labels.iter().any(|label| one["labels"][label] == self.name.as_str()));
        of_this.map(|(_, one)| one["name"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Names of the persistent volumes and snapshot contents that the cluster has of this namespace.
    pub fn bound(&self) -> Vec<String> {
        let all = self.cluster.get("pv,volumesnapshotcontents");
        let of_this = |one: &&Value| {
            let references = [&one["spec"]["claimRef"], &one["spec"]["volumeSnapshotRef"]];
            references.iter().any(|reference| reference["namespace"] == self.name.as_str())
        };
        let of_this = all["items"].as_array().expect("a list").iter().filter(of_this);
        of_this.map(|one| one["metadata"]["name"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Deletes the namespace with all that is in it. Nothing of it may be left, neither in the cluster nor in the pools.
    #[track_caller]
    pub fn end(self) {
        self.kubectl("delete pods --all --grace-period=1");
        self.cluster.kubectl(&format!("delete namespace {} --wait=false", self.name));
        let line = format!("namespace/{}", self.name);
        let timeout = format!("--timeout={}s", PATIENCE.as_secs());
        let gone = self.cluster.try_kubectl(&["wait", "--for=delete", &line, &timeout]);
        assert_eq!(gone.code, Some(0), "the namespace does not go: {}\n{}", gone.stderr, self.told());
        let mut left = Vec::new();
        self.cluster.eventually("nothing is left of the namespace", || {
            left = self.bound();
            left.extend(self.pooled());
            left.is_empty()
        });
    }
}

/// The text of a manifest beside this file.
pub fn manifest(name: &str) -> String {
    let path: &Path = &root().join("tests/kubernetes/manifests").join(name);
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
