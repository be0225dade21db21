//! One task per VM, which alone owns the VM's row and alone asks the hypervisor for it.
//!
//! ```text
//!   callers ──commands──►┌───────┐──intent──► store ──► hypervisor ──result──► store
//!   hypervisor ─events──►│ actor │──row──────► watch (everybody may look)
//!                        └───────┘──session──► display hub
//! ```
//!
//! Events outrank commands: a VM that died is dead before the next command is looked at. A command runs to its end even
//! if its caller has gone, so nothing is left half-done; callers who want to give up release what they hold instead.
//! After each command the actor works off what the row says is pending, which is also how a crash in the middle of a
//! release is made good at the next start.

mod checkpoint;
mod hot;
mod lease;
mod link;
mod mask;
mod moves;
mod suspend;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};

use super::Shared;
use crate::display::Hub;
use crate::hypervisor::{Event as HvEvent, Observed, Run};
use crate::model::error::{Error, Reason, Result};
use crate::model::event::Event;
use crate::model::ids::VmId;
use crate::model::record::{Availability, Pending, Vm};
use crate::model::vm::VmState;
use crate::orchestrator::asked::asker;
use crate::orchestrator::pools::HotPlace;
use crate::orchestrator::view::GuestView;
use hot::Proofs;
pub(super) use hot::readiness;
pub(super) use lease::changed_hands;
pub(super) use link::{Link, first_address};
pub(super) use moves::is_warm;
pub(super) use suspend::preempted;

/// Commands waiting for one VM. Callers queue here in order; more than this many at one VM is a runaway client, who
/// then waits at the channel's end.
const COMMANDS: usize = 16;
/// A run ends once, and events of old runs are few.
const EVENTS: usize = 4;

type Command = Box<dyn for<'a> FnOnce(&'a mut Actor) -> BoxFuture<'a, ()> + Send>;

/// The way to a VM's actor. Cheap to clone.
#[derive(Clone)]
pub(super) struct Handle {
    pub(super) id: VmId,
    commands: mpsc::Sender<Command>,
    /// Boxed: a channel takes room for 32 at once, for every VM.
    events: mpsc::Sender<Box<HvEvent>>,
    row: watch::Receiver<Vm>,
    run: watch::Receiver<Option<Run>>,
    guest: watch::Receiver<GuestView>,
    pub(super) hub: Hub,
    pub(super) link: Arc<Link>,
    proofs: Proofs,
}

impl Handle {
    /// Whether there is a proof of its hot desktop.
    pub(super) fn is_proven(&self) -> bool {
        self.proofs.any()
    }

    /// The VM's row as it is now.
    pub(super) fn row(&self) -> Vm {
        self.row.borrow().clone()
    }

    /// A look at the row without copying it.
    pub(super) fn look<T>(&self, f: impl FnOnce(&Vm) -> T) -> T {
        f(&self.row.borrow())
    }

    /// Changes of the row; ends when the VM is gone.
    pub(super) fn rows(&self) -> watch::Receiver<Vm> {
        self.row.clone()
    }

    /// Process that runs it.
    pub(super) fn run(&self) -> Option<Run> {
        *self.run.borrow()
    }

    /// What is known of its guest.
    pub(super) fn guest(&self) -> GuestView {
        self.guest.borrow().clone()
    }

    /// Runs a command in the actor and gives its result.
    pub(super) async fn call<R, F>(&self, command: F) -> Result<R>
    where
        R: Send + 'static,
        F: for<'a> FnOnce(&'a mut Actor) -> BoxFuture<'a, Result<R>> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let asker = asker();
        let boxed: Command = Box::new(move |actor| {
            Box::pin(async move {
                actor.asker = asker;
                // The caller may have gone; what was done stays done.
                let _ = reply.send(command(actor).await);
            })
        });
        self.commands.send(boxed).await.map_err(|_| self.gone())?;
        answer.await.map_err(|_| self.gone())?
    }

    /// Hands over something that happened to the VM.
    pub(super) async fn tell(&self, event: HvEvent) {
        // An actor that has ended needs no news.
        let _ = self.events.send(Box::new(event)).await;
    }

    fn gone(&self) -> Error {
        Error::not_found("vm", &self.id)
    }
}

/// The owner of one VM.
pub(super) struct Actor {
    shared: Arc<Shared>,
    row: Vm,
    run: Option<Run>,
    /// In whose name the present command is done.
    asker: Arc<str>,
    published: watch::Sender<Vm>,
    running: watch::Sender<Option<Run>>,
    link: Arc<Link>,
    hub: Hub,
    proofs: Proofs,
    /// Its clean memory was of no use to a lease, for which its disk was booted instead. Known as long as the daemon runs:
    /// after that the next lease finds it out anew.
    clean_fails: bool,
    /// While its row says that it is hot.
    hot_place: Option<HotPlace>,
    /// The VM is gone: stop after this command.
    deleted: bool,
    /// The daemon stops: what is pending is left to the next start.
    parked: bool,
}

