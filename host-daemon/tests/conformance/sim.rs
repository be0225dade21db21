//! The simulated hypervisor.

use std::sync::Arc;

use hvkube_guest::sim::{Layout, Memory};
use hvkube_host::hypervisor::sim::{SimConfig, SimHypervisor};
use hvkube_host::hypervisor::{Hypervisor, Run};
use hvkube_host::model::ids::VmId;
use hvkube_host::model::input::{InputEvent, MouseButton};
use hvkube_host::model::screen::{Point, Size};
use hvkube_host::model::template::{Boot, Network, TemplateSpec};
use tempfile::TempDir;

use crate::rig::{Rig, soon};
use crate::session;

const DISPLAY: Size = Size { width: 640, height: 400 };

struct Sim {
    dir: TempDir,
    hv: Option<(Arc<SimHypervisor>, Arc<dyn Hypervisor>)>,
}

impl Sim {
    fn open(&mut self) {
        let hv = Arc::new(SimHypervisor::open(SimConfig::new(self.dir.path())).expect("open"));
        self.hv = Some((Arc::clone(&hv), hv));
    }
}

impl Rig for Sim {
    async fn new() -> Self {
        let mut sim = Self { dir: tempfile::tempdir().expect("dir"), hv: None };
        sim.open();
        sim
    }

    fn hv(&self) -> &Arc<dyn Hypervisor> {
        &self.hv.as_ref().expect("open").1
    }

    fn spec(&self) -> TemplateSpec {
        TemplateSpec {
            disk_path: "/there/is/no/disk".into(),
            disk_format: None,
            boot: Boot::Bios,
            memory_mb: 512,
            cpu_count: 1,
            gpu: false,
            network: Network::User,
            display: DISPLAY,
        }
    }

    fn refused(&self) -> Vec<(TemplateSpec, &'static str)> {
        vec![
            (TemplateSpec { memory_mb: 0, ..self.spec() }, "memory_mb"),
            (TemplateSpec { cpu_count: 0, ..self.spec() }, "cpu_count"),
            (TemplateSpec { display: Size { width: 0, height: 1 }, ..self.spec() }, "display"),
            (TemplateSpec { network: Network::Bridge("br0".into()), ..self.spec() }, "network"),
        ]
    }

    async fn restart(&mut self) {
        self.hv = None;
        self.open();
    }

    async fn kill(&self, vm: &VmId, _: Run) {
        self.hv.as_ref().expect("open").0.control().kill(vm).expect("it runs");
    }

    async fn count(&self, vm: &VmId) -> u64 {
        let session = session::open(&**self.hv(), vm).await;
        let (x, y) = Layout::middle(Layout::new((DISPLAY.width, DISPLAY.height)).button);
        let (at, button) = (Some(Point { x, y }), MouseButton::Left);
        let click = [InputEvent::Click { at, button, count: 1, modifiers: Vec::new() }];
        let outcome = session.input("click", &click, None, soon()).await.expect("clicked");
        assert_eq!((outcome.completed, outcome.failure), (1, None));
        let desktop = session::exec(&session, &["desktop"]).await;
        serde_json::from_str::<Memory>(&desktop).expect("JSON").count.into()
    }

    async fn write(&self, vm: &VmId, word: &str) {
        session::write(&**self.hv(), vm, word).await;
    }

    async fn read(&self, vm: &VmId) -> String {
        session::read(&**self.hv(), vm).await
    }
}

crate::conformance!(Sim);
