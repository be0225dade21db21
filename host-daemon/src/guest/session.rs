//! The life of a session: opening, the first call, heartbeats, closing.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use hvkube_proto::guest::v1 as pb;
use hyper_util::rt::TokioIo;
use pb::display_service_client::DisplayServiceClient;
use pb::process_service_client::ProcessServiceClient;
use pb::supervisor_service_client::SupervisorServiceClient;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::transport::{Channel, Endpoint, Uri};

use super::error::GuestError;
use super::hello::greet;
use super::port::Port;
use super::types::{AttachParams, Attached, Heartbeat, OpenOptions};
use super::wire;
use crate::hypervisor::{GuestStream, Hypervisor};
use crate::model::ids::VmId;

/// Largest message taken from a guest: a band of raw pixels is 1 MiB, and nothing else comes near.
const MAX_MESSAGE: usize = 2 << 20;
/// Flow-control windows: a full frame streams without waiting for the other end under emulation.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// A guest that answers no ping for this long is hung. Under emulation on a loaded host seconds pass.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// After the welcome the agent answers in milliseconds, or it never will on this stream.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(15);
/// How many newer hellos one stream may bring before it is given up.
const MAX_GREETINGS: u32 = 16;
const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(5);
/// Between two tries to connect: first and longest pause.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// A session with one agent. Clones are the same session; the last one closes it when dropped.
#[derive(Clone)]
pub struct Session(Arc<Inner>);

struct Inner {
    epoch: u64,
    attached: Attached,
    channel: Channel,
    port: Port,
    closed: watch::Receiver<Option<String>>,
    heartbeats: watch::Receiver<Option<Heartbeat>>,
    beating: AbortHandle,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.beating.abort();
        self.port.cut("the host closed the session");
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session(epoch {})", self.0.epoch)
    }
}