impl Actor {
    /// Starts the actor of a VM whose row is in the store.
    pub(super) fn spawn(shared: &Arc<Shared>, row: Vm) -> Handle {
        let (commands, mut inbox) = mpsc::channel::<Command>(COMMANDS);
        let (events, mut news) = mpsc::channel(EVENTS);
        let hub = Hub::new(row.id.clone(), Arc::clone(&shared.hv), shared.encoders.clone());
        hub.set_masks(shared.masks.read(&row.id, row.uid, row.lease.as_ref()));
        let link = Arc::new(Link::new(shared, row.id.clone(), row.uid, hub.clone()));
        let published = watch::Sender::new(row.clone());
        let running = watch::Sender::new(None);
        let proofs = Proofs::default();
        let handle = Handle {
            id: row.id.clone(),
            commands,
            events,
            row: published.subscribe(),
            run: running.subscribe(),
            guest: link.guest(),
            hub,
            link: Arc::clone(&link),
            proofs: proofs.clone(),
        };
        let mut actor = Self {
            shared: Arc::clone(shared),
            hub: handle.hub.clone(),
            row,
            run: None,
            asker: Arc::default(),
            published,
            running,
            link,
            proofs,
            clean_fails: false,
            hot_place: None,
            deleted: false,
            parked: false,
        };
        actor.count_hot();
        shared.registry.insert(handle.clone());
        let gone = handle.hub.clone();
        let mut guest = actor.link.guest();
        shared.tasks.spawn(async move {
            while !actor.deleted {
                tokio::select! {
                    biased;
                    Some(event) = news.recv() => actor.on_event(*event).await,
                    command = inbox.recv() => match command {
                        Some(command) => command(&mut actor).await,
                        None => break,
                    },
                    // Heartbeats too, and each is only a look.
                    Ok(()) = guest.changed() => {
                        actor.note_address().await;
                        continue;
                    }
                }
                actor.work_off_pending().await;
                actor.asker = Arc::default();
            }
            actor.link.close().await;
            gone.close();
            if actor.deleted {
                actor.unmask();
            }
        });
        handle
    }

    /// Writes a change of the row and shows it to everybody. On failure nothing is changed.
    async fn write(&mut self, change: impl FnOnce(&mut Vm)) -> Result<()> {
        let next = self.next(change);
        let event = Event::vm_changed(&self.row, &next, &self.asker);
        self.shared.store.update_vm(&next, event).await?;
        self.show(next);
        Ok(())
    }

    /// The row as it would be after a change.
    fn next(&self, change: impl FnOnce(&mut Vm)) -> Vm {
        let mut next = self.row.clone();
        change(&mut next);
        if matches!(
            next.state,
            VmState::Saved | VmState::Off | VmState::Resetting | VmState::Error | VmState::Deleting
        ) {
            // It had it while it ran, which may have been for somebody else; it tells a new one when it runs again.
            next.ip_address.clear();
        }
        next.version += 1;
        next.updated = Timestamp::now();
        next
    }

    /// Shows a row that the store has.
    fn show(&mut self, row: Vm) {
        if row.lease != self.row.lease {
            self.mask_for(row.lease.as_ref());
        }
        self.row = row.clone();
        self.count_hot();
        self.published.send_replace(row);
        self.shared.pools.vm_changed(&self.row, self.proofs.any());
    }

    fn count_hot(&mut self) {
        let pool = self.row.pool.as_ref().filter(|_| self.row.hot);
        match pool {
            None => self.hot_place = None,
            Some(pool) if self.hot_place.is_none() => {
                self.hot_place = Some(self.shared.pools.hot_place(pool));
            }
            // Its pool does not change while it is hot.
            Some(_) => {}
        }
    }

    fn set_run(&mut self, run: Option<Run>) {
        self.run = run;
        self.running.send_replace(run);
    }

    /// Moves to a state, with its cause. Every move goes through here.
    async fn enter(&mut self, state: VmState, cause: &str) -> Result<()> {
        self.enter_with(state, cause, |_| {}).await
    }

    async fn enter_with(&mut self, state: VmState, cause: &str, change: impl FnOnce(&mut Vm)) -> Result<()> {
        let from = self.row.state;
        if !from.may_become(state) {
            return Err(illegal(&self.row.id, from, state));
        }
        tracing::info!(vm = %self.row.id, %from, to = %state, cause, "vm state");
        let cause = cause.to_owned();
        self.write(move |row| {
            row.state = state;
            row.state_reason = cause;
            row.state_since = Timestamp::now();
            // Whatever else is done with a hot VM, it is not ready any more.
            row.hot &= matches!(state, VmState::Running | VmState::Resuming);
            change(row);
        })
        .await
    }

