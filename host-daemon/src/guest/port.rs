//! A guest stream that can be cut at any moment.
//!
//! The host must close a VM's port before it saves the VM, and must know that it is closed. HTTP/2 machinery holds its
//! stream somewhere inside spawned tasks, so the stream is lent to it through a slot: [`Port::cut`] empties the slot,
//! which closes the descriptor before it returns, and wakes the borrower, who finds the end of the stream.
//!
//! The slot also looks at the first byte the guest sends after the welcome. A server's first HTTP/2 frame never starts
//! with the first byte of a hello; if that byte comes, the hello we answered was stale and a newer one follows. Then the
//! stream can be taken back with what was read, and the session be opened again on it.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use hvkube_proto::preface::HELLO_MAGIC;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use crate::hypervisor::GuestStream;

struct Slot {
    stream: Option<Box<dyn GuestStream>>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Nothing was read yet.
    fresh: bool,
    /// What was read where HTTP/2 should have begun.
    newer_hello: Vec<u8>,
}

struct Shared {
    slot: Mutex<Slot>,
    closed: watch::Sender<Option<String>>,
}

impl Shared {
    fn with<T>(&self, f: impl FnOnce(&mut Slot) -> T) -> T {
        f(&mut self.slot.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn mark(&self, why: &str) {
        self.closed.send_if_modified(|closed| {
            let first = closed.is_none();
            if first {
                *closed = Some(why.to_owned());
            }
            first
        });
    }
}

/// The owner's end.
pub(super) struct Port(Arc<Shared>);

impl Port {
    pub(super) fn new(stream: Box<dyn GuestStream>) -> Self {
        let slot =
            Slot { stream: Some(stream), reader: None, writer: None, fresh: true, newer_hello: Vec::new() };
        Self(Arc::new(Shared { slot: Mutex::new(slot), closed: watch::Sender::new(None) }))
    }

    /// The end that HTTP/2 reads and writes.
    pub(super) fn io(&self) -> PortIo {
        PortIo(self.0.clone())
    }

    /// Closes the stream. When this returns, its descriptor is closed.
    pub(super) fn cut(&self, why: &str) {
        self.0.mark(why);
        let (stream, wakers) =
            self.0.with(|slot| (slot.stream.take(), [slot.reader.take(), slot.writer.take()]));
        drop(stream);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// Takes the stream back if a newer hello came instead of HTTP/2, with what was read of it.
    pub(super) fn reclaim(&self) -> Option<(Box<dyn GuestStream>, Vec<u8>)> {
        self.0.with(|slot| {
            if slot.newer_hello.is_empty() {
                return None;
            }
            slot.stream.take().map(|stream| (stream, std::mem::take(&mut slot.newer_hello)))
        })
    }

    /// Becomes the reason once the stream is closed.
    pub(super) fn closed(&self) -> watch::Receiver<Option<String>> {
        self.0.closed.subscribe()
    }
}

/// The borrower's end.
pub(super) struct PortIo(Arc<Shared>);

impl Drop for PortIo {
    /// HTTP/2 gave the stream up by itself, for instance because a keep-alive ping was not answered.
    fn drop(&mut self) {
        let stream = self.0.with(|slot| {
            // A stream that waits to be reclaimed is not HTTP/2's to close.
            if slot.newer_hello.is_empty() { slot.stream.take() } else { None }
        });
        drop(stream);
        self.0.mark("the guest stopped answering or spoke no HTTP/2");
    }
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the guest stream is closed")
}

impl AsyncRead for PortIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = self.0.with(|slot| {
            let Some(stream) = &mut slot.stream else { return Poll::Ready(Ok(())) };
            let result = Pin::new(stream).poll_read(cx, buf);
            match &result {
                Poll::Pending => slot.reader = Some(cx.waker().clone()),
                Poll::Ready(Ok(())) if slot.fresh && buf.filled().len() > before => {
                    slot.fresh = false;
                    if buf.filled()[before] == HELLO_MAGIC[0] {
                        slot.newer_hello = buf.filled()[before..].to_vec();
                        return Poll::Ready(Err(io::Error::other("the guest began a newer session")));
                    }
                }
                Poll::Ready(_) => {}
            }
            result
        });
        match &result {
            Poll::Ready(Ok(())) if buf.filled().len() == before && buf.remaining() > 0 => {
                self.0.mark("the guest closed the stream");
            }
            Poll::Ready(Err(error)) => self.0.mark(&error.to_string()),
            _ => {}
        }
        result
    }
}

impl PortIo {
    fn write_with(
        &self,
        cx: &Context<'_>,
        op: impl FnOnce(Pin<&mut Box<dyn GuestStream>>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let result = self.0.with(|slot| {
            let Some(stream) = &mut slot.stream else { return Poll::Ready(Err(cut_off())) };
            let result = op(Pin::new(stream));
            if result.is_pending() {
                slot.writer = Some(cx.waker().clone());
            }
            result
        });
        if let Poll::Ready(Err(error)) = &result {
            self.0.mark(&error.to_string());
        }
        result
    }
}

impl AsyncWrite for PortIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut cx2 = Context::from_waker(cx.waker());
        self.write_with(cx, |stream| stream.poll_write(&mut cx2, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut cx2 = Context::from_waker(cx.waker());
        self.write_with(cx, |stream| stream.poll_write_vectored(&mut cx2, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.0.with(|slot| slot.stream.as_ref().is_some_and(|stream| stream.is_write_vectored()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut cx2 = Context::from_waker(cx.waker());
        self.write_with(cx, |stream| stream.poll_flush(&mut cx2).map_ok(|()| 0)).map_ok(|_| ())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut cx2 = Context::from_waker(cx.waker());
        self.write_with(cx, |stream| stream.poll_shutdown(&mut cx2).map_ok(|()| 0)).map_ok(|_| ())
    }
}
