//! What people see of each resource.

use hvkube_proto::google::longrunning::{Operation, operation};
use hvkube_sdk::template_progress;
use hvkube_sdk::v1::{
    BackupStoreMetadata, BackupStoreResponse, Checkpoint, Event, EventKind, Host, Lease, LeaseState,
    NetworkMode, Pool, Secret, Template, TemplateState, Vm, VmAvailability, VmState, Window, WindowArea,
};
use prost::Message as _;

use crate::output::human::{age, bytes, enum_name, mib, proto_duration, short, some, time, until, yes};
use crate::output::{Column, Level, Resource, Tone};

/// `"HEAD" Level |item| value` for each column.
macro_rules! columns {
    ($($head:literal $level:ident $value:expr;)*) => {
        const { &[$(Column { head: $head, level: Level::$level, value: $value }),*] }
    };
}

impl Resource for Vm {
    const MESSAGE: &'static str = "hvkube.v1.Vm";
    const PLURAL: &'static str = "vms";

    fn name(&self) -> &str {
        &self.name
    }

    fn columns() -> &'static [Column<Self>] {
        columns! {
            "NAME" Table |vm| short(&vm.name);
            "STATE" Table |vm| enum_name(vm.state().as_str_name());
            "USE" Table |vm| enum_name(vm.availability().as_str_name());
            "POOL" Table |vm| short(&vm.pool);
            "LEASE" Table |vm| short(&vm.lease);
            "ADDRESS" Table |vm| vm.ip_address.clone();
            "AGE" Table |vm| age(vm.create_time.as_ref());
            "GUEST" Wide |vm| guest(vm);
            "TEMPLATE" Wide |vm| short(&vm.template);
            "CPUS" Wide |vm| some(vm.cpu_count);
            "MEMORY" Wide |vm| mib(vm.memory_mb);
            "RESIDENT" Wide |vm| bytes(vm.resident_bytes);
            "RESUMED" Wide |vm| age(vm.last_resumed_at.as_ref());
            "REASON" Wide |vm| vm.state_reason.clone();
            "SINCE" Detail |vm| time(vm.state_time.as_ref());
            "FORKED FROM" Detail |vm| short(&vm.forked_from);
            "AGENT" Detail |vm| short(&vm.current_agent);
            "RDP PORT" Detail |vm| some(vm.rdp_port);
            "GPU" Detail |vm| yes(vm.gpu_enabled);
            "PROCESS" Detail |vm| some(vm.process_id);
            "DISK" Detail |vm| vm.disk_path.clone();
            "SAVED STATE" Detail |vm| vm.saved_state_path.clone();
            "GUEST LOAD" Detail |vm| vm.guest.as_ref().filter(|g| g.connected).map(|g| format!("{:.2}", g.load1)).unwrap_or_default();
            "CREATED" Detail |vm| time(vm.create_time.as_ref());
            "UID" Detail |vm| vm.uid.clone();
        }
    }

    fn tone(&self) -> Tone {
        match self.state() {
            VmState::Error => Tone::Bad,
            _ if self.availability() == VmAvailability::Quarantined => Tone::Bad,
            VmState::Running => Tone::Good,
            VmState::Saved | VmState::Off | VmState::Paused | VmState::Unspecified => Tone::Plain,
            _ => Tone::Busy,
        }
    }
}

fn guest(vm: &Vm) -> String {
    match &vm.guest {
        Some(guest) if guest.connected && guest.os.is_empty() => "connected".to_owned(),
        Some(guest) if guest.connected => guest.os.clone(),
        Some(_) => "away".to_owned(),
        None => String::new(),
    }
}

impl Resource for Secret {
    const MESSAGE: &'static str = "hvkube.v1.Secret";
    const PLURAL: &'static str = "secrets";

    fn name(&self) -> &str {
        &self.name
    }

    fn columns() -> &'static [Column<Self>] {
        columns! {
            "NAME" Table |secret| short(&secret.name);
            "POOLS" Table |secret| secret.allowed_pools.iter().map(|pool| short(pool)).collect::<Vec<_>>().join(", ");
            "CALLERS" Table |secret| secret.allowed_callers.join(", ");
            "AGE" Table |secret| age(secret.create_time.as_ref());
            "DESCRIPTION" Table |secret| secret.description.clone();
            "CREATED" Detail |secret| time(secret.create_time.as_ref());
            "UID" Detail |secret| secret.uid.clone();
        }
    }
}

