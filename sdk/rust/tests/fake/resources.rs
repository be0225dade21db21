//! Templates, pools, VMs, leases, the host and operations of the fake.

use std::time::{Duration, SystemTime};

use futures_util::stream::{self, BoxStream, StreamExt as _};
use hvkube_proto::google::longrunning::operations_server::Operations;
use hvkube_proto::google::longrunning::{self as lro, Operation, operation};
use hvkube_sdk::v1::host_service_server::HostService;
use hvkube_sdk::v1::lease_service_server::LeaseService;
use hvkube_sdk::v1::pool_service_server::PoolService;
use hvkube_sdk::v1::template_service_server::TemplateService;
use hvkube_sdk::v1::vm_service_server::VmService;
use hvkube_sdk::v1::{self, VmAvailability, VmState};
use prost::Message as _;
use prost_types::{Any, Timestamp};
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt as _;

use super::desktop::FOREVER;
use super::{Fake, details, refuse, unimplemented_methods};

pub(super) fn ago(seconds: u64) -> Option<Timestamp> {
    Some(Timestamp::from(SystemTime::now() - Duration::from_secs(seconds)))
}

fn vm(number: u32, state: VmState, availability: VmAvailability) -> v1::Vm {
    v1::Vm {
        name: format!("vms/browser-{number}"),
        uid: format!("uid-{number}"),
        template: "templates/linux".into(),
        pool: "pools/browser".into(),
        state: state.into(),
        availability: availability.into(),
        memory_mb: 512,
        cpu_count: 2,
        create_time: ago(3900),
        ..v1::Vm::default()
    }
}

pub(super) fn vms() -> Vec<v1::Vm> {
    let guest = v1::GuestSession {
        connected: true,
        epoch: 3,
        os: "Debian 12".into(),
        load1: 0.25,
        ..Default::default()
    };
    vec![
        v1::Vm {
            lease: "leases/l-1".into(),
            ip_address: "10.0.2.15".into(),
            resident_bytes: 60 << 20,
            guest: Some(guest),
            ..vm(1, VmState::Running, VmAvailability::Leased)
        },
        vm(2, VmState::Saved, VmAvailability::Idle),
        v1::Vm {
            state_reason: "qemu exited with status 1\nlast words: \x1b[31mno memory".into(),
            ..vm(3, VmState::Error, VmAvailability::Quarantined)
        },
    ]
}

#[tonic::async_trait]
impl VmService for Fake {
    type WatchVmsStream = super::watches::Items<v1::WatchVmsResponse>;

    async fn watch_vms(
        &self,
        request: Request<v1::WatchVmsRequest>,
    ) -> Result<Response<Self::WatchVmsStream>, Status> {
        self.vms_watched(&request.into_inner(), vms())
    }

    async fn get_vm(&self, request: Request<v1::GetVmRequest>) -> Result<Response<v1::Vm>, Status> {
        let name = request.into_inner().name;
        let found = vms().into_iter().find(|vm| vm.name == name);
        found.map(Response::new).ok_or_else(|| {
            let mut error = details("VM_NOT_FOUND", &[("vm", &name)]);
            error.set_resource_info("hvkube.dev/Vm", name.clone(), "", "");
            Status::with_error_details(Code::NotFound, format!("there is no {name}"), error)
        })
    }

    /// One VM a page, so that clients must turn pages.
    async fn list_vms(
        &self,
        request: Request<v1::ListVmsRequest>,
    ) -> Result<Response<v1::ListVmsResponse>, Status> {
        let request = request.into_inner();
        let wanted = |vm: &v1::Vm| {
            (request.pool.is_empty() || request.pool == vm.pool)
                && (request.states.is_empty() || request.states.contains(&vm.state))
        };
        let all: Vec<_> = vms().into_iter().filter(wanted).collect();
        let at: usize =
            if request.page_token.is_empty() { 0 } else { request.page_token.parse().expect("our token") };
        let next_page_token = if at + 1 < all.len() { (at + 1).to_string() } else { String::new() };
        Ok(Response::new(v1::ListVmsResponse {
            vms: all.into_iter().skip(at).take(1).collect(),
            next_page_token,
        }))
    }

    async fn resume_vm(&self, request: Request<v1::ResumeVmRequest>) -> Result<Response<v1::Vm>, Status> {
        match request.into_inner().name.as_str() {
            "vms/browser-3" => Err(refuse(
                Code::FailedPrecondition,
                "ILLEGAL_VM_STATE",
                "vms/browser-3 cannot go from error to running",
                &[("state", "VM_STATE_ERROR"), ("wanted", "VM_STATE_RUNNING")],
            )),
            name => Ok(Response::new(v1::Vm {
                name: name.into(),
                ..vm(2, VmState::Running, VmAvailability::Idle)
            })),
        }
    }

