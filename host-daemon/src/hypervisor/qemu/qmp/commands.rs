//! The commands in use, with their answers.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Command;

/// An answer that says nothing but done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) struct Done {}

macro_rules! plain {
    ($(#[$doc:meta])* $name:ident, $wire:literal, $answer:ty) => {
        $(#[$doc])*
        #[derive(Debug, Serialize)]
        pub(crate) struct $name {}

        impl Command for $name {
            type Answer = $answer;
            const NAME: &'static str = $wire;
        }
    };
}

plain!(/// Ends the negotiation.
    Capabilities, "qmp_capabilities", Done);
plain!(/// Stops the CPUs.
    Halt, "stop", Done);
plain!(/// Lets the CPUs run.
    Cont, "cont", Done);
plain!(/// Presses the power button.
    PowerDown, "system_powerdown", Done);
plain!(/// Gives up an outgoing migration.
    MigrateCancel, "migrate_cancel", Done);
plain!(/// What the machine is doing.
    QueryStatus, "query-status", Status);
plain!(/// Why the last migration failed.
    QueryMigrate, "query-migrate", Migration);
plain!(/// What sits on top of each drive.
    QueryBlock, "query-block", Vec<Drive>);

/// Answer to [`QueryStatus`].
#[derive(Debug, Deserialize)]
pub(crate) struct Status {
    /// What the machine is doing.
    pub(crate) status: RunState,
}

/// What a machine is doing, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RunState {
    /// Its CPUs run.
    Running,
    /// Its CPUs stand still.
    Paused,
    /// Waiting for, or reading in, a saved state.
    Inmigrate,
    /// Its state was written out; it could go on.
    Postmigrate,
    /// Writing its state out.
    FinishMigrate,
    /// Any other.
    #[serde(other)]
    Other,
}

/// Answer to [`QueryMigrate`].
#[derive(Debug, Deserialize)]
pub(crate) struct Migration {
    /// How far it is; absent when there never was one.
    pub(crate) status: Option<MigrationStatus>,
    /// Why it failed.
    #[serde(rename = "error-desc")]
    pub(crate) error: Option<String>,
}

/// State of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum MigrationStatus {
    /// All is written or read.
    Completed,
    /// It failed.
    Failed,
    /// It was given up.
    Cancelled,
    /// On its way.
    #[serde(other)]
    Underway,
}

impl MigrationStatus {
    /// Whether nothing more will happen.
    pub(crate) fn is_end(self) -> bool {
        self != Self::Underway
    }
}

/// A drive in the answer to [`QueryBlock`].
#[derive(Debug, Deserialize)]
pub(crate) struct Drive {
    /// What is in it.
    pub(crate) inserted: Option<Inserted>,
}

/// The top of a drive's chain.
#[derive(Debug, Deserialize)]
pub(crate) struct Inserted {
    /// Name of its node.
    #[serde(rename = "node-name")]
    pub(crate) node: Option<String>,
}

/// Switches migration capabilities.
#[derive(Debug, Serialize)]
pub(crate) struct MigrateSetCapabilities {
    capabilities: Vec<CapabilityState>,
}

#[derive(Debug, Serialize)]
struct CapabilityState {
    capability: &'static str,
    state: bool,
}

/// How a saved state is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StateForm {
    /// Devices only; memory stays in its own shared file.
    Devices,
    /// All in one file, each page at its own place in it.
    Mapped,
}

impl MigrateSetCapabilities {
    /// What a state of this form needs, at both ends; the others are switched off, as a process that was restored from
    /// one form may be saved in the other.
    pub(crate) fn of(form: StateForm) -> Self {
        let mapped = form == StateForm::Mapped;
        let capability = |capability, state| CapabilityState { capability, state };
        Self {
            capabilities: vec![
                capability("events", true),
                capability("x-ignore-shared", !mapped),
                capability("mapped-ram", mapped),
                capability("multifd", mapped),
            ],
        }
    }
}

impl Command for MigrateSetCapabilities {
    type Answer = Done;
    const NAME: &'static str = "migrate-set-capabilities";
}

/// Sets the pace of a migration.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct MigrateSetParameters {
    max_bandwidth: u64,
    multifd_channels: u8,
}

impl MigrateSetParameters {
    /// Without a limit of speed (the default one would make a save take seconds), on this many threads.
    pub(crate) fn unlimited(channels: u8) -> Self {
        Self { max_bandwidth: 0, multifd_channels: channels }
    }
}

