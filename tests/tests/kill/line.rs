//! The clients' way to whichever daemon lives.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hvkube_sdk::{Client, Error, Result, RetryPolicy};
use hvkube_tests::Daemon;
use tokio::sync::watch;

use crate::ledger::{Count, Ledger};

/// Connects the line to each new daemon.
pub(crate) struct Switchboard(watch::Sender<Option<Client>>);

impl Switchboard {
    pub(crate) async fn new(daemon: &Daemon, ledger: &Arc<Ledger>) -> (Self, Line) {
        let (sender, receiver) = watch::channel(None);
        let line = Line { client: receiver, over: Arc::default(), ledger: Arc::clone(ledger) };
        let this = Self(sender);
        this.connect(daemon).await;
        (this, line)
    }

    pub(crate) async fn connect(&self, daemon: &Daemon) {
        let client = Client::builder()
            .endpoint(daemon.endpoint())
            .token(daemon.token())
            // The next daemon is elsewhere: asking again is the line's business.
            .retry(RetryPolicy::none())
            .connect()
            .await
            .expect("it serves");
        self.0.send_replace(Some(client));
    }

    /// The daemon dies now.
    pub(crate) fn cut(&self) {
        self.0.send_replace(None);
    }
}

#[derive(Clone)]
pub(crate) struct Line {
    client: watch::Receiver<Option<Client>>,
    over: Arc<AtomicBool>,
    pub(crate) ledger: Arc<Ledger>,
}

impl Line {
    /// The daemon that lives.
    pub(crate) fn now(&self) -> Option<Client> {
        self.client.borrow().clone()
    }

    /// Everybody finishes what they do.
    pub(crate) fn finish(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Makes a call until a daemon answers it, however many die over it.
    pub(crate) async fn call<T>(&self, call: impl AsyncFn(Client) -> Result<T>) -> Result<T> {
        let mut client = self.client.clone();
        loop {
            let living = client.wait_for(Option::is_some).await.expect("the board stays").clone();
            match call(living.expect("somebody")).await {
                Err(error) if unanswered(&error) => {
                    self.ledger.count(Count::AskedAgain);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                answer => return answer,
            }
        }
    }
}

/// Every answer of the daemon's has a reason; what has none is a connection that broke.
fn unanswered(error: &Error) -> bool {
    error.is_transport() || (error.api().is_some() && error.reason().is_none())
}

/// A small generator: what is random here need only be varied, and told by its seed.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// 0 to `limit` - 1.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    pub(crate) fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    pub(crate) async fn pause(&mut self, longest_ms: u64) {
        tokio::time::sleep(Duration::from_millis(self.below(longest_ms))).await;
    }
}
