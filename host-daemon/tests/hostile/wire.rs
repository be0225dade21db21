//! HTTP/2 by the byte, for guests that do not keep to it.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RESET: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const WINDOW: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

/// Ends the headers of a HEADERS, PUSH or CONTINUATION frame.
pub(crate) const END_HEADERS: u8 = 4;
/// `:status 200`, `content-type: application/grpc`.
pub(crate) const ANSWER: &[u8] = b"\x88\x5f\x10application/grpc";
/// The call that attaches, the first one.
pub(crate) const ATTACH: u32 = 1;

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short");
    let mut out = length.to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

pub(crate) fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let values = values.iter().flat_map(|(id, value)| {
        let id = id.to_be_bytes();
        let value = value.to_be_bytes();
        [id[0], id[1], value[0], value[1], value[2], value[3]]
    });
    frame(SETTINGS, 0, 0, &values.collect::<Vec<_>>())
}

/// A whole answer to a unary call.
pub(crate) fn answer(stream: u32, message: &[u8]) -> Vec<u8> {
    let mut data = vec![0];
    data.extend(u32::try_from(message.len()).expect("short").to_be_bytes());
    data.extend(message);
    let mut out = frame(HEADERS, END_HEADERS, stream, ANSWER);
    out.extend(frame(DATA, 0, stream, &data));
    out.extend(frame(HEADERS, END_HEADERS | 1, stream, b"\x40\x0bgrpc-status\x010"));
    out
}

/// Reads until the host has made a call.
pub(crate) async fn call(io: &mut UnixStream) {
    // The client's preface.
    let mut start = [0; 24];
    io.read_exact(&mut start).await.expect("the host speaks HTTP/2");
    loop {
        let mut head = [0; 9];
        io.read_exact(&mut head).await.expect("a frame");
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        io.read_exact(&mut payload).await.expect("a whole frame");
        if head[3] == HEADERS {
            return;
        }
    }
}

/// Sends this until the host has had `total` bytes, has gone, or takes no more. With `reads`, takes in what it says.
pub(crate) async fn flood(io: &mut UnixStream, piece: &[u8], total: usize, reads: bool) {
    let (mut from, mut to) = io.split();
    let write = async {
        let mut sent = 0;
        while sent < total {
            let written = tokio::time::timeout(Duration::from_secs(2), to.write_all(piece)).await;
            if !matches!(written, Ok(Ok(()))) {
                break;
            }
            sent += piece.len();
        }
    };
    let read = async {
        let mut sink = vec![0; 1 << 16];
        while reads && matches!(from.read(&mut sink).await, Ok(1..)) {}
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = write => {}
        () = read => {}
    }
}
