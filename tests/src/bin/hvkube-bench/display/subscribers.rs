//! Many readers of a stream of screenshots, each with a connection of its own.
//!
//! They are as cheap as a reader can be, because they share the processors with what is measured: a message is taken as
//! it comes, only the fields before the picture are read, and pictures are decoded after the run. Of every tenth picture one
//! reader keeps the bytes and all others compare theirs to them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use bytes::{Buf as _, Bytes};
use http_body_util::{BodyExt as _, Full};
use hvkube_sdk::v1;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use prost::encoding::{WireType, decode_key, decode_varint};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

const PATH: &str = "/hvkube.v1.DesktopService/StreamScreenshots";
/// What a reader can take without saying so: several pictures.
const WINDOW: u32 = 8 << 20;
const FRAME: u32 = 1 << 20;
/// Of so many pictures one is kept.
const KEEP_ONE_IN: usize = 10;

/// Where the daemon is.
#[derive(Debug, Clone)]
pub(super) struct Daemon {
    pub(super) authority: String,
    pub(super) token: String,
}

/// What the readers saw.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Pictures by reader, and their bytes.
    pub(super) frames: Vec<u64>,
    pub(super) bytes: u64,
    /// When each reader had a state of the screen.
    pub(super) arrivals: HashMap<u64, Vec<Instant>>,
    /// Some of the pictures, by state.
    pub(super) kept: HashMap<u64, Vec<Bytes>>,
    states: usize,
}

/// Reads with `count` readers for a while; the time before is theirs to get going.
pub(super) async fn read(
    daemon: &Daemon,
    request: &v1::StreamScreenshotsRequest,
    count: usize,
    warm_up: Duration,
    time: Duration,
) -> anyhow::Result<Seen> {
    let seen = Rc::new(RefCell::new(Seen { frames: vec![0; count], ..Seen::default() }));
    let from = Instant::now() + warm_up;
    let until = from + time;
    let tasks = LocalSet::new();
    let mut readers = Vec::new();
    for reader in 0..count {
        let (daemon, request, seen) = (daemon.clone(), request.clone(), seen.clone());
        readers.push(tasks.spawn_local(async move {
            let read = reader_of(&daemon, &request, reader, from, &seen);
            match tokio::time::timeout_at(until.into(), read).await {
                Ok(ended) => ended.and_then(|()| bail!("the stream of reader {reader} ended")),
                Err(_) => Ok(()),
            }
        }));
    }
    tasks
        .run_until(async {
            for reader in readers {
                reader.await??;
            }
            anyhow::Ok(())
        })
        .await?;
    drop(tasks);
    Ok(Rc::try_unwrap(seen).map_err(|_| anyhow::anyhow!("a reader still runs"))?.into_inner())
}

async fn reader_of(
    daemon: &Daemon,
    request: &v1::StreamScreenshotsRequest,
    reader: usize,
    from: Instant,
    seen: &RefCell<Seen>,
) -> anyhow::Result<()> {
    let stream = TcpStream::connect(&daemon.authority).await.context("connect")?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_frame_size(FRAME)
        .handshake(TokioIo::new(stream))
        .await?;
    let connection = tokio::spawn(connection);
    let message = request.encode_to_vec();
    let mut body = vec![0];
    body.extend(u32::try_from(message.len())?.to_be_bytes());
    body.extend(message);
    let request = http::Request::post(format!("http://{}{PATH}", daemon.authority))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", format!("Bearer {}", daemon.token))
        .body(Full::new(Bytes::from(body)))?;
    let response = sender.send_request(request).await?;
    let status = response.headers().get("grpc-status").cloned();
    ensure!(status.is_none(), "refused: {:?}", response.headers());
    let mut body = response.into_body();
    let mut parts = Vec::new();
    let (mut have, mut want) = (0, None);
    while let Some(frame) = body.frame().await {
        let Ok(mut data) = frame?.into_data() else { break };
        while !data.is_empty() {
            if want.is_none() && parts.is_empty() && data.len() >= 5 {
                want = Some(5 + usize::try_from(u32::from_be_bytes([data[1], data[2], data[3], data[4]]))?);
            }
            // The daemon sends what is before a picture in one piece.
            let whole = want.context("a message whose head is in pieces")?;
            let part = data.split_to(data.len().min(whole - have));
            have += part.len();
            parts.push(part);
            if have == whole {
                let now = Instant::now();
                if now >= from {
                    seen.borrow_mut().take(reader, now, have, &parts)?;
                }
                parts.clear();
                (have, want) = (0, None);
            }
        }
    }
    drop(sender);
    connection.abort();
    Ok(())
}

impl Seen {
    fn take(&mut self, reader: usize, now: Instant, length: usize, parts: &[Bytes]) -> anyhow::Result<()> {
        let head = parts.first().context("an empty message")?;
        let Some(sequence) = sequence(&head[5..])? else { return Ok(()) };
        self.frames[reader] += 1;
        self.bytes += u64::try_from(length)?;
        let arrivals = self.arrivals.entry(sequence).or_default();
        if arrivals.is_empty() {
            self.states += 1;
            if self.states.is_multiple_of(KEEP_ONE_IN) {
                self.kept.insert(sequence, parts.to_vec());
            }
        } else if let Some(kept) = self.kept.get(&sequence) {
            ensure!(same(kept, parts), "two readers have other bytes for the same state");
        }
        arrivals.push(now);
        Ok(())
    }
}

/// The pictures' bytes are the last of both; what is before them may differ, such as the count of skipped states.
fn same(a: &[Bytes], b: &[Bytes]) -> bool {
    let tail = |parts: &[Bytes]| parts.last().map(|part| part[part.len().saturating_sub(4096)..].to_vec());
    tail(a) == tail(b)
}

/// `Screenshot.sequence`, field 6; absent in a message that is no picture.
fn sequence(mut message: &[u8]) -> anyhow::Result<Option<u64>> {
    while message.has_remaining() {
        let (tag, kind) = decode_key(&mut message)?;
        match (tag, kind) {
            (1, _) => break,
            (6, WireType::Varint) => return Ok(Some(decode_varint(&mut message)?)),
            (_, WireType::Varint) => drop(decode_varint(&mut message)?),
            (_, WireType::LengthDelimited) => {
                let length = usize::try_from(decode_varint(&mut message)?)?;
                ensure!(length <= message.len(), "a field longer than its message");
                message.advance(length);
            }
            (_, WireType::ThirtyTwoBit) => message.advance(4),
            (_, WireType::SixtyFourBit) => message.advance(8),
            (tag, kind) => bail!("field {tag} of kind {kind:?}"),
        }
    }
    Ok(None)
}
