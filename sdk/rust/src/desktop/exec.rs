//! Programs in the guest.

use std::borrow::Cow;
use std::future::IntoFuture;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use tonic::Streaming;

use crate::desktop::Target;
use crate::error::{Error, Result};
use crate::v1::{ExecExit, ExecRequest, ExecResponse, exec_response};

/// Default limit of collected output, standard output and error together.
const MAX_OUTPUT: usize = 16 << 20;

/// A program to run: await it to collect its output, or [`Exec::stream`] it.
#[derive(Clone, Debug)]
#[must_use = "does nothing until it is awaited or streamed"]
pub struct Exec {
    target: Target,
    request: ExecRequest,
    max_output: usize,
}

impl Target {
    /// A program and its arguments, run without a shell as the desktop user.
    pub fn exec<I, S>(&self, argv: I) -> Exec
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        let argv = argv.into_iter().map(Into::into).collect();
        let request = ExecRequest { target: self.name().to_owned(), argv, ..ExecRequest::default() };
        Exec { target: self.clone(), request, max_output: MAX_OUTPUT }
    }
}

impl Exec {
    /// Sets a variable on top of those of the desktop session.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.request.env.insert(name.into(), value.into());
        self
    }

    /// Directory to start in; default: the user's home.
    pub fn cwd(mut self, dir: impl Into<String>) -> Self {
        self.request.cwd = dir.into();
        self
    }

    /// Standard input; 1 MiB at most.
    pub fn stdin(mut self, data: impl Into<Bytes>) -> Self {
        self.request.stdin = data.into();
        self
    }

    /// Kills the program after this long; default: never.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.request.timeout = timeout.try_into().ok();
        self
    }

    /// Runs as root (LocalSystem) instead of the desktop user.
    pub fn as_root(mut self, yes: bool) -> Self {
        self.request.as_root = yes;
        self
    }

    /// Most bytes of output that are collected; default 16 MiB. More ends the program and the call.
    pub fn max_output(mut self, bytes: usize) -> Self {
        self.max_output = bytes;
        self
    }

    /// Starts the program and gives its events as they come. Dropping the stream kills the program.
    ///
    /// # Errors
    /// `NOT_FOUND` (`PROGRAM_NOT_FOUND`), here or as the stream's first item; `INVALID_ARGUMENT`.
    pub async fn stream(self) -> Result<ExecStream> {
        let mut client = self.target.client().desktops();
        let answer = client.exec(self.request).await.map_err(|status| self.target.client().error(status))?;
        Ok(ExecStream { stream: answer.into_inner(), target: self.target })
    }

    async fn collect(self) -> Result<ExecOutput> {
        let limit = self.max_output;
        let mut stream = self.stream().await?;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        while let Some(event) = stream.next().await? {
            match event {
                ExecEvent::Started { .. } => {}
                ExecEvent::Stdout(data) => stdout.extend_from_slice(&data),
                ExecEvent::Stderr(data) => stderr.extend_from_slice(&data),
                ExecEvent::Exit(exit) => return Ok(ExecOutput { stdout, stderr, exit }),
            }
            if stdout.len() + stderr.len() > limit {
                return Err(Error::TooLarge { what: "the program's output", limit: limit as u64 });
            }
        }
        Err(Error::Protocol("the program's output ended without its exit"))
    }
}

impl IntoFuture for Exec {
    type Output = Result<ExecOutput>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.collect())
    }
}

/// What a program did.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum ExecEvent {
    /// It runs.
    Started {
        /// Process id in the guest.
        pid: u32,
    },
    /// A piece of standard output.
    Stdout(Bytes),
    /// A piece of standard error.
    Stderr(Bytes),
    /// It ended; nothing comes after this.
    Exit(ExecExit),
}

/// A running program.
#[derive(Debug)]
pub struct ExecStream {
    stream: Streaming<ExecResponse>,
    target: Target,
}

impl ExecStream {
    /// The next event; `None` behind the last one. Safe to use in `select!`.
    ///
    /// # Errors
    /// When the program could not be started, or the way to it broke.
    pub async fn next(&mut self) -> Result<Option<ExecEvent>> {
        loop {
            let Some(answer) =
                self.stream.message().await.map_err(|status| self.target.client().error(status))?
            else {
                return Ok(None);
            };
            return Ok(Some(match answer.event {
                Some(exec_response::Event::Started(started)) => ExecEvent::Started { pid: started.pid },
                Some(exec_response::Event::Stdout(data)) => ExecEvent::Stdout(data),
                Some(exec_response::Event::Stderr(data)) => ExecEvent::Stderr(data),
                Some(exec_response::Event::Exit(exit)) => ExecEvent::Exit(exit),
                // An event of a newer daemon.
                None => continue,
            }));
        }
    }
}

/// A program that has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct ExecOutput {
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: Vec<u8>,
    /// How it ended.
    pub exit: ExecExit,
}

impl ExecOutput {
    /// It ended by itself with code 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.exit.code == 0 && self.exit.signal == 0 && !self.exit.timed_out
    }

    /// Standard output as text; what is no UTF-8 is replaced.
    #[must_use]
    pub fn stdout_lossy(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.stdout)
    }

    /// Standard error as text; what is no UTF-8 is replaced.
    #[must_use]
    pub fn stderr_lossy(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.stderr)
    }
}
