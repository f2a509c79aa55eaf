//! What goes wrong, the same on both ends of the socket: a kind, a message, a hint.
//!
//! On the wire it is a gRPC status. The code is the nearest one, for clients that know nothing of
//! Cowslip; the headers `x-cowslip-*` carry the exact kind, the message and the hint.

use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

/// Result of a call.
pub type Result<T> = std::result::Result<T, Error>;

const KIND_HEADER: &str = "x-cowslip-kind";
const MESSAGE_HEADER: &str = "x-cowslip-message";
const HINT_HEADER: &str = "x-cowslip-hint";

/// Longest message or hint that travels, in bytes. A header block holds 16 KiB in all, encoding
/// triples what is not ASCII, and the message travels twice.
const MAX_TEXT_BYTES: usize = 1024;

/// The kinds of failure, with the word on the wire, the gRPC code and the exit code of commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// A name, size or option that can never be valid.
    Invalid,
    /// No such volume or snapshot.
    NotFound,
    /// The name is taken.
    Exists,
    /// In use; may work later.
    Busy,
    /// The pool has no room.
    NoSpace,
    /// The agent does not answer.
    Unreachable,
    /// What is stored contradicts itself.
    Damaged,
    /// Not possible on this host or with this build.
    Unsupported,
    /// The pool takes no writes until it is opened again.
    Poisoned,
    /// The operating system refused an operation.
    Io,
    /// The caller may not do this.
    Denied,
}

impl ErrorKind {
    /// Every kind.
    pub const ALL: [Self; 11] = [
        Self::Invalid,
        Self::NotFound,
        Self::Exists,
        Self::Busy,
        Self::NoSpace,
        Self::Unreachable,
        Self::Damaged,
        Self::Unsupported,
        Self::Poisoned,
        Self::Io,
        Self::Denied,
    ];

    /// The word on the wire and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not_found",
            Self::Exists => "exists",
            Self::Busy => "busy",
            Self::NoSpace => "no_space",
            Self::Unreachable => "unreachable",
            Self::Damaged => "damaged",
            Self::Unsupported => "unsupported",
            Self::Poisoned => "poisoned",
            Self::Io => "io",
            Self::Denied => "denied",
        }
    }

    /// The kind with that word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }

    /// The exit code of a command that fails with it.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Invalid => 2,
            Self::NotFound => 3,
            Self::Exists | Self::Busy => 4,
            Self::NoSpace => 5,
            Self::Unreachable => 6,
            Self::Damaged => 7,
            Self::Unsupported => 8,
            Self::Poisoned | Self::Io | Self::Denied => 1,
        }
    }

    /// The nearest gRPC code.
    pub fn code(self) -> Code {
        match self {
            Self::Invalid => Code::InvalidArgument,
            Self::NotFound => Code::NotFound,
            Self::Exists => Code::AlreadyExists,
            Self::Busy => Code::FailedPrecondition,
            Self::NoSpace => Code::ResourceExhausted,
            Self::Unreachable => Code::Unavailable,
            Self::Damaged => Code::DataLoss,
            Self::Unsupported => Code::Unimplemented,
            Self::Poisoned => Code::Aborted,
            Self::Io => Code::Internal,
            Self::Denied => Code::PermissionDenied,
        }
    }

    /// The kind of a status that carries no `x-cowslip-kind`: made by gRPC itself, not by the agent.
    fn of_code(code: Code) -> Self {
        match code {
            Code::InvalidArgument | Code::OutOfRange => Self::Invalid,
            Code::NotFound => Self::NotFound,
            Code::AlreadyExists => Self::Exists,
            Code::FailedPrecondition => Self::Busy,
            Code::ResourceExhausted => Self::NoSpace,
            Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded => Self::Unreachable,
            Code::DataLoss => Self::Damaged,
            Code::Unimplemented => Self::Unsupported,
            Code::PermissionDenied | Code::Unauthenticated => Self::Denied,
            _ => Self::Io,
        }
    }
}

impl std::fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failed call: what was wrong and where, and what the user can do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What kind of failure.
    pub kind: ErrorKind,
    /// What was wrong, and where.
    pub message: String,
    /// What to do about it, where there is something.
    pub hint: Option<String>,
}

