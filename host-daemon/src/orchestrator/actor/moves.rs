//! Moves between states: intent to the store, then the hypervisor, then the result to the store.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;

use super::lease::GIVEN_BACK;
use super::{Actor, illegal};
use crate::guest::Session;
use crate::hypervisor::{HvError, Observed, Origin, Rest, Run, Stop, VmDefinition};
use crate::model::error::{Error, Reason, Result};
use crate::model::event::{Event, EventKind};
use crate::model::input::SettleOptions;
use crate::model::record::{Availability, Pending, Vm};
use crate::model::vm::VmState;

/// How often a guest that boots is asked for its desktop, and how long it has for the answer.
const PROBE_EVERY: Duration = Duration::from_millis(200);
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

impl Actor {
    /// Makes the VM's disk and definition; a new VM's first move.
    pub(in crate::orchestrator) async fn provision(&mut self) -> Result<()> {
        let definition = VmDefinition {
            id: self.row.id.clone(),
            uid: self.row.uid,
            origin: Origin::Template(self.row.template.clone()),
        };
        let defined = match self.shared.hv.define(&definition).await {
            Ok(rest) => rest,
            Err(error) => return Err(self.failed("provisioning", error.into()).await),
        };
        let (rest, cause) = self.usable("provisioning", defined, "cloned").await?;
        match rest {
            Rest::Saved => self.enter(VmState::Saved, &cause).await,
            Rest::Off => {
                self.enter(VmState::Off, &cause).await?;
                // Without memory to fork a VM is only ready once it has booted.
                let cause = if defined == Rest::Off { "first boot" } else { &cause };
                self.start(cause, true).await
            }
        }
    }

    /// Off to booting; the VM counts as running once its agent has answered. `clean`: nothing ran on its disk before.
    pub(in crate::orchestrator) async fn start(&mut self, cause: &str, clean: bool) -> Result<()> {
        if matches!(self.row.state, VmState::Running | VmState::Booting) {
            return Ok(());
        }
        self.enter(VmState::Booting, cause).await?;
        match self.shared.hv.start(&self.row.id).await {
            Ok(run) => self.set_run(Some(run)),
            Err(error) => return Err(self.failed("start", error.into()).await),
        }
        let epoch = self.link.open(self.row.epoch, false);
        self.write(|row| {
            row.epoch = epoch;
            row.clean = clean;
            row.last_resumed = Some(Timestamp::now());
        })
        .await?;
        self.watch_boot(run_number(self.run), cause);
        Ok(())
    }

    /// Waits beside the actor for the agent of a VM that boots. A guest without one is taken as booted when the time is
    /// over: its screen may still be of use.
    fn watch_boot(&self, run: u64, cause: &str) {
        let Ok(handle) = self.shared.registry.get(&self.row.id) else { return };
        let mut sessions = self.link.session();
        let (limit, cause) = (self.shared.settings.boot_timeout, cause.to_owned());
        let settings = (self.shared.settings.settle_quiet, self.shared.settings.settle_timeout);
        let saves = self.shared.hv.capabilities().save;
        self.shared.tasks.spawn(async move {
            let session = tokio::time::timeout(limit, desktop_up(&mut sessions)).await.ok().flatten();
            if saves
                && handle.look(waits_to_be_saved)
                && let Some(session) = &session
            {
                // What is saved now is what leases begin with. One that stays restless is as good as a template's.
                let settle = SettleOptions { quiet: settings.0, timeout: settings.1, ..Default::default() };
                let settled = session.settle(&settle, Instant::now() + settings.1 + PROBE_TIMEOUT).await;
                tracing::debug!(vm = %handle.id, ?settled, "booted clean");
            }
            let agent = session.is_some();
            let cause = if agent { cause } else { format!("{cause}, no agent answered") };
            let booted =
                handle.call(move |vm| Box::pin(async move { vm.booted(run, &cause, agent).await })).await;
            if let Err(error) = booted {
                tracing::debug!(vm = %handle.id, %error, "not booted");
            }
        });
    }

