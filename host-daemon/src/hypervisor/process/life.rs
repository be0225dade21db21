//! What happens to a VM: made, started, stopped, reset, deleted, found again.

use std::sync::{Arc, PoisonError, Weak};

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex as AsyncMutex;
use tokio::task::AbortHandle;

use super::desktop::{self, Desktop};
use super::door::Door;
use super::processes::{self, Watched};
use super::{Inner, copy_skeleton, files, io_error, records};
use crate::hypervisor::{Event, Found, HvError, HvResult, Observed, Origin, Rest, Run, VmDefinition};
use crate::model::ids::VmId;
use crate::model::screen::Size;
use crate::model::template::TemplateSpec;

/// A VM as it is kept on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct VmRecord {
    definition: VmDefinition,
    display: Size,
}

/// A VM.
pub(super) struct Slot {
    record: VmRecord,
    live: Option<Live>,
    /// Why its processes could not be ended.
    broken: Option<String>,
    deleted: bool,
}

/// A VM that runs.
pub(super) struct Live {
    desktop: Desktop,
    pub(super) door: Door,
    pub(super) secret: [u8; 32],
    watching: AbortHandle,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

impl Live {
    fn run(&self) -> Run {
        Run { number: self.desktop.number, pid: self.desktop.server }
    }
}

impl Slot {
    fn new(record: VmRecord) -> Self {
        Self { record, live: None, broken: None, deleted: false }
    }

    pub(super) fn observed(&self) -> Observed {
        match (&self.live, &self.broken) {
            (Some(live), _) => Observed::Running(live.run()),
            (None, Some(why)) => Observed::Broken(why.clone()),
            (None, None) => Observed::Off,
        }
    }

    /// What there is of it.
    pub(super) fn found(&self) -> Option<Found> {
        let definition = self.record.definition.clone();
        (!self.deleted).then(|| Found { definition, observed: self.observed() })
    }

    pub(super) fn live(&self, vm: &VmId, action: &'static str) -> HvResult<&Live> {
        self.live.as_ref().ok_or_else(|| HvError::IllegalState {
            vm: vm.clone(),
            state: "off".to_owned(),
            action,
        })
    }
}

impl Inner {
    pub(super) fn marker(&self, slot: &Slot) -> String {
        format!("{}/{}", self.instance, slot.record.definition.uid)
    }

    pub(super) async fn define(inner: Arc<Self>, definition: VmDefinition) -> HvResult<Rest> {
        let id = definition.id.clone();
        if let Ok(slot) = inner.slot(&id) {
            let same = slot.lock().await.record.definition == definition;
            return if same {
                Ok(Rest::Off)
            } else {
                Err(HvError::AlreadyExists { kind: "vm", id: id.to_string() })
            };
        }
        let (Origin::Golden(template) | Origin::Template(template)) = &definition.origin;
        let from = inner.template_dir(template);
        let (dir, template) = (inner.places(&id).dir, template.clone());
        let record = files(move || {
            let spec: TemplateSpec = records::read(&from.join("template.json"))?
                .ok_or_else(|| HvError::NotFound { kind: "template", id: template.to_string() })?;
            let record = VmRecord { definition, display: spec.display };
            records::whole_directory(&dir, |dir| {
                copy_skeleton(&from.join("home"), &dir.join("home"))?;
                records::write(&dir.join("vm.json"), &record)
            })?;
            Ok(record)
        })
        .await?;
        let slot = Arc::new(AsyncMutex::new(Slot::new(record)));
        inner.vms.lock().unwrap_or_else(PoisonError::into_inner).insert(id, slot);
        Ok(Rest::Off)
    }

    pub(super) async fn start(inner: Arc<Self>, vm: VmId) -> HvResult<Run> {
        let slot = inner.slot(&vm)?;
        let mut slot = slot.lock().await;
        if let Some(live) = &slot.live {
            return Ok(live.run());
        }
        let (marker, places) = (inner.marker(&slot), inner.places(&vm));
        // Nothing of an older run may share the home with the new one.
        processes::end(&marker).await.map_err(io_error("cannot end an older run"))?;
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|error| HvError::Process(error.to_string()))?;
        let door = Door::open(0, secret).await.map_err(io_error("cannot listen for the agent"))?;
        let display = slot.record.display;
        let number = inner.next_run();
        let desktop =
            desktop::start(&inner.config, &places, &marker, number, display, door.port, secret).await?;
        if let Err(error) = records::write(&places.run().join("desktop.json"), &desktop) {
            desktop::end(&desktop).await?;
            return Err(error);
        }
        let live = Self::watch(&inner, &vm, desktop, door, secret)?;
        let run = live.run();
        slot.live = Some(live);
        slot.broken = None;
        Ok(run)
    }

    /// Reports the end of the X server or the agent, whichever comes first.
    fn watch(inner: &Arc<Self>, vm: &VmId, desktop: Desktop, door: Door, secret: [u8; 32]) -> HvResult<Live> {
        let watched = |pid| Watched::new(pid).map_err(io_error("cannot watch a process"));
        let (server, agent) = (watched(desktop.server)?, watched(desktop.agent)?);
        let (weak, vm, number) = (Arc::downgrade(inner), vm.clone(), desktop.number);
        let watching = tokio::spawn(async move {
            let (what, how) = tokio::select! {
                how = server.ended() => ("the x server", how),
                how = agent.ended() => ("the agent", how),
            };
            // On a task of its own: ending the VM aborts this one.
            tokio::spawn(ended(weak, vm, number, what, how));
        });
        Ok(Live { desktop, door, secret, watching: watching.abort_handle() })
    }

