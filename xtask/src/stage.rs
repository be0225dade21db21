//! A daemon of our own with everything it needs in one folder, and nothing left of it afterwards.
//!
//! ```text
//! <cache>/hvkube/run/<random>/   lock (ours), hvkubed.log, state/, run/
//! ```
//!
//! The folder's random path is in the command line or environment of every process that the daemon starts, so
//! [`leftovers`] finds them all, whatever became of the daemon. [`Stage::close`] stops, looks, and says what should not
//! have been there; a stage that is dropped on the way out of an error or an interrupt cleans up without a word. What a
//! killed xtask left behind is removed by the next stage: its lock is free.

mod leftovers;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::cargo::Programs;
use crate::command::{self, Failed};
use crate::interrupt;
use crate::progress::Step;

/// A socket's path has 107 bytes at most, and the daemon needs this many behind `run/`.
const SOCKET_ROOM: usize = 107 - "/run/".len() - 24;
/// How long the daemon may take until it serves: its probe of the accelerator is part of that.
const START: Duration = Duration::from_secs(60);
/// How long the daemon may take to stop before it is killed.
const STOP: Duration = Duration::from_secs(30);
/// VMs of a deleted pool that are not gone by then never will be.
const GONE: Duration = Duration::from_secs(30);
/// `hvkube` ends with this code when the state of things does not allow what it was asked.
const NOT_NOW: i32 = 6;
const POLL: Duration = Duration::from_millis(20);
/// Lines of the daemon's log that a failure shows.
const LOG_TAIL: usize = 15;

/// A running daemon.
#[derive(Debug)]
pub(crate) struct Stage {
    folder: TempDir,
    daemon: Child,
    address: SocketAddr,
    hvkube: PathBuf,
    /// Held until the end; the kernel drops it with the process.
    _lock: File,
    closed: bool,
}

impl Stage {
    /// Starts `hvkubed` of these programs on a free port and waits until it serves.
    ///
    /// # Errors
    /// When it does not come up; the error ends with its log.
    pub(crate) fn start(programs: &Programs, step: &Step) -> anyhow::Result<Self> {
        Self::start_with(programs, &[], step)
    }

    /// The same with settings of the daemon, as environment variables.
    pub(crate) fn start_with(
        programs: &Programs,
        settings: &[(&str, &str)],
        step: &Step,
    ) -> anyhow::Result<Self> {
        let base = base()?;
        // One at a time: a folder is not locked the moment it is made, and would look abandoned to another's sweep.
        let making = File::open(&base).context("open the folder of runs")?;
        flock(&making, FlockOperation::LockExclusive).context("lock the folder of runs")?;
        sweep(&base);
        // Short names: they are part of the paths of sockets.
        let folder = tempfile::Builder::new()
            .prefix("")
            .rand_bytes(8)
            .tempdir_in(&base)
            .with_context(|| format!("create a folder in {}", base.display()))?;
        let lock_path = folder.path().join("lock");
        let lock = File::create(&lock_path).with_context(|| format!("create {}", lock_path.display()))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).context("lock the folder")?;
        drop(making);

