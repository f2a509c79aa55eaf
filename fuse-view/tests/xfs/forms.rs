//! Logs that are clean, frozen or refused, and what lies around a log.

use crate::common::support::{Chance, run};
use crate::common::tree::Mask;
use crate::image::{edit_superblock, mkfs, set_incompat};
use crate::reference::{Busy, Features, compare};
use crate::workload::Workload;
use fuse_view::fs::open;
use fuse_view::source::FileImage;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

const PLAIN: Features = Features { mkfs: "", mount: "", incompat: 0 };

fn told(image: &Path) -> String {
    match open(Arc::new(FileImage::open(image).unwrap())) {
        Ok(fs) => fs.replay(),
        Err(e) => e.to_string(),
    }
}

fn work(busy: &Busy, steps: u64) {
    let mut workload = Workload::new(busy.root(), 17);
    (0..steps).for_each(|_| workload.step());
    File::open(busy.root()).unwrap().sync_all().unwrap();
}

#[test]
fn x17_clean_and_frozen() {
    let dir = crate::common::support::workdir();
    let Some(fresh) = mkfs(dir.path(), 64, "") else { return };
    assert_eq!(told(&fresh), "clean", "never mounted");
    let Some(mut busy) = Busy::new(PLAIN, "x17") else { return };
    work(&busy, 100);
    let root = busy.root().to_str().unwrap().to_owned();
    run("fsfreeze", &["--freeze", &root]).unwrap();
    let frozen = busy.copy("frozen");
    run("fsfreeze", &["--unfreeze", &root]).unwrap();
    // There is no mark of a clean end, but nothing that the disk does not have.
    assert_eq!(busy.compare(&frozen), "replayed");
    let unmounted = busy.unmount();
    assert_eq!(busy.compare(&unmounted), "clean");
}

/// Where the kernel refuses, nothing is claimed.
#[test]
fn x17_refused() {
    const NEEDS_REPAIR: u32 = 0x10;
    let Some(busy) = Busy::new(PLAIN, "x17 refused") else { return };
    work(&busy, 100);
    let refused = |name: &str, change: &dyn Fn(&Path), why: &str| {
        let image = busy.copy(name);
        change(&image);
        let says = told(&image);
        assert!(says.starts_with("partial") && says.contains(why), "{name}: {says}");
        compare(&image, &image.with_extension("mnt"), name, Mask::default()).expect_err("the kernel refuses");
    };
    refused("repair", &|image| set_incompat(image, NEEDS_REPAIR), "xfs_repair");
    let log_feature = |sb: &mut [u8]| sb[223] |= 0x80;
    refused("log feature", &|image| edit_superblock(image, log_feature), "0x80");
}

#[test]
fn x17_unknown_features_are_refused_by_name() {
    let dir = crate::common::support::workdir();
    let Some(image) = mkfs(dir.path(), 64, "") else { return };
    set_incompat(&image, 0x200 | 0x8000);
    let why = open(Arc::new(FileImage::open(&image).unwrap())).err().expect("refused").to_string();
    assert!(why.contains("zoned") && why.contains("0x8000"), "{why}");
}

#[test]
fn x18_growth_in_the_log() {
    let Some(mut busy) = Busy::new(Features { mkfs: "-d size=48m,agcount=2", ..PLAIN }, "x18") else {
        return;
    };
    work(&busy, 50);
    run("xfs_growfs", &[busy.root().to_str().unwrap()]).unwrap();
    // What is written now lies in groups that the superblock on disk does not know.
    for i in 0..40 {
        let dir = busy.root().join(format!("dir{i}"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("file"), Chance(i).bytes(500_000)).unwrap();
        File::open(dir.join("file")).unwrap().sync_all().unwrap();
    }
    assert_eq!(busy.cut(), "replayed");
}

#[test]
fn x18_another_uuid_than_that_of_the_metadata() {
    let change = |image: &Path| {
        run("xfs_admin", &["-U", "01020304-0506-0708-090a-0b0c0d0e0f10", image.to_str().unwrap()]).unwrap();
    };
    let Some(mut busy) = Busy::with(PLAIN, "x18 uuid", change) else { return };
    work(&busy, 150);
    assert_eq!(busy.cut(), "replayed");
    let unmounted = busy.unmount();
    let fs = open(Arc::new(FileImage::open(&unmounted).unwrap())).unwrap();
    assert!(fs.label().contains("01020304-0506-0708-090a-0b0c0d0e0f10"), "{}", fs.label());
}

#[test]
fn x18_a_log_on_another_device_is_told() {
    let dir = crate::common::support::workdir();
    let log = dir.path().join("log");
    File::create(&log).unwrap().set_len(64 << 20).unwrap();
    let Some(image) = mkfs(dir.path(), 64, &format!("-l logdev={},size=16m", log.display())) else { return };
    let says = told(&image);
    assert!(says.starts_with("partial: the log is on another device"), "{says}");
}
