//! `hvkube.v1.HostService`.

use hvkube_proto::google::longrunning::Operation;
use hvkube_proto::v1;
use tonic::{Request, Response, Status};

use super::convert::{host, operation, watch};
use super::{auth, fields};
use crate::model::error::{Error, Result as DomainResult};
use crate::model::ids::VmId;
use crate::orchestrator::Orchestrator;

pub(crate) struct HostService(pub(crate) Orchestrator);

/// The host that answers.
const SELF: &str = "hosts/-";

impl HostService {
    /// Refuses the name of another host.
    fn own(&self, field: &str, name: &str) -> DomainResult<()> {
        if name == SELF {
            return Ok(());
        }
        // Host ids have the shape of all ids.
        let id: VmId = fields::name(field, "hosts", name)?;
        if id.as_str() == self.0.host_id() { Ok(()) } else { Err(Error::not_found("host", id)) }
    }
}

#[tonic::async_trait]
impl v1::host_service_server::HostService for HostService {
    type WatchEventsStream = watch::ResponseStream<v1::WatchEventsResponse>;

    async fn get_host(&self, request: Request<v1::GetHostRequest>) -> Result<Response<v1::Host>, Status> {
        self.own("name", &request.get_ref().name)?;
        Ok(Response::new(host::to_proto(&self.0.host().await?)))
    }

    async fn watch_events(
        &self,
        request: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let request = request.into_inner();
        let (filter, from) = watch::events(&request)?;
        if !request.parent.is_empty() {
            self.own("parent", &request.parent)?;
        }
        Ok(watch::answer(self.0.watch_events(filter, from)?, watch::event_delta))
    }

    async fn backup_store(
        &self,
        request: Request<v1::BackupStoreRequest>,
    ) -> Result<Response<Operation>, Status> {
        let caller = auth::of(&request)?;
        let backup = host::backup(&caller, request.get_ref())?;
        // Permission before existence.
        self.0.may_backup(&caller)?;
        self.own("name", &request.get_ref().name)?;
        let operation = self.0.backup_store(&caller, backup).await?;
        Ok(Response::new(operation::to_proto(&operation, None)))
    }
}
