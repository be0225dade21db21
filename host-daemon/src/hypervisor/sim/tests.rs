//! What only the simulation has: times, faults, steps, guests that can be looked into, and a journal.

use std::time::Duration;

use hvkube_guest::sim::{Layout, Memory};
use tokio::time::{Instant, timeout, timeout_at};
use uuid::Uuid;

use super::*;
use crate::guest::{Captured, ExecEvent, ExecParams, GuestError, Have, OpenOptions, Session, connect};
use crate::hypervisor::Origin;
use crate::model::input::{Action, InputEvent, SettleOptions};
use crate::model::template::{Boot, Network};

const DISPLAY: Size = Size { width: 800, height: 600 };

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

struct Rig {
    dir: tempfile::TempDir,
    hv: SimHypervisor,
}

impl std::ops::Deref for Rig {
    type Target = SimHypervisor;
    fn deref(&self) -> &SimHypervisor {
        &self.hv
    }
}

fn vm_id(name: &str) -> VmId {
    VmId::new(name).expect("id")
}

fn desk() -> TemplateId {
    TemplateId::new("desk").expect("id")
}

fn definition(name: &str, origin: Origin) -> VmDefinition {
    VmDefinition { id: vm_id(name), uid: Uuid::new_v4(), origin }
}

impl Rig {
    fn new(change: impl FnOnce(&mut SimConfig)) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let mut config = SimConfig::new(dir.path());
        change(&mut config);
        let hv = SimHypervisor::open(config).expect("open");
        Self { dir, hv }
    }

    /// A world with a template.
    async fn prepared(change: impl FnOnce(&mut SimConfig)) -> Self {
        let rig = Self::new(change);
        let spec = TemplateSpec {
            disk_path: "/no/disk".into(),
            disk_format: None,
            boot: Boot::Uefi,
            memory_mb: 1024,
            cpu_count: 2,
            gpu: true,
            network: Network::User,
            display: DISPLAY,
        };
        rig.import_template(&desk(), &spec).await.expect("import");
        let builder = definition("builder", Origin::Golden(desk()));
        rig.define(&builder).await.expect("define");
        rig.start(&builder.id).await.expect("start");
        rig.seal_template(&desk(), &builder.id).await.expect("seal");
        rig
    }

    async fn vm(&self, name: &str) -> VmId {
        let definition = definition(name, Origin::Template(desk()));
        assert_eq!(self.define(&definition).await.expect("define"), Rest::Saved);
        definition.id
    }

    async fn running(&self, name: &str) -> VmId {
        let vm = self.vm(name).await;
        self.resume(&vm).await.expect("resume");
        vm
    }

    /// The daemon is killed, and another one begins.
    fn again(self) -> Self {
        let Self { dir, hv } = self;
        let config = hv.world.config.clone();
        drop(hv);
        Self { dir, hv: SimHypervisor::open(config).expect("open again") }
    }
}

async fn session(hv: &SimHypervisor, vm: &VmId) -> Session {
    connect(hv, vm, &OpenOptions::default(), soon()).await.expect("a session")
}

async fn desktop(session: &Session) -> Memory {
    use futures_util::StreamExt as _;
    let params = ExecParams { argv: vec!["desktop".into()], ..ExecParams::default() };
    let mut events = session.exec(params, soon()).await.expect("exec");
    while let Some(event) = events.next().await {
        if let ExecEvent::Stdout(json) = event.expect("it goes on") {
            return serde_json::from_slice(&json).expect("JSON");
        }
    }
    panic!("nothing printed")
}

fn text(text: &str) -> [InputEvent; 1] {
    [InputEvent::Text { text: text.into(), interval: Duration::ZERO }]
}

/// What a host that drew this has.
fn has(captured: &Captured) -> Have {
    let shape = captured.cursor.as_ref().map_or(0, |cursor| cursor.shape);
    Have { sequence: captured.sequence, answer: captured.answer, shape }
}