        let mut command = Command::new(programs.get("hvkubed")?);
        clean_environment(&mut command);
        let log = File::create(folder.path().join("hvkubed.log")).context("create the daemon's log")?;
        command
            .env("HVKUBE_STATE_DIR", folder.path().join("state"))
            .env("HVKUBED_RUN_DIR", folder.path().join("run"))
            .env("HVKUBED_LISTEN", "127.0.0.1:0")
            // Whatever still runs when we stop it is not wanted back.
            .env("HVKUBED_SHUTDOWN__SAVE_VMS", "false")
            .env("NO_COLOR", "1")
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("clone a file")?)
            .stderr(log)
            // Ctrl-C is for us: we stop the daemon when we are done with it.
            .process_group(0);
        let daemon = command.spawn().context("start hvkubed")?;
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let hvkube = programs.get("hvkube")?.to_owned();
        let mut stage = Self { folder, daemon, address: unknown, hvkube, _lock: lock, closed: false };
        stage.address = stage.wait_until_it_serves(step)?;
        Ok(stage)
    }

    fn wait_until_it_serves(&mut self, step: &Step) -> anyhow::Result<SocketAddr> {
        let deadline = Instant::now() + START;
        let endpoint = self.state_dir().join("endpoint");
        loop {
            if let Ok(text) = fs::read_to_string(&endpoint) {
                let address = text.trim().trim_start_matches("http://");
                return address.parse().with_context(|| format!("`{address}` is no address"));
            }
            if let Some(status) = self.daemon.try_wait().context("wait for hvkubed")? {
                bail!("hvkubed ended at once ({status}):\n{}", self.log_tail());
            }
            ensure!(Instant::now() < deadline, "hvkubed does not serve:\n{}", self.log_tail());
            interrupt::check()?;
            step.tick();
            std::thread::sleep(POLL);
        }
    }

    /// The daemon's process.
    pub(crate) fn daemon(&self) -> u32 {
        self.daemon.id()
    }

    /// Where the daemon keeps its state.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// A folder for files that end with the stage.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Makes a program a client of this daemon, by its environment.
    pub(crate) fn point(&self, command: &mut Command) {
        clean_environment(command);
        command.env("HVKUBE_STATE_DIR", self.state_dir());
    }

    /// The command line tool, a client of this daemon.
    pub(crate) fn hvkube<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.hvkube);
        self.point(&mut command);
        command.args(arguments);
        command
    }

    /// Deletes a template. The VMs of deleted pools go in the background, and it is in use until they are gone.
    pub(crate) fn delete_template(&self, template: &str, step: &Step) -> anyhow::Result<()> {
        let deadline = Instant::now() + GONE;
        loop {
            match command::run(&mut self.hvkube(["template", "delete", template]), step) {
                Err(error)
                    if error.downcast_ref::<Failed>().is_some_and(|f| f.code == Some(NOT_NOW))
                        && Instant::now() < deadline =>
                {
                    std::thread::sleep(5 * POLL);
                }
                outcome => return outcome,
            }
        }
    }

    /// Shows the daemon's last words beside a failure of one of its clients.
    pub(crate) fn explain<T>(&self, outcome: anyhow::Result<T>) -> anyhow::Result<T> {
        if outcome.is_err() && !interrupt::requested() {
            eprintln!("the daemon's last words:\n{}", self.log_tail());
        }
        outcome
    }

    /// The last lines of the daemon's log.
    fn log_tail(&self) -> String {
        let text = fs::read(self.folder.path().join("hvkubed.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n")
    }

    /// Stops the daemon and proves that nothing is left: no process, no port, no file.
    ///
    /// # Errors
    /// Names what was left. It is gone all the same.
    pub(crate) fn close(mut self) -> anyhow::Result<()> {
        self.closed = true;
        let in_time = self.stop_daemon();
        let left = leftovers::end(self.folder.path());
        let answers = TcpStream::connect_timeout(&self.address, Duration::from_secs(1)).is_ok();
        let path = self.folder.path().to_owned();
        fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
        ensure!(in_time, "hvkubed did not stop within {} s", STOP.as_secs());
        ensure!(left.is_empty(), "left behind, and ended now: {}", left.join(", "));
        ensure!(!answers, "somebody still listens on {}", self.address);
        Ok(())
    }

    /// Whether it stopped by itself in time.
    fn stop_daemon(&mut self) -> bool {
        if !matches!(self.daemon.try_wait(), Ok(None)) {
            return true;
        }
        if let Some(pid) = i32::try_from(self.daemon.id()).ok().and_then(Pid::from_raw) {
            // It may have ended this instant.
            let _ = kill_process(pid, Signal::TERM);
        }
        let deadline = Instant::now() + STOP;
        while Instant::now() < deadline {
            if !matches!(self.daemon.try_wait(), Ok(None)) {
                return true;
            }
            std::thread::sleep(POLL);
        }
        // Both can only fail when it has ended by now.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        false
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.closed {
            self.stop_daemon();
            leftovers::end(self.folder.path());
            // The folder removes itself.
        }
    }
}

/// Settings of the user's own daemon are not for ours.
fn clean_environment(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HVKUBE") {
            command.env_remove(&name);
        }
    }
}

/// The folder that stages are in: the user's cache, or the temporary folder when its name is too long for sockets.
fn base() -> anyhow::Result<PathBuf> {
    let cache = directories::ProjectDirs::from("dev", "hvkube", "hvkube")
        .context("find the user's cache folder: HOME is not set")?
        .cache_dir()
        .join("run");
    let fits = |base: &Path| base.as_os_str().len() + "/12345678".len() <= SOCKET_ROOM;
    let base = if fits(&cache) { cache } else { std::env::temp_dir().join("hvkube-run") };
    ensure!(fits(&base), "{} is too long a path for sockets: set TMPDIR to a shorter one", base.display());
    fs::create_dir_all(&base).with_context(|| format!("create {}", base.display()))?;
    Ok(base)
}

/// Removes stages whose owner is gone.
fn sweep(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let abandoned = File::open(entry.path().join("lock"))
            .is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok());
        if abandoned {
            let ended = leftovers::end(&entry.path());
            if let Err(error) = fs::remove_dir_all(entry.path()) {
                // It only costs space, and the next one tries again.
                let _ = writeln!(std::io::stderr(), "cannot remove {}: {error}", entry.path().display());
            }
            if !ended.is_empty() {
                eprintln!("ended what a killed run had left: {}", ended.join(", "));
            }
        }
    }
}
