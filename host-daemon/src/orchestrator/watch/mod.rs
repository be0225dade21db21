//! Watches: a snapshot, then what changes, each with the revision that it reaches.
//!
//! ```text
//!  store's writer ──commit──► Changes: head ──wakes──► follower (one task per watch) ──bounded──► stream ──► client
//!                                      ring, rows ◄─reads── at its own position
//! ```
//!
//! A follower holds a position and nothing else. Woken, it reads what lies behind its position from the ring, or from the
//! store when it has fallen so far behind, and sends it on; what many events did to one VM is one change. It looks at most
//! every `PACE`, which turns a burst into few messages for many watchers. Between follower and client a few messages may
//! wait; when the client takes none of them for `watch_patience`, the watch ends with an error that says where to go on.

mod agents;
mod events;
mod pools;
mod vms;

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::{Orchestrator, Shared};
use crate::model::error::{Error, Reason, Result};
use crate::model::event::{Event, EventFilter, Revision};
use crate::store::{Behind, StoreError};
pub(super) use pools::Watches;
pub use vms::VmWatch;

/// Messages that wait for one client. Each holds [`AT_ONCE`] rows at most.
const WAITING: usize = 4;
/// Rows in one message: below a client's default limit of 4 MiB with room to spare.
const AT_ONCE: usize = 500;
/// Events read at once.
const EVENTS: u32 = 2000;
/// Shortest time between two looks. A change after a pause is told at once.
const PACE: Duration = Duration::from_millis(20);
/// How often events are pruned: at the busiest, a minute brings a few per cent of what is kept.
const PRUNE_EVERY: Duration = Duration::from_secs(60);

/// Which part of a watch something belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Part of the snapshot; more is to come.
    Snapshot,
    /// The end of the snapshot, or of what was missed since the revision that the watch went on from.
    Synced,
    /// What changed since.
    Change,
    /// Nothing, but for the revision.
    Bookmark,
}

/// One message of a watch.
#[derive(Debug)]
pub struct Delta<T, I> {
    /// What is there, was made or changed.
    pub items: Vec<T>,
    /// What is gone or is no longer wanted.
    pub removed: Vec<I>,
    /// Which part of the watch this is.
    pub phase: Phase,
    /// Everything up to it has been told; absent inside a snapshot.
    pub revision: Option<Revision>,
}

/// A watch. Dropping it ends it.
pub type Watch<T> = BoxStream<'static, Result<T>>;

/// The way to the client of a watch.
struct Outlet<T> {
    messages: mpsc::Sender<T>,
    patience: Duration,
}

impl<T> Outlet<T> {
    /// Hands a message over. `at` is where a client that is too slow may go on.
    async fn send(&self, message: T, at: Option<Revision>) -> Result<()> {
        match timeout(self.patience, self.messages.send(message)).await {
            Ok(Ok(())) => Ok(()),
            // Nobody will see this.
            Ok(Err(_)) => Err(Error::new(Reason::WatchTooSlow, "the watch was dropped")),
            Err(_) => {
                let why = format!("nothing was read for {} s", self.patience.as_secs());
                let error = Error::new(Reason::WatchTooSlow, why).retry_after(Duration::ZERO);
                Err(match at {
                    Some(at) => error.with("revision", at),
                    None => error,
                })
            }
        }
    }
}

impl Orchestrator {
    /// Runs a follower beside the stream of what it sends; its error is the stream's last word.
    fn watch<T, W, F>(&self, follow: F) -> Watch<T>
    where
        T: Send + 'static,
        W: Future<Output = Result<()>> + Send + 'static,
        F: FnOnce(Arc<Shared>, Outlet<T>) -> W,
    {
        let (messages, inbox) = mpsc::channel(WAITING);
        let shared = Arc::clone(&self.0);
        let outlet = Outlet { messages, patience: shared.settings.watch_patience };
        let stopping = shared.stopping.clone();
        let work = follow(Arc::clone(&shared), outlet);
        let task = shared.tasks.spawn(async move {
            tokio::select! {
                end = work => end,
                () = stopping.cancelled() => Err(Error::new(Reason::ShuttingDown, "the daemon is stopping")),
            }
        });
        let state = (inbox, Some(AbortOnDropHandle::new(task)));
        stream::unfold(state, |(mut inbox, mut task)| async move {
            if let Some(message) = inbox.recv().await {
                return Some((Ok(message), (inbox, task)));
            }
            let end = match task.take()?.await {
                Ok(Ok(())) => return None,
                Ok(Err(error)) => error,
                Err(error) => Error::internal(Reason::Internal, "the watch failed", error),
            };
            Some((Err(end), (inbox, None)))
        })
        .boxed()
    }