#[tokio::test]
async fn what_is_typed_is_seen_and_remembered() {
    let rig = Rig::prepared(|_| ()).await;
    let vm = rig.running("vm-1").await;
    let one = session(&rig, &vm).await;
    let whole = one.capture(Have::default(), Duration::ZERO, true, soon()).await.expect("a frame");
    assert!(whole.full && whole.size == DISPLAY, "{whole:?}");
    let still = one.capture(has(&whole), Duration::ZERO, true, soon()).await.expect("a frame");
    assert_eq!((still.sequence, still.patches.len()), (whole.sequence, 0), "nothing has changed");

    let settle = SettleOptions { quiet: Duration::from_millis(20), ..SettleOptions::default() };
    let outcome = one.input("b1", &text("Hi, Welt ü!"), Some(&settle), soon()).await.expect("typed");
    let settled = outcome.settled.expect("asked for");
    assert!(!settled.timed_out && settled.changed.len() == 1, "{settled:?}");
    let field = Layout::new((DISPLAY.width, DISPLAY.height)).field;
    assert_eq!((settled.changed[0].x, settled.changed[0].width), (field.x, field.width));
    let again = one.input("b1", &text("Hi, Welt ü!"), None, soon()).await.expect("answered");
    assert!(again.replayed, "a batch is done once");
    let changed = one.capture(has(&whole), Duration::ZERO, true, soon()).await.expect("a frame");
    assert!(!changed.full && !changed.patches.is_empty(), "{changed:?}");

    let chord = [
        InputEvent::Chord { keys: vec!["ctrl".into(), "a".into()], hold: Duration::ZERO },
        InputEvent::Key { key: "BackSpace".into(), action: Action::Tap, hold: Duration::ZERO },
    ];
    assert_eq!(desktop(&one).await.text, "Hi, Welt ü!");
    let mut named = chord.to_vec();
    crate::model::input_rules::check(&mut named, DISPLAY).expect("legal");
    one.input("b2", &named, None, soon()).await.expect("done");
    assert_eq!(desktop(&one).await.text, "");
    one.input("b3", &text("kept"), None, soon()).await.expect("typed");
    one.close();
    rig.save(&vm).await.expect("save");

    // The daemon dies; what is saved and what is typed are there, without a stop in between.
    let other = rig.running("vm-2").await;
    session(&rig, &other).await.input("b1", &text("running"), None, soon()).await.expect("typed");
    let run = rig.observe(&other).await.expect("observe");
    let rig = rig.again();
    assert_eq!(rig.recover().await.expect("recover").len(), 2);
    assert_eq!(rig.observe(&other).await.expect("observe"), run, "it never stopped");
    assert_eq!(desktop(&session(&rig, &other).await).await.text, "running");
    rig.resume(&vm).await.expect("resume");
    assert_eq!(desktop(&session(&rig, &vm).await).await.text, "kept");
}

#[tokio::test]
async fn a_capture_waits_for_a_change_and_shows_the_cursor() {
    let rig = Rig::prepared(|_| ()).await;
    let vm = rig.running("vm-1").await;
    let one = session(&rig, &vm).await;
    let first = one.capture(Have::default(), Duration::ZERO, true, soon()).await.expect("a frame");
    let motion = [InputEvent::Move {
        to: Point { x: 50, y: 60 },
        relative: false,
        duration: Duration::ZERO,
        via: Vec::new(),
    }];
    let (waited, moved) = tokio::join!(
        one.capture(has(&first), Duration::from_secs(20), true, soon()),
        one.input("b1", &motion, None, soon()),
    );
    moved.expect("moved");
    let waited = waited.expect("a frame");
    assert_eq!(waited.pointer, Point { x: 50, y: 60 });
    assert!(
        waited.cursor.is_some() && waited.patches.is_empty(),
        "the cursor is no part of the pixels: {waited:?}"
    );
    let picture = first.cursor.expect("asked for").picture;
    assert!(picture.is_some_and(|picture| picture.size.width > 0), "told once");
}

