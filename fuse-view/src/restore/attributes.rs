//! Attributes of a restored file. The order matters: chown(2) clears set-user-ID, set-group-ID and
//! capabilities, setting an ACL changes the mode, and everything changes the times.

use super::{Result, at, copy::Restorer};
use crate::{Attr, FileKind};
use std::{fs::File, io, os::unix::fs::MetadataExt};

/// Mode bits that hand the owner's or group's rights to others.
const SET_ID_BITS: u16 = 0o6000;

impl Restorer<'_> {
    /// Gives `file` (which may be open with O_PATH) the attributes of `attr`.
    pub(super) fn set_attributes(&mut self, attr: &Attr, file: &File, path: &str) -> Result<()> {
        let owned = self.set_owner(attr, file, path)?;
        self.set_xattrs(attr, file, path)?;
        if attr.kind != FileKind::Symlink {
            let mut mode = attr.mode & 0o7777;
            // On a directory the bits only say how new files in it are owned.
            if !owned && attr.kind != FileKind::Dir && mode & SET_ID_BITS != 0 {
                mode &= !SET_ID_BITS;
                self.warn("set-user-ID and set-group-ID bits not restored without the owner", path);
            }
            at::set_mode(file, u32::from(mode)).map_err(|e| Self::failed("change the mode of", path, e))?;
        }
        at::set_times(file, attr.atime, attr.mtime).map_err(|e| Self::failed("set the times of", path, e))
    }

    /// Whether the file belongs to whom it should.
    fn set_owner(&mut self, attr: &Attr, file: &File, path: &str) -> Result<bool> {
        if self.options.owner {
            match at::change_owner(file, attr.uid, attr.gid) {
                Ok(()) => return Ok(true),
                Err(error) if is_refusal(&error) => {}
                Err(error) => return Err(Self::failed("change the owner of", path, error)),
            }
        }
        let is = file.metadata().map_err(|error| Self::failed("look at", path, error))?;
        let owned = (is.uid(), is.gid()) == (attr.uid, attr.gid);
        if self.options.owner && !owned {
            self.warn("owner and group not restored, not permitted", path);
        }
        Ok(owned)
    }

    fn set_xattrs(&mut self, attr: &Attr, file: &File, path: &str) -> Result<()> {
        let xattrs = self.view.xattrs(attr.ino).map_err(|e| Self::unreadable(path, e))?;
        for (name, value) in xattrs {
            match at::set_xattr(file, &name, &value) {
                Ok(()) => {}
                Err(error) if is_refusal(&error) => {
                    let name = crate::walk::show(&name);
                    self.warn(&format!("extended attribute {name} not restored: {error}"), path);
                }
                Err(error) => return Err(Self::failed("set extended attributes of", path, error)),
            }
        }
        Ok(())
    }
}

/// Whether the host does not let us, or its file system cannot: worth a warning, not the end. ext4 answers
/// ENOSPC to extended attributes larger than a block.
fn is_refusal(error: &io::Error) -> bool {
    use libc::{E2BIG, EACCES, EINVAL, ENOSPC, EOPNOTSUPP, EPERM, ERANGE};
    let refusals = [EPERM, EACCES, EOPNOTSUPP, EINVAL, E2BIG, ERANGE, ENOSPC];
    error.raw_os_error().is_some_and(|errno| refusals.contains(&errno))
}
