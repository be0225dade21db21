//! A connection: the generated clients of every service, and how convenience calls are made.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use hvkube_proto::google::longrunning::operations_client::OperationsClient;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::auth::{Bearer, TokenSource};
use crate::builder::ClientBuilder;
use crate::error::{Error, Result};
use crate::retry::{RetryPolicy, Safety};
use crate::v1::agent_service_client::AgentServiceClient;
use crate::v1::desktop_service_client::DesktopServiceClient;
use crate::v1::host_service_client::HostServiceClient;
use crate::v1::lease_service_client::LeaseServiceClient;
use crate::v1::pool_service_client::PoolServiceClient;
use crate::v1::secret_service_client::SecretServiceClient;
use crate::v1::template_service_client::TemplateServiceClient;
use crate::v1::vm_service_client::VmServiceClient;

/// Largest answer that is taken: a raw 4K screenshot is 33 MB.
const MAX_ANSWER: usize = 64 << 20;
/// Largest request that is made: a clipboard of 16 MiB, with room around it.
const MAX_REQUEST: usize = 17 << 20;
/// Moves answer when the VM has arrived; a cold boot without hardware acceleration takes minutes.
const MOVE_WAIT: Duration = Duration::from_secs(600);

/// What calls travel on: the connection with the token.
pub type Transport = InterceptedService<Channel, Bearer>;

/// A connection to a daemon. Cloning is cheap and shares it; a lost connection is made again by the next call.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    transport: Transport,
    endpoint: String,
    token_source: TokenSource,
    timeout: Duration,
    retry: RetryPolicy,
}

/// Calls `$client().$method($message)` as [`Client::unary`] does.
macro_rules! call {
    ($self:expr, $safety:ident, $timeout:expr, $client:ident.$method:ident($message:expr)) => {
        $self
            .unary($crate::retry::Safety::$safety, $timeout, $message, |request| {
                let mut client = $self.$client();
                async move { client.$method(request).await }
            })
            .await
    };
}
pub(crate) use call;

