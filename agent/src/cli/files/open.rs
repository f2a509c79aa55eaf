//! Opens the file system that a source names: in a snapshot through the backend, in an image directly. Each is
//! opened once, also when many sources name it.

use crate::cli::{
    Context,
    backend::Backend,
    failure::{Failure, Kind, Result},
    names::{Container, FileSource},
};
use crate::readers;
use fuse_view::{
    BlockRead, FsView,
    container::Partition,
    source::FileImage,
    worker::{Event, Holds, Options, Reader, Workers},
};
use std::{collections::HashMap, sync::Arc};

/// Memory for blocks of all file systems that a command opens.
const CACHE_BYTES: u64 = 64 << 20;
/// Memory for everything else of who compares: every difference is held until all are known to be right.
const COMPARING_BYTES: u64 = 4 << 30;

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
    Table(Vec<(Partition, Arc<dyn BlockRead>)>, Arc<Reader>),
}

/// The file systems of one command.
pub struct Files {
    reader: Option<Box<dyn Backend>>,
    /// Made when the first is needed.
    workers: Option<Arc<Workers>>,
    containers: HashMap<Container, Opened>,
    partitions: HashMap<(Container, u32), Arc<dyn FsView>>,
}

impl Files {
    /// None opened yet.
    pub fn new() -> Self {
        Self { reader: None, workers: None, containers: HashMap::new(), partitions: HashMap::new() }
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
    pub fn source(&mut self, context: &Context, container: &Container) -> Result<Arc<dyn BlockRead>> {
        Ok(match container {
            Container::Image(path) => Arc::new(FileImage::open(path)?),
            Container::Snapshot(name) => self.reader(context)?.open_snapshot(name)?,
        })
    }

    /// Who parses the next container: a process of its own, without the rights of this one.
    fn parser(&mut self) -> Result<Arc<Reader>> {
        let workers = match &self.workers {
            Some(workers) => workers.clone(),
            None => self.workers.insert(workers(readers::options(None)?)).clone(),
        };
        Ok(workers.reader(self.containers.len() as u64, ""))
    }

    /// Finds out where `source` leads; its path need not exist.
    pub fn locate(&mut self, context: &Context, source: &FileSource) -> Result<Located> {
        if !self.containers.contains_key(&source.container) {
            let opened = self.open(context, &source.container)?;
            self.containers.insert(source.container.clone(), opened);
        }
        let (table, parser) = match self.containers.get(&source.container) {
            Some(Opened::Bare(view)) => {
                let (view, path) = (view.clone(), source.path.clone());
                return Ok(Located::Inside { view, path, prefix: Vec::new(), partition: 0 });
            }
            Some(Opened::Table(table, parser)) => (table, parser),
            None => return Err(Failure::failed(format!("{} is not open", source.container))),
        };
        let Some((name, path)) = first_component(&source.path) else {
            return Ok(Located::Table(table.iter().map(|(partition, _)| partition.clone()).collect()));
        };
        let found = table.iter().find(|(partition, _)| name == partition.directory.as_bytes());
        let Some((partition, blocks)) = found else { return Err(no_such_partition(source, table)) };
        let number = partition.number;
        let key = (source.container.clone(), number);
        let view = match self.partitions.get(&key) {
            Some(view) => view.clone(),
            None => {
                let place = format!("{} {}", source.container, partition.directory);
                let view =
                    match parser.open(&place, blocks.clone()).map_err(|e| Failure::from(e).at(&place))? {
                        Holds::Files(view) => view,
                        Holds::Partitions(_) | Holds::Raw => return Err(unknown(&place)),
                    };
                warn_of_log(context, &*view, &place);
                self.partitions.insert(key, view.clone());
                view
            }
        };
        let prefix = format!("/{}", partition.directory).into_bytes();
        Ok(Located::Inside { view, path, prefix, partition: number })
    }

    fn open(&mut self, context: &Context, container: &Container) -> Result<Opened> {
        let blocks = self.source(context, container)?;
        let (parser, place) = (self.parser()?, container.to_string());
        match parser.open(&place, blocks).map_err(|e| Failure::from(e).at(container))? {
            Holds::Files(view) => {
                warn_of_log(context, &*view, &place);
                Ok(Opened::Bare(view))
            }
            Holds::Partitions(table) => Ok(Opened::Table(table, parser)),
            Holds::Raw => Err(unknown(&place)),
        }
    }
}

fn workers(options: Options) -> Arc<Workers> {
    // What happens to one is in the error of the command.
    let told = |event: &Event| tracing::info!(?event, "the process that parses an image");
    Workers::new(Options { cache_bytes: CACHE_BYTES, ..options }, told)
}

/// Who compares snapshots: as [`Files`] has it, with more memory.
pub fn comparer() -> Result<Arc<Reader>> {
    let options = Options { memory_bytes: COMPARING_BYTES, ..readers::options(None)? };
    Ok(workers(options).reader(0, ""))
}

fn unknown(place: &str) -> Failure {
    Failure::new(Kind::Unsupported, format!("{place} holds no file system that is known"))
        .hint("`cowslip volume export` writes the raw content of a snapshot")
}

/// Says so where files may be missing.
fn warn_of_log(context: &Context, view: &dyn FsView, place: &str) {
    let replay = view.replay();
    if let Some(why) = replay.strip_prefix("partial") {
        let why = why.trim_start_matches(':').trim();
        context
            .out
            .warn(&format!("{place}: its log could not be replayed, files may be missing or old: {why}"));
    }
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
    let names: Vec<String> = table.iter().map(|(partition, _)| partition.directory.clone()).collect();
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
