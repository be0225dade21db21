//! What goes wrong with real VMs and is made good: damaged states, guests that freeze, addresses that change.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hvkube_sdk::v1::{Event, LeaseState, Pool, PoolShortfallReason, VmState, WatchEventsRequest};
use hvkube_sdk::{Change, Code, Desktop, ReleasePolicy};
use hvkube_tests::{Rig, make_template, refused, until};
use tokio_stream::StreamExt as _;

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_is_made_good() {
    let mut rig = Rig::start().await;
    rig.pool("edge", 2).await;
    rig.scenario("a hot desktop is proven before it is asked for", hot).await;
    rig.scenario("many ask at once", at_once).await;
    rig.scenario("an address changes", address).await;
    rig.scenario("the agent freezes", frozen).await;
    rig.scenario("a saved state is damaged", damaged).await;
    rig.scenario("a vm dies while the daemon is away", meanwhile).await;
    rig.scenario("the host's memory is promised away", memory).await;
    rig.scenario("the host's disk is full", full).await;
    rig.drop_pool("edge").await;
    rig.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_state_that_is_of_no_use_gives_way_to_a_boot() {
    let mut rig = Rig::start().await;
    rig.scenario("a guest does not respond after its resume", silent).await;
    rig.scenario("the template's clean state is cut", cut_template).await;
    rig.check().await;
}

async fn resize(rig: &Rig, desired_count: u32, hot_count: u32) {
    let pool = Pool { name: "pools/edge".into(), desired_count, hot_count, ..Pool::default() };
    rig.client().update_pool(pool, &["desired_count", "hot_count"]).await.expect("changed");
}

/// What has happened to a VM, and why.
async fn causes(rig: &Rig, vm: &str) -> Vec<String> {
    events(rig, vm).await.into_iter().map(|event| event.cause).collect()
}

async fn events(rig: &Rig, vm: &str) -> Vec<Event> {
    let request = WatchEventsRequest {
        vm: vm.to_owned(),
        start_time: Some(hvkube_sdk::Timestamp { seconds: 0, nanos: 0 }),
        ..WatchEventsRequest::default()
    };
    let mut watch = std::pin::pin!(rig.client().watch_events(request));
    let mut events = Vec::new();
    while let Some(change) = watch.next().await {
        match change.expect("events") {
            Change::Is(event) => events.push(event),
            Change::Synced => break,
            Change::Gone(_) | Change::Restarted => {}
        }
    }
    events
}

async fn hot(rig: &mut Rig) {
    resize(rig, 2, 1).await;
    let client = rig.client();
    until("a hot vm", async || {
        let status = client.get_pool("edge").await.expect("a pool").status?;
        (status.hot == 1).then_some(())
    })
    .await;
    let desktop = rig.acquire("edge").await;
    let receipt = desktop.lease().receipt.clone().expect("a receipt");
    let age = Duration::try_from(receipt.age.expect("its age is told")).expect("no negative age");
    assert!(age > Duration::ZERO && age <= Duration::from_secs(1), "proven before, and lately: {receipt:?}");
    assert!(!receipt.checks.is_empty(), "{receipt:?}");
    assert!(desktop.exec(["true"]).await.expect("it answers").success());
    desktop.release(ReleasePolicy::Reset).await.expect("released");
    resize(rig, 2, 0).await;
    rig.ready("edge", 2).await;
}

async fn at_once(rig: &mut Rig) {
    let asking: Vec<_> = (0..6)
        .map(|_| {
            let client = rig.client();
            tokio::spawn(async move { client.acquire("edge").wait(Duration::ZERO).await })
        })
        .collect();
    let mut held = Vec::new();
    for one in asking {
        match one.await.expect("ran") {
            Ok(desktop) => held.push(desktop),
            other => drop(refused(other, Code::ResourceExhausted, "POOL_EXHAUSTED", None)),
        }
    }
    let vms: BTreeSet<_> = held.iter().map(|desktop| desktop.vm().name.clone()).collect();
    assert_eq!((held.len(), vms.len()), (2, 2), "two vms, two callers, one each");
    for desktop in held {
        desktop.release(ReleasePolicy::Reset).await.expect("released");
    }
    rig.ready("edge", 2).await;
}

async fn address(rig: &mut Rig) {
    let client = rig.client();
    let desktop = rig.acquire("edge").await;
    let name = desktop.vm().name.clone();
    // Every clone has a card of its own, so it asks for an address anew.
    let first = until("an address", async || {
        Some(rig.vm(&name).await.ip_address).filter(|address| !address.is_empty())
    })
    .await;
    let change = "dev=$(ip -o -4 route show default | sed 's/.* dev \\([^ ]*\\).*/\\1/'); \
                  ip addr del \"$1/24\" dev $dev && ip addr add 10.0.2.77/24 dev $dev";
    let changed = desktop.exec(["sh", "-c", change, "sh", &first]).as_root(true).await.expect("root");
    assert!(changed.success(), "{first}: {}", changed.stderr_lossy());
    let is_new = async || (rig.vm(&name).await.ip_address == "10.0.2.77").then_some(());
    until("the new address", is_new).await;
    // It went with the VM's memory; after a resume the guest says what it is now.
    client.save_vm(&name).await.expect("saved");
    client.resume_vm(&name).await.expect("resumed");
    until("an address after the resume", async || {
        let vm = rig.vm(&name).await;
        (vm.guest.is_some_and(|guest| guest.connected) && !vm.ip_address.is_empty()).then_some(())
    })
    .await;
    desktop.release(ReleasePolicy::Reset).await.expect("released");
    rig.ready("edge", 2).await;
}

async fn frozen(rig: &mut Rig) {
    let desktop = rig.acquire("edge").await;
    let name = desktop.vm().name.clone();
    // Its answer is the last thing it could say, and may be lost with it.
    let freeze = ["sh", "-c", "(sleep 1; pkill -STOP -x hvkube-guest) >/dev/null 2>&1 &"];
    let begun = desktop.exec(freeze).as_root(true).await.expect("root");
    assert!(begun.success(), "{}", begun.stderr_lossy());
    until("a guest that is silent", async || {
        let silent = desktop.exec(["true"]).timeout(Duration::from_secs(2)).await;
        silent.is_err().then_some(())
    })
    .await;
    // Whoever holds it can have it clean; nothing of the frozen session is in the way.
    rig.client().reset_vm(&name).await.expect("reset");
    until("an answer", async || desktop.exec(["true"]).await.ok().filter(|done| done.success())).await;
    desktop.release(ReleasePolicy::Reset).await.expect("released");
    rig.ready("edge", 2).await;
}

fn cut(file: &Path) {
    let length = std::fs::metadata(file).expect("a file").len();
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).expect("unprotected");
    let file = std::fs::OpenOptions::new().write(true).open(file).expect("opened");
    file.set_len(length / 2).expect("cut");
}

