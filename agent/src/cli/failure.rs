//! Why a command failed, and the exit code that scripts see. The one place that maps the errors of the store,
//! the API, the readers and the system to those codes.

use std::{fmt, io, path::Path, process::ExitCode};

/// Result of a command.
pub type Result<T> = std::result::Result<T, Failure>;

/// Kind of failure: one exit code and one word in JSON each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Anything that has no kind of its own.
    Failed,
    /// The command line cannot be right.
    Usage,
    /// No such volume, snapshot, pool or file.
    NotFound,
    /// The name is taken.
    Exists,
    /// In use: attached, mounted, locked.
    Busy,
    /// The pool or a disk is full.
    NoSpace,
    /// No agent answers on the socket.
    Unreachable,
    /// What is stored contradicts itself.
    Damaged,
    /// This build, kernel or pool cannot do it.
    Unsupported,
    /// Ctrl-C or SIGTERM.
    Interrupted,
    /// Whoever read our output went away: no failure of ours, and nobody to tell.
    OutputClosed,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 11] = [
        Self::Failed,
        Self::Usage,
        Self::NotFound,
        Self::Exists,
        Self::Busy,
        Self::NoSpace,
        Self::Unreachable,
        Self::Damaged,
        Self::Unsupported,
        Self::Interrupted,
        Self::OutputClosed,
    ];

    /// The process's exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::OutputClosed => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Exists | Self::Busy => 4,
            Self::NoSpace => 5,
            Self::Unreachable => 6,
            Self::Damaged => 7,
            Self::Unsupported => 8,
            // 128 + SIGINT, what shells expect of an interrupted program.
            Self::Interrupted => 130,
        }
    }

    /// The word in `{"error":{"kind"}}`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::NotFound => "not_found",
            Self::Exists => "exists",
            Self::Busy => "busy",
            Self::NoSpace => "no_space",
            Self::Unreachable => "unreachable",
            Self::Damaged => "damaged",
            Self::Unsupported => "unsupported",
            Self::Interrupted => "interrupted",
            Self::OutputClosed => "output_closed",
        }
    }
}

/// What was wrong and where, and what the user can do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    kind: Kind,
    message: String,
    hint: Option<String>,
}

impl Failure {
    /// A failure of `kind`; `message` says what was wrong and where.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None }
    }

    /// A command line that cannot be right.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// A failure without a kind of its own.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// The system's answer to `what` (`open /x`, `write disk.img`).
    pub fn io(what: impl fmt::Display, source: &io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::NotFound => Kind::NotFound,
            io::ErrorKind::AlreadyExists => Kind::Exists,
            io::ErrorKind::ResourceBusy => Kind::Busy,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::NoSpace,
            _ => Kind::Failed,
        };
        Self::new(kind, format!("{what}: {}", system_text(source)))
    }

    /// A failed write to standard output: quiet when the reader went away (`| head`).
    pub fn output(source: &io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::BrokenPipe => Self::new(Kind::OutputClosed, "standard output was closed"),
            _ => Self::io("write to standard output", source),
        }
    }

    /// Ctrl-C.
    pub fn interrupted() -> Self {
        Self::new(Kind::Interrupted, "interrupted")
    }

    /// Adds what the user can do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds what the user can do, unless the failure says it already.
    #[must_use]
    pub fn or_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// Puts where it happened in front of the message.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }

    /// What another process of this program reported on its stderr before it ended with `code`.
    pub fn from_report(stderr: &[u8], code: Option<i32>) -> Self {
        let kind = Kind::ALL.into_iter().find(|kind| Some(i32::from(kind.exit_code())) == code);
        let kind = kind.filter(|kind| kind.exit_code() != 0).unwrap_or(Kind::Failed);
        let text = String::from_utf8_lossy(stderr);
        let json = text.lines().rev().find_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let field = |name: &str| Some(json.as_ref()?.get("error")?.get(name)?.as_str()?.to_owned());
        let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        let message = field("message").or_else(|| line("error: "));
        let failure = Self::new(
            kind,
            message.unwrap_or_else(|| format!("the serving process failed: {}", text.trim())),
        );
        match field("hint").or_else(|| line("hint: ")) {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }

    /// Says where it happened, unless the message does already.
    #[must_use]
    pub fn about(self, place: &Path) -> Self {
        let place = place.display().to_string();
        if self.message.contains(&place) { self } else { self.at(place) }
    }

    /// Kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Exit code.
    pub fn exit_code(&self) -> u8 {
        self.kind.exit_code()
    }

    /// What was wrong.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What the user can do.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Prints the failure to stderr as text or JSON; returns the exit code.
    pub fn report(&self, json: bool, color: bool) -> ExitCode {
        if self.kind != Kind::OutputClosed {
            if json {
                eprintln!("{}", self.to_json());
            } else {
                let (red, cyan, off) =
                    if color { ("\x1b[1;31m", "\x1b[36m", "\x1b[0m") } else { ("", "", "") };
                eprintln!("{red}error:{off} {}", self.message);
                if let Some(hint) = &self.hint {
                    eprintln!("{cyan}hint:{off} {hint}");
                }
            }
        }
        ExitCode::from(self.exit_code())
    }

    /// `{"error":{"kind","message","hint"}}`; hint is null where there is none.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({ "error": { "kind": self.kind.as_str(), "message": self.message, "hint": self.hint } })
    }
}

