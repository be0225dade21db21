//! The backend with a real X server and the real agent.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;

use super::*;
use crate::display::{Encoders, Hub, ScreenshotOptions};
use crate::guest::{OpenOptions, Session, WriteParams, connect};
use crate::hypervisor::Origin;
use crate::model::input::{Action, InputEvent};
use crate::model::template::{Boot, Network};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// The agent beside the tests; built when it is not there.
fn agent() -> PathBuf {
    static BUILT: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    BUILT
        .get_or_init(|| {
            let test = std::env::current_exe().expect("this test's path");
            let debug = test.parent().and_then(Path::parent).expect("target/debug").to_owned();
            let agent = debug.join("hvkube-guest");
            if !agent.is_file() {
                let target = debug.parent().expect("target");
                let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
                let built = Command::new(cargo)
                    .args(["build", "--package", "hvkube-guest", "--target-dir"])
                    .arg(target)
                    .current_dir(env!("CARGO_MANIFEST_DIR"))
                    .status();
                assert!(built.is_ok_and(|status| status.success()), "cannot build the agent");
            }
            agent
        })
        .clone()
}

struct Rig {
    dir: tempfile::TempDir,
    hv: Process,
    template: TemplateId,
}

impl Rig {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let skeleton = dir.path().join("skeleton");
        fs::create_dir(&skeleton).expect("made");
        fs::write(skeleton.join("greeting"), "hello").expect("written");
        let hv = Process::new(ProcessConfig::new(dir.path().join("state"), agent())).expect("a backend");
        let template = TemplateId::new("desk").expect("an id");
        hv.import_template(&template, &spec(&skeleton)).await.expect("imported");
        Self { dir, hv, template }
    }

    async fn define(&self, id: &str) -> VmId {
        let id = VmId::new(id).expect("an id");
        let definition = VmDefinition {
            id: id.clone(),
            uid: Uuid::new_v4(),
            origin: Origin::Template(self.template.clone()),
        };
        assert_eq!(self.hv.define(&definition).await.expect("defined"), Rest::Off);
        id
    }

    /// Children of ours that ended and were not waited for; other tests' may be among them for a moment.
    async fn no_zombies(&self) {
        let mine = format!(" Z {} ", std::process::id());
        let count = || {
            let stats = fs::read_dir("/proc")
                .expect("/proc")
                .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("stat")).ok());
            stats.filter(|stat| stat.contains(&mine)).count()
        };
        let deadline = soon();
        while count() > 0 {
            assert!(Instant::now() < deadline, "zombies stay");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// The same directory, as a new daemon sees it.
    fn again(&self) -> Process {
        Process::new(self.hv.0.config.clone()).expect("a backend")
    }

    fn processes(&self) -> usize {
        processes::marked(&self.hv.0.instance).expect("/proc").len()
    }
}

fn spec(disk: &Path) -> TemplateSpec {
    TemplateSpec {
        disk_path: disk.to_owned(),
        disk_format: None,
        boot: Boot::Bios,
        memory_mb: 512,
        cpu_count: 1,
        gpu: false,
        network: Network::None,
        display: Size { width: 800, height: 600 },
    }
}

