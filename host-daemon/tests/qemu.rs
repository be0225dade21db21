//! The QEMU backend on real QEMU processes with a tiny real guest.

mod tiny_guest;

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hvkube_host::hypervisor::qemu::{AccelChoice, ForkChoice, QemuConfig, QemuHypervisor};
use hvkube_host::hypervisor::{
    Event, Found, HvError, Hypervisor, Observed, Origin, Rest, Stop, VmDefinition,
};
use hvkube_host::model::ids::{CheckpointId, TemplateId, VmId};
use hvkube_host::model::input::RawInput;
use hvkube_host::model::screen::{Point, Size};
use hvkube_host::model::template::{Boot, CloneMethod, Network, TemplateSpec};
use tempfile::TempDir;
use tiny_guest::{CMDLINE, Shell, tiny_guest};
use uuid::Uuid;

const DISPLAY: Size = Size { width: 800, height: 600 };

/// A backend in folders of its own; whatever QEMU still runs in them at the end is killed.
struct Host {
    hypervisor: Option<Arc<QemuHypervisor>>,
    home: TempDir,
}

impl Host {
    fn config(home: &Path, fork: ForkChoice) -> QemuConfig {
        QemuConfig { accel: AccelChoice::Tcg, fork, ..QemuConfig::new(home.join("data"), home.join("run")) }
    }

    async fn new(fork: ForkChoice) -> Self {
        let home = tempfile::Builder::new().prefix("hvq").tempdir().expect("temporary directory");
        let hypervisor = open(Self::config(home.path(), fork)).await;
        assert_eq!(hypervisor.recover().await.expect("recover nothing"), []);
        Self { hypervisor: Some(hypervisor), home }
    }

    /// A host with a prepared template.
    async fn prepared(fork: ForkChoice, network: Network) -> (Self, TemplateId) {
        let host = Self::new(fork).await;
        let template = TemplateId::new("tiny").expect("id");
        let facts = host.import_template(&template, &spec(network)).await.expect("import");
        assert_eq!((facts.format.as_str(), facts.sha256.len()), ("raw", 64));
        let golden = definition("golden", Origin::Golden(template.clone()));
        assert_eq!(host.define(&golden).await.expect("define golden"), Rest::Off);
        host.start(&golden.id).await.expect("boot golden");
        host.shell(&golden.id)
            .await
            .ok("n=7; echo golden > /mark; echo golden | dd of=/dev/vda conv=fsync")
            .await;
        let method = host.seal_template(&template, &golden.id).await.expect("seal");
        assert_eq!(method, host.capabilities().clone_method);
        let gone = host.observe(&golden.id).await.expect_err("consumed");
        assert!(matches!(gone, HvError::NotFound { kind: "vm", .. }), "{gone}");
        (host, template)
    }

    async fn clone(&self, name: &str, template: &TemplateId) -> VmId {
        let definition = definition(name, Origin::Template(template.clone()));
        assert_eq!(self.define(&definition).await.expect("define"), Rest::Saved);
        definition.id
    }

    async fn shell(&self, vm: &VmId) -> Shell {
        Shell::new(self.open_guest(vm).await.expect("open the guest's port"))
    }

    /// Lets go of the backend as a daemon that is killed would, and starts another on the same folders.
    async fn restart(&mut self, fork: ForkChoice) -> Vec<Found> {
        self.hypervisor = None;
        let config = Self::config(self.home.path(), fork);
        let deadline = Instant::now() + Duration::from_secs(20);
        // Supervisors of the old one may hold it for the length of a step.
        let hypervisor = loop {
            match QemuHypervisor::open(config.clone()).await {
                Ok(hypervisor) => break hypervisor,
                Err(HvError::Unavailable(_)) if Instant::now() < deadline => tokio::task::yield_now().await,
                Err(error) => panic!("open again: {error}"),
            }
        };
        let found = hypervisor.recover().await.expect("recover");
        self.hypervisor = Some(Arc::new(hypervisor));
        found
    }

    fn processes(&self) -> Vec<i32> {
        processes(self.home.path())
    }

    /// Names in the folders that hold what VMs and templates share.
    fn shared(&self) -> (usize, usize) {
        let count = |name| std::fs::read_dir(self.home.path().join("data").join(name)).expect("list").count();
        (count("disks"), count("memory"))
    }
}

impl std::ops::Deref for Host {
    type Target = QemuHypervisor;
    fn deref(&self) -> &QemuHypervisor {
        self.hypervisor.as_ref().expect("open")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(mut events) = self.hypervisor.as_ref().and_then(|hypervisor| hypervisor.events())
        {
            // What QEMU said is the best explanation of a failed test.
            while let Ok(event) = events.try_recv() {
                eprintln!("{event:?}");
            }
        }
        for pid in self.processes() {
            kill(pid);
        }
    }
}

async fn open(config: QemuConfig) -> Arc<QemuHypervisor> {
    match QemuHypervisor::open(config).await {
        Ok(hypervisor) => Arc::new(hypervisor),
        Err(error) => panic!("these tests run real QEMU, which `cargo xtask test` installs: {error}"),
    }
}

