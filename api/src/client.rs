//! The client: one connection over the agent's Unix socket.

use crate::v1::agent_client::AgentClient;
use crate::{Error, ErrorKind, Result};
use hyper_util::rt::TokioIo;
use rustix::event::{PollFd, PollFlags, Timespec};
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

/// Longest answer that is accepted: lists of volumes and snapshots come in one message.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// A connection to the agent. Dereferences to the generated client, which has one method per call;
/// turn a failed call's status into [`Error`] with `?` or `Error::from`.
///
/// It is one connection to one agent: when that has ended every call fails, so that what was learnt of the agent,
/// as of its pool, stays true of each answer.
#[derive(Debug, Clone)]
pub struct Client {
    agent: AgentClient<Channel>,
    socket: Arc<OwnedFd>,
}

impl Client {
    /// Connects to the agent at `socket`.
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`] if nobody listens there, [`ErrorKind::Denied`] if the caller may
    /// not open the socket.
    pub async fn connect(socket: &Path) -> Result<Self> {
        // The connection is made here and not inside the channel, which wraps what the
        // system says about the socket in errors of its own.
        let stream = UnixStream::connect(socket).await.map_err(|e| unreachable(socket, &e))?;
        let watched = stream.as_fd().try_clone_to_owned().map_err(|e| unreachable(socket, &e))?;
        let mut stream = Some(TokioIo::new(stream));
        let connector = service_fn(move |_: Uri| {
            std::future::ready(stream.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)))
        });
        // A URI is demanded but never resolved.
        let channel = Endpoint::from_static("http://agent")
            .connect_with_connector(connector)
            .await
            .map_err(|e| unreachable(socket, &io::Error::other(e)))?;
        let agent = AgentClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
        Ok(Self { agent, socket: Arc::new(watched) })
    }

    /// Whether the agent still holds its end.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        let mut end = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        matches!(rustix::event::poll(&mut end, Some(&Timespec::default())), Ok(0))
    }
}

impl Deref for Client {
    type Target = AgentClient<Channel>;
    fn deref(&self) -> &Self::Target {
        &self.agent
    }
}

impl DerefMut for Client {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.agent
    }
}

fn unreachable(socket: &Path, error: &io::Error) -> Error {
    let place = socket.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            Error::new(ErrorKind::Denied, format!("no permission to talk to the agent at {place}"))
                .hint("run the command as root, or join the socket's group")
        }
        io::ErrorKind::NotFound => Error::new(
            ErrorKind::Unreachable,
            format!("agent not reachable: no socket at {place}"),
        )
        .hint(
            "start it with `systemctl start cowslip` or `cowslip agent`; `--socket PATH` names another one",
        ),
        io::ErrorKind::ConnectionRefused => {
            Error::new(ErrorKind::Unreachable, format!("agent not reachable: nobody listens on {place}"))
                .hint("start it with `systemctl start cowslip` or `cowslip agent`")
        }
        _ => Error::new(ErrorKind::Unreachable, format!("agent not reachable at {place}: {error}"))
            .hint("`--socket PATH` names the agent's socket"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_socket_says_where_and_what_to_do() {
        let error = Client::connect(Path::new("/nonexistent/agent.sock")).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unreachable);
        assert!(error.message.contains("/nonexistent/agent.sock"), "{error}");
        assert!(error.hint.unwrap().contains("systemctl start cowslip"));
    }

    #[tokio::test]
    async fn a_dead_socket_is_told_from_a_missing_one() {
        let path = std::env::temp_dir().join(format!("cowslip-dead-{}.sock", std::process::id()));
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let error = Client::connect(&path).await.unwrap_err();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(error.kind, ErrorKind::Unreachable);
        assert!(error.message.contains("nobody listens"), "{error}");
    }
}