impl Command for MigrateSetParameters {
    type Answer = Done;
    const NAME: &'static str = "migrate-set-parameters";
}

/// Writes the state out.
#[derive(Debug, Serialize)]
pub(crate) struct Migrate {
    uri: String,
}

impl Migrate {
    /// Into this file.
    pub(crate) fn to(file: &Path) -> Self {
        Self { uri: format!("file:{}", file.display()) }
    }
}

impl Command for Migrate {
    type Answer = Done;
    const NAME: &'static str = "migrate";
}

/// Reads a state in.
#[derive(Debug, Serialize)]
pub(crate) struct MigrateIncoming {
    uri: String,
}

impl MigrateIncoming {
    /// From this file.
    pub(crate) fn from(file: &Path) -> Self {
        Self { uri: format!("file:{}", file.display()) }
    }
}

impl Command for MigrateIncoming {
    type Answer = Done;
    const NAME: &'static str = "migrate-incoming";
}

/// Opens a block node; the description is QEMU's `BlockdevOptions`.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct BlockdevAdd(pub(crate) serde_json::Value);

impl Command for BlockdevAdd {
    type Answer = Done;
    const NAME: &'static str = "blockdev-add";
}

/// Puts an empty node on top of another.
#[derive(Debug, Serialize)]
pub(crate) struct BlockdevSnapshot {
    /// What becomes the backing.
    pub(crate) node: String,
    /// What comes on top.
    pub(crate) overlay: String,
}

impl Command for BlockdevSnapshot {
    type Answer = Done;
    const NAME: &'static str = "blockdev-snapshot";
}

/// Writes the screen to a file.
#[derive(Debug, Serialize)]
pub(crate) struct Screendump<'a> {
    /// Where.
    pub(crate) filename: &'a Path,
    /// How; `ppm` costs a third of `png`.
    pub(crate) format: &'static str,
}

impl Command for Screendump<'_> {
    type Answer = Done;
    const NAME: &'static str = "screendump";
}

/// Presses keys and moves the pointer, all at once.
#[derive(Debug, Serialize)]
pub(crate) struct InputSendEvent {
    /// In order.
    pub(crate) events: Vec<InputEvent>,
}

impl Command for InputSendEvent {
    type Answer = Done;
    const NAME: &'static str = "input-send-event";
}

/// One event of [`InputSendEvent`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", content = "data", rename_all = "lowercase")]
pub(crate) enum InputEvent {
    /// A key.
    Key {
        /// Which.
        key: KeyValue,
        /// Pressed or released.
        down: bool,
    },
    /// A button or a notch of the wheel.
    Btn {
        /// Which, in QEMU's words.
        button: &'static str,
        /// Pressed or released.
        down: bool,
    },
    /// A place on one axis.
    Abs {
        /// `x` or `y`.
        axis: &'static str,
        /// 0 to 32767.
        value: i64,
    },
}

/// A key by QEMU's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", content = "data", rename_all = "lowercase")]
pub(crate) enum KeyValue {
    /// Name.
    Qcode(&'static str),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_the_shape_that_qemu_reads() {
        let json = |value: &dyn erased::Json| value.json();
        assert_eq!(json(&Cont {}), "{}");
        assert_eq!(json(&Migrate::to(Path::new("/a/b"))), r#"{"uri":"file:/a/b"}"#);
        assert_eq!(json(&MigrateSetParameters::unlimited(2)), r#"{"max-bandwidth":0,"multifd-channels":2}"#);
        let input = InputSendEvent {
            events: vec![
                InputEvent::Key { key: KeyValue::Qcode("ret"), down: true },
                InputEvent::Abs { axis: "x", value: 7 },
            ],
        };
        assert_eq!(
            json(&input),
            r#"{"events":[{"type":"key","data":{"key":{"type":"qcode","data":"ret"},"down":true}},{"type":"abs","data":{"axis":"x","value":7}}]}"#
        );
    }

    #[test]
    fn states_that_are_not_in_use_are_read_all_the_same() {
        let status: Status = serde_json::from_str(r#"{"status":"io-error","running":false}"#).expect("parse");
        assert_eq!(status.status, RunState::Other);
        let status: MigrationStatus = serde_json::from_str(r#""pre-switchover""#).expect("parse");
        assert!(!status.is_end());
    }

    mod erased {
        pub(super) trait Json {
            fn json(&self) -> String;
        }
        impl<T: serde::Serialize> Json for T {
            fn json(&self) -> String {
                serde_json::to_string(self).expect("serialise")
            }
        }
    }
}
