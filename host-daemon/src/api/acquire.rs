//! `WatchAcquire`: an acquire that tells how it stands until it has its lease.
//!
//! The acquire runs inside the stream, so a client that goes away drops it, and it gives its place or its VM back.

use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use hvkube_proto::v1;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::convert::lease;
use super::guard::ResponseStream;
use crate::orchestrator::Orchestrator;
use crate::orchestrator::request::{Acquire, Caller, Stage};

/// Places change with every grant: nobody reads faster, and each look costs as much as the queue is long.
const AT_MOST_EVERY: Duration = Duration::from_millis(200);
/// The expected time changes without anything happening.
const AT_LEAST_EVERY: Duration = Duration::from_secs(5);

pub(super) fn watch(
    orchestrator: Orchestrator,
    caller: Caller,
    wanted: Acquire,
) -> ResponseStream<v1::WatchAcquireResponse> {
    let (tell, stage) = watch::channel(Stage::Asked);
    let acquiring = {
        let orchestrator = orchestrator.clone();
        Box::pin(async move { orchestrator.acquire_watched(&caller, wanted, Some(tell)).await })
    };
    let state = Some((acquiring, Told { orchestrator, stage, last: None, at: Instant::now() }));
    stream::unfold(state, |state| async move {
        let (mut acquiring, mut told) = state?;
        tokio::select! {
            // An answer that is there already needs no word on how it stands.
            biased;
            done = &mut acquiring => {
                use v1::watch_acquire_response::Update;
                let last = done.map(|granted| v1::WatchAcquireResponse {
                    update: Some(Update::Granted(lease::granted(&granted))),
                });
                Some((last.map_err(Into::into), None))
            }
            update = told.next() => Some((Ok(update), Some((acquiring, told)))),
        }
    })
    .boxed()
}

/// What was said last, and when.
struct Told {
    orchestrator: Orchestrator,
    stage: watch::Receiver<Stage>,
    last: Option<v1::WatchAcquireResponse>,
    /// When something was said last, or the call began.
    at: Instant,
}

impl Told {
    /// The next thing to say: something new, or the same again when nothing was said for long.
    async fn next(&mut self) -> v1::WatchAcquireResponse {
        loop {
            if self.last.is_some() {
                sleep_until(self.at + AT_MOST_EVERY).await;
            }
            let stage = self.stage.borrow_and_update().clone();
            let mut moves = match &stage {
                Stage::Queued { pool, .. } => self.orchestrator.queue_moves(pool),
                _ => None,
            };
            let update = lease::update(&self.orchestrator, &stage);
            let news = match &self.last {
                // Before it stands anywhere there is nothing to tell.
                None => stage != Stage::Asked,
                // The expected time alone is no news.
                Some(last) => place(last) != place(&update),
            };
            if news || self.at.elapsed() >= AT_LEAST_EVERY {
                self.at = Instant::now();
                self.last = Some(update.clone());
                return update;
            }
            let moved = async {
                match &mut moves {
                    Some(moves) => drop(moves.changed().await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleep_until(self.at + AT_LEAST_EVERY) => {}
                changed = self.stage.changed() => if changed.is_err() {
                    // The acquire has ended, and says so itself.
                    std::future::pending::<()>().await;
                },
                () = moved => {}
            }
        }
    }
}

/// What of an update is news.
fn place(update: &v1::WatchAcquireResponse) -> Option<v1::watch_acquire_response::Update> {
    use v1::watch_acquire_response::Update;
    match update.update.clone() {
        Some(Update::Queued(queued)) => Some(Update::Queued(v1::AcquireQueued { eta: None, ..queued })),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrator::tests::Busy;
    use v1::watch_acquire_response::Update;

    fn watching(busy: &Busy) -> ResponseStream<v1::WatchAcquireResponse> {
        watch(busy.orchestrator(), Caller::admin(), busy.wanted())
    }

    async fn next(stream: &mut ResponseStream<v1::WatchAcquireResponse>) -> Update {
        let update = stream.next().await.expect("goes on").expect("no error");
        update.update.expect("always set")
    }

    #[tokio::test]
    async fn it_tells_the_place_then_the_vm_then_the_lease() {
        let busy = Busy::new().await;
        let mut first = watching(&busy);
        let Update::Queued(queued) = next(&mut first).await else { panic!("it waits") };
        assert_eq!((queued.pool.as_str(), queued.position, queued.waiting), ("pools/desk", 1, 1));
        assert!(!queued.reason.is_empty());
        let mut second = watching(&busy);
        let Update::Queued(queued) = next(&mut second).await else { panic!("it waits") };
        assert_eq!((queued.position, queued.waiting), (2, 2));
        // Whoever goes away gives their place to the next.
        drop(first);
        loop {
            let Update::Queued(queued) = next(&mut second).await else { panic!("it waits") };
            if queued.position == 1 {
                break;
            }
        }
        busy.release().await;
        let mut last = None;
        while let Some(update) = second.next().await {
            last = update.expect("no error").update;
        }
        let Some(Update::Granted(granted)) = last else { panic!("{last:?}") };
        let lease = granted.lease.expect("a lease");
        assert_eq!((lease.state(), lease.receipt.is_some()), (v1::LeaseState::Active, true));
    }

    #[tokio::test]
    async fn a_watcher_who_goes_away_gives_back_the_place_or_the_vm() {
        let busy = Busy::new().await;
        let mut watcher = watching(&busy);
        next(&mut watcher).await;
        busy.waiting(1).await;
        drop(watcher);
        busy.waiting(0).await;
        let mut watcher = watching(&busy);
        next(&mut watcher).await;
        busy.stall(true);
        busy.release().await;
        while !matches!(next(&mut watcher).await, Update::Preparing(_)) {}
        drop(watcher);
        busy.stall(false);
        busy.ready().await;
    }
}