impl Resource for Window {
    const MESSAGE: &'static str = "hvkube.v1.Window";
    const PLURAL: &'static str = "windows";

    fn name(&self) -> &str {
        &self.title
    }

    fn handle(&self) -> String {
        self.id.to_string()
    }

    fn columns() -> &'static [Column<Self>] {
        columns! {
            "ID" Table |window| window.id.to_string();
            "APP" Table |window| window.app.clone();
            "X" Table |window| window.bounds.map(|at| at.x.to_string()).unwrap_or_default();
            "Y" Table |window| window.bounds.map(|at| at.y.to_string()).unwrap_or_default();
            "SIZE" Table |window| sides(window.bounds);
            "FOCUS" Table |window| if window.minimised { "minimised".to_owned() } else { yes(window.focused) };
            "TITLE" Table |window| window.title.clone();
            "PID" Wide |window| some(window.pid);
            "CONTENT" Wide |window| window.content.map(|at| format!("{},{} {}", at.x, at.y, sides(Some(at)))).unwrap_or_default();
        }
    }
}

fn sides(area: Option<WindowArea>) -> String {
    area.map(|area| format!("{}x{}", area.width, area.height)).unwrap_or_default()
}

impl Resource for Pool {
    const MESSAGE: &'static str = "hvkube.v1.Pool";
    const PLURAL: &'static str = "pools";

    fn name(&self) -> &str {
        &self.name
    }

    fn columns() -> &'static [Column<Self>] {
        columns! {
            "NAME" Table |pool| short(&pool.name);
            "TEMPLATE" Table |pool| short(&pool.template);
            "COUNT" Table |pool| format!("{}/{}", pool.status.as_ref().map_or(0, |s| s.total), pool.desired_count);
            "WARM" Table |pool| warm(pool);
            "HOT" Table |pool| hot(pool);
            "LEASED" Table |pool| pool.status.as_ref().map_or(0, |s| s.leased).to_string();
            "MOVING" Table |pool| some(pool.status.as_ref().map_or(0, |s| s.in_transition));
            "WAITING" Table |pool| some(pool.status.as_ref().map_or(0, |s| s.waiting));
            "AGE" Table |pool| age(pool.create_time.as_ref());
            "BROKEN" Wide |pool| some(pool.status.as_ref().map_or(0, |s| s.error.saturating_add(s.quarantined)));
            "PER HOST" Wide |pool| some(pool.max_per_host);
            "TTL" Wide |pool| proto_duration(pool.default_lease_ttl);
            "SUSPENDED" Wide |pool| some(pool.status.as_ref().map_or(0, |s| s.suspended));
            "OLD" Wide |pool| some(pool.status.as_ref().map_or(0, |s| s.outdated));
            "PAUSED" Wide |pool| yes(pool.paused);
            "REASON" Wide |pool| pool.status.as_ref().map(|s| s.reason.clone()).unwrap_or_default();
            "MISSING" Detail |pool| pool.status.iter().flat_map(|s| &s.shortfalls).map(|one| one.detail.clone()).collect::<Vec<_>>().join("\n");
            "IDLE" Detail |pool| idle(pool);
            "ON RELEASE" Detail |pool| enum_name(pool.release_policy().as_str_name());
            "MOST USES" Detail |pool| some(pool.max_uses);
            "OLDEST" Detail |pool| proto_duration(pool.max_age);
            "SURGE" Detail |pool| pool.surge.map(|surge| surge.to_string()).unwrap_or_default();
            "MAY BE MISSING" Detail |pool| some(pool.max_unavailable);
            "LEASES PER TOKEN" Detail |pool| some(pool.max_leases_per_caller);
            "PREEMPTION" Detail |pool| yes(pool.preemption);
            "LABELS" Detail |pool| pool.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join("\n");
            "LONGEST TTL" Detail |pool| proto_duration(pool.max_lease_ttl);
            "TITLE" Detail |pool| pool.display_name.clone();
            "VMS" Detail |pool| pool.status.iter().flat_map(|s| &s.vms).map(|vm| short(vm)).collect::<Vec<_>>().join("\n");
            "CREATED" Detail |pool| time(pool.create_time.as_ref());
            "UID" Detail |pool| pool.uid.clone();
        }
    }
}

