//! One running desktop: a private X server, a window manager and an agent.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::time::timeout;

use super::ProcessConfig;
use super::processes::{self, MARKER, Watched};
use crate::hypervisor::{HvError, HvResult};
use crate::model::screen::Size;

/// Time for the X server to say which display it is.
const X_START: Duration = Duration::from_secs(20);
/// How much of a program's last words is told.
const LAST_WORDS: u64 = 2048;

/// Where things of one VM are.
#[derive(Debug, Clone)]
pub(super) struct Places {
    /// All of it.
    pub(super) dir: PathBuf,
}

impl Places {
    pub(super) fn record(&self) -> PathBuf {
        self.dir.join("vm.json")
    }
    pub(super) fn home(&self) -> PathBuf {
        self.dir.join("home")
    }
    pub(super) fn run(&self) -> PathBuf {
        self.dir.join("run")
    }
    fn log(&self) -> PathBuf {
        self.run().join("log")
    }
}

/// What runs, as it is kept on disk for the next daemon.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Desktop {
    pub(super) number: u64,
    pub(super) marker: String,
    pub(super) port: u16,
    pub(super) secret: String,
    pub(super) display: u32,
    pub(super) server: u32,
    pub(super) agent: u32,
}

impl Desktop {
    /// Whether its X server and its agent are both there.
    pub(super) fn is_alive(&self) -> bool {
        [self.server, self.agent].iter().all(|pid| processes::is_marked(*pid, &self.marker))
    }
}

/// Starts a desktop whose agent will dial `port`. On failure nothing of it is left.
pub(super) async fn start(
    config: &ProcessConfig,
    places: &Places,
    marker: &str,
    number: u64,
    size: Size,
    port: u16,
    secret: [u8; 32],
) -> HvResult<Desktop> {
    let result = try_start(config, places, marker, number, size, port, secret).await;
    if result.is_err()
        && let Err(error) = processes::end(marker).await
    {
        tracing::warn!(%error, "cannot end a desktop that did not start");
    }
    result
}

async fn try_start(
    config: &ProcessConfig,
    places: &Places,
    marker: &str,
    number: u64,
    size: Size,
    port: u16,
    secret: [u8; 32],
) -> HvResult<Desktop> {
    let run = places.run();
    let io = |context: &str| {
        let context = context.to_owned();
        move |source| HvError::Io { context, source }
    };
    prepare(places, &hex::encode(secret)).map_err(io("cannot prepare a run directory"))?;
    let log = || {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(places.log())
            .map_err(io("cannot open a desktop's log"))
    };
    let spawn = |command: &mut Command, what: &str| {
        command.stderr(log()?).stdin(Stdio::null());
        command.spawn().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => {
                HvError::Unavailable(format!("{} is not installed", command.get_program().display()))
            }
            _ => HvError::Io { context: format!("cannot start {what}"), source },
        })
    };

    // The X server tells its display on its standard output.
    let mut server = base(&config.x_server, places, marker);
    server
        .args(["-displayfd", "1", "-screen", "0", &format!("{}x{}x24", size.width, size.height)])
        .args(["-nolisten", "tcp", "-noreset", "-auth"])
        .arg(run.join("xauthority"))
        .process_group(0)
        .stdout(Stdio::piped());
    let mut server = spawn(&mut server, "the x server")?;
    let server_pid = server.id();
    let told =
        server.stdout.take().ok_or_else(|| HvError::Process("no output of the x server".to_owned()))?;
    let told =
        pipe::Receiver::from_owned_fd(told.into()).map_err(io("cannot read the x server's display"))?;
    let Some(display) = display_number(told).await else {
        let words = last_words(places);
        return Err(HvError::Process(format!("the x server did not start: {words}")));
    };
    let display_name = format!(":{display}");

    let group = i32::try_from(server_pid).unwrap_or(0);
    if let Some((program, arguments)) = config.window_manager.split_first() {
        let mut manager = base(Path::new(program), places, marker);
        manager.args(arguments).env("DISPLAY", &display_name).process_group(group).stdout(log()?);
        let manager = spawn(&mut manager, "the window manager")?.id();
        // Users can quit it; that ends nothing, but somebody has to wait for it.
        let manager = Watched::new(manager).map_err(io("cannot watch the window manager"))?;
        tokio::spawn(async move { manager.ended().await });
    }
    let mut agent = base(&config.agent, places, marker);
    agent
        .args(["standalone", "--connect", &format!("tcp://127.0.0.1:{port}"), "--display", &display_name])
        .arg("--secret-file")
        .arg(run.join("secret"))
        .env("DISPLAY", &display_name)
        .process_group(group)
        .stdout(log()?);
    let agent = spawn(&mut agent, "the agent")?.id();
    Ok(Desktop {
        number,
        marker: marker.to_owned(),
        port,
        secret: hex::encode(secret),
        display,
        server: server_pid,
        agent,
    })
}

