//! An agent in memory: the guest protocol's server side with a screen of plain colours, and as hostile as a test wants.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, Stream, StreamExt as _};
use hvkube_proto::guest::v1 as pb;
use hvkube_proto::preface::{Hello, VERSION, WelcomeScanner};
use pb::desktop_service_server::{DesktopService, DesktopServiceServer};
use pb::display_service_server::{DisplayService, DisplayServiceServer};
use pb::process_service_server::{ProcessService, ProcessServiceServer};
use pb::supervisor_service_server::{SupervisorService, SupervisorServiceServer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

use crate::hypervisor::GuestStream;
use crate::model::screen::{Rect, Size};

/// What the fake agent is and has seen.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) size: Size,
    pub(crate) pixels: Vec<u8>,
    changes: Vec<(u64, Rect)>,
    pub(crate) captures: usize,
    pub(crate) inputs: Vec<pb::InputRequest>,
    pub(crate) attached: Vec<pb::AttachRequest>,
    pub(crate) written: Vec<(String, Vec<u8>)>,
    /// Given instead of a frame.
    pub(crate) hostile_frame: Option<Vec<pb::CaptureResponse>>,
    /// Given instead of the usual attach answer.
    pub(crate) attach_answer: Option<pb::AttachResponse>,
    /// Given instead of the usual heartbeats.
    pub(crate) beats: Option<Vec<pb::HeartbeatResponse>>,
    /// Given to exec, then the stream ends, unless the program is `endless`.
    pub(crate) exec: Vec<pb::ExecResponse>,
    /// Given to the next inputs; afterwards all are done.
    pub(crate) input_answers: VecDeque<Result<pb::InputResponse, Status>>,
    /// Given instead of what the clipboard holds.
    pub(crate) clipboard: Vec<pb::GetClipboardResponse>,
    /// Contents that the clipboard was given.
    pub(crate) copied: Vec<(pb::SetClipboardHeader, Vec<u8>)>,
    /// The windows and their screen.
    pub(crate) windows: pb::ListWindowsResponse,
    /// Answer nothing about the screen, and no input.
    pub(crate) hangs: bool,
    /// Have no desktop yet, and say so.
    pub(crate) boots: bool,
    /// Never answer input.
    pub(crate) input_hangs: bool,
    /// A batch takes as long as somebody else holds this.
    pub(crate) slow: Arc<tokio::sync::Mutex<()>>,
    /// Never answer a file that is being written before it is whole.
    pub(crate) packing_lz4: bool,
}

/// Clones are the same agent.
#[derive(Clone)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
    sequence: watch::Sender<u64>,
    /// The input devices: one batch or probe after the other.
    devices: Arc<tokio::sync::Mutex<()>>,
}

