//! The watches that tell of volumes and snapshots, and the loops that see to what they tell.

use super::Cluster;
use super::assign::Assign;
use super::gone::{Gone, Thing};
use super::objects::{self, Content, GroupContent};
use super::places::node_of;
use super::sources::Sources;
use crate::DRIVER_NAME;
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::Api;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use tokio_stream::StreamExt;

/// So many objects are listed at a time: none is kept, and memory stays small.
const PAGE: u32 = 100;

/// For ever.
pub async fn run(cluster: &Cluster) {
    let assign = Assign::new(cluster);
    let gone = Gone::new(cluster);
    let sources = Sources::new(cluster);
    let volumes = every("PersistentVolume", Api::all(cluster.client.clone()), |volume| {
        volume_seen(cluster, &gone, volume);
    });
    let contents = every("VolumeSnapshotContent", objects::contents(&cluster.client), |content| {
        content_seen(cluster, &assign, &gone, content);
    });
    let groups = every("VolumeGroupSnapshotContent", objects::group_contents(&cluster.client), |group| {
        group_seen(cluster, &assign, &gone, group);
    });
    let claims =
        every("PersistentVolumeClaim", Api::all(cluster.client.clone()), |claim| sources.seen(claim));
    tokio::join!(volumes, contents, groups, claims, assign.run(), gone.run(), sources.run());
}

fn volume_seen(cluster: &Cluster, gone: &Gone, volume: &PersistentVolume) {
    let handle = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
    let Some(handle) = handle.filter(|csi| csi.driver == DRIVER_NAME).map(|csi| &csi.volume_handle) else {
        return;
    };
    let Some(node) = node_of(volume) else { return };
    cluster.places.learn(handle, node);
    gone.seen(Thing::Volume(volume.name_any()), super::gone::is_to_go(volume));
}

fn content_seen(cluster: &Cluster, assign: &Assign, gone: &Gone, content: &Content) {
    if content.spec.driver != DRIVER_NAME {
        return;
    }
    match (objects::labelled_for(content), objects::handle(content)) {
        (Some(node), Some(handle)) => cluster.places.learn(handle, node),
        (None, _) => assign.content(content.name_any()),
        (Some(_), None) => {}
    }
    gone.seen(Thing::Snapshot(content.name_any()), content.metadata.deletion_timestamp.is_some());
}

fn group_seen(cluster: &Cluster, assign: &Assign, gone: &Gone, group: &GroupContent) {
    if group.spec.driver != DRIVER_NAME {
        return;
    }
    if let (Some(node), Some(handle)) = (objects::labelled_for(group), objects::group_handle(group)) {
        cluster.places.learn(handle, node);
    }
    assign.group(group);
    gone.seen(Thing::Group(group.name_any()), group.metadata.deletion_timestamp.is_some());
}

/// Tells of every object as it is, and each time it changes, for ever. A kind that is not there may come.
pub async fn every<K>(kind: &'static str, api: Api<K>, seen: impl FnMut(&K))
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    every_with(kind, api, config(), seen).await;
}

/// How to watch.
pub fn config() -> watcher::Config {
    watcher::Config::default().page_size(PAGE)
}

/// The same of the objects that the configuration selects. Also of those that are gone: who waits for it wants to know.
pub async fn every_with<K>(kind: &'static str, api: Api<K>, config: watcher::Config, mut seen: impl FnMut(&K))
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let events = watch(api, config).default_backoff();
    tokio::pin!(events);
    let mut failing = false;
    while let Some(event) = events.next().await {
        let failed = event.is_err();
        match event {
            Ok(Event::Apply(object) | Event::InitApply(object) | Event::Delete(object)) => seen(&object),
            Ok(Event::Init | Event::InitDone) => {}
            Err(error) if failing => tracing::debug!(kind, "watching: {error}"),
            Err(error) => tracing::warn!(kind, "watching, tried again: {error}"),
        }
        failing = failed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::http::{StatusCode, Uri};
    use axum::response::{IntoResponse, Response};
    use axum::routing::get;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::Client;
    use kube::api::PartialObjectMeta;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;
    use tokio::sync::Notify;

    const EMPTY: &str = r#"{"kind":"List","apiVersion":"v1","metadata":{"resourceVersion":"5"},"items":[]}"#;
    /// On several lines, as it comes where only metadata is asked for.
    const REFUSED: &str = "{\n  \"kind\": \"Status\",\n  \"apiVersion\": \"v1\",\n  \"metadata\": {},\n  \"status\": \"Failure\",\n  \
        \"message\": \"storage is (re)initializing\",\n  \"reason\": \"TooManyRequests\",\n  \"details\": {\n    \
        \"retryAfterSeconds\": 1\n  },\n  \"code\": 429\n}";
    const ADDED: &str = concat!(
        r#"{"type":"ADDED","object":{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","#,
        r#""metadata":{"name":"one","namespace":"default","resourceVersion":"6"}}}"#,
        "\n"
    );

    #[tokio::test]
    async fn a_refused_watch_is_asked_for_again() {
        let refused = Arc::new(AtomicBool::new(false));
        let answer = move |asked: Uri| async move {
            let answer: Response = match asked.query().unwrap_or_default().contains("watch=true") {
                false => EMPTY.into_response(),
                true if !refused.swap(true, Ordering::Relaxed) => {
                    (StatusCode::TOO_MANY_REQUESTS, REFUSED).into_response()
                }
                true => ADDED.into_response(),
            };
            answer
        };
        let client = Client::new(Router::new().route("/api/v1/configmaps", get(answer)), "default");
        let seen = Notify::new();
        let watching = every("ConfigMap", Api::<PartialObjectMeta<ConfigMap>>::all(client), |map| {
            assert_eq!(map.name_any(), "one");
            seen.notify_one();
        });
        tokio::select! {
            () = watching => unreachable!("it watches for ever"),
            () = seen.notified() => {}
            // The second request comes after one pause, of two seconds at most.
            () = tokio::time::sleep(Duration::from_secs(30)) => panic!("the object was never told of"),
        }
    }
}
