//! A desktop for a viewer of VNC.

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::client::{Client, call};
use crate::desktop::Target;
use crate::error::{Error, Result};
use crate::v1::connect_console_request::Part;
use crate::v1::{ConnectConsoleRequest, OpenConsoleRequest};

/// Messages on their way to the daemon; a viewer's are a few bytes each.
const QUEUE: usize = 16;
/// Bytes of one message at most: what the daemon takes.
const MAX_DATA: usize = 64 << 10;

/// A console that was opened: the right to connect one viewer, within a minute.
#[derive(Debug)]
pub struct Console {
    client: Client,
    ticket: String,
}

impl Target {
    /// Opens a console: what a viewer of VNC needs to see and drive the desktop, or with `view_only` to see it.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` (`VM_NOT_RUNNING`, `LEASE_ENDED`, `VM_RESERVED`); `PERMISSION_DENIED`
    /// (`LEASE_NOT_YOURS`); `RESOURCE_EXHAUSTED` (`TOO_MANY_CONSOLES`).
    pub async fn open_console(&self, view_only: bool) -> Result<Console> {
        let request = OpenConsoleRequest { target: self.name().to_owned(), view_only };
        let client = self.client().clone();
        let answer = call!(client, Repeatable, client.quick(), vms.open_console(request))?;
        Ok(Console { client, ticket: answer.ticket })
    }
}

impl Console {
    /// Speaks RFB 3.8 with the viewer at the other end of `io` until it leaves, or the desktop goes away.
    ///
    /// # Errors
    /// `NOT_FOUND` (`CONSOLE_TICKET_UNKNOWN`) when the minute is over; `ABORTED` (`CONSOLE_FAILED`) for a viewer that does
    /// not keep to the protocol; `FAILED_PRECONDITION` and `UNAVAILABLE` when the lease ends or the VM stops.
    pub async fn bridge(self, io: impl AsyncRead + AsyncWrite + Send) -> Result<()> {
        let Self { client, ticket } = self;
        let (mut from, mut to) = tokio::io::split(io);
        let (out, queue) = mpsc::channel(QUEUE);
        let message = |part| ConnectConsoleRequest { part: Some(part) };
        // There is room: it is the first.
        let _ = out.send(message(Part::Ticket(ticket))).await;
        let error = |status| client.error(status);
        let answer = client.vms().connect_console(ReceiverStream::new(queue)).await.map_err(error)?;
        let mut answer = answer.into_inner();
        let upward = async {
            loop {
                let mut data = BytesMut::with_capacity(MAX_DATA);
                match from.read_buf(&mut data).await {
                    Ok(1..) if out.send(message(Part::Data(data.freeze()))).await.is_ok() => {}
                    // The viewer left. The daemon is told by the end of the call.
                    _ => return Ok::<_, Error>(()),
                }
            }
        };
        let downward = async {
            while let Some(piece) = answer.message().await.map_err(error)? {
                if to.write_all(&piece.data).await.is_err() || to.flush().await.is_err() {
                    break;
                }
            }
            Ok(())
        };
        tokio::select! {
            done = downward => done,
            done = upward => done,
        }
    }
}