macro_rules! service {
    ($(#[$doc:meta])* $name:ident: $client:ident) => {
        $(#[$doc])*
        #[must_use]
        pub fn $name(&self) -> $client<Transport> {
            $client::new(self.shared.transport.clone())
                .max_decoding_message_size(MAX_ANSWER)
                .max_encoding_message_size(MAX_REQUEST)
        }
    };
}

impl Client {
    /// Connects to the daemon that [`ClientBuilder`] finds by itself.
    ///
    /// # Errors
    /// As [`ClientBuilder::connect`].
    pub async fn connect() -> Result<Self> {
        Self::builder().connect().await
    }

    /// Starts with nothing set.
    #[must_use]
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// On a channel of the caller's, e.g. one over an in-memory pipe to an embedded daemon.
    ///
    /// # Errors
    /// [`Error::Config`] for a token that no header can carry.
    pub fn from_channel(channel: Channel, token: Option<&str>) -> Result<Self> {
        let bearer = token.map(Bearer::new).transpose()?.unwrap_or_default();
        let timeout = Duration::from_secs(30);
        Ok(Self::assemble(
            channel,
            bearer,
            TokenSource::Given,
            String::new(),
            timeout,
            RetryPolicy::default(),
        ))
    }

    pub(crate) fn assemble(
        channel: Channel,
        bearer: Bearer,
        token_source: TokenSource,
        endpoint: String,
        timeout: Duration,
        retry: RetryPolicy,
    ) -> Self {
        let transport = InterceptedService::new(channel, bearer);
        Self { shared: Arc::new(Shared { transport, endpoint, token_source, timeout, retry }) }
    }

    /// URL of the daemon; empty for [`Client::from_channel`].
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.shared.endpoint
    }

    /// Where the token came from, for a message when it is refused.
    #[must_use]
    pub fn token_source(&self) -> &TokenSource {
        &self.shared.token_source
    }

    service! {
        /// Generated client of the service, with token and limits.
        templates: TemplateServiceClient
    }
    service! {
        /// Generated client of the service, with token and limits.
        pools: PoolServiceClient
    }
    service! {
        /// Generated client of the service, with token and limits.
        vms: VmServiceClient
    }
    service! {
        /// Generated client of the service, with token and limits.
        leases: LeaseServiceClient
    }
    service! {
        /// Generated client of the service, with token and limits.
        desktops: DesktopServiceClient
    }
    service! {
        /// Generated client of the service, with token and limits.
        agents: AgentServiceClient
    }
    service! {
        /// Generated client of the service, with token and limits.
        hosts: HostServiceClient
    }
    service! {
        /// Generated client of the service, with token and limits.
        secrets: SecretServiceClient
    }
    service! {
        /// Generated client of the service, with token and limits.
        operations: OperationsClient
    }

    /// Asks whether the daemon serves. `service` is e.g. `hvkube.v1.VmService`; empty: the daemon as a whole. Needs no
    /// token.
    ///
    /// # Errors
    /// [`Error::Unreachable`]; `NOT_FOUND` for a service that the daemon does not know.
    pub async fn is_serving(&self, service: &str) -> Result<bool> {
        let request = tonic_health::pb::HealthCheckRequest { service: service.to_owned() };
        let answer = self
            .unary(Safety::Repeatable, self.quick(), request, |request| {
                let mut client = HealthClient::new(self.shared.transport.clone());
                async move { client.check(request).await }
            })
            .await?;
        Ok(answer.status() == ServingStatus::Serving)
    }

    /// When calls are made again.
    pub(crate) fn retry(&self) -> RetryPolicy {
        self.shared.retry
    }

    /// Deadline of calls that answer at once.
    pub(crate) fn quick(&self) -> Duration {
        self.shared.timeout
    }

    /// Deadline of calls that answer after `wait` at the latest.
    pub(crate) fn after(&self, wait: Duration) -> Duration {
        wait.saturating_add(self.shared.timeout)
    }

    /// Deadline of calls that move a VM.
    pub(crate) fn moving(&self) -> Duration {
        self.after(MOVE_WAIT)
    }

    /// Runtime-independent mapping of a status of this connection.
    pub(crate) fn error(&self, status: Status) -> Error {
        Error::from_status(status, &self.shared.endpoint)
    }

    /// Makes a call once, with a deadline.
    pub(crate) async fn attempt<M, T, Fut>(
        &self,
        timeout: Duration,
        message: M,
        call: impl FnOnce(Request<M>) -> Fut,
    ) -> Result<T>
    where
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let mut request = Request::new(message);
        request.set_timeout(timeout);
        // The channel enforces the deadline until the headers are there; this covers the message after them.
        let patience = timeout.saturating_add(Duration::from_millis(500));
        match tokio::time::timeout(patience, call(request)).await {
            Ok(answer) => answer.map(Response::into_inner).map_err(|status| self.error(status)),
            Err(_) => Err(Error::DeadlineExceeded),
        }
    }

    /// Makes a call with a deadline, and again as far as `safety` and the policy allow. The deadline is for all
    /// attempts together; each attempt tells the daemon what is left of it.
    pub(crate) async fn unary<M, T, F, Fut>(
        &self,
        safety: Safety,
        timeout: Duration,
        message: M,
        call: F,
    ) -> Result<T>
    where
        M: Clone,
        F: Fn(Request<M>) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let start = tokio::time::Instant::now();
        let mut made = 0;
        loop {
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(Error::DeadlineExceeded);
            }
            let error = match self.attempt(left, message.clone(), &call).await {
                Err(error) if error.code() != Code::DeadlineExceeded => error,
                done => return done,
            };
            made += 1;
            match self.shared.retry.pause_after(made) {
                Some(pause) if safety.allows(&error) => {
                    tracing::debug!(%error, made, "daemon not reached, trying again");
                    tokio::time::sleep(pause).await;
                }
                _ => return Err(error),
            }
        }
    }
}

/// Id for a request that can be repeated.
pub(crate) fn fresh_id() -> String {
    uuid::Uuid::new_v4().to_string()
}
