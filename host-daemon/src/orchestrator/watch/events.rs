//! Watching what happens: every event, in order.

use std::sync::Arc;

use tokio::time::Instant;

use super::{AT_ONCE, Delta, Follower, Outlet, Phase, Watch};
use crate::model::error::Result;
use crate::model::event::{Event, EventFilter, Revision};
use crate::orchestrator::{Orchestrator, Shared};

type Message = Delta<Arc<Event>, ()>;

impl Orchestrator {
    /// Watches what happens; without a revision to go on from, it begins with all that is kept.
    ///
    /// # Errors
    /// [`Reason::RevisionGone`](crate::model::error::Reason::RevisionGone), now or later;
    /// [`Reason::WatchTooSlow`](crate::model::error::Reason::WatchTooSlow).
    pub fn watch_events(&self, filter: EventFilter, from: Option<Revision>) -> Result<Watch<Message>> {
        let from = self.reachable(from)?;
        Ok(self.watch(move |shared, outlet| follow(shared, filter, from, outlet)))
    }
}

async fn follow(
    shared: Arc<Shared>,
    filter: EventFilter,
    from: Option<u64>,
    outlet: Outlet<Message>,
) -> Result<()> {
    let at = from.unwrap_or_else(|| shared.store.changes().floor().saturating_sub(1));
    let target = shared.store.changes().head();
    let mut follower = Follower::new(&shared, filter, at);
    let mut synced = false;
    loop {
        let before = follower.revision(follower.at);
        let mut events = match follower.read().await {
            // The oldest were pruned between the look and the read. Whoever asked for what is kept gets what is left.
            Err(error) if from.is_none() && follower.at == at && !synced => {
                follower.at = shared.store.changes().floor().saturating_sub(1);
                if follower.at == at {
                    return Err(error);
                }
                continue;
            }
            read => read?,
        };
        let phase = match synced {
            true => Phase::Change,
            false if follower.at >= target => Phase::Synced,
            false => Phase::Snapshot,
        };
        synced |= phase == Phase::Synced;
        while events.len() > AT_ONCE {
            let rest = events.split_off(AT_ONCE);
            let reached = follower.revision(events.last().map_or(follower.at, |last| last.revision));
            let early = if phase == Phase::Synced { Phase::Snapshot } else { phase };
            let part = Message { items: events, removed: Vec::new(), phase: early, revision: Some(reached) };
            outlet.send(part, Some(before)).await?;
            events = rest;
        }
        if phase == Phase::Synced || !events.is_empty() {
            let revision = Some(follower.revision(follower.at));
            outlet
                .send(Message { items: events, removed: Vec::new(), phase, revision }, Some(before))
                .await?;
            follower.told = Instant::now();
        }
        if follower.wait(None).await && synced {
            let revision = Some(follower.revision(follower.at));
            let bookmark =
                Message { items: Vec::new(), removed: Vec::new(), phase: Phase::Bookmark, revision };
            outlet.send(bookmark, revision).await?;
            follower.told = Instant::now();
        }
    }
}
