//! The part of linux/ublk_cmd.h that the control commands need. All numbers have the byte order of the host.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The control device.
pub(super) const CONTROL: &str = "/dev/ublk-control";

/// A command: its number, and whether the kernel only writes what is passed (`_IOR`) or also reads it (`_IOWR`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Op {
    number: u32,
    writes: bool,
}

impl Op {
    pub(super) const GET_DEV_INFO: Self = Self::reads(0x02);
    pub(super) const DEL_DEV: Self = Self::writes(0x05);
    pub(super) const START_DEV: Self = Self::writes(0x06);
    pub(super) const STOP_DEV: Self = Self::writes(0x07);
    pub(super) const SET_PARAMS: Self = Self::writes(0x08);
    pub(super) const START_USER_RECOVERY: Self = Self::writes(0x10);
    pub(super) const END_USER_RECOVERY: Self = Self::writes(0x11);
    pub(super) const GET_FEATURES: Self = Self::reads(0x13);
    pub(super) const UPDATE_SIZE: Self = Self::writes(0x15);
    pub(super) const TRY_STOP_DEV: Self = Self::writes(0x17);

    const fn reads(number: u32) -> Self {
        Self { number, writes: false }
    }

    const fn writes(number: u32) -> Self {
        Self { number, writes: true }
    }

    /// What is put into the ring's entry: an ioctl-like number since kernel 6.4, the bare one before.
    pub(super) const fn code(self, encoded: bool) -> u32 {
        const SIZE: u32 = 32; // of Command
        let direction: u32 = if self.writes { 3 } else { 2 };
        let letter = b'u' as u32;
        if encoded { direction << 30 | SIZE << 16 | letter << 8 | self.number } else { self.number }
    }
}

/// struct ublksrv_ctrl_cmd.
#[derive(IntoBytes, Immutable, Debug)]
#[repr(C)]
pub(super) struct Command {
    pub id: u32,
    /// All ones: no queue.
    pub queue: u16,
    pub buffer_len: u16,
    pub buffer: u64,
    pub data: u64,
    pub path_len: u16,
    pub padding: u16,
    pub reserved: u32,
}

/// struct ublksrv_ctrl_dev_info.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct DeviceInfo {
    pub queues: u16,
    pub depth: u16,
    pub state: u16,
    pub padding0: u16,
    pub max_io_bytes: u32,
    pub id: u32,
    /// The process that serves it; -1: none does.
    pub server_pid: i32,
    pub padding1: u32,
    pub flags: u64,
    /// Ours to use: kept by the kernel for the life of the device.
    pub stamp: u64,
    pub owner_uid: u32,
    pub owner_gid: u32,
    pub reserved: [u64; 2],
}

pub(super) mod state {
    /// Added and not started, or stopped.
    pub const DEAD: u16 = 0;
}

/// Bits of [`DeviceInfo::flags`] and of GET_FEATURES.
pub(super) mod flag {
    pub const SUPPORT_ZERO_COPY: u64 = 1 << 0;
    pub const USER_RECOVERY: u64 = 1 << 3;
    pub const USER_RECOVERY_REISSUE: u64 = 1 << 4;
    pub const USER_COPY: u64 = 1 << 7;
    pub const UPDATE_SIZE: u64 = 1 << 10;
    pub const AUTO_BUF_REG: u64 = 1 << 11;
    pub const PER_IO_DAEMON: u64 = 1 << 13;
    pub const SAFE_STOP_DEV: u64 = 1 << 17;
    /// What it takes to serve requests from their own pages: they are buffers of the queue's ring, and what must be
    /// looked at is copied by reads and writes of the character device.
    pub const ZERO_COPY: u64 = SUPPORT_ZERO_COPY | USER_COPY | AUTO_BUF_REG;
}

/// Bytes of [`Params`].
const PARAMS_LEN: u32 = 136;

/// The beginning of struct ublk_params; the kernel takes any length of it, and no more than it knows.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Params {
    pub len: u32,
    pub types: u32,
    pub attributes: u32,
    pub logical_block_shift: u8,
    pub physical_block_shift: u8,
    pub io_opt_shift: u8,
    pub io_min_shift: u8,
    pub max_sectors: u32,
    pub chunk_sectors: u32,
    pub sectors: u64,
    pub virt_boundary_mask: u64,
    pub discard_alignment: u32,
    pub discard_granularity: u32,
    pub max_discard_sectors: u32,
    pub max_write_zeroes_sectors: u32,
    pub max_discard_segments: u16,
    pub discard_reserved: u16,
    pub char_major: u32,
    pub char_minor: u32,
    pub disk_major: u32,
    pub disk_minor: u32,
    /// Of zoned devices, and the alignment of transfers: not set.
    pub unused: [u32; 11],
    pub segment_boundary_mask: u64,
    pub max_segment_size: u32,
    pub max_segments: u16,
    pub segment_reserved: u16,
}

