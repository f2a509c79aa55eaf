//! What classes may say, and what the sidecars add to it.

use crate::checks::{self, shown};
use crate::labels;
use api::v1::Freeze;
use std::collections::HashMap;
use tonic::Status;

/// Longest value of a label in the pool, bytes.
const MAX_LABEL_BYTES: usize = 1024;

/// Parameters of a class.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parameters {
    /// File system of new volumes, where it is given.
    pub fs: Option<String>,
    /// How to cut, where it is given.
    pub consistency: Option<Consistency>,
    /// What Kubernetes tells of the object, kept as labels.
    pub metadata: HashMap<String, String>,
}

/// How consistent a cut is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// A mounted file system is frozen, or nothing is cut.
    Fs,
    /// Nothing is frozen.
    Crash,
}

/// Which class it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Of volumes.
    Storage,
    /// Of snapshots or of groups of them.
    Snapshot,
}

impl Parameters {
    /// Reads the parameters of a class.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` naming what is not known here: a limit that nobody keeps would be a broken promise.
    pub fn parse(class: Class, given: &HashMap<String, String>) -> Result<Self, Status> {
        checks::map("parameters", given)?;
        let mut parameters = Self::default();
        for (key, value) in given {
            match (key.as_str(), class) {
                ("fsType", Class::Storage) => {
                    checks::file_system(value)?;
                    parameters.fs = Some(value.clone());
                }
                ("consistency", _) => parameters.consistency = Some(consistency(value)?),
                ("iops" | "bandwidth", Class::Storage) => {
                    return Err(Status::invalid_argument(format!(
                        "parameter {key}: this version of the agent cannot limit volumes; leave it out"
                    )));
                }
                (key, _) if key.starts_with(labels::KUBERNETES) => {
                    if value.len() <= MAX_LABEL_BYTES && !value.is_empty() {
                        parameters.metadata.insert(key.to_owned(), value.clone());
                    }
                }
                (key, class) => {
                    let known = match class {
                        Class::Storage => "fsType and consistency",
                        Class::Snapshot => "consistency",
                    };
                    return Err(Status::invalid_argument(format!(
                        "parameter {} is not known; this class takes {known}",
                        shown(key)
                    )));
                }
            }
        }
        Ok(parameters)
    }

    /// What the agent is asked for: without a word, the best that can be had.
    pub fn freeze(&self) -> Freeze {
        match self.consistency {
            None => Freeze::Try,
            Some(Consistency::Fs) => Freeze::Required,
            Some(Consistency::Crash) => Freeze::No,
        }
    }
}

fn consistency(value: &str) -> Result<Consistency, Status> {
    match value {
        "fs" => Ok(Consistency::Fs),
        "crash" => Ok(Consistency::Crash),
        other => {
            Err(Status::invalid_argument(format!("consistency {} is neither fs nor crash", shown(other))))
        }
    }
}

/// A hash of arguments, the same for the same in any order.
pub fn hash_of(arguments: &mut [String]) -> String {
    arguments.sort_unstable();
    let mut hasher = blake3::Hasher::new();
    for argument in arguments {
        hasher.update(&(argument.len() as u64).to_le_bytes()).update(argument.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    fn parse(class: Class, pairs: &[(&str, &str)]) -> Result<Parameters, Code> {
        let given = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Parameters::parse(class, &given).map_err(|status| status.code())
    }

    #[test]
    fn known_parameters_and_what_kubernetes_adds() {
        let pvc = "csi.storage.k8s.io/pvc/name";
        let found =
            parse(Class::Storage, &[("fsType", "xfs"), ("consistency", "crash"), (pvc, "data")]).unwrap();
        assert_eq!(found.fs.as_deref(), Some("xfs"));
        assert_eq!(found.freeze(), Freeze::No);
        assert_eq!(found.metadata, HashMap::from([(pvc.to_owned(), "data".to_owned())]));
        assert_eq!(parse(Class::Snapshot, &[("consistency", "fs")]).unwrap().freeze(), Freeze::Required);
        assert_eq!(parse(Class::Snapshot, &[]).unwrap().freeze(), Freeze::Try);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for (class, key, value) in [
            (Class::Storage, "fsType", "zfs"),
            (Class::Storage, "consistency", "maybe"),
            (Class::Storage, "iops", "100"),
            (Class::Storage, "bandwidth", "1M"),
            (Class::Storage, "pool", "/etc"),
            (Class::Snapshot, "fsType", "ext4"),
            (Class::Snapshot, "consistency", "fs\0"),
        ] {
            assert_eq!(parse(class, &[(key, value)]), Err(Code::InvalidArgument), "{key}={value}");
        }
    }

    #[test]
    fn the_hash_knows_arguments_and_not_their_order() {
        let hash = |words: &[&str]| hash_of(&mut words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
        assert_eq!(hash(&["a", "b"]), hash(&["b", "a"]));
        assert_ne!(hash(&["ab"]), hash(&["a", "b"]));
    }
}
