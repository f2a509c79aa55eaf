//! Which volume a device is: 64 bits that the kernel keeps with it, over kills, recoveries and upgrades.
//!
//! The upper half is of the pool's id, which is random; the lower half is the volume's id, never reused in a pool. A
//! device with another upper half is somebody else's and is never touched.

use crate::VolumeKey;
use crate::error::{Error, Result};

/// A device's mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp(u64);

/// Of devices that only try out whether the kernel serves any. No pool has it: see [`pool_part`].
const PROBE_PART: u32 = 0x636f_7773;

impl Stamp {
    /// Of a volume.
    pub(super) fn of(key: &VolumeKey) -> Result<Self> {
        let volume = u32::try_from(key.volume_id).map_err(|_| Error::Invalid {
            what: format!("volume id {}", key.volume_id),
            why: "ublk devices are marked with 32 bits of it; use the transport `loop` for this volume"
                .into(),
        })?;
        Ok(Self(u64::from(pool_part(&key.pool_id)) << 32 | u64::from(volume)))
    }

    /// Of a trial device.
    pub(super) fn probe() -> Self {
        Self(u64::from(PROBE_PART) << 32 | u64::from(std::process::id()))
    }

    /// As the kernel holds it.
    pub(super) fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    pub(super) fn raw(self) -> u64 {
        self.0
    }

    pub(super) fn is_probe(self) -> bool {
        self.0 >> 32 == u64::from(PROBE_PART)
    }

    /// The volume of this pool that it marks; None: a device of another pool, or of other software.
    pub(super) fn volume_of(self, pool_id: &str) -> Option<VolumeKey> {
        let ours = self.0 >> 32 == u64::from(pool_part(pool_id));
        ours.then(|| VolumeKey { pool_id: pool_id.into(), volume_id: self.0 & u64::from(u32::MAX) })
    }
}

/// 32 bits of a pool's id: never those of probes, and never zero, which is what other software leaves there.
fn pool_part(pool_id: &str) -> u32 {
    // FNV-1a over the text: any id is taken, and a random one gives random bits.
    let hash = pool_id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let [a, b, c, d, e, f, g, h] = hash.to_le_bytes();
    let part = u32::from_le_bytes([a ^ e, b ^ f, c ^ g, d ^ h]);
    if matches!(part, 0 | PROBE_PART) { part ^ 1 } else { part }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(pool_id: &str, volume_id: u64) -> VolumeKey {
        VolumeKey { pool_id: pool_id.into(), volume_id }
    }

    const POOL: &str = "0123456789abcdef0123456789abcdef";
    const OTHER: &str = "0123456789abcdef0123456789abcdee";

    #[test]
    fn a_stamp_names_its_volume_to_its_pool_only() {
        for id in [0, 1, 77, u64::from(u32::MAX)] {
            let stamp = Stamp::from_raw(Stamp::of(&key(POOL, id)).unwrap().raw());
            assert_eq!(stamp.volume_of(POOL), Some(key(POOL, id)));
            assert_eq!(stamp.volume_of(OTHER), None);
            assert!(!stamp.is_probe());
        }
    }

    #[test]
    fn what_other_software_leaves_is_nobodys() {
        for raw in [0, 1, 0xff] {
            assert_eq!(Stamp::from_raw(raw).volume_of(POOL), None);
            assert!(!Stamp::from_raw(raw).is_probe());
        }
        assert!(Stamp::probe().is_probe());
        assert_eq!(Stamp::probe().volume_of(POOL), None);
    }

    /// A new version must recognise the devices of an old one.
    #[test]
    fn stamps_do_not_change_between_versions() {
        assert_eq!(Stamp::of(&key(POOL, 5)).unwrap().raw(), FIXED);
    }

    const FIXED: u64 = 3_504_508_329_294_561_285;

    #[test]
    fn an_id_that_does_not_fit_is_refused() {
        assert!(matches!(Stamp::of(&key(POOL, 1 << 32)), Err(Error::Invalid { .. })));
    }
}