async fn damaged(rig: &mut Rig) {
    let client = rig.client();
    let desktop = rig.acquire("edge").await;
    let name = desktop.vm().name.clone();
    assert!(desktop.exec(["touch", "/tmp/mark"]).await.expect("exec").success());
    let saved = client.save_vm(&name).await.expect("saved");
    cut(Path::new(&saved.saved_state_path));
    let error = client.resume_vm(&name).await.expect_err("half a memory");
    assert_eq!(error.reason(), Some("STATE_DAMAGED"), "{error}");
    let vm = rig.vm(&name).await;
    assert_eq!((vm.state(), vm.lease.as_str()), (VmState::Saved, desktop.lease().name.as_str()));
    assert!(vm.state_reason.contains("resume failed"), "{}", vm.state_reason);
    // What is left is its clean checkpoint, and that only its holder may choose.
    let vm = client.reset_vm(&name).await.expect("reset");
    assert_eq!(vm.state(), VmState::Running);
    let gone = until("an answer", async || {
        let file = desktop.read_file("/tmp/mark", 16).await;
        file.err().filter(|error| error.reason() == Some("GUEST_FILE_NOT_FOUND"))
    });
    gone.await;
    let told = causes(rig, &name).await;
    assert!(told.iter().any(|cause| cause.contains("resume failed")), "{told:?}");
    desktop.release(ReleasePolicy::Reset).await.expect("released");
    rig.ready("edge", 2).await;
}

