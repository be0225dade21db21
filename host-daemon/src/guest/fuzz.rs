//! Entries of the fuzzer to what agents send; see [`crate::fuzzing`].

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use hvkube_proto::guest::v1 as pb;
use hvkube_proto::preface::{HELLO_MAGIC, Hello, HelloScanner, VERSION, WELCOME_LEN};
use prost::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::desk::{
    self, Clipboard, ClipboardOrder, MAX_APP, MAX_CONNECTOR, MAX_MONITORS, MAX_TITLE, MAX_WINDOWS, Window,
};
use super::desktop::Incoming;
use super::error::GuestError;
use super::process::{ExecOrder, FileOrder, Order};
use super::session::Session;
use super::types::{Captured, ExecEvent, ExecParams, Have, OpenOptions, ReadParams};
use super::wire;
use crate::model::error::Reason;
use crate::model::input::{Met, PixelCondition, SettleOptions};
use crate::model::screen::{Point, Rect, Size};

/// A text that may be logged and shown.
fn clean(text: &str, max: usize) {
    assert!(text.len() <= max, "{} bytes", text.len());
    assert!(!text.contains(char::is_control), "a control character in {text:?}");
}

/// The messages of a stream, each behind its length.
pub(crate) fn messages<M: Message + Default>(mut bytes: &[u8]) -> impl Iterator<Item = M> {
    std::iter::from_fn(move || M::decode_length_delimited(&mut bytes).ok())
}

/// The answer that a session makes of these parts for a host that has `have`.
pub(crate) fn captured(
    have: Have,
    parts: impl IntoIterator<Item = pb::CaptureResponse>,
) -> Result<Captured, GuestError> {
    let mut incoming = Incoming::new(have);
    parts.into_iter().try_for_each(|part| incoming.take(part))?;
    incoming.end()
}

pub(crate) fn attach(bytes: &[u8]) {
    let Ok(answer) = pb::AttachResponse::decode(bytes) else { return };
    let attached = wire::attached(answer);
    for text in [&attached.agent_version, &attached.os, &attached.boot_id] {
        clean(text, 256);
    }
    assert!(attached.warnings.len() <= 16 && attached.ip_addresses.len() <= 16);
    attached.warnings.iter().for_each(|warning| clean(warning, 256));
    let stamp = &attached.image_stamp_json;
    assert!(stamp.is_empty() || serde_json::from_str::<serde::de::IgnoredAny>(stamp).is_ok());
}

pub(crate) fn heartbeat(bytes: &[u8]) {
    let Ok(beat) = pb::HeartbeatResponse::decode(bytes) else { return };
    let beat = wire::heartbeat(&beat);
    assert!(beat.load1.is_finite() && beat.load1 >= 0.0);
    assert!(beat.memory_available_bytes <= beat.memory_total_bytes);
    assert!(beat.ip_addresses.len() <= 16);
}

pub(crate) fn probe(bytes: &[u8]) {
    let Ok(answer) = pb::ProbeResponse::decode(bytes) else { return };
    if let Ok(probe) = wire::probe(&answer) {
        assert!(probe.size.is_legal());
    }
}

/// What a wait was for.
fn waits() -> SettleOptions {
    let pixel = PixelCondition { at: Point { x: 1, y: 2 }, rgb: [1, 2, 3], tolerance: 0 };
    let area = Rect { x: 0, y: 0, width: 8, height: 8 };
    SettleOptions { regions: vec![area; 2], pixels: vec![pixel; 2], ..SettleOptions::default() }
}

pub(crate) fn settle(bytes: &[u8]) {
    let Ok(answer) = pb::SettleResponse::decode(bytes) else { return };
    let asked = waits();
    let Ok(settled) = wire::settled(&answer, &asked) else { return };
    match settled.met {
        Some(Met::Region(index)) => assert!(index < asked.regions.len()),
        Some(Met::Pixel(index)) => assert!(index < asked.pixels.len()),
        Some(Met::Quiet) | None => {}
    }
    assert!(settled.changed.len() <= 64);
    let largest = Size { width: Size::MAX_SIDE, height: Size::MAX_SIDE };
    assert!(settled.changed.iter().all(|area| area.intersection(Rect::whole(largest)) == Some(*area)));
}

