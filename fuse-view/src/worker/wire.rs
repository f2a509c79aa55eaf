//! What is said between the process that has the blocks (the host) and the one that parses them (the worker).
//!
//! A [`Lane`] carries one request at a time: while it is worked on, the worker may ask for blocks on the same lane, and
//! the thread that waits for the answer reads them. So nothing is queued, and who is to speak next is always known.
//!
//! Invariants: the host believes no length, number or order that the worker says; what is too long or cannot be decoded
//! ends the worker. Content goes through a file in memory that neither side maps: no byte changes after it was checked.

use crate::{
    Attr, BlockRead, Error, Ino,
    container::{Partition, Place},
    diff::Difference,
    versions::Event,
    view::StatFs,
    walk,
};
use rustix::{
    fs::{MemfdFlags, SealFlags},
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs::File,
    io,
    ops::Range,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt,
    },
    time::Duration,
};

/// Most bytes of content in one message.
pub const CONTENT_BYTES: usize = 1 << 20;
/// Most bytes of a message; behind the content in the lane's file when it is longer than a packet.
const BODY_BYTES: usize = 1 << 20;
/// Most bytes of a packet.
const PACKET_BYTES: usize = 16 << 10;
/// First byte of a packet: the message follows, or its length in the file does.
const INLINE: u8 = 0;
const IN_FILE: u8 = 1;

/// What a worker is told first, with the descriptors of its lanes and, last, the scratch file.
#[derive(Debug, Serialize, Deserialize)]
pub struct Hello {
    /// User and group that it is to be from then on.
    pub user: Option<(u32, u32)>,
    /// Memory for cached blocks.
    pub cache_bytes: u64,
    /// Number of lanes: two descriptors each.
    pub lanes: usize,
    /// Memory for everything.
    pub memory_bytes: u64,
}

/// What a worker answers when it has given up its privileges.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Ready {
    /// Walls that this kernel could not put up.
    pub missing: Vec<String>,
}

/// A request to the worker.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// Sources that are not used any more.
    pub closed: Vec<u32>,
    /// What is read.
    pub source: u32,
    /// What is asked of it.
    pub call: Call,
}

/// What a worker is told of a source before it reads there.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Shape {
    pub len: u64,
    /// Whether its blocks may have identities: where not, the worker need not ask before it reads.
    pub identities: bool,
}

impl Shape {
    pub fn of(blocks: &dyn BlockRead) -> Self {
        Self { len: blocks.len(), identities: blocks.has_identities() }
    }
}

/// What is asked of a source. All but [`Call::Open`] and whole comparisons want it open.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Call {
    /// Find out what it holds: [`Found`].
    Open(Shape),
    /// [`Listed`]
    List { dir: Ino, cookie: u64, max: usize },
    /// `Vec<DirEntry>`
    Names { dir: Ino, cookie: u64, max: usize },
    /// `(Ino, Attr)`
    Lookup { dir: Ino, name: Vec<u8> },
    /// `Attr`
    Attr { ino: Ino },
    /// [`Content`]
    Read { ino: Ino, offset: u64, len: usize },
    /// `Option<Range<u64>>`
    NextData { ino: Ino, offset: u64 },
    /// `Option<Extent>`
    Extent { ino: Ino, offset: u64 },
    /// `Option<Range<u64>>`
    InodeAt { ino: Ino },
    /// `Option<Vec<Range<u64>>>`
    Bookkeeping,
    /// `Vec<u8>`
    Readlink { ino: Ino },
    /// `Vec<(Vec<u8>, Vec<u8>)>`
    Xattrs { ino: Ino },
    /// `()`: all that differs from this older source, told by [`Question::Differs`].
    Diff { shape: Shape, old: u32, old_shape: Shape, path: Vec<u8> },
    /// `()`: the versions of a path, told by [`Question::Version`].
    Versions { path: Vec<u8> },
}

/// What a source holds.
#[derive(Debug, Serialize, Deserialize)]
pub enum Found {
    Files(About),
    Partitions(Vec<Partition>),
    Raw,
}

/// A file system that was opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    pub format: String,
    pub label: String,
    pub replay: String,
    pub root: Ino,
    pub statfs: StatFs,
}

/// Entries of a directory.
#[derive(Debug, Serialize, Deserialize)]
pub struct Listed {
    pub entries: Vec<ListedEntry>,
    pub end: bool,
}

/// One of them, and whether it has no extended attributes.
pub type ListedEntry = (crate::DirEntry, Result<Attr, Fault>, bool);

/// The content of a range of a file, piece by piece. The bytes that were read lie in the lane's file one after another.
#[derive(Debug, Serialize, Deserialize)]
pub struct Content {
    pub parts: Vec<Part>,
}

