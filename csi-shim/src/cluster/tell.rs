//! Events: what a user sees of an object in `kubectl describe`.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// The same is not told again before that.
const AGAIN_AFTER: Duration = Duration::from_secs(600);
/// The API takes no longer notes.
const LONGEST_NOTE: usize = 1000;

/// Tells each thing once.
pub struct Teller {
    recorder: Recorder,
    told: Mutex<HashMap<Topic, (String, Instant)>>,
}

/// The uid of an object, and a reason: what was told last of it.
type Topic = (String, &'static str);

impl Teller {
    /// For the replica with that name.
    pub fn new(client: Client, identity: &str) -> Self {
        let reporter =
            Reporter { controller: super::lease::NAME.to_owned(), instance: Some(identity.to_owned()) };
        Self { recorder: Recorder::new(client, reporter), told: Mutex::default() }
    }

    /// Something that a user should see to.
    pub async fn warn(&self, about: &ObjectReference, reason: &'static str, note: &str) {
        self.tell(EventType::Warning, about, reason, note).await;
    }

    /// Something that went as it should.
    pub async fn note(&self, about: &ObjectReference, reason: &'static str, note: &str) {
        self.tell(EventType::Normal, about, reason, note).await;
    }

    async fn tell(&self, type_: EventType, about: &ObjectReference, reason: &'static str, note: &str) {
        if !self.is_news((about.uid.clone().unwrap_or_default(), reason), note) {
            return;
        }
        let shown = || {
            format!("{}/{}", about.namespace.as_deref().unwrap_or("-"), about.name.as_deref().unwrap_or("-"))
        };
        tracing::info!(kind = about.kind, object = shown(), reason, "{note}");
        let fits = |(at, c): &(usize, char)| at + c.len_utf8() <= LONGEST_NOTE;
        let note: String = note.char_indices().take_while(fits).map(|(_, c)| c).collect();
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note),
            action: reason.to_owned(),
            secondary: None,
        };
        // It is in the log, and what it is about is in the object's status where there is one.
        if let Err(error) = self.recorder.publish(&event, about).await {
            tracing::warn!("an event was not written: {error}");
        }
    }

    fn is_news(&self, what: Topic, note: &str) -> bool {
        let mut told = self.told.lock();
        told.retain(|_, (_, at)| at.elapsed() < AGAIN_AFTER);
        let before = told.insert(what, (note.to_owned(), Instant::now()));
        before.is_none_or(|(before, _)| before != note)
    }
}
