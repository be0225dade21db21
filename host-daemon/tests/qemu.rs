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
    assert_eq!(host.templates().await.expect("templates"), std::slice::from_ref(&template));
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

const COUNT: &str = "n=$((n+1)); echo $n";

#[tokio::test(flavor = "multi_thread")]
async fn moments_are_kept_restored_and_forked() {
    let (host, template) = Host::prepared(ForkChoice::Auto, Network::None).await;
    let vm = host.clone("vm-1", &template).await;
    host.resume(&vm).await.expect("resume");
    let mut shell = host.shell(&vm).await;
    assert_eq!(shell.ok(COUNT).await, "8");
    shell.ok("echo first | dd of=/dev/vda conv=fsync").await;
    drop(shell);

    // A checkpoint of a running VM, which goes on.
    let first = checkpoint("first");
    let facts = host.create_checkpoint(&vm, &first).await.expect("checkpoint");
    assert!(facts.has_memory && facts.size_bytes > 1 << 20, "{facts:?}");
    let twice = host.create_checkpoint(&vm, &first).await.expect_err("exists");
    assert!(matches!(twice, HvError::AlreadyExists { kind: "checkpoint", .. }), "{twice}");
    let mut shell = host.shell(&vm).await;
    assert_eq!(shell.ok(COUNT).await, "9");
    shell.ok("echo second | dd of=/dev/vda conv=fsync").await;
    drop(shell);

    // Another of the VM while it is paused, twice in a row: it stays paused.
    host.pause(&vm).await.expect("pause");
    host.create_checkpoint(&vm, &checkpoint("second")).await.expect("checkpoint");
    assert!(matches!(host.observe(&vm).await.expect("observe"), Observed::Paused(_)));
    host.create_checkpoint(&vm, &checkpoint("third")).await.expect("checkpoint");
    assert!(matches!(host.observe(&vm).await.expect("observe"), Observed::Paused(_)));
    let names: Vec<_> =
        host.checkpoints(&vm).await.expect("list").iter().map(|facts| facts.id.to_string()).collect();
    assert_eq!(names, ["first", "second", "third"]);

    // A fork of it goes its own way; the first still stands where it was.
    let fork = definition("fork-1", Origin::Template(template.clone()));
    host.fork(&vm, &fork).await.expect("fork");
    host.fork(&vm, &fork).await.expect("fork again");
    assert_eq!(host.observe(&fork.id).await.expect("observe"), Observed::Saved);
    host.resume(&fork.id).await.expect("resume");
    host.resume(&vm).await.expect("resume");
    let (mut one, mut two) = (host.shell(&vm).await, host.shell(&fork.id).await);
    assert_eq!((one.ok(COUNT).await, two.ok(COUNT).await), ("10".to_owned(), "10".to_owned()));
    two.ok("echo fork | dd of=/dev/vda conv=fsync").await;
    assert_eq!(one.ok("head -c 6 /dev/vda").await, "second");
    let random = "head -c 16 /dev/urandom | hexdump -C | head -1";
    assert_ne!(one.ok(random).await, two.ok(random).await, "forks are reseeded");
    drop((one, two));

    // A fork of a saved VM shares its memory.
    host.save(&fork.id).await.expect("save");
    let twin = definition("fork-2", Origin::Template(template.clone()));
    host.fork(&fork.id, &twin).await.expect("fork");
    host.delete(&fork.id).await.expect("delete");
    host.resume(&twin.id).await.expect("resume");
    let mut shell = host.shell(&twin.id).await;
    assert_eq!(shell.ok("n=$((n+1)); echo $n; head -c 4 /dev/vda").await, "11\nfork");
    drop(shell);
    assert_eq!(host.reset(&twin.id).await.expect("reset"), Rest::Saved);
    host.delete(&twin.id).await.expect("delete");

    // Back to the first moment, which a deleted later one does not touch; reset keeps it.
    host.delete_checkpoint(&vm, &checkpoint("second")).await.expect("delete");
    host.reset(&vm).await.expect("reset");
    for _ in 0..2 {
        assert_eq!(host.restore_checkpoint(&vm, &first).await.expect("restore"), Rest::Saved);
        host.resume(&vm).await.expect("resume");
        let mut shell = host.shell(&vm).await;
        assert_eq!(shell.ok("n=$((n+1)); echo $n; head -c 5 /dev/vda").await, "9\nfirst");
    }
    host.delete_checkpoint(&vm, &first).await.expect("delete");
    host.delete_checkpoint(&vm, &checkpoint("third")).await.expect("delete");
    let gone = host.restore_checkpoint(&vm, &first).await.expect_err("deleted");
    assert!(matches!(gone, HvError::NotFound { kind: "checkpoint", .. }), "{gone}");
    host.reset(&vm).await.expect("reset");
    assert_eq!(host.shared(), (2, 1), "the template's, and one empty head");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_is_told_once_and_a_shutdown_is_no_crash() {
    let (host, template) = Host::prepared(ForkChoice::Auto, Network::None).await;
    let mut events = host.events().expect("events");
    assert!(host.events().is_none(), "given once");
    let vm = host.clone("vm-1", &template).await;
    let run = host.resume(&vm).await.expect("resume");
    let log = log_of(run.pid);
    std::fs::write(&log, "qemu: the last thing it said\n").expect("write");
    kill(i32::try_from(run.pid).expect("pid"));
    let Event::Exited { vm: who, run: which, reason, clean } = event(&mut events).await else {
        panic!("it ended")
    };
    assert_eq!((who, which, clean), (vm.clone(), run, false));
    assert!(reason.contains("signal 9") && reason.contains("the last thing it said"), "{reason}");
    assert_eq!(host.observe(&vm).await.expect("observe"), Observed::Off, "its memory is lost");

    assert_eq!(host.reset(&vm).await.expect("reset"), Rest::Saved);
    host.resume(&vm).await.expect("resume");
    let mut stream = host.open_guest(&vm).await.expect("port");
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"poweroff -f\n").await.expect("write");
    let Event::Exited { reason, clean, .. } = event(&mut events).await else { panic!("it ended") };
    assert!(clean, "{reason}");

    // What we end ourselves is nobody's news.
    host.reset(&vm).await.expect("reset");
    host.resume(&vm).await.expect("resume");
    host.delete(&vm).await.expect("delete");
    assert!(events.try_recv().is_err());
}