    /// The agent has answered, or had its time.
    async fn booted(&mut self, run: u64, cause: &str, agent: bool) -> Result<()> {
        if self.row.state != VmState::Booting || run_number(self.run) != run {
            // Another move came first.
            return Ok(());
        }
        self.enter(VmState::Running, cause).await?;
        if !waits_to_be_saved(&self.row) || !self.shared.hv.capabilities().save {
            return Ok(());
        }
        if !agent {
            return self.quarantine(cause).await;
        }
        match self.save("booted clean, saved again").await {
            Ok(()) => Ok(()),
            Err(error) => self.quarantine(&format!("booted clean, not saved again: {error}")).await,
        }
    }

    /// Saved or paused to running.
    pub(in crate::orchestrator) async fn resume(&mut self, cause: &str) -> Result<()> {
        self.resume_with(cause, false, false).await
    }

    /// The same for a caller who takes the first look at the desktop.
    pub(in crate::orchestrator) async fn resume_leased(&mut self) -> Result<()> {
        self.resume_with("leased", true, false).await
    }

    /// The same for the pool.
    pub(super) async fn resume_hot(&mut self) -> Result<()> {
        self.resume_with("to be kept hot", true, true).await
    }

    async fn resume_with(&mut self, cause: &str, glance: bool, hot: bool) -> Result<()> {
        match self.row.state {
            VmState::Running => return Ok(()),
            VmState::Paused => {}
            _ => {
                self.enter_with(VmState::Resuming, cause, |row| {
                    row.hot = hot;
                    if hot {
                        // It may come straight from being put back to clean.
                        row.clean = true;
                        row.pending = None;
                    }
                })
                .await?;
            }
        }
        match self.shared.hv.resume(&self.row.id).await {
            Ok(run) => {
                self.set_run(Some(run));
                self.running(cause, glance).await
            }
            Err(error) => Err(self.failed("resume", error.into()).await),
        }
    }

    /// Saved to running for a holder who counts on it and is not there to be asked: of a memory that can't be read back only
    /// the disk is left, and that is booted.
    pub(super) async fn resume_or_boot(&mut self, cause: &str) -> Result<()> {
        match self.resume(cause).await {
            Err(error)
                if matches!(error.reason, Reason::StateDamaged | Reason::StateIncompatible)
                    && self.row.state == VmState::Saved =>
            {
                self.boot_anew(&format!("booted, since it could not be resumed: {error}")).await
            }
            other => other,
        }
    }

    /// Boots the disk of a VM in whatever state. By way of resetting, since its memory, saved or not, is thrown away.
    pub(super) async fn boot_anew(&mut self, why: &str) -> Result<()> {
        tracing::warn!(vm = %self.row.id, why, "its memory is given up");
        self.enter(VmState::Resetting, why).await?;
        self.link.close().await;
        if let Err(error) = self.shared.hv.stop(&self.row.id, Stop::Hard).await {
            return Err(self.failed("boot", error.into()).await);
        }
        self.set_run(None);
        self.hub.forget_input();
        self.enter(VmState::Off, why).await?;
        self.start(why, false).await
    }

    /// The CPUs run: open a session, and say so. The session is opened at the same time as the row is written, since
    /// both take about as long and a caller waits for both.
    async fn running(&mut self, cause: &str, glance: bool) -> Result<()> {
        let epoch = self.link.open(self.row.epoch, glance);
        self.enter_with(VmState::Running, cause, |row| {
            row.epoch = epoch;
            row.clean = false;
            row.last_resumed = Some(Timestamp::now());
        })
        .await
    }

