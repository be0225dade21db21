//! `hvkube.v1.DesktopService`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use hvkube_proto::v1;
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

use super::convert::{desk, input, process, screen};
use super::guard::{self, Guard, ResponseStream};
use super::{auth, fields, input_stream};
use crate::guest::GuestError;
use crate::model::error::{Error, Reason, Result as DomainResult};
use crate::model::input::InputEvent;
use crate::model::screen::Size;
use crate::orchestrator::Orchestrator;
use crate::orchestrator::request::Caller;

/// For calls whose client set no deadline: longer than any single answer takes.
const PICTURE: Duration = Duration::from_secs(60);
/// The same for the clipboard and the windows: a program may have to be asked, and may take its time.
const DESK: Duration = Duration::from_secs(40);
/// The same for batches of input, which may be long texts.
pub(super) const INPUT: Duration = Duration::from_secs(600);
/// The same for programs and files.
const TRANSFER: Duration = Duration::from_secs(24 * 3600);

pub(crate) struct DesktopService {
    orchestrator: Orchestrator,
    /// Callers without the admin token may use `as_root`.
    allow_root: bool,
}

impl DesktopService {
    pub(crate) fn new(orchestrator: Orchestrator, allow_root: bool) -> Self {
        Self { orchestrator, allow_root }
    }

    async fn guard<T>(&self, request: &Request<T>, target: &str) -> DomainResult<Guard> {
        Guard::new(&self.orchestrator, request, &fields::target("target", target)?).await
    }

    /// The same for a call that changes something in the guest.
    async fn driver<T>(&self, request: &Request<T>, target: &str) -> DomainResult<Guard> {
        Guard::driving(&self.orchestrator, request, &fields::target("target", target)?).await
    }

    /// Looks up the secrets that events name.
    async fn reveal(&self, caller: &Caller, target: &str, events: &mut [InputEvent]) -> DomainResult<()> {
        let target = fields::target("target", target)?;
        self.orchestrator.reveal_secrets(caller, &target, events).await
    }

    fn check_root(&self, guard: &Guard, as_root: bool) -> DomainResult<()> {
        if !as_root || self.allow_root || guard.caller.admin {
            return Ok(());
        }
        let message = "as_root is only for the admin token on this host (allow_root_exec is off)";
        Err(Error::new(Reason::GuestPermissionDenied, message).with("caller", &guard.caller.name))
    }

    /// Writes a file from pieces. An error in the pieces is the answer, not what the guest makes of it.
    async fn write<T>(
        &self,
        request: &Request<T>,
        header: &v1::WriteFileHeader,
        data: BoxStream<'static, DomainResult<Bytes>>,
    ) -> DomainResult<v1::WriteFileResponse> {
        let target = fields::target("header.target", &header.target)?;
        let params = process::write(header)?;
        let mut guard = Guard::driving(&self.orchestrator, request, &target).await?;
        self.check_root(&guard, header.as_root)?;
        let session = guard.session()?;

        let failure = Arc::new(Mutex::new(None));
        let slot = failure.clone();
        let data = data.map(move |piece| {
            piece.map_err(|error| {
                let text = error.to_string();
                *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                text
            })
        });
        let deadline = guard.deadline(TRANSFER);
        let call = async {
            session.write_file(params, data, deadline).await.map_err(|error| {
                let cause = failure.lock().unwrap_or_else(PoisonError::into_inner).take();
                cause.unwrap_or_else(|| file_error(error))
            })
        };
        let bytes_written = guard.hold(call).await?;
        Ok(v1::WriteFileResponse { bytes_written })
    }
}

fn file_error(error: GuestError) -> Error {
    error.into_error(Reason::GuestFileNotFound)
}

fn window_error(error: GuestError) -> Error {
    error.into_error(Reason::WindowNotFound)
}

fn desk_error(error: GuestError) -> Error {
    error.into_error(Reason::GuestFailed)
}

fn program_error(error: GuestError) -> Error {
    error.into_error(Reason::ProgramNotFound)
}

/// A batch of input whose fields are right.
pub(super) struct Batch {
    pub(super) id: String,
    pub(super) events: Vec<InputEvent>,
    pub(super) frame: Option<Size>,
}

