//! Consoles: who may open one, for how long a ticket is good, and that it is in the events.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::oneshot;
use tokio::time::Instant;
use uuid::Uuid;

use crate::model::error::{Error, Reason, Result};
use crate::model::event::{Event, EventKind};
use crate::model::ids::LeaseId;
use crate::orchestrator::actor::Handle;
use crate::orchestrator::request::{Caller, Target};
use crate::orchestrator::{Orchestrator, Shared};

/// How long a ticket is good: a viewer starts in seconds.
const TICKET: Duration = Duration::from_secs(60);
/// Tickets that may wait to be used.
const WAITING: usize = 256;

/// Tickets that wait.
#[derive(Default)]
pub(in crate::orchestrator) struct Consoles(Mutex<HashMap<String, Ticket>>);

/// A right to open one console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// Whose desktop.
    pub target: Target,
    /// Keys and pointer do nothing.
    pub view_only: bool,
    caller: String,
    until: Instant,
}

impl Orchestrator {
    /// Gives a ticket for a console, and says when it ends.
    ///
    /// # Errors
    /// As [`Orchestrator::desktop`]; [`Reason::VmReserved`]; [`Reason::TooManyConsoles`].
    pub async fn open_console(
        &self,
        caller: &Caller,
        target: Target,
        view_only: bool,
    ) -> Result<(String, Timestamp)> {
        self.desktop(caller, &target).await?;
        if !view_only {
            self.may_drive(&target)?;
        }
        let mut waiting = self.0.consoles.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        waiting.retain(|_, ticket| ticket.until > now);
        if waiting.len() >= WAITING {
            let why = format!("{WAITING} consoles were asked for and not opened yet");
            return Err(Error::new(Reason::TooManyConsoles, why).retry_after(TICKET));
        }
        let name = Uuid::new_v4().simple().to_string();
        let ticket = Ticket { target, view_only, caller: caller.name.clone(), until: now + TICKET };
        waiting.insert(name.clone(), ticket);
        Ok((name, Timestamp::now() + TICKET))
    }

    /// Takes a ticket: it is good for one use by whoever got it.
    ///
    /// # Errors
    /// [`Reason::ConsoleTicketUnknown`].
    pub fn take_ticket(&self, caller: &Caller, name: &str) -> Result<Ticket> {
        let mut waiting = self.0.consoles.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = waiting
            .get(name)
            .is_some_and(|ticket| ticket.caller == caller.name && ticket.until > Instant::now());
        known.then(|| waiting.remove(name)).flatten().ok_or_else(|| {
            let why = "the ticket is unknown, was used or is too old: open the console again";
            Error::new(Reason::ConsoleTicketUnknown, why)
        })
    }

    /// Runs a console to its end, which the receiver gets; both ends are in the events.
    ///
    /// # Errors
    /// As [`Orchestrator::desktop`]; when the event can't be stored.
    pub async fn run_console(
        &self,
        caller: &Caller,
        target: &Target,
        console: impl Future<Output = Result<()>> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<()>>> {
        let shared = Arc::clone(self.open()?);
        let handle = self.target(caller, target).await?;
        let lease = handle.look(|row| row.lease.clone());
        let actor = caller.name.clone();
        note(&shared, &handle, lease.clone(), EventKind::ConsoleOpened, "", &actor).await?;
        let (tell, told) = oneshot::channel();
        let tasks = shared.tasks.clone();
        tasks.spawn(async move {
            let stopping = shared.stopping.clone();
            let outcome = tokio::select! {
                outcome = console => outcome,
                () = stopping.cancelled() => Err(Error::new(Reason::ShuttingDown, "the daemon is stopping")),
            };
            let cause = match &outcome {
                Ok(()) => "the viewer left".to_owned(),
                Err(error) => error.to_string(),
            };
            // Told only when it is written: who has seen the end finds it in the events.
            if let Err(error) = note(&shared, &handle, lease, EventKind::ConsoleClosed, &cause, &actor).await
            {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(vm = %handle.id, error, "the end of a console is not in the events");
            }
            let _ = tell.send(outcome);
        });
        Ok(told)
    }
}

async fn note(
    shared: &Shared,
    handle: &Handle,
    lease: Option<LeaseId>,
    kind: EventKind,
    cause: &str,
    actor: &str,
) -> Result<()> {
    let vm = handle.look(Clone::clone);
    let event = Event { lease, ..Event::of_vm(kind, &vm, cause, actor) };
    Ok(shared.store.note(event).await?)
}