fn warm(pool: &Pool) -> String {
    let warm = pool.status.as_ref().map_or(0, |status| status.warm);
    match pool.warm_count {
        Some(wanted) => format!("{warm}/{wanted}"),
        None => warm.to_string(),
    }
}

fn hot(pool: &Pool) -> String {
    let hot = pool.status.as_ref().map_or(0, |status| status.hot);
    if pool.hot_count == 0 { some(hot) } else { format!("{hot}/{}", pool.hot_count) }
}

fn idle(pool: &Pool) -> String {
    match (pool.idle_floor, pool.idle_ceiling) {
        (None, _) => String::new(),
        (Some(floor), None) => format!("at least {floor}"),
        (Some(floor), Some(ceiling)) => format!("{floor} to {ceiling}"),
    }
}

impl Resource for Template {
    const MESSAGE: &'static str = "hvkube.v1.Template";
    const PLURAL: &'static str = "templates";

    fn name(&self) -> &str {
        &self.name
    }

    fn columns() -> &'static [Column<Self>] {
        columns! {
            "NAME" Table |t| short(&t.name);
            "STATE" Table |t| enum_name(t.state().as_str_name());
            "OS" Table |t| t.os.clone();
            "CPUS" Table |t| some(t.cpu_count);
            "MEMORY" Table |t| mib(t.memory_mb);
            "CLONES" Table |t| enum_name(t.clone_method().as_str_name());
            "AGE" Table |t| age(t.create_time.as_ref());
            "DISK SIZE" Wide |t| bytes(t.disk_size_bytes);
            "NETWORK" Wide |t| network(t);
            "SCREEN" Wide |t| t.display.map(|d| format!("{}x{}", d.width, d.height)).unwrap_or_default();
            "SOFTWARE" Wide |t| t.installed_software.join("\n");
            "TITLE" Detail |t| t.display_name.clone();
            "DISK" Detail |t| t.source.as_ref().map(|s| s.disk_path.clone()).unwrap_or_default();
            "KERNEL" Detail |t| t.source.as_ref().map(|s| s.kernel_path.clone()).unwrap_or_default();
            "INITRD" Detail |t| t.source.as_ref().map(|s| s.initrd_path.clone()).unwrap_or_default();
            "CMDLINE" Detail |t| t.source.as_ref().map(|s| s.kernel_cmdline.clone()).unwrap_or_default();
            "GPU" Detail |t| yes(t.gpu_enabled);
            "RDP PORT" Detail |t| some(t.rdp_port);
            "GUEST AGENT" Detail |t| t.agent_version.clone();
            "SHA-256" Detail |t| t.disk_sha256.clone();
            "CREATED" Detail |t| time(t.create_time.as_ref());
            "UID" Detail |t| t.uid.clone();
        }
    }

    fn tone(&self) -> Tone {
        match self.state() {
            TemplateState::Ready => Tone::Good,
            TemplateState::Preparing | TemplateState::Deleting => Tone::Busy,
            TemplateState::Unspecified => Tone::Plain,
        }
    }
}

fn network(template: &Template) -> String {
    match template.network() {
        NetworkMode::Bridge => format!("bridge:{}", template.bridge),
        mode => enum_name(mode.as_str_name()),
    }
}

impl Resource for Lease {
    const MESSAGE: &'static str = "hvkube.v1.Lease";
    const PLURAL: &'static str = "leases";

    fn name(&self) -> &str {
        &self.name
    }

