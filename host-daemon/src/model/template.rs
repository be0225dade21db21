//! Golden images as the domain sees them.

use std::path::PathBuf;

use crate::model::screen::Size;

/// How a template's VMs are built; complete and checked for shape, not yet against a host.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TemplateSpec {
    /// Golden disk; never written.
    pub disk_path: PathBuf,
    /// `qcow2`, `raw`, `vhdx`; absent: found out.
    pub disk_format: Option<String>,
    /// How the disk is booted.
    pub boot: Boot,
    /// Memory in MiB.
    pub memory_mb: u64,
    /// Virtual CPUs.
    pub cpu_count: u32,
    /// A share of a GPU.
    pub gpu: bool,
    /// Network of the VMs.
    pub network: Network,
    /// Size of the screen.
    pub display: Size,
}

/// How a disk is booted.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Boot {
    /// The hypervisor loads the kernel itself.
    Kernel {
        /// Kernel image.
        kernel: PathBuf,
        /// Initial RAM disk.
        initrd: Option<PathBuf>,
        /// Command line.
        cmdline: String,
    },
    /// Legacy BIOS.
    Bios,
    /// UEFI.
    Uefi,
}

/// Ways to a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// No network device.
    None,
    /// A network of its own with a way out, but none to the host's loopback.
    User,
    /// A port on a bridge.
    Bridge,
}

/// Network of a template's VMs.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// No network device.
    None,
    /// See [`NetworkMode::User`].
    User,
    /// A port on the named bridge of the host.
    Bridge(String),
}

impl Network {
    /// Its kind.
    #[must_use]
    pub fn mode(&self) -> NetworkMode {
        match self {
            Self::None => NetworkMode::None,
            Self::User => NetworkMode::User,
            Self::Bridge(_) => NetworkMode::Bridge,
        }
    }
}

/// How a clone gets its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloneMethod {
    /// Copy-on-write of the template's memory file.
    Fork,
    /// The saved memory is read in at resume.
    Restore,
    /// None: each clone boots.
    Boot,
}