    async fn list_checkpoints(
        &self,
        request: Request<v1::ListCheckpointsRequest>,
    ) -> Result<Response<v1::ListCheckpointsResponse>, Status> {
        let name = format!("{}/checkpoints/clean", request.into_inner().parent);
        let clean = v1::Checkpoint { name, has_memory: true, create_time: ago(3900), ..Default::default() };
        Ok(Response::new(v1::ListCheckpointsResponse { checkpoints: vec![clean], ..Default::default() }))
    }

    type ConnectConsoleStream = tokio_stream::Empty<Result<v1::ConnectConsoleResponse, Status>>;

    async fn connect_console(
        &self,
        _: Request<tonic::Streaming<v1::ConnectConsoleRequest>>,
    ) -> Result<Response<Self::ConnectConsoleStream>, Status> {
        Err(Status::unimplemented("the fake has no consoles"))
    }

    unimplemented_methods! {
        open_console(v1::OpenConsoleRequest) -> v1::OpenConsoleResponse;
        start_vm(v1::StartVmRequest) -> v1::Vm;
        save_vm(v1::SaveVmRequest) -> v1::Vm;
        pause_vm(v1::PauseVmRequest) -> v1::Vm;
        stop_vm(v1::StopVmRequest) -> v1::Vm;
        reset_vm(v1::ResetVmRequest) -> v1::Vm;
        delete_vm(v1::DeleteVmRequest) -> ();
        fork_vm(v1::ForkVmRequest) -> v1::Vm;
        create_checkpoint(v1::CreateCheckpointRequest) -> v1::Checkpoint;
        restore_checkpoint(v1::RestoreCheckpointRequest) -> v1::Vm;
        delete_checkpoint(v1::DeleteCheckpointRequest) -> ();
    }
}

#[tonic::async_trait]
impl LeaseService for Fake {
    async fn acquire_vm(
        &self,
        request: Request<v1::AcquireVmRequest>,
    ) -> Result<Response<v1::AcquireVmResponse>, Status> {
        let request = request.into_inner();
        let free = self.set(|seen| {
            seen.acquires += 1;
            seen.acquire = request.clone();
            seen.busy_is_free
        });
        self.going()?;
        match request.pool.as_str() {
            "pools/browser" => {}
            "pools/busy" if free => {}
            "pools/busy" => {
                let _abandoned = Abandoned(self.clone());
                tokio::time::sleep(FOREVER).await;
            }
            pool => {
                let mut error = details("POOL_EXHAUSTED", &[("pool", pool)]);
                error.set_retry_info(Some(Duration::from_secs(3)));
                let message = format!("no VM of {pool} became free in time");
                return Err(Status::with_error_details(Code::ResourceExhausted, message, error));
            }
        }
        let (lease, broken) = self.set(|seen| {
            let number = seen.leases.len() + 1;
            let lease = seen.leases.entry(request.request_id).or_insert_with(|| v1::Lease {
                name: format!("leases/l-{number}"),
                vm: "vms/browser-1".into(),
                pool: request.pool,
                state: v1::LeaseState::Active.into(),
                ttl: Some(request.ttl.unwrap_or(prost_types::Duration { seconds: 600, nanos: 0 })),
                expire_time: Some(Timestamp::from(SystemTime::now() + Duration::from_secs(630))),
                create_time: ago(3900),
                purpose: request.purpose,
                ..v1::Lease::default()
            });
            let lease = lease.clone();
            let broken = seen.break_acquires > 0;
            seen.break_acquires = seen.break_acquires.saturating_sub(1);
            (lease, broken)
        });
        if broken {
            return Err(Status::unavailable("connection reset"));
        }
        Ok(Response::new(v1::AcquireVmResponse { lease: Some(lease), vm: vms().into_iter().next() }))
    }

    async fn renew_lease(
        &self,
        request: Request<v1::RenewLeaseRequest>,
    ) -> Result<Response<v1::Lease>, Status> {
        let name = request.into_inner().name;
        let ended = self.set(|seen| {
            seen.renewals += 1;
            seen.lease_ended
        });
        if ended {
            let message = format!("{name} has ended");
            return Err(refuse(Code::FailedPrecondition, "LEASE_ENDED", &message, &[("lease", &name)]));
        }
        let lease = self.seen().leases.into_values().find(|lease| lease.name == name);
        lease.map(Response::new).ok_or_else(|| Status::not_found("lease"))
    }