/// As after a crash of the whole host: nobody can say how the VM ended.
async fn meanwhile(rig: &mut Rig) {
    let desktop = rig.acquire("edge").await;
    let vm = rig.vm(&desktop.vm().name).await;
    let lease = desktop.detach();
    rig.kill();
    rig.kill_machine(&vm);
    rig.again().await;
    let client = rig.client();
    let lease = client.get_lease(&lease.name).await.expect("a lease");
    assert_eq!(lease.state(), LeaseState::VmLost, "no desktop that was booted instead: {lease:?}");
    assert!(lease.end_reason.contains("ended while nobody watched it"), "{}", lease.end_reason);
    let silent = client.target(&lease.name).exec(["true"]).await;
    refused(silent, Code::FailedPrecondition, "LEASE_ENDED", None);
    assert_eq!(rig.vm(&vm.name).await.state(), VmState::Error, "kept for a look");
    let told = events(rig, &vm.name).await;
    in_order(&told, &["leased", "ended while nobody watched it"]);
    // It is replaced.
    rig.ready("edge", 2).await;
    rig.check().await;
}

async fn memory(rig: &mut Rig) {
    rig.kill();
    rig.again_with(&["--set", "orchestrator.memory_limit_percent=1"]).await;
    // More than a hundredth of any host, and what is there already counts although it is saved.
    resize(rig, 1000, 0).await;
    let client = rig.client();
    let status = until("a reason", async || {
        let status = client.get_pool("edge").await.expect("a pool").status?;
        let of_memory = |reason| reason == PoolShortfallReason::HostMemory;
        status.shortfalls.iter().any(|one| of_memory(one.reason()) && one.count > 0).then_some(status)
    })
    .await;
    assert!(status.total < 1000, "{status:?}");
    resize(rig, 2, 0).await;
    rig.ready("edge", 2).await;
    rig.kill();
    rig.again_with(&[]).await;
    rig.ready("edge", 2).await;
}

/// A small file system with what was in a folder, in its place.
struct Small(PathBuf);

impl Small {
    fn over(folder: PathBuf, room_mb: u64) -> Self {
        let beside = folder.with_extension("whole");
        std::fs::rename(&folder, &beside).expect("renamed");
        std::fs::create_dir(&folder).expect("made");
        let used = run("du", &["-s", "-m"], &[&beside]);
        let used: u64 = used.split_whitespace().next().and_then(|mb| mb.parse().ok()).expect("a size");
        let options = format!("size={}m", used + room_mb);
        run("mount", &["-t", "tmpfs", "-o", &options, "none"], &[&folder]);
        let small = Self(folder);
        run("cp", &["-a", "--sparse=always"], &[&beside.join("."), &small.0]);
        small
    }

    fn grow(&self) {
        run("mount", &["-o", "remount,size=50%"], &[&self.0]);
    }

    /// Puts a folder as there was in its place, with what is in it now.
    fn back(self) {
        let (folder, beside) = (self.0.clone(), self.0.with_extension("whole"));
        std::fs::remove_dir_all(&beside).expect("removed");
        run("cp", &["-a", "--sparse=always"], &[&folder, &beside]);
        drop(self);
        std::fs::remove_dir(&folder).expect("removed");
        std::fs::rename(&beside, &folder).expect("renamed");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: when a test fails, VMs still have files in it.
        run("umount", &["--lazy"], &[&self.0]);
    }
}

fn run(program: &str, arguments: &[&str], paths: &[&Path]) -> String {
    let output = Command::new(program).args(arguments).args(paths).output().expect(program);
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

async fn full(rig: &mut Rig) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("left out: only root may mount a small file system");
        return;
    }
    rig.kill();
    let disks = Small::over(rig.state_dir().join("qemu/disks"), 24);
    rig.again().await;
    let client = rig.client();
    let desktop = rig.acquire("edge").await;
    let name = desktop.vm().name.clone();
    // In the background: the VM stands still in the middle of it.
    let fill = "(dd if=/dev/urandom of=/var/tmp/big bs=1M count=64 conv=fsync && echo whole >/var/tmp/done) \
                >/dev/null 2>&1 &";
    assert!(desktop.exec(["sh", "-c", fill]).await.expect("exec").success());
    let halted = until("a vm that stands still", async || {
        let vm = rig.vm(&name).await;
        (vm.state() == VmState::Paused).then_some(vm)
    })
    .await;
    let reason = "the host can't write its disk: No space left on device";
    assert_eq!(halted.state_reason, reason);
    assert!(causes(rig, &name).await.iter().any(|cause| cause == reason));
    let lease = client.get_lease(&desktop.lease().name).await.expect("a lease");
    assert_eq!(lease.state(), LeaseState::Active);
    // Its guest has seen no error, and goes on once there is room.
    disks.grow();
    client.resume_vm(&name).await.expect("resumed");
    until("all of it", async || {
        let done = desktop.read_file("/var/tmp/done", 16).await.ok()?;
        (done == b"whole\n"[..]).then_some(())
    })
    .await;
    desktop.release(ReleasePolicy::Reset).await.expect("released");
    rig.ready("edge", 2).await;
    rig.kill();
    disks.back();
    rig.again().await;
    rig.ready("edge", 2).await;
}

