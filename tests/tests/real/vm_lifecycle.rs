//! One VM from template to deletion: seen, driven, saved, reset, forked.

use std::time::Duration;

use hvkube_sdk::desktop::WriteOptions;
use hvkube_sdk::v1::{
    FrameSource, ImageFormat, ReadinessCheckKind, ScreenshotOptions, SettleOptions, StopMode, VmState,
};
use hvkube_sdk::{Code, Desktop, Input, ReleasePolicy, Target};
use hvkube_tests::{Rig, refused, until};
use sha2::{Digest as _, Sha256};
use tokio_stream::StreamExt as _;

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_lives_its_whole_life() {
    let mut rig = Rig::start().await;
    rig.pool("desk", 2).await;
    rig.scenario("a lease with its receipt, and the screen", receipt_and_screen).await;
    rig.scenario("keyboard and mouse", input).await;
    rig.scenario("programs and files", programs).await;
    rig.scenario("save, resume, pause", save).await;
    rig.scenario("reset", reset).await;
    rig.scenario("checkpoints", checkpoints).await;
    rig.scenario("fork", fork).await;
    rig.scenario("without an agent", without_an_agent).await;
    rig.scenario("stop, start, delete", stop).await;
    rig.drop_pool("desk").await;
    rig.check().await;
}

/// What a shell in the guest says.
async fn sh(target: &Target, script: &str) -> String {
    let output = target.exec(["sh", "-c", script]).timeout(Duration::from_secs(60)).await.expect("exec");
    assert!(output.success(), "{script}: {:?} {}", output.exit, output.stderr_lossy());
    output.stdout_lossy().trim().to_owned()
}

async fn give_back(rig: &Rig, desktop: Desktop) {
    desktop.release(ReleasePolicy::Reset).await.expect("released");
    rig.ready("desk", 2).await;
}

async fn receipt_and_screen(rig: &mut Rig) {
    let desktop = rig.acquire("desk").await;
    let receipt = desktop.lease().receipt.clone().expect("a receipt");
    let kinds: Vec<_> = receipt.checks.iter().map(hvkube_sdk::v1::ReadinessCheck::kind).collect();
    use ReadinessCheckKind as K;
    assert_eq!(kinds, [K::Running, K::AgentSession, K::Clock, K::Identity, K::Input, K::Frame]);
    assert_eq!(receipt.replaced, 0);
    let at = |check: &hvkube_sdk::v1::ReadinessCheck| {
        check.at.as_ref().map(|at| (at.seconds, at.nanos)).expect("a time")
    };
    assert!(receipt.checks.is_sorted_by_key(at), "{receipt:?}");
    let (vm, kept) = (desktop.vm().clone(), rig.vm(&desktop.vm().name).await);
    assert_eq!((vm.state(), kept.state()), (VmState::Running, VmState::Running));
    assert_eq!(kept.lease, desktop.lease().name);
    assert!(kept.guest.as_ref().is_some_and(|guest| guest.connected && guest.epoch == receipt.epoch));

    for (format, decoder) in [
        (ImageFormat::Png, image::ImageFormat::Png),
        (ImageFormat::Jpeg, image::ImageFormat::Jpeg),
        (ImageFormat::Webp, image::ImageFormat::WebP),
    ] {
        let options = ScreenshotOptions { format: format.into(), ..ScreenshotOptions::default() };
        let shot = desktop.screenshot(options).await.expect("a screenshot");
        let picture = image::load_from_memory_with_format(&shot.image, decoder).expect("a picture");
        let size = shot.frame_size.expect("a size");
        assert_eq!((picture.width(), picture.height()), (size.width, size.height), "{format:?}");
        assert_eq!((size.width, size.height), (1280, 800));
        assert_eq!(shot.source(), FrameSource::Agent);
        let colours: std::collections::BTreeSet<_> = picture.to_rgb8().pixels().map(|p| p.0).collect();
        assert!(colours.len() > 2, "a desktop is not of one colour: {colours:?}");
    }
    let half = ScreenshotOptions { scale: 0.5, ..ScreenshotOptions::default() };
    let shot = desktop.screenshot(half).await.expect("a screenshot");
    assert_eq!(shot.size.map(|size| (size.width, size.height)), Some((640, 400)));
    give_back(rig, desktop).await;
}

