//! Who may use the socket: root, the agent's own user, the members of the socket's group.
//!
//! The mode of the socket says the same; this check holds where its directory or mode was changed.

use api::{Error, ErrorKind};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tonic::transport::server::Connected;
use tonic::{Request, Status};

/// The rule.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// The agent's user.
    pub own_uid: u32,
    /// The socket's group.
    pub gid: Option<u32>,
}

/// The process at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    uid: u32,
    groups: Vec<u32>,
}

impl Rule {
    fn admits(&self, peer: &Peer) -> bool {
        peer.uid == 0 || peer.uid == self.own_uid || self.gid.is_some_and(|gid| peer.groups.contains(&gid))
    }
}

/// What is known of a connection's peer, in each of its requests.
#[derive(Debug, Clone, Copy)]
pub struct Admission {
    admitted: bool,
    uid: Option<u32>,
}

/// A connection whose peer is known.
pub struct Connection {
    stream: UnixStream,
    admission: Admission,
}

impl Connection {
    /// Looks at the peer of `stream`. A peer that cannot be told is not admitted.
    pub fn new(stream: UnixStream, rule: Rule) -> Self {
        let admission = match peer_of(&stream) {
            Ok(peer) => Admission { admitted: rule.admits(&peer), uid: Some(peer.uid) },
            Err(_) => Admission { admitted: false, uid: None },
        };
        Self { stream, admission }
    }
}

fn peer_of(stream: &UnixStream) -> io::Result<Peer> {
    let credentials = stream.peer_cred()?;
    let mut groups = super::sys::peer_groups(stream.as_fd())?;
    groups.push(credentials.gid());
    Ok(Peer { uid: credentials.uid(), groups })
}

impl Connected for Connection {
    type ConnectInfo = Admission;
    fn connect_info(&self) -> Admission {
        self.admission
    }
}

/// Refuses the requests of peers that are not admitted.
// A Status is large; the interceptor's type demands it.
#[allow(clippy::result_large_err)]
pub fn check(request: Request<()>) -> Result<Request<()>, Status> {
    match request.extensions().get::<Admission>() {
        Some(Admission { admitted: true, .. }) => Ok(request),
        admission => {
            let who =
                admission.and_then(|a| a.uid).map_or("this process".into(), |uid| format!("user {uid}"));
            Err(Error::new(ErrorKind::Denied, format!("{who} may not use the agent's socket"))
                .hint(
                    "run the command as root, or join the group `socket_group` of the agent's configuration",
                )
                .into())
        }
    }
}

/// The number of a group given by name or number.
pub fn group_id(group: &str) -> Result<u32, Error> {
    if let Ok(gid) = group.parse() {
        return Ok(gid);
    }
    let table = fs::read_to_string("/etc/group").unwrap_or_default();
    find_group(&table, group).ok_or_else(|| {
        Error::new(ErrorKind::Invalid, format!("socket_group: no group `{group}` in /etc/group"))
            .hint(format!("create it with `groupadd --system {group}`, or give its number"))
    })
}

/// group(5): `name:password:gid:members`.
fn find_group(table: &str, name: &str) -> Option<u32> {
    table.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_the_own_user_and_the_group_are_admitted() {
        let rule = Rule { own_uid: 500, gid: Some(77) };
        let check = |uid, groups: &[u32], admitted| {
            assert_eq!(rule.admits(&Peer { uid, groups: groups.to_vec() }), admitted, "{uid} {groups:?}");
        };
        check(0, &[0], true);
        check(500, &[500], true);
        check(1000, &[1000, 77], true);
        check(1000, &[1000, 0], false);
        check(1000, &[], false);
        let nobody_else = Rule { own_uid: 500, gid: None };
        assert!(!nobody_else.admits(&Peer { uid: 1000, groups: vec![77] }));
    }

    #[test]
    fn groups_by_name_and_number() {
        let table = "root:x:0:\ndisk:x:6:alice,bob\nbad\nodd:x:y:\n";
        assert_eq!(find_group(table, "disk"), Some(6));
        assert_eq!(
            (find_group(table, "bad"), find_group(table, "odd"), find_group(table, "no")),
            (None, None, None)
        );
        assert_eq!(group_id("4711"), Ok(4711));
        assert!(group_id("no such group").unwrap_err().message.contains("no such group"));
    }

    #[test]
    fn a_request_without_a_known_peer_is_refused() {
        let error = Error::from(check(Request::new(())).unwrap_err());
        assert_eq!(error.kind, ErrorKind::Denied);
        let mut request = Request::new(());
        request.extensions_mut().insert(Admission { admitted: false, uid: Some(1000) });
        assert!(Error::from(check(request).unwrap_err()).message.contains("user 1000"));
        let mut request = Request::new(());
        request.extensions_mut().insert(Admission { admitted: true, uid: Some(1000) });
        assert!(check(request).is_ok());
    }
}
