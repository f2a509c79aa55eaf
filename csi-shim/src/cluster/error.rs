//! What can go wrong in a step, and what is no failure at all.

/// Why a step was not done; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API refused, or was not reached.
    #[error("cannot {what}: {}", shown(.source))]
    Api {
        /// What was to be done.
        what: &'static str,
        /// What the client says.
        source: kube::Error,
    },
}

impl Error {
    /// With what was to be done.
    pub fn of(what: &'static str) -> impl FnOnce(kube::Error) -> Self {
        move |source| Self::Api { what, source }
    }

    /// Somebody else changed the object in between: read it again.
    pub fn is_conflict(&self) -> bool {
        let Self::Api { source: kube::Error::Api(status), .. } = self else { return false };
        status.is_conflict()
    }
}

fn shown(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// What the API answered, unless there is no such object (any more).
pub fn unless_absent<T>(answer: kube::Result<T>) -> kube::Result<Option<T>> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}
