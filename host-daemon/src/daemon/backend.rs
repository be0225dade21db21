//! The hypervisor that the settings name.

use std::sync::Arc;

use crate::config::{Config, HypervisorKind};
use crate::hypervisor::qemu::{QemuConfig, QemuHypervisor};
use crate::hypervisor::{HvError, HvResult, Hypervisor};

pub(super) async fn start(config: &Config) -> HvResult<Arc<dyn Hypervisor>> {
    match config.hypervisor {
        HypervisorKind::Qemu => {
            let qemu = QemuConfig {
                binary: config.qemu.binary.clone(),
                img_binary: config.qemu.img_binary.clone(),
                bridge_helper: config.qemu.bridge_helper.clone(),
                firmware_dirs: config.qemu.firmware_dirs.clone(),
                accel: config.qemu.accel,
                fork: config.qemu.fork,
                ..QemuConfig::new(config.state_dir.join("qemu"), &config.run_dir)
            };
            Ok(Arc::new(QemuHypervisor::open(qemu).await?))
        }
        HypervisorKind::Process => Err(HvError::Unavailable("not there yet".into())),
    }
}
