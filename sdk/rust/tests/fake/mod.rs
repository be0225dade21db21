//! A daemon made of answers: enough of the API to test clients against, nothing behind it.
//!
//! Pools are `browser` (has desktops), `empty` (exhausted at once) and `busy` (keeps callers waiting for ever). VMs are
//! `browser-1` (running, leased), `browser-2` (saved) and `browser-3` (error). What clients did is in [`Seen`].

mod agents;
pub(crate) mod desktop;
mod resources;
mod secrets;
mod watches;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use hvkube_proto::google::longrunning::operations_server::OperationsServer;
use hvkube_sdk::v1::agent_service_server::AgentServiceServer;
use hvkube_sdk::v1::desktop_service_server::DesktopServiceServer;
use hvkube_sdk::v1::host_service_server::HostServiceServer;
use hvkube_sdk::v1::lease_service_server::LeaseServiceServer;
use hvkube_sdk::v1::pool_service_server::PoolServiceServer;
use hvkube_sdk::v1::secret_service_server::SecretServiceServer;
use hvkube_sdk::v1::template_service_server::TemplateServiceServer;
use hvkube_sdk::v1::vm_service_server::VmServiceServer;
use hvkube_sdk::v1::{self};
use tokio::sync::watch;
use tonic::service::Routes;
use tonic::{Code, Request, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// The token it wants.
pub(crate) const TOKEN: &str = "open-sesame";

/// What clients did.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Leases by request id.
    pub(crate) leases: HashMap<String, v1::Lease>,
    /// Calls of AcquireVm, repeats included.
    pub(crate) acquires: u32,
    /// The last one.
    pub(crate) acquire: v1::AcquireVmRequest,
    /// Set by tests: the pool `busy` has desktops.
    pub(crate) busy_is_free: bool,
    /// Set by tests: that many calls of AcquireVm and GetAgent answer SHUTTING_DOWN.
    pub(crate) stopping: u32,
    /// Waits for the pool `busy` that their callers gave up.
    pub(crate) abandoned: u32,
    /// Renewals, accepted or not.
    pub(crate) renewals: u32,
    /// Releases: lease and policy.
    pub(crate) released: Vec<(String, v1::ReleasePolicy)>,
    /// Input batches.
    pub(crate) batches: Vec<v1::SendInputRequest>,
    /// Messages of streams of input.
    pub(crate) streamed: Vec<v1::StreamInputRequest>,
    /// Such streams that did not end in order.
    pub(crate) broken_streams: u32,
    /// Acts.
    pub(crate) acts: Vec<v1::ActRequest>,
    /// Whole files that were written.
    pub(crate) files: HashMap<String, Vec<u8>>,
    /// Uploads that began.
    pub(crate) uploads: u32,
    /// Uploads that broke before their end.
    pub(crate) broken_uploads: u32,
    /// Masks over the screen.
    pub(crate) masks: Vec<v1::Rect>,
    /// Secrets with their values.
    pub(crate) secrets: Vec<(v1::Secret, String)>,
    /// In the clipboard.
    pub(crate) clipboard: Option<v1::clipboard_content::Content>,
    /// Id of the window that was focused last.
    pub(crate) focused: u64,
    /// Programs that were killed because their caller went away.
    pub(crate) killed: u32,
    /// The last pool update.
    pub(crate) update: Option<v1::UpdatePoolRequest>,
    /// The last template that was made.
    pub(crate) template: Option<v1::CreateTemplateRequest>,
    /// The last agent that was submitted.
    pub(crate) submitted: Option<v1::SubmitAgentRequest>,
    /// Calls of ClaimAgent.
    pub(crate) claims: u32,
    /// Reports of workers.
    pub(crate) reports: Vec<v1::ReportAgentRequest>,
    /// Results of workers.
    pub(crate) completed: Vec<v1::CompleteAgentRequest>,
    /// Set by tests: reports answer AGENT_CLAIM_LOST.
    pub(crate) claim_lost: bool,
    /// Looks at the agent that was submitted.
    agent_looks: u32,
    /// Set by tests: renewals answer LEASE_ENDED.
    pub(crate) lease_ended: bool,
    /// Set by tests: that many calls of AcquireVm break after the lease is made.
    pub(crate) break_acquires: u32,
    /// Revisions that watches of VMs went on from; empty ones began anew.
    pub(crate) watches: Vec<String>,
    /// Watches of agents of any id.
    pub(crate) agent_watches: u32,
    /// The last backup that was asked for.
    pub(crate) backup: Option<v1::BackupStoreRequest>,
    operation_step: usize,
}