    /// Running or paused to saved, the state kept.
    pub(in crate::orchestrator) async fn save(&mut self, cause: &str) -> Result<()> {
        if self.row.state == VmState::Saved {
            return Ok(());
        }
        self.supports(self.shared.hv.capabilities().save, "save")?;
        self.enter(VmState::Saving, cause).await?;
        // The guest must see its port close before its memory is written, or it would go on with a dead session.
        self.link.close().await;
        match self.shared.hv.save(&self.row.id).await {
            Ok(()) => {
                self.set_run(None);
                self.enter(VmState::Saved, cause).await
            }
            Err(error) => Err(self.went_on("save", error.into()).await),
        }
    }

    /// Running to paused.
    pub(in crate::orchestrator) async fn pause(&mut self, cause: &str) -> Result<()> {
        if self.row.state == VmState::Paused {
            return Ok(());
        }
        self.supports(self.shared.hv.capabilities().pause, "pause")?;
        if self.row.state != VmState::Running {
            return Err(illegal(&self.row.id, self.row.state, VmState::Paused));
        }
        self.link.close().await;
        match self.shared.hv.pause(&self.row.id).await {
            Ok(()) => self.enter(VmState::Paused, cause).await,
            Err(error) => Err(self.went_on("pause", error.into()).await),
        }
    }

    /// Any state at rest or running to off.
    pub(in crate::orchestrator) async fn stop(&mut self, how: Stop, cause: &str) -> Result<()> {
        if self.row.state == VmState::Off {
            return Ok(());
        }
        self.enter(VmState::Stopping, cause).await?;
        let asked = match how {
            // The agent's way is the operating system's own; the power button is for when there is none.
            Stop::Graceful(limit) => self.link.shut_down_guest(limit).await,
            Stop::Hard => false,
        };
        self.link.close().await;
        tracing::debug!(vm = %self.row.id, asked, "stopping");
        match self.shared.hv.stop(&self.row.id, how).await {
            Ok(()) => {
                self.set_run(None);
                self.hub.forget_input();
                self.enter_with(VmState::Off, cause, |row| row.clean = false).await
            }
            Err(error) => Err(self.failed("stop", error.into()).await),
        }
    }

    /// Back to clean. A leased VM ends running, another one at rest.
    pub(in crate::orchestrator) async fn reset(&mut self, cause: &str) -> Result<()> {
        let (rest, cause) = self.wipe(cause).await?;
        self.rested(rest, &cause, true).await
    }

    /// Back to clean, and to its pool: at rest, or hot if that is what the pool is short of.
    pub(super) async fn give_back(&mut self) -> Result<()> {
        let (rest, cause) = self.wipe(GIVEN_BACK).await?;
        let hot = rest == Rest::Saved && self.row.availability == Availability::Idle && !self.parked;
        let claim =
            self.row.pool.as_ref().filter(|_| hot).and_then(|pool| self.shared.pools.claim_heat(pool));
        match claim {
            Some(claim) => {
                if let Err(error) = self.heat_clean(Some(claim)).await {
                    // It is kept out of use already, and nothing is left of what was pending.
                    tracing::warn!(vm = %self.row.id, error = &error as &dyn std::error::Error, "not made hot");
                }
                Ok(())
            }
            None => self.rested(rest, &cause, true).await,
        }
    }

    /// Where the VM lies then, and why there.
    async fn wipe(&mut self, cause: &str) -> Result<(Rest, String)> {
        // The end of a lease may have written it.
        if self.row.state != VmState::Resetting || self.row.pending != Some(Pending::Reset) {
            self.enter_with(VmState::Resetting, cause, |row| {
                // A crash in the middle must not leave a free VM half reset.
                if row.availability != Availability::Leased {
                    row.pending = Some(Pending::Reset);
                }
            })
            .await?;
        }
        self.link.close().await;
        match self.shared.hv.reset(&self.row.id).await {
            Ok(rest) => {
                self.set_run(None);
                self.uncover();
                self.hub.forget_input();
                self.usable("reset", rest, cause).await
            }
            Err(error) => Err(self.failed("reset", error.into()).await),
        }
    }

