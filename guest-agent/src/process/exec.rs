//! Programs: run without a shell in a process group of their own, their output streamed with back-pressure.
//!
//! The group is killed when the call's stream is dropped, which is what cancellation, the caller's deadline and the end of
//! the session all come to, and when the request's own time is over.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use hvkube_proto::guest::v1 as pb;
use hvkube_proto::guest::v1::exec_response::Event;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{Reply, duration};

const MAX_ARGS: usize = 1024;
const MAX_ARG_BYTES: usize = 256 << 10;
const MAX_STDIN: usize = 1 << 20;
/// One piece of output, as the protocol bounds it.
pub(crate) const CHUNK: usize = 64 << 10;
/// Pieces between the pipes and the stream: enough to keep both busy, 256 KiB at most; then the program blocks on its pipe.
const QUEUE: usize = 4;
pub(crate) const MAX_TIMEOUT: Duration = Duration::from_secs(7 * 24 * 3600);
/// A program that has ended may have left others behind that hold its pipes: reading goes on until a pipe is silent for this
/// long, or has given this much.
const LINGER: Duration = Duration::from_millis(200);
const LINGER_BYTES: usize = 1 << 20;

/// Where relative paths start and what programs inherit.
#[derive(Clone, Debug)]
pub struct Home {
    /// The user's home.
    pub dir: PathBuf,
    /// Variables that every program gets; the agent's own environment is not passed on.
    pub env: Vec<(String, String)>,
}

impl Home {
    /// Of the user this process runs as, taken from its environment.
    #[must_use]
    pub fn of_this_process() -> Self {
        let dir = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from);
        Self {
            dir,
            env: std::env::vars_os()
                .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
                .collect(),
        }
    }

    /// What a program gets that starts now: the login session's run-time folder and bus may have come up after the agent.
    fn session_env(&self) -> Vec<(&'static str, String)> {
        let mut out = Vec::new();
        let set = |name: &str| self.env.iter().any(|(key, _)| key == name);
        let runtime = Path::new("/run/user").join(rustix::process::getuid().as_raw().to_string());
        if !set("XDG_RUNTIME_DIR") && runtime.is_dir() {
            let bus = runtime.join("bus");
            if !set("DBUS_SESSION_BUS_ADDRESS") && bus.exists() {
                out.push(("DBUS_SESSION_BUS_ADDRESS", format!("unix:path={}", bus.display())));
            }
            out.push(("XDG_RUNTIME_DIR", runtime.display().to_string()));
        }
        out
    }

    /// `path` itself when absolute, else below the home.
    #[must_use]
    pub fn resolve(&self, path: &str) -> PathBuf {
        self.dir.join(path)
    }
}

/// Kills the program's whole group when it goes out of scope, unless the program has ended by itself: what it left running
/// in the background then is meant to stay.
struct Group(Option<Pid>);