/// The first byte is how many events were sent.
pub(crate) fn input(bytes: &[u8]) {
    let Some((sent, bytes)) = bytes.split_first() else { return };
    let Ok(answer) = pb::InputResponse::decode(bytes) else { return };
    let Ok(outcome) = wire::outcome(answer, u32::from(*sent), Some(&waits())) else { return };
    assert!(outcome.completed <= u32::from(*sent));
    assert!(outcome.failure.is_some() || outcome.completed == u32::from(*sent));
    if let Some(failure) = outcome.failure {
        clean(&failure.message, 512);
    }
}

pub(crate) fn exec(bytes: &[u8]) {
    let mut order = ExecOrder::default();
    let mut events = Vec::new();
    for part in messages(bytes) {
        match order.next(part) {
            Ok(event) => events.push(event),
            Err(_) => break,
        }
    }
    if order.end().is_ok() {
        assert!(matches!(events.first(), Some(ExecEvent::Started { .. })));
        assert!(matches!(events.last(), Some(ExecEvent::Exited { .. })));
    }
    let exits = events.iter().filter(|event| matches!(event, ExecEvent::Exited { .. })).count();
    let starts = events.iter().filter(|event| matches!(event, ExecEvent::Started { .. })).count();
    assert!(exits <= 1 && starts <= 1);
}

/// The first byte is how many bytes were asked for.
pub(crate) fn file(bytes: &[u8]) {
    let Some((limit, bytes)) = bytes.split_first() else { return };
    let mut parts = messages::<pb::ReadFileResponse>(bytes);
    let Some(pb::read_file_response::Part::Info(info)) = parts.next().and_then(|first| first.part) else {
        return;
    };
    assert!(wire::file_info(info).mode <= 0o7777);
    let mut order = FileOrder { left: u64::from(*limit) };
    let data = parts.map_while(|part| order.next(part).ok());
    assert!(data.map(|data| data.len()).sum::<usize>() <= usize::from(*limit));
}

/// The first byte is how many bytes were asked for.
pub(crate) fn clipboard(bytes: &[u8]) {
    let Some((max, bytes)) = bytes.split_first() else { return };
    let max = usize::from(*max);
    let mut order = ClipboardOrder::new(max);
    if messages(bytes).try_for_each(|part| order.take(part)).is_err() {
        return;
    }
    let Ok(found) = order.end() else { return };
    assert!(found.available.len() <= 2);
    let length = match found.content {
        Some(Clipboard::Text(text)) => text.len(),
        Some(Clipboard::Png(data)) => data.len(),
        None => 0,
    };
    assert!(length <= max, "{length} bytes");
}

fn sound(window: &Window) {
    clean(&window.title, MAX_TITLE);
    clean(&window.app, MAX_APP);
}

pub(crate) fn windows(bytes: &[u8]) {
    let Ok(answer) = pb::ListWindowsResponse::decode(bytes) else { return };
    let Ok(windows) = desk::windows(answer) else { return };
    assert!(windows.size.is_legal() && (1.0..=10_000.0).contains(&windows.dpi));
    assert!(windows.windows.len() <= MAX_WINDOWS && windows.monitors.len() <= MAX_MONITORS);
    windows.windows.iter().for_each(sound);
    windows.monitors.iter().for_each(|monitor| clean(&monitor.name, MAX_CONNECTOR));
}

/// The first byte is the window that was asked for.
pub(crate) fn focus(bytes: &[u8]) {
    let Some((id, bytes)) = bytes.split_first() else { return };
    let Ok(answer) = pb::FocusWindowResponse::decode(bytes) else { return };
    if let Ok(window) = desk::focused(answer, u64::from(*id)) {
        assert_eq!(window.id, u64::from(*id));
        sound(&window);
    }
}

