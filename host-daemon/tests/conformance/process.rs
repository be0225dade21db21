//! The process backend, with real X servers and the real agent.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use hvkube_host::hypervisor::process::{Process, ProcessConfig};
use hvkube_host::hypervisor::{Hypervisor, Run};
use hvkube_host::model::ids::VmId;
use hvkube_host::model::screen::Size;
use hvkube_host::model::template::{Boot, Network, TemplateSpec};
use tempfile::TempDir;

use crate::rig::{GOLDEN, Rig};
use crate::session;

/// The agent beside the tests; built when it is not there.
fn agent() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let find = || {
        let agent = Path::new(env!("CARGO_BIN_EXE_hvkubed")).with_file_name("hvkube-guest");
        if !agent.is_file() {
            let target = agent.parent().and_then(Path::parent).expect("target folder");
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let mut build = Command::new(cargo);
            build.args(["build", "--package", "hvkube-guest", "--target-dir"]).arg(target);
            let built = build.current_dir(env!("CARGO_MANIFEST_DIR")).status();
            assert!(built.is_ok_and(|status| status.success()), "cannot build the agent");
        }
        agent
    };
    BUILT.get_or_init(find).clone()
}

struct Desktops {
    dir: TempDir,
    hv: Option<Arc<dyn Hypervisor>>,
}

impl Desktops {
    fn open(&mut self) {
        let config = ProcessConfig::new(self.dir.path().join("state"), agent());
        self.hv = Some(Arc::new(Process::new(config).expect("a backend")));
    }
}

impl Rig for Desktops {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let skeleton = dir.path().join("skeleton");
        std::fs::create_dir(&skeleton).expect("made");
        std::fs::write(skeleton.join("word"), GOLDEN).expect("written");
        let mut desktops = Self { dir, hv: None };
        desktops.open();
        desktops
    }

    fn hv(&self) -> &Arc<dyn Hypervisor> {
        self.hv.as_ref().expect("open")
    }

    fn spec(&self) -> TemplateSpec {
        TemplateSpec {
            disk_path: self.dir.path().join("skeleton"),
            disk_format: None,
            boot: Boot::Bios,
            memory_mb: 512,
            cpu_count: 1,
            gpu: false,
            network: Network::None,
            display: Size { width: 640, height: 400 },
        }
    }

    fn refused(&self) -> Vec<(TemplateSpec, &'static str)> {
        vec![
            (TemplateSpec { disk_path: "/nonexistent".into(), ..self.spec() }, "disk_path"),
            (TemplateSpec { gpu: true, ..self.spec() }, "gpu"),
            (TemplateSpec { network: Network::User, ..self.spec() }, "network"),
        ]
    }

    async fn restart(&mut self) {
        self.hv = None;
        self.open();
    }

    async fn kill(&self, _: &VmId, run: Run) {
        super::rig::kill(run);
    }

    async fn count(&self, vm: &VmId) -> u64 {
        panic!("{vm} is of a backend that keeps no memory")
    }

    async fn write(&self, vm: &VmId, word: &str) {
        session::write(&**self.hv(), vm, word).await;
    }

    async fn read(&self, vm: &VmId) -> String {
        session::read(&**self.hv(), vm).await
    }
}

/// Ends what a failed check has left running: every process that has a file of ours in its environment or arguments.
impl Drop for Desktops {
    fn drop(&mut self) {
        self.hv = None;
        super::rig::kill_all(self.dir.path());
    }
}

crate::conformance!(Desktops);
