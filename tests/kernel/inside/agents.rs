//! What an agent holds: it gives back what devices cost, and there is only one of it.

use integration_tests::rig::{Rig, ended, resident_mib};
use integration_tests::times;
use std::fs;

/// Open descriptors and threads of the serving process.
fn held(rig: &Rig) -> (usize, usize) {
    let pid = rig.pid();
    let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).expect("the agent lives").count();
    (count("fd"), count("task"))
}

#[test]
fn attaching_and_detaching_leaks_nothing() {
    let rig = Rig::new("512M").expect("this kernel has all that is needed");
    rig.ok("-q volume create v --size 64M");
    let cycle = || {
        rig.attach("v");
        rig.ok("-q volume detach v");
    };
    // What is made once, at the first use.
    (0..3).for_each(|_| cycle());
    let (fds, threads) = held(&rig);
    let mib = resident_mib(rig.pid());
    let rounds = times("COWSLIP_CYCLES", 30);
    (0..rounds).for_each(|_| cycle());
    let (after, mib_after) = (held(&rig), resident_mib(rig.pid()));
    println!(
        "{fds} descriptors, {threads} threads and {mib} MiB before {rounds} cycles, {after:?} and {mib_after} after"
    );
    // Workers come and go by themselves; one leaked in each cycle would be many more.
    rig.eventually("descriptors and threads are given back", || {
        let now = held(&rig);
        now.0 <= fds + 3 && now.1 <= threads + 3
    });
    // A device's buffers alone are more than 1 MiB.
    assert!(mib_after <= mib + 8, "{mib} MiB before {rounds} cycles, {mib_after} after");
    assert_eq!(rig.devices(), [] as [String; 0]);
    rig.stop_and_check();
}

#[test]
fn a_second_agent_is_refused_and_the_first_one_goes_on() {
    let rig = Rig::new("512M").expect("this kernel has all that is needed");
    rig.ok("-q volume create v --size 64M");
    let device = rig.attach("v");
    let (pid, devices) = (rig.pid(), rig.devices());
    let second = ended(rig.agent().arg("--socket").arg(rig.path("other.sock")));
    assert!(!matches!(second.code, Some(0) | None), "{second:?}");
    assert_eq!((rig.pid(), rig.devices()), (pid, devices));
    fs::File::options()
        .write(true)
        .open(&device)
        .and_then(|device| device.sync_all())
        .expect("the device works");
    rig.stop_and_check();
}
