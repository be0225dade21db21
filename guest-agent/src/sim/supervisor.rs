//! `SupervisorService` of a machine that is made up. Its clock is the host's: a simulated guest is never late.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hvkube_proto::guest::v1 as pb;
use hvkube_proto::guest::v1::supervisor_service_server::SupervisorService;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::IntervalStream;
use tonic::{Request, Response, Status};

use super::computer::Computer;
use crate::process::{Reply, duration};
use crate::supervisor::{DEFAULT_BEAT, FIRST_BEAT, LONGEST_BEAT, SHORTEST_BEAT, check};

const OS: &str = "Simulated desktop";
const STAMP: &str = r#"{"simulated":true,"installed_software":["simulated desktop"]}"#;

#[derive(Clone)]
pub(super) struct Supervisor(Arc<Computer>);

impl Supervisor {
    pub(super) fn new(computer: Arc<Computer>) -> Self {
        Self(computer)
    }

    fn addresses(computer: &Computer) -> Vec<String> {
        computer.hardware.address.iter().map(ToString::to_string).collect()
    }

    /// Differs from boot to boot of a machine, and between machines.
    fn boot_id(&self) -> String {
        let machine_id = self.0.lock().state.memory.machine_id.clone();
        let up = SystemTime::now() - self.0.hardware.booted.elapsed();
        let since = up.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        format!("{machine_id}-{:x}", since.as_millis())
    }
}

#[tonic::async_trait]
impl SupervisorService for Supervisor {
    type HeartbeatStream = Reply<pb::HeartbeatResponse>;

    async fn attach(
        &self,
        request: Request<pb::AttachRequest>,
    ) -> Result<Response<pb::AttachResponse>, Status> {
        let request = request.into_inner();
        check(&request)?;
        if let Some(identity) = request.identity {
            // Not told to the machine: every session brings it again.
            let mut inner = self.0.lock();
            let panel = inner.layout.panel;
            if !inner.frozen && inner.state.memory.hostname != identity.hostname {
                inner.state.memory.hostname = identity.hostname;
                inner.damaged(panel);
            }
            inner.state.memory.machine_id = identity.machine_id;
        }
        Ok(Response::new(pb::AttachResponse {
            agent_version: env!("CARGO_PKG_VERSION").into(),
            os: OS.into(),
            image_stamp_json: STAMP.into(),
            clock_skew_micros: 0,
            boot_id: self.boot_id(),
            warnings: Vec::new(),
            ip_addresses: Self::addresses(&self.0),
            desktop_ready: true,
        }))
    }

    async fn heartbeat(
        &self,
        request: Request<pb::HeartbeatRequest>,
    ) -> Result<Response<Self::HeartbeatStream>, Status> {
        let asked = duration("interval", request.into_inner().interval.as_ref(), LONGEST_BEAT)?;
        let every = if asked.is_zero() { DEFAULT_BEAT } else { asked };
        if every < SHORTEST_BEAT {
            return Err(Status::invalid_argument("interval: must be at least 100 ms"));
        }
        let mut ticks = tokio::time::interval_at(Instant::now() + every.min(FIRST_BEAT), every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let computer = Arc::clone(&self.0);
        let mut sequence = 0;
        let beats = IntervalStream::new(ticks).map(move |_| {
            sequence += 1;
            let total = computer.hardware.memory_bytes;
            Ok(pb::HeartbeatResponse {
                sequence,
                guest_time: Some(SystemTime::now().into()),
                load1: 0.0,
                memory_total_bytes: total,
                memory_available_bytes: total / 4 * 3,
                desktop_ready: true,
                ip_addresses: Self::addresses(&computer),
                uptime: up(computer.hardware.booted.elapsed()),
            })
        });
        Ok(Response::new(Box::pin(beats)))
    }

    async fn set_clock(
        &self,
        request: Request<pb::SetClockRequest>,
    ) -> Result<Response<pb::SetClockResponse>, Status> {
        let request = pb::AttachRequest { host_time: request.into_inner().host_time, ..Default::default() };
        if request.host_time.is_none() {
            return Err(Status::invalid_argument("host_time: is required"));
        }
        check(&request)?;
        Ok(Response::new(pb::SetClockResponse { clock_skew_micros: 0 }))
    }

    async fn flush(&self, _: Request<pb::FlushRequest>) -> Result<Response<pb::FlushResponse>, Status> {
        Ok(Response::new(pb::FlushResponse {}))
    }

    async fn shutdown(
        &self,
        request: Request<pb::ShutdownRequest>,
    ) -> Result<Response<pb::ShutdownResponse>, Status> {
        self.0.power(request.into_inner().reboot);
        Ok(Response::new(pb::ShutdownResponse {}))
    }
}

fn up(time: Duration) -> Option<prost_types::Duration> {
    time.try_into().ok()
}