/// A command with an environment of its own: nothing of the daemon's gets into a desktop.
fn base(program: &Path, places: &Places, marker: &str) -> Command {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", path)
        .env("HOME", places.home())
        .env("XAUTHORITY", places.run().join("xauthority"))
        .env("XDG_RUNTIME_DIR", places.run().join("xdg"))
        .env("LANG", "C.UTF-8")
        .env("SHELL", "/bin/sh")
        .env(MARKER, marker)
        .current_dir(places.home());
    for name in ["USER", "LOGNAME"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    command
}

fn prepare(places: &Places, secret: &str) -> io::Result<()> {
    let run = places.run();
    remove(&run)?;
    let mut private = fs::DirBuilder::new();
    private.mode(0o700);
    private.create(&run)?;
    private.create(run.join("xdg"))?;
    private_file(&run.join("secret"), secret.as_bytes())?;
    private_file(&run.join("xauthority"), &authority()?)
}

/// Removes a directory, if there is one.
pub(super) fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn private_file(path: &Path, content: &[u8]) -> io::Result<()> {
    OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)?.write_all(content)
}

/// One cookie for whatever display the server will be.
fn authority() -> io::Result<Vec<u8>> {
    let mut cookie = [0; 16];
    getrandom::fill(&mut cookie).map_err(io::Error::other)?;
    let mut out = vec![0xff, 0xff];
    for field in [&b""[..], b"", b"MIT-MAGIC-COOKIE-1", &cookie] {
        let length = u16::try_from(field.len()).map_err(io::Error::other)?;
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(field);
    }
    Ok(out)
}

async fn display_number(mut told: pipe::Receiver) -> Option<u32> {
    let mut line = Vec::new();
    let read = async {
        let mut byte = [0];
        while line.len() < 16 && told.read(&mut byte).await.ok()? == 1 {
            if byte[0] == b'\n' {
                return std::str::from_utf8(&line).ok()?.trim().parse().ok();
            }
            line.push(byte[0]);
        }
        None
    };
    timeout(X_START, read).await.ok().flatten()
}

/// The end of what the desktop's programs said.
pub(super) fn last_words(places: &Places) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(places.log())?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS)))?;
        let mut words = Vec::new();
        file.take(LAST_WORDS).read_to_end(&mut words)?;
        Ok(String::from_utf8_lossy(&words).trim().replace(|c: char| c.is_control(), " "))
    };
    read().unwrap_or_default()
}

/// Ends all of a desktop, and removes what a killed X server leaves in /tmp.
pub(super) async fn end(desktop: &Desktop) -> HvResult<()> {
    processes::end(&desktop.marker)
        .await
        .map_err(|source| HvError::Io { context: "cannot end a desktop's processes".to_owned(), source })?;
    // Both may have ended before they were looked for.
    for pid in [desktop.server, desktop.agent] {
        if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
            processes::reap(pid).await;
        }
    }
    let lock = PathBuf::from(format!("/tmp/.X{}-lock", desktop.display));
    let ours = fs::read_to_string(&lock).is_ok_and(|pid| pid.trim() == desktop.server.to_string());
    if ours {
        let _ = fs::remove_file(&lock);
        let _ = fs::remove_file(format!("/tmp/.X11-unix/X{}", desktop.display));
    }
    Ok(())
}
