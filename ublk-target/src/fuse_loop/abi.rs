//! The part of the FUSE protocol that one file needs: linux/fuse.h, protocol 7.40 (kernel 6.9).
//!
//! All numbers have the byte order of the host, as the kernel writes them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Node of the root directory, fixed by the protocol.
pub(super) const ROOT: u64 = 1;
/// Node and file handle of the one file: constant, so that nothing of them is lost with a process.
pub(super) const FILE: u64 = 2;

/// Bit of `unique` in the answer to the interruption of a request.
pub(super) const INTERRUPTION: u64 = 1;

/// Protocol version spoken.
pub(super) const MAJOR: u32 = 7;
pub(super) const MINOR: u32 = 40;

/// Bytes of a request that may come before its payload: the header and that of a WRITE.
pub(super) const WRITE_HEADER: usize = size_of::<InHeader>() + size_of::<IoIn>();

pub(super) mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const NOTIFY_REPLY: u32 = 41;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
}

pub(super) mod notify {
    pub const INVAL_INODE: i32 = 2;
    pub const STORE: i32 = 4;
    pub const RETRIEVE: i32 = 5;
    pub const RESEND: i32 = 7;
}

pub(super) mod init {
    pub const ASYNC_READ: u32 = 1 << 0;
    pub const BIG_WRITES: u32 = 1 << 5;
    pub const ASYNC_DIO: u32 = 1 << 15;
    pub const MAX_PAGES: u32 = 1 << 22;
    pub const INIT_EXT: u32 = 1 << 30;
    /// In the second word of flags: the kernel resends what a dead server left open.
    pub const HAS_RESEND: u32 = 1 << 7;
}

pub(super) mod open {
    pub const DIRECT_IO: u32 = 1 << 0;
    pub const NOFLUSH: u32 = 1 << 5;
    pub const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct InHeader {
    pub len: u32,
    pub opcode: u32,
    pub unique: u64,
    pub node: u64,
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
    pub extension: u32,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct OutHeader {
    pub len: u32,
    /// Zero, a negative errno, or the code of a notification (with `unique` zero).
    pub error: i32,
    pub unique: u64,
}

/// What READ and WRITE begin with alike.
#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct IoIn {
    pub handle: u64,
    pub offset: u64,
    pub size: u32,
    pub op_flags: u32,
    pub lock_owner: u64,
    pub open_flags: u32,
    pub padding: u32,
}

#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct FallocateIn {
    pub handle: u64,
    pub offset: u64,
    pub length: u64,
    pub mode: u32,
    pub padding: u32,
}

/// The beginning of INIT: what is read of it.
#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct InitIn {
    pub major: u32,
    pub minor: u32,
    pub max_readahead: u32,
    pub flags: u32,
    pub flags2: u32,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct InitOut {
    pub major: u32,
    pub minor: u32,
    pub max_readahead: u32,
    pub flags: u32,
    pub max_background: u16,
    pub congestion_threshold: u16,
    pub max_write: u32,
    pub time_granularity: u32,
    pub max_pages: u16,
    pub map_alignment: u16,
    pub flags2: u32,
    pub max_stack_depth: u32,
    pub unused: [u32; 6],
}

#[derive(IntoBytes, Immutable, Default)]
#[repr(C)]
pub(super) struct Attr {
    pub inode: u64,
    pub size: u64,
    pub blocks: u64,
    pub times: [u64; 3],
    pub times_ns: [u32; 3],
    pub mode: u32,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub block_size: u32,
    pub flags: u32,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct AttrOut {
    pub valid_seconds: u64,
    pub valid_ns: u32,
    pub padding: u32,
    pub attr: Attr,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct EntryOut {
    pub node: u64,
    pub generation: u64,
    pub entry_valid_seconds: u64,
    pub attr_valid_seconds: u64,
    pub entry_valid_ns: u32,
    pub attr_valid_ns: u32,
    pub attr: Attr,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct OpenOut {
    pub handle: u64,
    pub flags: u32,
    pub padding: u32,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct WriteOut {
    pub size: u32,
    pub padding: u32,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct StatfsOut {
    pub blocks: u64,
    pub blocks_free: u64,
    pub blocks_available: u64,
    pub files: u64,
    pub files_free: u64,
    pub block_size: u32,
    pub name_max: u32,
    pub fragment_size: u32,
    pub padding: u32,
    pub spare: [u32; 6],
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct NotifyStore {
    pub node: u64,
    pub offset: u64,
    pub size: u32,
    pub padding: u32,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct NotifyInvalInode {
    pub node: u64,
    pub offset: i64,
    pub len: i64,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct NotifyRetrieve {
    pub notify_unique: u64,
    pub node: u64,
    pub offset: u64,
    pub size: u32,
    pub padding: u32,
}

const _: () = {
    assert!(size_of::<InHeader>() == 40 && size_of::<OutHeader>() == 16 && WRITE_HEADER == 80);
    assert!(size_of::<FallocateIn>() == 32 && size_of::<InitOut>() == 64 && size_of::<Attr>() == 88);
    assert!(size_of::<AttrOut>() == 104 && size_of::<EntryOut>() == 128 && size_of::<StatfsOut>() == 80);
    assert!(size_of::<NotifyStore>() == 24 && size_of::<NotifyRetrieve>() == 32);
};