/// Opens a session with the agent of a running VM, with fresh streams until one works or the deadline passes.
/// The secret is asked of the hypervisor; `options.secret` is not used.
///
/// # Errors
/// [`GuestError::Timeout`] after the deadline, at once what no further try can mend ([`GuestError::is_retryable`]).
pub async fn connect(
    hv: &dyn Hypervisor,
    vm: &VmId,
    options: &OpenOptions,
    deadline: Instant,
) -> Result<Session, GuestError> {
    let mut options = options.clone();
    options.secret = hv.guest_secret(vm).await.map_err(GuestError::Hypervisor)?;
    let mut pause = FIRST_PAUSE;
    loop {
        let stream = timeout_at(deadline, hv.open_guest(vm))
            .await
            .map_err(|_| GuestError::Timeout("connect"))?
            .map_err(GuestError::Hypervisor);
        let result = match stream {
            Ok(stream) => Session::open(stream, &options, deadline).await,
            Err(error) => Err(error),
        };
        match result {
            Err(error) if error.is_retryable() && Instant::now() + pause < deadline => {
                tracing::debug!(%vm, epoch = options.epoch, %error, "no guest session yet");
            }
            result => return result,
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

impl Session {
    /// Waits for the agent's hello on a stream, answers it, and proves the session with the first call.
    ///
    /// # Errors
    /// [`GuestError::is_retryable`] tells whether a fresh stream may help.
    pub async fn open(
        mut stream: Box<dyn GuestStream>,
        options: &OpenOptions,
        deadline: Instant,
    ) -> Result<Self, GuestError> {
        let mut read = Vec::new();
        for _ in 0..MAX_GREETINGS {
            timeout_at(deadline, greet(&mut stream, read, options.epoch, options.secret.as_ref()))
                .await
                .map_err(|_| GuestError::Timeout("say hello"))??;
            let port = Port::new(stream);
            let closed = port.closed();
            let attempt = async {
                let channel = http2(&port).await?;
                let attached = attach(&channel, options.epoch, &options.attach, &closed, deadline).await?;
                Ok::<_, GuestError>((channel, attached))
            };
            let soon = deadline.min(Instant::now() + ATTACH_TIMEOUT);
            let result = timeout_at(soon, attempt).await.unwrap_or(Err(GuestError::Timeout("attach")));
            match result {
                Ok((channel, attached)) => {
                    return Ok(Self::start(options, channel, port, closed, attached));
                }
                Err(error) => match port.reclaim() {
                    Some(newer) => (stream, read) = newer,
                    None => return Err(error),
                },
            }
        }
        Err(GuestError::Protocol("the guest begins session after session".to_owned()))
    }

    fn start(
        options: &OpenOptions,
        channel: Channel,
        port: Port,
        closed: watch::Receiver<Option<String>>,
        attached: Attached,
    ) -> Self {
        let interval = if options.heartbeat.is_zero() { DEFAULT_HEARTBEAT } else { options.heartbeat };
        let (beats, heartbeats) = watch::channel(None);
        let beating = tokio::spawn(beat(channel.clone(), closed.clone(), interval, beats)).abort_handle();
        let epoch = options.epoch;
        Self(Arc::new(Inner { epoch, attached, channel, port, closed, heartbeats, beating }))
    }

    /// Number of this session.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.0.epoch
    }

    /// What the guest said when the session began.
    #[must_use]
    pub fn attached(&self) -> &Attached {
        &self.0.attached
    }

    /// The latest heartbeat; nothing until the first. The sender goes when the session ends.
    #[must_use]
    pub fn heartbeats(&self) -> watch::Receiver<Option<Heartbeat>> {
        self.0.heartbeats.clone()
    }

    /// Ends the session. When this returns the stream's descriptor is closed; calls under way fail.
    pub fn close(&self) {
        self.0.beating.abort();
        self.0.port.cut("the host closed the session");
    }

    /// Whether the session is over.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.closed.borrow().is_some()
    }

    /// Waits for the end of the session, however it comes, and says why. Does not keep the session open.
    pub fn closed(&self) -> impl Future<Output = String> + Send + 'static {
        let mut closed = self.0.closed.clone();
        async move { why(&mut closed).await }
    }

    /// Tells the guest the time and, if asked, who it is. [`Session::open`] has done it once; safe to repeat.
    ///
    /// # Errors
    /// As every call: [`GuestError::Lost`], [`GuestError::Timeout`].
    pub async fn attach(&self, params: &AttachParams, deadline: Instant) -> Result<Attached, GuestError> {
        attach(&self.0.channel, self.0.epoch, params, &self.0.closed, deadline).await
    }

    /// Asks the guest's operating system to power off or restart; answers before it happens.
    ///
    /// # Errors
    /// As every call.
    pub async fn shutdown(&self, reboot: bool, deadline: Instant) -> Result<(), GuestError> {
        let mut client = self.supervisor();
        let request = request(pb::ShutdownRequest { reboot }, deadline);
        self.call("shut down", deadline, client.shutdown(request)).await.map(|_| ())
    }

    pub(super) fn display(&self) -> DisplayServiceClient<Channel> {
        DisplayServiceClient::new(self.0.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub(super) fn process(&self) -> ProcessServiceClient<Channel> {
        ProcessServiceClient::new(self.0.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    fn supervisor(&self) -> SupervisorServiceClient<Channel> {
        SupervisorServiceClient::new(self.0.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub(super) async fn call<T>(
        &self,
        what: &'static str,
        deadline: Instant,
        call: impl Future<Output = Result<T, tonic::Status>>,
    ) -> Result<T, GuestError> {
        guarded(&self.0.closed, what, deadline, call).await
    }

    /// What to tell of a status that came up in the middle of a stream.
    pub(super) fn error(&self, status: &tonic::Status, what: &'static str) -> GuestError {
        explain(&self.0.closed, status, what)
    }
}

/// A request that tells the guest how long its host will wait.
pub(super) fn request<T>(message: T, deadline: Instant) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(deadline.saturating_duration_since(Instant::now()));
    request
}

async fn why(closed: &mut watch::Receiver<Option<String>>) -> String {
    match closed.wait_for(Option::is_some).await {
        Ok(why) => why.clone().unwrap_or_default(),
        Err(_) => "the session is gone".to_owned(),
    }
}

fn explain(
    closed: &watch::Receiver<Option<String>>,
    status: &tonic::Status,
    what: &'static str,
) -> GuestError {
    match &*closed.borrow() {
        Some(why) => GuestError::Lost(why.clone()),
        None => GuestError::from_status(status, what),
    }
}

/// Bounds a call by its deadline and by the life of the stream.
async fn guarded<T>(
    closed: &watch::Receiver<Option<String>>,
    what: &'static str,
    deadline: Instant,
    call: impl Future<Output = Result<T, tonic::Status>>,
) -> Result<T, GuestError> {
    let mut ended = closed.clone();
    tokio::select! {
        // An answer that is there counts, also when the stream has just ended.
        biased;
        result = timeout_at(deadline, call) => match result {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(status)) => Err(explain(closed, &status, what)),
            Err(_) => Err(GuestError::Timeout(what)),
        },
        why = why(&mut ended) => Err(GuestError::Lost(why)),
    }
}

async fn http2(port: &Port) -> Result<Channel, GuestError> {
    let mut io = Some(TokioIo::new(port.io()));
    // One stream, one session: there is nothing to connect to again.
    let connector = tower::service_fn(move |_: Uri| {
        let io = io.take();
        async move { io.ok_or_else(|| std::io::Error::other("the guest stream is used up")) }
    });
    Endpoint::from_static("http://guest")
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        // Fewer, larger frames: each costs the guest a system call.
        .max_frame_size(1 << 20)
        .http2_max_header_list_size(16 << 10)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
        .map_err(|error| GuestError::Lost(error.to_string()))
}

async fn attach(
    channel: &Channel,
    epoch: u64,
    params: &AttachParams,
    closed: &watch::Receiver<Option<String>>,
    deadline: Instant,
) -> Result<Attached, GuestError> {
    let mut entropy = [0; 32];
    if params.reseed {
        getrandom::fill(&mut entropy).map_err(|error| GuestError::Aborted(error.to_string()))?;
    }
    let message = pb::AttachRequest {
        epoch,
        host_time: Some(SystemTime::now().into()),
        identity: params.identity.as_ref().map(wire::identity),
        entropy: if params.reseed { entropy.to_vec().into() } else { bytes::Bytes::new() },
    };
    let mut client = SupervisorServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE);
    let answer = guarded(closed, "attach", deadline, client.attach(request(message, deadline))).await?;
    Ok(wire::attached(answer.into_inner()))
}

/// Keeps the latest heartbeat at hand while the session lives.
async fn beat(
    channel: Channel,
    mut closed: watch::Receiver<Option<String>>,
    interval: Duration,
    beats: watch::Sender<Option<Heartbeat>>,
) {
    let listen = async {
        let interval = wire::duration(interval);
        loop {
            let mut client =
                SupervisorServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE);
            match client.heartbeat(pb::HeartbeatRequest { interval: Some(interval) }).await {
                Ok(stream) => {
                    let mut stream = stream.into_inner();
                    while let Some(Ok(beat)) = stream.next().await {
                        beats.send_replace(Some(wire::heartbeat(&beat)));
                    }
                }
                Err(status) if status.code() == tonic::Code::Unimplemented => break,
                Err(_) => {}
            }
            // The agent ended the stream, not the session: ask again, in its own time.
            sleep(DEFAULT_HEARTBEAT).await;
        }
    };
    tokio::select! {
        () = listen => {}
        _ = why(&mut closed) => {}
    }
}
