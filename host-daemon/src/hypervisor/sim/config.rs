//! What a simulation is told: how long things take and what goes wrong.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Settings of the simulated hypervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimConfig {
    /// Directory for the journal; made if it is not there.
    pub dir: PathBuf,
    /// How long calls and boots take.
    pub profile: Profile,
    /// Scales the profile's times.
    pub time_factor: TimeFactor,
    /// Decides which calls are hit by faults, and where in their ranges times lie.
    pub seed: u64,
    /// What goes wrong by itself, and how often.
    pub faults: Vec<FaultRate>,
}

impl SimConfig {
    /// Instant and without faults.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            profile: Profile::Instant,
            time_factor: TimeFactor::ONE,
            seed: 0,
            faults: Vec::new(),
        }
    }
}

/// How long calls and boots take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// No time at all.
    Instant,
    /// As a desktop on Hyper-V: 30 to 60 s for a boot, 2 to 5 s for a resume; the other times are estimates between those.
    Hyperv,
}

/// A call, or a part of one, that takes its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    /// See [`Hypervisor::import_template`](crate::hypervisor::Hypervisor::import_template).
    Import,
    /// See [`Hypervisor::seal_template`](crate::hypervisor::Hypervisor::seal_template).
    Seal,
    /// See [`Hypervisor::define`](crate::hypervisor::Hypervisor::define).
    Define,
    /// See [`Hypervisor::start`](crate::hypervisor::Hypervisor::start).
    Start,
    /// From the start of the CPUs until the agent answers.
    Boot,
    /// See [`Hypervisor::resume`](crate::hypervisor::Hypervisor::resume).
    Resume,
    /// From a resume until the agent answers.
    Wake,
    /// See [`Hypervisor::save`](crate::hypervisor::Hypervisor::save).
    Save,
    /// See [`Hypervisor::pause`](crate::hypervisor::Hypervisor::pause).
    Pause,
    /// See [`Hypervisor::stop`](crate::hypervisor::Hypervisor::stop), switched off.
    Stop,
    /// The same, the guest being asked; and a shutdown that the guest itself began.
    ShutDown,
    /// See [`Hypervisor::reset`](crate::hypervisor::Hypervisor::reset).
    Reset,
    /// See [`Hypervisor::delete`](crate::hypervisor::Hypervisor::delete).
    Delete,
    /// See [`Hypervisor::create_checkpoint`](crate::hypervisor::Hypervisor::create_checkpoint).
    CreateCheckpoint,
    /// See [`Hypervisor::restore_checkpoint`](crate::hypervisor::Hypervisor::restore_checkpoint).
    RestoreCheckpoint,
    /// See [`Hypervisor::delete_checkpoint`](crate::hypervisor::Hypervisor::delete_checkpoint).
    DeleteCheckpoint,
    /// See [`Hypervisor::fork`](crate::hypervisor::Hypervisor::fork).
    Fork,
}

impl Call {
    /// What is written to or read from the disk, and suffers when that is slow.
    pub(super) fn needs_disk(self) -> bool {
        !matches!(self, Self::Boot | Self::Wake | Self::Pause | Self::Stop | Self::ShutDown)
    }
}

impl Profile {
    /// Shortest and longest time in milliseconds.
    pub(super) fn range(self, call: Call) -> RangeInclusive<u64> {
        match (self, call) {
            (Self::Instant, _) => 0..=0,
            (Self::Hyperv, Call::Boot) => 30_000..=60_000,
            (Self::Hyperv, Call::Resume | Call::Fork) => 2_000..=5_000,
            (Self::Hyperv, Call::Save | Call::Seal) => 2_000..=6_000,
            (Self::Hyperv, Call::Start | Call::Reset | Call::RestoreCheckpoint) => 1_000..=3_000,
            (Self::Hyperv, Call::CreateCheckpoint) => 1_500..=4_000,
            (Self::Hyperv, Call::ShutDown) => 3_000..=8_000,
            (Self::Hyperv, Call::Stop | Call::DeleteCheckpoint) => 500..=1_500,
            (Self::Hyperv, Call::Define | Call::Delete | Call::Import) => 300..=1_000,
            (Self::Hyperv, Call::Wake) => 100..=400,
            (Self::Hyperv, Call::Pause) => 50..=150,
        }
    }
}

/// A factor of 0 to 100, to a thousandth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct TimeFactor(u32);

impl TimeFactor {
    /// As long as the profile says.
    pub const ONE: Self = Self(1000);