/// A piece of it.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Part {
    /// In the lane's file.
    Read { len: usize },
    /// To be read from the source.
    Source { at: u64, len: usize },
    /// Zeros.
    Zeros { len: usize },
}

/// What the worker says while a request is under way.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply<T> {
    /// Bytes of the source, to be put into the lane's file: [`Blocks`].
    Blocks { source: u32, offset: u64, len: usize },
    /// Identities of the blocks of a range: [`Identities`].
    Identities { source: u32, start: u64, end: u64 },
    /// What only comparisons ask for: [`Length`], and the beginning of the answer in the lane's file.
    Ask(Question),
    /// The same answer from this byte on: as [`Reply::Ask`].
    Rest { at: u64 },
    /// The end of it.
    Done(Result<T, Fault>),
}

/// What a worker asks and tells while it compares.
#[derive(Debug, Serialize, Deserialize)]
pub enum Question {
    /// The ranges in which both sources may differ: `Vec<Range<u64>>`
    Changed,
    /// All snapshots: `Vec<SnapshotEntry>`
    Snapshots,
    /// Open one of them: `(u32, u64)`, the number and the length of the source. Those in `closed` are not used any more.
    Snapshot { id: u64, closed: Vec<u32> },
    /// `(Changes, Vec<(u32, u64)>)`: with each change its snapshot, opened as by [`Question::Snapshot`].
    Changes { from: u64, read: Vec<Range<u64>>, watch: Vec<Range<u64>>, closed: Vec<u32> },
    /// Some differences, in order: `()`
    Differs(Vec<Difference>),
    /// Paths that could not be compared, and why: `()`
    Failed(Vec<(Vec<u8>, Fault)>),
    /// A version: `()`
    Version(Version),
    /// The id of a snapshot that could not be read, and why: `()`
    Unreadable(u64, Fault),
}

/// [`crate::versions::Version`], its snapshots by their ids.
#[derive(Debug, Serialize, Deserialize)]
pub struct Version {
    pub event: Event,
    pub snapshot: u64,
    pub last: u64,
    pub count: usize,
    pub file: Option<(Attr, Option<Vec<u8>>)>,
}

/// Answer to [`Reply::Blocks`].
pub type Blocks = Result<(), Fault>;
/// Answer to [`Reply::Identities`].
pub type Identities = Option<Vec<(u64, u64)>>;
/// Answer to [`Reply::Ask`]: bytes of it in all.
pub type Length = Result<u64, Fault>;

/// An error as it is told to the other side.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Fault {
    Io(String, String),
    Unsupported(String),
    Corrupt(String),
    NotFound(String),
    WrongKind(String),
}

impl From<&Error> for Fault {
    fn from(error: &Error) -> Self {
        match error {
            Error::Io { what, source } => Self::Io(what.clone(), source.to_string()),
            Error::Unsupported(text) => Self::Unsupported(text.clone()),
            Error::Corrupt(text) => Self::Corrupt(text.clone()),
            Error::NotFound(text) => Self::NotFound(text.clone()),
            Error::WrongKind(text) => Self::WrongKind(text.clone()),
        }
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Io(what, why) => Self::Io { what: plain(&what), source: io::Error::other(plain(&why)) },
            Fault::Unsupported(text) => Self::Unsupported(plain(&text)),
            Fault::Corrupt(text) => Self::Corrupt(plain(&text)),
            Fault::NotFound(text) => Self::NotFound(plain(&text)),
            Fault::WrongKind(text) => Self::WrongKind(plain(&text)),
        }
    }
}

