//! A private X display for a test, with the programs that the test wants on it. All of it ends with the value.
#![allow(dead_code, unreachable_pub, clippy::allow_attributes, reason = "each test takes the part it needs")]

use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hvkube_guest::config::Config;
use hvkube_guest::display::{DeskSession, Desktop, DisplaySession};
use hvkube_guest::platform::X11;
use hvkube_guest::process::{Home, LocalProcesses};
use hvkube_guest::session;
use hvkube_guest::supervisor::{Routed, Routes, Supervisor};
use hvkube_proto::guest::v1::desktop_service_server::DesktopServiceServer;
use hvkube_proto::guest::v1::display_service_server::DisplayServiceServer;
use hvkube_proto::guest::v1::process_service_server::ProcessServiceServer;
use hvkube_proto::guest::v1::supervisor_service_server::SupervisorServiceServer;
use tempfile::TempDir;
use x11rb::connection::Connection as _;
use x11rb::protocol::xproto::{AtomEnum, ConnectionExt as _, Window};
use x11rb::rust_connection::RustConnection;

use crate::host::Host;

/// How long anything may take before the test says what it waited for.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Ends a program's whole group when dropped.
pub struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw) {
            let _gone = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
        let _reaped = self.0.wait();
    }
}

/// An X server with nothing on it yet, and the agent's half of a session.
pub struct Display {
    // Programs end before their server.
    programs: Vec<Program>,
    server: Program,
    pub name: String,
    pub home: TempDir,
    pub conn: RustConnection,
    pub root: Window,
    pub desktop: Desktop,
}

fn start(mut command: Command, package: &str) -> Child {
    command.process_group(0).spawn().unwrap_or_else(|e| {
        panic!("cannot start {:?}: {e}; install it: apt-get install {package}", command.get_program())
    })
}

impl Display {
    /// Starts Xvfb on a free display number and connects the agent to it.
    pub fn start() -> Self {
        Self::start_with_size("1280x800")
    }