    /// The hypervisor failed: look what the VM really is, say so, and give the failure on.
    async fn failed(&mut self, what: &str, error: Error) -> Error {
        tracing::warn!(vm = %self.row.id, what, error = &error as &dyn std::error::Error, "vm move failed");
        let observed = self.shared.hv.observe(&self.row.id).await;
        let (state, run) = match observed {
            Ok(Observed::Running(run)) => (VmState::Running, Some(run)),
            Ok(Observed::Paused(run)) => (VmState::Paused, Some(run)),
            Ok(Observed::Saved) => (VmState::Saved, None),
            Ok(Observed::Off) => (VmState::Off, None),
            Ok(Observed::Broken(_)) | Err(_) => (VmState::Error, None),
        };
        self.set_run(run);
        let same = self.row.state == state;
        let state = if same || self.row.state.may_become(state) { state } else { VmState::Error };
        let cause = format!("{what} failed: {error}");
        if state != VmState::Running {
            self.link.close().await;
        }
        let recorded = match state {
            // Its run is over for us, so its event will not tell the lease.
            VmState::Error => self.lost(&cause).await,
            _ if same => self.write(|row| row.state_reason.clone_from(&cause)).await,
            state => self.enter(state, &cause).await,
        };
        if let Err(lost) = recorded {
            tracing::error!(vm = %self.row.id, error = &lost as &dyn std::error::Error, "state not recorded");
        }
        error
    }

    /// Something happened to the VM by itself.
    async fn on_event(&mut self, event: HvEvent) {
        let (HvEvent::Exited { run, .. } | HvEvent::Halted { run, .. }) = &event;
        if self.run.is_none_or(|own| own.number != run.number) {
            // Of a run that a command has ended already.
            return;
        }
        let (reason, clean) = match event {
            HvEvent::Exited { reason, clean, .. } => (reason, clean),
            HvEvent::Halted { reason, .. } => return self.halted(&reason).await,
        };
        self.link.close().await;
        self.set_run(None);
        let result = if clean && self.row.state.may_become(VmState::Off) {
            let hot = self.row.hot;
            self.enter_with(VmState::Off, "the guest shut down", |row| {
                row.clean = false;
                if hot {
                    // Nobody's but the pool's.
                    row.pending = Some(Pending::Reset);
                }
            })
            .await
        } else {
            self.lost(&reason).await
        };
        if let Err(error) = result {
            tracing::error!(vm = %self.row.id, error = &error as &dyn std::error::Error, "death not recorded");
        }
    }

    /// Its CPUs were stopped by the hypervisor: its holder is told, and may have it go on; one that nobody has is put back to
    /// clean, which also frees what its disk took.
    async fn halted(&mut self, reason: &str) {
        // A command may have had it go on meanwhile; a boot that stands still is seen by whoever waits for it.
        let stands = matches!(self.shared.hv.observe(&self.row.id).await, Ok(Observed::Paused(_)));
        if !stands || self.row.state != VmState::Running {
            tracing::warn!(vm = %self.row.id, state = %self.row.state, reason, "vm was stopped by the hypervisor");
            return;
        }
        self.link.close().await;
        let paused = self
            .enter_with(VmState::Paused, reason, |row| {
                if row.availability == Availability::Idle && row.pool.is_some() {
                    row.pending = Some(Pending::Reset);
                }
            })
            .await;
        if let Err(error) = paused {
            tracing::error!(vm = %self.row.id, error = &error as &dyn std::error::Error, "standstill not recorded");
        }
    }

    /// The VM died: its lease, if any, ends as lost.
    async fn lost(&mut self, reason: &str) -> Result<()> {
        if let Some(lease) = self.row.lease.clone() {
            let why = format!("vm {} died: {reason}", self.row.id);
            self.end_lease(&lease, crate::model::lease::EndedAs::VmLost, &why, None).await?;
        }
        if self.row.state == VmState::Error {
            return Ok(());
        }
        self.enter(VmState::Error, reason).await
    }

    /// Does what the row says is still to be done, once nobody holds the VM.
    async fn work_off_pending(&mut self) {
        if self.deleted || self.parked || self.row.availability == Availability::Leased {
            return;
        }
        let Some(pending) = self.row.pending else { return };
        let result = match pending {
            Pending::Delete => self.delete().await,
            Pending::Reset => self.give_back().await,
            Pending::Save => self.keep().await,
        };
        if let Err(error) = result {
            tracing::warn!(vm = %self.row.id, ?pending, error = &error as &dyn std::error::Error, "clean-up failed");
            let why = format!("{pending:?} after its lease failed: {error}").to_lowercase();
            if let Err(error) = self.quarantine(&why).await {
                tracing::error!(vm = %self.row.id, error = &error as &dyn std::error::Error, "not quarantined");
            }
        }
    }
}

/// A move that the table does not have.
fn illegal(vm: &VmId, from: VmState, to: VmState) -> Error {
    Error::new(Reason::IllegalVmState, format!("vm {vm} is {from} and can't become {to}"))
        .with("vm", vm)
        .with("state", from)
        .with("wanted", to)
}
