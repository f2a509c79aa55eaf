//! Extended attributes. Names are stored in full and access control lists in the kernel's own form: nothing to convert.

use super::Btrfs;
use super::entry;
use super::inode::Inode;
use super::key::{Key, kind};
use crate::{Error, Result};

/// Most bytes of attributes of one inode: as many as a list of names of the longest length the kernel takes may hold.
const MAX_BYTES: usize = 16 << 20;

impl Btrfs {
    /// All attributes, sorted by name.
    pub(super) fn all_xattrs(&self, inode: &Inode) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let bad = |what: &str| {
            Error::Corrupt(format!(
                "btrfs attributes of inode {} of subvolume {}: {what}",
                inode.ino, inode.subvol.id
            ))
        };
        let mut found = Vec::new();
        let mut bytes = 0;
        let view = inode.subvol.view(&self.blocks);
        for item in view.walk(Key::new(inode.ino, kind::XATTR, 0)) {
            let (key, item) = item?;
            if !key.is(inode.ino, kind::XATTR) {
                break;
            }
            bytes += item.len();
            if bytes > MAX_BYTES {
                return Err(bad("more than 16 MiB of them"));
            }
            for attribute in entry::entries(&item) {
                let attribute = attribute.map_err(bad)?;
                found.push((attribute.name.to_vec(), attribute.data.to_vec()));
            }
        }
        found.sort();
        Ok(found)
    }
}
