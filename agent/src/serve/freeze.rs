//! File systems held still for a cut.

use super::devices::Device;
use super::errors::of_device;
use crate::config::Config;
use api::Error;
use std::collections::BTreeMap;
use ublk_target::freeze::{self, Frozen};

/// The file systems that are frozen now, by volume. Dropping it thaws them.
#[derive(Default)]
pub struct Frost {
    frozen: BTreeMap<String, Frozen>,
    /// Why a mounted file system is not among them.
    pub failures: BTreeMap<String, Error>,
}

impl Frost {
    /// Freezes what is mounted on these devices, each for the configured deadline at most.
    pub fn freeze<'a>(devices: impl Iterator<Item = (&'a str, &'a Device)>, config: &Config) -> Self {
        let mut frost = Self::default();
        for (volume, device) in devices {
            let device = device.read();
            let deadline = config.freeze_deadline;
            match freeze::freeze(device.device_number(), device.device(), deadline, &config.run_dir) {
                Ok(Some(frozen)) => {
                    frost.frozen.insert(volume.to_owned(), frozen);
                }
                Ok(None) => {} // not mounted
                Err(error) => {
                    frost.failures.insert(volume.to_owned(), of_device(error));
                }
            }
        }
        frost
    }

    /// Whether the volume's file system was frozen.
    pub fn holds(&self, volume: &str) -> bool {
        self.frozen.contains_key(volume)
    }

    /// Thaws everything. Answers with the volumes that did not stay frozen until now.
    pub fn thaw(self) -> Vec<String> {
        self.frozen.into_iter().filter_map(|(volume, frozen)| (!frozen.thaw()).then_some(volume)).collect()
    }
}
