//! Watches: what is asked for, and the messages of their streams.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{BoxStream, StreamExt as _};
use hvkube_proto::v1;
use jiff::Timestamp;
use tonic::{Response, Status};

use super::{agent, event, pool, vm};
use crate::api::fields;
use crate::model::agent::{Agent, AgentFilter};
use crate::model::error::{Error, Result};
use crate::model::event::{Event, EventFilter, Revision};
use crate::model::ids::{AgentId, PoolId, VmId};
use crate::model::query::VmFilter;
use crate::orchestrator::view::{PoolView, VmView};
use crate::orchestrator::watch::{Delta, Phase, VmWatch, Watch};

/// A stream as tonic wants it.
pub(crate) type ResponseStream<T> = BoxStream<'static, std::result::Result<T, Status>>;

/// VMs that one watch may name.
const NAMED: usize = 100;

pub(crate) fn vms(request: &v1::WatchVmsRequest) -> Result<(VmWatch, Option<Revision>)> {
    if request.vms.len() > NAMED {
        let what = format!("has {} entries, at most {NAMED} are allowed", request.vms.len());
        return Err(Error::field("vms", what));
    }
    let named = request.vms.iter().enumerate();
    let wanted = VmWatch {
        filter: VmFilter {
            pool: fields::optional_name("pool", "pools", &request.pool)?,
            states: vm::states(&request.states)?,
        },
        vms: named.map(|(i, name)| fields::name(&format!("vms[{i}]"), "vms", name)).collect::<Result<_>>()?,
    };
    Ok((wanted, revision(&request.revision)?))
}

pub(crate) fn pools(request: &v1::WatchPoolsRequest) -> Result<(Option<PoolId>, Option<Revision>)> {
    Ok((fields::optional_name("pool", "pools", &request.pool)?, revision(&request.revision)?))
}

pub(crate) fn events(request: &v1::WatchEventsRequest) -> Result<(EventFilter, Option<Revision>)> {
    let mut kinds = Vec::new();
    for (i, kind) in request.kinds.iter().enumerate() {
        let field = format!("kinds[{i}]");
        let kind = fields::one_of(&field, *kind, v1::EventKind::as_str_name)?;
        let kind = event::from_kind(kind);
        kinds.push(kind.ok_or_else(|| Error::field(field, "EVENT_KIND_UNSPECIFIED is no kind"))?);
    }
    let since = request.start_time.map(|time| {
        let time = Timestamp::new(time.seconds, time.nanos)
            .ok()
            .filter(|_| (0..1_000_000_000).contains(&time.nanos));
        time.ok_or_else(|| Error::field("start_time", "is no time between the years 1 and 9999"))
    });
    let filter = EventFilter {
        pool: fields::optional_name("pool", "pools", &request.pool)?,
        vm: fields::optional_name("vm", "vms", &request.vm)?,
        agent: fields::optional_name("agent", "agents", &request.agent)?,
        kinds,
        since: since.transpose()?,
    };
    Ok((filter, revision(&request.revision)?))
}

pub(crate) fn agents(request: &v1::WatchAgentsRequest) -> Result<(AgentFilter, Option<Revision>)> {
    Ok((agent::watch_filter(request)?, revision(&request.revision)?))
}

fn revision(text: &str) -> Result<Option<Revision>> {
    if text.is_empty() {
        return Ok(None);
    }
    let unknown =
        |()| Error::field("revision", format!("{:?} is none that was given out", fields::cut(text)));
    text.parse().map(Some).map_err(unknown)
}

/// A stream of a watch's messages.
pub(crate) fn answer<T: Send + 'static, M: 'static>(
    watch: Watch<T>,
    to_proto: impl Fn(T) -> M + Send + 'static,
) -> Response<ResponseStream<M>> {
    Response::new(watch.map(move |item| item.map(&to_proto).map_err(Status::from)).boxed())
}

