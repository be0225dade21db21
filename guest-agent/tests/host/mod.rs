//! The host's end of a session, as small as it can be: the preface and an HTTP/2 client. Shared by the tests and by the
//! developer tool `examples/probe.rs`; the host daemon has its own.
#![allow(dead_code, unreachable_pub, clippy::allow_attributes, reason = "each user takes the part it needs")]

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{Request, Response};
use hvkube_guest::session::ScopedExecutor;
use hvkube_guest::transport::Stream;
use hvkube_proto::guest::v1 as pb;
use hvkube_proto::guest::v1::capture_response::Part;
use hvkube_proto::guest::v1::desktop_service_client::DesktopServiceClient;
use hvkube_proto::guest::v1::display_service_client::DisplayServiceClient;
use hvkube_proto::guest::v1::input_event::Event;
use hvkube_proto::guest::v1::process_service_client::ProcessServiceClient;
use hvkube_proto::guest::v1::supervisor_service_client::SupervisorServiceClient;
use hvkube_proto::preface::{Hello, HelloScanner, VERSION, Welcome};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::rt::Executor as _;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;
use tonic::body::Body;
use tower::Service;

/// One session as the host sees it; dropping it closes the stream.
pub struct Host {
    sender: SendRequest<Body>,
    _alive: DropGuard,
    /// What the guest said of itself.
    pub hello: Hello,
}

/// Reads the guest's greeting.
pub async fn read_hello(stream: &mut dyn Stream) -> io::Result<Hello> {
    let mut scanner = HelloScanner::default();
    let mut buf = [0; 128];
    loop {
        let want = scanner.wanted().min(buf.len());
        let n = stream.read(&mut buf[..want]).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(hello) = scanner.feed(&buf[..n]).map_err(io::Error::other)? {
            return Ok(hello);
        }
    }
}

impl Host {
    /// Greets the guest and starts HTTP/2.
    pub async fn greet(mut stream: impl Stream + 'static, epoch: u64) -> io::Result<Self> {
        let mut hello = None;
        while hello.is_none() {
            // Knocks as a host does that finds the port open and silent.
            match tokio::time::timeout(Duration::from_millis(500), read_hello(&mut stream)).await {
                Ok(greeting) => hello = Some(greeting?),
                Err(_) => stream.write_all(&Welcome::KNOCK.encode()).await?,
            }
        }
        let hello = hello.ok_or(io::ErrorKind::UnexpectedEof)?;
        stream.write_all(&Welcome { version: VERSION, nonce: hello.nonce, epoch }.encode()).await?;
        let closed = CancellationToken::new();
        let executor = ScopedExecutor(closed.clone());
        let (sender, driver) = Builder::new(executor.clone())
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(8 << 20)
            .max_frame_size(1 << 20)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        executor.execute(async move {
            let _ended = driver.await;
        });
        Ok(Self { sender, _alive: closed.drop_guard(), hello })
    }

    fn channel(&self) -> Channel {
        Channel(self.sender.clone())
    }

    pub fn supervisor(&self) -> SupervisorServiceClient<Channel> {
        SupervisorServiceClient::new(self.channel())
    }

    pub fn display(&self) -> DisplayServiceClient<Channel> {
        DisplayServiceClient::new(self.channel()).max_decoding_message_size(16 << 20)
    }

    pub fn desktop(&self) -> DesktopServiceClient<Channel> {
        DesktopServiceClient::new(self.channel())
    }

    /// What a selection holds: the header and the bytes.
    pub async fn clipboard(
        &self,
        request: pb::GetClipboardRequest,
    ) -> Result<(pb::ClipboardHeader, Vec<u8>), Status> {
        use pb::get_clipboard_response::Part;
        let mut stream = self.desktop().get_clipboard(request).await?.into_inner();
        let Some(Part::Header(header)) = stream.message().await?.and_then(|m| m.part) else {
            return Err(Status::internal("no header"));
        };
        let mut out = Vec::new();
        while let Some(message) = stream.message().await? {
            let Some(Part::Data(data)) = message.part else { return Err(Status::internal("second header")) };
            out.extend_from_slice(&data);
        }
        Ok((header, out))
    }

    /// Puts something into a selection.
    pub async fn set_clipboard(
        &self,
        selection: pb::Selection,
        kind: pb::ClipboardKind,
        data: &[u8],
    ) -> Result<(), Status> {
        use pb::set_clipboard_request::Part;
        let bytes = u32::try_from(data.len()).map_err(|_| Status::internal("too long"))?;
        let header = pb::SetClipboardHeader { selection: selection.into(), kind: kind.into(), bytes };
        let pieces: Vec<_> = data.chunks(1 << 20).map(|p| Part::Data(p.to_vec().into())).collect();
        let parts = std::iter::once(Part::Header(header)).chain(pieces);
        let messages = parts.map(|part| pb::SetClipboardRequest { part: Some(part) });
        let messages: Vec<_> = messages.collect();
        self.desktop().set_clipboard(tokio_stream::iter(messages)).await?;
        Ok(())
    }

    pub fn processes(&self) -> ProcessServiceClient<Channel> {
        ProcessServiceClient::new(self.channel())
    }

