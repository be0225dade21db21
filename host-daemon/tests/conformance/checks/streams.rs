//! The guest's stream, and the screen and input without it.

use hvkube_host::hypervisor::{HvError, Stop};
use hvkube_host::model::input::RawInput;
use hvkube_host::model::screen::{Point, Size};
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout_at;

use crate::rig::{GOLDEN, Rig, make, prepared, run, soon};

pub(crate) async fn streams_end_with_their_vm_and_are_opened_again<R: Rig>() {
    let (rig, template) = prepared::<R>().await;
    let (hv, vm) = (rig.hv(), make(&rig, "vm-1", &template).await);
    run(&rig, &vm).await;
    for _ in 0..2 {
        assert_eq!(rig.read(&vm).await, GOLDEN, "each time on a new stream");
    }
    let mut stream = hv.open_guest(&vm).await.expect("open");
    let secret = hv.guest_secret(&vm).await.expect("secret");
    assert_eq!(secret, hv.guest_secret(&vm).await.expect("secret"), "it does not change while the vm runs");
    hv.stop(&vm, Stop::Hard).await.expect("stop");
    let mut rest = Vec::new();
    // How it ends depends on the transport; that it does is what counts.
    let _end = timeout_at(soon(), stream.read_to_end(&mut rest)).await.expect("the stream ends");
    run(&rig, &vm).await;
    assert_eq!(rig.read(&vm).await, GOLDEN);
}

pub(crate) async fn screen_and_input_need_no_agent_where_the_backend_has_them<R: Rig>() {
    let (rig, template) = prepared::<R>().await;
    let (hv, vm) = (rig.hv(), make(&rig, "vm-1", &template).await);
    run(&rig, &vm).await;
    let point = Point { x: 5, y: 5 };
    let size = Size { width: 640, height: 400 };
    let motion = [RawInput::Move(point), RawInput::Key { key: "Return".into(), down: true }];
    if !hv.capabilities().display {
        for refused in [hv.screenshot(&vm).await.map(drop), hv.input(&vm, size, &motion).await] {
            assert!(matches!(refused, Err(HvError::NotSupported { .. })), "{refused:?}");
        }
        return;
    }
    let frame = hv.screenshot(&vm).await.expect("a picture");
    assert_eq!(frame.pixels.len(), frame.size.frame_bytes());
    hv.input(&vm, frame.size, &motion).await.expect("input");
    hv.input(&vm, frame.size, &[RawInput::Key { key: "Return".into(), down: false }]).await.expect("input");
    for wrong in
        [RawInput::Key { key: "NoSuchKey".into(), down: true }, RawInput::Move(Point { x: -1, y: 0 })]
    {
        let error = hv.input(&vm, frame.size, &[wrong]).await.expect_err("refused");
        assert!(matches!(error, HvError::BadSetting { .. }), "{error}");
    }
    hv.stop(&vm, Stop::Hard).await.expect("stop");
    for refused in [hv.screenshot(&vm).await.map(drop), hv.input(&vm, frame.size, &motion).await] {
        assert!(matches!(refused, Err(HvError::IllegalState { .. })), "{refused:?}");
    }
}