async fn input(rig: &mut Rig) {
    let desktop = rig.acquire("desk").await;
    // A terminal that says what it got: raw bytes of keys, and mouse reports.
    let typed = "echo typed-$((6*7)) äß日 > /tmp/typed\n";
    let shot = desktop.screenshot(ScreenshotOptions::default()).await.expect("a screenshot");
    let window = sh(&desktop, "DISPLAY=:0 xwininfo -root -tree 2>/dev/null | grep -i xterm | head -1").await;
    // The terminal of the desktop is found by its look where the image has no xwininfo.
    let (x, y) = terminal(&window).unwrap_or((400, 300));
    let done = desktop.act(Input::new().click(x, y).text(typed)).await.expect("typed");
    assert_eq!(done.input.expect("input").completed, 2);
    assert!(!done.settle.as_ref().expect("settle").timed_out);
    assert!(!done.settle.expect("settle").changed.is_empty(), "typing changes the screen");
    assert_ne!(done.screenshot.expect("a picture").image, shot.image);
    let text =
        until("the typed command's file", async || desktop.read_file("/tmp/typed", 4096).await.ok()).await;
    assert_eq!(String::from_utf8_lossy(&text), "typed-42 äß日\n");

    let done = desktop.drag([(x, y), (x + 40, y), (x + 40, y + 20)]).await.expect("dragged");
    assert_eq!(done.completed, 1);
    let done = desktop.input(Input::new().scroll_at(x, y, 0, 3)).await.expect("scrolled");
    assert_eq!(done.scrolled.map(|p| (p.x, p.y)), Some((0, 3)));
    desktop.double_click(x, y).await.expect("clicked twice");
    // Line editing by keys: what is typed is cleared by ctrl+u before return runs it.
    let keys =
        Input::new().click(x, y).text("garbage").chord("ctrl+u").text("touch /tmp/keyed").key("VK_RETURN");
    desktop.input(keys).await.expect("keyed");
    until("the keyed command's file", async || desktop.read_file("/tmp/keyed", 16).await.ok()).await;

    let settled = desktop.wait_for_settle(SettleOptions::default()).await.expect("settled");
    assert!(!settled.settle.expect("an outcome").timed_out);
    give_back(rig, desktop).await;
}

/// The middle of a window in a line of `xwininfo -tree`: `0x1 "xterm": (...)  484x316+10+20  +10+20`.
fn terminal(line: &str) -> Option<(i32, i32)> {
    let geometry = line.split_whitespace().rev().nth(1)?;
    let (width, rest) = geometry.split_once('x')?;
    let mut rest = rest.split('+');
    let height: i32 = rest.next()?.parse().ok()?;
    let corner = line.split_whitespace().last()?.trim_start_matches('+');
    let (left, top) = corner.split_once('+')?;
    let (left, top, width): (i32, i32, i32) = (left.parse().ok()?, top.parse().ok()?, width.parse().ok()?);
    Some((left + width / 2, top + height / 2))
}

