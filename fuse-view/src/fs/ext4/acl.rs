//! Access control lists: from ext4's compact form to the one of the kernel's `system.posix_acl_*` attributes.

use crate::fs::bytes::{le16, le32};

const DISK_VERSION: u32 = 1;
const KERNEL_VERSION: u32 = 2;
const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const GROUP: u16 = 8;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
/// Id of entries that stand for nobody in particular.
const NO_ID: u32 = u32::MAX;

/// Converts a list; None: it is not one. On disk only entries for a named user or group carry an id.
pub(super) fn acl_to_kernel(disk: &[u8]) -> Option<Vec<u8>> {
    if disk.len() < 4 || le32(disk, 0) != DISK_VERSION {
        return None;
    }
    let mut out = KERNEL_VERSION.to_le_bytes().to_vec();
    let mut rest = &disk[4..];
    while !rest.is_empty() {
        let (tag, len) = match le16(rest, 0) {
            tag @ (USER_OBJ | GROUP_OBJ | MASK | OTHER) => (tag, 4),
            tag @ (USER | GROUP) => (tag, 8),
            _ => return None,
        };
        let entry = rest.get(..len)?;
        let id = if len == 8 { le32(entry, 4) } else { NO_ID };
        out.extend(tag.to_le_bytes());
        out.extend(&entry[2..4]);
        out.extend(id.to_le_bytes());
        rest = &rest[len..];
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn converts() {
        let disk = [1, 0, 0, 0, 1, 0, 6, 0, 2, 0, 7, 0, 0xE8, 3, 0, 0, 0x20, 0, 4, 0];
        let kernel = [
            2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 7, 0, 0xE8, 3, 0, 0, 0x20, 0, 4, 0, 255, 255,
            255, 255,
        ];
        assert_eq!(acl_to_kernel(&disk).unwrap(), kernel);
        for bad in [&disk[..18], &disk[..3], &[2, 0, 0, 0][..], &[1, 0, 0, 0, 3, 0, 0, 0][..], &disk[..13]] {
            assert_eq!(acl_to_kernel(bad), None, "{bad:?}");
        }
        assert_eq!(acl_to_kernel(&disk[..4]).unwrap(), kernel[..4]);
    }
}
