//! Shim, agent, sidecars and kubelet are killed at random instants during random operations. Then everything comes to be as
//! it was asked for, the pools hold what the cluster knows and nothing else, and no file system stays frozen.

use crate::cluster::{Cluster, NODES, Namespace};
use crate::objects::{chosen, on_node, pod, restored, snapshot};
use integration_tests::rig::random;
use integration_tests::{seed, times};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What is killed, by the name of its process.
const VICTIMS: [&str; 8] = [
    "cowslip-csi",
    "cowslip",
    "csi-provisioner",
    "csi-snapshotter",
    "csi-resizer",
    "csi-node-driver-registrar",
    "snapshot-controller",
    "kubelet",
];

fn pick<T: Copy>(seed: &mut u64, of: &[T]) -> Option<T> {
    let count = u64::try_from(of.len()).expect("a count");
    (count > 0).then(|| of[usize::try_from(random(seed) % count).expect("an index")])
}

/// Kills one process of a node, if it is there: of the agent the one that serves.
fn kill(cluster: &Cluster, node: u32, victim: &str) -> bool {
    if victim == "cowslip" {
        let status = cluster.try_agent(node, "status");
        if status.code != Some(0) {
            return false;
        }
        let pid = status.json()["agent"]["pid"].to_string();
        return cluster
            .inside(node, "kill")
            .args(["-KILL", &pid])
            .status()
            .is_ok_and(|status| status.success());
    }
    // The kernel keeps 15 bytes of a name.
    let name = &victim[..victim.len().min(15)];
    // In the node's PID namespace: nobody else's processes are there.
    cluster.inside(node, "pkill").args(["-KILL", "-x", name]).status().is_ok_and(|status| status.success())
}

/// What was asked for, as it should be when everything has settled.
#[derive(Default)]
struct Wanted {
    /// Claims, with their node and what is in them; None: nobody wrote yet.
    claims: BTreeMap<String, (u32, Option<String>)>,
    /// Snapshots, with the node and the content of what they were cut from.
    snapshots: BTreeMap<String, (u32, Option<String>)>,
    /// Pods, each on the claim of the same name.
    pods: BTreeSet<String>,
}

/// One random operation. The API server is never killed: what it accepts must come true.
fn operate(ns: &Namespace, wanted: &mut Wanted, seed: &mut u64, n: u32) -> String {
    let claims: Vec<(String, u32)> =
        wanted.claims.iter().map(|(name, (node, _))| (name.clone(), *node)).collect();
    let claims: Vec<(&str, u32)> = claims.iter().map(|(name, node)| (name.as_str(), *node)).collect();
    let unused: Vec<_> = claims.iter().filter(|(name, _)| !wanted.pods.contains(*name)).copied().collect();
    let snapshots: Vec<String> = wanted.snapshots.keys().cloned().collect();
    let snapshots: Vec<&str> = snapshots.iter().map(String::as_str).collect();
    match random(seed) % 10 {
        0..=2 => {
            let (name, node) = (format!("c{n}"), pick(seed, &NODES).expect("nodes"));
            ns.apply(&chosen(&name, node));
            wanted.claims.insert(name.clone(), (node, None));
            format!("claim {name} on node {node}")
        }
        3 | 4 => {
            let Some((of, node)) = pick(seed, &claims) else { return String::new() };
            let name = format!("s{n}");
            ns.apply(&snapshot(&name, of));
            wanted.snapshots.insert(name.clone(), (node, wanted.claims[of].1.clone()));
            // What is written later must not be in it.
            ns.wait(&format!("jsonpath={{.status.readyToUse}}=true volumesnapshot/{name}"));
            format!("snapshot {name} of {of}")
        }
        5 => {
            let Some(of) = pick(seed, &snapshots) else { return String::new() };
            let (name, (node, content)) = (format!("r{n}"), wanted.snapshots[of].clone());
            ns.apply(&restored(&name, "16Mi", of));
            ns.wait(&format!("jsonpath={{.status.phase}}=Bound pvc/{name}"));
            wanted.claims.insert(name.clone(), (node, content));
            format!("restore {name} of {of}")
        }
        6 | 7 => {
            let Some((of, _)) = pick(seed, &unused) else { return String::new() };
            // A file system is made at the first mount: a copy of a volume without one cannot be mounted.
            let is_copy = of.starts_with('r');
            if wanted.pods.len() >= 6 || is_copy && wanted.claims[of].1.is_none() {
                return String::new();
            }
            ns.apply(&pod(of, &[(of, "/data")]));
            ns.wait(&format!("condition=Ready pod/{of}"));
            let content = format!("{of} {n}");
            let write = format!("echo '{content}' >/data/note && sync -f /data");
            ns.cluster
                .eventually("the pod can be told to write", || ns.try_shell(of, &write).code == Some(0));
            wanted.pods.insert(of.to_owned());
            wanted.claims.get_mut(of).expect("it is there").1 = Some(content);
            format!("pod on {of}")
        }
        8 => {
            let Some((of, _)) = pick(seed, &claims) else { return String::new() };
            ns.kubectl(&format!("delete --wait=false --ignore-not-found pod/{of} pvc/{of}"));
            wanted.pods.remove(of);
            wanted.claims.remove(of);
            format!("delete claim {of}")
        }
        _ => {
            let Some(of) = pick(seed, &snapshots) else { return String::new() };
            ns.kubectl(&format!("delete --wait=false volumesnapshot {of}"));
            wanted.snapshots.remove(of);
            format!("delete snapshot {of}")
        }
    }
}

