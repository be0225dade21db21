//! `ProcessService` of a guest that has a dozen programs, none of which is one of the host's.
//!
//! `true`, `false`, `echo`, `cat` (files, else standard input), `hostname`, `sleep SECONDS`, `exit CODE`, and `desktop`,
//! which prints what is on the desktop as JSON.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hvkube_proto::guest::v1 as pb;
use hvkube_proto::guest::v1::exec_response::Event;
use hvkube_proto::guest::v1::process_service_server::ProcessService;
use tokio::time::sleep;
use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status, Streaming};

use super::computer::Computer;
use super::files::{self, MAX_DISK};
use crate::process::{CHUNK, MAX_TIMEOUT, Reply, check_exec, duration, write_header};

/// Every program has the same, because none can be sent a signal.
const PID: u32 = 100;
const KILLED: i32 = 9;

#[derive(Clone)]
pub(super) struct Programs(Arc<Computer>);

/// What a program does: it waits, prints and ends.
struct Play {
    wait: Duration,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    code: i32,
}

impl Play {
    fn prints(stdout: impl Into<Vec<u8>>) -> Self {
        Self { wait: Duration::ZERO, stdout: stdout.into(), stderr: Vec::new(), code: 0 }
    }

    fn ends(code: i32) -> Self {
        Self { code, ..Self::prints("") }
    }

    fn fails(why: &str) -> Self {
        Self { stderr: format!("{why}\n").into(), ..Self::ends(1) }
    }
}

impl Programs {
    pub(super) fn new(computer: Arc<Computer>) -> Self {
        Self(computer)
    }

    fn play(&self, argv: &[String], stdin: &[u8]) -> Result<Play, Status> {
        let program = argv[0].rsplit('/').next().unwrap_or_default();
        let (arguments, first) = (&argv[1..], argv.get(1).map(String::as_str));
        let inner = self.0.lock();
        Ok(match program {
            "true" => Play::ends(0),
            "false" => Play::ends(1),
            "echo" => Play::prints(arguments.join(" ") + "\n"),
            "hostname" => Play::prints(format!("{}\n", inner.state.memory.hostname)),
            "desktop" => {
                let memory = serde_json::to_vec(&inner.state.memory);
                Play::prints(memory.map_err(|error| Status::internal(error.to_string()))?)
            }
            "cat" if arguments.is_empty() => Play::prints(stdin),
            "cat" => {
                let mut play = Play::prints("");
                for path in arguments {
                    match files::resolve(path).and_then(|path| files::read(&inner.state.disk, &path)) {
                        Ok(file) => play.stdout.extend(&file.data),
                        Err(error) => return Ok(Play::fails(error.message())),
                    }
                }
                play
            }
            "sleep" => match first.and_then(|time| time.parse().ok()) {
                Some(time) if Duration::try_from_secs_f64(time).is_ok_and(|time| time <= MAX_TIMEOUT) => {
                    Play { wait: Duration::from_secs_f64(time), ..Play::ends(0) }
                }
                _ => Play::fails("sleep: give a number of seconds"),
            },
            "exit" => match first.and_then(|code| code.parse::<u8>().ok()) {
                Some(code) => Play::ends(code.into()),
                None => Play::fails("exit: give a code of 0 to 255"),
            },
            _ => return Err(Status::not_found(format!("no program {:?} in PATH", argv[0]))),
        })
    }
}

#[tonic::async_trait]
impl ProcessService for Programs {
    type ExecStream = Reply<pb::ExecResponse>;
    type ReadFileStream = Reply<pb::ReadFileResponse>;

    async fn exec(&self, request: Request<pb::ExecRequest>) -> Result<Response<Self::ExecStream>, Status> {
        let request = request.into_inner();
        check_exec(&request)?;
        let limit = duration("timeout", request.timeout.as_ref(), MAX_TIMEOUT)?;
        let play = self.play(&request.argv, &request.stdin)?;
        let timed_out = !limit.is_zero() && play.wait > limit;
        let wait = if timed_out { limit } else { play.wait };
        let mut events = pieces(&play.stdout).map(Event::Stdout).collect::<Vec<_>>();
        events.extend(pieces(&play.stderr).map(Event::Stderr));
        events.push(Event::Exit(if timed_out {
            pb::ExecExit { code: -1, signal: KILLED, timed_out }
        } else {
            pb::ExecExit { code: play.code, signal: 0, timed_out }
        }));
        let answer = |event| Ok(pb::ExecResponse { event: Some(event) });
        let slept = futures_util::stream::once(sleep(wait)).filter_map(|()| None);
        let started = tokio_stream::once(answer(Event::Started(PID)));
        let rest = slept.chain(tokio_stream::iter(events.into_iter().map(answer)));
        Ok(Response::new(Box::pin(started.chain(rest))))
    }

    async fn read_file(
        &self,
        request: Request<pb::ReadFileRequest>,
    ) -> Result<Response<Self::ReadFileStream>, Status> {
        use pb::read_file_response::Part;
        let request = request.into_inner();
        let path = files::resolve(&request.path)?;
        let file = files::read(&self.0.lock().state.disk, &path)?.clone();
        let info = pb::FileInfo {
            size: file.data.len() as u64,
            mode: file.mode,
            modify_time: Some(prost_types::Timestamp { seconds: file.modified, nanos: 0 }),
        };
        let at = usize::try_from(request.offset).unwrap_or(usize::MAX).min(file.data.len());
        let limit = if request.limit == 0 {
            usize::MAX
        } else {
            usize::try_from(request.limit).unwrap_or(usize::MAX)
        };
        let data = &file.data[at..at + limit.min(file.data.len() - at)];
        let parts = std::iter::once(Part::Info(info)).chain(pieces(data).map(Part::Data)).collect::<Vec<_>>();
        let answers = parts.into_iter().map(|part| Ok(pb::ReadFileResponse { part: Some(part) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(answers))))
    }

    async fn write_file(
        &self,
        request: Request<Streaming<pb::WriteFileRequest>>,
    ) -> Result<Response<pb::WriteFileResponse>, Status> {
        let mut stream = request.into_inner();
        let header = write_header(&mut stream).await?;
        let path = files::resolve(&header.path)?;
        let mode = if header.mode == 0 { 0o644 } else { header.mode };
        if mode > 0o7777 {
            return Err(Status::invalid_argument(format!("mode: {mode:o} has more than permission bits")));
        }
        let mut data = Vec::new();
        while let Some(message) = stream.message().await? {
            let Some(pb::write_file_request::Part::Data(piece)) = message.part else {
                return Err(Status::invalid_argument("only the first message may be a header"));
            };
            if data.len() + piece.len() > MAX_DISK {
                return Err(Status::resource_exhausted(format!(
                    "{path}: a simulated guest's files hold {MAX_DISK} bytes in all"
                )));
            }
            data.extend(piece);
        }
        // To tonic a host that breaks off has merely finished; at the next step hyper drops this call.
        tokio::task::yield_now().await;
        let bytes_written = data.len() as u64;
        let written = self.0.change(|state| files::write(&mut state.disk, &path, mode, header.append, data));
        written.unwrap_or_else(|| Err(Status::unavailable("the guest stands still")))?;
        Ok(Response::new(pb::WriteFileResponse { bytes_written }))
    }
}

fn pieces(data: &[u8]) -> impl Iterator<Item = Bytes> {
    data.chunks(CHUNK).map(Bytes::copy_from_slice)
}