    /// A clean memory that can't be read back, or that leases could not use, is thrown away, so that the clean disk is booted;
    /// a free VM is then saved again, with a memory of its own. What is wrong with it is added to the cause.
    async fn usable(&mut self, what: &str, rest: Rest, cause: &str) -> Result<(Rest, String)> {
        if rest == Rest::Off {
            return Ok((rest, cause.to_owned()));
        }
        let why = match self.shared.hv.check_memory(&self.row.id).await {
            Ok(()) if self.clean_fails => "a lease could not use it".to_owned(),
            Ok(()) => return Ok((rest, cause.to_owned())),
            Err(error) if error.is_of_memory() => error.to_string(),
            Err(error) => return Err(self.failed(what, error.into()).await),
        };
        tracing::warn!(vm = %self.row.id, template = %self.row.template, why, "its clean memory is given up");
        match self.shared.hv.stop(&self.row.id, Stop::Hard).await {
            Ok(()) => Ok((Rest::Off, format!("{cause}; booted, since its clean memory is of no use: {why}"))),
            Err(error) => Err(self.failed(what, error.into()).await),
        }
    }

    /// A free VM whose clean memory can't be read back any more is made ready anew, while nobody waits for it.
    async fn mend(&mut self) -> Result<()> {
        if !is_warm(&self.row) {
            return Ok(());
        }
        match self.shared.hv.check_memory(&self.row.id).await {
            Err(error) if error.is_of_memory() => self.reset(&format!("found unusable: {error}")).await,
            other => Ok(other?),
        }
    }

    /// The VM lies clean or at a checkpoint: go on as its holder expects.
    pub(super) async fn rested(&mut self, rest: Rest, cause: &str, clean: bool) -> Result<()> {
        let run_on = self.row.availability == Availability::Leased;
        match rest {
            Rest::Saved if run_on => self.resume(cause).await,
            Rest::Saved => {
                self.enter_with(VmState::Saved, cause, |row| {
                    row.clean = clean;
                    row.pending = None;
                })
                .await
            }
            // Without memory to go back to, ready means booted.
            Rest::Off => {
                self.start(cause, clean).await?;
                self.write(|row| row.pending = None).await
            }
        }
    }

    /// Kept as it is for its last holder: saved, and no longer the pool's.
    pub(super) async fn keep(&mut self) -> Result<()> {
        // The end of a session does that as well, but where the VM runs on there is no such end.
        if self.row.state == VmState::Running {
            self.link.release_input().await;
        }
        // One that its holder switched off or that failed is kept just so.
        let holds_memory = matches!(self.row.state, VmState::Running | VmState::Paused);
        if holds_memory && self.shared.hv.capabilities().save {
            self.save("kept by its last holder").await?;
        }
        self.uncover();
        let pool = self.row.pool.clone();
        self.write(|row| {
            row.pool = None;
            row.pending = None;
        })
        .await?;
        if let Some(pool) = pool {
            self.shared.pools.wake(&pool);
        }
        Ok(())
    }

    /// The daemon stops: memory goes to disk, so that the VM goes on afterwards, or the VM is switched off where that
    /// can't be. A pool's own VM that was ready is made ready again at the next start.
    pub(in crate::orchestrator) async fn park(&mut self) -> Result<()> {
        let cause = "the daemon stops";
        self.parked = true;
        match self.row.state {
            // Nobody's work is in it, so it need not be written.
            VmState::Running if self.row.hot => self.reset(cause).await,
            VmState::Running | VmState::Paused if self.shared.hv.capabilities().save => {
                self.save(cause).await
            }
            VmState::Running | VmState::Paused => {
                let ready = self.row.clean && self.row.availability == Availability::Idle;
                if ready && self.row.pool.is_some() {
                    self.write(|row| row.pending = Some(Pending::Reset)).await?;
                }
                self.stop(Stop::Hard, cause).await
            }
            _ => Ok(()),
        }
    }

