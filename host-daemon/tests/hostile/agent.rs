//! An agent that speaks the protocol and lies in it.

use std::os::unix::net::UnixStream as Pipe;
use std::sync::Arc;
use std::thread::JoinHandle;

use futures_util::stream::{self, BoxStream, StreamExt as _};
use hvkube_proto::guest::v1 as pb;
use hvkube_proto::preface::{Hello, VERSION, WELCOME_LEN};
use pb::capture_response::Part;
use pb::desktop_service_server::{DesktopService, DesktopServiceServer};
use pb::display_service_server::{DisplayService, DisplayServiceServer};
use pb::process_service_server::{ProcessService, ProcessServiceServer};
use pb::supervisor_service_server::{SupervisorService, SupervisorServiceServer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status, Streaming};

use crate::count;

type Answers<T> = Arc<dyn Fn() -> BoxStream<'static, T> + Send + Sync>;

/// What it answers.
#[derive(Clone)]
pub(crate) struct Agent {
    pub(crate) attach: pb::AttachResponse,
    pub(crate) probe: pb::ProbeResponse,
    pub(crate) input: pb::InputResponse,
    pub(crate) settle: pb::SettleResponse,
    pub(crate) beats: Answers<pb::HeartbeatResponse>,
    pub(crate) capture: Answers<pb::CaptureResponse>,
    pub(crate) exec: Answers<pb::ExecResponse>,
    pub(crate) file: Answers<pb::ReadFileResponse>,
    pub(crate) clipboard: Answers<pb::GetClipboardResponse>,
    pub(crate) windows: pb::ListWindowsResponse,
    /// Bytes of headers before and after each capture.
    pub(crate) metadata: usize,
}

impl Default for Agent {
    fn default() -> Self {
        Self {
            attach: pb::AttachResponse { desktop_ready: true, ..Default::default() },
            probe: pb::ProbeResponse { width: 64, height: 64, ..Default::default() },
            input: pb::InputResponse::default(),
            settle: pb::SettleResponse::default(),
            beats: Arc::new(|| stream::pending().boxed()),
            capture: Arc::new(|| stream::iter(frame(64, 64)).boxed()),
            exec: Arc::new(|| stream::empty().boxed()),
            file: Arc::new(|| stream::empty().boxed()),
            clipboard: Arc::new(|| stream::empty().boxed()),
            windows: pb::ListWindowsResponse::default(),
            metadata: 0,
        }
    }
}

pub(crate) fn header(width: u32, height: u32, rects: u32) -> pb::CaptureResponse {
    let header =
        pb::FrameHeader { width, height, sequence: 1, full: true, rects, answer: 1, ..Default::default() };
    pb::CaptureResponse { part: Some(Part::Header(header)) }
}

pub(crate) fn rect(
    x: u32,
    y: u32,
    width: u32,
    height: u32,
    packing: pb::Packing,
    data: &[u8],
) -> pb::CaptureResponse {
    let area = Some(pb::Rect { x, y, width, height });
    let data = data.to_vec().into();
    let rect = pb::FrameRect { area, packing: packing.into(), data, from: None };
    pb::CaptureResponse { part: Some(Part::Rect(rect)) }
}

/// A frame of one colour, as it should be.
pub(crate) fn frame(width: u32, height: u32) -> Vec<pb::CaptureResponse> {
    vec![header(width, height, 1), rect(0, 0, width, height, pb::Packing::Solid, &[1, 2, 3, 0])]
}

/// Runs a guest on a thread and a runtime of its own; gives the host's end.
pub(crate) fn run<F>(guest: impl FnOnce(UnixStream) -> F + Send + 'static) -> (UnixStream, JoinHandle<()>)
where
    F: Future<Output = ()>,
{
    let (host, pipe) = Pipe::pair().expect("a pair of sockets");
    host.set_nonblocking(true).expect("a socket");
    pipe.set_nonblocking(true).expect("a socket");
    let thread = std::thread::spawn(move || {
        count::leave_out_this_thread();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async move { guest(UnixStream::from_std(pipe).expect("a socket")).await });
    });
    (UnixStream::from_std(host).expect("a socket"), thread)
}

/// Says hello and reads the welcome.
pub(crate) async fn greet(io: &mut UnixStream) {
    let hello = Hello { version: VERSION, nonce: [1; 16], secret: [0; 32] }.encode();
    io.write_all(&hello).await.expect("the host listens");
    io.read_exact(&mut [0; WELCOME_LEN]).await.expect("a welcome");
}

impl Agent {
    pub(crate) fn start(self) -> (UnixStream, JoinHandle<()>) {
        run(|mut io| async move {
            greet(&mut io).await;
            // Without an end, or the runtime would go, and the connection with it.
            let incoming =
                stream::once(std::future::ready(Ok::<_, std::io::Error>(io))).chain(stream::pending());
            let _ = tonic::transport::Server::builder()
                .http2_max_header_list_size(1 << 20)
                .max_frame_size(1 << 20)
                .add_service(SupervisorServiceServer::new(self.clone()))
                .add_service(DesktopServiceServer::new(self.clone()))
                .add_service(DisplayServiceServer::new(self.clone()))
                .add_service(ProcessServiceServer::new(self))
                .serve_with_incoming(incoming)
                .await;
        })
    }

