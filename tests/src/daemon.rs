//! A real `hvkubed` on a state directory of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use hvkube_sdk::Client;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{program, until};

/// The end of the log that is shown when a test fails.
const LOG_SHOWN: usize = 24 << 10;

/// A daemon, and everything it started. Dropping it kills both.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    dir: TempDir,
    arguments: Vec<String>,
    client: Client,
}

impl Daemon {
    /// Starts one with settings of its own on a fresh directory, and waits until it serves.
    ///
    /// # Panics
    /// When it does not serve.
    pub async fn start(arguments: &[&str]) -> Self {
        // Short: sockets lie below it, and their paths are limited to some 100 bytes.
        let dir = tempfile::Builder::new().prefix("hvk").tempdir().expect("a temporary directory");
        let arguments: Vec<_> = arguments.iter().map(|&text| text.to_owned()).collect();
        let child = spawn(dir.path(), &arguments);
        let client = Client::builder()
            .endpoint("http://127.0.0.1:1")
            .token("none")
            .connect_lazy()
            .expect("a client of nothing yet");
        let mut daemon = Self { child, dir, arguments, client };
        daemon.serves().await;
        daemon
    }

    /// Waits until it serves, after [`Daemon::begin_again`].
    ///
    /// # Panics
    /// When it does not.
    pub async fn serves(&mut self) {
        let endpoint = self.state_dir().join("endpoint");
        until("the daemon's endpoint", async || {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("hvkubed ended with {status}:\n{}", self.log());
            }
            endpoint.is_file().then_some(())
        })
        .await;
        self.client =
            Client::builder().state_dir(self.state_dir()).connect().await.expect("the daemon answers");
    }

    /// A client with the admin's token.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// A client with a new token of that name.
    ///
    /// # Panics
    /// When the token can't be made.
    pub async fn client_of(&self, name: &str) -> Client {
        let mut command = Command::new(program("hvkubed"));
        command.args(["token", "add", name, "--state-dir"]).arg(self.state_dir());
        let output = environment(&mut command, self.dir.path()).output().expect("hvkubed token");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let token = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let client = Client::builder().endpoint(self.endpoint()).token(token);
        client.connect().await.expect("the daemon answers")
    }

    /// URL of the API.
    ///
    /// # Panics
    /// When the daemon does not serve.
    #[must_use]
    pub fn endpoint(&self) -> String {
        let text = fs::read_to_string(self.state_dir().join("endpoint")).expect("the daemon serves");
        text.trim().to_owned()
    }

    /// The admin's token.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn token(&self) -> String {
        let text = fs::read_to_string(self.state_dir().join("admin.token")).expect("a token");
        text.trim().to_owned()
    }

    /// Where it keeps everything.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        state_dir(self.dir.path())
    }

    /// A directory for the test's own files.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// The daemon's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A command line tool that finds this daemon by itself.
    #[must_use]
    pub fn hvkube(&self) -> Command {
        let mut command = Command::new(program("hvkube"));
        environment(&mut command, self.dir.path()).env("HVKUBE_STATE_DIR", self.state_dir());
        command.stdin(Stdio::null());
        command
    }

    /// Kills the daemon, and only it, on the spot.
    ///
    /// # Panics
    /// When it can't be killed.
    pub fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("reaped");
    }

    /// Starts it again on what is there, after [`Daemon::kill`] or [`Daemon::stop`].
    pub async fn again(&mut self) {
        self.begin_again();
        self.serves().await;
    }

    /// As [`Daemon::again`], with other settings.
    pub async fn again_with(&mut self, arguments: &[&str]) {
        self.arguments = arguments.iter().map(|&text| text.to_owned()).collect();
        self.again().await;
    }

    /// As [`Daemon::again`], without waiting for it.
    pub fn begin_again(&mut self) {
        // A daemon that was killed left it behind, and the next one takes a moment to remove it.
        let _ = fs::remove_file(self.state_dir().join("endpoint"));
        self.child = spawn(self.dir.path(), &self.arguments);
    }

    /// Asks it to stop.
    ///
    /// # Panics
    /// When it is gone.
    pub fn terminate(&self) {
        kill_process(pid(self.child.id()), Signal::TERM).expect("it runs");
    }

    /// Asks it to stop and waits until it has.
    pub async fn stop(&mut self) -> ExitStatus {
        self.terminate();
        until("the daemon's end", async || self.child.try_wait().expect("a child")).await
    }

    /// How it ended, once it has.
    ///
    /// # Panics
    /// When it can't be told.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child")
    }

    /// Processes of its VMs: id and VM.
    #[must_use]
    pub fn machines(&self) -> Vec<(u32, String)> {
        machines(&self.state_dir())
    }

    /// The end of its log.
    #[must_use]
    pub fn log(&self) -> String {
        let log = fs::read(self.dir.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_SHOWN)..]).into_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- the daemon's log ----\n{}\n----", self.log());
        }
        // It may be gone already, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for (machine, _) in self.machines() {
            let _ = kill_process(pid(machine), Signal::KILL);
        }
        // Desktops of the process backend have their homes there.
        for process in at_home_below(self.dir.path()) {
            let _ = kill_process(pid(process), Signal::KILL);
        }
    }
}

/// # Panics
/// When it is no process id.
pub(crate) fn pid(number: u32) -> Pid {
    i32::try_from(number).ok().and_then(Pid::from_raw).expect("a process id")
}

fn state_dir(dir: &Path) -> PathBuf {
    dir.join("s")
}

fn spawn(dir: &Path, arguments: &[String]) -> Child {
    let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("log")).expect("a log");
    let mut command = Command::new(program("hvkubed"));
    command
        .args(["--listen", "127.0.0.1:0", "--state-dir"])
        .arg(state_dir(dir))
        .arg("--run-dir")
        .arg(dir.join("r"))
        .args(arguments);
    environment(&mut command, dir)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a log"))
        .stderr(log)
        .spawn()
        .expect("hvkubed starts")
}

/// Nothing of the person's who runs the tests.
fn environment<'a>(command: &'a mut Command, home: &Path) -> &'a mut Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.env_clear().env("PATH", path).env("HOME", home).env("NO_COLOR", "1").env("LANG", "C.UTF-8")
}

/// Processes whose home directory is in there.
fn at_home_below(dir: &Path) -> Vec<u32> {
    let home = format!("HOME={}/", dir.display());
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("a process list").flatten() {
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Processes come and go while one looks.
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|one| one.starts_with(home.as_bytes())) {
            found.push(number);
        }
    }
    found
}

fn machines(state_dir: &Path) -> Vec<(u32, String)> {
    let Ok(instance) = fs::read_to_string(state_dir.join("qemu/instance")) else { return Vec::new() };
    let marker = format!("guest=hvkube/{}/", instance.trim().trim_matches('"'));
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("a process list").flatten() {
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Processes come and go while one looks.
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line);
        if let Some(at) = line.find(&marker) {
            let rest = &line[at + marker.len()..];
            let name = rest.split(['\0', ',']).next().unwrap_or_default();
            found.push((number, name.to_owned()));
        }
    }
    found.sort();
    found
}