async fn programs(rig: &mut Rig) {
    let desktop = rig.acquire("desk").await;
    let script = "echo out; echo err >&2; cat; echo $WORD $PWD; id -un; exit 3";
    let run = desktop.exec(["sh", "-c", script]).stdin("in\n").env("WORD", "word").cwd("/tmp");
    let output = run.await.expect("exec");
    assert_eq!(output.stdout_lossy(), "out\nin\nword /tmp\ndesktop\n");
    assert_eq!((output.stderr_lossy().as_ref(), output.exit.code), ("err\n", 3));
    refused(desktop.exec(["no-such-program"]).await, Code::NotFound, "PROGRAM_NOT_FOUND", None);

    // The whole group dies with the deadline, also what the shell left in the background.
    let script = "echo $$ > /tmp/group; sleep 1000 & sleep 1001; wait";
    let output = desktop.exec(["sh", "-c", script]).timeout(Duration::from_secs(2)).await.expect("exec");
    assert!(output.exit.timed_out, "{:?}", output.exit);
    until("the end of the group", async || {
        let left = sh(&desktop, "pgrep -x sleep | wc -l").await;
        (left == "0").then_some(())
    })
    .await;

    let data: Vec<u8> = (0..5u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let hash = hex::encode(Sha256::digest(&data));
    let options = WriteOptions { make_parents: true, mode: 0o640, ..WriteOptions::default() };
    let written = desktop.write_file("/tmp/deep/er/data", data.clone(), options).await.expect("written");
    assert_eq!(written, data.len() as u64);
    assert_eq!(sh(&desktop, "sha256sum < /tmp/deep/er/data | cut -d' ' -f1").await, hash);
    assert_eq!(sh(&desktop, "stat -c %a /tmp/deep/er/data").await, "640");
    let read = desktop.read_file("/tmp/deep/er/data", 6 << 20).await.expect("read");
    assert!(read == data, "the same 5 MiB");
    let appended = WriteOptions { append: true, ..WriteOptions::default() };
    desktop.write_file("/tmp/small", &b"one\n"[..], WriteOptions::default()).await.expect("written");
    desktop.write_file("/tmp/small", &b"two\n"[..], appended).await.expect("written");
    assert_eq!(sh(&desktop, "cat /tmp/small").await, "one\ntwo");
    refused(desktop.read_file("/tmp/none", 16).await, Code::NotFound, "GUEST_FILE_NOT_FOUND", None);
    let denied = desktop.write_file("/etc/hvkube-denied", &b"x"[..], WriteOptions::default()).await;
    refused(denied, Code::PermissionDenied, "GUEST_PERMISSION_DENIED", None);
    give_back(rig, desktop).await;
}

async fn save(rig: &mut Rig) {
    let desktop = rig.acquire("desk").await;
    let (client, vm) = (rig.client(), desktop.vm().name.clone());
    let boot = sh(&desktop, "cat /proc/sys/kernel/random/boot_id").await;
    // A process that goes on counting wherever it is.
    let count = "nohup sh -c 'i=0; while :; do i=$((i+1)); echo $i > /tmp/count; sleep 0.1; done' >/dev/null 2>&1 & echo $!";
    let counter = sh(&desktop, count).await;
    let counted =
        async || sh(&desktop, "cat /tmp/count 2>/dev/null || echo 0").await.parse::<u64>().unwrap_or(0);
    until("a count", async || (counted().await > 3).then_some(())).await;

    let saved = client.save_vm(&vm).await.expect("saved");
    assert_eq!((saved.state(), saved.process_id), (VmState::Saved, 0));
    refused(
        desktop.screenshot(ScreenshotOptions::default()).await,
        Code::FailedPrecondition,
        "VM_NOT_RUNNING",
        None,
    );
    let resumed = client.resume_vm(&vm).await.expect("resumed");
    assert_eq!(resumed.state(), VmState::Running);
    until("a session", async || rig.vm(&vm).await.guest.filter(|guest| guest.connected)).await;
    assert_eq!(sh(&desktop, "cat /proc/sys/kernel/random/boot_id").await, boot);
    assert_eq!(sh(&desktop, &format!("kill -0 {counter} && echo alive")).await, "alive");
    let before = counted().await;
    until("the count going on", async || (counted().await > before).then_some(())).await;

    assert_eq!(client.pause_vm(&vm).await.expect("paused").state(), VmState::Paused);
    let again = client.resume_vm(&vm).await.expect("resumed");
    assert_eq!(again.process_id, resumed.process_id, "the same process");
    until("a session", async || rig.vm(&vm).await.guest.filter(|guest| guest.connected)).await;
    assert_eq!(sh(&desktop, &format!("kill -0 {counter} && echo alive")).await, "alive");
    give_back(rig, desktop).await;
}

async fn reset(rig: &mut Rig) {
    let desktop = rig.acquire("desk").await;
    let (client, vm) = (rig.client(), desktop.vm().name.clone());
    sh(&desktop, "echo here > /tmp/mark; echo here > ~/mark; nohup sleep 12345 >/dev/null 2>&1 &").await;
    assert_eq!(client.reset_vm(&vm).await.expect("reset").state(), VmState::Running);
    until("a session", async || rig.vm(&vm).await.guest.filter(|guest| guest.connected)).await;
    assert_eq!(sh(&desktop, "ls /tmp/mark ~/mark 2>/dev/null; pgrep -f 'sleep 1234[5]' | wc -l").await, "0");
    // A lease that ends does the same.
    sh(&desktop, "echo here > /tmp/mark").await;
    give_back(rig, desktop).await;
    for _ in 0..2 {
        let next = rig.acquire("desk").await;
        refused(next.read_file("/tmp/mark", 16).await, Code::NotFound, "GUEST_FILE_NOT_FOUND", None);
        give_back(rig, next).await;
    }
}

async fn checkpoints(rig: &mut Rig) {
    let desktop = rig.acquire("desk").await;
    let (client, vm) = (rig.client(), desktop.vm().name.clone());
    let session =
        async || until("a session", async || rig.vm(&vm).await.guest.filter(|guest| guest.connected)).await;
    sh(&desktop, "echo one > /tmp/state").await;
    let taken = client.create_checkpoint(&vm, "one", "first").await.expect("taken");
    assert_eq!(taken.name, format!("{vm}/checkpoints/one"));
    assert!(taken.has_memory && taken.size_bytes > 0, "{taken:?}");
    refused(client.create_checkpoint(&vm, "one", "").await, Code::AlreadyExists, "RESOURCE_EXISTS", None);
    session().await;
    sh(&desktop, "echo two > /tmp/state").await;
    client.restore_checkpoint(&vm, "one").await.expect("restored");
    session().await;
    assert_eq!(sh(&desktop, "cat /tmp/state").await, "one");
    let listed: Result<Vec<_>, _> = client.list_checkpoints(&vm).collect().await;
    let names: Vec<_> = listed.expect("listed").into_iter().map(|one| one.name).collect();
    assert_eq!(names, [format!("{vm}/checkpoints/clean"), format!("{vm}/checkpoints/one")]);
    client.restore_checkpoint(&vm, "clean").await.expect("restored");
    session().await;
    refused(desktop.read_file("/tmp/state", 16).await, Code::NotFound, "GUEST_FILE_NOT_FOUND", None);
    let reserved = client.delete_checkpoint(&vm, "clean").await;
    refused(reserved, Code::FailedPrecondition, "CHECKPOINT_RESERVED", None);
    client.delete_checkpoint(&vm, "one").await.expect("deleted");
    let unknown = client.restore_checkpoint(&vm, "one").await;
    refused(unknown, Code::NotFound, "RESOURCE_NOT_FOUND", None);
    give_back(rig, desktop).await;
}

/// What makes a guest itself.
async fn identity(target: &Target) -> [String; 4] {
    [
        sh(target, "cat /etc/machine-id").await,
        sh(target, "hostname").await,
        sh(target, "cat /sys/class/net/eth0/address").await,
        sh(target, "head -c 16 /dev/urandom | sha256sum").await,
    ]
}

async fn fork(rig: &mut Rig) {
    let (client, one, two) = (rig.client(), rig.acquire("desk").await, rig.acquire("desk").await);
    sh(&one, "echo before > /tmp/fork; nohup sleep 54321 >/dev/null 2>&1 &").await;
    let fork = client.fork_vm(&one.vm().name, "forked").await.expect("forked");
    assert_eq!((fork.name.as_str(), fork.forked_from.as_str()), ("vms/forked", one.vm().name.as_str()));
    client.resume_vm("forked").await.expect("resumed");
    for vm in [&one.vm().name, &fork.name] {
        until("a session", async || rig.vm(vm).await.guest.filter(|guest| guest.connected)).await;
    }
    let forked = client.target(&fork.name);
    for target in [&*one, &forked] {
        assert_eq!(sh(target, "cat /tmp/fork; pgrep -f 'sleep 5432[1]' | wc -l").await, "before\n1");
    }
    sh(&forked, "echo after > /tmp/fork").await;
    assert_eq!(sh(&one, "cat /tmp/fork").await, "before");
    let all = [identity(&one).await, identity(&two).await, identity(&forked).await];
    for (i, a) in all.iter().enumerate() {
        for b in &all[i + 1..] {
            for (a, b) in a.iter().zip(b) {
                assert!(!a.is_empty() && a != b, "{all:?}");
            }
        }
    }
    assert_eq!(all[2][1], "forked");
    client.delete_vm("forked", false).await.expect("deleted");
    two.release(ReleasePolicy::Reset).await.expect("released");
    give_back(rig, one).await;
}

async fn without_an_agent(rig: &mut Rig) {
    let desktop = rig.acquire("desk").await;
    let vm = desktop.vm().name.clone();
    // The agent is killed over and over by a process of its own, until the VM is reset.
    let kill = "nohup sh -c 'while :; do pkill -9 hvkube-guest; sleep 0.2; done' >/dev/null 2>&1 &";
    let refused = desktop.exec(["sh", "-c", kill]).as_root(true).timeout(Duration::from_secs(30)).await;
    if refused.is_err() {
        eprintln!("exec as root is not allowed here: the agent can't be stopped, {refused:?}");
        give_back(rig, desktop).await;
        return;
    }
    until("no session", async || rig.vm(&vm).await.guest.filter(|guest| !guest.connected)).await;
    let shot = desktop.screenshot(ScreenshotOptions::default()).await.expect("a screenshot");
    assert_eq!(shot.source(), FrameSource::Hypervisor);
    let picture = image::load_from_memory(&shot.image).expect("a picture");
    assert_eq!((picture.width(), picture.height()), (1280, 800));
    give_back(rig, desktop).await;
}

async fn stop(rig: &mut Rig) {
    let desktop = rig.acquire("desk").await;
    let (client, vm) = (rig.client(), desktop.vm().name.clone());
    sh(&desktop, "echo kept > ~/kept; sync").await;
    let boot = sh(&desktop, "cat /proc/sys/kernel/random/boot_id").await;
    let off = client.stop_vm(&vm, StopMode::Graceful, Some(Duration::from_secs(60))).await.expect("off");
    assert_eq!((off.state(), off.process_id), (VmState::Off, 0));
    refused(client.pause_vm(&vm).await, Code::FailedPrecondition, "ILLEGAL_VM_STATE", None);
    client.start_vm(&vm).await.expect("started");
    until("a session after a boot", async || rig.vm(&vm).await.guest.filter(|guest| guest.connected)).await;
    until("the desktop after a boot", async || desktop.screenshot(ScreenshotOptions::default()).await.ok())
        .await;
    assert_eq!(sh(&desktop, "cat ~/kept").await, "kept");
    assert_ne!(sh(&desktop, "cat /proc/sys/kernel/random/boot_id").await, boot);
    let off = client.stop_vm(&vm, StopMode::Hard, None).await.expect("off");
    assert_eq!(off.state(), VmState::Off);
    refused(client.delete_vm(&vm, false).await, Code::FailedPrecondition, "VM_LEASED", None);
    client.delete_vm(&vm, true).await.expect("deleted");
    refused(client.get_vm(&vm).await, Code::NotFound, "RESOURCE_NOT_FOUND", None);
    rig.ready("desk", 2).await;
    let folder = rig.state_dir().join("qemu");
    let name = vm.trim_start_matches("vms/").to_owned();
    let left: Vec<_> = files(&folder)
        .into_iter()
        .filter(|path| path.components().any(|c| c.as_os_str() == name.as_str()))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

fn files(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            all.extend(files(&entry.path()));
        }
        all.push(entry.path());
    }
    all
}
