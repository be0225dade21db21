//! Runs the program and shows what it did: exit code, standard output, standard error.

use std::process::{Command, Output, Stdio};

use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

use crate::fake::{Fake, Seen, TOKEN};

/// A fake daemon on a port of its own, stopped when dropped.
pub(crate) struct Daemon {
    /// What it has seen.
    pub(crate) fake: Fake,
    /// Its URL.
    pub(crate) endpoint: String,
    runtime: Runtime,
}

impl Daemon {
    /// Starts one.
    pub(crate) fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("loopback");
        let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
        let fake = Fake::default();
        let server = Server::builder().add_routes(fake.routes());
        runtime.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { fake, endpoint, runtime }
    }

    /// None: a port that nobody listens on.
    pub(crate) fn nowhere() -> Self {
        let mut daemon = Self::start();
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        daemon.endpoint = format!("http://{}", free.expect("loopback"));
        daemon
    }

    /// The program without anything of this machine.
    pub(crate) fn bare(arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hvkube"));
        command.args(arguments).stdin(Stdio::null());
        for name in ["HVKUBE_ENDPOINT", "HVKUBE_TOKEN", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "COLUMNS"] {
            command.env_remove(name);
        }
        command.env("HVKUBE_STATE_DIR", "/no/such/directory");
        command
    }

    /// The program, pointed at this daemon.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Self::bare(arguments);
        command.env("HVKUBE_ENDPOINT", &self.endpoint).env("HVKUBE_TOKEN", TOKEN);
        command
    }

    /// What people would see, without the port.
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().expect("runs");
        show(&output).replace(&self.endpoint, "http://DAEMON")
    }

    /// Waits until the daemon has seen something.
    pub(crate) fn wait_for(&self, what: &str, wanted: impl FnMut(&Seen) -> bool) {
        self.runtime.block_on(self.fake.wait_for(what, wanted));
    }

    /// Interrupts the program once the daemon has seen something; gives its exit code.
    #[cfg(unix)]
    pub(crate) fn interrupt(
        &self,
        arguments: &[&str],
        what: &str,
        wanted: impl FnMut(&Seen) -> bool,
    ) -> Option<i32> {
        use std::os::unix::process::CommandExt as _;
        // A group of its own, interrupted as a whole, as a terminal does it.
        let mut child = self.command(arguments).stderr(Stdio::null()).process_group(0).spawn().expect("runs");
        self.wait_for(what, wanted);
        let group = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw).expect("an id");
        rustix::process::kill_process_group(group, rustix::process::Signal::INT).expect("it runs");
        let status = child.wait().expect("ends");
        assert!(status.code().is_some(), "ended by a signal: {status}");
        status.code()
    }
}

fn show(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let code = output.status.code().map_or("none".to_owned(), |code| code.to_string());
    format!("code: {code}\n--- stdout\n{}--- stderr\n{}", text(&output.stdout), text(&output.stderr))
}

/// Asserts a snapshot whose points in time do not count.
macro_rules! snapshot {
    ($name:expr, $value:expr) => {
        insta::with_settings!({ filters => vec![
            (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"),
            (r"in 10m\d\ds", "in 10m30s"),
        ] }, { insta::assert_snapshot!($name, $value) })
    };
}
pub(crate) use snapshot;