/// Ends whatever a failed test leaves running.
impl Drop for Rig {
    fn drop(&mut self) {
        for (pid, _) in processes::marked(&self.hv.0.instance).unwrap_or_default() {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

async fn session(hv: &Process, vm: &VmId, epoch: u64) -> Session {
    let options = OpenOptions { epoch, ..Default::default() };
    connect(hv, vm, &options, soon()).await.expect("a session")
}

async fn ready(session: &Session) -> Size {
    loop {
        match session.probe(soon()).await {
            Ok(probe) => return probe.size,
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_desktop_is_seen_driven_reset_and_deleted() {
    let rig = Rig::new().await;
    let vm = rig.define("vm-1").await;
    assert_eq!(rig.hv.observe(&vm).await.expect("known"), Observed::Off);
    let run = rig.hv.start(&vm).await.expect("starts");
    assert_eq!(rig.hv.start(&vm).await.expect("runs already"), run);
    let first = session(&rig.hv, &vm, 1).await;
    assert_eq!(ready(&first).await, Size { width: 800, height: 600 });

    let hv: Arc<dyn Hypervisor> = Arc::new(Process(rig.hv.0.clone()));
    let hub = Hub::new(vm.clone(), hv, Encoders::default());
    hub.attach(first.clone());
    let picture = hub.screenshot(&ScreenshotOptions::default(), soon()).await.expect("a picture");
    let image = image::load_from_memory(&picture.bytes).expect("a png");
    assert_eq!((image.width(), image.height()), (800, 600));
    let key = vec![InputEvent::Key { key: "shift".into(), action: Action::Tap, hold: Duration::ZERO }];
    assert_eq!(hub.send_input("batch-1", key, None, soon()).await.expect("done").completed, 1);
    let unknown =
        vec![InputEvent::Key { key: "NoSuchKeysym".into(), action: Action::Tap, hold: Duration::ZERO }];
    let error: crate::model::error::Error =
        hub.send_input("batch-2", unknown, None, soon()).await.expect_err("refused").into();
    assert_eq!(error.reason, crate::model::error::Reason::UnknownKey, "{error:?}");

    let home = rig.hv.files(&vm).await.expect("known").disk;
    let write = WriteParams { path: "left-behind".into(), ..Default::default() };
    let data = futures_util::stream::iter([Ok::<_, String>(bytes::Bytes::from_static(b"x"))]);
    first.write_file(write, data, soon()).await.expect("written");
    assert_eq!(fs::read(home.join("left-behind")).expect("in the home"), b"x");
    assert!(rig.hv.resident_bytes(&vm).await.expect("known") > 1 << 20);

    assert_eq!(rig.hv.reset(&vm).await.expect("reset"), Rest::Off);
    timeout_at(soon(), first.closed()).await.expect("the session ends with its desktop");
    assert_eq!(rig.processes(), 0);
    assert!(!home.join("left-behind").exists(), "what the desktop did is gone");
    assert_eq!(fs::read_to_string(home.join("greeting")).expect("fresh"), "hello");
    let again = rig.hv.start(&vm).await.expect("starts");
    assert!(again.number > run.number);
    ready(&session(&rig.hv, &vm, 2).await).await;
    rig.hv.delete(&vm).await.expect("deleted");
    rig.hv.delete(&vm).await.expect("deleted already");
    assert_eq!(rig.processes(), 0);
    assert!(!home.exists());
    rig.no_zombies().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_desktop_that_ends_by_itself_is_reported_once() {
    let rig = Rig::new().await;
    let mut events = rig.hv.events().expect("the first to ask");
    assert!(rig.hv.events().is_none());
    let vm = rig.define("vm-1").await;
    let run = rig.hv.start(&vm).await.expect("starts");
    let pid = i32::try_from(run.pid).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("ours");
    let event = timeout_at(soon(), events.recv()).await.expect("in time").expect("an event");
    let Event::Exited { vm: ended, run: of, reason, clean } = event else { panic!("it ended") };
    assert_eq!((ended, of, clean), (vm.clone(), run, false));
    assert!(reason.contains("ended with"), "{reason}");
    assert_eq!(rig.hv.observe(&vm).await.expect("known"), Observed::Off);
    assert_eq!(rig.processes(), 0, "nothing of it is left");
    rig.hv.start(&vm).await.expect("starts again");
    rig.hv.stop(&vm, Stop::Hard).await.expect("stops");
    rig.hv.stop(&vm, Stop::Hard).await.expect("stopped already");
    assert!(events.try_recv().is_err(), "what was asked for is no news");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_daemon_finds_what_the_old_one_left() {
    let rig = Rig::new().await;
    let (runs, off) = (rig.define("vm-1").await, rig.define("vm-2").await);
    let run = rig.hv.start(&runs).await.expect("starts");
    let old = session(&rig.hv, &runs, 1).await;
    // As a killed daemon leaves it: nothing listens, nothing watches.
    rig.hv.0.vms.lock().expect("no panic").clear();
    drop(old);
    let new = rig.again();
    let found = new.recover().await.expect("recovers");
    let of = |id: &VmId| found.iter().find(|f| f.definition.id == *id).map(|f| f.observed.clone());
    assert_eq!(of(&runs), Some(Observed::Running(run)));
    assert_eq!(of(&off), Some(Observed::Off));
    ready(&session(&new, &runs, 2).await).await;
    // One whose record is gone is nobody's.
    new.0.vms.lock().expect("no panic").clear();
    fs::remove_file(rig.dir.path().join("state/vms/vm-1/vm.json")).expect("there");
    let newer = rig.again();
    assert_eq!(newer.recover().await.expect("recovers").len(), 1);
    assert_eq!(rig.processes(), 0);
}

#[tokio::test]
async fn what_a_template_can_not_be_is_named() {
    let rig = Rig::new().await;
    let id = TemplateId::new("other").expect("an id");
    let good = spec(&rig.dir.path().join("skeleton"));
    let file = rig.dir.path().join("file");
    fs::write(&file, "no directory").expect("written");
    let field = |spec: TemplateSpec| {
        let (hv, id) = (rig.again(), id.clone());
        async move {
            match hv.import_template(&id, &spec).await {
                Err(HvError::BadSetting { field, .. } | HvError::FileNotFound { field, .. }) => field,
                Err(HvError::NotAnImage { .. }) => "not an image",
                other => panic!("{other:?}"),
            }
        }
    };
    assert_eq!(field(TemplateSpec { network: Network::User, ..good.clone() }).await, "network");
    assert_eq!(field(TemplateSpec { gpu: true, ..good.clone() }).await, "gpu");
    assert_eq!(
        field(TemplateSpec { disk_format: Some("qcow2".into()), ..good.clone() }).await,
        "disk_format"
    );
    assert_eq!(field(TemplateSpec { disk_path: "/nonexistent".into(), ..good.clone() }).await, "disk_path");
    assert_eq!(field(TemplateSpec { disk_path: file, ..good.clone() }).await, "not an image");
    let kernel = Boot::Kernel { kernel: "k".into(), initrd: None, cmdline: String::new() };
    assert_eq!(field(TemplateSpec { boot: kernel, ..good.clone() }).await, "boot");
    assert_eq!(
        rig.hv.templates().await.expect("listed"),
        std::slice::from_ref(&rig.template),
        "nothing half-made"
    );
    let twice = rig.hv.import_template(&rig.template, &good).await;
    assert!(matches!(twice, Err(HvError::AlreadyExists { .. })), "{twice:?}");
}

#[tokio::test]
async fn what_can_not_start_says_why_and_leaves_nothing() {
    let rig = Rig::new().await;
    let vm = rig.define("vm-1").await;
    let mut config = rig.hv.0.config.clone();
    config.x_server = "no-such-x-server".into();
    let hv = Process::new(config).expect("a backend");
    hv.recover().await.expect("recovers");
    let error = hv.start(&vm).await.expect_err("no x server");
    assert!(matches!(&error, HvError::Unavailable(why) if why.contains("no-such-x-server")), "{error:?}");
    let mut config = rig.hv.0.config.clone();
    config.x_server = "false".into();
    let hv = Process::new(config).expect("a backend");
    hv.recover().await.expect("recovers");
    let error = hv.start(&vm).await.expect_err("no x server");
    assert!(matches!(error, HvError::Process(_)), "{error:?}");
    assert_eq!(hv.observe(&vm).await.expect("known"), Observed::Off);
    assert_eq!(rig.processes(), 0);
    assert!(matches!(hv.save(&vm).await, Err(HvError::NotSupported { .. })));
    let unknown = VmId::new("vm-9").expect("an id");
    assert!(matches!(hv.start(&unknown).await, Err(HvError::NotFound { .. })));
}
