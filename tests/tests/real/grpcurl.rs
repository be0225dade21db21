//! A client that knows nothing of us: grpcurl finds everything by reflection.

use std::process::{Command, Output};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hvkube_tests::{Rig, grpcurl};

#[tokio::test(flavor = "multi_thread")]
async fn grpcurl_finds_and_uses_the_api() {
    let mut rig = Rig::start().await;
    rig.pool("desk", 1).await;
    rig.scenario("list, describe and call", calls).await;
}

fn call(rig: &Rig, token: bool, arguments: &[&str]) -> Output {
    let mut command = Command::new(grpcurl());
    command.arg("-plaintext").args(["-max-time", "60"]);
    if token {
        command.arg("-H").arg(format!("authorization: Bearer {}", rig.token()));
    }
    // What comes before the address are options, what comes behind it is what is asked.
    let (options, asked): (Vec<_>, Vec<_>) = match arguments {
        ["-d", data, rest @ ..] => (vec!["-d", *data], rest.to_vec()),
        rest => (Vec::new(), rest.to_vec()),
    };
    command.args(options).arg(rig.endpoint().trim_start_matches("http://")).args(asked);
    command.output().expect("grpcurl runs")
}

fn answer(rig: &Rig, arguments: &[&str]) -> String {
    let output = call(rig, true, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

async fn calls(rig: &mut Rig) {
    let services = answer(rig, &["list"]);
    for service in [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "google.longrunning.Operations",
        "hvkube.v1.DesktopService",
        "hvkube.v1.HostService",
        "hvkube.v1.LeaseService",
        "hvkube.v1.PoolService",
        "hvkube.v1.TemplateService",
        "hvkube.v1.VmService",
    ] {
        assert!(services.lines().any(|line| line == service), "{service} is not in\n{services}");
    }
    let methods = answer(rig, &["list", "hvkube.v1.VmService"]);
    assert!(methods.contains("hvkube.v1.VmService.ListVms"), "{methods}");
    let described = answer(rig, &["describe", "hvkube.v1.TakeScreenshotRequest"]);
    assert!(described.contains("string target = 1"), "{described}");

    let vms: serde_json::Value =
        serde_json::from_str(&answer(rig, &["hvkube.v1.VmService/ListVms"])).expect("JSON");
    let vm = vms["vms"][0]["name"].as_str().expect("a vm").to_owned();
    assert_eq!(vms["vms"][0]["state"], "VM_STATE_SAVED");

    let without = call(rig, false, &["hvkube.v1.VmService/ListVms"]);
    let error = String::from_utf8_lossy(&without.stderr).into_owned();
    assert!(!without.status.success() && error.contains("Unauthenticated"), "{error}");
    let health = call(rig, false, &["grpc.health.v1.Health/Check"]);
    // Reflection needs the token, so without one grpcurl can't even ask; with one it is told.
    drop(health);
    assert!(answer(rig, &["grpc.health.v1.Health/Check"]).contains("SERVING"));

    let desktop = rig.acquire("desk").await;
    assert_eq!(desktop.vm().name, vm);
    let request = format!("{{\"target\": \"{}\"}}", desktop.lease().name);
    let text = answer(rig, &["-d", &request, "hvkube.v1.DesktopService/TakeScreenshot"]);
    let shot: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let bytes = STANDARD.decode(shot["image"].as_str().expect("an image")).expect("base64");
    let picture = image::load_from_memory(&bytes).expect("a picture");
    let size = &shot["frameSize"];
    assert_eq!(
        (Some(u64::from(picture.width())), Some(u64::from(picture.height()))),
        (size["width"].as_u64(), size["height"].as_u64())
    );
}