fn phase(phase: Phase) -> i32 {
    match phase {
        Phase::Snapshot => v1::WatchPhase::Snapshot,
        Phase::Synced => v1::WatchPhase::Synced,
        Phase::Change => v1::WatchPhase::Change,
        Phase::Bookmark => v1::WatchPhase::Bookmark,
    }
    .into()
}

fn text(revision: Option<Revision>) -> String {
    revision.map(|revision| revision.to_string()).unwrap_or_default()
}

pub(crate) fn vm_delta(delta: Delta<VmView, VmId>) -> v1::WatchVmsResponse {
    v1::WatchVmsResponse {
        vms: delta.items.iter().map(vm::to_proto).collect(),
        removed: delta.removed.iter().map(|id| format!("vms/{id}")).collect(),
        phase: phase(delta.phase),
        revision: text(delta.revision),
    }
}

pub(crate) fn pool_delta(delta: Delta<PoolView, PoolId>) -> v1::WatchPoolsResponse {
    v1::WatchPoolsResponse {
        pools: delta.items.iter().map(pool::to_proto).collect(),
        removed: delta.removed.iter().map(|id| format!("pools/{id}")).collect(),
        phase: phase(delta.phase),
        revision: text(delta.revision),
    }
}

/// `keep`: how long pictures are kept.
pub(crate) fn agent_delta(delta: Delta<Agent, AgentId>, keep: Duration) -> v1::WatchAgentsResponse {
    v1::WatchAgentsResponse {
        agents: delta.items.iter().map(|row| agent::brief(row, keep)).collect(),
        removed: delta.removed.iter().map(|id| format!("agents/{id}")).collect(),
        phase: phase(delta.phase),
        revision: text(delta.revision),
    }
}

pub(crate) fn event_delta(delta: Delta<Arc<Event>, ()>) -> v1::WatchEventsResponse {
    let incarnation = delta.revision.map_or(0, |revision| revision.incarnation);
    v1::WatchEventsResponse {
        events: delta.items.iter().map(|one| event::to_proto(one, incarnation)).collect(),
        phase: phase(delta.phase),
        revision: text(delta.revision),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.expect_err("refused").violations.remove(0).field
    }

    #[test]
    fn refusals_name_their_field() {
        let all = v1::WatchVmsRequest::default;
        assert!(vms(&all()).expect("legal").1.is_none());
        assert_eq!(field(vms(&v1::WatchVmsRequest { pool: "web".into(), ..all() })), "pool");
        assert_eq!(field(vms(&v1::WatchVmsRequest { states: vec![2, 0], ..all() })), "states[1]");
        assert_eq!(
            field(vms(&v1::WatchVmsRequest { vms: vec!["vms/a1".into(), "b".into()], ..all() })),
            "vms[1]"
        );
        assert_eq!(field(vms(&v1::WatchVmsRequest { vms: vec!["vms/a1".into(); 101], ..all() })), "vms");
        assert_eq!(field(vms(&v1::WatchVmsRequest { revision: "7".into(), ..all() })), "revision");
        assert_eq!(
            field(pools(&v1::WatchPoolsRequest { pool: "pools/".into(), revision: String::new() })),
            "pool"
        );

        let all = v1::WatchEventsRequest::default;
        assert_eq!(field(events(&v1::WatchEventsRequest { kinds: vec![99], ..all() })), "kinds[0]");
        assert_eq!(field(events(&v1::WatchEventsRequest { kinds: vec![1, 0], ..all() })), "kinds[1]");
        assert_eq!(field(events(&v1::WatchEventsRequest { vm: "a1".into(), ..all() })), "vm");
        for (seconds, nanos) in [(i64::MAX, 0), (0, -1), (0, 1_000_000_000)] {
            let start_time = Some(prost_types::Timestamp { seconds, nanos });
            assert_eq!(field(events(&v1::WatchEventsRequest { start_time, ..all() })), "start_time");
        }
    }
}
