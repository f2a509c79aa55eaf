//! Volumes over ublk beside what else makes block devices of files, by turns, in one kernel: `make bench-kernel`. Nothing
//! here fails by a clock: it prints a page, and leaves it where the host finds it.

mod jobs;
mod page;
mod peers;

use integration_tests::rig::{Rig, tool};
use integration_tests::times;
use jobs::{AFTER_SNAPSHOT, JOBS, Job};
use page::Figures;
use peers::{SIZE_MIB, Thin, file, fill, kernel_loop, rublk};
use std::path::PathBuf;

/// All that are measured, in the order of the tables.
const PEERS: [&str; 8] = [
    "plain file",
    "kernel loop",
    "Cowslip",
    "rublk loop",
    "rublk loop -z",
    "rublk qcow2",
    "dm-thin on files",
    "dm-thin on a disk",
];
/// Where ours is among them, and where the two begin that have snapshots too.
const OURS: usize = 2;
const THIN: usize = 6;

/// The peers that stay as they are.
fn fixed(rig: &Rig) -> [PathBuf; 5] {
    let written = |name: &str| {
        let file = file(rig, name, SIZE_MIB);
        fill(&file);
        file
    };
    let qcow2 = rig.path("image.qcow2");
    tool(
        "qemu-img",
        [
            "create".as_ref(),
            "-q".as_ref(),
            "-f".as_ref(),
            "qcow2".as_ref(),
            qcow2.as_os_str(),
            format!("{SIZE_MIB}M").as_ref(),
        ],
    );
    let qcow2 = rublk("qcow2", &qcow2, &[]);
    fill(&qcow2);
    [
        written("plain"),
        kernel_loop(&written("under-loop")),
        rublk("loop", &written("under-rublk"), &[]),
        rublk("loop", &written("under-rublk-z"), &["--zero-copy"]),
        qcow2,
    ]
}

/// A new volume instead of the last one and its snapshot, written once.
fn new_volume(rig: &Rig) -> PathBuf {
    rig.ok(&format!("-q volume create v --size {SIZE_MIB}M"));
    let device = rig.attach("v");
    fill(&device);
    device
}

fn drop_volume(rig: &Rig) {
    rig.ok("-q volume detach v");
    rig.ok("-q snapshot delete v@s");
    rig.ok("-q volume delete v");
    // What that begins is not to be done beside the next measurements.
    rig.eventually("it is deleted", || rig.json("status")["pending_deletions"] == 0);
}

#[test]
fn beside_the_peers() {
    let (rounds, ms) = (times("COWSLIP_BENCH_ROUNDS", 5), times("COWSLIP_BENCH_MS", 800));
    let rig = Rig::new("6G").expect("this kernel has all that is needed");
    let [plain, looped, rublk, rublk_z, qcow2] = fixed(&rig);
    let mut thin = [Thin::on_files(&rig), Thin::on_disk()];
    let mut figures: Vec<Figures> = vec![vec![Vec::new(); PEERS.len()]; JOBS.len()];
    let mut after: Figures = vec![Vec::new(); PEERS.len()];
    for round in 0..rounds {
        let volume = new_volume(&rig);
        thin.iter_mut().for_each(Thin::renew);
        let [thin_files, thin_disk] = thin.each_ref().map(Thin::device);
        let devices: [&PathBuf; PEERS.len()] =
            [&plain, &looped, &volume, &rublk, &rublk_z, &qcow2, &thin_files, &thin_disk];
        // Not always the same one first.
        let order = (0..PEERS.len()).map(|at| (at + round as usize) % PEERS.len());
        let order: Vec<(usize, usize)> =
            (0..JOBS.len()).flat_map(|job| order.clone().map(move |peer| (job, peer))).collect();
        let work: Vec<(&Job, &PathBuf)> =
            order.iter().map(|(job, peer)| (&JOBS[*job], devices[*peer])).collect();
        for ((job, peer), figure) in order.iter().zip(jobs::run(&rig.path(""), &work, ms)) {
            figures[*job][*peer].push(figure);
        }
        let one = |device: &PathBuf| jobs::run(&rig.path(""), &[(&AFTER_SNAPSHOT, device)], ms)[0];
        for peer in (0..THIN).filter(|peer| *peer != OURS) {
            let overwrites = &figures[1][peer];
            after[peer].push(overwrites[round as usize]);
        }
        for (thin, peer) in thin.iter().zip(THIN..) {
            thin.snapshot();
            after[peer].push(one(devices[peer]));
        }
        // Last: what a snapshot begins in the background is its own affair.
        rig.ok("-q snapshot create v@s");
        after[OURS].push(one(&volume));
        drop_volume(&rig);
        eprintln!("round {} of {rounds}", round + 1);
    }
    let section = page::section(&page::tables(&figures, &after));
    println!("{section}");
    for (name, text) in [("page", page::page(rounds, ms)), ("section", section)] {
        std::fs::write(format!("/run/job/out/{name}.md"), text)
            .expect("`make bench-kernel` shares a directory");
    }
}
