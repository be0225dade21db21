//! The host's half of the preface.

use std::time::Duration;

use futures_util::FutureExt as _;
use hvkube_proto::preface::{Hello, HelloScanner, VERSION, Welcome};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::error::GuestError;
use crate::hypervisor::GuestStream;

/// A guest that saw no open event (the port was closed and opened too fast for it, or nobody listened when it spoke) is
/// asked for a hello by a welcome to the nonce of nobody: first after this long, then after twice as long each time.
const FIRST_KNOCK: Duration = Duration::from_millis(250);
/// Every knock that waits in a port that the guest has yet to open will be answered by a hello of its own, so there are
/// only a few: enough for a guest that takes a minute to boot.
const KNOCKS: u32 = 8;

/// Finds the guest's latest hello, checks it and answers it.
///
/// A guest sends nothing between its hello and our welcome. So any byte that follows a hello proves it stale, and the
/// search goes on: only the last hello in the pipe is answered. `read` is what was already read from the stream.
pub(super) async fn greet(
    stream: &mut Box<dyn GuestStream>,
    read: Vec<u8>,
    epoch: u64,
    secret: Option<&[u8; 32]>,
) -> Result<(), GuestError> {
    let hello = last_hello(stream, read).await?;
    if hello.version != VERSION {
        return Err(GuestError::Version { theirs: hello.version, ours: VERSION });
    }
    if secret.is_some_and(|secret| !hello.proves(secret)) {
        return Err(GuestError::WrongSecret);
    }
    let welcome = Welcome { version: VERSION, nonce: hello.nonce, epoch }.encode();
    stream.write_all(&welcome).await.map_err(|error| GuestError::Lost(error.to_string()))?;
    stream.flush().await.map_err(|error| GuestError::Lost(error.to_string()))
}

async fn last_hello(stream: &mut Box<dyn GuestStream>, read: Vec<u8>) -> Result<Hello, GuestError> {
    let mut scanner = HelloScanner::default();
    let mut found = scan(&mut scanner, &read)?;
    let mut chunk = vec![0; 4096];
    let mut knocks = 0;
    loop {
        let n = if found.is_some() {
            match stream.read(&mut chunk).now_or_never() {
                None => break,
                Some(n) => n,
            }
        } else if knocks < KNOCKS {
            let pause = FIRST_KNOCK * 2_u32.pow(knocks);
            match tokio::time::timeout(pause, stream.read(&mut chunk)).await {
                Ok(n) => n,
                Err(_) => {
                    knocks += 1;
                    knock(stream).await?;
                    continue;
                }
            }
        } else {
            stream.read(&mut chunk).await
        };
        match n {
            Ok(0) => return Err(GuestError::Lost("the guest closed the stream".to_owned())),
            Ok(n) => found = scan(&mut scanner, &chunk[..n])?,
            Err(error) => return Err(GuestError::Lost(error.to_string())),
        }
    }
    found.ok_or_else(|| GuestError::Protocol("no hello".to_owned()))
}

async fn knock(stream: &mut Box<dyn GuestStream>) -> Result<(), GuestError> {
    let knock = Welcome { version: VERSION, nonce: [0; 16], epoch: 0 }.encode();
    stream.write_all(&knock).await.map_err(|error| GuestError::Lost(error.to_string()))
}

/// A hello that ends exactly where the bytes do.
fn scan(scanner: &mut HelloScanner, mut bytes: &[u8]) -> Result<Option<Hello>, GuestError> {
    let mut found = None;
    while !bytes.is_empty() {
        let (now, rest) = bytes.split_at(scanner.wanted().min(bytes.len()));
        found = scanner.feed(now).map_err(|error| GuestError::Protocol(error.to_string()))?;
        bytes = rest;
    }
    Ok(found)
}