    pub fn start_with_size(size: &str) -> Self {
        let mut command = Command::new("Xvfb");
        command
            .args(["-displayfd", "1", "-screen", "0", &format!("{size}x24"), "-nolisten", "tcp", "-noreset"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = start(command, "xvfb");
        let mut out = child.stdout.take().expect("piped");
        let server = Program(child);
        let mut number = String::new();
        let mut byte = [0];
        while out.read(&mut byte).expect("Xvfb tells its number") == 1 && byte[0] != b'\n' {
            number.push(char::from(byte[0]));
        }
        assert!(!number.is_empty(), "Xvfb did not start");
        let name = format!(":{number}");
        let (conn, screen) = x11rb::connect(Some(&name)).expect("display is up");
        let root = conn.setup().roots[screen].root;
        let desktop = X11::desktop(&name).expect("agent connects");
        let home = tempfile::tempdir().expect("temporary home");
        Self { programs: Vec::new(), server, name, home, conn, root, desktop }
    }

    /// Starts a program on the display.
    pub fn run(&mut self, package: &str, argv: &[&str]) {
        let mut command = Command::new(argv[0]);
        command
            .args(&argv[1..])
            .env("DISPLAY", &self.name)
            .env("HOME", self.home.path())
            .env("XDG_CONFIG_HOME", self.home.path().join("config"))
            .env("XDG_RUNTIME_DIR", self.home.path())
            .env("GSETTINGS_BACKEND", "memory")
            .env("NO_AT_BRIDGE", "1")
            .env("LANG", "C.UTF-8")
            .env("LC_ALL", "C.UTF-8")
            .env_remove("DBUS_SESSION_BUS_ADDRESS")
            .current_dir(self.home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.programs.push(Program(start(command, package)));
    }

    /// Runs a tool to its end and gives its output.
    pub fn tool(&self, package: &str, argv: &[&str]) -> Vec<u8> {
        let mut command = Command::new(argv[0]);
        command.args(&argv[1..]).env("DISPLAY", &self.name);
        let out = command
            .output()
            .unwrap_or_else(|e| panic!("cannot run {}: {e}; apt-get install {package}", argv[0]));
        assert!(out.status.success(), "{argv:?}: {}", String::from_utf8_lossy(&out.stderr));
        out.stdout
    }

    /// Starts the window manager and waits until it manages.
    pub fn manage(&mut self) {
        self.run("openbox", &["openbox"]);
        let supporting = self.atom("_NET_SUPPORTING_WM_CHECK");
        self.wait("openbox to manage the display", |d| {
            let check =
                d.conn.get_property(false, d.root, supporting, AtomEnum::WINDOW, 0, 1).ok()?.reply().ok()?;
            (check.value_len == 1).then_some(())
        });
    }

    /// The window of the window manager's list whose class contains `class`, once it has the focus.
    pub fn focused_window(&self, class: &str) -> Window {
        let active = self.atom("_NET_ACTIVE_WINDOW");
        self.wait(&format!("a focused window of {class}"), |d| {
            let window =
                d.conn.get_property(false, d.root, active, AtomEnum::WINDOW, 0, 1).ok()?.reply().ok()?;
            let window = window.value32()?.next().filter(|w| *w != 0)?;
            let name =
                d.conn.get_property(false, window, AtomEnum::WM_CLASS, AtomEnum::STRING, 0, 64).ok()?;
            let name = String::from_utf8_lossy(&name.reply().ok()?.value).to_lowercase();
            name.contains(class).then_some(window)
        })
    }

    fn atom(&self, name: &str) -> u32 {
        self.conn.intern_atom(false, name.as_bytes()).expect("sent").reply().expect("atom").atom
    }

    /// Waits until `ready` gives something.
    pub fn wait<T>(&self, what: &str, mut ready: impl FnMut(&Self) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = ready(self) {
                return found;
            }
            assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The services of one session, as a standalone agent serves them.
    pub fn services(&self) -> Routed {
        let mut home = Home::of_this_process();
        home.dir = self.home.path().to_owned();
        let routes = Routes::new(DisplayServiceServer::new(DisplaySession::new(self.desktop.clone())))
            .add_service(DesktopServiceServer::new(DeskSession::new(&self.desktop)))
            .add_service(ProcessServiceServer::new(LocalProcesses::new(home, false)))
            .add_service(SupervisorServiceServer::new(Supervisor::new(false, &Config::default(), || true)));
        Routed::new(routes, None)
    }

    /// A session with the real preface over a pipe in memory.
    pub async fn session(&self) -> Host {
        let (mut guest, host) = tokio::io::duplex(1 << 20);
        let services = self.services();
        tokio::spawn(async move {
            session::greet(&mut guest, [0; 32]).await.expect("greeting");
            let _ended = session::serve(guest, services).await;
        });
        Host::greet(host, 1).await.expect("session")
    }

    /// Waits until a file holds `ready`.
    pub fn file(&self, path: &Path, mut ready: impl FnMut(&str) -> bool) -> String {
        let last = std::cell::RefCell::new(String::new());
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            if ready(&text) {
                return text;
            }
            *last.borrow_mut() = text;
            if Instant::now() >= deadline {
                return last.into_inner();
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }
}

/// 1,000 characters of many scripts, line ends and tabs among them, different each time it is called with another seed.
pub fn mixed_text(seed: u32) -> String {
    let ranges: [(u32, u32); 10] = [
        (0x21, 0x7e),       // ASCII
        (0x21, 0x7e),       // more of it, as real text has
        (0xc0, 0xff),       // Latin letters with accents, dead keys on many layouts
        (0x100, 0x17f),     // more of them
        (0x410, 0x44f),     // Cyrillic
        (0x3b1, 0x3c9),     // Greek
        (0x4e00, 0x4fff),   // CJK
        (0x3041, 0x3096),   // Hiragana
        (0x1f600, 0x1f64f), // emoji
        (0x2190, 0x21ff),   // arrows
    ];
    let mut state = seed;
    let mut next = |limit: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % limit
    };
    let mut out = String::new();
    while out.chars().count() < 1000 {
        match next(40) {
            0 => out.push('\n'),
            1 => out.push('\t'),
            2..=5 => out.push(' '),
            _ => {
                let (from, to) = ranges[next(10) as usize];
                out.extend(char::from_u32(from + next(to - from + 1)));
            }
        }
    }
    out
}
