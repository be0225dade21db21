//! A backend with hands inside its guests.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hvkube_host::hypervisor::{Hypervisor, Observed, Origin, Rest, Run, VmDefinition};
use hvkube_host::model::ids::{CheckpointId, TemplateId, VmId};
use hvkube_host::model::template::{CloneMethod, TemplateSpec};
use tokio::time::Instant;
use uuid::Uuid;

/// What is on the disk of a prepared template.
pub(crate) const GOLDEN: &str = "golden";

/// A backend in a place of its own, and what the checks need to know of its guests.
pub(crate) trait Rig: Sized {
    /// Nothing exists in it.
    async fn new() -> Self;

    /// The backend.
    fn hv(&self) -> &Arc<dyn Hypervisor>;

    /// A template that it can make. Where clones boot from the golden disk itself, that has [`GOLDEN`] on it.
    fn spec(&self) -> TemplateSpec;

    /// Templates that it must refuse, and the fields to be named.
    fn refused(&self) -> Vec<(TemplateSpec, &'static str)>;

    /// The daemon is killed, and another one takes its place; `recover` has not been called yet.
    async fn restart(&mut self);

    /// Kills the process of a VM that runs.
    async fn kill(&self, vm: &VmId, run: Run);

    /// Adds one to a number in the guest's memory, which is 0 after its boot, and gives it. Not asked where a backend keeps
    /// no memory.
    async fn count(&self, vm: &VmId) -> u64;

    /// Writes a word to the guest's disk.
    async fn write(&self, vm: &VmId, word: &str);

    /// The word on the guest's disk.
    async fn read(&self, vm: &VmId) -> String;
}

/// Long enough for a guest to boot on a loaded machine under emulation.
pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(90)
}

pub(crate) fn vm_id(name: &str) -> VmId {
    VmId::new(name).expect("id")
}

pub(crate) fn checkpoint_id(name: &str) -> CheckpointId {
    CheckpointId::new(name).expect("id")
}

pub(crate) fn template_id(name: &str) -> TemplateId {
    TemplateId::new(name).expect("id")
}

pub(crate) fn golden(name: &str, template: &TemplateId) -> VmDefinition {
    VmDefinition { id: vm_id(name), uid: Uuid::new_v4(), origin: Origin::Golden(template.clone()) }
}

pub(crate) fn clone_of(name: &str, template: &TemplateId) -> VmDefinition {
    VmDefinition { id: vm_id(name), uid: Uuid::new_v4(), origin: Origin::Template(template.clone()) }
}

/// A backend with a template that is ready. Its number is 1, and its disk has [`GOLDEN`] on it.
pub(crate) async fn prepared<R: Rig>() -> (R, TemplateId) {
    let rig = R::new().await;
    assert_eq!(rig.hv().recover().await.expect("recover nothing"), []);
    let template = template_id("desk");
    rig.hv().import_template(&template, &rig.spec()).await.expect("import");
    let builder = golden("builder", &template);
    assert_eq!(rig.hv().define(&builder).await.expect("define"), Rest::Off, "a golden disk is booted");
    rig.hv().start(&builder.id).await.expect("boot");
    let method = rig.hv().capabilities().clone_method;
    if method != CloneMethod::Boot {
        rig.write(&builder.id, GOLDEN).await;
        assert_eq!(rig.count(&builder.id).await, 1);
    }
    assert_eq!(rig.hv().seal_template(&template, &builder.id).await.expect("seal"), method);
    (rig, template)
}

/// Makes a VM of a template that is ready.
pub(crate) async fn make<R: Rig>(rig: &R, name: &str, template: &TemplateId) -> VmId {
    let definition = clone_of(name, template);
    assert_eq!(rig.hv().define(&definition).await.expect("define"), at_rest(rig));
    definition.id
}

/// Where VMs of a template that is ready come to rest.
pub(crate) fn at_rest<R: Rig>(rig: &R) -> Rest {
    if rig.hv().capabilities().save { Rest::Saved } else { Rest::Off }
}

pub(crate) fn resting(rest: Rest) -> Observed {
    match rest {
        Rest::Saved => Observed::Saved,
        Rest::Off => Observed::Off,
    }
}

/// Has a VM at rest run.
pub(crate) async fn run<R: Rig>(rig: &R, vm: &VmId) -> Run {
    match rig.hv().observe(vm).await.expect("observe") {
        Observed::Saved | Observed::Paused(_) => rig.hv().resume(vm).await.expect("resume"),
        _ => rig.hv().start(vm).await.expect("start"),
    }
}

pub(crate) async fn observe<R: Rig>(rig: &R, vm: &VmId) -> Observed {
    rig.hv().observe(vm).await.expect("observe")
}

/// Kills a VM's process.
pub(crate) fn kill(run: Run) {
    let pid = i32::try_from(run.pid).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("ours");
}

/// Kills every process that names this folder in its arguments or environment; the folder is a check's own.
pub(crate) fn kill_all(folder: &Path) {
    let folder = folder.to_str().expect("UTF-8");
    for entry in std::fs::read_dir("/proc").expect("list").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let names = |file| {
            let text = std::fs::read(entry.path().join(file)).unwrap_or_default();
            String::from_utf8_lossy(&text).contains(folder)
        };
        if (names("cmdline") || names("environ"))
            && let Some(pid) = rustix::process::Pid::from_raw(pid)
            && pid != rustix::process::getpid()
        {
            let _gone_already = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}