impl Fake {
    pub(crate) fn new(width: u32, height: u32) -> Self {
        let size = Size { width, height };
        let state = State { size, pixels: vec![0; size.frame_bytes()], ..State::default() };
        Self { state: Arc::new(Mutex::new(state)), sequence: watch::Sender::new(1), devices: Arc::default() }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_up(&self) -> Result<(), Status> {
        if self.state().boots { Err(Status::unavailable("the desktop is not ready")) } else { Ok(()) }
    }

    /// Fills a rectangle with one pixel; the screen's state is a new one.
    pub(crate) fn paint(&self, area: Rect, pixel: [u8; 4]) {
        let mut state = self.state();
        let width = state.size.width;
        for y in area.y..area.y + area.height {
            for x in area.x..area.x + area.width {
                let at = (y * width + x) as usize * 4;
                state.pixels[at..at + 4].copy_from_slice(&pixel);
            }
        }
        let sequence = *self.sequence.borrow() + 1;
        state.changes.push((sequence, area));
        drop(state);
        self.sequence.send_replace(sequence);
    }

    /// A stream whose other end says hello and serves.
    pub(crate) fn dial(&self) -> Box<dyn GuestStream> {
        self.dial_with(Vec::new(), [0; 32], VERSION)
    }

    /// The same behind stale bytes, with a secret and a version.
    pub(crate) fn dial_with(&self, stale: Vec<u8>, secret: [u8; 32], version: u8) -> Box<dyn GuestStream> {
        let (host, guest) = tokio::io::duplex(1 << 20);
        let fake = self.clone();
        tokio::spawn(async move { fake.serve(guest, stale, secret, version).await });
        Box::new(host)
    }

    async fn serve(self, mut io: DuplexStream, stale: Vec<u8>, secret: [u8; 32], version: u8) {
        let nonce = rand();
        let hello = Hello { version, nonce, secret }.encode();
        if io.write_all(&stale).await.is_err() || io.write_all(&hello).await.is_err() {
            return;
        }
        self.welcomed(io, nonce).await;
    }

    /// Waits for the welcome to this nonce and serves.
    pub(crate) async fn welcomed(self, mut io: DuplexStream, nonce: [u8; 16]) {
        let mut scanner = WelcomeScanner::default();
        let mut buffer = [0; 64];
        loop {
            let wanted = scanner.wanted();
            match io.read(&mut buffer[..wanted]).await {
                Ok(0) | Err(_) => return,
                Ok(n) => match scanner.feed(&buffer[..n]) {
                    Ok(Some(welcome)) if welcome.nonce == nonce => break,
                    Ok(_) => {}
                    Err(_) => return,
                },
            }
        }
        let incoming = stream::once(std::future::ready(Ok::<_, std::io::Error>(io)));
        let _ = tonic::transport::Server::builder()
            .add_service(SupervisorServiceServer::new(self.clone()))
            .add_service(DesktopServiceServer::new(self.clone()))
            .add_service(DisplayServiceServer::new(self.clone()).max_decoding_message_size(4 << 20))
            .add_service(ProcessServiceServer::new(self))
            .serve_with_incoming(incoming)
            .await;
    }

    fn frame(&self, since: u64) -> Vec<pb::CaptureResponse> {
        let state = self.state();
        let sequence = *self.sequence.borrow();
        let full = since == 0;
        let areas: Vec<Rect> = if full {
            vec![Rect::whole(state.size)]
        } else {
            state.changes.iter().filter(|(at, _)| *at > since).map(|(_, area)| *area).collect()
        };
        let rects: Vec<pb::FrameRect> = areas.into_iter().flat_map(|area| bands(&state, area)).collect();
        let header = pb::FrameHeader {
            width: state.size.width,
            height: state.size.height,
            sequence,
            full,
            rects: u32::try_from(rects.len()).expect("few"),
            captured_at: Some(SystemTime::now().into()),
            pointer_x: 3,
            pointer_y: 4,
            ..Default::default()
        };
        drop(state);
        let mut parts = vec![header_part(header)];
        parts.extend(rects.into_iter().map(rect_part));
        parts
    }
}

fn bands(state: &State, area: Rect) -> Vec<pb::FrameRect> {
    let rows = (1_048_576 / (area.width * 4)).max(1);
    let mut out = Vec::new();
    let mut y = area.y;
    while y < area.y + area.height {
        let height = rows.min(area.y + area.height - y);
        let mut data = Vec::new();
        for row in y..y + height {
            let start = (row * state.size.width + area.x) as usize * 4;
            data.extend_from_slice(&state.pixels[start..start + area.width as usize * 4]);
        }
        let (packing, data) = if state.packing_lz4 {
            (pb::Packing::Lz4, lz4_flex::block::compress(&data))
        } else {
            (pb::Packing::Raw, data)
        };
        let area = pb::Rect { x: area.x, y, width: area.width, height };
        out.push(pb::FrameRect { area: Some(area), packing: packing.into(), data: data.into(), from: None });
        y += height;
    }
    out
}

pub(crate) fn header_part(header: pb::FrameHeader) -> pb::CaptureResponse {
    pb::CaptureResponse { part: Some(pb::capture_response::Part::Header(header)) }
}

pub(crate) fn rect_part(rect: pb::FrameRect) -> pb::CaptureResponse {
    pb::CaptureResponse { part: Some(pb::capture_response::Part::Rect(rect)) }
}

fn rand() -> [u8; 16] {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).expect("random");
    nonce
}