impl Batch {
    pub(super) fn of(id: &str, events: &[v1::InputEvent], frame: Option<v1::Size>) -> DomainResult<Self> {
        let id = fields::uuid("batch_id", id)?.unwrap_or_else(Uuid::new_v4);
        Ok(Self { id: id.to_string(), events: input::events(events)?, frame: screen::frame_size(frame)? })
    }
}

#[tonic::async_trait]
impl v1::desktop_service_server::DesktopService for DesktopService {
    type StreamScreenshotsStream = ResponseStream<v1::Screenshot>;
    type ExecStream = ResponseStream<v1::ExecResponse>;
    type ReadFileStream = ResponseStream<v1::ReadFileResponse>;

    async fn take_screenshot(
        &self,
        request: Request<v1::TakeScreenshotRequest>,
    ) -> Result<Response<v1::Screenshot>, Status> {
        let options = screen::options(request.get_ref().options.as_ref())?;
        let mut guard = self.guard(&request, &request.get_ref().target).await?;
        let (hub, deadline) = (guard.hub(), guard.deadline(PICTURE));
        let picture = guard.hold(async { Ok(hub.screenshot(&options, deadline).await?) }).await?;
        let shape = request.get_ref().options.is_some_and(|options| options.cursor_shape);
        Ok(Response::new(screen::screenshot(picture, shape)))
    }

    async fn stream_screenshots(
        &self,
        request: Request<v1::StreamScreenshotsRequest>,
    ) -> Result<Response<Self::StreamScreenshotsStream>, Status> {
        let wanted = request.get_ref();
        let options = screen::stream(wanted)?;
        let target = fields::target("target", &wanted.target)?;
        let guard = Guard::through_saves(&self.orchestrator, &request, &target).await?;
        let frames = guard.hub().subscribe(options).map_err(Error::from)?;
        let mut messages = screen::Messages::new(wanted.options.is_some_and(|options| options.cursor_shape));
        let frames = frames.map(move |item| Ok(messages.of(item?))).boxed();
        Ok(Response::new(guard.hold_stream(frames, true)))
    }

    async fn request_keyframe(
        &self,
        request: Request<v1::RequestKeyframeRequest>,
    ) -> Result<Response<v1::RequestKeyframeResponse>, Status> {
        self.guard(&request, &request.get_ref().target).await?.hub().request_keyframe();
        Ok(Response::new(v1::RequestKeyframeResponse {}))
    }

    async fn send_input(
        &self,
        request: Request<v1::SendInputRequest>,
    ) -> Result<Response<v1::SendInputResponse>, Status> {
        let wanted = request.get_ref();
        let mut batch = Batch::of(&wanted.batch_id, &wanted.events, wanted.frame_size)?;
        let mut guard = self.driver(&request, &wanted.target).await?;
        self.reveal(&guard.caller, &wanted.target, &mut batch.events).await?;
        let (hub, deadline) = (guard.hub(), guard.deadline(INPUT));
        let call = async { Ok(hub.send_input(&batch.id, batch.events, batch.frame, deadline).await?) };
        let done = guard.hold(call).await?;
        Ok(Response::new(screen::input_done(&done)))
    }

    async fn stream_input(
        &self,
        mut request: Request<Streaming<v1::StreamInputRequest>>,
    ) -> Result<Response<v1::StreamInputResponse>, Status> {
        let first = guard::first(request.get_mut(), "messages[0].target").await?;
        let (metadata, extensions, messages) = request.into_parts();
        let request = Request::from_parts(metadata, extensions, ());
        let target = fields::target("messages[0].target", &first.target)?;
        let guard = Guard::driving(&self.orchestrator, &request, &target).await?;
        Ok(Response::new(input_stream::run(&self.orchestrator, guard, first, messages).await?))
    }

