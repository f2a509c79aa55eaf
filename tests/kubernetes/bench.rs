//! How long users wait, beside csi-driver-host-path in the same cluster, with the same sidecars, by turns: `make
//! bench-kubernetes`. Nothing here fails by a clock: it prints a page, and writes it where `COWSLIP_BENCH_OUT` says.

mod api;
mod calls;
mod page;

use crate::cluster::Cluster;
use crate::objects::{chosen_of, claim, of_class, pod, restored, snapshot};
use api::Api;
use integration_tests::times;
use page::Page;
use serde_json::Value;
use std::time::Duration;

/// The node that all is on.
const NODE: u32 = 1;

/// How often a round repeats what takes milliseconds, where a median of a few would be chance: a new claim, and of
/// Cowslip's a snapshot and a restored claim.
const CLAIMS: usize = 24;
const CUTS: usize = 8;
/// How often it repeats a pod, whose times differ by far more than the drivers do: containerd's part alone by a tenth.
const PODS: usize = 10;
/// How often it repeats a restored claim of the peer's, which is a copy.
const COPIES: usize = 2;

/// kubelet looks once a second for what has changed, as after the end of the pod before. So each side's pods are made in
/// steps over a second, each step twice in five rounds: a wait is not that for the rest of the second.
const STEP: Duration = Duration::from_millis(40);
const STEPS: usize = 25;

/// One of the two drivers.
#[derive(Clone, Copy)]
pub struct Side {
    /// What its classes are called.
    pub class: &'static str,
    /// Where kubelet finds it.
    pub socket: &'static str,
}

const OURS: Side = Side { class: "cowslip", socket: "plugins/csi.cowslip.io/csi.sock" };
const THEIRS: Side = Side { class: "hostpath", socket: "plugins/hostpath/csi.sock" };

/// What a user waits for, seconds.
#[derive(Default)]
struct Waits {
    bound: Vec<f64>,
    ready: Vec<f64>,
    restored: Vec<f64>,
    running: Vec<f64>,
}

/// So many percent of them are below; of 50, the middle one, of an even number the upper.
fn percentile(of: &[f64], percent: usize) -> f64 {
    let mut sorted = of.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() * percent / 100).copied().unwrap_or(f64::NAN)
}

fn with_class(mut snapshot: Value, side: Side) -> Value {
    snapshot["spec"]["volumeSnapshotClassName"] = side.class.into();
    snapshot
}

/// A claim that is made without a pod.
fn claimed(object: Value, side: Side) -> Value {
    chosen_of(of_class(object, side.class), NODE)
}

/// A claim of that size with so many MB in it.
fn fill(api: &Api, cluster: &Cluster, side: Side, name: &str, size: &str, megabytes: u32) {
    api.create(&of_class(claim(name, size), side.class));
    api.create(&pod(name, &[(name, "/data")]));
    api.until(&format!("pods/{name}"), |pod| pod["status"]["phase"] == "Running");
    let write =
        format!("dd if=/dev/urandom of=/data/content bs=1M count={megabytes} 2>/dev/null; sync -f /data");
    cluster.try_kubectl(&["exec", name, "--", "sh", "-c", &write]).with(0);
    api.delete(&format!("pods/{name}"));
}

