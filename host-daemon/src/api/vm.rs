//! `hvkube.v1.VmService`.

use hvkube_proto::v1;
use tonic::{Request, Response, Status, Streaming};

use super::console;
use super::convert::{vm, watch};
use super::guard::ResponseStream;
use super::page::Paging;
use super::{auth, fields};
use crate::model::error::Result as DomainResult;
use crate::model::ids::VmId;
use crate::orchestrator::Orchestrator;
use crate::orchestrator::view::VmView;

pub(crate) struct VmService(pub(crate) Orchestrator);

type Answer = Result<Response<v1::Vm>, Status>;

fn answer(view: DomainResult<VmView>) -> Answer {
    Ok(Response::new(vm::to_proto(&view?)))
}

#[tonic::async_trait]
impl v1::vm_service_server::VmService for VmService {
    type WatchVmsStream = watch::ResponseStream<v1::WatchVmsResponse>;

    async fn watch_vms(
        &self,
        request: Request<v1::WatchVmsRequest>,
    ) -> Result<Response<Self::WatchVmsStream>, Status> {
        let (wanted, from) = watch::vms(request.get_ref())?;
        Ok(watch::answer(self.0.watch_vms(wanted, from)?, watch::vm_delta))
    }

    async fn get_vm(&self, request: Request<v1::GetVmRequest>) -> Answer {
        let id = fields::name("name", "vms", &request.get_ref().name)?;
        answer(self.0.vm(&id).await)
    }

    async fn list_vms(
        &self,
        request: Request<v1::ListVmsRequest>,
    ) -> Result<Response<v1::ListVmsResponse>, Status> {
        let request = request.into_inner();
        let filter = vm::filter(&request)?;
        let states: String = filter.states.iter().map(|state| format!("{state},")).collect();
        let bound = [request.pool.as_str(), &states];
        let paging = Paging::new("ListVms", &bound, request.page_size, &request.page_token)?;
        let rows = self.0.vms(&filter, &paging.page()).await?;
        let (rows, next_page_token) = paging.finish(rows, |row| row.vm.id.as_str());
        let vms = rows.iter().map(vm::to_proto).collect();
        Ok(Response::new(v1::ListVmsResponse { vms, next_page_token }))
    }

    async fn start_vm(&self, request: Request<v1::StartVmRequest>) -> Answer {
        let (caller, request) = (auth::of(&request)?, request.into_inner());
        let id = vm::moved(&request.name, &request.request_id)?;
        answer(self.0.start_vm(&caller, &id).await)
    }

    async fn resume_vm(&self, request: Request<v1::ResumeVmRequest>) -> Answer {
        let (caller, request) = (auth::of(&request)?, request.into_inner());
        let id = vm::moved(&request.name, &request.request_id)?;
        answer(self.0.resume_vm(&caller, &id).await)
    }

    async fn save_vm(&self, request: Request<v1::SaveVmRequest>) -> Answer {
        let (caller, request) = (auth::of(&request)?, request.into_inner());
        let id = vm::moved(&request.name, &request.request_id)?;
        answer(self.0.save_vm(&caller, &id).await)
    }

    async fn pause_vm(&self, request: Request<v1::PauseVmRequest>) -> Answer {
        let (caller, request) = (auth::of(&request)?, request.into_inner());
        let id = vm::moved(&request.name, &request.request_id)?;
        answer(self.0.pause_vm(&caller, &id).await)
    }

    async fn stop_vm(&self, request: Request<v1::StopVmRequest>) -> Answer {
        let caller = auth::of(&request)?;
        let (id, how) = vm::stop(request.get_ref())?;
        answer(self.0.stop_vm(&caller, &id, how).await)
    }

    async fn reset_vm(&self, request: Request<v1::ResetVmRequest>) -> Answer {
        let (caller, request) = (auth::of(&request)?, request.into_inner());
        let id = vm::moved(&request.name, &request.request_id)?;
        answer(self.0.reset_vm(&caller, &id).await)
    }

    async fn delete_vm(&self, request: Request<v1::DeleteVmRequest>) -> Result<Response<()>, Status> {
        let (caller, request) = (auth::of(&request)?, request.into_inner());
        let id = fields::name("name", "vms", &request.name)?;
        self.0.delete_vm(&caller, &id, request.force, fields::etag(&request.etag)?).await?;
        Ok(Response::new(()))
    }

    async fn fork_vm(&self, request: Request<v1::ForkVmRequest>) -> Answer {
        let caller = auth::of(&request)?;
        let fork = vm::fork(&caller, request.get_ref())?;
        answer(self.0.fork_vm(&caller, fork).await)
    }

    async fn open_console(
        &self,
        request: Request<v1::OpenConsoleRequest>,
    ) -> Result<Response<v1::OpenConsoleResponse>, Status> {
        Ok(Response::new(console::open(&self.0, request).await?))
    }

    type ConnectConsoleStream = ResponseStream<v1::ConnectConsoleResponse>;

    async fn connect_console(
        &self,
        request: Request<Streaming<v1::ConnectConsoleRequest>>,
    ) -> Result<Response<Self::ConnectConsoleStream>, Status> {
        console::connect(&self.0, request).await
    }

    async fn create_checkpoint(
        &self,
        request: Request<v1::CreateCheckpointRequest>,
    ) -> Result<Response<v1::Checkpoint>, Status> {
        let caller = auth::of(&request)?;
        let take = vm::take_checkpoint(&caller, request.get_ref())?;
        let id = take.vm.clone();
        let made = self.0.create_checkpoint(&caller, take).await?;
        Ok(Response::new(vm::checkpoint(&id, &made)))
    }

    async fn list_checkpoints(
        &self,
        request: Request<v1::ListCheckpointsRequest>,
    ) -> Result<Response<v1::ListCheckpointsResponse>, Status> {
        let (caller, request) = (auth::of(&request)?, request.into_inner());
        let id: VmId = fields::name("parent", "vms", &request.parent)?;
        let bound = [request.parent.as_str()];
        let paging = Paging::new("ListCheckpoints", &bound, request.page_size, &request.page_token)?;
        let rows = self.0.checkpoints(&caller, &id).await?;
        let (rows, next_page_token) = paging.of_all(rows, |row| &row.id);
        let checkpoints = rows.iter().map(|row| vm::checkpoint(&id, row)).collect();
        Ok(Response::new(v1::ListCheckpointsResponse { checkpoints, next_page_token }))
    }

    async fn restore_checkpoint(&self, request: Request<v1::RestoreCheckpointRequest>) -> Answer {
        let (caller, request) = (auth::of(&request)?, request.into_inner());
        let (id, checkpoint) = fields::checkpoint_name("name", &request.name)?;
        fields::uuid("request_id", &request.request_id)?;
        answer(self.0.restore_checkpoint(&caller, &id, &checkpoint).await)
    }

    async fn delete_checkpoint(
        &self,
        request: Request<v1::DeleteCheckpointRequest>,
    ) -> Result<Response<()>, Status> {
        let caller = auth::of(&request)?;
        let (id, checkpoint) = fields::checkpoint_name("name", &request.get_ref().name)?;
        self.0.delete_checkpoint(&caller, &id, &checkpoint).await?;
        Ok(Response::new(()))
    }
}
