//! A viewer by hand against a hub with a hypervisor's screen.

use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::*;
use crate::display::Encoders;
use crate::display::tests::attach;
use crate::display::tests::stub::Stub;
use crate::guest::fake::Fake;
use crate::model::ids::VmId;
use crate::model::input::{MouseButton, RawInput};
use crate::model::mask::Masks;
use crate::model::screen::{Frame, Point, Rect, Size};

fn hub(stub: &Arc<Stub>) -> Hub {
    Hub::new(VmId::new("viewed").expect("legal"), stub.clone(), Encoders::default())
}

async fn viewer(
    stub: &Arc<Stub>,
    view_only: bool,
) -> (DuplexStream, tokio::task::JoinHandle<io::Result<()>>) {
    viewer_of(hub(stub), view_only)
}

fn viewer_of(hub: Hub, view_only: bool) -> (DuplexStream, tokio::task::JoinHandle<io::Result<()>>) {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let served = tokio::spawn(async move { serve(&hub, "vms/v", view_only, theirs).await });
    (ours, served)
}

async fn shake(io: &mut DuplexStream) -> Vec<u8> {
    let mut version = [0; 12];
    io.read_exact(&mut version).await.expect("a version");
    assert_eq!(&version, VERSION);
    io.write_all(VERSION).await.expect("served");
    let mut kinds = [0; 2];
    io.read_exact(&mut kinds).await.expect("kinds");
    assert_eq!(kinds, [1, 1]);
    io.write_all(&[1, 1]).await.expect("served");
    let mut rest = vec![0; 4 + 24 + 5];
    io.read_exact(&mut rest).await.expect("an introduction");
    rest.split_off(4)
}

async fn update(io: &mut DuplexStream, incremental: u8) -> (Vec<u16>, Vec<u8>) {
    io.write_all(&[3, incremental, 0, 0, 0, 0, 0, 20, 0, 10]).await.expect("served");
    let mut head = [0; 4];
    io.read_exact(&mut head).await.expect("an update");
    assert_eq!(head, [0, 0, 0, 1]);
    let mut place = Vec::new();
    for _ in 0..4 {
        place.push(io.read_u16().await.expect("a place"));
    }
    assert_eq!(io.read_i32().await.expect("an encoding"), 0);
    let mut pixels = vec![0; usize::from(place[2]) * usize::from(place[3]) * 4];
    io.read_exact(&mut pixels).await.expect("pixels");
    (place, pixels)
}

#[tokio::test]
async fn a_viewer_sees_the_screen_and_its_changes() {
    let stub = Stub::new(true, Size { width: 20, height: 10 });
    stub.show(5);
    let (mut io, served) = viewer(&stub, false).await;
    let introduction = shake(&mut io).await;
    assert_eq!(introduction[..4], [0, 20, 0, 10]);
    assert_eq!(&introduction[24..], b"vms/v");
    let (place, pixels) = update(&mut io, 0).await;
    assert_eq!((&place[..], pixels[..3].to_vec()), (&[0, 0, 20, 10][..], vec![5; 3]));
    stub.show(6);
    let (_, pixels) = update(&mut io, 1).await;
    assert_eq!(pixels[..3], [6; 3]);
    drop(io);
    served.await.expect("no panic").expect("an end without an error");
}

#[tokio::test]
async fn who_asks_for_everything_gets_it_as_it_is_now() {
    let size = Size { width: 20, height: 10 };
    let stub = Stub::new(true, size);
    stub.show(5);
    let hub = hub(&stub);
    let (mut io, served) = viewer_of(hub.clone(), false);
    shake(&mut io).await;
    // What was seen before anybody asked is not shown either.
    stub.show(6);
    for now in [6, 7, 8] {
        stub.show(now);
        let (place, pixels) = update(&mut io, 0).await;
        assert_eq!((&place[..], &pixels[..3]), (&[0, 0, 20, 10][..], &[now; 3][..]));
    }
    let area = Rect { x: 0, y: 0, width: 10, height: 10 };
    hub.set_masks(Some(Masks { frame: size, areas: vec![area] }));
    let (_, pixels) = update(&mut io, 0).await;
    assert_eq!((&pixels[..3], &pixels[40..43]), (&[0; 3][..], &[8; 3][..]), "covered, and not");
    drop(io);
    served.await.expect("no panic").expect("an end without an error");
}

