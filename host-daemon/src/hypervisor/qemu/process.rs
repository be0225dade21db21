//! The processes behind running VMs: started here or found again, watched to their end.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::timeout;

use super::error::Context;
use super::files;
use super::machine::{AGENT_FD, MONITOR_FD};
use super::network::Ends;
use super::qmp::Qmp;
use super::records::{agent_socket, log_file, monitor_socket};
use super::spawn::{Detached, wait_on};
use crate::hypervisor::{HvError, HvResult, Run};

/// Building the machine takes 45 ms; a host that swaps or eight starts at once may take a hundred times that.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// A killed process is gone when its memory is freed.
const KILL_DEADLINE: Duration = Duration::from_secs(20);
/// How much of a log is last words.
const LAST_WORDS: u64 = 2048;

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exit {
    /// Exit code or signal, where we are told.
    pub(crate) how: String,
    /// Exit code alone.
    pub(crate) code: Option<i32>,
    /// End of its log.
    pub(crate) words: String,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.words.is_empty() {
            write!(f, "qemu {}, without a word", self.how)
        } else {
            write!(f, "qemu {}: {}", self.how, self.words)
        }
    }
}

/// A process.
#[derive(Debug)]
pub(crate) struct Process {
    /// Which run of which VM it is.
    pub(crate) run: Run,
    /// Its folder.
    pub(crate) dir: PathBuf,
    pidfd: Arc<OwnedFd>,
    exit: watch::Receiver<Option<Exit>>,
}

impl Process {
    /// Starts QEMU in a fresh folder with its sockets open, so that connecting to them never has to be retried.
    pub(crate) fn start(
        binary: &Path,
        arguments: &[OsString],
        dir: &Path,
        network: Ends,
        number: u64,
    ) -> HvResult<Self> {
        files::remove(dir)?;
        files::private_dir(dir)?;
        let mut fds = network;
        for (path, number) in [(monitor_socket(dir), MONITOR_FD), (agent_socket(dir), AGENT_FD)] {
            let socket = UnixListener::bind(&path).context("listen on", &path)?;
            fds.push((socket.into(), number));
        }
        let log_path = log_file(dir);
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&log_path)
            .context("open", &log_path)?;
        let child = Detached { binary, arguments, fds, folder: dir, log }
            .spawn()
            .map_err(|error| HvError::Unavailable(format!("can't run {}: {error}", binary.display())))?;
        let pid = child.id();
        Self::watch(pid, Some(child), dir, number).context("watch process of", dir)
    }

    /// Takes on a process that was started by an earlier daemon.
    pub(crate) fn adopt(pid: u32, dir: &Path, number: u64) -> std::io::Result<Self> {
        Self::watch(pid, None, dir, number)
    }

    fn watch(pid: u32, child: Option<Child>, dir: &Path, number: u64) -> std::io::Result<Self> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let raw = raw.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))?;
        // A child's number stays its own until it is reaped, which only `end_of` does.
        let pidfd = Arc::new(pidfd_open(raw, PidfdFlags::NONBLOCK)?);
        let ended = wait_on(Arc::clone(&pidfd))?;
        let (tell, exit) = watch::channel(None);
        let log = log_file(dir);
        tokio::spawn(async move {
            let (how, code) = end_of(&ended, child).await;
            tell.send_replace(Some(Exit { how, code, words: last_words(&log) }));
        });
        Ok(Self { run: Run { number, pid }, dir: dir.to_owned(), pidfd, exit })
    }

    /// Connects to its monitor, once it is up. When it ends instead, the error has its last words.
    pub(crate) async fn monitor(&self) -> HvResult<Qmp> {
        let path = monitor_socket(&self.dir);
        let connected = tokio::select! {
            biased;
            exit = self.ended() => return Err(HvError::Process(exit.to_string())),
            connected = Qmp::connect(&path, START_DEADLINE) => connected,
        };
        match connected {
            Ok(qmp) => Ok(qmp),
            // A monitor that hangs up is the first sign of an end that has a better explanation.
            Err(error) => Err(match timeout(Duration::from_secs(2), self.ended()).await {
                Ok(exit) => HvError::Process(exit.to_string()),
                Err(_) => HvError::Process(format!("qemu's monitor: {error}")),
            }),
        }
    }

    /// Its end, now or later.
    pub(crate) async fn ended(&self) -> Exit {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await.map(|exit| exit.clone()) {
            Ok(Some(exit)) => exit,
            // Only when the runtime that watched it is gone.
            _ => Exit { how: "is out of sight".to_owned(), code: None, words: String::new() },
        }
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Ends it at once and waits until it is gone.
    pub(crate) async fn kill(&self) -> HvResult<()> {
        match pidfd_send_signal(self.pidfd.as_fd(), Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => {
                return Err(HvError::Io {
                    context: format!("kill process {}", self.run.pid),
                    source: error.into(),
                });
            }
        }
        timeout(KILL_DEADLINE, self.ended())
            .await
            .map(drop)
            .map_err(|_| HvError::Timeout("ending a vm process"))
    }

    /// Bytes of memory that it alone occupies: anonymous pages, among them every copied page of a forked memory.
    pub(crate) fn resident_bytes(&self) -> HvResult<u64> {
        let path = PathBuf::from(format!("/proc/{}/smaps_rollup", self.run.pid));
        let text = fs::read_to_string(&path).context("read", &path)?;
        let kilobytes = text
            .lines()
            .find_map(|line| line.strip_prefix("Anonymous:"))
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|number| number.parse::<u64>().ok());
        Ok(kilobytes.unwrap_or(0) * 1024)
    }
}

