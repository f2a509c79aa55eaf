//! The SnapshotMetadata service: which ranges of a snapshot hold data, and which differ from an older one.

use crate::Answer;
use crate::agent::{Agent, Connection, foreign};
use crate::checks::{self, shown};
use crate::csi::snapshot_metadata_server::SnapshotMetadata;
use crate::csi::{
    BlockMetadata, BlockMetadataType, GetMetadataAllocatedRequest, GetMetadataAllocatedResponse,
    GetMetadataDeltaRequest, GetMetadataDeltaResponse,
};
use api::v1::{ListExtentsRequest, Snapshot, SnapshotRef};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Messages that wait for a slow reader.
const QUEUE: usize = 2;
/// Extents of a message, unless the caller wants fewer: some 100 KiB.
const EXTENTS_A_MESSAGE: u32 = 4096;

/// The service.
#[derive(Debug)]
pub struct MetadataService {
    agent: Agent,
}

impl MetadataService {
    /// For that agent.
    pub fn new(agent: Agent) -> Self {
        Self { agent }
    }
}

/// Which extents.
struct Walk {
    agent: Connection,
    request: ListExtentsRequest,
}

/// A message's worth of them.
struct Page {
    capacity_bytes: i64,
    extents: Vec<BlockMetadata>,
}

impl Walk {
    fn new(
        agent: Connection,
        target: &Snapshot,
        base: Option<&Snapshot>,
        offset: i64,
        max: i32,
    ) -> Result<Self, Status> {
        let max = u32::try_from(max).map_err(|_| Status::invalid_argument("max_results is negative"))?;
        let offset =
            u64::try_from(offset).ok().filter(|offset| *offset <= target.size_bytes).ok_or_else(|| {
                Status::out_of_range(format!(
                    "starting_offset {offset} is not within {} bytes",
                    target.size_bytes
                ))
            })?;
        let snapshot = Some(SnapshotRef { volume: target.volume.clone(), name: target.name.clone() });
        let base = base.map_or(String::new(), |base| base.name.clone());
        let max_extents = if max == 0 { EXTENTS_A_MESSAGE } else { max.min(EXTENTS_A_MESSAGE) };
        Ok(Self { agent, request: ListExtentsRequest { snapshot, base, offset, max_extents } })
    }

    /// Sends page after page until the end, a failure, or until nobody listens.
    async fn send<T>(mut self, sink: mpsc::Sender<Result<T, Status>>, message: fn(Page) -> T) {
        loop {
            let found = match self.agent.client.list_extents(self.request.clone()).await.map_err(foreign) {
                Ok(found) => found.into_inner(),
                Err(status) => {
                    // Nobody is left to be told if this fails.
                    let _ = sink.send(Err(status)).await;
                    return;
                }
            };
            let extents = found.extents.iter().map(|one| BlockMetadata {
                byte_offset: i64::try_from(one.offset).unwrap_or(i64::MAX),
                size_bytes: i64::try_from(one.length).unwrap_or(i64::MAX),
            });
            let capacity_bytes = i64::try_from(found.size_bytes).unwrap_or(i64::MAX);
            let page = Page { capacity_bytes, extents: extents.collect() };
            if sink.send(Ok(message(page))).await.is_err() || found.next_offset == 0 {
                return;
            }
            self.request.offset = found.next_offset;
        }
    }
}

type Stream<T> = ReceiverStream<Result<T, Status>>;

fn start<T: Send + 'static>(walk: Walk, message: fn(Page) -> T) -> Response<Stream<T>> {
    let (sink, messages) = mpsc::channel(QUEUE);
    tokio::spawn(walk.send(sink, message));
    Response::new(ReceiverStream::new(messages))
}

#[tonic::async_trait]
impl SnapshotMetadata for MetadataService {
    type GetMetadataAllocatedStream = Stream<GetMetadataAllocatedResponse>;
    async fn get_metadata_allocated(
        &self,
        request: Request<GetMetadataAllocatedRequest>,
    ) -> Answer<Self::GetMetadataAllocatedStream> {
        let request = request.into_inner();
        checks::required("snapshot_id", &request.snapshot_id)?;
        let mut agent = self.agent.connect().await?;
        let target = agent.snapshot(&request.snapshot_id).await?;
        let walk = Walk::new(agent, &target, None, request.starting_offset, request.max_results)?;
        Ok(start(walk, |page| GetMetadataAllocatedResponse {
            block_metadata_type: BlockMetadataType::VariableLength.into(),
            volume_capacity_bytes: page.capacity_bytes,
            block_metadata: page.extents,
        }))
    }

    type GetMetadataDeltaStream = Stream<GetMetadataDeltaResponse>;
    async fn get_metadata_delta(
        &self,
        request: Request<GetMetadataDeltaRequest>,
    ) -> Answer<Self::GetMetadataDeltaStream> {
        let request = request.into_inner();
        checks::required("base_snapshot_id", &request.base_snapshot_id)?;
        checks::required("target_snapshot_id", &request.target_snapshot_id)?;
        let mut agent = self.agent.connect().await?;
        let base = agent.snapshot(&request.base_snapshot_id).await?;
        let target = agent.snapshot(&request.target_snapshot_id).await?;
        if base.volume_id != target.volume_id || base.id > target.id {
            return Err(Status::invalid_argument(format!(
                "snapshot {} is not an older one of the same volume as {}",
                shown(&request.base_snapshot_id),
                shown(&request.target_snapshot_id)
            )));
        }
        let walk = Walk::new(agent, &target, Some(&base), request.starting_offset, request.max_results)?;
        Ok(start(walk, |page| GetMetadataDeltaResponse {
            block_metadata_type: BlockMetadataType::VariableLength.into(),
            volume_capacity_bytes: page.capacity_bytes,
            block_metadata: page.extents,
        }))
    }
}
