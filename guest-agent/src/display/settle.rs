//! Waiting until the screen is quiet.
//!
//! A [`Watch`] collects what the screen's thread records; the wait itself is a matter of time only. At the end of the quiet
//! time the screen is asked once more, so that a change the display server has not told yet is not missed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hvkube_proto::guest::v1 as pb;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::rect::{Rect, simplify};
use super::{DisplayError, Screen};

const MAX_CHANGED: usize = 64;

/// What has changed on the screen since the watch began.
#[derive(Debug)]
pub struct Watch {
    began: Instant,
    ignore: Vec<Rect>,
    changes: Mutex<Changes>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Changes {
    last: Option<Instant>,
    rects: Vec<Rect>,
}

impl Watch {
    /// Begins now; changes wholly inside one of `ignore` do not count.
    #[must_use]
    pub fn new(ignore: Vec<Rect>) -> Self {
        Self { began: Instant::now(), ignore, changes: Mutex::default(), changed: Notify::new() }
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        // Nothing in here can panic half-way through a change.
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes down what changed just now.
    pub fn record(&self, rects: &[Rect]) {
        let mut changes = self.changes();
        let before = changes.rects.len();
        changes.rects.extend(rects.iter().filter(|r| !self.ignore.iter().any(|i| i.contains(r))));
        if changes.rects.len() == before {
            return;
        }
        if changes.rects.len() > MAX_CHANGED {
            simplify(&mut changes.rects, MAX_CHANGED);
        }
        changes.last = Some(Instant::now());
        drop(changes);
        self.changed.notify_one();
    }

    /// Waits until nothing has changed for `quiet`, counted from now on, but no longer than `timeout`.
    ///
    /// # Errors
    /// When the display goes away.
    pub async fn settle(
        self: Arc<Self>,
        screen: &dyn Screen,
        quiet: Duration,
        timeout: Duration,
    ) -> Result<pb::SettleResponse, DisplayError> {
        let start = Instant::now();
        let deadline = start + timeout;
        let (sequence, timed_out) = loop {
            let last = self.changes().last;
            let calm_at = last.map_or(start, |l| l.max(start)) + quiet;
            let now = Instant::now();
            if now >= calm_at || now >= deadline {
                let sequence = screen.flush().await?;
                let still = self.changes().last == last;
                if still || now >= deadline {
                    break (sequence, now < calm_at || !still);
                }
                continue;
            }
            tokio::select! {
                () = tokio::time::sleep_until(calm_at.min(deadline)) => {}
                () = self.changed.notified() => {}
            }
        };
        let mut changes = self.changes();
        simplify(&mut changes.rects, MAX_CHANGED);
        let after = changes.last.map_or(Duration::ZERO, |last| last.saturating_duration_since(self.began));
        Ok(pb::SettleResponse {
            timed_out,
            settled_after_micros: u64::try_from(after.as_micros()).unwrap_or(u64::MAX),
            changed: changes.rects.drain(..).map(Into::into).collect(),
            sequence,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CaptureSpec, Frame};
    use super::*;

    struct Still;

    #[async_trait::async_trait]
    impl Screen for Still {
        async fn capture(&self, _spec: CaptureSpec) -> Result<Frame, DisplayError> {
            Err(DisplayError::Busy)
        }
        async fn watch(&self, ignore: Vec<Rect>) -> Result<Arc<Watch>, DisplayError> {
            Ok(Arc::new(Watch::new(ignore)))
        }
        async fn flush(&self) -> Result<u64, DisplayError> {
            Ok(7)
        }
    }

    const QUIET: Duration = Duration::from_millis(300);
    const CARET: Rect = Rect { x: 10, y: 10, width: 2, height: 16 };
    const WINDOW: Rect = Rect { x: 0, y: 0, width: 200, height: 100 };

    async fn settle_while(watch: &Arc<Watch>, rect: Rect, every: Duration, times: u32) -> pb::SettleResponse {
        let recorder = Arc::clone(watch);
        let changes = async move {
            for _ in 0..times {
                tokio::time::sleep(every).await;
                recorder.record(&[rect]);
            }
        };
        let wait = Arc::clone(watch).settle(&Still, QUIET, Duration::from_secs(5));
        tokio::select! {
            biased;
            done = wait => done.expect("settles"),
            () = async { changes.await; std::future::pending().await } => unreachable!("never ends"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn waits_for_the_last_change_and_reports_it() {
        let watch = Arc::new(Watch::new(Vec::new()));
        let start = Instant::now();
        let done = settle_while(&watch, WINDOW, Duration::from_millis(200), 3).await;
        assert!(!done.timed_out);
        assert_eq!(done.settled_after_micros, 600_000);
        assert_eq!(start.elapsed(), Duration::from_millis(900));
        assert_eq!((done.changed.len(), done.sequence), (1, 7));
    }

    #[tokio::test(start_paused = true)]
    async fn ignored_changes_do_not_count_and_an_endless_one_times_out() {
        let watch = Arc::new(Watch::new(vec![Rect { x: 8, y: 8, width: 20, height: 20 }]));
        let done = settle_while(&watch, CARET, Duration::from_millis(100), u32::MAX).await;
        assert_eq!((done.timed_out, done.settled_after_micros, done.changed.len()), (false, 0, 0));

        let watch = Arc::new(Watch::new(Vec::new()));
        let start = Instant::now();
        let done = settle_while(&watch, CARET, Duration::from_millis(100), u32::MAX).await;
        assert!(done.timed_out);
        assert_eq!(start.elapsed(), Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn what_changed_before_the_wait_is_reported_but_quiet_counts_from_the_wait() {
        let watch = Arc::new(Watch::new(Vec::new()));
        watch.record(&[WINDOW]);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let start = Instant::now();
        let done = Arc::clone(&watch).settle(&Still, QUIET, Duration::from_secs(5)).await.expect("settles");
        assert_eq!((done.changed.len(), done.settled_after_micros), (1, 0));
        assert_eq!(start.elapsed(), QUIET);
    }
}