/// The first byte is the code, the rest the message.
pub(crate) fn status(bytes: &[u8]) {
    let Some((code, message)) = bytes.split_first() else { return };
    let status = Status::new(Code::from(i32::from(*code)), String::from_utf8_lossy(message));
    let error = GuestError::from_status(&status, "answer");
    clean(&error.to_string(), 600);
    let error = error.into_error(Reason::ProgramNotFound);
    clean(&error.to_string(), 700);
}

/// However a stream is cut into reads, the same hello is found in it.
pub(crate) fn preface(bytes: &[u8]) {
    let Some((cut, bytes)) = bytes.split_first() else { return };
    let find = |most: usize| {
        let (mut scanner, mut at) = (HelloScanner::default(), 0);
        while at < bytes.len() {
            let wanted = scanner.wanted();
            assert!(wanted > 0, "a scanner that waits for nothing");
            let n = wanted.min(most).min(bytes.len() - at);
            at += n;
            if let Some(hello) = scanner.feed(&bytes[at - n..at]).expect("too few bytes to give up") {
                return Some((hello, at));
            }
        }
        None
    };
    let found = find(usize::MAX);
    assert_eq!(found, find(usize::from(*cut).max(1)));
    let expected = bytes.windows(HELLO_MAGIC.len()).position(|window| window == HELLO_MAGIC);
    let whole = expected.filter(|at| {
        bytes.len() - at >= Hello { version: 0, nonce: [0; 16], secret: [0; 32] }.encode().len()
    });
    assert_eq!(found.is_some(), whole.is_some());
    if let (Some((hello, end)), Some(at)) = (found, whole) {
        assert_eq!(hello.encode(), bytes[at..end]);
    }
}

/// All that a guest sends after the welcome, in pieces: two bytes of length before each, and the host gets its turn
/// between them. What HTTP/2 and gRPC make of it is up to them, but every call ends.
pub(crate) fn session(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime");
    let (host, guest) = tokio::io::duplex(1 << 16);
    let bytes = bytes.to_vec();
    runtime.block_on(async move {
        let guest = tokio::spawn(serve(guest, bytes));
        let deadline = Instant::now() + Duration::from_secs(5);
        let options = OpenOptions { epoch: 1, ..OpenOptions::default() };
        if let Ok(session) = Session::open(Box::new(host), &options, deadline).await {
            let _ = session.probe(deadline).await;
            let _ = session.capture(Have::default(), Duration::ZERO, true, deadline).await;
            let _ = session.input("b", &[], None, deadline).await;
            if let Ok(file) = session.read_file(ReadParams::default(), deadline).await {
                drop(file);
            }
            if let Ok(mut events) = session.exec(ExecParams::default(), deadline).await {
                use futures_util::StreamExt as _;
                while let Some(Ok(_)) = events.next().await {}
            }
        }
        let _ = guest.await;
        assert!(Instant::now() < deadline, "the guest is gone, and something still waited for it");
    });
}

async fn serve(mut guest: DuplexStream, bytes: Vec<u8>) {
    let hello = Hello { version: VERSION, nonce: [1; 16], secret: [0; 32] }.encode();
    let mut welcome = [0; WELCOME_LEN];
    if guest.write_all(&hello).await.is_err() || guest.read_exact(&mut welcome).await.is_err() {
        return;
    }
    let mut rest = &bytes[..];
    while let Some((length, after)) = rest.split_first_chunk() {
        let (piece, next) = after.split_at(usize::from(u16::from_be_bytes(*length)).min(after.len()));
        rest = next;
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
        let mut sink = [0; 4096];
        while let Poll::Ready(Ok(1..)) = poll_fn(|cx| {
            let read = std::pin::pin!(guest.read(&mut sink));
            Poll::Ready(read.poll(cx))
        })
        .await
        {}
        if guest.write_all(piece).await.is_err() {
            return;
        }
    }
    for _ in 0..8 {
        tokio::task::yield_now().await;
    }
}