    async fn act(&self, request: Request<v1::ActRequest>) -> Result<Response<v1::ActResponse>, Status> {
        let wanted = request.get_ref();
        let mut batch = Batch::of(&wanted.batch_id, &wanted.events, wanted.frame_size)?;
        let settle = screen::settle(wanted.settle.as_ref())?;
        let options = screen::options(wanted.options.as_ref())?;
        let shape = wanted.options.is_some_and(|options| options.cursor_shape);
        let mut guard = self.driver(&request, &wanted.target).await?;
        self.reveal(&guard.caller, &wanted.target, &mut batch.events).await?;
        let (hub, deadline) = (guard.hub(), guard.deadline(INPUT));
        let Batch { id, events, frame } = batch;
        let call = async { Ok(hub.act(&id, events, frame, &settle, &options, deadline).await?) };
        let acted = guard.hold(call).await?;
        Ok(Response::new(v1::ActResponse {
            input: Some(screen::input_done(&acted.input)),
            settle: Some(screen::settled(&acted.settled)),
            screenshot: Some(screen::screenshot(acted.screenshot, shape)),
        }))
    }

    async fn wait_for_settle(
        &self,
        request: Request<v1::WaitForSettleRequest>,
    ) -> Result<Response<v1::WaitForSettleResponse>, Status> {
        let wanted = request.get_ref();
        let settle = screen::settle(wanted.settle.as_ref())?;
        let frame = screen::frame_size(wanted.frame_size)?;
        let mut guard = self.guard(&request, &wanted.target).await?;
        let (hub, deadline) = (guard.hub(), guard.deadline(INPUT));
        let call = async { Ok(hub.wait_for_settle(&settle, frame, deadline).await?) };
        let settled = guard.hold(call).await?.settled;
        let sequence = settled.sequence;
        Ok(Response::new(v1::WaitForSettleResponse { settle: Some(screen::settled(&settled)), sequence }))
    }

    async fn get_clipboard(
        &self,
        request: Request<v1::GetClipboardRequest>,
    ) -> Result<Response<v1::GetClipboardResponse>, Status> {
        let wanted = desk::get(request.get_ref())?;
        let mut guard = self.guard(&request, &request.get_ref().target).await?;
        let (session, deadline) = (guard.session()?, guard.deadline(DESK));
        let call = async {
            let found = session.get_clipboard(wanted.selection, wanted.kind, wanted.max, deadline).await;
            desk::found(found.map_err(desk_error)?, wanted.max)
        };
        Ok(Response::new(guard.hold(call).await?))
    }

    async fn set_clipboard(
        &self,
        request: Request<v1::SetClipboardRequest>,
    ) -> Result<Response<v1::SetClipboardResponse>, Status> {
        let (selection, content) = desk::set(request.get_ref())?;
        let mut guard = self.driver(&request, &request.get_ref().target).await?;
        let (session, deadline) = (guard.session()?, guard.deadline(DESK));
        let call = async { session.set_clipboard(selection, content, deadline).await.map_err(desk_error) };
        guard.hold(call).await?;
        Ok(Response::new(v1::SetClipboardResponse {}))
    }

    async fn list_windows(
        &self,
        request: Request<v1::ListWindowsRequest>,
    ) -> Result<Response<v1::ListWindowsResponse>, Status> {
        let mut guard = self.guard(&request, &request.get_ref().target).await?;
        let (session, deadline) = (guard.session()?, guard.deadline(DESK));
        let call = async { session.list_windows(deadline).await.map_err(desk_error) };
        Ok(Response::new(desk::windows(guard.hold(call).await?)))
    }

    async fn focus_window(
        &self,
        request: Request<v1::FocusWindowRequest>,
    ) -> Result<Response<v1::FocusWindowResponse>, Status> {
        let id = request.get_ref().window_id;
        if id == 0 {
            return Err(Error::field("window_id", "is required: the id of a window of ListWindows").into());
        }
        let timeout = desk::focus_timeout(request.get_ref().timeout)?;
        let mut guard = self.driver(&request, &request.get_ref().target).await?;
        let (session, deadline) = (guard.session()?, guard.deadline(DESK));
        let call = async { session.focus_window(id, timeout, deadline).await.map_err(window_error) };
        let window = desk::window(guard.hold(call).await?);
        Ok(Response::new(v1::FocusWindowResponse { window: Some(window) }))
    }

    async fn set_masks(
        &self,
        request: Request<v1::SetMasksRequest>,
    ) -> Result<Response<v1::SetMasksResponse>, Status> {
        let wanted = request.get_ref();
        let (areas, frame) = (desk::masks(&wanted.masks)?, screen::frame_size(wanted.frame_size)?);
        let target = fields::target("target", &wanted.target)?;
        let mut guard = self.driver(&request, &wanted.target).await?;
        let (caller, deadline) = (guard.caller.clone(), guard.deadline(PICTURE));
        let call = self.orchestrator.set_masks(&caller, &target, areas, frame, deadline);
        let masks = guard.hold(call).await?.into_iter().map(screen::from_rect).collect();
        Ok(Response::new(v1::SetMasksResponse { masks }))
    }