/// The system's words without the trailing `(os error N)`.
fn system_text(error: &io::Error) -> String {
    let text = error.to_string();
    match (error.raw_os_error(), text.rfind(" (os error ")) {
        (Some(_), Some(end)) => text[..end].to_lowercase(),
        _ => text,
    }
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        use store::ErrorKind as Store;
        let kind = match error.kind() {
            Store::Invalid => Kind::Usage,
            Store::NotFound => Kind::NotFound,
            Store::Exists => Kind::Exists,
            Store::Busy => Kind::Busy,
            Store::NoSpace => Kind::NoSpace,
            Store::Damaged => Kind::Damaged,
            Store::Unsupported => Kind::Unsupported,
            Store::Poisoned | Store::Io => Kind::Failed,
        };
        let failure = Self::new(kind, error.to_string());
        match error.hint_text() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<fuse_view::Error> for Failure {
    fn from(error: fuse_view::Error) -> Self {
        use fuse_view::Error as View;
        match &error {
            View::Io { what, source } => match source.get_ref() {
                // What a backend told is told as it was.
                Some(inner) if inner.is::<Self>() => {
                    inner.downcast_ref().cloned().unwrap_or_else(|| Self::io(what, source))
                }
                _ => Self::io(what, source),
            },
            View::Unsupported(_) => Self::new(Kind::Unsupported, error.to_string()),
            View::Corrupt(_) => Self::new(Kind::Damaged, error.to_string()),
            View::NotFound(_) => Self::new(Kind::NotFound, error.to_string()),
            View::WrongKind(_) => Self::failed(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_store_kind_has_its_exit_code() {
        use store::ErrorKind as Store;
        for (kind, code) in [
            (Store::Invalid, 2),
            (Store::NotFound, 3),
            (Store::Exists, 4),
            (Store::Busy, 4),
            (Store::NoSpace, 5),
            (Store::Damaged, 7),
            (Store::Unsupported, 8),
            (Store::Poisoned, 1),
            (Store::Io, 1),
        ] {
            assert_eq!(Failure::from(store::Error::new(kind, "x")).exit_code(), code, "{kind:?}");
        }
    }

    #[test]
    fn system_errors_have_their_exit_codes() {
        for (errno, code) in [
            (libc::ENOENT, 3),
            (libc::EEXIST, 4),
            (libc::EBUSY, 4),
            (libc::ENOSPC, 5),
            (libc::EDQUOT, 5),
            (libc::EIO, 1),
            (libc::EACCES, 1),
        ] {
            let failure = Failure::io("open x", &io::Error::from_raw_os_error(errno));
            assert_eq!(failure.exit_code(), code, "{errno}");
            assert!(!failure.message().contains("os error"), "{}", failure.message());
        }
    }

    #[test]
    fn readers_errors_have_their_exit_codes() {
        use fuse_view::Error as View;
        for (error, code) in [
            (View::Unsupported("x".into()), 8),
            (View::Corrupt("x".into()), 7),
            (View::NotFound("x".into()), 3),
            (View::WrongKind("x".into()), 1),
        ] {
            assert_eq!(Failure::from(error).exit_code(), code);
        }
    }

    #[test]
    fn json_has_kind_message_and_hint() {
        let json = Failure::new(Kind::NoSpace, "pool is full").hint("delete snapshots").to_json();
        assert_eq!(
            json.to_string(),
            r#"{"error":{"hint":"delete snapshots","kind":"no_space","message":"pool is full"}}"#
        );
        assert!(Failure::failed("x").to_json()["error"]["hint"].is_null());
    }

    #[test]
    fn a_report_is_read_back() {
        for kind in Kind::ALL.into_iter().filter(|kind| kind.exit_code() != 0) {
            let told = Failure::new(kind, "x is wrong").hint("do y");
            let code = Some(i32::from(kind.exit_code()));
            for text in [told.to_json().to_string(), "error: x is wrong\nhint: do y\n".to_owned()] {
                let read = Failure::from_report(text.as_bytes(), code);
                assert_eq!(read.exit_code(), told.exit_code(), "{kind:?}");
                assert_eq!((read.message(), read.hint_text()), (told.message(), told.hint_text()));
            }
        }
        assert_eq!(Failure::from_report(b"", None).exit_code(), 1);
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let failure = Failure::output(&io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(failure.exit_code(), 0);
    }
}