#[tokio::test(start_paused = true)]
async fn hyperv_takes_its_time_scaled() {
    let half = |config: &mut SimConfig| {
        config.profile = Profile::Hyperv;
        config.time_factor = TimeFactor::try_from(0.5).expect("legal");
    };
    let rig = Rig::prepared(half).await;
    let vm = rig.vm("vm-1").await;
    for _ in 0..5 {
        let began = Instant::now();
        rig.resume(&vm).await.expect("resume");
        let time = began.elapsed().as_millis();
        assert!((1000..=2500).contains(&time), "{time}");
        rig.save(&vm).await.expect("save");
    }
    rig.stop(&vm, Stop::Hard).await.expect("stop");
    rig.start(&vm).await.expect("start");
    let began = Instant::now();
    let options = OpenOptions::default();
    connect(&rig.hv, &vm, &options, began + Duration::from_secs(60)).await.expect("a session");
    let time = began.elapsed().as_millis();
    assert!((15_000..=31_000).contains(&time), "{time}");
    // Who will not wait for the guest has the plug pulled.
    let began = Instant::now();
    rig.stop(&vm, Stop::Graceful(Duration::from_millis(10))).await.expect("stop");
    assert!(began.elapsed() < Duration::from_millis(1000), "{:?}", began.elapsed());
}

#[tokio::test]
async fn faults_do_what_they_say() {
    let rig = Rig::prepared(|_| ()).await;
    let (control, vm) = (rig.control(), rig.vm("vm-1").await);
    let this = || Target::Vm(vm.clone());
    let mut events = rig.events().expect("first");

    control.fail(Fault::OutOfMemory, this(), 1);
    let error = rig.resume(&vm).await.expect_err("no memory").to_string();
    assert!(error.contains("no memory left"), "{error}");
    assert_eq!(rig.observe(&vm).await.expect("observe"), Observed::Saved);
    rig.resume(&vm).await.expect("once only");
    let address = |session: &Session| session.attached().ip_addresses.clone();
    let before = address(&session(&rig, &vm).await);
    assert_eq!(before.len(), 1);

    control.fail(Fault::SaveCorrupts, Target::Template(desk()), 1);
    rig.save(&vm).await.expect("it seems saved");
    for _ in 0..2 {
        let error = rig.resume(&vm).await.expect_err("damaged");
        assert!(matches!(error, HvError::StateDamaged(_)), "{error}");
        assert_eq!(rig.observe(&vm).await.expect("observe"), Observed::Saved);
    }
    rig.reset(&vm).await.expect("reset");
    control.fail(Fault::AddressChanges, Target::Any, 1);
    rig.resume(&vm).await.expect("resume");
    assert_ne!(address(&session(&rig, &vm).await), before);

    rig.reset(&vm).await.expect("reset");
    control.fail(Fault::GuestHangs, this(), 1);
    rig.resume(&vm).await.expect("it runs, as far as anybody can see");
    let options = OpenOptions::default();
    let short = Instant::now() + Duration::from_millis(50);
    let error = connect(&rig.hv, &vm, &options, short).await.expect_err("nobody answers");
    assert!(matches!(error, GuestError::Timeout(_)), "{error}");
    rig.reset(&vm).await.expect("reset");
    rig.resume(&vm).await.expect("resume");
    let one = session(&rig, &vm).await;
    control.hang(&vm, true).expect("it runs");
    let short = Instant::now() + Duration::from_millis(50);
    let error = one.probe(short).await.expect_err("it hangs");
    assert!(matches!(error, GuestError::Timeout(_)), "{error}");
    control.hang(&vm, false).expect("it runs");
    one.probe(soon()).await.expect("it goes on");

    control.fail(Fault::StartFails, this(), 1);
    rig.stop(&vm, Stop::Hard).await.expect("stop");
    rig.start(&vm).await.expect_err("it ends while it starts");
    assert_eq!(rig.observe(&vm).await.expect("observe"), Observed::Off);
    assert!(events.try_recv().is_err());
    control.fail(Fault::VmDies, this(), 1);
    let run = rig.start(&vm).await.expect("start");
    let Event::Exited { run: of, clean, .. } =
        timeout_at(soon(), events.recv()).await.expect("told").expect("open")
    else {
        panic!("it ended")
    };
    assert_eq!((of, clean), (run, false));
    assert_eq!(rig.observe(&vm).await.expect("observe"), Observed::Off);
    control.fail(Fault::VmVanishes, this(), 1);
    rig.start(&vm).await.expect("start");
    timeout_at(soon(), events.recv()).await.expect("told").expect("open");
    assert!(matches!(rig.observe(&vm).await, Err(HvError::NotFound { .. })));

    control.fail(Fault::SlowDisk, Target::Any, 1);
    let began = Instant::now();
    let other = rig.running("vm-2").await;
    assert!(began.elapsed() >= Duration::from_millis(10), "{:?}", began.elapsed());
    session(&rig, &other).await.shutdown(false, soon()).await.expect("answered before it happens");
    let Event::Exited { vm: ended, clean, .. } =
        timeout_at(soon(), events.recv()).await.expect("told").expect("open")
    else {
        panic!("it ended")
    };
    assert_eq!((ended, clean), (other, true));
}

