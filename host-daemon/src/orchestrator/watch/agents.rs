//! Watching agents. Their rows are read from the store when an event names them.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::time::Instant;

use super::{Delta, Follower, Outlet, Phase, Watch};
use crate::model::agent::{Agent, AgentFilter};
use crate::model::error::Result;
use crate::model::event::{EventFilter, Revision};
use crate::model::ids::AgentId;
use crate::model::query::Page;
use crate::orchestrator::{Orchestrator, Shared};

/// Agents in one message: their brief rows are about 1 KiB each, a message far below what clients take.
const AT_ONCE: usize = 200;

type Message = Delta<Agent, AgentId>;

impl Orchestrator {
    /// Watches agents, without input and output; each is shown in its latest state, those in between may be left out.
    ///
    /// # Errors
    /// [`Reason::RevisionGone`](crate::model::error::Reason::RevisionGone), now or later;
    /// [`Reason::WatchTooSlow`](crate::model::error::Reason::WatchTooSlow).
    pub fn watch_agents(&self, wanted: AgentFilter, from: Option<Revision>) -> Result<Watch<Message>> {
        let from = self.reachable(from)?;
        Ok(self.watch(move |shared, outlet| follow(shared, wanted, from, outlet)))
    }
}

async fn follow(
    shared: Arc<Shared>,
    wanted: AgentFilter,
    from: Option<u64>,
    outlet: Outlet<Message>,
) -> Result<()> {
    // What is committed after this is told behind the snapshot, which may show it already.
    let head = shared.store.changes().head();
    if from.is_none() {
        snapshot(&shared, &wanted, &outlet).await?;
    }
    let filter = EventFilter { pool: wanted.pool.clone(), ..EventFilter::default() };
    let mut follower = Follower::new(&shared, filter, from.unwrap_or(head));
    let mut synced = false;
    // What was read and is not told yet.
    let mut touched = BTreeSet::new();
    let mut told = follower.revision(follower.at);
    loop {
        let events = follower.read().await?;
        let named = events.iter().filter_map(|event| event.agent.clone());
        touched.extend(named.filter(|id| wanted.ids.is_empty() || wanted.ids.contains(id)));
        let reached = follower.revision(follower.at);
        loop {
            let some = take(&mut touched, AT_ONCE);
            let last = touched.is_empty();
            let (items, removed) =
                if some.is_empty() { Default::default() } else { look(&shared, &wanted, some).await? };
            let phase = match synced {
                false if last && follower.caught_up => Phase::Synced,
                false if from.is_none() => Phase::Snapshot,
                _ => Phase::Change,
            };
            synced |= phase == Phase::Synced;
            // Not all of the changes yet: whoever goes on from here gets these again.
            let at = if last { reached } else { told };
            let revision = (phase != Phase::Snapshot).then_some(at);
            if phase == Phase::Synced || !items.is_empty() || !removed.is_empty() {
                outlet.send(Message { items, removed, phase, revision }, Some(told)).await?;
                follower.told = Instant::now();
            }
            if last {
                break;
            }
        }
        told = reached;
        if follower.wait(None).await && follower.caught_up {
            let at = follower.revision(follower.at);
            let bookmark = Message {
                items: Vec::new(),
                removed: Vec::new(),
                phase: Phase::Bookmark,
                revision: Some(at),
            };
            outlet.send(bookmark, Some(at)).await?;
            follower.told = Instant::now();
        }
    }
}

fn take(from: &mut BTreeSet<AgentId>, most: usize) -> Vec<AgentId> {
    let mut some = Vec::new();
    while some.len() < most
        && let Some(id) = from.pop_first()
    {
        some.push(id);
    }
    some
}

async fn snapshot(shared: &Shared, wanted: &AgentFilter, outlet: &Outlet<Message>) -> Result<()> {
    let mut after = String::new();
    loop {
        let limit = u32::try_from(AT_ONCE).unwrap_or(u32::MAX);
        let items = shared.store.agents(wanted, &Page { after, limit }).await?;
        let full = items.len() >= AT_ONCE;
        after = items.last().map(|agent| agent.number.to_string()).unwrap_or_default();
        if !items.is_empty() {
            let part = Message { items, removed: Vec::new(), phase: Phase::Snapshot, revision: None };
            outlet.send(part, None).await?;
        }
        if !full {
            return Ok(());
        }
    }
}

/// Those that are wanted as they are now, and those that are gone or are not wanted any more.
async fn look(
    shared: &Shared,
    wanted: &AgentFilter,
    ids: Vec<AgentId>,
) -> Result<(Vec<Agent>, Vec<AgentId>)> {
    let limit = u32::try_from(ids.len()).unwrap_or(u32::MAX);
    let named = AgentFilter { ids: ids.clone(), ..AgentFilter::default() };
    let rows = shared.store.agents(&named, &Page { after: String::new(), limit }).await?;
    let mut gone: BTreeSet<_> = ids.into_iter().collect();
    let mut items = Vec::new();
    for agent in rows.into_iter().rev() {
        gone.remove(&agent.id);
        if wanted.wants(&agent) {
            items.push(agent);
        } else if (AgentFilter { statuses: Vec::new(), ..wanted.clone() }).wants(&agent) {
            gone.insert(agent.id);
        }
    }
    Ok((items, gone.into_iter().collect()))
}
