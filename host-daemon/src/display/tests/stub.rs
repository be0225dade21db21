//! A hypervisor that has a screen and a keyboard, and nothing else.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::sync::mpsc;

use crate::hypervisor::{
    BackendFacts, Capabilities, CheckpointFacts, DiskFacts, Event, Found, GuestStream, HvError, HvResult,
    Hypervisor, Observed, Rest, Run, Stop, VmDefinition, VmFiles,
};
use crate::model::ids::{CheckpointId, TemplateId, VmId};
use crate::model::input::RawInput;
use crate::model::screen::{Frame, Size};
use crate::model::template::{CloneMethod, TemplateSpec};

pub(in crate::display) struct Stub {
    capabilities: Capabilities,
    facts: BackendFacts,
    pub(in crate::display) frame: Mutex<Frame>,
    pub(in crate::display) done: Mutex<Vec<RawInput>>,
    /// Input fails.
    pub(in crate::display) broken: AtomicBool,
    /// What the screen shows after the next input.
    next: Mutex<Option<u8>>,
}

impl Stub {
    pub(in crate::display) fn new(display: bool, size: Size) -> Arc<Self> {
        Arc::new(Self {
            capabilities: Capabilities {
                save: false,
                pause: false,
                memory_checkpoints: false,
                fork: false,
                display,
                gpu: false,
                networks: Vec::new(),
                clone_method: CloneMethod::Boot,
            },
            facts: BackendFacts {
                name: "stub",
                version: String::new(),
                accelerator: "none",
                accelerator_reason: String::new(),
            },
            frame: Mutex::new(Frame { size, pixels: vec![0; size.frame_bytes()].into() }),
            done: Mutex::default(),
            broken: AtomicBool::new(false),
            next: Mutex::default(),
        })
    }

    /// The next input changes the screen.
    pub(in crate::display) fn paint_on_input(&self, value: u8) {
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
    }

    pub(in crate::display) fn show(&self, value: u8) {
        let mut frame = self.frame.lock().unwrap_or_else(PoisonError::into_inner);
        frame.pixels = vec![value; frame.size.frame_bytes()].into();
    }
}

const NO: HvError = HvError::NotSupported { backend: "stub", action: "do that" };

#[async_trait]
impl Hypervisor for Stub {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }
    fn facts(&self) -> &BackendFacts {
        &self.facts
    }
    fn events(&self) -> Option<mpsc::Receiver<Event>> {
        None
    }
    async fn recover(&self) -> HvResult<Vec<Found>> {
        Err(NO)
    }
    async fn survey(&self) -> HvResult<Vec<Found>> {
        Ok(Vec::new())
    }

    async fn observe(&self, _: &VmId) -> HvResult<Observed> {
        Err(NO)
    }
    async fn import_template(&self, _: &TemplateId, _: &TemplateSpec) -> HvResult<DiskFacts> {
        Err(NO)
    }
    async fn seal_template(&self, _: &TemplateId, _: &VmId) -> HvResult<CloneMethod> {
        Err(NO)
    }
    async fn delete_template(&self, _: &TemplateId) -> HvResult<()> {
        Err(NO)
    }
    async fn templates(&self) -> HvResult<Vec<TemplateId>> {
        Err(NO)
    }
    async fn define(&self, _: &VmDefinition) -> HvResult<Rest> {
        Err(NO)
    }
    async fn start(&self, _: &VmId) -> HvResult<Run> {
        Err(NO)
    }
    async fn resume(&self, _: &VmId) -> HvResult<Run> {
        Err(NO)
    }
    async fn save(&self, _: &VmId) -> HvResult<()> {
        Err(NO)
    }
    async fn pause(&self, _: &VmId) -> HvResult<()> {
        Err(NO)
    }
    async fn stop(&self, _: &VmId, _: Stop) -> HvResult<()> {
        Err(NO)
    }
    async fn reset(&self, _: &VmId) -> HvResult<Rest> {
        Err(NO)
    }
    async fn delete(&self, _: &VmId) -> HvResult<()> {
        Err(NO)
    }
    async fn create_checkpoint(&self, _: &VmId, _: &CheckpointId) -> HvResult<CheckpointFacts> {
        Err(NO)
    }
    async fn checkpoints(&self, _: &VmId) -> HvResult<Vec<CheckpointFacts>> {
        Err(NO)
    }
    async fn restore_checkpoint(&self, _: &VmId, _: &CheckpointId) -> HvResult<Rest> {
        Err(NO)
    }
    async fn delete_checkpoint(&self, _: &VmId, _: &CheckpointId) -> HvResult<()> {
        Err(NO)
    }
    async fn fork(&self, _: &VmId, _: &VmDefinition) -> HvResult<()> {
        Err(NO)
    }
    async fn open_guest(&self, _: &VmId) -> HvResult<Box<dyn GuestStream>> {
        Err(NO)
    }
    async fn guest_secret(&self, _: &VmId) -> HvResult<Option<[u8; 32]>> {
        Err(NO)
    }
    async fn screenshot(&self, _: &VmId) -> HvResult<Frame> {
        Ok(self.frame.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
    async fn input(&self, _: &VmId, _: Size, events: &[RawInput]) -> HvResult<()> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(NO);
        }
        self.done.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(events);
        if let Some(value) = self.next.lock().unwrap_or_else(PoisonError::into_inner).take() {
            self.show(value);
        }
        Ok(())
    }
    async fn resident_bytes(&self, _: &VmId) -> HvResult<u64> {
        Err(NO)
    }
    async fn files(&self, _: &VmId) -> HvResult<VmFiles> {
        Err(NO)
    }
}
