//! Screen, input, programs and files of the fake.

use std::pin::Pin;
use std::time::Duration;

use hvkube_sdk::v1::desktop_service_server::DesktopService;
use hvkube_sdk::v1::{self, exec_response, read_file_response, write_file_request};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::StatusExt as _;

use super::{Fake, details, refuse};

/// What it takes for a picture.
pub(crate) const PICTURE: &[u8] = b"\x89PNG\r\n\x1a\nfake picture";
/// Width of its screen; positions beyond it are refused.
const WIDTH: i32 = 1280;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn picture(options: Option<v1::ScreenshotOptions>) -> v1::Screenshot {
    v1::Screenshot {
        image: PICTURE.into(),
        format: options.unwrap_or_default().format,
        size: Some(v1::Size { width: 1280, height: 800 }),
        frame_size: Some(v1::Size { width: 1280, height: 800 }),
        sequence: 1,
        ..v1::Screenshot::default()
    }
}

fn target(name: &str) -> Result<(), Status> {
    match name {
        "vms/browser-1" => Ok(()),
        name if name.starts_with("leases/") => Ok(()),
        "vms/browser-2" => Err(refuse(
            Code::FailedPrecondition,
            "VM_NOT_RUNNING",
            "vms/browser-2 is saved, not running",
            &[("vm", name), ("state", "SAVED")],
        )),
        name => Err(refuse(Code::NotFound, "VM_NOT_FOUND", &format!("there is no {name}"), &[("vm", name)])),
    }
}

#[tonic::async_trait]
impl DesktopService for Fake {
    type StreamScreenshotsStream = Answers<v1::Screenshot>;
    type ExecStream = Answers<v1::ExecResponse>;
    type ReadFileStream = Answers<v1::ReadFileResponse>;

    async fn take_screenshot(
        &self,
        request: Request<v1::TakeScreenshotRequest>,
    ) -> Result<Response<v1::Screenshot>, Status> {
        let request = request.into_inner();
        target(&request.target)?;
        Ok(Response::new(picture(request.options)))
    }

    async fn stream_screenshots(
        &self,
        _: Request<v1::StreamScreenshotsRequest>,
    ) -> Result<Response<Self::StreamScreenshotsStream>, Status> {
        let pictures = (1..=3).map(|sequence| Ok(v1::Screenshot { sequence, ..picture(None) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(pictures))))
    }

    async fn request_keyframe(
        &self,
        request: Request<v1::RequestKeyframeRequest>,
    ) -> Result<Response<v1::RequestKeyframeResponse>, Status> {
        target(&request.into_inner().target)?;
        Ok(Response::new(v1::RequestKeyframeResponse::default()))
    }

    async fn send_input(
        &self,
        request: Request<v1::SendInputRequest>,
    ) -> Result<Response<v1::SendInputResponse>, Status> {
        let request = request.into_inner();
        target(&request.target)?;
        for (number, event) in request.events.iter().enumerate() {
            if let Some(v1::input_event::Event::Click(click)) = &event.event
                && click.at.is_some_and(|at| at.x >= WIDTH)
            {
                let mut error = details("OUT_OF_FRAME", &[("width", "1280")]);
                error.add_bad_request_violation(format!("events[{number}].click.at"), "x must be 0 to 1279");
                return Err(Status::with_error_details(
                    Code::InvalidArgument,
                    "a position is outside the frame",
                    error,
                ));
            }
        }
        let completed = u32::try_from(request.events.len()).expect("few events");
        self.set(|seen| seen.batches.push(request));
        Ok(Response::new(v1::SendInputResponse { completed, epoch: 1, ..Default::default() }))
    }

    async fn stream_input(
        &self,
        request: Request<Streaming<v1::StreamInputRequest>>,
    ) -> Result<Response<v1::StreamInputResponse>, Status> {
        let mut messages = request.into_inner();
        let broken = BrokenInput(self.clone());
        let mut done = v1::StreamInputResponse { epoch: 1, ..Default::default() };
        let mut index = 0;
        while let Some(message) = messages.next().await {
            let message = message?;
            if index == 0 {
                target(&message.target)?;
            }
            let outside = |event: &v1::InputEvent| {
                matches!(&event.event, Some(v1::input_event::Event::Click(click))
                    if click.at.is_some_and(|at| at.x >= WIDTH))
            };
            if message.events.iter().any(outside) {
                std::mem::forget(broken);
                let field = format!("messages[{index}].events[0].click.at");
                let told = [("completed_batches", done.batches.to_string())];
                let told: Vec<_> = told.iter().map(|(key, value)| (*key, value.as_str())).collect();
                let mut error = details("OUT_OF_FRAME", &told);
                error.add_bad_request_violation(field.clone(), "x must be 0 to 1279");
                let text = format!("{field}: a position is outside the frame");
                return Err(Status::with_error_details(Code::InvalidArgument, text, error));
            }
            index += 1;
            if !message.events.is_empty() {
                done.batches += 1;
                done.events += message.events.len() as u64;
            }
            self.set(|seen| seen.streamed.push(message));
        }
        // As in `write_file`.
        tokio::task::yield_now().await;
        std::mem::forget(broken);
        Ok(Response::new(done))
    }