    fn columns() -> &'static [Column<Self>] {
        columns! {
            "NAME" Table |lease| short(&lease.name);
            "STATE" Table |lease| enum_name(lease.state().as_str_name());
            "VM" Table |lease| short(&lease.vm);
            "POOL" Table |lease| short(&lease.pool);
            "EXPIRES" Table |lease| if lease.state() == LeaseState::Active { until(lease.expire_time.as_ref()) } else { String::new() };
            "AGE" Table |lease| age(lease.create_time.as_ref());
            "PRIORITY" Wide |lease| if lease.priority == 0 { String::new() } else { lease.priority.to_string() };
            "HOLDER" Wide |lease| lease.holder.clone();
            "TTL" Wide |lease| proto_duration(lease.ttl);
            "READY IN" Wide |lease| proto_duration(lease.receipt.as_ref().and_then(|r| r.total));
            "PURPOSE" Wide |lease| lease.purpose.clone();
            "ENDED BY" Wide |lease| lease.end_reason.clone();
            "SUSPENDED BY" Detail |lease| lease.suspend_reason.clone();
            "PROVEN BEFORE" Detail |lease| proto_duration(lease.receipt.as_ref().and_then(|r| r.age));
            "WAITED" Detail |lease| proto_duration(lease.receipt.as_ref().and_then(|r| r.waited));
            "CHECKS" Detail |lease| checks(lease);
            "GRANTED" Detail |lease| time(lease.create_time.as_ref());
            "ENDED" Detail |lease| time(lease.end_time.as_ref());
            "UID" Detail |lease| lease.uid.clone();
        }
    }

    fn tone(&self) -> Tone {
        match self.state() {
            LeaseState::Active => Tone::Good,
            LeaseState::Suspended => Tone::Busy,
            LeaseState::Expired | LeaseState::VmLost | LeaseState::Revoked => Tone::Bad,
            LeaseState::Released | LeaseState::Unspecified => Tone::Plain,
        }
    }
}

fn checks(lease: &Lease) -> String {
    let lines = lease.receipt.iter().flat_map(|receipt| &receipt.checks).map(|check| {
        let line = format!(
            "{:>6}  {}  {}",
            proto_duration(check.at),
            enum_name(check.kind().as_str_name()),
            check.detail
        );
        line.trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

impl Resource for Checkpoint {
    const MESSAGE: &'static str = "hvkube.v1.Checkpoint";
    const PLURAL: &'static str = "checkpoints";

    fn name(&self) -> &str {
        &self.name
    }

    fn columns() -> &'static [Column<Self>] {
        columns! {
            "NAME" Table |c| short(&c.name);
            "MEMORY" Table |c| yes(c.has_memory);
            "SIZE" Table |c| bytes(c.size_bytes);
            "AGE" Table |c| age(c.create_time.as_ref());
            "DESCRIPTION" Table |c| c.description.clone();
            "CREATED" Wide |c| time(c.create_time.as_ref());
        }
    }
}

impl Resource for Host {
    const MESSAGE: &'static str = "hvkube.v1.Host";
    const PLURAL: &'static str = "hosts";

    fn name(&self) -> &str {
        &self.name
    }

    fn columns() -> &'static [Column<Self>] {
        columns! {
            "NAME" Table |host| short(&host.name);
            "DAEMON" Table |host| host.daemon_version.clone();
            "HYPERVISOR" Table |host| format!("{} {}", host.hypervisor, host.hypervisor_version).trim_end().to_owned();
            "ACCELERATOR" Table |host| host.accelerator.clone();
            "BECAUSE" Wide |host| host.accelerator_reason.clone();
            "VMS" Table |host| format!("{} ({} running)", host.vm_count, host.running_vm_count);
            "CPUS" Table |host| some(host.cpu_count);
            "LOAD" Table |host| format!("{:.2}", host.load1);
            "MEMORY" Table |host| bytes(host.memory_total_bytes);
            "MEMORY FREE" Table |host| bytes(host.memory_available_bytes);
            "MEMORY OF VMS" Wide |host| bytes(host.memory_running_vms_bytes);
            "DISK FREE" Table |host| bytes(host.disk_available_bytes);
            "CAN" Wide |host| capabilities(host, true);
            "CANNOT" Wide |host| capabilities(host, false);
            "CLONES" Wide |host| host.capabilities.as_ref().map(|c| enum_name(c.clone_method().as_str_name())).unwrap_or_default();
            "NETWORKS" Wide |host| host.capabilities.iter().flat_map(|c| c.networks()).map(|n| enum_name(n.as_str_name())).collect::<Vec<_>>().join(" ");
            "STARTED" Wide |host| time(host.start_time.as_ref());
        }
    }
}

fn capabilities(host: &Host, which: bool) -> String {
    let Some(can) = &host.capabilities else { return String::new() };
    let all = [
        ("save", can.save),
        ("pause", can.pause),
        ("checkpoint", can.memory_checkpoints),
        ("fork", can.fork),
        ("screen-without-agent", can.hypervisor_display),
        ("gpu", can.gpu),
    ];
    all.into_iter().filter(|(_, has)| *has == which).map(|(name, _)| name).collect::<Vec<_>>().join(" ")
}

impl Resource for Operation {
    const MESSAGE: &'static str = "google.longrunning.Operation";
    const PLURAL: &'static str = "operations";

    fn name(&self) -> &str {
        &self.name
    }

    fn columns() -> &'static [Column<Self>] {
        columns! {
            "NAME" Table |op| short(&op.name);
            "STATE" Table |op| operation_state(op).to_owned();
            "PHASE" Table |op| template_progress(op).map(|p| p.phase).or(backup(op).map(|b| b.phase)).map(|phase| enum_name(&phase)).unwrap_or_default();
            "PROGRESS" Table |op| template_progress(op).map(|p| format!("{}%", p.progress_percent)).unwrap_or_default();
            "ABOUT" Table |op| template_progress(op).map(|p| p.template).or(backup(op).map(|b| b.path)).unwrap_or_default();
            "AGE" Table |op| age(template_progress(op).and_then(|p| p.create_time).or(backup(op).and_then(|b| b.create_time)).as_ref());
            "ERROR" Wide |op| match &op.result {
                Some(operation::Result::Error(status)) => status.message.clone(),
                _ => String::new(),
            };
        }
    }

    fn tone(&self) -> Tone {
        match (self.done, &self.result) {
            (false, _) => Tone::Busy,
            (true, Some(operation::Result::Error(_))) => Tone::Bad,
            (true, _) => Tone::Good,
        }
    }
}