/// How a lease's VM came to run, as its receipt says.
fn running(desktop: &Desktop) -> String {
    let receipt = desktop.lease().receipt.as_ref().expect("a receipt");
    receipt.checks.first().expect("a check").detail.clone()
}

/// Asserts that events with these causes came in this order, whatever else came between them; gives their times.
fn in_order(events: &[Event], causes: &[&str]) -> Vec<Duration> {
    let mut rest = events.iter();
    let mut find = |cause: &&str| rest.find(|event| event.cause.contains(cause)).map(|event| event.time);
    let found: Option<Vec<_>> = causes.iter().map(&mut find).collect();
    let all: Vec<_> = events.iter().map(|event| &event.cause).collect();
    let times = found.unwrap_or_else(|| panic!("not in this order: {causes:?} in {all:?}"));
    let since_1970 = |time: Option<hvkube_sdk::Timestamp>| {
        let time = time.expect("a time");
        Duration::new(time.seconds.try_into().expect("now"), time.nanos.try_into().expect("not negative"))
    };
    times.into_iter().map(since_1970).collect()
}

/// Deadlines for the agent of a VM that is resumed, and of one that was reset thereupon.
const FIRST: Duration = Duration::from_secs(4);
const SECOND: Duration = Duration::from_secs(6);

/// Run by the guest's systemd in its first boot: it stops the agent as soon as the host has left it, which it does once its
/// desktop is settled. So the agent is silent in the clean state, and in every VM's memory that begins with it.
const HUSH: &str = "systemctl --no-block start multi-user.target; [ -e /hushed ] && exit 0; touch /hushed; sync; \
    mount -t debugfs none /sys/kernel/debug; cd /sys/kernel/debug/virtio-ports; \
    until pgrep -f guest.worke[r] && grep -q host_connected:.1 *; do sleep 0.2; done; sleep 1; \
    agent=$$(pgrep -x hvkube-guest); while grep -q host_connected:.1 *; do sleep 0.05; done; kill -STOP $$agent";

async fn silent(rig: &mut Rig) {
    rig.kill();
    let limits = [("answer", FIRST), ("agent", SECOND)]
        .map(|(name, limit)| format!("--set=orchestrator.{name}_timeout={}s", limit.as_secs()));
    rig.again_with(&limits.each_ref().map(String::as_str)).await;
    let client = rig.client();
    let mut template = rig.image.template();
    let source = template.source.as_mut().expect("a source");
    source.kernel_cmdline += &format!(
        " systemd.unit=kernel-command-line.target systemd.run_success_action=none \
         systemd.run_failure_action=none systemd.run=\"/bin/sh -c '{HUSH}'\""
    );
    make_template(&client, "hushed", template).await.expect("a template");
    let pool = Pool { template: "templates/hushed".into(), desired_count: 1, ..Pool::default() };
    client.create_pool("hushed", pool).await.expect("a pool");
    rig.ready("hushed", 1).await;

    let desktop = rig.acquire("hushed").await;
    let name = desktop.vm().name.clone();
    assert!(running(&desktop).contains("booted, since after a reset the agent"), "{}", running(&desktop));
    assert_eq!(desktop.lease().receipt.as_ref().expect("a receipt").replaced, 0, "the one there is");
    assert!(desktop.exec(["true"]).await.expect("it answers").success());
    let told = events(rig, &name).await;
    let steps = ["leased", "reset, since after its resume", "booted, since after a reset"];
    let at = in_order(&told, &steps);
    assert!(at[1] - at[0] >= FIRST, "the first deadline: {at:?}");
    assert!(at[2] - at[1] >= SECOND, "the second deadline: {at:?}");
    desktop.release(ReleasePolicy::Reset).await.expect("released");
    // While nobody waits it is booted once more, and what is saved then is what its leases begin with.
    rig.ready("hushed", 1).await;
    let desktop = rig.acquire("hushed").await;
    assert_eq!(desktop.vm().name, name);
    assert!(!running(&desktop).contains("since"), "{}", running(&desktop));
    assert!(desktop.exec(["true"]).await.expect("it answers").success());
    in_order(
        &events(rig, &name).await,
        &["given back; booted, since", "booted clean, saved again", "leased"],
    );
    desktop.release(ReleasePolicy::Reset).await.expect("released");
    rig.drop_pool("hushed").await;
    rig.kill();
    rig.again_with(&[]).await;
}

