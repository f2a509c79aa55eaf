//! Opens the file system that a source names: in a snapshot through the backend, in an image directly. Each is
//! opened once, also when many sources name it.

use crate::cli::{
    Context,
    backend::Backend,
    failure::{Failure, Kind, Result},
    names::{Container, FileSource},
};
use fuse_view::{
    BlockRead, FsView,
    cache::{CacheBudget, CachedBlocks},
    container::{self, Contents, Partition},
    fs,
    source::FileImage,
};
use std::{collections::HashMap, sync::Arc};

/// Memory for blocks of all file systems that a command opens.
const CACHE_BYTES: u64 = 64 << 20;

/// Where a source leads.
pub enum Located {
    /// A path in a file system.
    Inside {
        view: Arc<dyn FsView>,
        /// Path in the file system.
        path: Vec<u8>,
        /// What the source has before that path: empty, or `/pN`.
        prefix: Vec<u8>,
        /// Number of the partition, 0 for a bare file system.
        partition: u32,
    },
    /// The root of an image with a partition table.
    Table(Vec<Partition>),
}

enum Opened {
    Bare(Arc<dyn FsView>),
    Table(Vec<(Partition, Arc<dyn BlockRead>)>),
}

/// The file systems of one command.
pub struct Files {
    reader: Option<Box<dyn Backend>>,
    budget: CacheBudget,
    containers: HashMap<Container, Opened>,
    partitions: HashMap<(Container, u32), Arc<dyn FsView>>,
}

impl Files {
    /// None opened yet.
    pub fn new() -> Self {
        Self {
            reader: None,
            budget: CacheBudget::new(CACHE_BYTES),
            containers: HashMap::new(),
            partitions: HashMap::new(),
        }
    }

    /// The agent or pool that has the snapshots, connected to when first asked for.
    pub fn reader(&mut self, context: &Context) -> Result<&dyn Backend> {
        let reader = match self.reader.take() {
            Some(reader) => reader,
            None => context.reader()?,
        };
        Ok(&**self.reader.insert(reader))
    }

    /// The blocks of a container.
    pub fn blocks(&mut self, context: &Context, container: &Container) -> Result<Arc<dyn BlockRead>> {
        let blocks: Arc<dyn BlockRead> = match container {
            Container::Image(path) => Arc::new(FileImage::open(path)?),
            Container::Snapshot(name) => self.reader(context)?.open_snapshot(name)?,
        };
        Ok(Arc::new(CachedBlocks::new(blocks, &self.budget)))
    }

    /// Finds out where `source` leads; its path need not exist.
    pub fn locate(&mut self, context: &Context, source: &FileSource) -> Result<Located> {
        if !self.containers.contains_key(&source.container) {
            let opened = self.open(context, &source.container)?;
            self.containers.insert(source.container.clone(), opened);
        }
        let table = match self.containers.get(&source.container) {
            Some(Opened::Bare(view)) => {
                let (view, path) = (view.clone(), source.path.clone());
                return Ok(Located::Inside { view, path, prefix: Vec::new(), partition: 0 });
            }
            Some(Opened::Table(table)) => table,
            None => return Err(Failure::failed(format!("{} is not open", source.container))),
        };
        let Some((name, path)) = first_component(&source.path) else {
            return Ok(Located::Table(table.iter().map(|(partition, _)| partition.clone()).collect()));
        };
        let found = table.iter().find(|(partition, _)| name == partition_name(partition.number).as_bytes());
        let Some((partition, blocks)) = found else { return Err(no_such_partition(source, table)) };
        let number = partition.number;
        let key = (source.container.clone(), number);
        let view = match self.partitions.get(&key) {
            Some(view) => view.clone(),
            None => {
                let place = format!("{} p{number}", source.container);
                let view = open_view(context, blocks.clone(), &place)?;
                self.partitions.insert(key, view.clone());
                view
            }
        };
        let prefix = format!("/{}", partition_name(number)).into_bytes();
        Ok(Located::Inside { view, path, prefix, partition: number })
    }

    fn open(&mut self, context: &Context, container: &Container) -> Result<Opened> {
        let blocks = self.blocks(context, container)?;
        match container::open(&blocks).map_err(|e| Failure::from(e).at(container))? {
            Contents::FileSystem(_) => Ok(Opened::Bare(open_view(context, blocks, &container.to_string())?)),
            Contents::Partitions(table) => Ok(Opened::Table(table)),
            Contents::Raw => Err(Failure::new(
                Kind::Unsupported,
                format!("{container} holds no file system that is known"),
            )
            .hint("`cowslip volume export` writes the raw content of a snapshot")),
        }
    }
}

/// `p1` for partition 1.
pub fn partition_name(number: u32) -> String {
    format!("p{number}")
}

fn open_view(context: &Context, blocks: Arc<dyn BlockRead>, place: &str) -> Result<Arc<dyn FsView>> {
    let view = fs::open(blocks).map_err(|e| Failure::from(e).at(place))?;
    let replay = view.replay();
    if let Some(why) = replay.strip_prefix("partial") {
        let why = why.trim_start_matches(':').trim();
        context
            .out
            .warn(&format!("{place}: its log could not be replayed, files may be missing or old: {why}"));
    }
    Ok(view)
}

/// The first component of a path and the rest of it; None for the root.
fn first_component(path: &[u8]) -> Option<(&[u8], Vec<u8>)> {
    let start = path.iter().position(|byte| *byte != b'/')?;
    let rest = &path[start..];
    let end = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
    let below = if end == rest.len() { b"/".to_vec() } else { rest[end..].to_vec() };
    Some((&rest[..end], below))
}

fn no_such_partition(source: &FileSource, table: &[(Partition, Arc<dyn BlockRead>)]) -> Failure {
    let names: Vec<String> = table.iter().map(|(partition, _)| partition_name(partition.number)).collect();
    Failure::new(Kind::NotFound, format!("{source} begins with no partition of {}", source.container))
        .hint(format!("it has {}: write {}:/{}/…", names.join(", "), source.container, names[0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_the_first_component() {
        let split = |path: &'static str| {
            first_component(path.as_bytes()).map(|(name, rest)| {
                (String::from_utf8_lossy(name).into_owned(), String::from_utf8(rest).unwrap())
            })
        };
        assert_eq!(split("/"), None);
        assert_eq!(split("//"), None);
        assert_eq!(split("/p1"), Some(("p1".into(), "/".into())));
        assert_eq!(split("/p1/"), Some(("p1".into(), "/".into())));
        assert_eq!(split("//p12/a/b"), Some(("p12".into(), "/a/b".into())));
    }
}