    async fn act(&self, request: Request<v1::ActRequest>) -> Result<Response<v1::ActResponse>, Status> {
        let request = request.into_inner();
        target(&request.target)?;
        let screenshot = Some(picture(request.options));
        self.set(|seen| seen.acts.push(request));
        Ok(Response::new(v1::ActResponse {
            screenshot,
            settle: Some(v1::SettleResult::default()),
            ..Default::default()
        }))
    }

    async fn wait_for_settle(
        &self,
        request: Request<v1::WaitForSettleRequest>,
    ) -> Result<Response<v1::WaitForSettleResponse>, Status> {
        // A screen that never settles within a second, and that is white.
        let settle = request.into_inner().settle.unwrap_or_default();
        let timed_out = settle.timeout.is_some_and(|timeout| timeout.seconds < 1);
        let mut result = v1::SettleResult { timed_out, ..Default::default() };
        if let Some(index) = settle.pixels.iter().position(|pixel| pixel.rgb == 0x00ff_ffff) {
            result.set_met(v1::SettleCondition::Pixel);
            result.met_index = u32::try_from(index).expect("few");
            result.met_after = Some(prost_types::Duration { seconds: 0, nanos: 40_000_000 });
            result.timed_out = false;
        }
        let settle = Some(result);
        Ok(Response::new(v1::WaitForSettleResponse { settle, sequence: 1 }))
    }

    /// Programs: `say OUT ERR CODE`, `cat` (standard input), `sleep` (until killed), `kill N` (dies of a signal).
    async fn exec(&self, request: Request<v1::ExecRequest>) -> Result<Response<Self::ExecStream>, Status> {
        use exec_response::Event::{Exit, Started, Stderr, Stdout};
        let request = request.into_inner();
        target(&request.target)?;
        let argv: Vec<&str> = request.argv.iter().map(String::as_str).collect();
        let exit = |code, signal, timed_out| Exit(v1::ExecExit { code, signal, timed_out });
        let started = Started(v1::ExecStarted { pid: 42 });
        let events = match argv[..] {
            ["say", out, err, code] => {
                let code = code.parse().map_err(|_| Status::invalid_argument("code"))?;
                vec![
                    started,
                    Stdout(out.to_owned().into()),
                    Stderr(err.to_owned().into()),
                    exit(code, 0, false),
                ]
            }
            ["cat"] => vec![started, Stdout(request.stdin), exit(0, 0, false)],
            ["kill", signal] => {
                vec![
                    started,
                    exit(-1, signal.parse().map_err(|_| Status::invalid_argument("signal"))?, false),
                ]
            }
            ["sleep"] if request.timeout.is_some() => vec![started, exit(-1, 9, true)],
            ["sleep"] => {
                let (tx, rx) = mpsc::channel(1);
                let fake = self.clone();
                tokio::spawn(async move {
                    let _ = tx.send(Ok(v1::ExecResponse { event: Some(started) })).await;
                    tx.closed().await;
                    fake.set(|seen| seen.killed += 1);
                });
                return Ok(Response::new(Box::pin(ReceiverStream::new(rx))));
            }
            _ => {
                let message = format!("there is no program {}", argv[0]);
                return Err(refuse(Code::NotFound, "PROGRAM_NOT_FOUND", &message, &[("program", argv[0])]));
            }
        };
        let events = events.into_iter().map(|event| Ok(v1::ExecResponse { event: Some(event) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(events))))
    }

    async fn get_clipboard(
        &self,
        request: Request<v1::GetClipboardRequest>,
    ) -> Result<Response<v1::GetClipboardResponse>, Status> {
        use v1::clipboard_content::Content;
        let request = request.into_inner();
        target(&request.target)?;
        let other = |content: &Content| {
            let wanted = request.format();
            matches!(
                (wanted, content),
                (v1::ClipboardFormat::Text, Content::Png(_)) | (v1::ClipboardFormat::Png, Content::Text(_))
            )
        };
        let content = self.seen().clipboard.clone().filter(|content| !other(content));
        let content = content.map(|content| v1::ClipboardContent { content: Some(content) });
        Ok(Response::new(v1::GetClipboardResponse { content, formats: Vec::new() }))
    }

    async fn set_clipboard(
        &self,
        request: Request<v1::SetClipboardRequest>,
    ) -> Result<Response<v1::SetClipboardResponse>, Status> {
        let request = request.into_inner();
        target(&request.target)?;
        self.set(|seen| seen.clipboard = request.content.and_then(|content| content.content));
        Ok(Response::new(v1::SetClipboardResponse::default()))
    }

    async fn list_windows(
        &self,
        request: Request<v1::ListWindowsRequest>,
    ) -> Result<Response<v1::ListWindowsResponse>, Status> {
        target(&request.into_inner().target)?;
        let size = Some(v1::Size { width: 1280, height: 800 });
        let screen = Some(v1::ScreenInfo { size, dpi: 96.0, scale: 1.0, monitors: Vec::new() });
        let windows = (1..=2).map(|id| window(id, id == self.seen().focused)).collect();
        Ok(Response::new(v1::ListWindowsResponse { windows, screen }))
    }

