//! From the errors of the store and the system to those of the API.

use api::{Error, ErrorKind};
use std::fmt::Display;
use std::io;

/// The same failure in the API's words.
#[allow(clippy::needless_pass_by_value, reason = "the shape that map_err takes")]
pub fn of_store(error: store::Error) -> Error {
    use store::ErrorKind as Store;
    let kind = match error.kind() {
        Store::Invalid => ErrorKind::Invalid,
        Store::NotFound => ErrorKind::NotFound,
        Store::Exists => ErrorKind::Exists,
        Store::Busy => ErrorKind::Busy,
        Store::NoSpace => ErrorKind::NoSpace,
        Store::Damaged => ErrorKind::Damaged,
        Store::Unsupported => ErrorKind::Unsupported,
        Store::Poisoned => ErrorKind::Poisoned,
        Store::Io => ErrorKind::Io,
    };
    let hint = error.hint_text().map(str::to_owned);
    Error { kind, message: error.to_string(), hint }
}

/// The system's answer to `what`.
pub fn of_io(what: impl Display, error: &io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::PermissionDenied => ErrorKind::Denied,
        io::ErrorKind::ResourceBusy => ErrorKind::Busy,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
        io::ErrorKind::Unsupported => ErrorKind::Unsupported,
        _ => ErrorKind::Io,
    };
    Error::new(kind, format!("{what}: {error}"))
}

/// The same failure of a device in the API's words.
pub fn of_device(error: ublk_target::Error) -> Error {
    use ublk_target::Error as Device;
    match error {
        Device::Io { ref source, .. } => Error { message: error.to_string(), ..of_io("", source) },
        Device::Busy { .. } => Error::new(ErrorKind::Busy, error.to_string())
            .hint("unmount it, or end the processes that have it open, and try again"),
        Device::Unsupported { missing, hint } => Error::new(ErrorKind::Unsupported, missing).hint(hint),
        Device::Invalid { .. } => Error::new(ErrorKind::Invalid, error.to_string()),
        Device::Timeout { .. } | Device::Gone { .. } => Error::new(ErrorKind::Io, error.to_string()),
    }
}

/// A request that can never be right.
pub fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_store_kind_keeps_its_name_and_hint() {
        use store::ErrorKind as Store;
        for (from, to) in [
            (Store::Invalid, ErrorKind::Invalid),
            (Store::NotFound, ErrorKind::NotFound),
            (Store::Exists, ErrorKind::Exists),
            (Store::Busy, ErrorKind::Busy),
            (Store::NoSpace, ErrorKind::NoSpace),
            (Store::Damaged, ErrorKind::Damaged),
            (Store::Unsupported, ErrorKind::Unsupported),
            (Store::Poisoned, ErrorKind::Poisoned),
            (Store::Io, ErrorKind::Io),
        ] {
            let error = of_store(store::Error::new(from, "what").hint("do"));
            assert_eq!(error, Error::new(to, "what").hint("do"));
        }
    }

    #[test]
    fn system_errors_have_kinds() {
        let kind = |errno| of_io("open x", &io::Error::from_raw_os_error(errno)).kind;
        assert_eq!(kind(libc::EACCES), ErrorKind::Denied);
        assert_eq!(kind(libc::EBUSY), ErrorKind::Busy);
        assert_eq!(kind(libc::ENOSPC), ErrorKind::NoSpace);
        assert_eq!(kind(libc::EIO), ErrorKind::Io);
    }
}
