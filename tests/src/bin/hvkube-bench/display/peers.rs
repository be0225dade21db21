//! What others take for the same on the same screen: a Cua computer-server, and scrot.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use super::paint::cookie;

const START: Duration = Duration::from_secs(60);
const ANSWER: Duration = Duration::from_secs(60);
/// A name inside every answer that has a picture.
const PICTURE: &str = "image_data";

/// The environment of programs on a desktop.
#[derive(Debug, Clone)]
pub(super) struct OnDisplay {
    pub(super) display: String,
    pub(super) authority: String,
}

impl OnDisplay {
    /// The same with a file that names host and display beside the cookie. Python's Xlib takes no entry without, which is what
    /// the desktop's file has.
    pub(super) fn spelled_out(&self, file: PathBuf) -> anyhow::Result<Self> {
        const FAMILY_LOCAL: u16 = 256;
        let source = std::fs::read(&self.authority).context("read the cookie")?;
        let (name, cookie) = cookie(&source).context("a file without a cookie")?;
        let host = std::fs::read("/proc/sys/kernel/hostname").context("read the host's name")?;
        let number = self.display.trim_start_matches(':').as_bytes();
        let mut entry = FAMILY_LOCAL.to_be_bytes().to_vec();
        for field in [host.trim_ascii(), number, name, cookie] {
            entry.extend(u16::try_from(field.len())?.to_be_bytes());
            entry.extend(field);
        }
        std::fs::write(&file, entry).context("write a cookie for peers")?;
        let authority = file.to_str().context("a path of text")?.to_owned();
        Ok(Self { display: self.display.clone(), authority })
    }

    fn apply(&self, command: &mut Command) {
        command
            .env("DISPLAY", &self.display)
            .env("XAUTHORITY", &self.authority)
            // Without it the server's library looks for no X screen.
            .env("XDG_SESSION_TYPE", "x11")
            // With it the server would take itself for one inside a container of Cua's.
            .env_remove("CONTAINER_NAME")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
    }
}

/// A running computer-server and a connection to it.
#[derive(Debug)]
pub(super) struct Cua {
    process: Child,
    connection: BufReader<TcpStream>,
}

impl Cua {
    /// Starts the server of this Python environment on the display.
    pub(super) fn start(python: &Path, on: &OnDisplay) -> anyhow::Result<Self> {
        // Free now, and nobody else's in a moment: the server takes no socket from us.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new(python);
        command.args(["-m", "computer_server", "--host", "127.0.0.1", "--port", &port.to_string()]);
        on.apply(&mut command);
        let mut process = command.spawn().context("start computer-server")?;
        let deadline = Instant::now() + START;
        let stream = loop {
            if let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) {
                break stream;
            }
            let ended = process.try_wait().context("wait for computer-server")?;
            if ended.is_some() || Instant::now() > deadline {
                let _ = process.kill();
                let _ = process.wait();
                bail!("computer-server does not come up");
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER))?;
        let mut this = Self { process, connection: BufReader::with_capacity(1 << 20, stream) };
        // The first one loads what later ones have.
        this.screenshot().context("a first screenshot of computer-server")?;
        Ok(this)
    }

    /// Takes a screenshot; gives how long the answer took.
    pub(super) fn screenshot(&mut self) -> anyhow::Result<Duration> {
        let (took, answer) = self.post("screenshot", &serde_json::json!({}))?;
        let start = String::from_utf8_lossy(&answer[..answer.len().min(500)]).into_owned();
        ensure!(answer.len() > 1000 && start.contains(PICTURE), "computer-server answered {start}");
        Ok(took)
    }

    /// Does anything else; gives how long the answer took.
    pub(super) fn command(&mut self, command: &str, params: &serde_json::Value) -> anyhow::Result<Duration> {
        let (took, answer) = self.post(command, params)?;
        let text = String::from_utf8_lossy(&answer);
        // `data: {...}`, as an event of a stream.
        let json = text.trim().trim_start_matches("data:").trim();
        let told: serde_json::Value = serde_json::from_str(json).context("computer-server's JSON")?;
        ensure!(told["success"] == true, "computer-server answered {text}");
        Ok(took)
    }

    fn post(&mut self, command: &str, params: &serde_json::Value) -> anyhow::Result<(Duration, Vec<u8>)> {
        let body = serde_json::json!({ "command": command, "params": params }).to_string();
        let began = Instant::now();
        let request = format!(
            "POST /cmd HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.connection.get_mut().write_all(request.as_bytes())?;
        let answer = self.answer()?;
        Ok((began.elapsed(), answer))
    }

    /// The body of an answer, which comes in chunks.
    fn answer(&mut self) -> anyhow::Result<Vec<u8>> {
        let mut line = String::new();
        loop {
            line.clear();
            ensure!(self.connection.read_line(&mut line)? > 0, "computer-server hung up");
            if line == "\r\n" {
                break;
            }
        }
        let mut body = Vec::new();
        loop {
            line.clear();
            self.connection.read_line(&mut line)?;
            let length = u64::from_str_radix(line.trim(), 16).context("a chunk's length")?;
            (&mut self.connection).take(length).read_to_end(&mut body)?;
            line.clear();
            self.connection.read_line(&mut line)?;
            if length == 0 {
                return Ok(body);
            }
        }
    }
}

impl Drop for Cua {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// scrot, a process for each screenshot.
#[derive(Debug)]
pub(super) struct Scrot {
    pub(super) on: OnDisplay,
    pub(super) file: PathBuf,
}

impl Scrot {
    /// Takes a screenshot into a file; gives how long that took.
    pub(super) fn screenshot(&self) -> anyhow::Result<Duration> {
        let mut command = Command::new("scrot");
        command.arg("--overwrite").arg(&self.file);
        self.on.apply(&mut command);
        let began = Instant::now();
        let status = command.status().context("start scrot")?;
        let took = began.elapsed();
        ensure!(status.success(), "scrot failed: {status}");
        Ok(took)
    }
}