    async fn halt(&self, slot: &mut Slot, vm: &VmId) -> HvResult<()> {
        let marker = self.marker(slot);
        let ended = match slot.live.take() {
            Some(live) => desktop::end(&live.desktop).await,
            None => processes::end(&marker).await.map_err(io_error("cannot end processes")),
        };
        slot.broken = ended.as_ref().err().map(ToString::to_string);
        ended?;
        let run = self.places(vm).run();
        files(move || desktop::remove(&run).map_err(io_error("cannot remove a run directory"))).await
    }

    pub(super) async fn stop(inner: Arc<Self>, vm: VmId) -> HvResult<()> {
        let slot = inner.slot(&vm)?;
        let mut slot = slot.lock().await;
        inner.halt(&mut slot, &vm).await
    }

    pub(super) async fn reset(inner: Arc<Self>, vm: VmId) -> HvResult<Rest> {
        let slot = inner.slot(&vm)?;
        let mut slot = slot.lock().await;
        inner.halt(&mut slot, &vm).await?;
        let (Origin::Golden(template) | Origin::Template(template)) = &slot.record.definition.origin;
        let (from, home) = (inner.template_dir(template).join("home"), inner.places(&vm).home());
        files(move || {
            desktop::remove(&home).map_err(io_error("cannot remove a home"))?;
            copy_skeleton(&from, &home).map(|_| ())
        })
        .await?;
        Ok(Rest::Off)
    }

    pub(super) async fn delete(inner: Arc<Self>, vm: VmId) -> HvResult<()> {
        let Ok(slot) = inner.slot(&vm) else { return Ok(()) };
        let mut slot = slot.lock().await;
        if slot.deleted {
            return Ok(());
        }
        inner.halt(&mut slot, &vm).await?;
        let dir = inner.places(&vm).dir;
        files(move || {
            // The record goes first: a directory without one is nobody's.
            match std::fs::remove_file(dir.join("vm.json")) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(io_error("cannot remove a vm")(error))
                }
                _ => desktop::remove(&dir).map_err(io_error("cannot remove a vm")),
            }
        })
        .await?;
        slot.deleted = true;
        inner.vms.lock().unwrap_or_else(PoisonError::into_inner).remove(&vm);
        Ok(())
    }

    pub(super) async fn recover(inner: Arc<Self>) -> HvResult<Vec<Found>> {
        let dir = inner.config.dir.join("vms");
        let ids = files(move || records::ids(&dir)).await?;
        let mut out = Vec::new();
        let mut owned = Vec::new();
        for id in ids.into_iter().filter_map(|id| VmId::new(id).ok()) {
            let places = inner.places(&id);
            let Some(record) = records::read::<VmRecord>(&places.record())? else {
                desktop::remove(&places.dir).map_err(io_error("cannot remove a vm without a record"))?;
                continue;
            };
            let definition = record.definition.clone();
            let mut slot = Slot::new(record);
            owned.push(inner.marker(&slot));
            match inner.find(&id, &slot).await? {
                Some(live) => slot.live = Some(live),
                None => {
                    if let Err(error) = inner.halt(&mut slot, &id).await {
                        tracing::warn!(vm = %id, %error, "cannot clear away an older run");
                    }
                }
            }
            out.push(Found { definition, observed: slot.observed() });
            inner
                .vms
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(id, Arc::new(AsyncMutex::new(slot)));
        }
        let ours = format!("{}/", inner.instance);
        for (_, marker) in processes::marked(&ours).map_err(io_error("cannot read /proc"))? {
            if !owned.contains(&marker) {
                tracing::warn!(%marker, "ending processes of no vm");
                processes::end(&marker).await.map_err(io_error("cannot end processes of no vm"))?;
            }
        }
        Ok(out)
    }

    /// The run that an older daemon left, if all of it is still there.
    async fn find(self: &Arc<Self>, vm: &VmId, slot: &Slot) -> HvResult<Option<Live>> {
        let path = self.places(vm).run().join("desktop.json");
        let Some(desktop) = records::read::<Desktop>(&path)? else { return Ok(None) };
        if desktop.marker != self.marker(slot) || !desktop.is_alive() {
            desktop::end(&Desktop { marker: self.marker(slot), ..desktop }).await?;
            return Ok(None);
        }
        let mut secret = [0; 32];
        if hex::decode_to_slice(&desktop.secret, &mut secret).is_err() {
            return Ok(None);
        }
        let door = match Door::open(desktop.port, secret).await {
            Ok(door) => door,
            Err(error) => {
                tracing::warn!(%vm, port = desktop.port, %error, "its agent's port is taken, so it must end");
                desktop::end(&desktop).await?;
                return Ok(None);
            }
        };
        Self::watch(self, vm, desktop, door, secret).map(Some)
    }
}

async fn ended(inner: Weak<Inner>, vm: VmId, number: u64, what: &'static str, how: Option<String>) {
    let Some(inner) = inner.upgrade() else { return };
    let Ok(slot) = inner.slot(&vm) else { return };
    let mut slot = slot.lock().await;
    // Whoever stopped it has taken it already: then this is no news.
    let Some(run) = slot.live.as_ref().map(Live::run).filter(|run| run.number == number) else { return };
    let clean = what == "the agent" && how.as_deref() == Some("exit code 0");
    let words = desktop::last_words(&inner.places(&vm));
    let how = how.unwrap_or_else(|| "unknown status".to_owned());
    let reason = format!("{what} ended with {how}: {words}");
    if let Err(error) = inner.halt(&mut slot, &vm).await {
        tracing::warn!(%vm, %error, "cannot end the rest of a desktop");
    }
    // Not under the lock: the orchestrator may be asking about this very VM while the channel is full.
    drop(slot);
    let _ = inner.events.send(Event::Exited { vm, run, reason, clean }).await;
}
