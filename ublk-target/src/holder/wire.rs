//! Messages between a holder and the processes it holds for: one packet each way, on a sequenced-packet socket.
//!
//! A request is `1, OP, argument`: the version, then PUT (name, with a descriptor), REMOVE (name), GET (index as u32,
//! little endian), TAKEN or DEADLINE (milliseconds as u32, zero for none). A reply is `1, STATUS, value`: OK (for GET the name, with a descriptor), END (no such
//! index), or ERROR (errno as u32). Whatever is not that is answered with ERROR.

use super::{MAX_HELD, check_name};
use crate::sys::socket;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

const VERSION: u8 = 1;
const PUT: u8 = 1;
const REMOVE: u8 = 2;
const GET: u8 = 3;
const TAKEN: u8 = 4;
const DEADLINE: u8 = 5;

const OK: u8 = 0;
const END: u8 = 1;
const ERROR: u8 = 2;

/// Larger than any message: two bytes and a name.
const MAX_MESSAGE: usize = 320;

/// What is held.
#[derive(Default)]
pub(super) struct Held(pub Vec<(String, OwnedFd)>);

impl Held {
    fn put(&mut self, name: String, fd: OwnedFd, bound: usize) -> io::Result<()> {
        if let Some((_, old)) = self.0.iter_mut().find(|(held, _)| *held == name) {
            *old = fd;
        } else if self.0.len() < bound {
            self.0.push((name, fd));
        } else {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        Ok(())
    }
}

/// Who is on the other end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// The agent: deposits, removes and reads.
    Agent,
    /// The next supervisor: reads, and takes over.
    Successor,
}

/// What a served request means for the holder.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Served {
    /// Go on.
    Request,
    /// The agent is to be killed unless it asks again within this time; None: not any more.
    Deadline(Option<Duration>),
    /// The other end is closed.
    Closed,
    /// Everything has been taken over. It is answered by [`confirm`] only.
    Taken,
}

/// Answers one request. An error means that the connection is of no more use; nothing that is held is lost by it.
pub(super) fn serve(peer: BorrowedFd<'_>, kind: Peer, held: &mut Held) -> io::Result<Served> {
    let mut buffer = [0u8; MAX_MESSAGE];
    let (len, fd) = match socket::receive(peer, &mut buffer) {
        Ok((0, _)) => return Ok(Served::Closed),
        Ok(received) => received,
        Err(e) if e.raw_os_error() == Some(libc::EMSGSIZE) => (0, None),
        Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(Served::Closed),
        Err(e) => return Err(e),
    };
    let outcome = match (&buffer[..len], kind) {
        ([VERSION, PUT, name @ ..], Peer::Agent) => text(name).and_then(|name| {
            let fd = fd.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?;
            held.put(name, fd, MAX_HELD)
        }),
        ([VERSION, REMOVE, name @ ..], Peer::Agent) => {
            text(name).map(|name| held.0.retain(|(other, _)| *other != name))
        }
        ([VERSION, GET, a, b, c, d], _) => {
            let index = usize::try_from(u32::from_le_bytes([*a, *b, *c, *d])).unwrap_or(usize::MAX);
            return match held.0.get(index) {
                Some((name, fd)) => reply(peer, OK, name.as_bytes(), Some(fd.as_fd())),
                None => reply(peer, END, &[], None),
            };
        }
        ([VERSION, DEADLINE, a, b, c, d], Peer::Agent) => {
            let ms = u32::from_le_bytes([*a, *b, *c, *d]);
            reply(peer, OK, &[], None)?;
            return Ok(Served::Deadline((ms > 0).then(|| Duration::from_millis(ms.into()))));
        }
        ([VERSION, TAKEN], Peer::Successor) => return Ok(Served::Taken),
        _ => Err(io::Error::from_raw_os_error(libc::EPROTO)),
    };
    match outcome {
        Ok(()) => reply(peer, OK, &[], None),
        Err(e) => {
            let errno = e.raw_os_error().unwrap_or(libc::EIO).unsigned_abs();
            reply(peer, ERROR, &errno.to_le_bytes(), None)
        }
    }
}