    async fn release_vm(
        &self,
        request: Request<v1::ReleaseVmRequest>,
    ) -> Result<Response<v1::Lease>, Status> {
        let request = request.into_inner();
        self.set(|seen| seen.released.push((request.name.clone(), request.policy())));
        Ok(Response::new(v1::Lease {
            name: request.name,
            state: v1::LeaseState::Released.into(),
            ..v1::Lease::default()
        }))
    }

    async fn list_leases(
        &self,
        _: Request<v1::ListLeasesRequest>,
    ) -> Result<Response<v1::ListLeasesResponse>, Status> {
        Ok(Response::new(v1::ListLeasesResponse::default()))
    }

    type WatchAcquireStream = BoxStream<'static, Result<v1::WatchAcquireResponse, Status>>;

    async fn watch_acquire(
        &self,
        request: Request<v1::WatchAcquireRequest>,
    ) -> Result<Response<Self::WatchAcquireStream>, Status> {
        use v1::watch_acquire_response::Update;
        let wanted = request.into_inner().acquire.unwrap_or_default();
        let queued = v1::AcquireQueued {
            pool: wanted.pool.clone(),
            position: 2,
            waiting: 3,
            eta: Some(prost_types::Duration { seconds: 40, nanos: 0 }),
            reason: "all vms are leased".into(),
        };
        let preparing = v1::AcquirePreparing { vm: "vms/browser-1".into() };
        let first = [Update::Queued(queued), Update::Preparing(preparing)];
        let fake = self.clone();
        let last = async move {
            let answer = fake.acquire_vm(Request::new(wanted)).await?.into_inner();
            Ok(v1::WatchAcquireResponse { update: Some(Update::Granted(answer)) })
        };
        let first = first.map(|update| Ok(v1::WatchAcquireResponse { update: Some(update) }));
        Ok(Response::new(stream::iter(first).chain(stream::once(last)).boxed()))
    }

    unimplemented_methods! {
        get_lease(v1::GetLeaseRequest) -> v1::Lease;
    }
}

/// Counts a caller that went away.
struct Abandoned(Fake);

impl Drop for Abandoned {
    fn drop(&mut self) {
        self.0.set(|seen| seen.abandoned += 1);
    }
}

fn pool() -> v1::Pool {
    v1::Pool {
        name: "pools/browser".into(),
        template: "templates/linux".into(),
        desired_count: 5,
        warm_count: Some(2),
        default_lease_ttl: Some(prost_types::Duration { seconds: 600, nanos: 0 }),
        status: Some(v1::PoolStatus { total: 3, warm: 1, leased: 1, quarantined: 1, ..Default::default() }),
        create_time: ago(3900),
        ..v1::Pool::default()
    }
}

#[tonic::async_trait]
impl PoolService for Fake {
    type WatchPoolsStream = super::watches::Items<v1::WatchPoolsResponse>;

    async fn watch_pools(
        &self,
        _: Request<v1::WatchPoolsRequest>,
    ) -> Result<Response<Self::WatchPoolsStream>, Status> {
        Ok(Response::new(super::watches::pools(pool())))
    }

    async fn create_pool(
        &self,
        request: Request<v1::CreatePoolRequest>,
    ) -> Result<Response<v1::Pool>, Status> {
        let request = request.into_inner();
        let wanted = request.pool.unwrap_or_default();
        if request.pool_id == "browser" {
            let message = "there is already a pools/browser";
            return Err(refuse(Code::AlreadyExists, "POOL_EXISTS", message, &[("pool", "pools/browser")]));
        }
        let name = format!("pools/{}", request.pool_id);
        Ok(Response::new(v1::Pool { name, create_time: ago(0), status: None, ..wanted }))
    }

    async fn list_pools(
        &self,
        _: Request<v1::ListPoolsRequest>,
    ) -> Result<Response<v1::ListPoolsResponse>, Status> {
        Ok(Response::new(v1::ListPoolsResponse { pools: vec![pool()], ..Default::default() }))
    }

    async fn update_pool(
        &self,
        request: Request<v1::UpdatePoolRequest>,
    ) -> Result<Response<v1::Pool>, Status> {
        self.set(|seen| seen.update = Some(request.into_inner()));
        Ok(Response::new(pool()))
    }