fn operation_state(op: &Operation) -> &'static str {
    match (op.done, &op.result) {
        (false, _) => "running",
        (true, Some(operation::Result::Error(_))) => "failed",
        (true, _) => "done",
    }
}

/// How far a backup is; `None` for operations of another kind.
pub(crate) fn backup(op: &Operation) -> Option<BackupStoreMetadata> {
    let any = op.metadata.as_ref()?;
    if any.type_url.rsplit('/').next() != Some("hvkube.v1.BackupStoreMetadata") {
        return None;
    }
    BackupStoreMetadata::decode(any.value.as_slice()).ok()
}

impl Resource for BackupStoreResponse {
    const MESSAGE: &'static str = "hvkube.v1.BackupStoreResponse";
    const PLURAL: &'static str = "backups";

    fn name(&self) -> &str {
        &self.path
    }

    fn columns() -> &'static [Column<Self>] {
        columns! {
            "FILE" Table |backup| backup.path.clone();
            "SIZE" Table |backup| bytes(backup.size_bytes);
        }
    }
}

impl Resource for Event {
    const MESSAGE: &'static str = "hvkube.v1.Event";
    const PLURAL: &'static str = "events";

    fn name(&self) -> &str {
        &self.revision
    }

    fn columns() -> &'static [Column<Self>] {
        columns! {
            "TIME" Table |event| time(event.time.as_ref());
            "KIND" Table |event| enum_name(event.kind().as_str_name());
            "ABOUT" Table |event| about(event);
            "CHANGE" Table |event| change(event);
            "TOOK" Table |event| proto_duration(event.duration);
            "BY" Table |event| if event.actor.is_empty() { "daemon".to_owned() } else { event.actor.clone() };
            "CAUSE" Table |event| event.cause.clone();
            "POOL" Wide |event| short(&event.pool);
            "LEASE" Wide |event| short(&event.lease);
            "REVISION" Wide |event| event.revision.clone();
        }
    }

    fn tone(&self) -> Tone {
        match (self.kind(), self.to_state()) {
            (EventKind::VmQuarantined, _) | (_, VmState::Error) => Tone::Bad,
            _ => Tone::Plain,
        }
    }
}

/// What an event is about, the most particular first.
fn about(event: &Event) -> String {
    let all = [&event.agent, &event.vm, &event.lease, &event.pool, &event.template];
    all.into_iter().find(|name| !name.is_empty()).cloned().unwrap_or_default()
}

/// From where to where.
fn change(event: &Event) -> String {
    match (event.from_state(), event.to_state()) {
        (VmState::Unspecified, VmState::Unspecified) => enum_name(event.lease_state().as_str_name()),
        (from, to) => format!("{} -> {}", enum_name(from.as_str_name()), enum_name(to.as_str_name())),
    }
}
