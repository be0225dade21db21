//! Gets the frames that subscribers wait for.
//!
//! Subscribers say what they want and wait on the plane; one task per hub asks the guest on behalf of all of them. It asks
//! for nothing that nobody wants, so the rate of captures is that of the fastest subscriber that reads, and it ends with the
//! last subscriber. A subscriber that is dropped, or not polled any more, leaves behind at most one wait for a change.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use super::error::DisplayError;
use super::fallback::POLL;
use super::hub::{Hub, Link};
use crate::guest::Session;

/// How long one call waits in the guest for a change.
const LONG_POLL: Duration = Duration::from_secs(20);
/// On top of the wait, for the answer itself.
const ANSWER: Duration = Duration::from_secs(10);
/// Before a session that failed is tried again.
const AFTER_FAILURE: Duration = Duration::from_millis(500);

/// What subscribers wait for. Only grows, and is met when the plane is past it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Demand {
    /// A state whose pixels are newer than this one's, by ordinal.
    pixels: Option<u64>,
    /// A state newer than this one to those who see the cursor.
    cursor: Option<u64>,
    /// A look at the screen that began after this.
    fresh: Option<Instant>,
}

impl Demand {
    /// A state after `ordinal`.
    pub(super) fn newer(ordinal: u64, cursor: bool) -> Self {
        let (pixels, cursor) = if cursor { (None, Some(ordinal)) } else { (Some(ordinal), None) };
        Self { pixels, cursor, fresh: None }
    }

    /// To know that the state is not older than this.
    pub(super) fn fresh(since: Instant) -> Self {
        Self { fresh: Some(since), ..Self::default() }
    }

    fn with(self, other: Self) -> Self {
        Self {
            pixels: self.pixels.max(other.pixels),
            cursor: self.cursor.max(other.cursor),
            fresh: self.fresh.max(other.fresh),
        }
    }
}

/// What of a demand is still to be met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Open {
    pixels: bool,
    cursor: bool,
    fresh: bool,
}

/// Whether the guest has been asked for the next change: then the plane is as new as anything can be.
#[derive(Debug, Default)]
pub(super) struct Watching(AtomicU8);

impl Watching {
    const PIXELS: u8 = 1;
    const CURSOR: u8 = 2;

    pub(super) fn covers(&self, cursor: bool) -> bool {
        self.0.load(Ordering::Acquire) >= if cursor { Self::CURSOR } else { Self::PIXELS }
    }

    fn begin(&self, cursor: bool) -> WatchGuard<'_> {
        self.0.store(if cursor { Self::CURSOR } else { Self::PIXELS }, Ordering::Release);
        WatchGuard(self)
    }
}

struct WatchGuard<'a>(&'a Watching);

impl Drop for WatchGuard<'_> {
    fn drop(&mut self) {
        self.0.0.store(0, Ordering::Release);
    }
}

/// The task; ends when nobody holds this any more.
#[derive(Debug)]
pub(super) struct Pump(AbortHandle);

impl Drop for Pump {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Hub {
    /// The hub's pump, started if it does not run.
    pub(super) fn pump(&self) -> Arc<Pump> {
        let mut slot = self.0.view.pump.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pump) = Weak::upgrade(&slot) {
            return pump;
        }
        // Demands of subscribers that are gone are nobody's.
        self.0.view.demand.send_replace(Demand::default());
        let hub = self.clone();
        let pump = Arc::new(Pump(tokio::spawn(async move { hub.run_pump().await }).abort_handle()));
        *slot = Arc::downgrade(&pump);
        pump
    }

    /// Adds to what the pump is to get.
    pub(super) fn demand(&self, demand: Demand) {
        self.0.view.demand.send_if_modified(|all| {
            let before = *all;
            *all = all.with(demand);
            *all != before
        });
    }

    fn open(&self, demand: Demand) -> Open {
        let plane = self.0.view.plane.borrow();
        let ordinal = |cursor| plane.shot().map_or(0, |shot| shot.ordinal(cursor));
        Open {
            pixels: demand.pixels.is_some_and(|seen| ordinal(false) <= seen),
            cursor: demand.cursor.is_some_and(|seen| ordinal(true) <= seen),
            fresh: demand.fresh.is_some_and(|since| plane.confirmed().is_none_or(|at| at < since)),
        }
    }