/// Text of a worker as it may be logged and shown: short, and nothing in it moves a terminal's cursor.
pub fn plain(text: &str) -> String {
    const MOST: usize = 500;
    text.trim().chars().take(MOST).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// What a worker says of a partition, as it may be shown; its directory has to be a name.
pub fn plain_partition(told: Partition) -> Result<Partition, Error> {
    if !walk::is_plain_name(told.directory.as_bytes()) || told.directory != plain(&told.directory) {
        return Err(Error::Corrupt("a partition has a name that is none".into()));
    }
    let place = match told.place {
        Place::Refused(why) => Place::Refused(plain(&why)),
        pieces @ Place::Pieces(_) => pieces,
    };
    Ok(Partition { name: plain(&told.name), place, ..told })
}

/// One end of a lane.
pub struct Lane {
    socket: OwnedFd,
    file: File,
    packet: Vec<u8>,
}

impl Lane {
    /// Both ends of a new lane: the host's, which waits no longer than `slice` for a packet, and the descriptors of
    /// the worker's.
    pub fn pair(slice: Duration) -> io::Result<(Self, [OwnedFd; 2])> {
        let (host, worker) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_timeout(&host, sockopt::Timeout::Recv, Some(slice))?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(rustix::fs::memfd_create("cowslip-lane", flags)?);
        file.set_len((CONTENT_BYTES + BODY_BYTES) as u64)?;
        // Nobody makes it larger, and what was written to it stays readable.
        rustix::fs::fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        let for_worker = file.try_clone()?.into();
        Ok((Self::new(host, file), [worker, for_worker]))
    }

    /// The end with these descriptors.
    pub fn new(socket: OwnedFd, file: File) -> Self {
        Self { socket, file, packet: vec![0; PACKET_BYTES] }
    }

    /// Says `message`.
    pub fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        self.packet.clear();
        self.packet.push(INLINE);
        let mut packet = std::mem::take(&mut self.packet);
        packet = postcard::to_extend(message, packet).map_err(io::Error::other)?;
        let body = &packet[1..];
        let sent = if packet.len() <= PACKET_BYTES {
            send(self.socket.as_fd(), &packet)
        } else if body.len() <= BODY_BYTES {
            self.file.write_all_at(body, CONTENT_BYTES as u64)?;
            let len = u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes();
            send(self.socket.as_fd(), &[IN_FILE, len[0], len[1], len[2], len[3]])
        } else {
            Err(io::Error::from(io::ErrorKind::FileTooLarge))
        };
        packet.truncate(PACKET_BYTES);
        self.packet = packet;
        sent
    }

    /// What the other side says next; None: nothing yet.
    pub fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        self.packet.resize(PACKET_BYTES, 0);
        let len = match rustix::net::recv(&self.socket, &mut self.packet[..], RecvFlags::empty()) {
            Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((len, _)) => len,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let nonsense = || io::Error::from(io::ErrorKind::InvalidData);
        let decode = |body: &[u8]| postcard::from_bytes(body).map(Some).map_err(|_| nonsense());
        match self.packet[..len].split_first() {
            Some((&INLINE, body)) => decode(body),
            Some((&IN_FILE, body)) => {
                let len = u32::from_le_bytes(body.try_into().map_err(|_| nonsense())?);
                let len = usize::try_from(len).ok().filter(|len| *len <= BODY_BYTES).ok_or_else(nonsense)?;
                let mut body = vec![0; len];
                self.file.read_exact_at(&mut body, CONTENT_BYTES as u64)?;
                decode(&body)
            }
            _ => Err(nonsense()),
        }
    }

    /// Puts content where the other side finds it.
    pub fn put(&self, at: usize, content: &[u8]) -> io::Result<()> {
        self.file.write_all_at(content, at as u64)
    }

    /// Takes content that the other side has put.
    pub fn take(&self, at: usize, content: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(content, at as u64)
    }
}

/// One packet.
fn send(socket: BorrowedFd<'_>, packet: &[u8]) -> io::Result<()> {
    loop {
        match rustix::net::send(socket, packet, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Lane, Lane) {
        let (host, [socket, file]) = Lane::pair(Duration::from_millis(20)).unwrap();
        (host, Lane::new(socket, file.into()))
    }

    #[test]
    fn messages_of_any_length_arrive() {
        let (mut host, mut worker) = pair();
        for len in [0, 1, PACKET_BYTES - 10, PACKET_BYTES, 300_000, BODY_BYTES - 10] {
            let text = vec![7u8; len];
            worker.send(&text).unwrap();
            assert_eq!(host.receive::<Vec<u8>>().unwrap(), Some(text));
        }
        assert!(worker.send(&vec![0u8; BODY_BYTES]).is_err());
        // The lane is as good as before.
        worker.send(&7u32).unwrap();
        assert_eq!(host.receive::<u32>().unwrap(), Some(7));
        assert_eq!(host.receive::<u32>().unwrap(), None);
    }

    #[test]
    fn nonsense_is_an_error() {
        let (mut host, worker) = pair();
        for packet in
            [&[][..], &[2], &[INLINE], &[INLINE, 0xff], &[IN_FILE], &[IN_FILE, 0xff, 0xff, 0xff, 0xff]]
        {
            send(worker.socket.as_fd(), packet).unwrap();
            assert!(host.receive::<Reply<About>>().is_err(), "{packet:?}");
        }
        // A length far beyond the packet reserves nothing.
        send(worker.socket.as_fd(), &[INLINE, 0xff, 0xff, 0xff, 0xff, 0x7f]).unwrap();
        assert!(host.receive::<Vec<Vec<u8>>>().is_err());
        drop(worker);
        assert_eq!(host.receive::<u32>().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn text_of_a_worker_is_plain() {
        assert_eq!(plain("a\x1b[2Jb\nc"), "a [2Jb c");
        assert_eq!(plain(&"x".repeat(10_000)).len(), 500);
    }
}
