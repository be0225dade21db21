//! Transports that connect: TCP and vsock. The host may not listen yet, so they try again with a growing pause.

use std::future::Future;
use std::io;
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::TcpStream;

use super::{Stream, Transport};

const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// A host that is away for long still gets its guest back within a second.
const LAST_PAUSE: Duration = Duration::from_secs(1);

async fn retry<T, F: Future<Output = io::Result<T>>>(mut connect: impl FnMut() -> F) -> T {
    let mut pause = FIRST_PAUSE;
    loop {
        match connect().await {
            Ok(stream) => return stream,
            Err(error) => tracing::debug!(%error, "host not reachable yet"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

/// TCP to a host daemon; the secret says which VM this is.
#[derive(Debug)]
pub struct Tcp {
    address: String,
    secret: [u8; 32],
}

impl Tcp {
    /// `address` as `host:port`.
    #[must_use]
    pub fn new(address: String, secret: [u8; 32]) -> Self {
        Self { address, secret }
    }
}

#[async_trait]
impl Transport for Tcp {
    async fn open(&mut self) -> io::Result<Box<dyn Stream>> {
        let stream = retry(|| TcpStream::connect(&self.address)).await;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }

    fn secret(&self) -> [u8; 32] {
        self.secret
    }

    fn describe(&self) -> String {
        format!("tcp {}", self.address)
    }
}

/// vsock to the host, CID 2.
#[cfg(target_os = "linux")]
#[derive(Debug)]
pub struct Vsock {
    port: u32,
}

#[cfg(target_os = "linux")]
impl Vsock {
    /// `port` on the host.
    #[must_use]
    pub fn new(port: u32) -> Self {
        Self { port }
    }
}

#[cfg(target_os = "linux")]
#[async_trait]
impl Transport for Vsock {
    async fn open(&mut self) -> io::Result<Box<dyn Stream>> {
        let address = tokio_vsock::VsockAddr::new(tokio_vsock::VMADDR_CID_HOST, self.port);
        Ok(Box::new(retry(|| tokio_vsock::VsockStream::connect(address)).await))
    }

    fn describe(&self) -> String {
        format!("vsock 2:{}", self.port)
    }
}