/// The daemon. Clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Fake {
    seen: Arc<watch::Sender<Seen>>,
    // Serialises handlers that read and write.
    turn: Arc<Mutex<()>>,
}

impl Default for Fake {
    fn default() -> Self {
        Self { seen: Arc::new(watch::Sender::new(Seen::default())), turn: Arc::default() }
    }
}

impl Fake {
    /// All services, for a server.
    pub(crate) fn routes(&self) -> Routes {
        Routes::new(TemplateServiceServer::with_interceptor(self.clone(), check))
            .add_service(PoolServiceServer::with_interceptor(self.clone(), check))
            .add_service(VmServiceServer::with_interceptor(self.clone(), check))
            .add_service(LeaseServiceServer::with_interceptor(self.clone(), check))
            .add_service(DesktopServiceServer::with_interceptor(self.clone(), check))
            .add_service(AgentServiceServer::with_interceptor(self.clone(), check))
            .add_service(HostServiceServer::with_interceptor(self.clone(), check))
            .add_service(SecretServiceServer::with_interceptor(self.clone(), check))
            .add_service(OperationsServer::with_interceptor(self.clone(), check))
    }

    /// What clients did so far.
    pub(crate) fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Waits until clients did what `wanted` looks for; panics after ten seconds.
    pub(crate) async fn wait_for(&self, what: &str, wanted: impl FnMut(&Seen) -> bool) -> Seen {
        let mut seen = self.seen.subscribe();
        let found = tokio::time::timeout(std::time::Duration::from_secs(10), seen.wait_for(wanted)).await;
        found
            .unwrap_or_else(|_| panic!("not seen in time: {what}"))
            .expect("the sender lives in self")
            .clone()
    }

    /// Refuses a call while the daemon stops.
    fn going(&self) -> Result<(), Status> {
        let stopping = self.set(|seen| {
            let stopping = seen.stopping > 0;
            seen.stopping = seen.stopping.saturating_sub(1);
            stopping
        });
        if stopping {
            return Err(refuse(Code::Unavailable, "SHUTTING_DOWN", "the daemon is stopping", &[]));
        }
        Ok(())
    }

    /// Changes how it behaves.
    pub(crate) fn set<T>(&self, change: impl FnOnce(&mut Seen) -> T) -> T {
        let _turn: MutexGuard<'_, ()> = self.turn.lock().expect("no handler panics");
        let mut result = None;
        self.seen.send_modify(|seen| result = Some(change(seen)));
        result.expect("send_modify calls its argument")
    }
}

fn check(request: Request<()>) -> Result<Request<()>, Status> {
    let token = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
    if token == Some(&format!("Bearer {TOKEN}")) {
        Ok(request)
    } else {
        Err(refuse(Code::Unauthenticated, "TOKEN_MISSING_OR_WRONG", "the call needs a valid token", &[]))
    }
}

/// An error as the daemon makes them.
pub(crate) fn refuse(code: Code, reason: &str, message: &str, metadata: &[(&str, &str)]) -> Status {
    Status::with_error_details(code, message, details(reason, metadata))
}

/// Details to which more can be added.
pub(crate) fn details(reason: &str, metadata: &[(&str, &str)]) -> ErrorDetails {
    let metadata: HashMap<String, String> =
        metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    ErrorDetails::with_error_info(reason, "hvkube.dev", metadata)
}

/// Methods that no test calls.
macro_rules! unimplemented_methods {
    ($($method:ident($request:ty) -> $answer:ty;)*) => {$(
        fn $method<'life0, 'async_trait>(
            &'life0 self,
            _: tonic::Request<$request>,
        ) -> std::pin::Pin<Box<dyn Future<Output = Result<tonic::Response<$answer>, tonic::Status>> + Send + 'async_trait>>
        where
            'life0: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(async { Err(tonic::Status::unimplemented(stringify!($method))) })
        }
    )*};
}
pub(crate) use unimplemented_methods;
