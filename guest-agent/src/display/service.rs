//! `DisplayService` of one session.

use std::time::Duration;

use hvkube_proto::guest::v1 as pb;
use hvkube_proto::guest::v1::display_service_server::DisplayService;
use tonic::{Request, Response, Status};

use super::{CaptureSpec, Desktop, InputError, Interest, PixelColour, Rect, Wait};
use crate::process::{Reply, duration};

const MAX_WAIT: Duration = Duration::from_secs(60);
const DEFAULT_QUIET: Duration = Duration::from_millis(300);
const MAX_QUIET: Duration = Duration::from_secs(10);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_TIMEOUT: Duration = Duration::from_secs(120);
const MAX_IGNORED: usize = 64;
const MAX_CONDITIONS: usize = 16;
const MAX_BATCH_ID: usize = 64;

/// Serves one session; when the last clone is dropped, keys and buttons that the session holds come up.
#[derive(Clone)]
pub struct DisplaySession {
    session: std::sync::Arc<Session>,
}

struct Session {
    desktop: Desktop,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.desktop.input.end_session();
    }
}

impl DisplaySession {
    /// Begins a session.
    #[must_use]
    pub fn new(desktop: Desktop) -> Self {
        Self { session: std::sync::Arc::new(Session { desktop }) }
    }

    fn desktop(&self) -> &Desktop {
        &self.session.desktop
    }
}

/// A settle request whose values have been checked.
struct Settle {
    quiet: Duration,
    timeout: Duration,
    interest: Interest,
}

impl Settle {
    fn parse(request: &pb::SettleRequest) -> Result<Self, Status> {
        if request.ignore.len() > MAX_IGNORED {
            return Err(Status::invalid_argument(format!("ignore: more than {MAX_IGNORED} rectangles")));
        }
        if request.regions.len() > MAX_CONDITIONS || request.pixels.len() > MAX_CONDITIONS {
            let what = format!("regions, pixels: more than {MAX_CONDITIONS} of a kind");
            return Err(Status::invalid_argument(what));
        }
        let conditional = !request.regions.is_empty() || !request.pixels.is_empty();
        let default_quiet = if conditional { Duration::ZERO } else { DEFAULT_QUIET };
        let given = |field, value, max, default| {
            duration(field, value, max).map(|d: Duration| if d.is_zero() { default } else { d })
        };
        let rects = |field: &str, rects: &[pb::Rect]| {
            let fits = |at: u32, len: u32| len > 0 && at.checked_add(len).is_some();
            let rect = |r: &pb::Rect| {
                if fits(r.x, r.width) && fits(r.y, r.height) {
                    Ok(Rect { x: r.x, y: r.y, width: r.width, height: r.height })
                } else {
                    let what = format!("{field}: holds an empty or overflowing rectangle");
                    Err(Status::invalid_argument(what))
                }
            };
            rects.iter().map(rect).collect::<Result<_, _>>()
        };
        let pixel = |pixel: &pb::Pixel| {
            let [0, red, green, blue] = pixel.rgb.to_be_bytes() else {
                return Err(Status::invalid_argument("pixels: holds a colour over 0xffffff"));
            };
            let tolerance = u8::try_from(pixel.tolerance)
                .map_err(|_| Status::invalid_argument("pixels: holds a tolerance over 255"))?;
            if pixel.x == u32::MAX || pixel.y == u32::MAX {
                return Err(Status::invalid_argument("pixels: holds an overflowing place"));
            }
            Ok(PixelColour { x: pixel.x, y: pixel.y, rgb: [red, green, blue], tolerance })
        };
        Ok(Self {
            quiet: given("quiet", request.quiet.as_ref(), MAX_QUIET, default_quiet)?,
            timeout: given("timeout", request.timeout.as_ref(), MAX_TIMEOUT, DEFAULT_TIMEOUT)?,
            interest: Interest {
                ignore: rects("ignore", &request.ignore)?,
                regions: rects("regions", &request.regions)?,
                pixels: request.pixels.iter().map(pixel).collect::<Result<_, _>>()?,
            },
        })
    }
}

#[tonic::async_trait]
impl DisplayService for DisplaySession {
    type CaptureStream = Reply<pb::CaptureResponse>;

    async fn probe(
        &self,
        _request: Request<pb::ProbeRequest>,
    ) -> Result<Response<pb::ProbeResponse>, Status> {
        let probed = self
            .desktop()
            .input
            .probe()
            .await?
            .map_err(|e: InputError| Status::unavailable(e.to_string()))?;
        Ok(Response::new(pb::ProbeResponse {
            width: probed.size.0,
            height: probed.size.1,
            input_round_trip_micros: u32::try_from(probed.round_trip.as_micros()).unwrap_or(u32::MAX),
            pointer_x: probed.pointer.0,
            pointer_y: probed.pointer.1,
        }))
    }

    async fn capture(
        &self,
        request: Request<pb::CaptureRequest>,
    ) -> Result<Response<Self::CaptureStream>, Status> {
        let request = request.into_inner();
        let wait = duration("wait", request.wait.as_ref(), MAX_WAIT)?;
        let spec = CaptureSpec {
            since: request.since_sequence,
            wait,
            cursor: request.cursor,
            shape: request.cursor_shape,
            base: request.base,
        };
        let frame = self.desktop().screen.capture(spec).await?;
        let part = |part| Ok(pb::CaptureResponse { part: Some(part) });
        let header = std::iter::once(part(pb::capture_response::Part::Header(frame.header)));
        let rects = frame.rects.into_iter().map(move |r| part(pb::capture_response::Part::Rect(r)));
        Ok(Response::new(Box::pin(tokio_stream::iter(header.chain(rects)))))
    }

    async fn input(&self, request: Request<pb::InputRequest>) -> Result<Response<pb::InputResponse>, Status> {
        let mut request = request.into_inner();
        if !(1..=MAX_BATCH_ID).contains(&request.batch_id.len()) {
            return Err(Status::invalid_argument(format!("batch_id: must have 1 to {MAX_BATCH_ID} bytes")));
        }
        let Some(settle) = request.settle.take() else {
            return Ok(Response::new(self.desktop().input.batch(request).await?));
        };
        let settle = Settle::parse(&settle)?;
        // Watching begins before the input, or a quick answer of the screen would be missed.
        let screen = &*self.desktop().screen;
        let wait = Wait::begin(screen, settle.interest).await?;
        let mut outcome = self.desktop().input.batch(request).await?;
        if outcome.failure.is_none() {
            outcome.settle = Some(wait.end(screen, settle.quiet, settle.timeout).await?);
        }
        Ok(Response::new(outcome))
    }

    async fn settle(
        &self,
        request: Request<pb::SettleRequest>,
    ) -> Result<Response<pb::SettleResponse>, Status> {
        let settle = Settle::parse(request.get_ref())?;
        let screen = &*self.desktop().screen;
        let wait = Wait::begin(screen, settle.interest).await?;
        Ok(Response::new(wait.end(screen, settle.quiet, settle.timeout).await?))
    }
}
