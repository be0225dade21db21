//! The command line tool against the real daemon, as its users write it.

use std::process::{Command, Output, Stdio};

use hvkube_tests::{Rig, until};
use rustix::process::{Pid, Signal, kill_process};

#[tokio::test(flavor = "multi_thread")]
async fn the_usage_lines_work_as_written() {
    let mut rig = Rig::start().await;
    rig.scenario("templates, pools, vms", usage).await;
    rig.scenario("ctrl-c gives the place back", interrupted).await;
    rig.scenario("what goes wrong", wrong).await;
}

fn run(rig: &Rig, arguments: &[&str]) -> Output {
    rig.hvkube().args(arguments).output().expect("hvkube runs")
}

fn ok(rig: &Rig, arguments: &[&str]) -> String {
    let output = run(rig, arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "hvkube {arguments:?}: {}\n{error}", output.status);
    String::from_utf8(output.stdout).expect("text")
}

fn fails(rig: &Rig, code: i32, arguments: &[&str]) -> String {
    let output = run(rig, arguments);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "hvkube {arguments:?}: {error}");
    assert!(output.stdout.is_empty(), "stdout is data: {}", String::from_utf8_lossy(&output.stdout));
    error
}

async fn usage(rig: &mut Rig) {
    let source = rig.image.template().source.expect("a source");
    let create = [
        "template",
        "create",
        "--name",
        "win11-chrome",
        "--vhdx",
        &source.disk_path,
        "--kernel",
        &source.kernel_path,
        "--initrd",
        &source.initrd_path,
        "--cmdline",
        &source.kernel_cmdline,
    ];
    ok(rig, &create);
    ok(
        rig,
        &["pool", "create", "--name", "browser-pool", "--template", "win11-chrome", "--count", "2", "--wait"],
    );
    let list = ok(rig, &["vm", "list", "--pool", "browser-pool", "-o", "name"]);
    let names: Vec<_> = list.lines().collect();
    assert_eq!(names, ["vms/browser-pool-0", "vms/browser-pool-1"]);
    let table = ok(rig, &["vm", "list"]);
    assert!(table.contains("browser-pool-0") && !table.contains('\x1b'), "{table}");
    ok(rig, &["vm", "resume", "browser-pool-0"]);
    until("a session", async || rig.vm("browser-pool-0").await.guest.filter(|guest| guest.connected)).await;
    let info = ok(rig, &["vm", "info", "browser-pool-0", "-o", "json"]);
    let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
    assert_eq!(info["state"], "VM_STATE_RUNNING");
    let picture = rig.scratch().join("screen.png");
    ok(rig, &["vm", "screenshot", "browser-pool-0", "-o", &picture.display().to_string()]);
    let picture = image::open(&picture).expect("a picture");
    assert_eq!((picture.width(), picture.height()), (1280, 800));

    let lease = ok(rig, &["lease", "acquire", "browser-pool", "--ttl", "5m", "-o", "name"]).trim().to_owned();
    assert!(lease.starts_with("leases/"), "{lease}");
    ok(rig, &["vm", "click", &lease, "400", "300"]);
    ok(rig, &["vm", "type", &lease, "echo $((6*7)) > /tmp/typed\n"]);
    let typed = until("the typed command's file", async || {
        let output = run(rig, &["vm", "exec", &lease, "--", "cat", "/tmp/typed"]);
        let there = output.status.success() && !output.stdout.is_empty();
        there.then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    })
    .await;
    assert_eq!(typed, "42\n");
    ok(rig, &["vm", "key", &lease, "ctrl+u"]);
    ok(rig, &["vm", "drag", &lease, "300,300", "340,320"]);
    let own = run(rig, &["vm", "exec", &lease, "--", "sh", "-c", "exit 7"]);
    assert_eq!(own.status.code(), Some(7), "the program's own code");
    let local = rig.scratch().join("local");
    std::fs::write(&local, "over\n").expect("written");
    let local = local.display().to_string();
    ok(rig, &["vm", "cp", &local, &format!("{lease}:/tmp/copied")]);
    let back = format!("{local}-back");
    ok(rig, &["vm", "cp", &format!("{lease}:/tmp/copied"), &back]);
    assert_eq!(std::fs::read_to_string(back).expect("there"), "over\n");
    ok(rig, &["lease", "release", &lease]);
    assert!(ok(rig, &["host", "info", "-o", "json"]).contains("qemu"));
}

async fn interrupted(rig: &mut Rig) {
    rig.pool("one", 1).await;
    let held = rig.acquire("one").await;
    let client = rig.client();
    let mut command: Command = rig.hvkube();
    command.args(["lease", "acquire", "one", "--wait", "10m"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let waiting = command.spawn().expect("hvkube runs");
    let waits = async |count: u32| {
        until("somebody in the queue or not", async || {
            let status = client.get_pool("one").await.expect("a pool").status.expect("a status");
            (status.waiting == count).then_some(())
        })
        .await;
    };
    waits(1).await;
    let pid = Pid::from_raw(i32::try_from(waiting.id()).expect("a pid")).expect("a pid");
    kill_process(pid, Signal::INT).expect("it waits");
    let output = waiting.wait_with_output().expect("ended");
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    waits(0).await;
    held.release(hvkube_sdk::ReleasePolicy::Reset).await.expect("released");
    rig.ready("one", 1).await;
}

async fn wrong(rig: &mut Rig) {
    let error = fails(rig, 2, &["vm", "list", "--pol", "x"]);
    assert!(error.contains("--pool"), "a hint: {error}");
    let error = fails(rig, 3, &["vm", "info", "nobody"]);
    assert!(error.contains("nobody"), "{error}");
    rig.pool("empty", 0).await;
    let error = fails(rig, 7, &["lease", "acquire", "empty", "--wait", "0"]);
    assert!(error.contains("empty"), "{error}");
    let mut command = rig.hvkube();
    let output = command.args(["--endpoint", "http://127.0.0.1:1", "--token", "x", "vm", "list"]).output();
    let output = output.expect("hvkube runs");
    assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stderr));
    let mut command = rig.hvkube();
    let output = command.args(["--token", "wrong", "vm", "list"]).output().expect("hvkube runs");
    assert_eq!(output.status.code(), Some(5), "{}", String::from_utf8_lossy(&output.stderr));
}