    fn with_metadata<T>(&self, message: T) -> Response<T> {
        let mut response = Response::new(message);
        for n in 0..self.metadata.div_ceil(4096) {
            let value = MetadataValue::try_from("x".repeat(4096)).expect("legal");
            let name: tonic::metadata::MetadataKey<_> = format!("x-{n}").parse().expect("legal");
            response.metadata_mut().insert(name, value);
        }
        response
    }
}

#[tonic::async_trait]
impl SupervisorService for Agent {
    async fn attach(&self, _: Request<pb::AttachRequest>) -> Result<Response<pb::AttachResponse>, Status> {
        Ok(Response::new(self.attach.clone()))
    }

    type HeartbeatStream = BoxStream<'static, Result<pb::HeartbeatResponse, Status>>;

    async fn heartbeat(
        &self,
        _: Request<pb::HeartbeatRequest>,
    ) -> Result<Response<Self::HeartbeatStream>, Status> {
        Ok(Response::new((self.beats)().map(Ok).boxed()))
    }

    async fn set_clock(
        &self,
        _: Request<pb::SetClockRequest>,
    ) -> Result<Response<pb::SetClockResponse>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn flush(&self, _: Request<pb::FlushRequest>) -> Result<Response<pb::FlushResponse>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn shutdown(
        &self,
        _: Request<pb::ShutdownRequest>,
    ) -> Result<Response<pb::ShutdownResponse>, Status> {
        Ok(Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl DisplayService for Agent {
    async fn probe(&self, _: Request<pb::ProbeRequest>) -> Result<Response<pb::ProbeResponse>, Status> {
        Ok(Response::new(self.probe))
    }

    type CaptureStream = BoxStream<'static, Result<pb::CaptureResponse, Status>>;

    async fn capture(&self, _: Request<pb::CaptureRequest>) -> Result<Response<Self::CaptureStream>, Status> {
        Ok(self.with_metadata((self.capture)().map(Ok).boxed()))
    }

    async fn input(&self, _: Request<pb::InputRequest>) -> Result<Response<pb::InputResponse>, Status> {
        Ok(Response::new(self.input.clone()))
    }

    async fn settle(&self, _: Request<pb::SettleRequest>) -> Result<Response<pb::SettleResponse>, Status> {
        Ok(Response::new(self.settle.clone()))
    }
}

#[tonic::async_trait]
impl DesktopService for Agent {
    type GetClipboardStream = BoxStream<'static, Result<pb::GetClipboardResponse, Status>>;

    async fn get_clipboard(
        &self,
        _: Request<pb::GetClipboardRequest>,
    ) -> Result<Response<Self::GetClipboardStream>, Status> {
        Ok(Response::new((self.clipboard)().map(Ok).boxed()))
    }

    async fn set_clipboard(
        &self,
        request: Request<Streaming<pb::SetClipboardRequest>>,
    ) -> Result<Response<pb::SetClipboardResponse>, Status> {
        // Takes the call, and nothing of the content.
        let _held = request.into_inner();
        std::future::pending().await
    }

    async fn list_windows(
        &self,
        _: Request<pb::ListWindowsRequest>,
    ) -> Result<Response<pb::ListWindowsResponse>, Status> {
        Ok(Response::new(self.windows.clone()))
    }

    async fn focus_window(
        &self,
        _: Request<pb::FocusWindowRequest>,
    ) -> Result<Response<pb::FocusWindowResponse>, Status> {
        Ok(Response::new(pb::FocusWindowResponse { window: self.windows.windows.first().cloned() }))
    }
}

#[tonic::async_trait]
impl ProcessService for Agent {
    type ExecStream = BoxStream<'static, Result<pb::ExecResponse, Status>>;

    async fn exec(&self, _: Request<pb::ExecRequest>) -> Result<Response<Self::ExecStream>, Status> {
        Ok(Response::new((self.exec)().map(Ok).boxed()))
    }

    type ReadFileStream = BoxStream<'static, Result<pb::ReadFileResponse, Status>>;

    async fn read_file(
        &self,
        _: Request<pb::ReadFileRequest>,
    ) -> Result<Response<Self::ReadFileStream>, Status> {
        Ok(Response::new((self.file)().map(Ok).boxed()))
    }

    async fn write_file(
        &self,
        request: Request<Streaming<pb::WriteFileRequest>>,
    ) -> Result<Response<pb::WriteFileResponse>, Status> {
        // Takes the call, and nothing of the file.
        let _held = request.into_inner();
        std::future::pending().await
    }
}
