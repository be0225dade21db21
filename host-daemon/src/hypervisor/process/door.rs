//! Where one VM's agent comes in: a loopback port of its own, and the secret that only this agent knows.
//!
//! Anyone on the host can connect, so a connection counts only once its hello has been looked at (not taken: the session
//! reads it again). The latest one waits in a place for one, until it is asked for.

use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hvkube_proto::preface::{HELLO_LEN, HelloScanner};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

/// Time to say hello; an agent does at once.
const HELLO: Duration = Duration::from_secs(5);
/// Connections that may be looked at together; others wait in the kernel's queue.
const AT_ONCE: usize = 8;

#[derive(Default)]
struct Place {
    stream: Mutex<Option<TcpStream>>,
    came: Notify,
}

/// An open door; dropped, it is shut.
pub(super) struct Door {
    pub(super) port: u16,
    place: Arc<Place>,
    listening: AbortHandle,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl Door {
    /// Listens on a port, 0 for any that is free.
    pub(super) async fn open(port: u16, secret: [u8; 32]) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let port = listener.local_addr()?.port();
        let place = Arc::new(Place::default());
        let listening = tokio::spawn(listen(listener, secret, place.clone())).abort_handle();
        Ok(Self { port, place, listening })
    }

    /// The next stream of the agent; waits for it.
    pub(super) fn next(&self) -> impl Future<Output = TcpStream> + Send + 'static {
        let place = self.place.clone();
        async move {
            loop {
                let came = place.came.notified();
                if let Some(stream) = place.stream.lock().unwrap_or_else(PoisonError::into_inner).take() {
                    return stream;
                }
                came.await;
            }
        }
    }
}

async fn listen(listener: TcpListener, secret: [u8; 32], place: Arc<Place>) {
    let looks = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(look) = looks.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: they come back.
                tracing::warn!(%error, "cannot accept an agent");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let place = place.clone();
        tokio::spawn(async move {
            let _look = look;
            if matches!(timeout(HELLO, knows(&stream, &secret)).await, Ok(Ok(true))) {
                let _ = stream.set_nodelay(true);
                *place.stream.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream);
                place.came.notify_one();
            }
        });
    }
}

async fn knows(stream: &TcpStream, secret: &[u8; 32]) -> io::Result<bool> {
    let mut bytes = [0; HELLO_LEN];
    loop {
        let n = stream.peek(&mut bytes).await?;
        if n == HELLO_LEN {
            break;
        }
        if n == 0 {
            return Ok(false);
        }
        // A part of it: what was seen stays, so there is nothing to wait for but time.
        sleep(Duration::from_millis(2)).await;
    }
    let mut scanner = HelloScanner::default();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let (now, then) = rest.split_at(scanner.wanted().min(rest.len()));
        match scanner.feed(now) {
            Ok(Some(hello)) => return Ok(hello.proves(secret)),
            Ok(None) => rest = then,
            Err(_) => return Ok(false),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use hvkube_proto::preface::Hello;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn only_who_knows_the_secret_comes_in() {
        let door = Door::open(0, [5; 32]).await.expect("open");
        let hello = |secret| Hello { version: 1, nonce: [1; 16], secret }.encode();
        let connect = || TcpStream::connect((Ipv4Addr::LOCALHOST, door.port));
        let mut stranger = connect().await.expect("connects");
        stranger.write_all(&hello([6; 32])).await.expect("sent");
        assert!(matches!(stranger.read(&mut [0; 1]).await, Ok(0) | Err(_)), "shown the door");
        let mut agent = connect().await.expect("connects");
        let hello_5 = hello([5; 32]);
        agent.write_all(&hello_5[..20]).await.expect("sent");
        tokio::task::yield_now().await;
        agent.write_all(&hello_5[20..]).await.expect("sent");
        let mut stream = timeout(Duration::from_secs(20), door.next()).await.expect("comes in");
        let mut seen = [0; HELLO_LEN];
        stream.read_exact(&mut seen).await.expect("its hello is still there");
        assert_eq!(seen, hello([5; 32]));
    }
}
