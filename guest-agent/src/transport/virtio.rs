//! A virtio-serial port as a byte stream.
//!
//! The kernel shows the host's end as a level: while the host has its end closed, `poll` says `HUP`, reads give 0 and
//! writes `EAGAIN`; every change wakes the pollers. Tokio keeps a `HUP` for good, because sockets never come back from it;
//! a port does. So the port sits in an epoll set of its own, edge-triggered, and tokio watches that set: it becomes readable
//! with every wake-up of the port and nothing else, whatever the level is, and the guest sleeps while the host is away.
//!
//! ```text
//! port --edge--> inner epoll --readable--> tokio --> try the system call again, look at the level
//! ```

use std::fs::OpenOptions;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use rustix::event::{PollFd, PollFlags, Timespec, epoll};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use super::{Stream, Transport};

/// The driver takes no more than this with one write.
const MAX_WRITE: usize = 32 << 10;

/// A virtio-serial port that stays open; sessions come and go on it.
#[derive(Debug)]
pub struct VirtioSerial {
    path: PathBuf,
    port: Arc<Port>,
}

impl VirtioSerial {
    /// Opens the device. Must run inside a tokio runtime.
    ///
    /// # Errors
    /// When the device can't be opened; `EBUSY` while another process has it.
    pub fn new(path: &Path) -> io::Result<Self> {
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
        Ok(Self { path: path.to_owned(), port: Arc::new(Port::new(file.into())?) })
    }
}

#[async_trait]
impl Transport for VirtioSerial {
    async fn open(&mut self) -> io::Result<Box<dyn Stream>> {
        while !self.port.host_is_there()? {
            self.port.wake_up().await?;
        }
        Ok(Box::new(PortStream { port: Arc::clone(&self.port), gather: Vec::new() }))
    }

    fn describe(&self) -> String {
        format!("virtio port {}", self.path.display())
    }
}

#[derive(Debug)]
struct Port {
    fd: OwnedFd,
    edges: AsyncFd<OwnedFd>,
}

impl Port {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(&set, &fd, epoll::EventData::new_u64(0), flags)?;
        #[expect(unsafe_code, reason = "tokio cannot check that a type always gives the same descriptor")]
        // SAFETY: an OwnedFd gives one and the same descriptor for as long as it lives, and is not replaced in the AsyncFd.
        let edges = unsafe { AsyncFd::register_with_interest(set, Interest::READABLE) }?;
        Ok(Self { fd, edges })
    }

    fn host_is_there(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN | PollFlags::OUT)];
        rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        Ok(!fds[0].revents().contains(PollFlags::HUP))
    }

    /// Waits for the next wake-up of the port. The port was armed before the caller looked at its level, so none is lost.
    async fn wake_up(&self) -> io::Result<()> {
        let mut guard = self.edges.readable().await?;
        self.drain()?;
        guard.clear_ready();
        Ok(())
    }

    /// As [`Self::wake_up`], for poll functions. One task polls both directions (the HTTP/2 connection), and both look
    /// again after any wake-up, so that one registered waker is enough.
    fn poll_wake_up(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut guard = ready!(self.edges.poll_read_ready(cx))?;
        self.drain()?;
        guard.clear_ready();
        Poll::Ready(Ok(()))
    }

    fn drain(&self) -> io::Result<()> {
        let mut events =
            [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 1];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        epoll::wait(self.edges.get_ref(), &mut events, Some(&now))?;
        Ok(())
    }
}

/// One session's use of the port.
struct PortStream {
    port: Arc<Port>,
    /// Collects small pieces, because each write costs an exit to the host.
    gather: Vec<u8>,
}

impl AsyncRead for PortStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            match rustix::io::read(self.port.fd.as_fd(), buf.initialize_unfilled()) {
                Ok(n) => {
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::AGAIN) => ready!(self.port.poll_wake_up(cx))?,
                Err(Errno::INTR) => {}
                Err(e) => return Poll::Ready(Err(e.into())),
            }
        }
    }
}

impl PortStream {
    fn poll_send(&self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            match rustix::io::write(self.port.fd.as_fd(), data) {
                Ok(n) => return Poll::Ready(Ok(n)),
                // Also what a closed host end looks like, which no wake-up may follow.
                Err(Errno::AGAIN) => {
                    if !self.port.host_is_there()? {
                        return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
                    }
                    ready!(self.port.poll_wake_up(cx))?;
                }
                Err(Errno::INTR) => {}
                Err(e) => return Poll::Ready(Err(e.into())),
            }
        }
    }
}

impl AsyncWrite for PortStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = bufs.iter().find(|b| !b.is_empty()).map_or(&[][..], |b| b);
        if first.len() >= MAX_WRITE {
            return self.poll_send(cx, first);
        }
        let mut gather = std::mem::take(&mut self.gather);
        gather.clear();
        for buf in bufs {
            let room = MAX_WRITE - gather.len();
            gather.extend_from_slice(&buf[..buf.len().min(room)]);
        }
        let sent = self.poll_send(cx, &gather);
        self.gather = gather;
        sent
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The port has no half-close; the host's end is the host's to close.
        Poll::Ready(Ok(()))
    }
}