/// QEMU processes that have a file of this folder on their command line.
fn processes(home: &Path) -> Vec<i32> {
    let home = home.to_str().expect("UTF-8");
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("list").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        if line.contains("qemu-system") && line.contains(home) {
            all.push(pid);
        }
    }
    all
}

fn kill(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

fn spec(network: Network) -> TemplateSpec {
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
        network,
        display: DISPLAY,
    }
}

fn definition(name: &str, origin: Origin) -> VmDefinition {
    VmDefinition { id: VmId::new(name).expect("id"), uid: Uuid::new_v4(), origin }
}

fn checkpoint(name: &str) -> CheckpointId {
    CheckpointId::new(name).expect("id")
}

/// The life of clones, the same however they get their memory.
async fn life(fork: ForkChoice, method: CloneMethod) {
    let (host, template) = Host::prepared(fork, Network::User).await;
    assert_eq!(host.capabilities().clone_method, method);
    assert_eq!(host.templates().await.expect("templates"), [template.clone()]);
    let vm = host.clone("vm-1", &template).await;
    assert_eq!(host.observe(&vm).await.expect("observe"), Observed::Saved);
    assert_eq!(host.resident_bytes(&vm).await.expect("resident"), 0);

    // The golden guest's memory and disk go on in the clone.
    let run = host.resume(&vm).await.expect("resume");
    assert_eq!(host.observe(&vm).await.expect("observe"), Observed::Running(run));
    assert_eq!(host.resume(&vm).await.expect("resume again"), run, "idempotent");
    assert!(host.resident_bytes(&vm).await.expect("resident") > 0);
    let mut shell = host.shell(&vm).await;
    assert_eq!(shell.ok("n=$((n+1)); echo $n; cat /mark; head -c 6 /dev/vda").await, "8\ngolden\ngolden");
    shell.ok("echo changed > /mark; echo change | dd of=/dev/vda conv=fsync").await;
    drop(shell);

    // Saved with its state kept, in a new process later.
    host.save(&vm).await.expect("save");
    host.save(&vm).await.expect("save again");
    assert_eq!(host.observe(&vm).await.expect("observe"), Observed::Saved);
    assert_eq!(host.processes(), [0; 0]);
    let own = host.files(&vm).await.expect("files").saved_state.expect("its own memory");
    assert_eq!(own.metadata().expect("file").permissions().mode() & 0o777, 0o400);
    let next = host.resume(&vm).await.expect("resume");
    assert!(next.number > run.number && next.pid != run.pid);
    let mut shell = host.shell(&vm).await;
    assert_eq!(shell.ok("n=$((n+1)); echo $n; cat /mark; head -c 6 /dev/vda").await, "9\nchanged\nchange");
    drop(shell);
    assert!(!own.exists(), "a memory the guest has run on from is of no use");

    // Paused and on.
    host.pause(&vm).await.expect("pause");
    host.pause(&vm).await.expect("pause again");
    assert_eq!(host.observe(&vm).await.expect("observe"), Observed::Paused(next));
    assert_eq!(host.resume(&vm).await.expect("resume"), next);

    // Reset throws all of it away.
    assert_eq!(host.reset(&vm).await.expect("reset"), Rest::Saved);
    assert_eq!(host.processes(), [0; 0]);
    host.resume(&vm).await.expect("resume");
    let mut shell = host.shell(&vm).await;
    assert_eq!(shell.ok("n=$((n+1)); echo $n; cat /mark; head -c 6 /dev/vda").await, "8\ngolden\ngolden");
    drop(shell);

    // Off, and booted from its own disk: without the memory, but with the prepared disk.
    host.stop(&vm, Stop::Graceful(Duration::from_secs(60))).await.expect("stop");
    host.stop(&vm, Stop::Hard).await.expect("stop again");
    assert_eq!(host.observe(&vm).await.expect("observe"), Observed::Off);
    let refused = host.resume(&vm).await.expect_err("nothing to resume").to_string();
    assert_eq!(refused, "can't resume vm vm-1, it is off");
    host.start(&vm).await.expect("start");
    let mut shell = host.shell(&vm).await;
    assert_eq!(
        shell.ok("n=$((n+1)); echo $n; ls /mark 2>/dev/null || head -c 6 /dev/vda").await,
        "1\ngolden"
    );
    drop(shell);

    host.delete(&vm).await.expect("delete");
    host.delete(&vm).await.expect("delete again");
    assert_eq!(host.processes(), [0; 0]);
    assert_eq!(host.shared(), (1, 1), "the template's own");
    host.delete_template(&template).await.expect("delete template");
    assert_eq!(host.shared(), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_live_on_a_shared_memory() {
    life(ForkChoice::On, CloneMethod::Fork).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_live_on_a_memory_read_in() {
    life(ForkChoice::Off, CloneMethod::Restore).await;
}
