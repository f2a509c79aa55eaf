//! Access control lists: from the form of XFS to the one of the kernel's `system.posix_acl_*` attributes.

use crate::fs::bytes::{be16, be32};

const KERNEL_VERSION: u32 = 2;
const USER: u32 = 2;
const GROUP: u32 = 8;
/// Id of entries that stand for nobody in particular.
const NO_ID: u32 = u32::MAX;
const HEAD: usize = 4;
const ENTRY: usize = 12;

/// The attribute that the kernel shows for a list kept under `name` in the name space of root.
pub(super) fn shown_as(name: &[u8]) -> Option<&'static [u8]> {
    match name {
        b"SGI_ACL_FILE" => Some(b"system.posix_acl_access"),
        b"SGI_ACL_DEFAULT" => Some(b"system.posix_acl_default"),
        _ => None,
    }
}

/// Converts a list; None: it is not one.
pub(super) fn acl_to_kernel(disk: &[u8]) -> Option<Vec<u8>> {
    let count = usize::try_from(be32(disk, 0)).ok().filter(|_| disk.len() >= HEAD)?;
    let entries = disk[HEAD..].get(..count.checked_mul(ENTRY)?)?;
    let mut out = KERNEL_VERSION.to_le_bytes().to_vec();
    for entry in entries.chunks_exact(ENTRY) {
        let tag = be32(entry, 0);
        let id = match tag {
            USER | GROUP => be32(entry, 4),
            1 | 4 | 0x10 | 0x20 => NO_ID,
            _ => return None,
        };
        out.extend(u16::try_from(tag).ok()?.to_le_bytes());
        out.extend(be16(entry, 8).to_le_bytes());
        out.extend(id.to_le_bytes());
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn converts() {
        let mut disk = vec![0, 0, 0, 2];
        disk.extend([0, 0, 0, 1, 0, 0, 0, 9, 0, 6, 0, 0]);
        disk.extend([0, 0, 0, 2, 0, 0, 3, 0xE8, 0, 7, 0, 0]);
        let kernel = [2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 7, 0, 0xE8, 3, 0, 0];
        assert_eq!(acl_to_kernel(&disk).unwrap(), kernel);
        assert_eq!(acl_to_kernel(&disk[..27]), None);
        assert_eq!(acl_to_kernel(&[0, 0, 0]), None);
        assert_eq!(acl_to_kernel(&[255; 40]), None);
        disk[7] = 3;
        assert_eq!(acl_to_kernel(&disk), None);
    }
}
