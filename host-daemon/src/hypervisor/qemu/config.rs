//! What the backend is told by whoever starts it.

use std::path::{Path, PathBuf};

/// Which accelerator the VMs use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccelChoice {
    /// KVM where it really works, else software emulation.
    #[default]
    Auto,
    /// KVM, or nothing.
    Kvm,
    /// Software emulation.
    Tcg,
}

/// Whether clones map their template's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ForkChoice {
    /// Where QEMU proves to be able to, else each clone reads it in.
    #[default]
    Auto,
    /// Map it, or nothing.
    On,
    /// Read it in.
    Off,
}

/// Configuration of the backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuConfig {
    /// Where templates, disks and saved memory are kept; belongs to one daemon at a time.
    pub data_dir: PathBuf,
    /// Where sockets and logs of running VMs are; at most [`QemuConfig::MAX_RUN_DIR`] bytes long, as socket addresses
    /// are short. Must survive the daemon, as the VMs do.
    pub run_dir: PathBuf,
    /// The `qemu-system-x86_64` to run.
    pub binary: PathBuf,
    /// Its `qemu-img`.
    pub img_binary: PathBuf,
    /// The `qemu-bridge-helper`, for VMs on a bridge.
    pub bridge_helper: PathBuf,
    /// Folders to look for OVMF in.
    pub firmware_dirs: Vec<PathBuf>,
    /// Which accelerator.
    pub accel: AccelChoice,
    /// How clones get their memory.
    pub fork: ForkChoice,
}

impl QemuConfig {
    /// A socket address holds 108 bytes with its end; 17 for the VM's folder and 6 for `/agent` are taken.
    pub const MAX_RUN_DIR: usize = 84;

    /// Programs from `PATH`, everything found out.
    #[must_use]
    pub fn new(data_dir: impl AsRef<Path>, run_dir: impl AsRef<Path>) -> Self {
        Self {
            data_dir: data_dir.as_ref().to_owned(),
            run_dir: run_dir.as_ref().to_owned(),
            binary: "qemu-system-x86_64".into(),
            img_binary: "qemu-img".into(),
            bridge_helper: "/usr/lib/qemu/qemu-bridge-helper".into(),
            firmware_dirs: vec!["/usr/share/OVMF".into(), "/usr/share/edk2/ovmf".into()],
            accel: AccelChoice::Auto,
            fork: ForkChoice::Auto,
        }
    }
}
