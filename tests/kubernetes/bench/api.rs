//! The API server without a process for each call: `kubectl proxy` on a socket. What is measured is watched, so that the
//! measuring neither takes a processor nor rounds.

use crate::cluster::Cluster;
use integration_tests::rig::Running;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How often it is asked where nothing is measured.
const PAUSE: Duration = Duration::from_millis(50);
/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(300);
/// What the last object's deletion leaves to do, for either driver, is done by then.
const REST: Duration = Duration::from_millis(500);

pub struct Api {
    socket: PathBuf,
    _proxy: Running,
}

/// Where objects of the default namespace are, by the plural of their kind.
fn path(of: &str) -> String {
    let group = match of.split('/').next() {
        Some("volumesnapshots") => "apis/snapshot.storage.k8s.io/v1",
        _ => "api/v1",
    };
    format!("/{group}/namespaces/default/{of}")
}

fn plural(object: &Value) -> &'static str {
    match object["kind"].as_str() {
        Some("VolumeSnapshot") => "volumesnapshots",
        Some("PersistentVolumeClaim") => "persistentvolumeclaims",
        Some("Pod") => "pods",
        other => panic!("no path for {other:?}"),
    }
}

impl Api {
    pub fn start(cluster: &Cluster) -> Self {
        let socket = cluster.kubelet(1, "proxy.sock");
        let mut command = cluster.beside("kubectl");
        command.arg("proxy").arg(format!("--unix-socket={}", socket.display()));
        let proxy = Running::start(&mut command);
        cluster.eventually("the proxy listens", || UnixStream::connect(&socket).is_ok());
        Self { socket, _proxy: proxy }
    }

    /// Sends a request. Of HTTP/1.0, so that the answer ends with the connection and has no chunks.
    fn send(&self, method: &str, path: &str, body: &str) -> UnixStream {
        let mut stream = UnixStream::connect(&self.socket).expect("the proxy listens");
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        );
        stream
            .write_all(head.as_bytes())
            .and_then(|()| stream.write_all(body.as_bytes()))
            .expect("it takes a request");
        stream
    }

    /// Status and body.
    fn call(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let mut answer = Vec::new();
        self.send(method, path, body).read_to_end(&mut answer).expect("it answers");
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("and a status");
        (status, serde_json::from_str(body).unwrap_or_default())
    }

    pub fn create(&self, object: &Value) {
        let (status, answer) = self.call("POST", &path(plural(object)), &object.to_string());
        assert_eq!(status, 201, "{answer}");
    }

    /// Waits until an object is as it should be.
    pub fn until(&self, of: &str, is: impl Fn(&Value) -> bool) {
        let (path, started) = (path(of), Instant::now());
        loop {
            let (_, object) = self.call("GET", &path, "");
            if is(&object) {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "waited in vain for {of}: {object}");
            std::thread::sleep(PAUSE);
        }
    }

    /// Makes an object; seconds until it is as it should be.
    pub fn timed(&self, object: &Value, is: impl Fn(&Value) -> bool) -> f64 {
        let name = object["metadata"]["name"].as_str().expect("a name");
        let watch = format!("{}?watch=1&fieldSelector=metadata.name%3D{name}", path(plural(object)));
        let stream = self.send("GET", &watch, "");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket has a timeout");
        let mut lines =
            BufReader::new(stream).lines().map(|line| line.expect("the API server tells changes"));
        assert!(lines.by_ref().find(|line| line.is_empty()).is_some(), "an answer has a head");
        std::thread::sleep(REST);
        let started = Instant::now();
        self.create(object);
        let changes = lines.map(|line| serde_json::from_str::<Value>(&line).expect("a JSON object a line"));
        let mut states = changes.map(|change| change["object"].clone());
        assert!(states.any(|state| is(&state)), "the watch of {name} ended");
        started.elapsed().as_secs_f64()
    }

    pub fn delete_later(&self, of: &str) {
        let (status, answer) = self.call("DELETE", &path(of), "");
        assert!(status < 300, "{answer}");
    }

    pub fn gone(&self, of: &str) {
        self.until(of, |object| object["reason"] == "NotFound");
    }

    pub fn delete(&self, of: &str) {
        self.delete_later(of);
        self.gone(of);
    }
}
