//! What a snapshot's conditions say of how it went.

use super::objects::Condition;

/// How making a snapshot went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// `Ready`, `Pending` or `Error`.
    pub kind: &'static str,
    /// In one word.
    pub reason: &'static str,
    /// In a sentence.
    pub message: String,
}

impl Outcome {
    /// It is there and can be used.
    pub fn ready() -> Self {
        Self { kind: "Ready", reason: "SnapshotCreated", message: "Snapshot created successfully".to_owned() }
    }

    /// It is being made, or waits for something that comes by itself.
    pub fn pending(reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind: "Pending", reason, message: message.into() }
    }

    /// Somebody has to see to it. It is tried again all the same.
    pub fn error(reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind: "Error", reason, message: message.into() }
    }

    /// The conditions after it: its own holds, the others hold no more.
    pub fn conditions(&self, before: &[Condition], now: &str) -> Vec<Condition> {
        let mut all = before.to_vec();
        if !all.iter().any(|condition| condition.kind == self.kind) {
            all.push(Condition {
                kind: self.kind.to_owned(),
                status: String::new(),
                last_transition_time: None,
                reason: String::new(),
                message: String::new(),
            });
        }
        for condition in &mut all {
            let holds = condition.kind == self.kind;
            let status = if holds { "True" } else { "False" };
            if condition.status != status {
                status.clone_into(&mut condition.status);
                condition.last_transition_time = Some(now.to_owned());
            }
            if holds {
                self.reason.clone_into(&mut condition.reason);
                self.message.clone_into(&mut condition.message);
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(conditions: &[Condition]) -> Vec<String> {
        let one = |c: &Condition| {
            format!(
                "{} {} {} {}",
                c.kind,
                c.status,
                c.last_transition_time.as_deref().unwrap_or("-"),
                c.reason
            )
        };
        conditions.iter().map(one).collect()
    }

    #[test]
    fn one_condition_holds_at_a_time() {
        let failed = Outcome::error("ClaimNotFound", "no claim x").conditions(&[], "1");
        assert_eq!(shown(&failed), ["Error True 1 ClaimNotFound"]);
        let pending = Outcome::pending("Cutting", "the snapshot is being cut").conditions(&failed, "2");
        assert_eq!(shown(&pending), ["Error False 2 ClaimNotFound", "Pending True 2 Cutting"]);
        let ready = Outcome::ready().conditions(&pending, "3");
        assert_eq!(
            shown(&ready),
            ["Error False 2 ClaimNotFound", "Pending False 3 Cutting", "Ready True 3 SnapshotCreated"]
        );
    }

    #[test]
    fn the_same_again_changes_nothing_but_the_words() {
        let first = Outcome::pending("ClaimNotBound", "x is not bound").conditions(&[], "1");
        assert_eq!(Outcome::pending("ClaimNotBound", "x is not bound").conditions(&first, "2"), first);
        let other = Outcome::pending("Cutting", "soon").conditions(&first, "2");
        assert_eq!(shown(&other), ["Pending True 1 Cutting"]);
    }
}
