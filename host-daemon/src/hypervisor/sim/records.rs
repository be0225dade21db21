//! What exists in the simulated world, as it is kept.

use std::collections::BTreeMap;
use std::sync::Arc;

use hvkube_guest::sim::State;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::hypervisor::{CheckpointFacts, Rest, VmDefinition};
use crate::model::ids::{CheckpointId, TemplateId, VmId};
use crate::model::template::TemplateSpec;

/// What a guest remembers, shared by all that have not changed it since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept(pub(super) Arc<State>);

impl From<State> for Kept {
    fn from(state: State) -> Self {
        Self(Arc::new(state))
    }
}

impl Serialize for Kept {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Kept {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        State::deserialize(deserializer).map(Self::from)
    }
}

/// A template.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct TemplateRecord {
    pub(super) id: TemplateId,
    pub(super) spec: TemplateSpec,
    /// Its prepared state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) sealed: Option<Kept>,
    /// Its memory can't be read back, its disk can.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) damaged: bool,
}

/// What a VM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    Off,
    Saved,
    /// Number of the run.
    Running(u64),
    Paused(u64),
}

impl Phase {
    pub(super) fn run(self) -> Option<u64> {
        match self {
            Self::Running(run) | Self::Paused(run) => Some(run),
            Self::Off | Self::Saved => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Saved => "saved",
            Self::Running(_) => "running",
            Self::Paused(_) => "paused",
        }
    }

    pub(super) fn rest(self) -> Rest {
        if self == Self::Saved { Rest::Saved } else { Rest::Off }
    }
}

/// A VM.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct VmRecord {
    pub(super) definition: VmDefinition,
    pub(super) phase: Phase,
    /// What its guest remembers; absent: what it began with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) state: Option<Kept>,
    /// Its saved memory can't be read back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) damaged: bool,
    /// How often its address has changed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) moved: u32,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) checkpoints: BTreeMap<CheckpointId, Checkpoint>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl VmRecord {
    pub(super) fn new(definition: VmDefinition, phase: Phase, state: Option<Kept>) -> Self {
        Self { definition, phase, state, damaged: false, moved: 0, checkpoints: BTreeMap::new() }
    }
}

/// A named checkpoint.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Checkpoint {
    pub(super) facts: CheckpointFacts,
    pub(super) state: Kept,
}

/// A change of the world. What belongs together is one line of the journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Change {
    Template(TemplateRecord),
    NoTemplate(TemplateId),
    Vm(VmRecord),
    NoVm(VmId),
}
