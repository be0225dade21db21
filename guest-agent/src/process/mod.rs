//! Programs and files, as the user this process runs as.

mod exec;
mod files;

use std::pin::Pin;
use std::time::Duration;

use hvkube_proto::guest::v1 as pb;
use hvkube_proto::guest::v1::process_service_server::ProcessService;
use prost_types::Duration as PbDuration;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

pub use exec::Home;
#[cfg(feature = "sim")]
pub(crate) use exec::{CHUNK, MAX_TIMEOUT, check as check_exec};
#[cfg(feature = "sim")]
pub(crate) use files::check_path;

/// A boxed server stream.
pub type Reply<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Serves [`ProcessService`] as the user this process runs as.
#[derive(Clone, Debug)]
pub struct LocalProcesses {
    home: Home,
    root: bool,
}

impl LocalProcesses {
    /// `root` says whether requests with `as_root` are this server's to serve.
    #[must_use]
    pub fn new(home: Home, root: bool) -> Self {
        Self { home, root }
    }

    fn check_root(&self, as_root: bool) -> Result<(), Status> {
        if as_root && !self.root {
            return Err(Status::failed_precondition("as_root: this agent has no privileged part"));
        }
        Ok(())
    }

    /// Writes the file that `header` describes from `data`.
    ///
    /// # Errors
    /// As [`ProcessService::write_file`].
    pub async fn write(
        &self,
        header: pb::WriteFileHeader,
        data: Streaming<pb::WriteFileRequest>,
    ) -> Result<pb::WriteFileResponse, Status> {
        self.check_root(header.as_root)?;
        files::write(&self.home, &header, data).await
    }
}

#[tonic::async_trait]
impl ProcessService for LocalProcesses {
    type ExecStream = Reply<pb::ExecResponse>;
    type ReadFileStream = Reply<pb::ReadFileResponse>;

    async fn exec(&self, request: Request<pb::ExecRequest>) -> Result<Response<Self::ExecStream>, Status> {
        let request = request.into_inner();
        self.check_root(request.as_root)?;
        Ok(Response::new(exec::run(&self.home, request)?))
    }

    async fn read_file(
        &self,
        request: Request<pb::ReadFileRequest>,
    ) -> Result<Response<Self::ReadFileStream>, Status> {
        let request = request.into_inner();
        self.check_root(request.as_root)?;
        Ok(Response::new(files::read(&self.home, &request).await?))
    }

    async fn write_file(
        &self,
        request: Request<Streaming<pb::WriteFileRequest>>,
    ) -> Result<Response<pb::WriteFileResponse>, Status> {
        let mut data = request.into_inner();
        let header = write_header(&mut data).await?;
        self.write(header, data).await.map(Response::new)
    }
}

/// Takes the header, which comes first, off a `WriteFile` stream.
///
/// # Errors
/// `INVALID_ARGUMENT` when something else comes first.
pub async fn write_header(data: &mut Streaming<pb::WriteFileRequest>) -> Result<pb::WriteFileHeader, Status> {
    match data.message().await?.and_then(|m| m.part) {
        Some(pb::write_file_request::Part::Header(header)) => Ok(header),
        _ => Err(Status::invalid_argument("the first message must be the header")),
    }
}

/// A duration of the wire within `0..=max`; absent means zero.
///
/// # Errors
/// `INVALID_ARGUMENT` that names `field` when it is negative, malformed or too long.
pub fn duration(field: &str, value: Option<&PbDuration>, max: Duration) -> Result<Duration, Status> {
    let Some(value) = value else { return Ok(Duration::ZERO) };
    match Duration::try_from(*value) {
        Ok(d) if d <= max => Ok(d),
        _ => Err(Status::invalid_argument(format!("{field}: must be between 0 s and {} s", max.as_secs()))),
    }
}
