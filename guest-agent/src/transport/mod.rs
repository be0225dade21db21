//! How the agent reaches its host: one byte stream at a time, over a virtual serial port, vsock or TCP.
//!
//! The guest dials and then waits; what differs is how it learns that the host is there. A connection-oriented transport
//! connects and retries with a pause; a virtual serial port is open all the time and wakes when the host opens its end.

mod dial;
#[cfg(target_os = "linux")]
mod virtio;

use std::io;
use std::path::Path;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::config::{Config, ConfigError, TransportKind, read_secret};

pub use dial::Tcp;
#[cfg(target_os = "linux")]
pub use dial::Vsock;
#[cfg(target_os = "linux")]
pub use virtio::VirtioSerial;

/// A session's byte stream.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A way to the host.
#[async_trait]
pub trait Transport: Send {
    /// Waits until the host is there and gives a stream to it. The stream reads end-of-file as soon as the host goes away.
    ///
    /// Costs no CPU while it waits, may be called again as soon as the earlier stream is dropped, and may be dropped itself.
    async fn open(&mut self) -> io::Result<Box<dyn Stream>>;

    /// What proves who this guest is; zeroes where the transport itself does.
    fn secret(&self) -> [u8; 32] {
        [0; 32]
    }

    /// For logs.
    fn describe(&self) -> String;
}

/// Why there is no way to the host.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// Nothing to talk over.
    #[error(
        "no transport to the host: no virtio port {0}, no vsock device, and no tcp_address is configured"
    )]
    None(String),
    /// TCP without what it needs.
    #[error("transport tcp needs tcp_address and secret_file")]
    TcpIncomplete,
    /// The device can't be used.
    #[error("cannot open {what}")]
    Open {
        /// Which.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// The secret can't be read.
    #[error(transparent)]
    Secret(#[from] ConfigError),
    /// Not on this system.
    #[error("transport {0} is not available on this system")]
    Unsupported(&'static str),
}

/// Opens the configured transport, or the first that is there.
///
/// # Errors
/// When the configured one can't be used, or none is there.
pub fn detect(config: &Config) -> Result<Box<dyn Transport>, TransportError> {
    match config.transport {
        TransportKind::Virtio => open_virtio(config),
        TransportKind::Vsock => open_vsock(config),
        TransportKind::Tcp => open_tcp(config),
        TransportKind::Auto => {
            if virtio_path(config).exists() {
                open_virtio(config)
            } else if Path::new("/dev/vsock").exists() {
                open_vsock(config)
            } else if config.tcp_address.is_some() {
                open_tcp(config)
            } else {
                Err(TransportError::None(config.port_name.clone()))
            }
        }
    }
}

fn virtio_path(config: &Config) -> std::path::PathBuf {
    Path::new("/dev/virtio-ports").join(&config.port_name)
}

#[cfg(target_os = "linux")]
fn open_virtio(config: &Config) -> Result<Box<dyn Transport>, TransportError> {
    let path = virtio_path(config);
    let port = VirtioSerial::new(&path)
        .map_err(|source| TransportError::Open { what: path.display().to_string(), source })?;
    Ok(Box::new(port))
}

#[cfg(target_os = "linux")]
fn open_vsock(config: &Config) -> Result<Box<dyn Transport>, TransportError> {
    Ok(Box::new(Vsock::new(config.vsock_port)))
}

#[cfg(not(target_os = "linux"))]
fn open_virtio(_config: &Config) -> Result<Box<dyn Transport>, TransportError> {
    Err(TransportError::Unsupported("virtio"))
}

#[cfg(not(target_os = "linux"))]
fn open_vsock(_config: &Config) -> Result<Box<dyn Transport>, TransportError> {
    Err(TransportError::Unsupported("vsock"))
}

fn open_tcp(config: &Config) -> Result<Box<dyn Transport>, TransportError> {
    let (Some(address), Some(file)) = (&config.tcp_address, &config.secret_file) else {
        return Err(TransportError::TcpIncomplete);
    };
    Ok(Box::new(Tcp::new(address.clone(), read_secret(file)?)))
}