/// Waits for the end, and reaps it when it is our child; of others, nobody tells how they ended.
async fn end_of(ended: &AsyncFd<Arc<OwnedFd>>, child: Option<Child>) -> (String, Option<i32>) {
    if ended.readable().await.is_err() {
        return ("can't be watched".to_owned(), None);
    }
    match child.map(|mut child| child.wait()) {
        Some(Ok(status)) => (describe(status), status.code()),
        Some(Err(_)) | None => ("ended".to_owned(), None),
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

fn last_words(log: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS)))?;
        let mut tail = Vec::new();
        file.take(LAST_WORDS).read_to_end(&mut tail)?;
        Ok(tail)
    };
    let tail = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&tail);
    // Said at every start by QEMU, which does not expect a hub without a network card.
    let lines =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.contains("hub 0 with no nics"));
    lines.collect::<Vec<_>>().join("; ")
}

/// Whether a process still bears a marker: its number may have gone to another one since it was found.
pub(crate) fn bears(pid: u32, marker: &str) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| vm_name(&line, marker) == Some(""))
}

/// What follows the prefix in the name that a command line gives its VM.
fn vm_name<'a>(line: &'a [u8], prefix: &str) -> Option<&'a str> {
    let mut words = line.split(|byte| *byte == 0).skip_while(|word| *word != b"-name").skip(1);
    std::str::from_utf8(words.next()?).ok()?.strip_prefix(prefix)
}

/// A process that bears our marker.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Marked {
    /// Its number.
    pub(crate) pid: u32,
    /// The VM's id in the marker.
    pub(crate) vm: String,
}

/// All processes of ours that bear the marker of this instance: anybody can read it and start a process with it, so the
/// user counts too. A process can't run without bearing it, so nothing is missed,
/// whenever the daemon that started it was killed.
pub(crate) fn marked(prefix: &str) -> HvResult<Vec<Marked>> {
    let proc = Path::new("/proc");
    let own = rustix::process::geteuid().as_raw();
    let mut all = Vec::new();
    for entry in fs::read_dir(proc).context("list", proc)?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if !entry.metadata().is_ok_and(|facts| facts.uid() == own) {
            continue;
        }
        // A process that ends meanwhile, or a zombie, has no command line.
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        if let Some(vm) = vm_name(&line, prefix) {
            all.push(Marked { pid, vm: vm.to_owned() });
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(script: &str) -> (tempfile::TempDir, Process) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let run = dir.path().join("run");
        let arguments = ["-c", script, "-name", "guest=hvkube/test-instance/vm-1"].map(Into::into);
        let process = Process::start(Path::new("/bin/sh"), &arguments, &run, Vec::new(), 1).expect("start");
        (dir, process)
    }

    #[tokio::test]
    async fn an_end_is_noticed_with_its_code_and_last_words() {
        let (_dir, process) = start("echo 'hub 0 with no nics'; echo can not go on >&2; exit 3");
        let exit = process.ended().await;
        assert_eq!(exit.to_string(), "qemu ended with code 3: can not go on");
        assert!(process.has_ended());
        let error = process.monitor().await.expect_err("dead").to_string();
        assert!(error.contains("can not go on"), "{error}");
        process.kill().await.expect("killing the dead succeeds");
    }

    #[tokio::test]
    async fn marked_processes_are_found_and_adopted() {
        let (_dir, process) = start("kill -STOP $$");
        let found = marked("guest=hvkube/test-instance/").expect("scan");
        assert_eq!(found, [Marked { pid: process.run.pid, vm: "vm-1".to_owned() }]);
        assert_eq!(marked("guest=hvkube/another/").expect("scan"), []);
        let adopted = Process::adopt(process.run.pid, &process.dir, 1).expect("adopt");
        assert!(!adopted.has_ended());
        process.kill().await.expect("kill");
        assert_eq!(adopted.ended().await.how, "ended");
        assert_eq!(process.ended().await.how, "was killed by signal 9");
    }
}