pub(super) mod param {
    pub const TYPE_BASIC: u32 = 1 << 0;
    pub const TYPE_DISCARD: u32 = 1 << 1;
    pub const TYPE_SEGMENT: u32 = 1 << 5;
    pub const VOLATILE_CACHE: u32 = 1 << 2;
    pub const FUA: u32 = 1 << 3;
}

const _: () = {
    assert!(
        size_of::<Command>() == 32
            && size_of::<DeviceInfo>() == 64
            && size_of::<Params>() == PARAMS_LEN as usize
    );
};

/// Largest discard or write-zeroes at once, bytes: one request does not hold a queue up for long.
const MAX_CLEAR: u64 = 1 << 30;
/// Bytes of a sector, in which ublk counts whatever the block size.
pub(super) const SECTOR: u64 = 512;
/// Pieces of memory of a request whose pages are registered. For up to 32 (`IO_CACHED_BVECS_SEGS` of io_uring/rsrc.c)
/// the kernel keeps the table; for more it takes memory on the agent's account, and where that has a limit, waits for
/// memory that the request itself would free (H3).
const MAX_SEGMENTS: u16 = 32;

impl Params {
    /// A disk of `size` bytes: a volatile write cache and FUA, discard and write-zeroes by 4096 bytes. Kernels that know
    /// no limit of segments (before 6.15) leave it out.
    pub(super) fn of_disk(size: u64, block_size: u32, info: &DeviceInfo) -> Self {
        let max_io_bytes = info.max_io_bytes;
        let zero_copy = info.flags & flag::ZERO_COPY != 0;
        let shift = |bytes: u32| u8::try_from(bytes.trailing_zeros()).unwrap_or(12);
        let max_clear = u32::try_from(MAX_CLEAR / SECTOR).unwrap_or(u32::MAX);
        Self {
            len: PARAMS_LEN,
            types: param::TYPE_BASIC | param::TYPE_DISCARD | if zero_copy { param::TYPE_SEGMENT } else { 0 },
            attributes: param::VOLATILE_CACHE | param::FUA,
            logical_block_shift: shift(block_size),
            // What is written in place whole; a file system need not know anything larger.
            physical_block_shift: 12,
            io_opt_shift: 12,
            io_min_shift: 12,
            max_sectors: max_io_bytes / 512,
            sectors: size / SECTOR,
            discard_granularity: 4096,
            max_discard_sectors: max_clear,
            max_write_zeroes_sectors: max_clear,
            max_discard_segments: 1,
            segment_boundary_mask: u64::from(u32::MAX),
            max_segment_size: max_io_bytes,
            max_segments: MAX_SEGMENTS,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libublk::sys;

    #[test]
    fn commands_are_those_of_the_kernels_header() {
        for (op, code) in [
            (Op::GET_DEV_INFO, sys::UBLK_U_CMD_GET_DEV_INFO),
            (Op::DEL_DEV, sys::UBLK_U_CMD_DEL_DEV),
            (Op::START_DEV, sys::UBLK_U_CMD_START_DEV),
            (Op::STOP_DEV, sys::UBLK_U_CMD_STOP_DEV),
            (Op::SET_PARAMS, sys::UBLK_U_CMD_SET_PARAMS),
            (Op::START_USER_RECOVERY, sys::UBLK_U_CMD_START_USER_RECOVERY),
            (Op::END_USER_RECOVERY, sys::UBLK_U_CMD_END_USER_RECOVERY),
            (Op::GET_FEATURES, sys::UBLK_U_CMD_GET_FEATURES),
            (Op::UPDATE_SIZE, sys::UBLK_U_CMD_UPDATE_SIZE),
            (Op::TRY_STOP_DEV, sys::UBLK_U_CMD_TRY_STOP_DEV),
        ] {
            assert_eq!(op.code(true), code);
            assert_eq!(op.code(false), code & 0xff);
        }
    }

    #[test]
    fn structs_are_those_of_the_kernels_header() {
        assert_eq!(size_of::<Command>(), size_of::<sys::ublksrv_ctrl_cmd>());
        let info = DeviceInfo { queues: 1, depth: 2, state: 3, id: 4, server_pid: -5, ..Default::default() };
        let info = DeviceInfo { max_io_bytes: 6, flags: 7, stamp: 8, owner_uid: 9, owner_gid: 10, ..info };
        let theirs = sys::ublksrv_ctrl_dev_info {
            nr_hw_queues: 1,
            queue_depth: 2,
            state: 3,
            dev_id: 4,
            ublksrv_pid: -5,
            max_io_buf_bytes: 6,
            flags: 7,
            ublksrv_flags: 8,
            owner_uid: 9,
            owner_gid: 10,
            ..Default::default()
        };
        let theirs = DeviceInfo {
            queues: theirs.nr_hw_queues,
            depth: theirs.queue_depth,
            state: theirs.state,
            max_io_bytes: theirs.max_io_buf_bytes,
            id: theirs.dev_id,
            server_pid: theirs.ublksrv_pid,
            flags: theirs.flags,
            stamp: theirs.ublksrv_flags,
            owner_uid: theirs.owner_uid,
            owner_gid: theirs.owner_gid,
            ..Default::default()
        };
        assert_eq!(info, theirs);
        assert_eq!(size_of::<DeviceInfo>(), size_of::<sys::ublksrv_ctrl_dev_info>());
        use std::mem::offset_of as at;
        type Theirs = sys::ublk_params;
        assert_eq!(at!(Params, attributes), at!(Theirs, basic));
        assert_eq!(at!(Params, sectors), at!(Theirs, basic) + at!(sys::ublk_param_basic, dev_sectors));
        assert_eq!(at!(Params, discard_alignment), at!(Theirs, discard));
        assert_eq!(at!(Params, char_major), at!(Theirs, devt));
        assert_eq!(at!(Params, unused), at!(Theirs, zoned));
        // The library's end there; these are of the header of Linux 6.15.
        assert_eq!((at!(Params, segment_boundary_mask), at!(Params, max_segments)), (120, 132));
        assert_eq!(at!(DeviceInfo, stamp), at!(sys::ublksrv_ctrl_dev_info, ublksrv_flags));
        assert_eq!(at!(DeviceInfo, flags), at!(sys::ublksrv_ctrl_dev_info, flags));
    }

    #[test]
    fn flags_are_those_of_the_kernels_header() {
        for (ours, theirs) in [
            (flag::USER_RECOVERY, sys::UBLK_F_USER_RECOVERY),
            (flag::USER_RECOVERY_REISSUE, sys::UBLK_F_USER_RECOVERY_REISSUE),
            (flag::UPDATE_SIZE, sys::UBLK_F_UPDATE_SIZE),
            (flag::PER_IO_DAEMON, sys::UBLK_F_PER_IO_DAEMON),
            (flag::SAFE_STOP_DEV, sys::UBLK_F_SAFE_STOP_DEV),
            (param::TYPE_BASIC.into(), sys::UBLK_PARAM_TYPE_BASIC),
            (param::TYPE_DISCARD.into(), sys::UBLK_PARAM_TYPE_DISCARD),
            (param::VOLATILE_CACHE.into(), sys::UBLK_ATTR_VOLATILE_CACHE),
            (param::FUA.into(), sys::UBLK_ATTR_FUA),
        ] {
            assert_eq!(ours, u64::from(theirs));
        }
        assert_eq!(u32::from(state::DEAD), sys::UBLK_S_DEV_DEAD);
    }

    #[test]
    fn parameters_of_a_disk() {
        let info = DeviceInfo { max_io_bytes: 512 << 10, ..Default::default() };
        let params = Params::of_disk(1 << 30, 4096, &info);
        assert_eq!(params.sectors, 1 << 21);
        assert_eq!((params.logical_block_shift, params.physical_block_shift), (12, 12));
        assert_eq!(params.max_sectors, 1024);
        assert_eq!(params.len, 136);
        assert_eq!(params.types & param::TYPE_SEGMENT, 0);
        assert_eq!(Params::of_disk(4096, 512, &info).logical_block_shift, 9);
        let info = DeviceInfo { flags: flag::ZERO_COPY, ..info };
        let params = Params::of_disk(4096, 512, &info);
        assert_eq!(params.types & param::TYPE_SEGMENT, param::TYPE_SEGMENT);
        assert_eq!((params.max_segments, params.max_segment_size), (32, 512 << 10));
    }
}
