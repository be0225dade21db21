//! Starts the worker as the desktop user once there is a display, and again whenever it ends.
//!
//! The two share a socket pair, the worker's standard input: the worker writes one byte when it can serve, and for each
//! session the supervisor sends it one end of a new socket pair. Either process ending closes the pair, which the other sees.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::sync::watch;

use super::passwd::User;
use super::route::Connect;
use crate::config::Config;
use crate::platform::display_is_up;

/// How often to look for a display that isn't there: at boot it should be seen at once.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a session may take to draw its desktop; under emulation on a loaded host it is tens of seconds.
const SESSION_PATIENCE: Duration = Duration::from_secs(90);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// A worker that ran for this long did not fail at its start.
const LONG_LIFE: Duration = Duration::from_secs(30);

/// Access to the worker that runs now, if one does.
#[derive(Clone, Debug)]
pub struct Workers {
    current: watch::Receiver<Option<Arc<UnixStream>>>,
}

impl Workers {
    /// Starts keeping a worker running, for as long as the runtime lives.
    #[must_use]
    pub fn start(config: Config) -> Self {
        let (publish, current) = watch::channel(None);
        tokio::spawn(async move { keep_running(&config, &publish).await });
        Self { current }
    }

    /// Whether a worker can serve.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.current.borrow().is_some()
    }
}

#[async_trait]
impl Connect for Workers {
    async fn connect(&self) -> io::Result<UnixStream> {
        let control = self.current.borrow().clone();
        let control =
            control.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no worker is running"))?;
        let (ours, theirs) = UnixStream::pair()?;
        control.async_io(Interest::WRITABLE, || send_fd(&control, &theirs)).await?;
        Ok(ours)
    }
}

async fn keep_running(config: &Config, publish: &watch::Sender<Option<Arc<UnixStream>>>) {
    let mut pause = FIRST_PAUSE;
    loop {
        while !display_is_up(&config.display) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        session_is_up(config).await;
        let started = Instant::now();
        match run_one(config, publish).await {
            Ok(status) => tracing::warn!(%status, "worker ended"),
            Err(error) => tracing::error!(%error, "cannot run the worker"),
        }
        publish.send_replace(None);
        if started.elapsed() > LONG_LIFE {
            pause = FIRST_PAUSE;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

/// Waits for the session's ready file, but not for ever: a desktop that is odd is better than none.
async fn session_is_up(config: &Config) {
    let Some(file) = &config.ready_file else { return };
    let since = Instant::now();
    while !file.exists() {
        if since.elapsed() > SESSION_PATIENCE {
            tracing::warn!(file = %file.display(), "the session has not made its ready file, going on without");
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn run_one(
    config: &Config,
    publish: &watch::Sender<Option<Arc<UnixStream>>>,
) -> io::Result<std::process::ExitStatus> {
    let user = User::by_name(&config.desktop_user)?;
    let (control, theirs) = std::os::unix::net::UnixStream::pair()?;
    control.set_nonblocking(true)?;
    let mut control = UnixStream::from_std(control)?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(["worker", "--user", &user.name, "--display", &config.display])
        .env_clear()
        .envs(user.session_env(&config.display))
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let ready = tokio::select! {
        read = control.read_u8() => read,
        status = child.wait() => return status,
    };
    if ready.is_ok() {
        tracing::info!(pid = child.id(), user = user.name, "worker is ready");
        publish.send_replace(Some(Arc::new(control)));
    }
    child.wait().await
}

fn send_fd(control: &UnixStream, fd: &impl AsFd) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [fd.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    rustix::net::sendmsg(control, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive_fd(control: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received = rustix::net::recvmsg(
        control,
        &mut [IoSliceMut::new(&mut byte)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    fd.map(Some)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no descriptor came with a session"))
}

/// The worker's end: says that it can serve, and then takes sessions.
#[derive(Debug)]
pub struct Control(UnixStream);

impl Control {
    /// Takes over standard input. Must run inside a tokio runtime.
    ///
    /// # Errors
    /// When standard input isn't the supervisor's socket.
    pub fn from_stdin() -> io::Result<Self> {
        let fd = rustix::io::fcntl_dupfd_cloexec(io::stdin().as_fd(), 3)?;
        let socket = std::os::unix::net::UnixStream::from(fd);
        socket.peer_addr()?;
        socket.set_nonblocking(true)?;
        Ok(Self(UnixStream::from_std(socket)?))
    }

    /// Tells the supervisor that sessions may come.
    ///
    /// # Errors
    /// When the supervisor is gone.
    pub async fn ready(&mut self) -> io::Result<()> {
        self.0.write_u8(1).await
    }

    /// The next session's stream; none when the supervisor is gone.
    ///
    /// # Errors
    /// When something else than a stream came.
    pub async fn next(&mut self) -> io::Result<Option<UnixStream>> {
        let Some(fd) = self.0.async_io(Interest::READABLE, || receive_fd(&self.0)).await? else {
            return Ok(None);
        };
        let stream = std::os::unix::net::UnixStream::from(fd);
        stream.set_nonblocking(true)?;
        UnixStream::from_std(stream).map(Some)
    }
}

/// Becomes `user` for good. Must run before the process has a second thread: the system calls change one thread only.
///
/// # Errors
/// When the user doesn't exist or this process may not become it.
pub fn become_user(user: &User) -> io::Result<()> {
    use rustix::process::{Gid, Uid};
    if rustix::process::getuid().as_raw() == user.uid {
        return Ok(());
    }
    let groups: Vec<Gid> = user.groups.iter().map(|&g| Gid::from_raw(g)).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::thread::set_thread_groups(&groups)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    std::env::set_current_dir(&user.home).or_else(|_| std::env::set_current_dir("/"))
}
