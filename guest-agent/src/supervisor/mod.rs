//! The privileged half: holds the way to the host, knows the machine, and hands the desktop's calls to the worker.
//!
//! ```text
//! host ==HTTP/2==> supervisor (root) --SupervisorService, as_root--> here
//!                         |----------- DisplayService, ProcessService --> worker (desktop user), HTTP/2 on a socket pair
//! ```
//!
//! The worker dies with the display and is started again; the supervisor and its session stay.

pub mod facts;
#[cfg(target_os = "linux")]
pub mod passwd;
mod processes;
mod route;
#[cfg(all(target_os = "linux", feature = "x11"))]
pub mod worker;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hvkube_proto::guest::v1 as pb;
use hvkube_proto::guest::v1::supervisor_service_server::SupervisorService;
use tokio::time::MissedTickBehavior;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::IntervalStream;
use tonic::{Request, Response, Status};

use crate::config::Config;
use crate::platform::machine;
use crate::process::{Reply, duration};

pub use processes::RoutedProcesses;
pub use route::{Desktop, Routed, Routes};

pub(crate) const DEFAULT_BEAT: Duration = Duration::from_secs(5);
pub(crate) const SHORTEST_BEAT: Duration = Duration::from_millis(100);
pub(crate) const LONGEST_BEAT: Duration = Duration::from_secs(60);
pub(crate) const FIRST_BEAT: Duration = Duration::from_secs(1);
/// From a new identity to the work that follows from it.
const FOLLOW_UP_AFTER: Duration = Duration::from_secs(1);
const MAX_HOSTNAME: usize = 63;
const ENTROPY: usize = 32;

/// Serves [`SupervisorService`].
#[derive(Clone)]
pub struct Supervisor {
    shared: Arc<Shared>,
}