#[tonic::async_trait]
impl SupervisorService for Fake {
    async fn attach(
        &self,
        request: Request<pb::AttachRequest>,
    ) -> Result<Response<pb::AttachResponse>, Status> {
        let mut state = self.state();
        state.attached.push(request.into_inner());
        let answer = state.attach_answer.clone().unwrap_or_else(|| pb::AttachResponse {
            agent_version: "fake".into(),
            desktop_ready: true,
            ..Default::default()
        });
        Ok(Response::new(answer))
    }

    type HeartbeatStream = BoxStream<'static, Result<pb::HeartbeatResponse, Status>>;

    async fn heartbeat(
        &self,
        _: Request<pb::HeartbeatRequest>,
    ) -> Result<Response<Self::HeartbeatStream>, Status> {
        let beats = self.state().beats.clone();
        let beats =
            beats.unwrap_or_else(|| vec![pb::HeartbeatResponse { sequence: 1, ..Default::default() }]);
        Ok(Response::new(stream::iter(beats.into_iter().map(Ok)).chain(stream::pending()).boxed()))
    }

    async fn set_clock(
        &self,
        _: Request<pb::SetClockRequest>,
    ) -> Result<Response<pb::SetClockResponse>, Status> {
        Ok(Response::new(pb::SetClockResponse::default()))
    }

    async fn flush(&self, _: Request<pb::FlushRequest>) -> Result<Response<pb::FlushResponse>, Status> {
        Ok(Response::new(pb::FlushResponse::default()))
    }

    async fn shutdown(
        &self,
        _: Request<pb::ShutdownRequest>,
    ) -> Result<Response<pb::ShutdownResponse>, Status> {
        Ok(Response::new(pb::ShutdownResponse {}))
    }
}

#[tonic::async_trait]
impl DisplayService for Fake {
    async fn probe(&self, _: Request<pb::ProbeRequest>) -> Result<Response<pb::ProbeResponse>, Status> {
        let (size, hangs) = {
            let state = self.state();
            (state.size, state.hangs)
        };
        let _turn = self.devices.lock().await;
        if hangs {
            std::future::pending::<()>().await;
        }
        self.is_up()?;
        Ok(Response::new(pb::ProbeResponse {
            width: size.width,
            height: size.height,
            input_round_trip_micros: 7,
            ..Default::default()
        }))
    }

    type CaptureStream = Pin<Box<dyn Stream<Item = Result<pb::CaptureResponse, Status>> + Send>>;

    async fn capture(
        &self,
        request: Request<pb::CaptureRequest>,
    ) -> Result<Response<Self::CaptureStream>, Status> {
        let request = request.into_inner();
        let (hostile, hangs) = {
            let mut state = self.state();
            state.captures += 1;
            (state.hostile_frame.clone(), state.hangs)
        };
        if hangs {
            std::future::pending::<()>().await;
        }
        self.is_up()?;
        if let Some(parts) = hostile {
            return Ok(Response::new(stream::iter(parts.into_iter().map(Ok)).boxed()));
        }
        let wait: Duration = request.wait.and_then(|wait| wait.try_into().ok()).unwrap_or_default();
        if request.since_sequence != 0 && !wait.is_zero() {
            let mut sequence = self.sequence.subscribe();
            let _ = tokio::time::timeout(wait, sequence.wait_for(|now| *now > request.since_sequence)).await;
        }
        let parts = self.frame(request.since_sequence);
        Ok(Response::new(stream::iter(parts.into_iter().map(Ok)).boxed()))
    }

    async fn input(&self, request: Request<pb::InputRequest>) -> Result<Response<pb::InputResponse>, Status> {
        let request = request.into_inner();
        let (answer, hangs, slow) = {
            let mut state = self.state();
            state.inputs.push(request.clone());
            (state.input_answers.pop_front(), state.input_hangs || state.hangs, state.slow.clone())
        };
        let _turn = self.devices.lock().await;
        if hangs {
            std::future::pending::<()>().await;
        }
        drop(slow.lock().await);
        self.is_up()?;
        answer
            .unwrap_or_else(|| {
                Ok(pb::InputResponse {
                    completed: u32::try_from(request.events.len()).expect("few"),
                    settle: request.settle.map(|_| pb::SettleResponse::default()),
                    ..Default::default()
                })
            })
            .map(Response::new)
    }

