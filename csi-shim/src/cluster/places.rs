//! On which node a volume or a snapshot is.
//!
//! The id of each begins with the pool that it is in, and a pool is on one node. Which, is learnt from the objects as they
//! are listed and change: persistent volumes name their node, and so do snapshots that are labelled.

use crate::TOPOLOGY_KEY;
use crate::ids;
use k8s_openapi::api::core::v1::PersistentVolume;
use parking_lot::Mutex;
use std::collections::HashMap;

/// Pools and their nodes.
#[derive(Default)]
pub struct Places {
    nodes: Mutex<HashMap<String, String>>,
}

impl Places {
    /// What has this id is on that node.
    pub fn learn(&self, id: &str, node: &str) {
        if let Some(pool) = ids::pool_of(id) {
            self.nodes.lock().insert(pool.to_owned(), node.to_owned());
        }
    }

    /// The node of whatever has this id, as far as it is known yet.
    pub fn of(&self, id: &str) -> Option<String> {
        self.nodes.lock().get(ids::pool_of(id)?).cloned()
    }
}

/// The node that a volume of this driver is on, by its own account.
pub fn node_of(volume: &PersistentVolume) -> Option<&str> {
    let required = volume.spec.as_ref()?.node_affinity.as_ref()?.required.as_ref()?;
    let expressions =
        required.node_selector_terms.iter().flat_map(|term| term.match_expressions.iter().flatten());
    let mut ours =
        expressions.filter(|expression| expression.key == TOPOLOGY_KEY && expression.operator == "In");
    ours.next()?.values.as_deref()?.first().map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Host, Id, Kind};
    use serde_json::json;

    #[test]
    fn all_of_a_pool_is_where_one_of_it_is() {
        let host = Host::parse("0123456789abcdef0123456789abcdef").unwrap();
        let other = Host::parse("1123456789abcdef0123456789abcdef").unwrap();
        let id = |host, kind, number| Id { host, kind, number }.to_string();
        let places = Places::default();
        places.learn(&id(host, Kind::Volume, 1), "node-1");
        assert_eq!(places.of(&id(host, Kind::Snapshot, 7)).as_deref(), Some("node-1"));
        assert_eq!(places.of(&id(other, Kind::Snapshot, 7)), None);
        places.learn("nonsense", "node-2");
        assert_eq!(places.of("nonsense"), None);
    }

    #[test]
    fn a_volume_names_its_node() {
        let volume = |key: &str| -> PersistentVolume {
            serde_json::from_value(json!({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": key, "operator": "In", "values": ["node-3"]}]}
            ]}}}}))
            .unwrap()
        };
        assert_eq!(node_of(&volume(TOPOLOGY_KEY)), Some("node-3"));
        assert_eq!(node_of(&volume("kubernetes.io/hostname")), None);
        assert_eq!(node_of(&PersistentVolume::default()), None);
    }
}