    unimplemented_methods! {
        get_pool(v1::GetPoolRequest) -> v1::Pool;
        pause_pool(v1::PausePoolRequest) -> v1::Pool;
        resume_pool(v1::ResumePoolRequest) -> v1::Pool;
        delete_pool(v1::DeletePoolRequest) -> ();
    }
}

#[tonic::async_trait]
impl TemplateService for Fake {
    async fn create_template(
        &self,
        request: Request<v1::CreateTemplateRequest>,
    ) -> Result<Response<Operation>, Status> {
        self.set(|seen| {
            seen.template = Some(request.into_inner());
            seen.operation_step = 0;
        });
        Ok(Response::new(self.operation()))
    }

    unimplemented_methods! {
        get_template(v1::GetTemplateRequest) -> v1::Template;
        list_templates(v1::ListTemplatesRequest) -> v1::ListTemplatesResponse;
        delete_template(v1::DeleteTemplateRequest) -> ();
    }
}

impl Fake {
    /// The operation at the next of its steps; a template called `broken` ends badly.
    fn operation(&self) -> Operation {
        const PHASES: [(&str, u32); 3] = [("CHECKING_DISK", 10), ("BOOTING", 40), ("DONE", 100)];
        let (step, request) = self.set(|seen| {
            seen.operation_step += 1;
            (seen.operation_step.min(PHASES.len()) - 1, seen.template.clone().unwrap_or_default())
        });
        let name = format!("templates/{}", request.template_id);
        let (phase, progress_percent) = PHASES[step];
        let metadata = v1::CreateTemplateMetadata {
            template: name.clone(),
            phase: phase.into(),
            progress_percent,
            create_time: ago(5),
        };
        let done = phase == "DONE";
        let template = v1::Template {
            name,
            state: v1::TemplateState::Ready.into(),
            ..request.template.unwrap_or_default()
        };
        let result = done.then(|| match request.template_id.as_str() {
            "broken" => {
                let status =
                    refuse(Code::InvalidArgument, "DISK_NOT_AN_IMAGE", "/x.raw is no disk image", &[]);
                let status =
                    hvkube_proto::google::rpc::Status::decode(status.details()).expect("our own details");
                operation::Result::Error(status)
            }
            _ => operation::Result::Response(Any {
                type_url: "type.googleapis.com/hvkube.v1.Template".into(),
                value: template.encode_to_vec(),
            }),
        });
        let metadata = Some(Any {
            type_url: "type.googleapis.com/hvkube.v1.CreateTemplateMetadata".into(),
            value: metadata.encode_to_vec(),
        });
        Operation { name: "operations/op-1".into(), metadata, done, result }
    }
}

#[tonic::async_trait]
impl Operations for Fake {
    async fn wait_operation(
        &self,
        _: Request<lro::WaitOperationRequest>,
    ) -> Result<Response<Operation>, Status> {
        Ok(Response::new(self.operation()))
    }

    unimplemented_methods! {
        list_operations(lro::ListOperationsRequest) -> lro::ListOperationsResponse;
        get_operation(lro::GetOperationRequest) -> Operation;
        delete_operation(lro::DeleteOperationRequest) -> ();
        cancel_operation(lro::CancelOperationRequest) -> ();
    }
}

#[tonic::async_trait]
impl HostService for Fake {
    type WatchEventsStream = super::watches::Items<v1::WatchEventsResponse>;

    async fn watch_events(
        &self,
        request: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        Ok(Response::new(super::watches::events(&request.into_inner())))
    }

    async fn backup_store(
        &self,
        request: Request<v1::BackupStoreRequest>,
    ) -> Result<Response<Operation>, Status> {
        self.backed_up(request.into_inner())
    }

    async fn get_host(&self, _: Request<v1::GetHostRequest>) -> Result<Response<v1::Host>, Status> {
        let capabilities = v1::Capabilities {
            save: true,
            pause: true,
            memory_checkpoints: true,
            fork: true,
            hypervisor_display: true,
            networks: vec![v1::NetworkMode::None.into(), v1::NetworkMode::User.into()],
            clone_method: v1::CloneMethod::Fork.into(),
            ..Default::default()
        };
        Ok(Response::new(v1::Host {
            name: "hosts/laptop".into(),
            daemon_version: "0.1.0".into(),
            hypervisor: "qemu".into(),
            hypervisor_version: "10.0.2".into(),
            accelerator: "tcg".into(),
            capabilities: Some(capabilities),
            cpu_count: 2,
            memory_total_bytes: 8 << 30,
            memory_available_bytes: 5 << 30,
            vm_count: 3,
            running_vm_count: 1,
            ..v1::Host::default()
        }))
    }
}
