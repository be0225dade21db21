//! `ProcessService` as the supervisor serves it: as root here when the request says so, else by the worker.

use futures_util::StreamExt as _;
use futures_util::future::Either;
use hvkube_proto::guest::v1 as pb;
use hvkube_proto::guest::v1::process_service_client::ProcessServiceClient;
use hvkube_proto::guest::v1::process_service_server::ProcessService;
use hvkube_proto::guest::v1::write_file_request::Part;
use tokio::sync::oneshot;
use tonic::{Request, Response, Status, Streaming};

use super::Desktop;
use crate::process::{LocalProcesses, Reply, write_header};

/// Decides by `as_root`, which is in a call's first message.
#[derive(Clone)]
pub struct RoutedProcesses {
    root: LocalProcesses,
    desktop: Desktop,
}

impl RoutedProcesses {
    /// `root` serves what is asked for as root, `desktop` all else.
    #[must_use]
    pub fn new(root: LocalProcesses, desktop: Desktop) -> Self {
        Self { root, desktop }
    }

    fn worker(&self) -> ProcessServiceClient<Desktop> {
        ProcessServiceClient::new(self.desktop.clone())
    }
}

#[tonic::async_trait]
impl ProcessService for RoutedProcesses {
    type ExecStream = Reply<pb::ExecResponse>;
    type ReadFileStream = Reply<pb::ReadFileResponse>;

    async fn exec(&self, request: Request<pb::ExecRequest>) -> Result<Response<Self::ExecStream>, Status> {
        if request.get_ref().as_root {
            return self.root.exec(request).await;
        }
        let answer = self.worker().exec(request.into_inner()).await?;
        Ok(Response::new(Box::pin(answer.into_inner())))
    }

    async fn read_file(
        &self,
        request: Request<pb::ReadFileRequest>,
    ) -> Result<Response<Self::ReadFileStream>, Status> {
        if request.get_ref().as_root {
            return self.root.read_file(request).await;
        }
        let answer = self.worker().read_file(request.into_inner()).await?;
        Ok(Response::new(Box::pin(answer.into_inner())))
    }

    async fn write_file(
        &self,
        request: Request<Streaming<pb::WriteFileRequest>>,
    ) -> Result<Response<pb::WriteFileResponse>, Status> {
        let mut data = request.into_inner();
        let header = write_header(&mut data).await?;
        if header.as_root {
            return self.root.write(header, data).await.map(Response::new);
        }
        // A stream that breaks must not look like one that ends, or half a file would take the place of the whole one:
        // the worker's half then stays open until this call, and with it the stream, is dropped.
        let (broken, broke) = oneshot::channel();
        let mut broken = Some(broken);
        let head = futures_util::stream::iter([pb::WriteFileRequest { part: Some(Part::Header(header)) }]);
        let rest = data.filter_map(move |message| match message {
            Ok(message) => Either::Left(std::future::ready(Some(message))),
            Err(status) => {
                if let Some(broken) = broken.take() {
                    let _nobody_waits = broken.send(status);
                }
                Either::Right(std::future::pending())
            }
        });
        let mut worker = self.worker();
        tokio::select! {
            answer = worker.write_file(head.chain(rest)) => answer,
            Ok(status) = broke => Err(status),
        }
    }
}
