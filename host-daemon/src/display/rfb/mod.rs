//! A console for any viewer of VNC: the hub's screen and input devices, spoken as RFB 3.8 (RFC 6143).
//!
//! Made of what every backend has, so it shows whatever screenshots show: the agent's picture, or the hypervisor's while
//! there is no agent. Whoever gets the stream has been let in already, so the protocol's own security is "none"; it never
//! meets a network by itself.
//!
//! ```text
//!   viewer ── keys, pointer ────────────► Reader ──► the hub's input, in order
//!          ── requests, pixel format ───►   │
//!          ◄── changed rectangles, size ── Screen ◄── the hub's stream: latest frame wins
//! ```
//!
//! A viewer is asked for nothing and told nothing faster than it takes it: one update is under way at a time, and what
//! changes meanwhile is in the next.

mod input;
mod pixels;
mod screen;
#[cfg(test)]
mod tests;

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::hub::Hub;
use input::Hands;
use pixels::Format;
use screen::Screen;

const VERSION: &[u8; 12] = b"RFB 003.008\n";
/// A viewer opens its mouth at once, or is none.
const GREETING: Duration = Duration::from_secs(20);
/// Requests of a viewer that wait for the present update: they say the same again.
const REQUESTS: usize = 16;
/// Longest clipboard text that is skipped.
const MAX_CUT: u32 = 1 << 20;
/// Most encodings that a viewer may name; there are some dozens.
const MAX_ENCODINGS: u16 = 1024;

/// What a viewer wants of the screen.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wish {
    Format(Format),
    /// It can be told another size.
    Resizes(bool),
    /// The next change, or everything.
    Update {
        incremental: bool,
    },
}

/// Serves one viewer until it goes away.
///
/// # Errors
/// When the stream breaks, or the viewer does not keep to the protocol.
pub(crate) async fn serve(
    hub: &Hub,
    name: &str,
    view_only: bool,
    io: impl AsyncRead + AsyncWrite,
) -> io::Result<()> {
    let (mut from, mut to) = tokio::io::split(io);
    let mut screen = Screen::open(hub).await?;
    let introduction = screen.introduction(name);
    let greeting = async {
        greet(&mut from, &mut to).await?;
        to.write_all(&introduction).await?;
        to.flush().await
    };
    timeout(GREETING, greeting).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;

    let (wishes, wished) = mpsc::channel(REQUESTS);
    let mut hands = Hands::new(hub.clone(), view_only, screen.told());
    let outcome = tokio::select! {
        read = read(&mut from, &wishes, &mut hands) => read,
        shown = screen.show(wished, &mut to) => shown,
    };
    // What it held down must not stay down.
    hands.let_go().await;
    match outcome {
        // Viewers leave without a word.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
        outcome => outcome,
    }
}

fn bad(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

/// Agrees on a version and on no security of the protocol's own.
async fn greet(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    to.write_all(VERSION).await?;
    to.flush().await?;
    let mut theirs = [0; 12];
    from.read_exact(&mut theirs).await?;
    let minor = match &theirs {
        b"RFB 003.003\n" => 3,
        b"RFB 003.007\n" => 7,
        version if version.starts_with(b"RFB 003.") || version.starts_with(b"RFB 004.") => 8,
        _ => return Err(bad("the viewer does not speak RFB")),
    };
    if minor == 3 {
        to.write_all(&1_u32.to_be_bytes()).await?;
    } else {
        to.write_all(&[1, 1]).await?;
        to.flush().await?;
        if from.read_u8().await? != 1 {
            return Err(bad("the viewer insists on a security of its own"));
        }
        if minor == 8 {
            to.write_all(&0_u32.to_be_bytes()).await?;
        }
    }
    to.flush().await?;
    // Whether it wants the desktop for itself; there is no such thing here.
    from.read_u8().await.map(|_| ())
}

/// Takes in what a viewer says. Input is done here, one event after the other; wishes go to the screen.
async fn read(
    from: &mut (impl AsyncRead + Unpin),
    wishes: &mpsc::Sender<Wish>,
    hands: &mut Hands,
) -> io::Result<()> {
    loop {
        let wish = match from.read_u8().await? {
            0 => {
                let mut body = [0; 19];
                from.read_exact(&mut body).await?;
                Wish::Format(Format::read(&body[3..]).ok_or_else(|| bad("a pixel format that is none"))?)
            }
            2 => {
                from.read_u8().await?;
                let count = from.read_u16().await?;
                if count > MAX_ENCODINGS {
                    return Err(bad(format!("{count} encodings")));
                }
                let mut resizes = false;
                for _ in 0..count {
                    resizes |= from.read_i32().await? == screen::DESKTOP_SIZE;
                }
                Wish::Resizes(resizes)
            }
            3 => {
                let incremental = from.read_u8().await? != 0;
                // The part that it asks for: it gets the whole screen's changes, which RFC 6143 allows.
                from.read_u64().await?;
                Wish::Update { incremental }
            }
            4 => {
                let down = from.read_u8().await? != 0;
                from.read_u16().await?;
                hands.key(from.read_u32().await?, down).await;
                continue;
            }
            5 => {
                let buttons = from.read_u8().await?;
                let (x, y) = (from.read_u16().await?, from.read_u16().await?);
                hands.pointer(buttons, x, y).await;
                continue;
            }
            6 => {
                let mut padding = [0; 3];
                from.read_exact(&mut padding).await?;
                let length = from.read_u32().await?;
                if length > MAX_CUT {
                    return Err(bad(format!("a clipboard of {length} bytes")));
                }
                // Not passed on: a viewer sends it by itself, and not everyone wants to share theirs.
                tokio::io::copy(&mut (&mut *from).take(length.into()), &mut tokio::io::sink()).await?;
                continue;
            }
            kind => return Err(bad(format!("a message of the unknown kind {kind}"))),
        };
        if wishes.send(wish).await.is_err() {
            return Ok(());
        }
    }
}