    async fn set_masks(
        &self,
        request: Request<v1::SetMasksRequest>,
    ) -> Result<Response<v1::SetMasksResponse>, Status> {
        let request = request.into_inner();
        target(&request.target)?;
        self.set(|seen| seen.masks = request.masks.clone());
        Ok(Response::new(v1::SetMasksResponse { masks: request.masks }))
    }

    async fn list_masks(
        &self,
        request: Request<v1::ListMasksRequest>,
    ) -> Result<Response<v1::ListMasksResponse>, Status> {
        target(&request.into_inner().target)?;
        let frame_size = Some(v1::Size { width: 1280, height: 800 });
        Ok(Response::new(v1::ListMasksResponse { masks: self.seen().masks.clone(), frame_size }))
    }

    async fn focus_window(
        &self,
        request: Request<v1::FocusWindowRequest>,
    ) -> Result<Response<v1::FocusWindowResponse>, Status> {
        let request = request.into_inner();
        target(&request.target)?;
        let id = request.window_id;
        if !(1..=2).contains(&id) {
            let text = id.to_string();
            let message = format!("there is no window {id}");
            return Err(refuse(Code::NotFound, "WINDOW_NOT_FOUND", &message, &[("window", &text)]));
        }
        self.set(|seen| seen.focused = id);
        Ok(Response::new(v1::FocusWindowResponse { window: Some(window(id, true)) }))
    }

    async fn read_file(
        &self,
        request: Request<v1::ReadFileRequest>,
    ) -> Result<Response<Self::ReadFileStream>, Status> {
        let request = request.into_inner();
        let Some(data) = self.seen().files.get(&request.path).cloned() else {
            let message = format!("there is no {}", request.path);
            return Err(refuse(Code::NotFound, "GUEST_FILE_NOT_FOUND", &message, &[("path", &request.path)]));
        };
        let info = v1::FileInfo { size: data.len() as u64, mode: 0o644, modify_time: None };
        let mut parts = vec![read_file_response::Part::Info(info)];
        parts.extend(data.chunks(1000).map(|chunk| read_file_response::Part::Data(chunk.to_vec().into())));
        let parts = parts.into_iter().map(|part| Ok(v1::ReadFileResponse { part: Some(part) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(parts))))
    }

    async fn write_file(
        &self,
        request: Request<Streaming<v1::WriteFileRequest>>,
    ) -> Result<Response<v1::WriteFileResponse>, Status> {
        let mut parts = request.into_inner();
        let mut path = String::new();
        let mut data = Vec::new();
        let broken = Broken(self.clone());
        self.set(|seen| seen.uploads += 1);
        while let Some(part) = parts.next().await {
            match part?.part {
                Some(write_file_request::Part::Header(header)) => path = header.path,
                Some(write_file_request::Part::Data(piece)) => data.extend_from_slice(&piece),
                None => return Err(Status::invalid_argument("part")),
            }
        }
        // tonic hands a handler a request stream that its client cancelled as one that ended (its decoder maps CANCELLED
        // to the end). Giving way once lets hyper see the reset, which it looks for whenever a handler is pending: it then
        // drops this future, and half a file is not kept.
        tokio::task::yield_now().await;
        std::mem::forget(broken);
        let bytes_written = data.len() as u64;
        self.set(|seen| seen.files.insert(path, data));
        Ok(Response::new(v1::WriteFileResponse { bytes_written }))
    }

    async fn put_file(
        &self,
        request: Request<v1::PutFileRequest>,
    ) -> Result<Response<v1::WriteFileResponse>, Status> {
        let request = request.into_inner();
        let bytes_written = request.data.len() as u64;
        self.set(|seen| seen.files.insert(request.header.unwrap_or_default().path, request.data.to_vec()));
        Ok(Response::new(v1::WriteFileResponse { bytes_written }))
    }
}

/// One of the two windows of the fake's desktop.
fn window(id: u64, focused: bool) -> v1::Window {
    let (title, app) = if id == 1 { ("Mail \u{1b}[31m", "Thunderbird") } else { ("notes.txt", "Mousepad") };
    let x = 10 * i32::try_from(id).unwrap_or(0);
    let bounds = v1::WindowArea { x, y: 20, width: 400, height: 300 };
    v1::Window {
        id,
        title: title.to_owned(),
        app: app.to_owned(),
        pid: 100,
        bounds: Some(bounds),
        content: Some(bounds),
        focused,
        minimised: false,
    }
}

/// Counts an upload that ended before it was whole.
struct Broken(Fake);

impl Drop for Broken {
    fn drop(&mut self) {
        self.0.set(|seen| seen.broken_uploads += 1);
    }
}

/// Counts a stream of input that did not end in order.
struct BrokenInput(Fake);

impl Drop for BrokenInput {
    fn drop(&mut self) {
        self.0.set(|seen| seen.broken_streams += 1);
    }
}

/// How long the queue of a `busy` pool is: longer than any test.
pub(crate) const FOREVER: Duration = Duration::from_secs(3600);