struct Shared {
    privileged: bool,
    dhcp_pid_file: Option<PathBuf>,
    image_stamp: String,
    os: String,
    boot_id: String,
    desktop_ready: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Supervisor {
    /// `privileged`: may change the machine. `desktop_ready` is asked at every heartbeat.
    #[must_use]
    pub fn new(
        privileged: bool,
        config: &Config,
        desktop_ready: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Self {
        let shared = Shared {
            privileged,
            dhcp_pid_file: config.dhcp_pid_file.clone(),
            image_stamp: facts::image_stamp(&config.image_stamp),
            // None of these changes while the machine is up.
            os: facts::os_name(),
            boot_id: facts::boot_id(),
            desktop_ready: Box::new(desktop_ready),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Applies what the request asks for; what fails becomes a warning, because a desktop with a wrong host name is still
    /// of more use than none.
    fn apply(&self, request: &pb::AttachRequest) -> (i64, Vec<String>) {
        let mut warnings = Vec::new();
        let mut step = |name: &str, outcome: std::io::Result<()>| {
            if let Err(error) = outcome {
                tracing::warn!(step = name, %error, "attach step failed");
                warnings.push(format!("{name}: {error}"));
            }
        };
        let mut skew = 0;
        if let Some(time) = &request.host_time {
            skew = machine::clock_skew_micros(time);
            if self.shared.privileged {
                step("clock", machine::step_clock(time, skew));
            } else if machine::is_off(skew) {
                step("clock", Err(std::io::Error::other("no privilege to set the clock")));
            }
        }
        if let Some(identity) = &request.identity {
            if self.shared.privileged {
                step("hostname", machine::set_hostname(&identity.hostname));
                step("machine_id", machine::set_machine_id(&identity.machine_id));
                let mut moved = false;
                if !identity.mac_address.is_empty() {
                    let set = machine::set_mac_address(&identity.mac_address);
                    moved = matches!(set, Ok(true));
                    step("mac_address", set.map(|_| ()));
                }
                self.follow_up(identity.hostname.clone(), moved);
            } else {
                step("identity", Err(std::io::Error::other("no privilege to change the machine's identity")));
            }
        }
        if !request.entropy.is_empty() {
            if self.shared.privileged {
                step("entropy", machine::add_entropy(&request.entropy));
            } else {
                step("entropy", Err(std::io::Error::other("no privilege to credit random bytes")));
            }
        }
        (skew, warnings)
    }

    /// What a new identity brings with it that nobody waits for. Not at once: a DHCP client and its scripts would keep a
    /// processor from the desktop that somebody does wait for.
    fn follow_up(&self, hostname: String, moved: bool) {
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            tokio::time::sleep(FOLLOW_UP_AFTER).await;
            if let Err(error) = machine::record_hostname(&hostname) {
                tracing::warn!(%error, "the hostname is not recorded for the next boot");
            }
            if moved && let Err(error) = machine::renew_network(shared.dhcp_pid_file.as_deref()) {
                tracing::warn!(%error, "the network's lease is not renewed");
            }
        });
    }
}

/// Whether an agent may act on a request at all.
pub(crate) fn check(request: &pb::AttachRequest) -> Result<(), Status> {
    if let Some(time) = &request.host_time {
        check_time(time)?;
    }
    if !request.entropy.is_empty() && request.entropy.len() != ENTROPY {
        return Err(Status::invalid_argument(format!("entropy: must be empty or {ENTROPY} bytes")));
    }
    let Some(identity) = &request.identity else { return Ok(()) };
    let name = &identity.hostname;
    let label = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if name.is_empty()
        || name.len() > MAX_HOSTNAME
        || !name.chars().all(label)
        || name.starts_with('-')
        || name.ends_with('-')
    {
        return Err(Status::invalid_argument(format!(
            "identity.hostname: {name:?} is not an RFC 1123 label"
        )));
    }
    let id = &identity.machine_id;
    if id.len() != 32 || !id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return Err(Status::invalid_argument(
            "identity.machine_id: must be 32 lower-case hexadecimal digits",
        ));
    }
    if !matches!(identity.mac_address.len(), 0 | 6) {
        return Err(Status::invalid_argument("identity.mac_address: must be empty or six bytes"));
    }
    if identity.mac_address.first().is_some_and(|b| b & 1 == 1) {
        return Err(Status::invalid_argument("identity.mac_address: is a multicast address"));
    }
    Ok(())
}

fn check_time(time: &prost_types::Timestamp) -> Result<(), Status> {
    // The year 9999, as the protobuf type bounds it; a clock before the epoch helps nobody.
    let valid = (0..253_402_300_800).contains(&time.seconds) && (0..1_000_000_000).contains(&time.nanos);
    if valid { Ok(()) } else { Err(Status::invalid_argument("host_time: is not a valid time after 1970")) }
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
        // In a thread of its own: calls for the desktop that came with this one are handed on meanwhile.
        let this = self.clone();
        let applied = tokio::task::spawn_blocking(move || (this.apply(&request), machine::ip_addresses()));
        let ((clock_skew_micros, warnings), ip_addresses) =
            applied.await.map_err(|error| Status::internal(format!("attach failed: {error}")))?;
        Ok(Response::new(pb::AttachResponse {
            agent_version: env!("CARGO_PKG_VERSION").into(),
            os: self.shared.os.clone(),
            image_stamp_json: self.shared.image_stamp.clone(),
            clock_skew_micros,
            boot_id: self.shared.boot_id.clone(),
            warnings,
            ip_addresses,
            desktop_ready: (self.shared.desktop_ready)(),
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
        // Right after a session's beginning there is better to do.
        let first = tokio::time::Instant::now() + every.min(FIRST_BEAT);
        let mut ticks = tokio::time::interval_at(first, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let shared = Arc::clone(&self.shared);
        let mut sequence = 0;
        let beats = IntervalStream::new(ticks).map(move |_| {
            sequence += 1;
            Ok(facts::heartbeat(sequence, (shared.desktop_ready)()))
        });
        Ok(Response::new(Box::pin(beats)))
    }

    async fn set_clock(
        &self,
        request: Request<pb::SetClockRequest>,
    ) -> Result<Response<pb::SetClockResponse>, Status> {
        let time = request
            .into_inner()
            .host_time
            .ok_or_else(|| Status::invalid_argument("host_time: is required"))?;
        check_time(&time)?;
        if !self.shared.privileged {
            return Err(Status::failed_precondition("host_time: this agent may not set the clock"));
        }
        let clock_skew_micros = machine::clock_skew_micros(&time);
        machine::step_clock(&time, clock_skew_micros)
            .map_err(|e| Status::internal(format!("cannot set the clock: {e}")))?;
        Ok(Response::new(pb::SetClockResponse { clock_skew_micros }))
    }

    async fn flush(&self, _: Request<pb::FlushRequest>) -> Result<Response<pb::FlushResponse>, Status> {
        machine::warm_up();
        // It takes as long as the disk does.
        let flushed = tokio::task::spawn_blocking(machine::flush_disks).await;
        flushed.map_err(|error| Status::internal(format!("cannot flush: {error}")))?;
        Ok(Response::new(pb::FlushResponse {}))
    }

    async fn shutdown(
        &self,
        request: Request<pb::ShutdownRequest>,
    ) -> Result<Response<pb::ShutdownResponse>, Status> {
        if !self.shared.privileged {
            return Err(Status::failed_precondition("this agent may not shut the machine down"));
        }
        machine::shutdown(request.into_inner().reboot)
            .map_err(|e| Status::internal(format!("cannot begin the shutdown: {e}")))?;
        Ok(Response::new(pb::ShutdownResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attach(hostname: &str, machine_id: &str, mac: &[u8]) -> Result<(), Status> {
        let identity = pb::Identity {
            hostname: hostname.into(),
            machine_id: machine_id.into(),
            mac_address: bytes::Bytes::copy_from_slice(mac),
        };
        check(&pb::AttachRequest { identity: Some(identity), ..Default::default() })
    }

    #[test]
    fn identities_are_checked_before_anything_is_changed() {
        let id = "0123456789abcdef0123456789abcdef";
        attach("vm-1", id, &[0x52, 0x54, 0, 1, 2, 3]).expect("valid");
        attach("vm-1", id, &[]).expect("mac may be left out");
        for (name, id, mac) in [
            ("", id, &[][..]),
            ("-vm", id, &[]),
            ("a\nb", id, &[]),
            (&"x".repeat(64), id, &[]),
            ("vm", "0123", &[]),
            ("vm", &id.to_uppercase(), &[]),
            ("vm", id, &[1, 2, 3]),
            ("vm", id, &[1, 0, 0, 0, 0, 1]),
        ] {
            attach(name, id, mac).expect_err("refused");
        }
    }

    #[tokio::test]
    async fn without_privilege_a_wrong_clock_is_a_warning_and_nothing_is_changed() {
        let supervisor = Supervisor::new(false, &Config::default(), || true);
        let request = pb::AttachRequest {
            host_time: Some(prost_types::Timestamp { seconds: 86_400, nanos: 0 }),
            ..Default::default()
        };
        let answer = supervisor.attach(Request::new(request)).await.expect("attached").into_inner();
        assert!(answer.clock_skew_micros > 0, "guest clock minus host clock");
        assert_eq!(answer.warnings.len(), 1, "{:?}", answer.warnings);
        assert!(answer.warnings[0].starts_with("clock: "), "{:?}", answer.warnings);
        assert!(!answer.boot_id.is_empty() && !answer.os.is_empty() && answer.desktop_ready);
    }
}
