//! The type of a file as modes and directory entries have it, alike in every file system of Linux.

use crate::FileKind;

/// Of the 16 bits of a mode, which type (the upper four, as `S_IFMT` of inode(7)); None: no type.
pub(crate) fn of_mode(mode: u16) -> Option<FileKind> {
    Some(match mode >> 12 {
        0x1 => FileKind::Fifo,
        0x2 => FileKind::CharDev,
        0x4 => FileKind::Dir,
        0x6 => FileKind::BlockDev,
        0x8 => FileKind::File,
        0xA => FileKind::Symlink,
        0xC => FileKind::Socket,
        _ => return None,
    })
}

/// Of the byte of a directory entry (the kernel's `FT_*`); None: no type.
pub(crate) fn of_entry(byte: u8) -> Option<FileKind> {
    Some(match byte {
        1 => FileKind::File,
        2 => FileKind::Dir,
        3 => FileKind::CharDev,
        4 => FileKind::BlockDev,
        5 => FileKind::Fifo,
        6 => FileKind::Socket,
        7 => FileKind::Symlink,
        _ => return None,
    })
}

/// The byte of a directory entry for a file of this mode; 0: no type.
pub(crate) fn entry_of_mode(mode: u16) -> u8 {
    of_mode(mode).and_then(|kind| (1..8).find(|&byte| of_entry(byte) == Some(kind))).unwrap_or(0)
}