    /// A frame, or a difference, with everything unpacked.
    pub async fn capture(&self, request: pb::CaptureRequest) -> Result<Captured, Status> {
        let mut stream = self.display().capture(request).await?.into_inner();
        let Some(Part::Header(header)) = stream.message().await?.and_then(|m| m.part) else {
            return Err(Status::internal("no header"));
        };
        let mut rects = Vec::new();
        let mut bytes = 0;
        while let Some(message) = stream.message().await? {
            let Some(Part::Rect(rect)) = message.part else { return Err(Status::internal("second header")) };
            bytes += rect.data.len();
            rects.push(rect);
        }
        if rects.len() != header.rects as usize {
            return Err(Status::internal(format!(
                "{} rectangles, header says {}",
                rects.len(),
                header.rects
            )));
        }
        Ok(Captured { header, rects, bytes })
    }

    /// Does a batch of events; every one of them must succeed.
    pub async fn input(&self, batch_id: &str, events: Vec<Event>) -> Result<pb::InputResponse, Status> {
        let events = events.into_iter().map(|event| pb::InputEvent { event: Some(event) }).collect();
        let request = pb::InputRequest { batch_id: batch_id.into(), events, settle: None };
        Ok(self.display().input(request).await?.into_inner())
    }

    /// Runs a program to its end.
    pub async fn exec(&self, request: pb::ExecRequest) -> Result<Ran, Status> {
        use pb::exec_response::Event;
        let mut stream = self.processes().exec(request).await?.into_inner();
        let mut ran = Ran::default();
        while let Some(message) = stream.message().await? {
            match message.event {
                Some(Event::Started(pid)) => ran.pid = pid,
                Some(Event::Stdout(data)) => ran.stdout.extend_from_slice(&data),
                Some(Event::Stderr(data)) => ran.stderr.extend_from_slice(&data),
                Some(Event::Exit(exit)) => ran.exit = Some(exit),
                None => {}
            }
        }
        Ok(ran)
    }

    /// A file's bytes.
    pub async fn read_file(&self, request: pb::ReadFileRequest) -> Result<(pb::FileInfo, Vec<u8>), Status> {
        use pb::read_file_response::Part;
        let mut stream = self.processes().read_file(request).await?.into_inner();
        let Some(Part::Info(info)) = stream.message().await?.and_then(|m| m.part) else {
            return Err(Status::internal("no info"));
        };
        let mut out = Vec::new();
        while let Some(message) = stream.message().await? {
            let Some(Part::Data(data)) = message.part else { return Err(Status::internal("second info")) };
            out.extend_from_slice(&data);
        }
        Ok((info, out))
    }

    /// Writes a file from pieces.
    pub async fn write_file(&self, header: pb::WriteFileHeader, pieces: Vec<Vec<u8>>) -> Result<u64, Status> {
        use pb::write_file_request::Part;
        let head = std::iter::once(Part::Header(header));
        let parts: Vec<_> = head.chain(pieces.into_iter().map(|p| Part::Data(p.into()))).collect();
        let messages =
            tokio_stream::iter(parts.into_iter().map(|part| pb::WriteFileRequest { part: Some(part) }));
        Ok(self.processes().write_file(messages).await?.into_inner().bytes_written)
    }
}

/// What a program did.
#[derive(Debug, Default)]
pub struct Ran {
    pub pid: u32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit: Option<pb::ExecExit>,
}

/// A frame as it came.
pub struct Captured {
    pub header: pb::FrameHeader,
    pub rects: Vec<pb::FrameRect>,
    /// Packed size.
    pub bytes: usize,
}

impl Captured {
    /// Paints the rectangles into a frame of blue, green, red, unused.
    pub fn paint(&self, frame: &mut Vec<u8>) {
        let (width, height) = (self.header.width as usize, self.header.height as usize);
        frame.resize(width * height * 4, 0);
        for rect in &self.rects {
            let area = rect.area.expect("area");
            let (x, y, w, h) = (area.x as usize, area.y as usize, area.width as usize, area.height as usize);
            let pixels = match rect.packing() {
                pb::Packing::Raw => rect.data.to_vec(),
                pb::Packing::Solid => rect.data.repeat(w * h),
                pb::Packing::Lz4 => lz4_flex::block::decompress(&rect.data, w * h * 4).expect("valid LZ4"),
                pb::Packing::Copy => {
                    let from = rect.from.expect("a place");
                    let (x, y) = (from.x.unsigned_abs() as usize, from.y.unsigned_abs() as usize);
                    let row = |row| ((y + row) * width + x) * 4;
                    (0..h).flat_map(|n| frame[row(n)..row(n) + w * 4].to_vec()).collect()
                }
                pb::Packing::Unspecified => panic!("a packing is required"),
            };
            for (row, line) in pixels.chunks_exact(w * 4).enumerate().take(h) {
                let at = ((y + row) * width + x) * 4;
                frame[at..at + w * 4].copy_from_slice(line);
            }
        }
    }
}

/// The host's clock as it goes over the wire.
pub fn now() -> prost_types::Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    prost_types::Timestamp {
        seconds: since.as_secs().cast_signed(),
        nanos: since.subsec_nanos().cast_signed(),
    }
}

/// Carries calls to the guest.
#[derive(Clone)]
pub struct Channel(SendRequest<Body>);

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, hyper::Error>> + Send>>;

impl Service<Request<Body>> for Channel {
    type Response = Response<Body>;
    type Error = hyper::Error;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let path = request.uri().path().to_owned();
        *request.uri_mut() = format!("http://guest{path}").parse().expect("a method's path");
        let answer = self.0.send_request(request);
        Box::pin(async move { Ok(answer.await?.map(Body::new)) })
    }
}
