//! Answers that carry pictures, without a copy of the picture for each reader.
//!
//! tonic writes a message into a buffer of its own before it is sent. For a stream of full HD pictures to a hundred readers
//! that is two gigabytes a second of copying what all of them share. Here only what is around the picture is written anew;
//! the picture itself goes to the connection as the very bytes that the encoder made.
//!
//! The calls go through tonic's server all the same, which reads the request and writes the head of the answer; only the
//! body is exchanged.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use axum::Router;
use axum::body::Body as AxumBody;
use axum::extract::Request as HttpRequest;
use axum::response::Response as HttpResponse;
use axum::routing::post;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, Stream as _, StreamExt as _};
use http::HeaderMap;
use http_body::Frame;
use hvkube_proto::v1;
use prost::Message as _;
use tonic::body::Body;
use tonic::server::{Grpc, ServerStreamingService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use v1::desktop_service_server::DesktopService as _;

use super::desktop::DesktopService;
use super::guard::ResponseStream;

const TAKE: &str = "/hvkube.v1.DesktopService/TakeScreenshot";
const STREAM: &str = "/hvkube.v1.DesktopService/StreamScreenshots";
/// Key of `Screenshot.image`: field 1, with a length.
const IMAGE: u8 = 1 << 3 | 2;

type Pictures = ResponseStream<v1::Screenshot>;

/// Serves the calls whose answers carry pictures in front of tonic's routes.
pub(super) fn add(router: Router, service: &Arc<DesktopService>, max_request: usize) -> Router {
    let (one, many) = (service.clone(), service.clone());
    router
        .route(TAKE, post(move |request| take(one.clone(), max_request, request)))
        .route(STREAM, post(move |request| stream(many.clone(), max_request, request)))
}

/// What the service answered, taken out of tonic's hands.
#[derive(Clone)]
struct Caught {
    service: Arc<DesktopService>,
    pictures: Arc<Mutex<Option<Pictures>>>,
}

impl Caught {
    fn new(service: Arc<DesktopService>) -> Self {
        Self { service, pictures: Arc::default() }
    }

    fn keep(&self, pictures: Pictures) {
        *self.pictures.lock().unwrap_or_else(PoisonError::into_inner) = Some(pictures);
    }

    /// The answer with its pictures; one without is an error, and stays as it is.
    fn answer(self, response: http::Response<Body>) -> HttpResponse {
        let pictures = self.pictures.lock().unwrap_or_else(PoisonError::into_inner).take();
        match pictures {
            Some(pictures) => response.map(|_| AxumBody::new(Parts::new(pictures))),
            None => response.map(AxumBody::new),
        }
    }
}

impl UnaryService<v1::TakeScreenshotRequest> for Caught {
    type Response = v1::Screenshot;
    type Future = BoxFuture<'static, Result<Response<v1::Screenshot>, Status>>;

    fn call(&mut self, request: Request<v1::TakeScreenshotRequest>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let picture = this.service.take_screenshot(request).await?.into_inner();
            this.keep(stream::once(std::future::ready(Ok(picture))).boxed());
            Ok(Response::new(v1::Screenshot::default()))
        })
    }
}

impl ServerStreamingService<v1::StreamScreenshotsRequest> for Caught {
    type Response = v1::Screenshot;
    type ResponseStream = stream::Empty<Result<v1::Screenshot, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<v1::StreamScreenshotsRequest>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            this.keep(this.service.stream_screenshots(request).await?.into_inner());
            Ok(Response::new(stream::empty()))
        })
    }
}

async fn take(service: Arc<DesktopService>, max_request: usize, request: HttpRequest) -> HttpResponse {
    let caught = Caught::new(service);
    let mut grpc = Grpc::new(ProstCodec::<v1::Screenshot, v1::TakeScreenshotRequest>::default())
        .max_decoding_message_size(max_request);
    let response = grpc.unary(caught.clone(), request).await;
    caught.answer(response)
}

async fn stream(service: Arc<DesktopService>, max_request: usize, request: HttpRequest) -> HttpResponse {
    let caught = Caught::new(service);
    let mut grpc = Grpc::new(ProstCodec::<v1::Screenshot, v1::StreamScreenshotsRequest>::default())
        .max_decoding_message_size(max_request);
    let response = grpc.server_streaming(caught.clone(), request).await;
    caught.answer(response)
}

/// The messages as a body: for each what is around the picture, then the picture.
struct Parts {
    pictures: Option<Pictures>,
    queue: VecDeque<Bytes>,
}

impl Parts {
    fn new(pictures: Pictures) -> Self {
        Self { pictures: Some(pictures), queue: VecDeque::with_capacity(2) }
    }
}

impl http_body::Body for Parts {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        loop {
            if let Some(part) = this.queue.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(part))));
            }
            let Some(pictures) = &mut this.pictures else { return Poll::Ready(None) };
            let status = match ready!(Pin::new(pictures).poll_next(cx)) {
                Some(Ok(picture)) => match split(picture) {
                    Ok(parts) => {
                        this.queue.extend(parts.into_iter().filter(|part| !part.is_empty()));
                        continue;
                    }
                    Err(status) => status,
                },
                Some(Err(status)) => status,
                None => Status::ok(""),
            };
            this.pictures = None;
            let mut trailers = HeaderMap::new();
            if status.add_header(&mut trailers).is_err() {
                trailers.insert("grpc-status", http::HeaderValue::from_static("2"));
            }
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
    }
}

/// One message of the protocol, up to the picture and the picture: the order of fields is free.
fn split(mut message: v1::Screenshot) -> Result<[Bytes; 2], Status> {
    let image = std::mem::take(&mut message.image);
    let mut around = BytesMut::with_capacity(5 + message.encoded_len() + 11);
    // Not compressed; the length is known at the end.
    around.put_bytes(0, 5);
    message.encode(&mut around).map_err(|error| Status::internal(error.to_string()))?;
    if !image.is_empty() {
        around.put_u8(IMAGE);
        prost::encode_length_delimiter(image.len(), &mut around)
            .map_err(|error| Status::internal(error.to_string()))?;
    }
    let length = u32::try_from(around.len() - 5 + image.len())
        .map_err(|_| Status::internal("a picture larger than a message can be"))?;
    around[1..5].copy_from_slice(&length.to_be_bytes());
    Ok([around.freeze(), image])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_in_parts_is_the_message_and_the_picture_is_not_copied() {
        for length in [0, 1, 127, 128, 70_000] {
            let message = v1::Screenshot {
                image: vec![7; length].into(),
                sequence: 5,
                cursor: Some(v1::Point { x: 1, y: 2 }),
                patches: vec![v1::Patch { area: None, image: vec![1, 2].into() }],
                ..Default::default()
            };
            let [around, image] = split(message.clone()).expect("small enough");
            assert_eq!(image.as_ptr(), message.image.as_ptr());
            let whole = [around.as_ref(), image.as_ref()].concat();
            assert_eq!(whole[0], 0);
            assert_eq!(whole[1..5], u32::try_from(whole.len() - 5).expect("small").to_be_bytes());
            assert_eq!(v1::Screenshot::decode(&whole[5..]).expect("decodes"), message);
        }
    }
}
