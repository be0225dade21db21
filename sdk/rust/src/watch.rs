//! Watches that outlive connections.
//!
//! A watch gives a snapshot, then what changes. When the connection breaks or the daemon restarts, it is taken up again
//! behind the last revision that came, without a word: nothing is lost. Only where the daemon no longer knows what happened
//! since does it begin anew, which [`Change::Restarted`] tells.

use std::collections::VecDeque;
use std::future::Future;
use std::time::Duration;

use futures_util::stream::{self, Stream};
use tokio::time::timeout;
use tonic::{Code, Response, Status, Streaming};

use crate::client::Client;
use crate::error::{Error, Result};
use crate::names::qualify;
use crate::retry::Patience;
use crate::v1::{
    Agent, Event, Pool, Vm, WatchAgentsRequest, WatchAgentsResponse, WatchEventsRequest, WatchEventsResponse,
    WatchPhase, WatchPoolsRequest, WatchPoolsResponse, WatchVmsRequest, WatchVmsResponse,
};

/// The daemon says something every 15 s; after three times that, the connection is dead.
const SILENCE: Duration = Duration::from_secs(45);

/// What a watch tells.
#[derive(Clone, Debug, PartialEq)]
pub enum Change<T> {
    /// It is there, was made, or changed.
    Is(T),
    /// The resource of this name is gone, or no longer among those asked for; it may be one that was never told of.
    Gone(String),
    /// The snapshot is complete: what comes from now on is news.
    Synced,
    /// What was told so far may be out of date: another snapshot follows, up to its own [`Change::Synced`].
    Restarted,
}

/// Messages of watch streams.
trait Message {
    type Item;

    fn open(self) -> (Vec<Self::Item>, Vec<String>, WatchPhase, String);
}

impl Message for WatchVmsResponse {
    type Item = Vm;

    fn open(self) -> (Vec<Vm>, Vec<String>, WatchPhase, String) {
        let phase = self.phase();
        (self.vms, self.removed, phase, self.revision)
    }
}

impl Message for WatchPoolsResponse {
    type Item = Pool;

    fn open(self) -> (Vec<Pool>, Vec<String>, WatchPhase, String) {
        let phase = self.phase();
        (self.pools, self.removed, phase, self.revision)
    }
}

impl Message for WatchEventsResponse {
    type Item = Event;

    fn open(self) -> (Vec<Event>, Vec<String>, WatchPhase, String) {
        let phase = self.phase();
        (self.events, Vec::new(), phase, self.revision)
    }
}

impl Message for WatchAgentsResponse {
    type Item = Agent;

    fn open(self) -> (Vec<Agent>, Vec<String>, WatchPhase, String) {
        let phase = self.phase();
        (self.agents, self.removed, phase, self.revision)
    }
}

impl Client {
    /// Watches VMs. Each comes in its latest state; states in between may be left out. `pool` and `vms` of the request may
    /// be ids or names.
    pub fn watch_vms(&self, request: WatchVmsRequest) -> impl Stream<Item = Result<Change<Vm>>> + use<> {
        let request = WatchVmsRequest {
            pool: named("pools", &request.pool),
            vms: request.vms.iter().map(|vm| qualify("vms", vm)).collect(),
            ..request
        };
        watch(self.clone(), request.revision.clone(), move |client, revision| {
            let request = WatchVmsRequest { revision, ..request.clone() };
            async move { client.vms().watch_vms(request).await }
        })
    }

    /// Watches pools with their status. `pool` of the request may be an id or a name.
    pub fn watch_pools(
        &self,
        request: WatchPoolsRequest,
    ) -> impl Stream<Item = Result<Change<Pool>>> + use<> {
        let request = WatchPoolsRequest { pool: named("pools", &request.pool), ..request };
        watch(self.clone(), request.revision.clone(), move |client, revision| {
            let request = WatchPoolsRequest { revision, ..request.clone() };
            async move { client.pools().watch_pools(request).await }
        })
    }

    /// Watches agents, without their input and output. Each comes in its latest state; states in between may be left out.
    /// `pool` and `agents` of the request may be ids or names.
    pub fn watch_agents(
        &self,
        request: WatchAgentsRequest,
    ) -> impl Stream<Item = Result<Change<Agent>>> + use<> {
        let request = WatchAgentsRequest {
            pool: named("pools", &request.pool),
            agents: request.agents.iter().map(|agent| qualify("agents", agent)).collect(),
            ..request
        };
        watch(self.clone(), request.revision.clone(), move |client, revision| {
            let request = WatchAgentsRequest { revision, ..request.clone() };
            async move { client.agents().watch_agents(request).await }
        })
    }

