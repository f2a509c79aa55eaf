//! What holds on kernels as distributions ship them: `tests/kernel/test stock` boots some.

use integration_tests::rig::{Rig, cowslip, ended};
use std::fs;

/// `COWSLIP_TEST_AUTO`: the transport that this kernel is known to have.
#[test]
fn auto_takes_the_best_that_this_kernel_has_and_says_why() {
    let expected = std::env::var("COWSLIP_TEST_AUTO").expect("the harness knows its kernels");
    let rig = Rig::without_agent().expect("this kernel has all that is needed");
    let config = fs::read_to_string(rig.path("config.toml")).expect("the rig made it");
    let lines = config.lines().filter(|line| !line.starts_with("transport"));
    let config: String = lines.map(|line| format!("{line}\n")).collect();
    fs::write(rig.path("config.toml"), config).expect("the directory is writable");
    rig.init_pool("512M");
    rig.start();
    let agent = rig.json("status")["agent"].take();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("there is /proc");
    println!("{}: {} ({})", release.trim(), agent["transport"], agent["transport_reason"]);
    assert_eq!(agent["transport"], expected, "{agent}");
    let doctor = ended(cowslip().arg("--socket").arg(rig.path("agent.sock")).arg("doctor"));
    assert!(doctor.stdout.contains("devices survive a killed agent"), "{doctor:?}");
    if expected == "loop" {
        assert!(doctor.stdout.contains("modprobe ublk_drv"), "{doctor:?}");
    }
    rig.terminate();
}