/// Answers a TAKEN.
pub(super) fn confirm(peer: BorrowedFd<'_>) -> io::Result<()> {
    reply(peer, OK, &[], None).map(|_| ())
}

fn text(name: &[u8]) -> io::Result<String> {
    let name = std::str::from_utf8(name).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    check_name(name)?;
    Ok(name.to_owned())
}

fn reply(peer: BorrowedFd<'_>, status: u8, value: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<Served> {
    socket::send(peer, &[&[VERSION, status], value].concat(), fd)?;
    Ok(Served::Request)
}

/// One request and its answer: the value and the descriptor, or None at the end.
fn ask(
    holder: BorrowedFd<'_>,
    op: u8,
    argument: &[u8],
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<Option<(Vec<u8>, Option<OwnedFd>)>> {
    socket::send(holder, &[&[VERSION, op], argument].concat(), fd)?;
    let mut buffer = [0u8; MAX_MESSAGE];
    let (len, fd) = socket::receive(holder, &mut buffer)?;
    match &buffer[..len] {
        [] => Err(io::Error::from_raw_os_error(libc::ENOTCONN)),
        [VERSION, OK, value @ ..] => Ok(Some((value.to_vec(), fd))),
        [VERSION, END] => Ok(None),
        [VERSION, ERROR, a, b, c, d] => {
            let errno = i32::try_from(u32::from_le_bytes([*a, *b, *c, *d])).unwrap_or(libc::EIO);
            Err(io::Error::from_raw_os_error(errno))
        }
        _ => Err(io::Error::from_raw_os_error(libc::EPROTO)),
    }
}

/// Deposits a descriptor.
pub(super) fn put(holder: BorrowedFd<'_>, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
    check_name(name)?;
    ask(holder, PUT, name.as_bytes(), Some(fd)).map(|_| ())
}

/// Lets one go.
pub(super) fn remove(holder: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    check_name(name)?;
    ask(holder, REMOVE, name.as_bytes(), None).map(|_| ())
}

/// Duplicates of all.
pub(super) fn get_all(holder: BorrowedFd<'_>) -> io::Result<Vec<(String, OwnedFd)>> {
    let mut all = Vec::new();
    for index in 0..u32::MAX {
        let Some((name, fd)) = ask(holder, GET, &index.to_le_bytes(), None)? else { break };
        let fd = fd.ok_or_else(|| io::Error::from_raw_os_error(libc::EMFILE))?;
        all.push((text(&name)?, fd));
    }
    Ok(all)
}

/// Sets or clears the time within which the next request must come.
pub(super) fn set_deadline(holder: BorrowedFd<'_>, limit: Option<Duration>) -> io::Result<()> {
    let ms = limit.map_or(0, |limit| u32::try_from(limit.as_millis()).unwrap_or(u32::MAX).max(1));
    ask(holder, DEADLINE, &ms.to_le_bytes(), None).map(|_| ())
}

/// Says that all are in other hands; the holder ends.
pub(super) fn taken(holder: BorrowedFd<'_>) -> io::Result<()> {
    ask(holder, TAKEN, &[], None).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// A holder in a thread; it ends, with what it held, when the returned socket is closed or all is taken.
    fn holder(kind: Peer, mut held: Held) -> (OwnedFd, thread::JoinHandle<(Held, Served)>) {
        let (ours, theirs) = socket::pair().unwrap();
        let thread = thread::spawn(move || {
            loop {
                match serve(theirs.as_fd(), kind, &mut held).unwrap() {
                    Served::Request | Served::Deadline(_) => {}
                    end => {
                        let _ = confirm(theirs.as_fd());
                        return (held, end);
                    }
                }
            }
        });
        (ours, thread)
    }

    fn file() -> OwnedFd {
        tempfile::tempfile().unwrap().into()
    }

    #[test]
    fn deposits_are_kept_replaced_listed_and_removed() {
        let (socket, thread) = holder(Peer::Agent, Held::default());
        let socket_fd = socket.as_fd();
        for name in ["a", "b", "a"] {
            put(socket_fd, name, file().as_fd()).unwrap();
        }
        let names = |all: Vec<(String, OwnedFd)>| all.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(get_all(socket_fd).unwrap()), ["a", "b"]);
        remove(socket_fd, "a").unwrap();
        remove(socket_fd, "never put").unwrap_err();
        remove(socket_fd, "never-put").unwrap();
        assert_eq!(
            taken(socket_fd).unwrap_err().raw_os_error(),
            Some(libc::EPROTO),
            "not the agent's to say"
        );
        drop(socket);
        let (held, end) = thread.join().unwrap();
        assert_eq!((names(held.0), end), (vec!["b".to_owned()], Served::Closed));
    }

    #[test]
    fn malformed_requests_are_answered_and_change_nothing() {
        let (socket, thread) = holder(Peer::Agent, Held(vec![("kept".into(), file())]));
        let long = vec![b'x'; MAX_NAME_AND_MORE];
        let requests: [&[u8]; 9] = [
            &[0],
            &[VERSION],
            &[2, GET, 0, 0, 0, 0],
            &[VERSION, 99],
            &[VERSION, GET, 0],
            &[VERSION, PUT, b'n'], // no descriptor
            &[VERSION, REMOVE, 0xff],
            &[&[VERSION, REMOVE], &long[..]].concat(),
            &[0; 4000],
        ];
        for request in requests {
            socket::send(socket.as_fd(), request, None).unwrap();
            let mut answer = [0; MAX_MESSAGE];
            let (len, _) = socket::receive(socket.as_fd(), &mut answer).unwrap();
            assert_eq!((len, answer[1]), (6, ERROR), "{:?}", &request[..request.len().min(8)]);
        }
        drop(socket);
        assert_eq!(thread.join().unwrap().0.0.len(), 1);
    }

    const MAX_NAME_AND_MORE: usize = super::super::MAX_NAME + 1;

    #[test]
    fn a_successor_takes_all_and_cannot_deposit() {
        let (socket, thread) =
            holder(Peer::Successor, Held(vec![("one".into(), file()), ("two".into(), file())]));
        assert!(put(socket.as_fd(), "three", file().as_fd()).is_err());
        assert_eq!(get_all(socket.as_fd()).unwrap().len(), 2);
        taken(socket.as_fd()).unwrap();
        assert_eq!(thread.join().unwrap().1, Served::Taken);
    }

    #[test]
    fn a_deadline_is_set_and_cleared_by_the_agent_only() {
        let (ours, theirs) = socket::pair().unwrap();
        let limits = [Some(Duration::from_secs(120)), None, Some(Duration::from_micros(1))];
        let thread = thread::spawn(move || limits.map(|limit| set_deadline(ours.as_fd(), limit).is_ok()));
        let served = || serve(theirs.as_fd(), Peer::Agent, &mut Held::default()).unwrap();
        assert_eq!(served(), Served::Deadline(Some(Duration::from_secs(120))));
        assert_eq!(served(), Served::Deadline(None));
        assert_eq!(served(), Served::Deadline(Some(Duration::from_millis(1))), "a short one is one");
        assert_eq!(thread.join().unwrap(), [true; 3]);
        let (socket, thread) = holder(Peer::Successor, Held::default());
        assert!(set_deadline(socket.as_fd(), None).is_err());
        drop(socket);
        thread.join().unwrap();
    }

    #[test]
    fn no_more_than_the_bound_is_held() {
        let mut held = Held::default();
        for name in ["a", "b", "a"] {
            held.put(name.into(), file(), 2).unwrap();
        }
        let error = held.put("c".into(), file(), 2).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        held.put("b".into(), file(), 2).expect("replacing needs no room");
        assert_eq!(held.0.len(), 2);
    }
}
