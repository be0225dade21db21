//! `hvkube.v1.LeaseService`.

use hvkube_proto::v1;
use tonic::{Request, Response, Status};

use super::convert::lease;
use super::deadline::Deadline;
use super::guard::ResponseStream;
use super::page::Paging;
use super::{acquire, auth, fields};
use crate::orchestrator::Orchestrator;

pub(crate) struct LeaseService(pub(crate) Orchestrator);

#[tonic::async_trait]
impl v1::lease_service_server::LeaseService for LeaseService {
    type WatchAcquireStream = ResponseStream<v1::WatchAcquireResponse>;

    async fn acquire_vm(
        &self,
        request: Request<v1::AcquireVmRequest>,
    ) -> Result<Response<v1::AcquireVmResponse>, Status> {
        let caller = auth::of(&request)?;
        let deadline = request.extensions().get::<Deadline>().copied();
        let wanted = lease::acquire(&caller, deadline, request.get_ref())?;
        let granted = self.0.acquire(&caller, wanted).await?;
        Ok(Response::new(lease::granted(&granted)))
    }

    async fn watch_acquire(
        &self,
        request: Request<v1::WatchAcquireRequest>,
    ) -> Result<Response<Self::WatchAcquireStream>, Status> {
        let caller = auth::of(&request)?;
        let deadline = request.extensions().get::<Deadline>().copied();
        let wanted = lease::watch_acquire(&caller, deadline, request.get_ref())?;
        Ok(Response::new(acquire::watch(self.0.clone(), caller, wanted)))
    }

    async fn renew_lease(
        &self,
        request: Request<v1::RenewLeaseRequest>,
    ) -> Result<Response<v1::Lease>, Status> {
        let caller = auth::of(&request)?;
        let (id, ttl) = lease::renew(request.get_ref())?;
        Ok(Response::new(lease::to_proto(&self.0.renew(&caller, &id, ttl).await?)))
    }

    async fn release_vm(
        &self,
        request: Request<v1::ReleaseVmRequest>,
    ) -> Result<Response<v1::Lease>, Status> {
        let caller = auth::of(&request)?;
        let (id, policy) = lease::release(request.get_ref())?;
        Ok(Response::new(lease::to_proto(&self.0.release(&caller, &id, policy).await?)))
    }

    async fn get_lease(&self, request: Request<v1::GetLeaseRequest>) -> Result<Response<v1::Lease>, Status> {
        let id = fields::name("name", "leases", &request.get_ref().name)?;
        Ok(Response::new(lease::to_proto(&self.0.lease(&id).await?)))
    }

    async fn list_leases(
        &self,
        request: Request<v1::ListLeasesRequest>,
    ) -> Result<Response<v1::ListLeasesResponse>, Status> {
        let request = request.into_inner();
        let filter = lease::filter(&request)?;
        let bound = [request.pool.as_str(), if request.show_ended { "ended" } else { "" }];
        let paging = Paging::new("ListLeases", &bound, request.page_size, &request.page_token)?;
        let rows = self.0.leases(&filter, &paging.page()).await?;
        let (rows, next_page_token) = paging.finish(rows, |row| row.id.as_str());
        let leases = rows.iter().map(lease::to_proto).collect();
        Ok(Response::new(v1::ListLeasesResponse { leases, next_page_token }))
    }
}
