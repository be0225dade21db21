//! Watches with a script: each breaks where clients must show that they go on.

use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt as _};
use hvkube_proto::google::longrunning::{Operation, operation};
use hvkube_sdk::v1::{self, EventKind, VmState, WatchPhase};
use prost::Message as _;
use tonic::{Code, Response, Status};

use super::{Fake, refuse};

/// What a watch streams.
pub(crate) type Items<T> = BoxStream<'static, Result<T, Status>>;

/// Some items, then nothing for ever.
pub(crate) fn and_stay<T: Send + 'static>(items: Vec<T>) -> Items<T> {
    stream::iter(items.into_iter().map(Ok)).chain(stream::pending()).boxed()
}

/// Some items, then the daemon is gone.
pub(crate) fn and_break<T: Send + 'static>(items: Vec<T>) -> Items<T> {
    let end = stream::once(async { Err(Status::unavailable("connection reset")) });
    stream::iter(items.into_iter().map(Ok)).chain(end).boxed()
}

fn vms(vms: Vec<v1::Vm>, removed: &[&str], phase: WatchPhase, revision: &str) -> v1::WatchVmsResponse {
    let removed = removed.iter().map(|name| (*name).to_owned()).collect();
    v1::WatchVmsResponse { vms, removed, phase: phase.into(), revision: revision.into() }
}

impl Fake {
    /// VMs 1 and 2, then 3, then a break; without a word of it 1 goes, then a break that is too long to go on from, so
    /// that all begins anew.
    pub(crate) fn vms_watched(
        &self,
        request: &v1::WatchVmsRequest,
        mut all: Vec<v1::Vm>,
    ) -> Result<Response<Items<v1::WatchVmsResponse>>, Status> {
        let again = self.set(|seen| {
            seen.watches.push(request.revision.clone());
            seen.watches.len() > 1
        });
        Ok(Response::new(match request.revision.as_str() {
            "" if again => {
                all.remove(0);
                and_stay(vec![
                    vms(all, &[], WatchPhase::Snapshot, ""),
                    vms(Vec::new(), &[], WatchPhase::Synced, "r9"),
                ])
            }
            "" => {
                let last = all.split_off(2);
                and_break(vec![
                    vms(all, &[], WatchPhase::Snapshot, ""),
                    vms(Vec::new(), &[], WatchPhase::Synced, "r1"),
                    vms(last, &[], WatchPhase::Change, "r2"),
                ])
            }
            "r2" => and_break(vec![
                vms(Vec::new(), &[], WatchPhase::Synced, "r2"),
                vms(Vec::new(), &["vms/browser-1"], WatchPhase::Change, "r3"),
                vms(Vec::new(), &[], WatchPhase::Bookmark, "r4"),
            ]),
            _ => return Err(refuse(Code::OutOfRange, "REVISION_GONE", "it is too long ago", &[])),
        }))
    }

    /// An operation that is done at once.
    pub(crate) fn backed_up(&self, request: v1::BackupStoreRequest) -> Result<Response<Operation>, Status> {
        if request.path.ends_with("taken.db") && !request.overwrite {
            return Err(refuse(Code::AlreadyExists, "RESOURCE_EXISTS", "the file exists", &[]));
        }
        let any = |name: &str, value: Vec<u8>| prost_types::Any {
            type_url: format!("type.googleapis.com/hvkube.v1.{name}"),
            value,
        };
        let path = request.path.clone();
        self.set(|seen| seen.backup = Some(request));
        let metadata =
            v1::BackupStoreMetadata { path: path.clone(), phase: "DONE".into(), create_time: None };
        let made = v1::BackupStoreResponse { path, size_bytes: 123 << 10 };
        Ok(Response::new(Operation {
            name: "operations/backup-1".into(),
            metadata: Some(any("BackupStoreMetadata", metadata.encode_to_vec())),
            done: true,
            result: Some(operation::Result::Response(any("BackupStoreResponse", made.encode_to_vec()))),
        }))
    }
}

/// One pool and no change.
pub(crate) fn pools(pool: v1::Pool) -> Items<v1::WatchPoolsResponse> {
    let phase = WatchPhase::Synced.into();
    and_stay(vec![v1::WatchPoolsResponse {
        pools: vec![pool],
        phase,
        revision: "r1".into(),
        ..Default::default()
    }])
}

/// A VM's way to a lease, as it was and as it goes on.
pub(crate) fn events(request: &v1::WatchEventsRequest) -> Items<v1::WatchEventsResponse> {
    let event = |n: i64, kind: EventKind| v1::Event {
        revision: format!("r{n}"),
        time: Some(prost_types::Timestamp { seconds: 1_700_000_000 + n, nanos: 0 }),
        kind: kind.into(),
        vm: "vms/browser-1".into(),
        pool: "pools/browser".into(),
        ..Default::default()
    };
    let granted = v1::Event {
        lease: "leases/l-1".into(),
        actor: "alice".into(),
        cause: "nightly tests".into(),
        ..event(1, EventKind::LeaseGranted)
    };
    let moved = v1::Event {
        from_state: VmState::Resuming.into(),
        to_state: VmState::Running.into(),
        cause: "leased".into(),
        actor: "alice".into(),
        duration: prost_types::Duration::try_from(Duration::from_millis(80)).ok(),
        ..event(2, EventKind::VmMoved)
    };
    let ended = v1::Event {
        lease: "leases/l-1".into(),
        lease_state: v1::LeaseState::Expired.into(),
        cause: "not renewed within 600 s".into(),
        duration: prost_types::Duration::try_from(Duration::from_secs(600)).ok(),
        ..event(3, EventKind::LeaseEnded)
    };
    if !request.agent.is_empty() {
        let ran = v1::Event { agent: request.agent.clone(), ..event(7, EventKind::AgentRunning) };
        let told = v1::WatchEventsResponse {
            events: vec![ran],
            phase: WatchPhase::Synced.into(),
            revision: "r7".into(),
        };
        return and_stay(vec![told]);
    }
    let wanted = |events: Vec<v1::Event>| -> Vec<v1::Event> {
        let keep = |event: &v1::Event| request.kinds.is_empty() || request.kinds.contains(&event.kind);
        events.into_iter().filter(keep).collect()
    };
    let message = |events, phase: WatchPhase, revision: &str| v1::WatchEventsResponse {
        events: wanted(events),
        phase: phase.into(),
        revision: revision.into(),
    };
    and_stay(vec![
        message(vec![granted, moved], WatchPhase::Synced, "r2"),
        message(vec![ended], WatchPhase::Change, "r3"),
    ])
}