    /// Removes the VM with all its files, then its row.
    pub(in crate::orchestrator) async fn delete(&mut self) -> Result<()> {
        if let Some(lease) = &self.row.lease {
            // Whoever asked looked before the VM was leased.
            return Err(Error::new(Reason::VmLeased, format!("vm {} is leased", self.row.id))
                .with("vm", &self.row.id)
                .with("lease", lease));
        }
        if self.row.state != VmState::Deleting {
            self.enter(VmState::Deleting, "asked to").await?;
        }
        self.link.close().await;
        self.set_run(None);
        if let Err(error) = self.shared.hv.delete(&self.row.id).await {
            return Err(self.failed("delete", error.into()).await);
        }
        let cause = &self.row.state_reason;
        let event = Event {
            duration: Some(Timestamp::now().duration_since(self.row.state_since).unsigned_abs()),
            ..Event::of_vm(EventKind::VmDeleted, &self.row, cause, &self.asker)
        };
        self.shared.store.delete_vm(&self.row.id, event).await?;
        self.deleted = true;
        self.shared.registry.remove(&self.row.id);
        self.shared.pools.vm_gone(&self.row);
        Ok(())
    }

    /// Takes over a VM as it was found at start-up.
    pub(in crate::orchestrator) async fn adopt(&mut self, observed: Observed) -> Result<()> {
        self.take_as(observed, "found after a restart of the daemon").await
    }

    /// The VM seems not to be what its row says: look, now that nobody moves it, and go on from what it is.
    pub(in crate::orchestrator) async fn reconcile(&mut self) -> Result<()> {
        if self.deleted || self.parked || self.row.state.is_transient() || self.row.state == VmState::Error {
            return Ok(());
        }
        let observed = match self.shared.hv.observe(&self.row.id).await {
            Ok(observed) => observed,
            Err(HvError::NotFound { .. }) => Observed::Broken("its files are gone".into()),
            Err(error) => return Err(error.into()),
        };
        let own = self.run.map(|run| run.number);
        match (self.row.state, &observed) {
            (VmState::Running, Observed::Running(run)) if own == Some(run.number) => return Ok(()),
            (VmState::Saved, Observed::Saved) => return self.mend().await,
            (VmState::Paused, Observed::Paused(_)) | (VmState::Off, Observed::Off) => return Ok(()),
            _ => {}
        }
        tracing::warn!(vm = %self.row.id, state = %self.row.state, ?observed, "vm is not what its row says");
        self.link.close().await;
        if own.is_some() && observed == Observed::Off {
            self.set_run(None);
            return self.lost("its process ended, and nobody said so").await;
        }
        self.take_as(observed, "found otherwise than it was left").await
    }