/// Folder of the memory that a template's VMs begin with.
fn template_memory(rig: &Rig, template: &str) -> PathBuf {
    let folder = rig.state_dir().join("qemu");
    let record = folder.join("templates").join(template).join("template.json");
    let record = std::fs::read(&record).expect("a template's record");
    let record: serde_json::Value = serde_json::from_slice(&record).expect("json");
    let memory = record["sealed"]["snapshot"]["memory"].as_str().expect("a memory");
    folder.join("memory").join(memory)
}

async fn cut_template(rig: &mut Rig) {
    rig.pool("cut", 2).await;
    let memory = template_memory(rig, "linux");
    cut(&memory.join("state"));
    cut(&memory.join("ram"));
    // The first that is tried fails, and the only one left then is made good.
    let desktop = rig.acquire("cut").await;
    let name = desktop.vm().name.clone();
    let receipt = desktop.lease().receipt.clone().expect("a receipt");
    assert_eq!(receipt.replaced, 1, "{receipt:?}");
    let damaged = "booted, since its clean memory is of no use: saved state is damaged";
    assert!(running(&desktop).contains(damaged), "{}", running(&desktop));
    assert!(desktop.exec(["true"]).await.expect("it answers").success());
    let steps = ["resume failed: saved state is damaged", "reset, since after its resume", damaged];
    in_order(&events(rig, &name).await, &steps);
    let first = rig.vms(Some("cut")).await.into_iter().map(|vm| vm.name).find(|vm| *vm != name);
    let first = first.expect("kept for a look");
    in_order(&events(rig, &first).await, &["resume failed: saved state is damaged"]);
    desktop.release(ReleasePolicy::Reset).await.expect("released");

    // By itself: the one that was given back, and one in place of the one that failed.
    rig.ready("cut", 2).await;
    let again = [rig.acquire("cut").await, rig.acquire("cut").await];
    for desktop in again {
        assert!(!running(&desktop).contains("since"), "{}", running(&desktop));
        assert!(desktop.exec(["true"]).await.expect("it answers").success());
        let vm = desktop.vm().name.clone();
        let cause = if vm == name { "given back" } else { "cloned" };
        let cause = format!("{cause}; {damaged}");
        in_order(&events(rig, &vm).await, &[&cause, "booted clean, saved again", "leased"]);
        desktop.release(ReleasePolicy::Reset).await.expect("released");
    }
    rig.ready("cut", 2).await;

    // Damage that no lease has met is found by the daemon.
    rig.kill();
    rig.again_with(&["--set=orchestrator.reconcile_every=1s"]).await;
    rig.ready("cut", 2).await;
    let saved = rig.vm(&name).await;
    assert_eq!(saved.state(), VmState::Saved);
    cut(Path::new(&saved.saved_state_path));
    let steps = ["found unusable: saved state is damaged", "booted clean, saved again"];
    until("it is made good", async || {
        let told = causes(rig, &name).await;
        let found = told.iter().position(|cause| cause.contains(steps[0]))?;
        told[found..].iter().any(|cause| cause.contains(steps[1])).then_some(())
    })
    .await;
    rig.ready("cut", 2).await;
    rig.drop_pool("cut").await;
}
