//! `hvkube.v1.PoolService`.

use hvkube_proto::v1;
use tonic::{Request, Response, Status};

use super::convert::{pool, watch};
use super::page::Paging;
use super::{auth, fields};
use crate::orchestrator::Orchestrator;

pub(crate) struct PoolService(pub(crate) Orchestrator);

#[tonic::async_trait]
impl v1::pool_service_server::PoolService for PoolService {
    type WatchPoolsStream = watch::ResponseStream<v1::WatchPoolsResponse>;

    async fn watch_pools(
        &self,
        request: Request<v1::WatchPoolsRequest>,
    ) -> Result<Response<Self::WatchPoolsStream>, Status> {
        let (only, from) = watch::pools(request.get_ref())?;
        Ok(watch::answer(self.0.watch_pools(only, from)?, watch::pool_delta))
    }

    async fn create_pool(
        &self,
        request: Request<v1::CreatePoolRequest>,
    ) -> Result<Response<v1::Pool>, Status> {
        let wanted = pool::create(&auth::of(&request)?, request.get_ref())?;
        Ok(Response::new(pool::to_proto(&self.0.create_pool(wanted).await?)))
    }

    async fn get_pool(&self, request: Request<v1::GetPoolRequest>) -> Result<Response<v1::Pool>, Status> {
        let id = fields::name("name", "pools", &request.get_ref().name)?;
        Ok(Response::new(pool::to_proto(&self.0.pool(&id).await?)))
    }

    async fn list_pools(
        &self,
        request: Request<v1::ListPoolsRequest>,
    ) -> Result<Response<v1::ListPoolsResponse>, Status> {
        let request = request.into_inner();
        let paging = Paging::new("ListPools", &[], request.page_size, &request.page_token)?;
        let rows = self.0.pools(&paging.page()).await?;
        let (rows, next_page_token) = paging.finish(rows, |row| row.pool.id.as_str());
        let pools = rows.iter().map(pool::to_proto).collect();
        Ok(Response::new(v1::ListPoolsResponse { pools, next_page_token }))
    }

    async fn update_pool(
        &self,
        request: Request<v1::UpdatePoolRequest>,
    ) -> Result<Response<v1::Pool>, Status> {
        let (id, etag, update) = pool::update(request.get_ref())?;
        Ok(Response::new(pool::to_proto(&self.0.update_pool(&id, etag, update).await?)))
    }

    async fn delete_pool(&self, request: Request<v1::DeletePoolRequest>) -> Result<Response<()>, Status> {
        let caller = auth::of(&request)?;
        let request = request.into_inner();
        let id = fields::name("name", "pools", &request.name)?;
        self.0.delete_pool(&caller, &id, request.force, fields::etag(&request.etag)?).await?;
        Ok(Response::new(()))
    }

    async fn pause_pool(&self, request: Request<v1::PausePoolRequest>) -> Result<Response<v1::Pool>, Status> {
        let request = request.into_inner();
        let (id, etag) = (fields::name("name", "pools", &request.name)?, fields::etag(&request.etag)?);
        Ok(Response::new(pool::to_proto(&self.0.pause_pool(&id, etag, true).await?)))
    }

    async fn resume_pool(
        &self,
        request: Request<v1::ResumePoolRequest>,
    ) -> Result<Response<v1::Pool>, Status> {
        let request = request.into_inner();
        let (id, etag) = (fields::name("name", "pools", &request.name)?, fields::etag(&request.etag)?);
        Ok(Response::new(pool::to_proto(&self.0.pause_pool(&id, etag, false).await?)))
    }
}
