//! QEMU, with real VMs that run a tiny guest; it has no agent, but a shell on the agent's port.

use std::sync::Arc;

use hvkube_host::hypervisor::qemu::{AccelChoice, QemuConfig, QemuHypervisor};
use hvkube_host::hypervisor::{HvError, Hypervisor, Run};
use hvkube_host::model::ids::VmId;
use hvkube_host::model::screen::Size;
use hvkube_host::model::template::{Boot, Network, TemplateSpec};
use tempfile::TempDir;

use crate::rig::{Rig, kill, kill_all, soon};
use crate::tiny_guest::{CMDLINE, Shell, tiny_guest};

struct Qemu {
    home: TempDir,
    hv: Option<Arc<dyn Hypervisor>>,
}

impl Qemu {
    async fn open(&mut self) {
        let home = self.home.path();
        let config =
            QemuConfig { accel: AccelChoice::Tcg, ..QemuConfig::new(home.join("data"), home.join("run")) };
        let deadline = soon();
        // Supervisors of an older one may hold it for the length of a step.
        let hv = loop {
            match QemuHypervisor::open(config.clone()).await {
                Ok(hv) => break hv,
                Err(HvError::Unavailable(_)) if tokio::time::Instant::now() < deadline && self.was_open() => {
                    tokio::task::yield_now().await;
                }
                Err(error) => {
                    panic!("these checks run real QEMU, which `cargo xtask test` installs: {error}")
                }
            }
        };
        self.hv = Some(Arc::new(hv));
    }

    fn was_open(&self) -> bool {
        self.home.path().join("data/instance").exists()
    }

    async fn shell(&self, vm: &VmId) -> Shell {
        Shell::new(self.hv().open_guest(vm).await.expect("open the guest's port"))
    }
}

impl Rig for Qemu {
    async fn new() -> Self {
        let home = tempfile::Builder::new().prefix("hvc").tempdir().expect("dir");
        let mut qemu = Self { home, hv: None };
        qemu.open().await;
        qemu
    }

    fn hv(&self) -> &Arc<dyn Hypervisor> {
        self.hv.as_ref().expect("open")
    }

    fn spec(&self) -> TemplateSpec {
        let guest = tiny_guest();
        TemplateSpec {
            disk_path: guest.disk.clone(),
            disk_format: None,
            boot: Boot::Kernel {
                kernel: guest.kernel.clone(),
                initrd: Some(guest.initrd.clone()),
                cmdline: CMDLINE.to_owned(),
            },
            memory_mb: 128,
            cpu_count: 1,
            gpu: false,
            network: Network::None,
            display: Size { width: 640, height: 400 },
        }
    }

    fn refused(&self) -> Vec<(TemplateSpec, &'static str)> {
        vec![
            (TemplateSpec { disk_path: "/nonexistent".into(), ..self.spec() }, "disk_path"),
            (TemplateSpec { memory_mb: 1 << 40, ..self.spec() }, "memory_mb"),
            (TemplateSpec { cpu_count: 0, ..self.spec() }, "cpu_count"),
            (TemplateSpec { gpu: true, ..self.spec() }, "gpu_enabled"),
        ]
    }

    async fn restart(&mut self) {
        self.hv = None;
        self.open().await;
    }

    async fn kill(&self, _: &VmId, run: Run) {
        kill(run);
    }

    async fn count(&self, vm: &VmId) -> u64 {
        self.shell(vm).await.ok("n=$((n+1)); echo $n").await.parse().expect("a number")
    }

    async fn write(&self, vm: &VmId, word: &str) {
        self.shell(vm).await.ok(&format!("printf '%-16s' {word} | dd of=/dev/vda conv=fsync")).await;
    }

    async fn read(&self, vm: &VmId) -> String {
        self.shell(vm).await.ok("head -c 16 /dev/vda").await
    }
}

/// Ends what a failed check has left running.
impl Drop for Qemu {
    fn drop(&mut self) {
        self.hv = None;
        kill_all(self.home.path());
    }
}

crate::conformance!(Qemu);