/// Names of what the cluster has of the namespace, as the pools call it.
fn in_cluster(ns: &Namespace) -> BTreeSet<String> {
    let names = ns.bound().into_iter();
    names.map(|name| name.replacen("snapcontent-", "snapshot-", 1)).collect()
}

fn in_pools(ns: &Namespace) -> BTreeSet<String> {
    ns.pooled().into_iter().collect()
}

#[test]
fn everything_converges() {
    let Some(ns) = Namespace::new("kills") else { return };
    let (mut seed, operations) = (seed(), times("COWSLIP_OPERATIONS", 40));
    println!("seed {seed}, {operations} operations (COWSLIP_SEED, COWSLIP_OPERATIONS)");
    let (mut wanted, mut killed) = (Wanted::default(), BTreeMap::new());
    let done = AtomicBool::new(false);
    let mut killer_seed = random(&mut seed);
    std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let mut killed: BTreeMap<&str, u32> = BTreeMap::new();
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(500 + random(&mut killer_seed) % 2000));
                let node = pick(&mut killer_seed, &NODES).expect("nodes");
                let victim = pick(&mut killer_seed, &VICTIMS).expect("victims");
                if kill(ns.cluster, node, victim) {
                    *killed.entry(victim).or_default() += 1;
                }
            }
            killed
        });
        // However this ends, the killer ends too.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let stop = Stop(&done);
        for n in 0..operations {
            let what = operate(&ns, &mut wanted, &mut seed, n);
            if !what.is_empty() {
                println!("{n}: {what}");
            }
        }
        drop(stop);
        killed = killer.join().expect("the killer ends");
    });
    println!("killed: {killed:?}");
    for name in wanted.claims.keys() {
        ns.wait(&format!("jsonpath={{.status.phase}}=Bound pvc/{name}"));
    }
    let (mut cluster, mut pools) = Default::default();
    ns.cluster.eventually("pools and cluster have the same", || {
        (cluster, pools) = (in_cluster(&ns), in_pools(&ns));
        cluster == pools && cluster.len() == wanted.claims.len() + wanted.snapshots.len()
    });
    // Every claim has what was written, whether it was in use all the time or is used now; and can be written to.
    for (name, (node, content)) in &wanted.claims {
        let Some(content) = content else { continue };
        if !wanted.pods.contains(name) {
            ns.apply(&pod(name, &[(name, "/data")]));
        }
        ns.wait(&format!("condition=Ready pod/{name}"));
        assert_eq!(ns.node_of(name), *node, "claim {name}");
        let read = || ns.try_shell(name, "cat /data/note && echo more >/data/more && sync -f /data");
        let mut found = read();
        ns.cluster.eventually("the file system is not frozen", || {
            found = read();
            found.code == Some(0)
        });
        assert_eq!(found.stdout.trim(), content, "claim {name}");
        if !wanted.pods.contains(name) {
            ns.kubectl(&format!("delete pod {name}"));
        }
    }
    ns.end();
}

/// A mount of a claim's snapshots is there again, in the pod that has it, after the agent was killed.
#[test]
fn browsing_goes_on_after_the_agent_was_killed() {
    let Some(ns) = Namespace::new("browse-kill") else { return };
    ns.claim_in_pod("data", "64Mi");
    ns.shell("data", "echo first >/data/note");
    ns.snapshot("cut", "data");
    let node = ns.node_of("data");
    ns.pod(&on_node(crate::objects::browser("browser", "data"), node));
    let read = format!("cat /snapshots/{}/note", ns.snapshot_name("cut"));
    assert_eq!(ns.shell("browser", &read), "first\n");
    let pid = ns.cluster.agent(node, "status")["agent"]["pid"].to_string();
    assert!(kill(ns.cluster, node, "cowslip"), "process {pid}");
    ns.cluster.eventually("the pod sees the snapshots again", || {
        ns.try_shell("browser", &read).stdout == "first\n"
    });
    assert_eq!(ns.shell("data", "cat /data/note"), "first\n");
    ns.end();
}
