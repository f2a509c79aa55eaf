//! Listings in pages, and the room that is left.
//!
//! A page's token is the number of its last entry: entries that come or go meanwhile move no other one, and nothing
//! has to be remembered between pages.

use super::convert;
use crate::agent::{Agent, Connection, Found};
use crate::checks::{self, shown};
use crate::csi::{self, list_snapshots_response, list_volumes_response};
use crate::labels;
use crate::parameters::{Class, Parameters};
use std::collections::HashMap;
use tonic::Status;

/// The part of `all`, which ascends by number, that a page has, and the token of the next one.
fn page<T>(all: Vec<(u64, T)>, max_entries: i32, token: &str) -> Result<(Vec<T>, String), Status> {
    let max = usize::try_from(max_entries)
        .map_err(|_| Status::invalid_argument(format!("max_entries {max_entries} is negative")))?;
    let after = match token {
        "" => 0,
        token => token
            .parse()
            .map_err(|_| Status::aborted(format!("starting_token {} was not given out", shown(token))))?,
    };
    let mut rest = all.into_iter().filter(|(number, _)| *number > after).peekable();
    let mut entries = Vec::new();
    let mut last = 0;
    while max == 0 || entries.len() < max {
        let Some((number, entry)) = rest.next() else { break };
        last = number;
        entries.push(entry);
    }
    let next = if rest.peek().is_some() { last.to_string() } else { String::new() };
    Ok((entries, next))
}

/// Volumes.
pub async fn volumes(
    agent: &Agent,
    request: &csi::ListVolumesRequest,
) -> Result<csi::ListVolumesResponse, Status> {
    let mut connection = agent.connect().await?;
    let found = connection.volumes_with(HashMap::new()).await?;
    let entry = |volume: api::v1::Volume| {
        let shown = convert::volume(&connection, &volume, agent.node());
        (volume.id, list_volumes_response::Entry { volume: Some(shown), status: None })
    };
    let all = found.into_iter().map(entry).collect();
    let (entries, next_token) = page(all, request.max_entries, &request.starting_token)?;
    Ok(csi::ListVolumesResponse { entries, next_token })
}

/// Snapshots: all, one, or those of a volume.
pub async fn snapshots(
    agent: &Agent,
    request: &csi::ListSnapshotsRequest,
) -> Result<csi::ListSnapshotsResponse, Status> {
    let mut agent = agent.connect().await?;
    let found = match request.snapshot_id.as_str() {
        "" => agent.snapshots_with(HashMap::new()).await?,
        id => match agent.find_snapshot(id).await? {
            Found::Here(one) => vec![one],
            Found::Absent | Found::Elsewhere => Vec::new(),
        },
    };
    let all = entries(&agent, found, &request.source_volume_id);
    let (entries, next_token) = page(all, request.max_entries, &request.starting_token)?;
    Ok(csi::ListSnapshotsResponse { entries, next_token })
}

fn entries(
    agent: &Connection,
    found: Vec<api::v1::Snapshot>,
    volume: &str,
) -> Vec<(u64, list_snapshots_response::Entry)> {
    let temporary =
        |s: &api::v1::Snapshot| labels::INTERNAL.iter().any(|label| s.labels.contains_key(*label));
    let of_volume = |shown: &csi::Snapshot| volume.is_empty() || shown.source_volume_id == volume;
    let shown = found.into_iter().filter(|s| !temporary(s)).map(|s| (s.id, convert::snapshot(agent, &s)));
    shown
        .filter(|(_, shown)| of_volume(shown))
        .map(|(number, shown)| (number, list_snapshots_response::Entry { snapshot: Some(shown) }))
        .collect()
}

/// The room for new volumes. They are thin: what is free now can be written, whatever sizes are given away.
pub async fn capacity(
    agent: &Agent,
    request: &csi::GetCapacityRequest,
) -> Result<csi::GetCapacityResponse, Status> {
    let none = csi::GetCapacityResponse::default();
    if let Some(topology) = &request.accessible_topology
        && *topology != convert::topology(agent.node())
    {
        return Ok(none);
    }
    let possible = request.volume_capabilities.iter().all(|one| checks::capability(Some(one)).is_ok())
        && Parameters::parse(Class::Storage, &request.parameters).is_ok();
    if !possible {
        return Ok(none);
    }
    let pool = agent.connect().await?.status().await?.pool.unwrap_or_default();
    let free = if pool.state == "failed" { 0 } else { rounded(pool.free_bytes, pool.size_bytes) };
    Ok(csi::GetCapacityResponse { available_capacity: convert::bytes(free), ..none })
}

/// Free bytes for the scheduler: whole parts of the pool, of which there are 512 to 1024. The provisioner asks after each
/// volume, for each class, and writes to the cluster what is another figure than before.
fn rounded(free: u64, size: u64) -> u64 {
    let part = (size / 1024).next_power_of_two();
    free / part * part
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    fn numbers(all: &[u64], max: i32, token: &str) -> Result<(Vec<u64>, String), Code> {
        page(all.iter().map(|n| (*n, *n)).collect(), max, token).map_err(|status| status.code())
    }

    #[test]
    fn room_is_told_in_parts_of_the_pool() {
        const GIB: u64 = 1 << 30;
        assert_eq!(rounded(100 * GIB, 100 * GIB), 100 * GIB);
        assert_eq!(rounded(100 * GIB - 4096, 100 * GIB), rounded(100 * GIB - (100 << 20), 100 * GIB));
        assert_eq!((rounded(0, 64 << 20), rounded(0, 0), rounded(4096, 4096)), (0, 0, 4096));
    }

    #[test]
    fn pages_follow_each_other() {
        let all = [2, 3, 5, 7, 11];
        assert_eq!(numbers(&all, 0, ""), Ok((all.to_vec(), String::new())));
        assert_eq!(numbers(&all, 2, ""), Ok((vec![2, 3], "3".into())));
        assert_eq!(numbers(&all, 2, "3"), Ok((vec![5, 7], "7".into())));
        assert_eq!(numbers(&all, 2, "7"), Ok((vec![11], String::new())));
        assert_eq!(numbers(&all, 5, ""), Ok((all.to_vec(), String::new())));
        // The last entry of a page went away, another came.
        assert_eq!(numbers(&[2, 4, 5], 2, "3"), Ok((vec![4, 5], String::new())));
        assert_eq!(numbers(&[], 1, ""), Ok((vec![], String::new())));
    }

    #[test]
    fn what_is_no_page_is_refused() {
        assert_eq!(numbers(&[1], -1, ""), Err(Code::InvalidArgument));
        for token in ["invalid-token", "-1", "1x", "99999999999999999999"] {
            assert_eq!(numbers(&[1], 1, token), Err(Code::Aborted));
        }
    }
}