    async fn run_pump(&self) {
        let mut demands = self.0.view.demand.subscribe();
        let mut link = self.0.link.subscribe();
        // The session whose present state is known, its cursor's too: waiting for changes can build on it.
        let mut known: Option<(u64, bool)> = None;
        loop {
            // Before the session is read, so that a change after it ends the wait on a session that is gone.
            link.mark_unchanged();
            let open = self.open(*demands.borrow_and_update());
            if open == (Open { pixels: false, cursor: false, fresh: false }) {
                known = None;
                // The sender lives in the hub, which this task holds.
                let _ = demands.changed().await;
                continue;
            }
            let outcome = match self.session() {
                Err(_) => return,
                Ok(None) => {
                    known = None;
                    let outcome = self.watch_outside().await;
                    wait(POLL, &mut link).await;
                    outcome
                }
                Ok(Some(session)) if self.passes_by(&session).await => {
                    known = None;
                    let outcome = self.watch_outside().await;
                    wait(POLL, &mut link).await;
                    outcome
                }
                Ok(Some(session))
                    if open.fresh
                        || !known.is_some_and(|(epoch, cursor)| {
                            epoch == session.epoch() && (cursor || !open.cursor)
                        }) =>
                {
                    let looked = self.fresh(&session, Instant::now() + ANSWER).await;
                    known = looked.is_ok().then_some((session.epoch(), true));
                    looked.map(drop).map_err(DisplayError::from)
                }
                Ok(Some(session)) => {
                    let outcome = self.watch_agent(&session, open, &mut demands, &mut link).await;
                    // What a call that ended early would have told is lost, so the next begins with a look. So it does
                    // when the cursor is wanted again that this call did not ask for.
                    known = matches!(outcome, Ok(true)).then_some((session.epoch(), open.cursor));
                    outcome.map(drop)
                }
            };
            if let Err(error) = outcome {
                tracing::debug!(vm = %self.0.vm, %error, "no frame for subscribers");
                wait(AFTER_FAILURE, &mut link).await;
            }
        }
    }

    /// Waits for the guest to tell a change. Gives whether it answered: not so when the session or the demand changed,
    /// or it hangs.
    async fn watch_agent(
        &self,
        session: &Session,
        open: Open,
        demands: &mut watch::Receiver<Demand>,
        link: &mut watch::Receiver<Link>,
    ) -> Result<bool, DisplayError> {
        let deadline = Instant::now() + LONG_POLL + ANSWER;
        let mut capture = std::pin::pin!(self.capture(session, open.cursor, LONG_POLL, deadline));
        let _watching = self.0.view.watching.begin(open.cursor);
        loop {
            tokio::select! {
                biased;
                result = &mut capture => return Ok(result.map(|_| true)?),
                _ = link.changed() => return Ok(false),
                // Somebody else found out: what is waited for may never come.
                () = self.0.pulse.hung(session) => return Ok(false),
                _ = demands.changed() => {
                    let now = self.open(*demands.borrow_and_update());
                    if now.fresh || (now.cursor && !open.cursor) {
                        return Ok(false);
                    }
                }
            }
        }
    }

    /// Whether an agent that hung still does.
    async fn passes_by(&self, session: &Session) -> bool {
        self.0.pulse.hangs(session) && !self.answers(session, Instant::now() + ANSWER).await
    }

    async fn watch_outside(&self) -> Result<(), DisplayError> {
        if self.0.hv.capabilities().display {
            // A VM that is saved or starting has no screen; that is no failure.
            let _ = self.look_from_outside(Instant::now() + ANSWER).await;
        }
        Ok(())
    }
}

/// Waits, but not longer than the session stays the same.
async fn wait(time: Duration, link: &mut watch::Receiver<Link>) {
    tokio::select! {
        () = sleep(time) => {}
        _ = link.changed() => {}
    }
}
