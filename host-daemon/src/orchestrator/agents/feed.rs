//! Watching agents: a snapshot, then whatever changes, from the store's revisions.
//!
//! A watch keeps nothing but its position, so a slow reader costs its own lag only, and one that comes back with a revision
//! goes on where it was, even after a restart.

use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::watch;

use crate::model::agent::{Agent, AgentFilter};
use crate::model::error::{Error, Reason, Result};
use crate::model::ids::AgentId;
use crate::model::query::Page;
use crate::orchestrator::Orchestrator;

/// Agents in one item: their brief rows are about 1 KiB each, an item far below what clients take.
const ITEM: u32 = 200;
/// Time between two bookmarks.
const IDLE: Duration = Duration::from_secs(15);

/// Which part of a watch an item belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchPhase {
    /// Of the snapshot; more is to come.
    Snapshot,
    /// The last of the snapshot, or of what was missed.
    Synced,
    /// What changed since.
    Change,
    /// Only the revision moved on, if that.
    Bookmark,
}

/// An item of a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentChange {
    /// Agents as they are now, without input and output.
    pub agents: Vec<Agent>,
    /// Gone, or not among those asked for any more.
    pub removed: Vec<AgentId>,
    /// Which part it is.
    pub phase: WatchPhase,
    /// Everything up to it has been told; none inside the snapshot.
    pub revision: Option<String>,
}

impl Orchestrator {
    /// Streams agents: all that are wanted, then each that changes. `revision`: go on behind it instead.
    ///
    /// # Errors
    /// [`Reason::RevisionGone`]; later through the stream too, which ends with an error.
    pub async fn watch_agents(
        &self,
        filter: AgentFilter,
        revision: &str,
    ) -> Result<BoxStream<'static, Result<AgentChange>>> {
        let shared = self.open()?;
        let ticks = shared.agents.changes.subscribe();
        let feed = shared.store.agent_feed().await?;
        let (position, snapshot) = if revision.is_empty() {
            (feed.head, Some(String::new()))
        } else {
            let known = revision
                .strip_prefix(feed.incarnation.as_str())
                .and_then(|rest| rest.strip_prefix('-')?.parse::<u64>().ok())
                .filter(|position| (feed.floor..=feed.head).contains(position));
            (known.ok_or_else(|| gone(revision))?, None)
        };
        let watch = Watch {
            o: self.clone(),
            filter,
            incarnation: feed.incarnation,
            position,
            snapshot,
            synced: false,
            ticks,
        };
        Ok(stream::unfold(Some(watch), |watch| async move {
            let mut watch = watch?;
            match watch.next().await {
                Ok(item) => Some((Ok(item), Some(watch))),
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed())
    }
}

fn gone(revision: &str) -> Error {
    let revision: String = revision.chars().take(80).collect();
    Error::new(Reason::RevisionGone, format!("what happened since revision {revision:?} is no longer known"))
        .with("revision", revision)
}

struct Watch {
    o: Orchestrator,
    filter: AgentFilter,
    incarnation: String,
    /// Everything up to it has been told, or belongs to the snapshot.
    position: u64,
    /// Where the snapshot is; none when it is over.
    snapshot: Option<String>,
    synced: bool,
    ticks: watch::Receiver<u64>,
}

impl Watch {
    async fn next(&mut self) -> Result<AgentChange> {
        if let Some(after) = self.snapshot.take() {
            return self.page(after).await;
        }
        let idle = tokio::time::Instant::now() + IDLE;
        loop {
            self.ticks.borrow_and_update();
            let (agents, removed, moved) = self.behind().await?;
            let caught_up = !moved && !self.synced;
            if caught_up || !agents.is_empty() || !removed.is_empty() {
                self.synced |= caught_up;
                let phase = if caught_up { WatchPhase::Synced } else { WatchPhase::Change };
                return Ok(self.item(agents, removed, phase));
            }
            if moved {
                continue;
            }
            tokio::select! {
                () = self.o.0.stopping.cancelled() => {
                    return Err(Error::new(Reason::ShuttingDown, "the daemon is stopping"));
                }
                _ = self.ticks.changed() => {}
                () = tokio::time::sleep_until(idle) => {
                    return Ok(self.item(Vec::new(), Vec::new(), WatchPhase::Bookmark));
                }
            }
        }
    }

    /// The next page of the snapshot.
    async fn page(&mut self, after: String) -> Result<AgentChange> {
        let rows = self.o.0.store.agents(&self.filter, &Page { after, limit: ITEM }).await?;
        if rows.len() == ITEM as usize {
            self.snapshot = rows.last().map(|agent| agent.number.to_string());
            return Ok(AgentChange {
                agents: rows,
                removed: Vec::new(),
                phase: WatchPhase::Snapshot,
                revision: None,
            });
        }
        self.synced = true;
        Ok(self.item(rows, Vec::new(), WatchPhase::Synced))
    }

    /// What comes behind the position, which moves over it; and whether it moved.
    async fn behind(&mut self) -> Result<(Vec<Agent>, Vec<AgentId>, bool)> {
        let shared = &self.o.0;
        let feed = shared.store.agent_feed().await?;
        if feed.head == self.position {
            return Ok((Vec::new(), Vec::new(), false));
        }
        let mut removed = Vec::new();
        if self.position < feed.floor {
            removed = shared.agents.deleted_behind(self.position).ok_or_else(|| gone(&self.revision()))?;
        }
        let rows = shared.store.agents_behind(self.position, ITEM).await?;
        let whole = rows.len() < ITEM as usize;
        let last = rows.last().map_or(feed.head, |(revision, _)| *revision);
        // A deletion is told early rather than not at all: its agent has no row that could come behind it.
        self.position = if whole { last.max(feed.head) } else { last };
        let mut agents = Vec::new();
        for (_, agent) in rows {
            if self.filter.wants(&agent) {
                agents.push(agent);
            } else if (AgentFilter { statuses: Vec::new(), ..self.filter.clone() }).wants(&agent) {
                removed.push(agent.id);
            }
        }
        Ok((agents, removed, true))
    }

    fn revision(&self) -> String {
        format!("{}-{}", self.incarnation, self.position)
    }

    fn item(&self, agents: Vec<Agent>, removed: Vec<AgentId>, phase: WatchPhase) -> AgentChange {
        AgentChange { agents, removed, phase, revision: Some(self.revision()) }
    }
}