    /// The number of a revision that a watch may go on from.
    fn reachable(&self, from: Option<Revision>) -> Result<Option<u64>> {
        let Some(from) = from else { return Ok(None) };
        let store = &self.0.store;
        if from.incarnation == store.incarnation() && store.changes().reaches(from.number) {
            return Ok(Some(from.number));
        }
        Err(gone(from))
    }
}

fn gone(revision: Revision) -> Error {
    let why = "what happened since that revision is no longer known; watch again without one";
    Error::new(Reason::RevisionGone, why).with("revision", revision)
}

/// A position in what happens.
struct Follower {
    shared: Arc<Shared>,
    filter: EventFilter,
    at: u64,
    /// The position was the head when it was last read.
    caught_up: bool,
    head: watch::Receiver<u64>,
    looked: Instant,
    told: Instant,
}

impl Follower {
    fn new(shared: &Arc<Shared>, filter: EventFilter, at: u64) -> Self {
        let now = Instant::now();
        let head = shared.store.changes().subscribe();
        Self { shared: Arc::clone(shared), filter, at, caught_up: false, head, looked: now, told: now }
    }

    fn revision(&self, number: u64) -> Revision {
        Revision { incarnation: self.shared.store.incarnation(), number }
    }

    /// The wanted events behind the position, which moves on behind them.
    async fn read(&mut self) -> Result<Vec<Arc<Event>>> {
        let store = &self.shared.store;
        self.looked = Instant::now();
        let head = store.changes().head();
        let (events, reached) = match store.changes().behind(self.at, EVENTS as usize) {
            Behind::Events(mut events) => {
                let reached = events.last().map_or(self.at, |last| last.revision);
                events.retain(|event| self.filter.wants(event));
                (events, reached)
            }
            Behind::Left => match store.events(self.at, EVENTS, &self.filter).await {
                Ok(read) => read,
                Err(StoreError::Compacted(at)) => return Err(gone(self.revision(at))),
                Err(error) => return Err(error.into()),
            },
        };
        self.at = reached;
        self.caught_up = reached >= head;
        Ok(events)
    }

    /// Waits until there may be something new, or until a time; says whether a bookmark is due.
    async fn wait(&mut self, until: Option<Instant>) -> bool {
        let at = self.at;
        if self.caught_up {
            let bookmark = self.told + self.shared.settings.watch_bookmark;
            let limit = until.map_or(bookmark, |until| until.min(bookmark));
            // The sender lives as long as the store.
            let _ = timeout_at(limit, self.head.wait_for(|head| *head > at)).await;
            sleep_until(self.looked + PACE).await;
        }
        Instant::now() >= self.told + self.shared.settings.watch_bookmark
    }
}

/// Deletes old events, as long as the daemon runs.
pub(super) async fn prune(shared: Arc<Shared>) {
    while !shared.stopping.is_cancelled() {
        let (keep, most) = (shared.settings.keep_events, shared.settings.keep_events_max);
        match shared.store.prune_events(jiff::Timestamp::now() - keep, most).await {
            Ok(0) => {}
            Ok(events) => tracing::debug!(events, "pruned"),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "events not pruned");
            }
        }
        tokio::select! {
            () = shared.stopping.cancelled() => break,
            () = tokio::time::sleep(PRUNE_EVERY) => {}
        }
    }
}