    /// Goes on with a VM from what it is.
    async fn take_as(&mut self, observed: Observed, cause: &str) -> Result<()> {
        let (state, run) = match observed {
            Observed::Running(run) => (VmState::Running, Some(run)),
            Observed::Paused(run) => (VmState::Paused, Some(run)),
            Observed::Saved => (VmState::Saved, None),
            Observed::Off => (VmState::Off, None),
            Observed::Broken(_) if self.row.state == VmState::Deleting => return self.delete().await,
            Observed::Broken(why) => {
                self.set_run(None);
                return self.lost(&why).await;
            }
        };
        self.set_run(run);
        match self.row.state {
            VmState::Deleting => return self.delete().await,
            // It failed, whatever is left of it; who wants it back resets it.
            VmState::Error => return Ok(()),
            // A holder must not take a desktop that was booted meanwhile for the one they left.
            _ if state == VmState::Off && self.ran_for_a_lease() => {
                return self.lost("its process ended while nobody watched it").await;
            }
            recorded if recorded != state => {
                // What is there counts, whatever the table says of how it came to be.
                tracing::info!(vm = %self.row.id, %recorded, found = %state, "vm found");
                let keeps_clean = state == VmState::Saved;
                self.write(|row| {
                    row.state = state;
                    row.state_reason = cause.to_owned();
                    row.state_since = Timestamp::now();
                    let ours = row.pool.is_some() && row.availability == Availability::Idle;
                    // One on its way to being hot may be clean still, one that was hot is not, and neither was used.
                    let ready = if row.hot {
                        state != VmState::Running && !(row.clean && keeps_clean)
                    } else {
                        row.clean && !keeps_clean
                    };
                    row.hot &= state == VmState::Running;
                    if ready && ours && row.pending.is_none() {
                        // It was ready, or on the way to it, and nobody had it: the pool has to make it ready again.
                        row.pending = Some(Pending::Reset);
                    }
                    row.clean &= keeps_clean;
                })
                .await?;
            }
            _ => {}
        }
        if state == VmState::Running {
            let epoch = self.link.open(self.row.epoch, false);
            self.write(|row| row.epoch = epoch).await?;
            if self.row.hot {
                self.watch_hot();
            }
            if self.row.suspended && self.row.lease.is_some() {
                // It was not saved yet, or resumed already.
                self.take_back_suspension().await?;
            }
        }
        // Saved or switched off at the daemon's stop: its holder expects it running.
        if self.row.availability == Availability::Leased && self.row.pending.is_none() && !self.row.suspended
        {
            match state {
                VmState::Saved => self.resume_or_boot(cause).await?,
                VmState::Off => self.start(cause, false).await?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether the row says that somebody has it and its guest runs, or may have run.
    fn ran_for_a_lease(&self) -> bool {
        self.row.availability == Availability::Leased
            && self.row.pending.is_none()
            && matches!(
                self.row.state,
                VmState::Running | VmState::Paused | VmState::Saving | VmState::Resuming
            )
    }

    /// A move failed: if the VM goes on running, so does its session.
    pub(super) async fn went_on(&mut self, what: &str, error: Error) -> Error {
        let error = self.failed(what, error).await;
        if self.row.state == VmState::Running {
            self.link.open(self.row.epoch, false);
        }
        error
    }

    pub(super) fn supports(&self, able: bool, action: &'static str) -> Result<()> {
        if able {
            return Ok(());
        }
        let backend = self.shared.hv.facts().name;
        Err(Error::new(Reason::NotSupported, format!("{backend} can't {action} a vm"))
            .with("hypervisor", backend)
            .with("action", action))
    }
}

/// Tells runs apart; no run is none of them.
fn run_number(run: Option<Run>) -> u64 {
    run.map_or(0, |run| run.number)
}

/// A pool's own VM that boots clean is ready once it is saved, where that can be.
fn waits_to_be_saved(row: &Vm) -> bool {
    row.clean && row.pool.is_some() && row.availability == Availability::Idle
}

/// Whether a VM is the pool's, clean and saved.
pub(in crate::orchestrator) fn is_warm(row: &Vm) -> bool {
    row.state == VmState::Saved
        && row.clean
        && row.pool.is_some()
        && row.availability == Availability::Idle
        && row.pending.is_none()
}

/// Waits until an agent answers and its desktop with it: the privileged half is there long before the screen. None when
/// the VM is gone.
async fn desktop_up(sessions: &mut watch::Receiver<Option<Session>>) -> Option<Session> {
    loop {
        let session = match sessions.wait_for(Option::is_some).await {
            Ok(session) => session.clone(),
            // The VM is gone; whoever waits finds that out.
            Err(_) => return None,
        };
        if let Some(session) = session
            && session.probe(Instant::now() + PROBE_TIMEOUT).await.is_ok()
        {
            return Some(session);
        }
        tokio::time::sleep(PROBE_EVERY).await;
    }
}
