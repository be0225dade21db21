//! Starting processes that outlive us, watching for their end, and taking a file descriptor from one.

#![expect(
    unsafe_code,
    reason = "a session is made between fork and exec, and tokio wants to be promised that a descriptor stays the same"
)]

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::unix::AsyncFd;

use crate::hypervisor::{HvError, HvResult};

/// A process to start.
pub(crate) struct Detached<'a> {
    /// Program.
    pub(crate) binary: &'a Path,
    /// Its arguments.
    pub(crate) arguments: &'a [OsString],
    /// What it inherits, and as which number.
    pub(crate) fds: Vec<(OwnedFd, i32)>,
    /// Where it runs.
    pub(crate) folder: &'a Path,
    /// Where its words go.
    pub(crate) log: File,
}

impl Detached<'_> {
    /// Starts it in a session of its own: what is sent to the daemon's terminal or process group doesn't reach it.
    pub(crate) fn spawn(self) -> io::Result<Child> {
        let mappings =
            self.fds.into_iter().map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd }).collect();
        let mut command = Command::new(self.binary);
        command
            .args(self.arguments)
            .current_dir(self.folder)
            .stdin(Stdio::null())
            .stdout(self.log.try_clone()?)
            .stderr(self.log)
            // The daemon's environment may hold secrets, and nothing in it is meant for a VM.
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .fd_mappings(mappings)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "two descriptors for one number"))?;
        // SAFETY: runs in the child between fork and exec, where only async-signal-safe calls are sound. It makes one
        // system call and converts its errno, without allocating or locking.
        unsafe {
            command.pre_exec(|| rustix::process::setsid().map(drop).map_err(Into::into));
        }
        command.spawn()
    }
}

/// A process's descriptor, which becomes readable when the process has ended.
pub(crate) fn wait_on(pidfd: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: the descriptor is open for as long as the `OwnedFd` exists, which the `AsyncFd` shares; an `Arc` always
    // leads to the same one, and `OwnedFd` has no way to change which descriptor it is.
    let watched = unsafe { AsyncFd::register(pidfd) };
    watched.map_err(Into::into)
}

/// A port on a bridge, from QEMU's helper, which checks whether we may have one.
pub(crate) async fn bridge_tap(helper: &Path, bridge: &str) -> HvResult<OwnedFd> {
    let refused = |why: String| HvError::Process(format!("join bridge {bridge}: {why}"));
    let (ours, theirs) = UnixStream::pair().map_err(|error| refused(error.to_string()))?;
    let mut command = Command::new(helper);
    command.arg(format!("--br={bridge}")).arg("--fd=3").stdin(Stdio::null()).stdout(Stdio::null());
    command
        .fd_mappings(vec![FdMapping { parent_fd: theirs.into(), child_fd: 3 }])
        .map_err(|error| refused(error.to_string()))?;
    let mut command = tokio::process::Command::from(command);
    command.stderr(Stdio::piped()).kill_on_drop(true);
    let child = command.spawn().map_err(|error| refused(error.to_string()))?;
    // The command holds the other end of the socket: with it, a helper that fails would leave us waiting for a message.
    drop(command);
    let output = tokio::time::timeout(Duration::from_secs(10), child.wait_with_output())
        .await
        .map_err(|_| HvError::Timeout("qemu-bridge-helper"))?
        .map_err(|error| refused(error.to_string()))?;
    if !output.status.success() {
        return Err(refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    received_fd(&ours).map_err(|error| refused(error.to_string()))
}

/// The descriptor in the message that waits on a socket.
fn received_fd(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    recvmsg(socket.as_fd(), &mut [io::IoSliceMut::new(&mut byte)], &mut control, flags)?;
    let fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    fds.flatten().next().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no descriptor came"))
}
