//! Processes of ours: marked, found again, watched, ended.
//!
//! Everything that belongs to a VM carries a marker in its environment, which children inherit. That is how programs
//! that left their process group are found, and how a new daemon finds what an old one left.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, waitpid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep};

/// Variable that marks a process of ours.
pub(super) const MARKER: &str = "HVKUBE_PROCESS_VM";
/// Time for programs to end by themselves once they are asked to.
const GRACE: Duration = Duration::from_secs(2);
/// Time for killed ones to be gone; only one stuck in the kernel takes longer.
const KILLED: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Processes whose marker begins with `prefix`, zombies left out, with the whole marker.
pub(super) fn marked(prefix: &str) -> io::Result<Vec<(Pid, String)>> {
    let begin = format!("{MARKER}={prefix}");
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) =
            entry?.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw)
        else {
            continue;
        };
        // Gone meanwhile, or another user's: neither is ours.
        let Ok(environment) = fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())) else { continue };
        let marker = environment.split(|byte| *byte == 0).find(|line| line.starts_with(begin.as_bytes()));
        if let Some(marker) = marker {
            let marker = String::from_utf8_lossy(&marker[MARKER.len() + 1..]).into_owned();
            found.push((pid, marker));
        }
    }
    Ok(found)
}

/// Whether this process is alive and carries this marker.
pub(super) fn is_marked(pid: u32, marker: &str) -> bool {
    let line = format!("{MARKER}={marker}");
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|environment| environment.split(|byte| *byte == 0).any(|found| found == line.as_bytes()))
}

/// Memory that these processes alone occupy, in bytes.
pub(super) fn private_bytes(pids: &[Pid]) -> u64 {
    let of = |pid: &Pid| -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", pid.as_raw_nonzero())).ok()?;
        let private = text.lines().filter(|line| line.starts_with("Private_"));
        Some(private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum())
    };
    pids.iter().filter_map(of).sum::<u64>() * 1024
}

/// A process to wait for, ours by birth or found again.
pub(super) struct Watched {
    pid: Pid,
    ended: AsyncFd<OwnedFd>,
}

impl Watched {
    pub(super) fn new(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        let fd = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        Ok(Self { pid, ended: register(fd)? })
    }

    /// Waits for its end; gives how it ended where that is known, which is so for our own children only.
    pub(super) async fn ended(&self) -> Option<String> {
        if let Err(error) = self.ended.readable().await {
            tracing::warn!(%error, "cannot wait for a process");
        }
        let (_, status) = waitpid(Some(self.pid), WaitOptions::NOHANG).ok().flatten()?;
        Some(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (_, Some(signal)) => format!("signal {signal}"),
            _ => "unknown status".to_owned(),
        })
    }
}

#[expect(unsafe_code, reason = "tokio can't know that a descriptor stays the same one")]
fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` gives one and the same open descriptor for as long as it lives; the `AsyncFd` owns it and
    // nobody replaces it inside.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// Waits for a child of ours that has ended or is just ending, or it would stay a zombie as long as the daemon lives.
pub(super) async fn reap(pid: Pid) {
    let begun = Instant::now();
    // Memory, and the environment with it, goes a moment before the process can be waited for.
    while begun.elapsed() < GRACE && matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(None)) {
        sleep(LOOK_EVERY).await;
    }
}

/// Ends all processes with this marker, and waits until they are gone.
pub(super) async fn end(marker: &str) -> io::Result<()> {
    let asked = Instant::now();
    let mut signal = Signal::TERM;
    let (mut told, mut seen) = (Vec::new(), Vec::new());
    loop {
        let left: Vec<Pid> = marked(marker)?.into_iter().map(|(pid, _)| pid).collect();
        if left.is_empty() {
            for pid in seen {
                reap(pid).await;
            }
            return Ok(());
        }
        if asked.elapsed() > GRACE && signal == Signal::TERM {
            signal = Signal::KILL;
            told.clear();
        }
        if asked.elapsed() > GRACE + KILLED {
            return Err(io::Error::other(format!("{} processes can't be killed", left.len())));
        }
        for pid in left {
            // New ones may appear while the old ones end.
            if !told.contains(&pid) {
                let _ = kill_process(pid, signal);
                told.push(pid);
            }
            if !seen.contains(&pid) {
                seen.push(pid);
            }
        }
        sleep(LOOK_EVERY).await;
    }
}