    async fn settle(&self, _: Request<pb::SettleRequest>) -> Result<Response<pb::SettleResponse>, Status> {
        Ok(Response::new(pb::SettleResponse { settled_after_micros: 5, ..Default::default() }))
    }
}

#[tonic::async_trait]
impl DesktopService for Fake {
    type GetClipboardStream = BoxStream<'static, Result<pb::GetClipboardResponse, Status>>;

    async fn get_clipboard(
        &self,
        _: Request<pb::GetClipboardRequest>,
    ) -> Result<Response<Self::GetClipboardStream>, Status> {
        let parts = self.state().clipboard.clone();
        Ok(Response::new(stream::iter(parts.into_iter().map(Ok)).boxed()))
    }

    async fn set_clipboard(
        &self,
        request: Request<Streaming<pb::SetClipboardRequest>>,
    ) -> Result<Response<pb::SetClipboardResponse>, Status> {
        use pb::set_clipboard_request::Part;
        let mut parts = request.into_inner();
        let mut copied = (pb::SetClipboardHeader::default(), Vec::new());
        while let Some(part) = parts.message().await? {
            match part.part {
                Some(Part::Header(header)) => copied.0 = header,
                Some(Part::Data(data)) => copied.1.extend_from_slice(&data),
                None => return Err(Status::invalid_argument("empty part")),
            }
        }
        self.state().copied.push(copied);
        Ok(Response::new(pb::SetClipboardResponse {}))
    }

    async fn list_windows(
        &self,
        _: Request<pb::ListWindowsRequest>,
    ) -> Result<Response<pb::ListWindowsResponse>, Status> {
        Ok(Response::new(self.state().windows.clone()))
    }

    async fn focus_window(
        &self,
        _: Request<pb::FocusWindowRequest>,
    ) -> Result<Response<pb::FocusWindowResponse>, Status> {
        let window = self.state().windows.windows.first().cloned();
        window
            .ok_or_else(|| Status::not_found("no window"))
            .map(|window| Response::new(pb::FocusWindowResponse { window: Some(window) }))
    }
}

#[tonic::async_trait]
impl ProcessService for Fake {
    type ExecStream = BoxStream<'static, Result<pb::ExecResponse, Status>>;

    async fn exec(&self, request: Request<pb::ExecRequest>) -> Result<Response<Self::ExecStream>, Status> {
        if request.get_ref().argv.first().map(String::as_str) == Some("missing") {
            return Err(Status::not_found("no program missing"));
        }
        let events = stream::iter(self.state().exec.clone().into_iter().map(Ok));
        if request.get_ref().argv.first().map(String::as_str) == Some("endless") {
            return Ok(Response::new(events.chain(stream::pending()).boxed()));
        }
        Ok(Response::new(events.boxed()))
    }

    type ReadFileStream = BoxStream<'static, Result<pb::ReadFileResponse, Status>>;

    async fn read_file(
        &self,
        request: Request<pb::ReadFileRequest>,
    ) -> Result<Response<Self::ReadFileStream>, Status> {
        use pb::read_file_response::Part;
        let data = Bytes::from_static(&[7; 100]);
        let info = pb::FileInfo { size: 100, mode: 0o100_644, modify_time: None };
        let mut parts = vec![Part::Info(info), Part::Data(data.clone())];
        if request.get_ref().path == "endless" {
            parts.extend(std::iter::repeat_n(Part::Data(data), 1000));
        }
        let parts = parts.into_iter().map(|part| Ok(pb::ReadFileResponse { part: Some(part) }));
        Ok(Response::new(stream::iter(parts).boxed()))
    }

    async fn write_file(
        &self,
        request: Request<Streaming<pb::WriteFileRequest>>,
    ) -> Result<Response<pb::WriteFileResponse>, Status> {
        use pb::write_file_request::Part;
        let mut parts = request.into_inner();
        let mut file = (String::new(), Vec::new());
        while let Some(part) = parts.message().await? {
            match part.part {
                Some(Part::Header(header)) => file.0 = header.path,
                Some(Part::Data(data)) => file.1.extend_from_slice(&data),
                None => return Err(Status::invalid_argument("empty part")),
            }
        }
        let bytes_written = file.1.len() as u64;
        self.state().written.push(file);
        Ok(Response::new(pb::WriteFileResponse { bytes_written }))
    }
}