fn log_of(pid: u32) -> std::path::PathBuf {
    std::fs::read_link(format!("/proc/{pid}/cwd")).expect("folder of the process").join("log")
}

async fn event(events: &mut tokio::sync::mpsc::Receiver<Event>) -> Event {
    let event = tokio::time::timeout(Duration::from_secs(60), events.recv()).await;
    event.expect("an event in time").expect("a sender")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_screen_is_seen_and_keys_and_mouse_arrive() {
    let (host, template) = Host::prepared(ForkChoice::Auto, Network::None).await;
    let vm = host.clone("vm-1", &template).await;
    host.resume(&vm).await.expect("resume");
    let frame = host.screenshot(&vm).await.expect("screenshot");
    assert_eq!(frame.pixels.len(), frame.size.frame_bytes());
    let mut shell = host.shell(&vm).await;
    let names = "for e in /sys/class/input/event*; do echo ${e##*/} $(cat $e/device/name); done";
    let names = shell.ok(names).await;
    let device = |name: &str| {
        let line =
            names.lines().find(|line| line.ends_with(name)).unwrap_or_else(|| panic!("{name}: {names}"));
        line.split(' ').next().expect("event").to_owned()
    };
    for (name, file) in [("QEMU Virtio Keyboard", "/keys"), ("QEMU Virtio Tablet", "/mouse")] {
        shell.ok(&format!("cat /dev/input/{} > {file} &", device(name))).await;
    }
    // The power button's reader, and these two.
    shell.ok("while [ $(ls -l /proc/[0-9]*/fd | grep -c /dev/input/) -lt 3 ]; do sleep 0.05; done").await;
    let inputs = [
        RawInput::Key { key: "Return".to_owned(), down: true },
        RawInput::Key { key: "Return".to_owned(), down: false },
        RawInput::Move(Point { x: 400, y: 300 }),
    ];
    host.input(&vm, DISPLAY, &inputs).await.expect("input");
    shell
        .ok("while [ $(stat -c %s /keys) -lt 72 ] || [ $(stat -c %s /mouse) -lt 72 ]; do sleep 0.05; done")
        .await;
    let keys = events_in(&shell.ok(HEX.replace("FILE", "/keys").as_str()).await);
    assert!(keys.contains(&(1, 28, 1)) && keys.contains(&(1, 28, 0)), "KEY_ENTER down and up: {keys:?}");
    let moves = events_in(&shell.ok(HEX.replace("FILE", "/mouse").as_str()).await);
    assert!(
        moves.contains(&(3, 0, 16404)) && moves.contains(&(3, 1, 16411)),
        "middle of the screen: {moves:?}"
    );

    let unknown = [RawInput::Key { key: "NoSuchKey".to_owned(), down: true }];
    let error = host.input(&vm, DISPLAY, &unknown).await.expect_err("no such key").to_string();
    assert!(error.contains("NoSuchKey"), "{error}");
    host.save(&vm).await.expect("save");
    let error = host.screenshot(&vm).await.expect_err("not running").to_string();
    assert_eq!(error, "can't look at the screen of vm vm-1, it is saved");
}

/// A line for each event as the guest's drivers tell it.
const HEX: &str = r#"hexdump -v -e '24/1 "%02x" "\n"' FILE"#;

/// Type, code and value: the last 8 of 24 bytes.
fn events_in(lines: &str) -> Vec<(u16, u16, i32)> {
    let event = |line: &str| {
        let bytes: Vec<u8> =
            (32..48).step_by(2).map(|at| u8::from_str_radix(&line[at..at + 2], 16).expect("hex")).collect();
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        (half(0), half(2), i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]))
    };
    lines.lines().map(event).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_have_a_network_but_not_the_hosts_loopback() {
    let (host, template) = Host::prepared(ForkChoice::Auto, Network::User).await;
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    listener.set_nonblocking(true).expect("nonblocking");
    let port = listener.local_addr().expect("address").port();
    let reached = Arc::new(AtomicBool::new(false));
    let watched = {
        let (listener, reached) =
            (tokio::net::TcpListener::from_std(listener).expect("tokio"), Arc::clone(&reached));
        tokio::spawn(async move {
            while listener.accept().await.is_ok() {
                reached.store(true, Ordering::SeqCst);
            }
        })
    };
    let vm = host.clone("vm-1", &template).await;
    host.resume(&vm).await.expect("resume");
    let mut shell = host.shell(&vm).await;
    shell.ok("ip link set eth0 up; udhcpc -q -n -i eth0 -s /bin/true -t 20 -T 1").await;
    shell.ok("ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2").await;
    // The guest owns its kernel: it can send to any address by the network card, loopback ones too.
    shell.ok("ip addr del 127.0.0.1/8 dev lo; ip route flush table local 127.0.0.0/8; true").await;
    shell.ok("echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet").await;
    shell.ok("echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet").await;
    shell.ok("ip route add 127.0.0.0/8 via 10.0.2.2 src 10.0.2.15").await;
    for target in ["10.0.2.2", "10.0.2.3", "10.0.2.4", "127.0.0.1"] {
        let (status, output) = shell.run(&format!("echo x | nc -w 2 {target} {port}")).await;
        assert_ne!(status, 0, "{target}: {output}");
    }
    assert!(!reached.load(Ordering::SeqCst), "a guest reached the host's loopback");
    // The card itself works: its gateway answers for its address.
    assert!(shell.ok("ip neigh show 10.0.2.2").await.contains("lladdr"));
    watched.abort();
}