impl Error {
    /// An error without a hint.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None }
    }

    /// Adds what the user can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let mut headers = MetadataMap::new();
        headers.insert(KIND_HEADER, MetadataValue::from_static(error.kind.as_str()));
        insert_text(&mut headers, MESSAGE_HEADER, &error.message);
        if let Some(hint) = &error.hint {
            insert_text(&mut headers, HINT_HEADER, hint);
        }
        Self::with_metadata(error.kind.code(), truncate(&error.message), headers)
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let headers = status.metadata();
        let kind = headers
            .get(KIND_HEADER)
            .and_then(|word| word.to_str().ok())
            .and_then(ErrorKind::parse)
            .unwrap_or_else(|| ErrorKind::of_code(code_of(&status)));
        let message = text(headers, MESSAGE_HEADER).unwrap_or_else(|| foreign_message(&status));
        Self { kind, message, hint: text(headers, HINT_HEADER) }
    }
}

/// A connection that breaks during a call has the code Unknown and the transport's error as its source.
fn code_of(status: &Status) -> Code {
    let broken = status.code() == Code::Unknown && std::error::Error::source(status).is_some();
    if broken { Code::Unavailable } else { status.code() }
}

/// Words for a status that gRPC itself made: the connection broke, a method is not known.
fn foreign_message(status: &Status) -> String {
    match (code_of(status), status.message()) {
        (Code::Unimplemented, _) => {
            "the agent does not know this request: it is older than this command".into()
        }
        (Code::Unavailable | Code::Cancelled, detail) => {
            format!("the agent went away during the request: {}", or_unknown(detail))
        }
        (code, detail) => format!("the request failed ({code:?}): {}", or_unknown(detail)),
    }
}

fn or_unknown(detail: &str) -> &str {
    if detail.is_empty() { "no reason given" } else { detail }
}

fn truncate(text: &str) -> &str {
    let end = (0..=text.len().min(MAX_TEXT_BYTES)).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

fn insert_text(headers: &mut MetadataMap, name: &'static str, text: &str) {
    // Percent-encoded text is ASCII without control bytes, so it always is a header value.
    if let Ok(value) = MetadataValue::try_from(encode(truncate(text))) {
        headers.insert(name, value);
    }
}

fn text(headers: &MetadataMap, name: &str) -> Option<String> {
    decode(headers.get(name)?.to_str().ok()?)
}

/// Percent-encodes everything but printable ASCII (RFC 3986 section 2.1).
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Undoes [`encode`]; None if it is not an encoding of UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            out.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_the_wire() {
        for kind in ErrorKind::ALL {
            let error = Error::new(kind, "volume “größe 1”\nis 100% full").hint("free space → try again");
            assert_eq!(Error::from(Status::from(error.clone())), error);
            let bare = Error::new(kind, "no hint");
            assert_eq!(Error::from(Status::from(bare.clone())), bare);
            assert_eq!(ErrorKind::parse(kind.as_str()), Some(kind));
        }
        assert_eq!(ErrorKind::parse("Invalid"), None);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let error = Error::new(ErrorKind::Io, "ä".repeat(5000)).hint("é".repeat(5000));
        let back = Error::from(Status::from(error));
        assert_eq!(back.message, "ä".repeat(MAX_TEXT_BYTES / 2));
        assert_eq!(back.hint, Some("é".repeat(MAX_TEXT_BYTES / 2)));
    }

    #[test]
    fn a_status_of_grpc_itself_gets_a_kind_and_words() {
        let check = |code, kind, word: &str| {
            let error = Error::from(Status::new(code, "h2 says no"));
            assert_eq!(error.kind, kind);
            assert!(error.message.contains(word), "{}", error.message);
        };
        check(Code::Unavailable, ErrorKind::Unreachable, "went away");
        check(Code::Unimplemented, ErrorKind::Unsupported, "older");
        check(Code::Unknown, ErrorKind::Io, "h2 says no");
        check(Code::OutOfRange, ErrorKind::Invalid, "h2 says no");
        let broken = Error::from(Status::from_error(Box::new(std::io::Error::other("reset"))));
        assert_eq!(broken.kind, ErrorKind::Unreachable, "{broken}");
    }

    #[test]
    fn exit_codes_are_the_documented_ones() {
        let codes: Vec<u8> = ErrorKind::ALL.iter().map(|kind| kind.exit_code()).collect();
        assert_eq!(codes, [2, 3, 4, 4, 5, 6, 7, 8, 1, 1, 1]);
    }

    #[test]
    fn broken_encodings_are_refused() {
        for text in ["%", "%4", "%zz", "%ff"] {
            assert_eq!(decode(text), None, "{text}");
        }
        assert_eq!(decode("%25%C3%A4 b").as_deref(), Some("%ä b"));
    }
}