    /// Watches what happens: first the events that are kept, then each new one, none left out. `pool` and `vm` of the
    /// request may be ids or names.
    pub fn watch_events(
        &self,
        request: WatchEventsRequest,
    ) -> impl Stream<Item = Result<Change<Event>>> + use<> {
        let request = WatchEventsRequest {
            pool: named("pools", &request.pool),
            vm: named("vms", &request.vm),
            agent: named("agents", &request.agent),
            ..request
        };
        watch(self.clone(), request.revision.clone(), move |client, revision| {
            let request = WatchEventsRequest { revision, ..request.clone() };
            async move { client.hosts().watch_events(request).await }
        })
    }
}

/// An optional name.
fn named(collection: &str, id: &str) -> String {
    if id.is_empty() { String::new() } else { qualify(collection, id) }
}

struct State<M: Message, F> {
    client: Client,
    open: F,
    stream: Option<Streaming<M>>,
    ready: VecDeque<Change<M::Item>>,
    /// Where to go on; empty: from the beginning.
    revision: String,
    /// Something was told that a new snapshot would tell again.
    told: bool,
    synced: bool,
    patience: Patience,
}

fn watch<M, F, Fut>(client: Client, revision: String, open: F) -> impl Stream<Item = Result<Change<M::Item>>>
where
    M: Message,
    F: Fn(Client, String) -> Fut,
    Fut: Future<Output = Result<Response<Streaming<M>>, Status>>,
{
    let state = State {
        client,
        open,
        stream: None,
        ready: VecDeque::new(),
        revision,
        told: false,
        synced: false,
        patience: Patience::default(),
    };
    stream::try_unfold(state, |mut state| async move {
        loop {
            if let Some(change) = state.ready.pop_front() {
                return Ok(Some((change, state)));
            }
            if let Err(error) = state.step().await {
                state.broken(error).await?;
            }
        }
    })
}

impl<M, F, Fut> State<M, F>
where
    M: Message,
    F: Fn(Client, String) -> Fut,
    Fut: Future<Output = Result<Response<Streaming<M>>, Status>>,
{
    /// Takes one message, of a new stream where there is none.
    async fn step(&mut self) -> Result<()> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let open = (self.open)(self.client.clone(), self.revision.clone());
                let opened = timeout(self.client.quick(), open).await.map_err(|_| Error::DeadlineExceeded)?;
                self.stream.insert(opened.map_err(|status| self.client.error(status))?.into_inner())
            }
        };
        let message = match timeout(SILENCE, stream.message()).await {
            Ok(Ok(Some(message))) => message,
            Ok(Ok(None)) => return Err(Status::unavailable("the watch ended").into()),
            Ok(Err(status)) => return Err(self.client.error(status)),
            Err(_) => return Err(Status::unavailable("the daemon fell silent").into()),
        };
        self.patience.heard();
        let (items, gone, phase, revision) = message.open();
        self.told |= !items.is_empty();
        self.ready.extend(items.into_iter().map(Change::Is));
        self.ready.extend(gone.into_iter().map(Change::Gone));
        // One that goes on has been synced before.
        if phase == WatchPhase::Synced && !std::mem::replace(&mut self.synced, true) {
            self.ready.push_back(Change::Synced);
        }
        if !revision.is_empty() {
            self.revision = revision;
        }
        Ok(())
    }

    /// Gets ready for another stream, or gives the error out.
    async fn broken(&mut self, error: Error) -> Result<()> {
        self.stream = None;
        if error.reason() == Some("REVISION_GONE") && !self.revision.is_empty() {
            self.revision.clear();
        } else {
            let passing = error.is_absence()
                || error.reason() == Some("WATCH_TOO_SLOW")
                || (self.patience.has_heard() && error.code() == Code::DeadlineExceeded);
            if !passing {
                return Err(error);
            }
            self.patience.after(&self.client, error).await?;
        }
        if self.revision.is_empty() && (self.told || self.synced) {
            self.ready.push_back(Change::Restarted);
            (self.told, self.synced) = (false, false);
        }
        Ok(())
    }
}
