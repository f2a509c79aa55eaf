//! The targets, and what one execution does.

use super::edits;
use super::exercise::{Limits, exercise_within};
use super::image::{Edited, Image};
use super::support::Chance;
use super::tables;
use fuse_view::{BlockRead, container};
use std::sync::Arc;

/// One format and the images of it that changes start from.
pub struct Target {
    pub name: &'static str,
    pub images: Vec<Arc<Image>>,
}

macro_rules! seeds {
    ($($name:literal),* $(,)?) => {
        &[$(include_bytes!(concat!("../seeds/", $name, ".zst"))),*]
    };
}

/// Names of all targets.
pub const NAMES: [&str; 5] = ["ext4", "xfs", "btrfs", "vfat", "containers"];

const VFAT_12: &[u8] = include_bytes!("../seeds/vfat-12.zst");

impl Target {
    /// The target of this name.
    pub fn named(name: &str) -> Self {
        let files: &[&[u8]] = match name {
            "ext4" => seeds![
                "ext4-inline",
                "ext4-ext2",
                "ext4-sums",
                "ext4-journal",
                "ext4-journal-sums",
                "ext4-fast"
            ],
            "xfs" => seeds!["xfs-default", "xfs-small-blocks", "xfs-old", "xfs-4"],
            "btrfs" => seeds!["btrfs-subvolumes", "btrfs-log"],
            "vfat" => seeds!["vfat-12", "vfat-16", "vfat-32"],
            "containers" => &[],
            _ => panic!("{name} is no target; there are {}", NAMES.join(", ")),
        };
        let mut images: Vec<_> = files.iter().map(|file| Arc::new(Image::unpack(file))).collect();
        if name == "containers" {
            let inside = zstd::decode_all(VFAT_12).expect("an image compressed by zstd");
            images.extend(tables::all(&inside).iter().map(|disk| Arc::new(Image::of(disk))));
        }
        let name = NAMES.into_iter().find(|known| *known == name).expect("it is known");
        Self { name, images }
    }

    /// Makes the image that `input` means, and asks everything of it: the number of answers, and of errors.
    pub fn run(&self, input: &[u8]) -> (usize, usize) {
        let (number, edits) = edits::parse(input);
        let image = &self.images[number % self.images.len()];
        let dev: Arc<dyn BlockRead> = Arc::new(Edited::new(image, &edits));
        if self.name != "containers" {
            return exercise_within(dev, Limits::FEW);
        }
        let (mut good, mut bad) = (0, 0);
        match container::open(&dev) {
            Ok(container::Contents::Partitions(partitions)) => {
                for (_, part) in partitions.into_iter().take(20) {
                    let (more, worse) = exercise_within(part, Limits::FEW);
                    (good, bad) = (good + more + 1, bad + worse);
                }
            }
            Ok(_) => good += 1,
            Err(_) => bad += 1,
        }
        let _ = (container::locate(&dev, b"/p5/dir"), container::locate(&dev, b"/system/dir"));
        (good, bad)
    }

    /// Changes `input`; `plain` changes some bytes as the fuzzer sees fit.
    pub fn mutate(&self, input: &mut Vec<u8>, seed: u64, plain: impl FnOnce(&mut [u8])) {
        edits::mutate(&self.images, input, &mut Chance(seed), plain);
    }
}