    async fn list_masks(
        &self,
        request: Request<v1::ListMasksRequest>,
    ) -> Result<Response<v1::ListMasksResponse>, Status> {
        let target = fields::target("target", &request.get_ref().target)?;
        let masks = self.orchestrator.masks(&auth::of(&request)?, &target).await?;
        Ok(Response::new(desk::masks_to_proto(masks)))
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Result<Response<Self::ExecStream>, Status> {
        let params = process::exec(request.get_ref().clone())?;
        let mut guard = self.driver(&request, &request.get_ref().target).await?;
        self.check_root(&guard, params.as_root)?;
        let session = guard.session()?;
        let deadline = guard.deadline(TRANSFER);
        let call = async { session.exec(params, deadline).await.map_err(program_error) };
        let events = guard.hold(call).await?;
        let events = events.map(|event| event.map(process::exec_event).map_err(program_error)).boxed();
        Ok(Response::new(guard.hold_stream(events, false)))
    }

    async fn read_file(
        &self,
        request: Request<v1::ReadFileRequest>,
    ) -> Result<Response<Self::ReadFileStream>, Status> {
        use v1::read_file_response::Part;
        let params = process::read(request.get_ref().clone())?;
        let mut guard = self.guard(&request, &request.get_ref().target).await?;
        self.check_root(&guard, params.as_root)?;
        let session = guard.session()?;
        let deadline = guard.deadline(TRANSFER);
        let call = async { session.read_file(params, deadline).await.map_err(file_error) };
        let reader = guard.hold(call).await?;
        let info = Part::Info(process::file_info(&reader.info));
        let parts = stream::once(std::future::ready(Ok(info)))
            .chain(reader.data.map(|data| data.map(Part::Data).map_err(file_error)))
            .map(|part| part.map(|part| v1::ReadFileResponse { part: Some(part) }))
            .boxed();
        Ok(Response::new(guard.hold_stream(parts, false)))
    }

    async fn write_file(
        &self,
        mut request: Request<Streaming<v1::WriteFileRequest>>,
    ) -> Result<Response<v1::WriteFileResponse>, Status> {
        use v1::write_file_request::Part;
        let Some(Part::Header(header)) = guard::first(request.get_mut(), "header").await?.part else {
            return Err(Error::field("header", "is required in the first message").into());
        };
        let (metadata, extensions, parts) = request.into_parts();
        let data = parts.map(|message| match message {
            Ok(v1::WriteFileRequest { part: Some(Part::Data(data)) }) => {
                process::data(&data)?;
                Ok(data)
            }
            Ok(v1::WriteFileRequest { part: Some(Part::Header(_)) }) => {
                Err(Error::field("header", "is legal in the first message only"))
            }
            Ok(v1::WriteFileRequest { part: None }) => Err(Error::field("data", "is required")),
            // The client broke off; nobody reads the answer.
            Err(status) => {
                Err(Error::new(Reason::GuestInvalid, format!("the upload broke off: {}", status.message())))
            }
        });
        // To tonic a client that breaks off has merely finished. At the next step hyper drops this call for it, and with it
        // the guest's; so the end counts only if there is a next step.
        let data =
            data.chain(stream::once(tokio::task::yield_now()).filter_map(|()| std::future::ready(None)));
        let request = Request::from_parts(metadata, extensions, ());
        Ok(Response::new(self.write(&request, &header, data.boxed()).await?))
    }

    async fn put_file(
        &self,
        mut request: Request<v1::PutFileRequest>,
    ) -> Result<Response<v1::WriteFileResponse>, Status> {
        let data = std::mem::take(&mut request.get_mut().data);
        let header = fields::required("header", request.get_mut().header.take())?;
        process::data(&data)?;
        let data = stream::once(std::future::ready(Ok(data))).boxed();
        Ok(Response::new(self.write(&request, &header, data).await?))
    }
}