/// Not a test by itself: the daemon that the next one kills.
#[tokio::test(flavor = "multi_thread")]
async fn owner_to_be_killed() {
    let Some(home) = std::env::var_os("HVQ_OWNER") else { return };
    let owner = open(Host::config(Path::new(&home), ForkChoice::Auto)).await;
    owner.recover().await.expect("recover");
    let vm = |name: &str| VmId::new(name).expect("id");
    owner.resume(&vm("runs")).await.expect("resume");
    println!("ready");
    let saver = Arc::clone(&owner);
    let saving = tokio::spawn(async move {
        loop {
            saver.resume(&VmId::new("saves").expect("id")).await.expect("resume");
            saver.save(&VmId::new("saves").expect("id")).await.expect("save");
        }
    });
    loop {
        owner.resume(&vm("resets")).await.expect("resume");
        owner.reset(&vm("resets")).await.expect("reset");
        assert!(!saving.is_finished());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_loses_nothing() {
    let (mut host, template) = Host::prepared(ForkChoice::Auto, Network::None).await;
    for name in ["runs", "saves", "resets"] {
        host.clone(name, &template).await;
    }
    let vm = |name: &str| VmId::new(name).expect("id");
    let mut pid = None;
    // Each time at another moment of the moves under way.
    for (round, delay) in [3u64, 40, 90, 150, 230, 310, 420, 560].into_iter().enumerate() {
        host.hypervisor = None;
        let mut owner = tokio::process::Command::new(std::env::current_exe().expect("this test"))
            .args(["owner_to_be_killed", "--exact", "--nocapture"])
            .env("HVQ_OWNER", host.home.path())
            .stdout(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("start owner");
        let mut lines =
            tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(owner.stdout.take().expect("piped")));
        while let Some(line) = lines.next_line().await.expect("read") {
            if line.ends_with("ready") {
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(delay)).await;
        owner.kill().await.expect("kill -9");
        let found = host.restart(ForkChoice::Auto).await;
        let names: Vec<_> = found.iter().map(|found| found.definition.id.as_str()).collect();
        assert_eq!(names, ["resets", "runs", "saves"]);
        let mut running = 0;
        for found in &found {
            match &found.observed {
                Observed::Running(run) => {
                    running += 1;
                    if found.definition.id.as_str() == "runs" {
                        assert_eq!(*pid.get_or_insert(run.pid), run.pid, "the same process all along");
                    }
                }
                Observed::Saved if found.definition.id.as_str() != "runs" => {
                    host.resume(&found.definition.id).await.expect("what is saved can be resumed");
                    running += 1;
                }
                other => panic!("{} is {other:?} in round {round}", found.definition.id),
            }
        }
        assert_eq!(host.processes().len(), running, "no process without an owner");
        let count: usize = host.shell(&vm("runs")).await.ok(COUNT).await.parse().expect("a number");
        assert_eq!(count, 8 + round, "its memory goes on");
        host.shell(&vm("saves")).await.ok("true").await;
        host.shell(&vm("resets")).await.ok("true").await;
    }
    let data = host.home.path().join("data");
    assert_eq!(std::fs::read_dir(data.join("vms")).expect("list").count(), 3);
    for name in ["resets", "runs", "saves"] {
        host.delete(&vm(name)).await.expect("delete");
    }
    assert_eq!(host.shared(), (1, 1), "no garbage");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_saved_survives_a_crash_of_the_host() {
    let (mut host, template) = Host::prepared(ForkChoice::Auto, Network::None).await;
    let names = ["clean", "kept", "runs", "torn"];
    for name in names {
        host.clone(name, &template).await;
    }
    let vm = |name: &str| VmId::new(name).expect("id");
    for name in ["kept", "runs"] {
        host.resume(&vm(name)).await.expect("resume");
        host.shell(&vm(name)).await.ok(COUNT).await;
    }
    host.save(&vm("kept")).await.expect("save");
    let torn = host.files(&vm("torn")).await.expect("files").disk;
    // The host dies: no process is left, it starts anew, and of a disk that was not synced there is only a name.
    host.hypervisor = None;
    host.processes().into_iter().for_each(kill);
    std::fs::write(host.home.path().join("data/boot"), "\"an earlier start\"").expect("write");
    std::fs::write(torn, b"").expect("write");
    let found = host.restart(ForkChoice::Auto).await;
    let observed: Vec<_> =
        found.iter().map(|found| (found.definition.id.as_str(), found.observed.clone())).collect();
    let expected = [Observed::Saved, Observed::Saved, Observed::Off, Observed::Saved];
    assert_eq!(observed, names.into_iter().zip(expected).collect::<Vec<_>>());
    for (name, count) in [("clean", "8"), ("kept", "9"), ("torn", "8")] {
        host.resume(&vm(name)).await.expect("resume");
        assert_eq!(host.shell(&vm(name)).await.ok(COUNT).await, count, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_used_is_refused_by_name_and_leaves_nothing() {
    let host = Host::new(ForkChoice::Auto).await;
    let template = TemplateId::new("tiny").expect("id");
    let file = |name: &str, content: &[u8]| {
        let path = host.home.path().join(name);
        std::fs::write(&path, content).expect("write");
        path
    };
    let refused = async |change: &dyn Fn(&mut TemplateSpec)| {
        let mut spec = spec(Network::None);
        change(&mut spec);
        let error = host.import_template(&template, &spec).await.expect_err("refused");
        assert_eq!(host.templates().await.expect("templates"), []);
        let left = std::fs::read_dir(host.home.path().join("data/templates")).expect("list").count();
        assert_eq!(left, 0, "{error}");
        error
    };
    let gone = refused(&|spec| spec.disk_path = "/no/such/disk".into()).await;
    assert!(matches!(gone, HvError::FileNotFound { field: "disk_path", .. }), "{gone}");
    let kernel = |spec: &mut TemplateSpec| {
        spec.boot = Boot::Kernel { kernel: "/no/such/kernel".into(), initrd: None, cmdline: String::new() };
    };
    let gone = refused(&kernel).await;
    assert!(matches!(gone, HvError::FileNotFound { field: "kernel_path", .. }), "{gone}");
    for (path, why) in [
        (file("empty", b""), "empty"),
        (file("text", &[b'x'; 2048]), "neither"),
        (file("odd", b"hello"), "512"),
    ] {
        let error = refused(&|spec| spec.disk_path.clone_from(&path)).await;
        assert!(matches!(&error, HvError::NotAnImage { why: said, .. } if said.contains(why)), "{error}");
    }
    // A disk that leads to another file could show that file to a guest.
    let leads = host.home.path().join("leads.qcow2");
    let made = std::process::Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd"])
        .args([leads.as_os_str(), "1M".as_ref()])
        .status();
    assert!(made.expect("qemu-img").success());
    let error = refused(&|spec| spec.disk_path.clone_from(&leads)).await;
    assert!(error.to_string().contains("/etc/passwd"), "{error}");
    type Change<'a> = &'a dyn Fn(&mut TemplateSpec);
    let settings: [(&str, Change<'_>); 6] = [
        ("memory_mb", &|spec| spec.memory_mb = 1 << 40),
        ("cpu_count", &|spec| spec.cpu_count = 0),
        ("gpu_enabled", &|spec| spec.gpu = true),
        ("display", &|spec| spec.display = Size { width: 1, height: 1 }),
        ("network.bridge", &|spec| spec.network = Network::Bridge("../lo".to_owned())),
        ("disk_format", &|spec| spec.disk_format = Some("vhdx".to_owned())),
    ];
    for (name, change) in settings {
        let error = refused(change).await;
        assert!(matches!(&error, HvError::BadSetting { field, .. } if *field == name), "{error}");
    }

    // A disk that changes after it was registered is noticed at its next use, and no VM is made on it.
    let disk = file("disk", &std::fs::read(&tiny_guest().disk).expect("read"));
    let spec = TemplateSpec { disk_path: disk.clone(), ..spec(Network::None) };
    host.import_template(&template, &spec).await.expect("import");
    let again = host.import_template(&template, &spec).await.expect_err("exists");
    assert!(matches!(again, HvError::AlreadyExists { kind: "template", .. }), "{again}");
    let early = host.define(&definition("vm-1", Origin::Template(template.clone()))).await;
    assert!(matches!(early, Err(HvError::NotFound { .. })), "not prepared yet: {early:?}");
    let mut changed = std::fs::read(&disk).expect("read");
    changed[0] ^= 1;
    std::fs::write(&disk, changed).expect("write");
    let error =
        host.define(&definition("vm-1", Origin::Golden(template.clone()))).await.expect_err("changed");
    assert!(matches!(error, HvError::ImageChanged { .. }), "{error}");
    assert_eq!(host.shared(), (0, 0));
    host.delete_template(&template).await.expect("delete");

    let second = QemuHypervisor::open(Host::config(host.home.path(), ForkChoice::Auto)).await;
    assert!(matches!(second, Err(HvError::Unavailable(_))), "one daemon at a time");
    let long = host.home.path().join("x".repeat(90));
    let config =
        QemuConfig { run_dir: long, ..Host::config(&host.home.path().join("other"), ForkChoice::Auto) };
    let error = QemuHypervisor::open(config).await.expect_err("too long").to_string();
    assert!(error.starts_with("run_dir: "), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_or_foreign_state_is_refused_and_the_vm_stays_saved() {
    let (host, template) = Host::prepared(ForkChoice::Auto, Network::None).await;
    let vm = host.clone("vm-1", &template).await;
    host.resume(&vm).await.expect("resume");
    host.save(&vm).await.expect("save");
    let state = host.files(&vm).await.expect("files").saved_state.expect("its own");
    let manifest = state.with_file_name("manifest.json");
    let whole = std::fs::read_to_string(&manifest).expect("read");
    let write = |path: &Path, content: &[u8]| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("unprotect");
        std::fs::write(path, content).expect("write");
    };
    write(&manifest, whole.replace("QEMU ", "QEMU 1.").as_bytes());
    let error = host.resume(&vm).await.expect_err("another QEMU");
    let HvError::Incompatible(why) = &error else { panic!("{error}") };
    assert!(why.contains("QEMU 1.") && why.matches("QEMU ").count() == 2, "names both: {why}");
    assert!(matches!(host.check_memory(&vm).await, Err(HvError::Incompatible(_))));
    write(&manifest, whole.as_bytes());

    let content = std::fs::read(&state).expect("read");
    write(&state, &vec![0x5a; content.len()]);
    let error = host.resume(&vm).await.expect_err("noise");
    assert!(matches!(&error, HvError::StateDamaged(_)), "{error}");
    write(&state, &content[..content.len() / 2]);
    let error = host.resume(&vm).await.expect_err("cut");
    assert!(matches!(&error, HvError::StateDamaged(_)), "{error}");
    let error = host.check_memory(&vm).await.expect_err("seen without reading it");
    assert!(matches!(&error, HvError::StateDamaged(_)), "{error}");
    assert_eq!(host.observe(&vm).await.expect("observe"), Observed::Saved);
    assert_eq!(host.processes(), [0; 0]);
    write(&state, &content);
    host.check_memory(&vm).await.expect("whole again");
    host.resume(&vm).await.expect("whole again");
    assert_eq!(host.shell(&vm).await.ok(COUNT).await, "8");
}