#[tokio::test]
async fn the_same_seed_brings_the_same_faults() {
    let run = async |seed| {
        let rate = FaultRate::new(Fault::OutOfMemory, 0.3).expect("legal");
        let rig = Rig::prepared(|config| config.seed = seed).await;
        let mut config = rig.hv.world.config.clone();
        config.faults = vec![rate];
        let Rig { dir, hv } = rig;
        drop(hv);
        let rig = Rig { dir, hv: SimHypervisor::open(config).expect("open again") };
        let vm = rig.vm("vm-1").await;
        let mut outcomes = Vec::new();
        for _ in 0..64 {
            outcomes.push(rig.resume(&vm).await.is_ok());
            rig.reset(&vm).await.expect("reset");
        }
        outcomes
    };
    let (one, two, other) = (run(1).await, run(1).await, run(2).await);
    assert_eq!(one, two);
    assert_ne!(one, other);
    let failed = one.iter().filter(|ok| !**ok).count();
    assert!((5..40).contains(&failed), "{failed}");
}

#[tokio::test]
async fn calls_stand_still_until_they_are_let_on() {
    let rig = Rig::prepared(|_| ()).await;
    let (control, vm) = (rig.control(), rig.vm("vm-1").await);
    control.stepping(true);
    let mut resume = Box::pin(rig.resume(&vm));
    timeout(Duration::from_millis(1), &mut resume).await.expect_err("it stands");
    let step = Step { call: Call::Resume, on: "vm-1".into(), done: false };
    assert_eq!(control.waiting(), std::slice::from_ref(&step));
    assert_eq!(rig.observe(&vm).await.expect("observe"), Observed::Saved);
    assert_eq!(control.step(|step| step.on == "vm-2"), None);
    assert_eq!(control.step(|_| true), Some(step));
    tokio::select! {
        _ = &mut resume => panic!("its answer stands, too"),
        () = control.arrived(1) => {}
    }
    assert!(matches!(rig.observe(&vm).await.expect("observe"), Observed::Running(_)));
    // A caller that goes now has only missed the answer; one that goes before has not asked.
    drop(resume);
    assert_eq!(control.waiting(), []);
    let mut save = Box::pin(rig.save(&vm));
    timeout(Duration::from_millis(1), &mut save).await.expect_err("it stands");
    drop(save);
    assert!(matches!(rig.observe(&vm).await.expect("observe"), Observed::Running(_)));
    let second = definition("vm-2", Origin::Template(desk()));
    let all = async { tokio::join!(rig.pause(&vm), rig.define(&second)) };
    let (both, ()) = tokio::join!(all, async {
        control.arrived(2).await;
        control.stepping(false);
    });
    both.0.expect("paused");
    assert_eq!(both.1.expect("defined"), Rest::Saved);
}

#[tokio::test]
async fn a_dead_daemon_changes_nothing_any_more() {
    let rig = Rig::prepared(|_| ()).await;
    let vm = rig.running("vm-1").await;
    let one = session(&rig, &vm).await;
    rig.control().stepping(true);
    let world = Arc::clone(&rig.hv.world);
    let id = vm.clone();
    let stood = tokio::spawn(async move { world.save(&id).await });
    rig.control().arrived(1).await;
    let rig = rig.again();
    stood.await.expect("no panic").expect_err("its daemon is dead");
    timeout_at(soon(), one.closed()).await.expect("its streams have ended");
    assert!(matches!(rig.observe(&vm).await.expect("observe"), Observed::Running(_)));
    rig.save(&vm).await.expect("save");
}