impl Group {
    fn kill(&self) {
        if let Some(pid) = self.0 {
            // The group may be gone already; there is nothing else to do about it then.
            let _gone = kill_process_group(pid, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(super) fn run(home: &Home, request: pb::ExecRequest) -> Result<Reply<pb::ExecResponse>, Status> {
    check(&request)?;
    let timeout = duration("timeout", request.timeout.as_ref(), MAX_TIMEOUT)?;
    let deadline = (!timeout.is_zero()).then(|| Instant::now() + timeout);
    let cwd = home.resolve(&request.cwd);
    let mut child = spawn(home, &request, &cwd).map_err(|e| spawn_status(&request.argv[0], &cwd, &e))?;
    let pid = child.id().ok_or_else(|| Status::internal("the program has no process id"))?;
    let group = Group(i32::try_from(pid).ok().and_then(Pid::from_raw));

    let (tx, rx) = mpsc::channel(QUEUE);
    let stdin = child.stdin.take();
    let stdout = child.stdout.take();
    let stderr = child.stderr.take();
    let input = request.stdin;
    let work = async move {
        let feed = async {
            if let Some(mut pipe) = stdin {
                // A program that doesn't read its input is its own business.
                let _closed = pipe.write_all(&input).await;
            }
        };
        let ended = CancellationToken::new();
        let out = pump(stdout, tx.clone(), Event::Stdout, &ended);
        let err = pump(stderr, tx.clone(), Event::Stderr, &ended);
        let feed = ended.run_until_cancelled(feed);
        let (_, (), (), exit) = tokio::join!(feed, out, err, wait(&mut child, group, deadline, &ended));
        let _reader_gone = tx.send(exit.map(Event::Exit)).await;
    };
    let events = ReceiverStream::new(rx);
    let started = tokio_stream::once(Ok(Event::Started(pid)));
    Ok(Box::pin(Driven { work: Some(Box::pin(work)), events: started.chain(events) }))
}

/// Whether a request makes sense at all.
pub(crate) fn check(request: &pb::ExecRequest) -> Result<(), Status> {
    let argv = &request.argv;
    if argv.is_empty() || argv[0].is_empty() {
        return Err(Status::invalid_argument("argv: names no program"));
    }
    if argv.len() > MAX_ARGS || argv.iter().map(String::len).sum::<usize>() > MAX_ARG_BYTES {
        return Err(Status::invalid_argument(format!(
            "argv: more than {MAX_ARGS} entries or {MAX_ARG_BYTES} bytes"
        )));
    }
    if argv.iter().any(|a| a.contains('\0')) || request.cwd.contains('\0') {
        return Err(Status::invalid_argument("argv, cwd: must not contain a zero byte"));
    }
    let env = &request.env;
    if env.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>() > MAX_ARG_BYTES {
        return Err(Status::invalid_argument(format!("env: more than {MAX_ARG_BYTES} bytes")));
    }
    if let Some((key, _)) =
        env.iter().find(|(k, v)| k.is_empty() || k.contains(['=', '\0']) || v.contains('\0'))
    {
        return Err(Status::invalid_argument(format!("env: {key:?} is not a valid variable")));
    }
    if request.stdin.len() > MAX_STDIN {
        return Err(Status::invalid_argument(format!("stdin: more than {MAX_STDIN} bytes")));
    }
    Ok(())
}

fn spawn(home: &Home, request: &pb::ExecRequest, cwd: &Path) -> io::Result<Child> {
    let mut command = Command::new(&request.argv[0]);
    command
        .args(&request.argv[1..])
        .env_clear()
        .envs(home.env.iter().map(|(k, v)| (k, v)))
        .envs(home.session_env())
        .envs(&request.env)
        .current_dir(cwd)
        .process_group(0)
        .stdin(if request.stdin.is_empty() { Stdio::null() } else { Stdio::piped() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn()
}

fn spawn_status(program: &str, cwd: &Path, error: &io::Error) -> Status {
    if !cwd.is_dir() {
        return Status::invalid_argument(format!("cwd: {} is not a directory", cwd.display()));
    }
    match error.kind() {
        io::ErrorKind::NotFound => Status::not_found(format!("no program {program:?} in PATH")),
        io::ErrorKind::PermissionDenied => {
            Status::permission_denied(format!("{program:?} may not be executed"))
        }
        io::ErrorKind::ArgumentListTooLong => Status::invalid_argument("argv, env: too long for the system"),
        _ => Status::internal(format!("cannot start {program:?}: {error}")),
    }
}

async fn pump(
    pipe: Option<impl AsyncRead + Unpin>,
    tx: mpsc::Sender<Result<Event, Status>>,
    event: fn(Bytes) -> Event,
    ended: &CancellationToken,
) {
    let Some(mut pipe) = pipe else { return };
    let mut after_end = 0;
    let mut buf = bytes::BytesMut::new();
    while after_end < LINGER_BYTES {
        buf.reserve(CHUNK);
        let mut piece = (&mut pipe).take(CHUNK as u64);
        let silent = async {
            ended.cancelled().await;
            tokio::time::sleep(LINGER).await;
        };
        let read = tokio::select! {
            biased;
            read = piece.read_buf(&mut buf) => read,
            () = silent => return,
        };
        match read {
            Ok(0) | Err(_) => return,
            Ok(n) => {
                if ended.is_cancelled() {
                    after_end += n;
                }
                if tx.send(Ok(event(buf.split().freeze()))).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn wait(
    child: &mut Child,
    mut group: Group,
    deadline: Option<Instant>,
    ended: &CancellationToken,
) -> Result<pb::ExecExit, Status> {
    let over = async {
        match deadline {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    };
    let (status, timed_out) = tokio::select! {
        status = child.wait() => (status, false),
        () = over => {
            group.kill();
            (child.wait().await, true)
        }
    };
    group.0 = None;
    ended.cancel();
    let status = status.map_err(|e| Status::internal(format!("cannot wait for the program: {e}")))?;
    Ok(exit_of(status, timed_out))
}

fn exit_of(status: std::process::ExitStatus, timed_out: bool) -> pb::ExecExit {
    use std::os::unix::process::ExitStatusExt as _;
    pb::ExecExit { code: status.code().unwrap_or(-1), signal: status.signal().unwrap_or(0), timed_out }
}

/// Drives the work from the reply stream itself, so that dropping the stream drops the work, and with it the group.
struct Driven<S> {
    work: Option<std::pin::Pin<Box<dyn Future<Output = ()> + Send>>>,
    events: S,
}

impl<S: tokio_stream::Stream<Item = Result<Event, Status>> + Unpin> tokio_stream::Stream for Driven<S> {
    type Item = Result<pb::ExecResponse, Status>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        if let Some(work) = &mut self.work
            && work.as_mut().poll(cx).is_ready()
        {
            self.work = None;
        }
        let next = std::pin::Pin::new(&mut self.events).poll_next(cx);
        next.map(|item| item.map(|result| result.map(|event| pb::ExecResponse { event: Some(event) })))
    }
}