/// One round: new claims, a snapshot of `source`, a claim of it, pods on that, one after another. What the round before
/// left to be written is written first: it is no wait of this one's.
fn round(api: &Api, number: usize, (side, source, size, waits): (Side, &str, &str, &mut Waits)) {
    std::process::Command::new("sync").status().expect("sync runs");
    let is_bound = |claim: &Value| claim["status"]["phase"] == "Bound";
    for _ in 0..CLAIMS {
        waits.bound.push(api.timed(&claimed(claim("new", size), side), is_bound));
        api.delete("persistentvolumeclaims/new");
    }
    let cut = with_class(snapshot("cut", source), side);
    let (snapshots, restores) = if side.class == OURS.class { (CUTS, CUTS) } else { (1, COPIES) };
    for n in 1..=snapshots {
        waits.ready.push(api.timed(&cut, |cut| cut["status"]["readyToUse"] == true));
        // The last one is for the claims.
        if n < snapshots {
            api.delete("volumesnapshots/cut");
        }
    }
    // Ours is made where its source is without being told.
    let copy = of_class(restored("copy", size, "cut"), side.class);
    let copy = if side.class == OURS.class { copy } else { claimed(copy, side) };
    for n in 1..=restores {
        waits.restored.push(api.timed(&copy, is_bound));
        // The last one is for the pods.
        if n < restores {
            api.delete("persistentvolumeclaims/copy");
        }
    }
    let running = |pod: &Value| pod["status"]["phase"] == "Running";
    for again in 0..PODS {
        std::thread::sleep(STEP * u32::try_from((number * PODS + again) % STEPS).expect("a few"));
        waits.running.push(api.timed(&pod("user", &[("copy", "/data")]), running));
        api.delete("pods/user");
    }
    for gone in ["persistentvolumeclaims/copy", "volumesnapshots/cut"] {
        api.delete(gone);
    }
}

/// Snapshots of a hundred claims, asked for at once: seconds until the last is ready.
fn hundred(api: &Api, side: Side) -> f64 {
    let names: Vec<String> = (0..100).map(|n| format!("of-hundred-{n}")).collect();
    for name in &names {
        api.create(&claimed(claim(name, "16Mi"), side));
    }
    for name in &names {
        api.until(&format!("persistentvolumeclaims/{name}"), |claim| claim["status"]["phase"] == "Bound");
    }
    let started = std::time::Instant::now();
    for name in &names {
        api.create(&with_class(snapshot(name, name), side));
    }
    for name in &names {
        api.until(&format!("volumesnapshots/{name}"), |cut| cut["status"]["readyToUse"] == true);
    }
    let took = started.elapsed().as_secs_f64();
    for kind in ["volumesnapshots", "persistentvolumeclaims"] {
        for name in &names {
            api.delete_later(&format!("{kind}/{name}"));
        }
        for name in &names {
            api.gone(&format!("{kind}/{name}"));
        }
    }
    took
}

#[test]
fn beside_host_path() {
    let Some(cluster) = Cluster::running() else { return };
    let rounds = times("COWSLIP_BENCH_ROUNDS", 5);
    let api = Api::start(cluster);
    for side in [OURS, THEIRS] {
        fill(&api, cluster, side, &format!("source-{}", side.class), "1Gi", 500);
    }
    fill(&api, cluster, OURS, "source-large", "10Gi", 5000);
    let (mut ours, mut theirs, mut large) = (Waits::default(), Waits::default(), Waits::default());
    for n in 0..rounds {
        eprintln!("round {} of {rounds}", n + 1);
        let mut sides = [
            (OURS, "source-cowslip", "1Gi", &mut ours),
            (THEIRS, "source-hostpath", "1Gi", &mut theirs),
            (OURS, "source-large", "10Gi", &mut large),
        ];
        // Nobody always follows the same one.
        let number = usize::try_from(n).expect("a few rounds");
        sides.rotate_left(number % 3);
        for side in sides {
            round(&api, number, side);
        }
    }
    let mut page = Page::new(rounds);
    page.waits("claim → Bound", &ours.bound, &theirs.bound, &large.bound);
    page.waits("snapshot → readyToUse", &ours.ready, &theirs.ready, &large.ready);
    page.waits("restored claim → Bound", &ours.restored, &theirs.restored, &large.restored);
    page.waits("pod with the restored claim → Running", &ours.running, &theirs.running, &large.running);
    page.hundred(hundred(&api, OURS), hundred(&api, THEIRS));
    let calls = |side: Side| calls::measure(&cluster.kubelet(NODE, side.socket), 100);
    page.calls(&calls(OURS), &calls(THEIRS));
    page.memory(cluster);
    page.finish();
}