#[tokio::test]
async fn a_vm_without_a_screen_is_shown_black() {
    let stub = Stub::new(false, Size { width: 20, height: 10 });
    let (mut io, served) = viewer(&stub, false).await;
    assert_eq!(shake(&mut io).await[..4], [2, 128, 1, 144]);
    let (place, pixels) = update(&mut io, 0).await;
    assert_eq!(place, [0, 0, 640, 400]);
    assert!(pixels.iter().all(|byte| *byte == 0));
    drop(io);
    served.await.expect("no panic").expect("an end without an error");
}

#[tokio::test]
async fn a_drag_ends_on_a_screen_that_has_become_smaller() {
    let stub = Stub::new(true, Size { width: 20, height: 10 });
    let (mut io, served) = viewer(&stub, false).await;
    shake(&mut io).await;
    // Outside of what it was told.
    io.write_all(&[5, 1, 0, 40, 0, 9]).await.expect("served");
    let pressed = async {
        while stub.done.lock().expect("no panic").len() < 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(Duration::from_secs(10), pressed).await.expect("pressed");
    let smaller = Size { width: 10, height: 5 };
    *stub.frame.lock().expect("no panic") =
        Frame { size: smaller, pixels: vec![0; smaller.frame_bytes()].into() };
    io.write_all(&[5, 0, 0, 18, 0, 8]).await.expect("served");
    drop(io);
    served.await.expect("no panic").expect("an end without an error");
    let left = |down| RawInput::Button { button: MouseButton::Left, down };
    let to = |x, y| RawInput::Move(Point { x, y });
    assert_eq!(*stub.done.lock().expect("no panic"), [to(19, 9), left(true), to(9, 4), left(false)]);
}

#[tokio::test]
async fn keys_that_went_to_the_hypervisor_are_let_go_when_the_agent_is_back() {
    let stub = Stub::new(true, Size { width: 20, height: 10 });
    let hub = hub(&stub);
    let (mut io, served) = viewer_of(hub.clone(), false);
    shake(&mut io).await;
    io.write_all(&[4, 1, 0, 0, 0, 0, 0xff, 0xe1]).await.expect("served");
    let shift = |down| RawInput::Key { key: "Shift_L".into(), down };
    let pressed = async {
        while *stub.done.lock().expect("no panic") != [shift(true)] {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(Duration::from_secs(10), pressed).await.expect("pressed");
    let fake = Fake::new(20, 10);
    attach(&hub, &fake, 1).await;
    drop(io);
    served.await.expect("no panic").expect("an end without an error");
    assert_eq!(*stub.done.lock().expect("no panic"), [shift(true), shift(false)]);
}

#[tokio::test]
async fn keys_and_pointer_reach_the_desktop_and_are_let_go_at_the_end() {
    let stub = Stub::new(true, Size { width: 20, height: 10 });
    let (mut io, served) = viewer(&stub, false).await;
    shake(&mut io).await;
    io.write_all(&[4, 1, 0, 0, 0, 0, 0xff, 0xe1]).await.expect("served");
    io.write_all(&[5, 1, 0, 3, 0, 4]).await.expect("served");
    io.write_all(&[5, 0, 0, 3, 0, 4]).await.expect("served");
    io.write_all(&[6, 0, 0, 0, 0, 0, 0, 2, b'h', b'i']).await.expect("served");
    drop(io);
    served.await.expect("no panic").expect("an end without an error");
    let done = stub.done.lock().expect("no panic").clone();
    let left = |down| RawInput::Button { button: MouseButton::Left, down };
    let shift = |down| RawInput::Key { key: "Shift_L".into(), down };
    assert_eq!(
        done,
        [shift(true), RawInput::Move(Point { x: 3, y: 4 }), left(true), left(false), shift(false)]
    );

    let (mut io, served) = viewer(&stub, true).await;
    shake(&mut io).await;
    io.write_all(&[4, 1, 0, 0, 0, 0, 0, 0x61]).await.expect("served");
    drop(io);
    served.await.expect("no panic").expect("an end without an error");
    assert_eq!(stub.done.lock().expect("no panic").len(), done.len(), "who only looks touches nothing");
}

#[tokio::test]
async fn what_is_no_viewer_is_shown_the_door() {
    let stub = Stub::new(true, Size { width: 20, height: 10 });
    for junk in [&b"GET / HTTP/1.1\r\n"[..], b"RFB 003.008\n\x02", b"RFB 003.008\n\x01\x01\xff"] {
        let (mut io, served) = viewer(&stub, false).await;
        io.write_all(junk).await.expect("served");
        let error = served.await.expect("no panic").expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    }
}