    pub(super) fn scale(self, time: Duration) -> Duration {
        time * self.0 / 1000
    }
}

impl TryFrom<f64> for TimeFactor {
    type Error = String;

    fn try_from(factor: f64) -> Result<Self, String> {
        thousandths(factor, 100.0).map(Self).ok_or_else(|| format!("{factor} is not between 0 and 100"))
    }
}

impl From<TimeFactor> for f64 {
    fn from(factor: TimeFactor) -> Self {
        Self::from(factor.0) / 1000.0
    }
}

impl fmt::Display for TimeFactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", f64::from(*self))
    }
}

fn thousandths(value: f64, most: f64) -> Option<u32> {
    if !(0.0..=most).contains(&value) {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within 0 and 100,000")]
    let rounded = (value * 1000.0).round() as u32;
    Some(rounded)
}

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// A VM's process ends while it starts; the VM stays off.
    StartFails,
    /// A saved memory can't be read back.
    SaveCorrupts,
    /// After a resume the guest does not answer.
    GuestHangs,
    /// After a resume the guest has another address.
    AddressChanges,
    /// The process of a VM that runs ends by itself.
    VmDies,
    /// A VM that runs is gone, with all its files.
    VmVanishes,
    /// A start or a resume finds no memory on the host.
    OutOfMemory,
    /// The disk takes seconds for what it does in no time otherwise.
    SlowDisk,
}

impl Fault {
    /// All of them, by name.
    pub const ALL: [(&'static str, Self); 8] = [
        ("start_fails", Self::StartFails),
        ("save_corrupts", Self::SaveCorrupts),
        ("guest_hangs", Self::GuestHangs),
        ("address_changes", Self::AddressChanges),
        ("vm_dies", Self::VmDies),
        ("vm_vanishes", Self::VmVanishes),
        ("out_of_memory", Self::OutOfMemory),
        ("slow_disk", Self::SlowDisk),
    ];

    /// As it is written in settings.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, fault)| *fault == self).map_or("", |(name, _)| name)
    }
}

/// How often a fault hits what it can hit; written `start_fails=0.05`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FaultRate {
    /// Which.
    pub fault: Fault,
    /// Of a thousand occasions.
    per_mille: u32,
}

impl FaultRate {
    /// A rate between 0 and 1, to a thousandth; none for any other.
    #[must_use]
    pub fn new(fault: Fault, rate: f64) -> Option<Self> {
        thousandths(rate, 1.0).map(|per_mille| Self { fault, per_mille })
    }

    /// Of a thousand occasions.
    #[must_use]
    pub fn per_mille(self) -> u32 {
        self.per_mille
    }
}

impl FromStr for FaultRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = |name: &str| Fault::ALL.iter().find(|(known, _)| *known == name).map(|(_, fault)| *fault);
        let (name, rate) = text.split_once('=').unwrap_or((text, ""));
        let fault = named(name.trim()).ok_or_else(|| {
            format!("{name:?} is no fault; there are {}", Fault::ALL.map(|(name, _)| name).join(", "))
        })?;
        let rate = rate.trim().parse().ok().and_then(|rate| Self::new(fault, rate));
        rate.ok_or_else(|| format!("{text:?} has no rate between 0 and 1; write it like {name}=0.05"))
    }
}

impl TryFrom<String> for FaultRate {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<FaultRate> for String {
    fn from(rate: FaultRate) -> Self {
        rate.to_string()
    }
}

impl fmt::Display for FaultRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.fault.name(), f64::from(self.per_mille) / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_written_by_people() {
        let rate: FaultRate = " start_fails = 0.05".parse().expect("legal");
        assert_eq!(
            (rate.fault, rate.per_mille(), rate.to_string()),
            (Fault::StartFails, 50, "start_fails=0.05".into())
        );
        for (text, why) in [
            ("start_fails", "has no rate"),
            ("start_fails=2", "has no rate"),
            ("start_fails=NaN", "has no rate"),
            ("fire=1", "there are start_fails, save_corrupts"),
        ] {
            let error = text.parse::<FaultRate>().expect_err("refused");
            assert!(error.contains(why), "{error}");
        }
        for factor in [-1.0, 101.0, f64::NAN, f64::INFINITY] {
            TimeFactor::try_from(factor).expect_err("refused");
        }
        assert_eq!(TimeFactor::try_from(0.5).expect("legal").scale(Duration::from_secs(3)).as_millis(), 1500);
    }
}
