//! `hvkube.v1.HostService`.

use hvkube_proto::v1;
use tonic::{Request, Response, Status};

use super::convert::host;
use super::fields;
use crate::model::error::Error;
use crate::model::ids::VmId;
use crate::orchestrator::Orchestrator;

pub(crate) struct HostService(pub(crate) Orchestrator);

/// The host that answers.
const SELF: &str = "hosts/-";

#[tonic::async_trait]
impl v1::host_service_server::HostService for HostService {
    async fn get_host(&self, request: Request<v1::GetHostRequest>) -> Result<Response<v1::Host>, Status> {
        let name = &request.get_ref().name;
        if name != SELF {
            // Host ids have the shape of all ids.
            fields::name::<VmId>("name", "hosts", name)?;
        }
        let host = self.0.host().await?;
        match name.strip_prefix("hosts/") {
            Some(id) if name != SELF && id != host.id => Err(Error::not_found("host", id).into()),
            _ => Ok(Response::new(host::to_proto(&host))),
        }
    }
}
