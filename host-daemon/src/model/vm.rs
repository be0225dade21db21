//! A VM's states and the legal moves between them, as data.
//!
//! ```text
//!  Provisioning ─┬─► Booting ──► Running ◄──────── Resuming ◄── Saved ◄─┐
//!                ├─► Saved        │  │ ▲                                │
//!                └─► Off          │  │ └── Paused                       │
//!                                 │  ├──► Saving ───────────────────────┤
//!                                 │  ├──► Resetting ─► Running or Saved ┘
//!                                 │  └──► Stopping ──► Off ──► Booting
//!                                 └─ any state ──► Error, Deleting
//! ```
//!
//! Whether a VM is leased, idle or quarantined is a separate fact and no state.

use std::fmt;

/// State of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// Its disk and definition are being made.
    Provisioning,
    /// Started from off, the guest is not up yet.
    Booting,
    /// Running.
    Running,
    /// Its memory is being written.
    Saving,
    /// Its memory is on disk.
    Saved,
    /// From saved to running.
    Resuming,
    /// CPUs stand still, memory is on the host.
    Paused,
    /// On its way back to a checkpoint.
    Resetting,
    /// Shutting down.
    Stopping,
    /// Switched off.
    Off,
    /// Being deleted.
    Deleting,
    /// Something failed; the reason is kept beside the state.
    Error,
}

impl VmState {
    /// All states.
    pub const ALL: [Self; 12] = [
        Self::Provisioning,
        Self::Booting,
        Self::Running,
        Self::Saving,
        Self::Saved,
        Self::Resuming,
        Self::Paused,
        Self::Resetting,
        Self::Stopping,
        Self::Off,
        Self::Deleting,
        Self::Error,
    ];

    /// The states a VM may go to from here. [`VmState::Error`] and [`VmState::Deleting`] are open to all but the deleted.
    #[must_use]
    pub fn next(self) -> &'static [Self] {
        use VmState::{
            Booting, Deleting, Error, Off, Paused, Resetting, Resuming, Running, Saved, Saving, Stopping,
        };
        match self {
            Self::Provisioning => &[Booting, Saved, Off, Error, Deleting],
            Self::Booting => &[Running, Off, Stopping, Resetting, Error, Deleting],
            Self::Running => &[Saving, Paused, Resetting, Stopping, Off, Error, Deleting],
            // A save that fails leaves the VM running or paused, as it was.
            Self::Saving => &[Saved, Running, Paused, Error, Deleting],
            Self::Saved => &[Resuming, Resetting, Error, Deleting],
            // A resume that is given up goes back to where its memory still is.
            Self::Resuming => &[Running, Saved, Resetting, Error, Deleting],
            Self::Paused => &[Running, Saving, Resetting, Stopping, Error, Deleting],
            Self::Resetting => &[Running, Saved, Off, Resuming, Booting, Error, Deleting],
            Self::Stopping => &[Off, Error, Deleting],
            Self::Off => &[Booting, Resetting, Error, Deleting],
            Self::Deleting => &[Error],
            Self::Error => &[Resetting, Deleting, Stopping],
        }
    }

    /// Whether the table has this move.
    #[must_use]
    pub fn may_become(self, to: Self) -> bool {
        self.next().contains(&to)
    }

    /// Whether somebody is at work on it, so that it will leave this state by itself.
    #[must_use]
    pub fn is_transient(self) -> bool {
        matches!(
            self,
            Self::Provisioning
                | Self::Booting
                | Self::Saving
                | Self::Resuming
                | Self::Resetting
                | Self::Stopping
                | Self::Deleting
        )
    }

    /// Whether it has a process, and its memory is on the host.
    #[must_use]
    pub fn occupies_memory(self) -> bool {
        matches!(
            self,
            Self::Booting | Self::Running | Self::Saving | Self::Resuming | Self::Paused | Self::Stopping
        )
    }

    /// As it is stored and shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Provisioning => "provisioning",
            Self::Booting => "booting",
            Self::Running => "running",
            Self::Saving => "saving",
            Self::Saved => "saved",
            Self::Resuming => "resuming",
            Self::Paused => "paused",
            Self::Resetting => "resetting",
            Self::Stopping => "stopping",
            Self::Off => "off",
            Self::Deleting => "deleting",
            Self::Error => "error",
        }
    }

    /// The reverse of [`VmState::as_str`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

impl fmt::Display for VmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_their_own_inverse() {
        for state in VmState::ALL {
            assert_eq!(VmState::parse(state.as_str()), Some(state));
        }
        assert_eq!(VmState::parse("dreaming"), None);
    }

    #[test]
    fn every_transient_state_has_an_end_and_every_state_an_exit() {
        for state in VmState::ALL {
            assert!(!state.may_become(state), "{state} to itself is no move");
            if state.is_transient() && state != VmState::Deleting {
                assert!(state.next().iter().any(|to| !to.is_transient() && *to != VmState::Error), "{state}");
            }
            if state != VmState::Deleting {
                assert!(state.may_become(VmState::Deleting), "{state} can't be deleted");
            }
        }
    }

    #[test]
    fn memory_is_only_written_from_where_it_is() {
        for state in VmState::ALL {
            assert_eq!(
                state.may_become(VmState::Saving),
                matches!(state, VmState::Running | VmState::Paused),
                "{state}"
            );
        }
    }
}
