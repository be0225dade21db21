//! The life of a session: opening, the first call, heartbeats, closing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use hvkube_proto::guest::v1 as pb;
use pb::desktop_service_client::DesktopServiceClient;
use pb::display_service_client::DisplayServiceClient;
use pb::process_service_client::ProcessServiceClient;
use pb::supervisor_service_client::SupervisorServiceClient;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{Instant, sleep, timeout_at};

use super::error::GuestError;
use super::hello::greet;
use super::http2::Http2;
use super::limits::{MAX_ANSWER, MAX_FRAME_PART, MAX_MESSAGE, MAX_WINDOWS_ANSWER};
use super::port::Port;
use super::types::{AttachParams, Attached, Captured, Have, Heartbeat, OpenOptions, Probe};
use super::wire;
use crate::hypervisor::{GuestStream, Hypervisor};
use crate::model::ids::VmId;

/// A guest that answers no ping for this long is hung. Under emulation on a loaded host seconds pass.
pub(super) const PING_EVERY: Duration = Duration::from_secs(10);
pub(super) const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// After the welcome the agent answers in milliseconds, or it never will on this stream.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(15);
/// How many newer hellos one stream may bring before it is given up.
const MAX_GREETINGS: u32 = 16;
const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(5);
/// Between two heartbeats that are read: more come from nobody well-meaning.
const HEARTBEAT_GAP: Duration = Duration::from_millis(50);
/// When a session is asked for its first one.
const FIRST_HEARTBEAT: Duration = Duration::from_millis(500);
/// Between two tries to connect: first and longest pause.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// A session with one agent. Clones are the same session; the last one closes it when dropped.
#[derive(Clone)]
pub struct Session(Arc<Inner>);

struct Inner {
    epoch: u64,
    attached: Attached,
    calls: Calls,
    port: Port,
    glance: Mutex<Option<Glance>>,
    /// Held while the windows are listed, which costs more than anything else but frames.
    listing: tokio::sync::Mutex<()>,
    heartbeats: watch::Receiver<Option<Heartbeat>>,
    beating: AbortHandle,
}

/// The way to make calls.
#[derive(Clone)]
pub(super) struct Calls {
    channel: Http2,
    closed: watch::Receiver<Option<String>>,
}

/// A first look at the desktop, begun with the session.
pub struct Glance {
    /// Input was proven.
    pub probe: JoinHandle<Result<Probe, GuestError>>,
    /// A whole frame with the cursor.
    pub frame: JoinHandle<Result<Captured, GuestError>>,
}

impl Drop for Glance {
    fn drop(&mut self) {
        self.probe.abort();
        self.frame.abort();
    }
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
                let calls = Calls { channel: Http2::open(&port).await?, closed: closed.clone() };
                // Sent before the first call: the desktop's half of the guest works while the other is busy with that.
                let glance = options.glance.then(|| calls.glance(deadline));
                let attached = attach(&calls, options.epoch, &options.attach, deadline).await?;
                Ok::<_, GuestError>((calls, glance, attached))
            };
            let soon = deadline.min(Instant::now() + ATTACH_TIMEOUT);
            let result = timeout_at(soon, attempt).await.unwrap_or(Err(GuestError::Timeout("attach")));
            match result {
                Ok((calls, glance, attached)) => {
                    return Ok(Self::start(options, calls, port, glance, attached));
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
        calls: Calls,
        port: Port,
        glance: Option<Glance>,
        attached: Attached,
    ) -> Self {
        let interval = if options.heartbeat.is_zero() { DEFAULT_HEARTBEAT } else { options.heartbeat };
        let (beats, heartbeats) = watch::channel(None);
        let beating = tokio::spawn(beat(calls.clone(), interval, beats)).abort_handle();
        let (epoch, glance) = (options.epoch, Mutex::new(glance));
        let listing = tokio::sync::Mutex::default();
        Self(Arc::new(Inner { epoch, attached, calls, port, glance, listing, heartbeats, beating }))
    }

    /// The first look that was begun with the session, if it was and nobody has taken it.
    #[must_use]
    pub fn take_glance(&self) -> Option<Glance> {
        self.0.glance.lock().unwrap_or_else(PoisonError::into_inner).take()
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
        self.0.calls.closed.borrow().is_some()
    }

    /// Waits for the end of the session, however it comes, and says why. Does not keep the session open.
    pub fn closed(&self) -> impl Future<Output = String> + Send + 'static {
        let mut closed = self.0.calls.closed.clone();
        async move { why(&mut closed).await }
    }

    /// Tells the guest the time and, if asked, who it is. [`Session::open`] has done it once; safe to repeat.
    ///
    /// # Errors
    /// As every call: [`GuestError::Lost`], [`GuestError::Timeout`].
    pub async fn attach(&self, params: &AttachParams, deadline: Instant) -> Result<Attached, GuestError> {
        attach(&self.0.calls, self.0.epoch, params, deadline).await
    }

    /// Has the guest write to its disks what is only in memory yet. An agent that can't is left alone.
    ///
    /// # Errors
    /// As every call.
    pub async fn flush(&self, deadline: Instant) -> Result<(), GuestError> {
        let mut client = self.0.calls.supervisor();
        match self.call("flush", deadline, client.flush(request(pb::FlushRequest {}, deadline))).await {
            Ok(_) | Err(GuestError::Unsupported(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Asks the guest's operating system to power off or restart; answers before it happens.
    ///
    /// # Errors
    /// As every call.
    pub async fn shutdown(&self, reboot: bool, deadline: Instant) -> Result<(), GuestError> {
        let mut client = self.0.calls.supervisor();
        let request = request(pb::ShutdownRequest { reboot }, deadline);
        self.call("shut down", deadline, client.shutdown(request)).await.map(|_| ())
    }

    pub(super) fn calls(&self) -> &Calls {
        &self.0.calls
    }

    pub(super) fn process(&self) -> ProcessServiceClient<Http2> {
        let channel = self.0.calls.channel.clone();
        ProcessServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE)
    }

    pub(super) fn desktop(&self) -> DesktopServiceClient<Http2> {
        self.0.calls.desktop(MAX_ANSWER)
    }

    /// For a list of windows; with the turn to ask for it.
    pub(super) async fn windows(
        &self,
        deadline: Instant,
    ) -> Result<(tokio::sync::MutexGuard<'_, ()>, DesktopServiceClient<Http2>), GuestError> {
        let turn = timeout_at(deadline, self.0.listing.lock());
        let turn = turn.await.map_err(|_| GuestError::Timeout("list its windows"))?;
        Ok((turn, self.0.calls.desktop(MAX_WINDOWS_ANSWER)))
    }

    pub(super) async fn call<T>(
        &self,
        what: &'static str,
        deadline: Instant,
        call: impl Future<Output = Result<T, tonic::Status>>,
    ) -> Result<T, GuestError> {
        self.0.calls.call(what, deadline, call).await
    }

    /// What to tell of a status that came up in the middle of a stream.
    pub(super) fn error(&self, status: &tonic::Status, what: &'static str) -> GuestError {
        self.0.calls.error(status, what)
    }
}

impl Calls {
    /// For calls that are answered with a few numbers and texts.
    pub(super) fn display(&self) -> DisplayServiceClient<Http2> {
        DisplayServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    /// For calls that are answered with pixels.
    pub(super) fn pixels(&self) -> DisplayServiceClient<Http2> {
        DisplayServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_FRAME_PART)
    }

    fn desktop(&self, max: usize) -> DesktopServiceClient<Http2> {
        DesktopServiceClient::new(self.channel.clone()).max_decoding_message_size(max)
    }

    fn supervisor(&self) -> SupervisorServiceClient<Http2> {
        SupervisorServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    fn glance(&self, deadline: Instant) -> Glance {
        let (probing, looking) = (self.clone(), self.clone());
        Glance {
            probe: tokio::spawn(async move { probing.probe(deadline).await }),
            frame: tokio::spawn(async move {
                looking.capture(Have::default(), Duration::ZERO, true, deadline).await
            }),
        }
    }

    /// Bounds a call by its deadline and by the life of the stream.
    pub(super) async fn call<T>(
        &self,
        what: &'static str,
        deadline: Instant,
        call: impl Future<Output = Result<T, tonic::Status>>,
    ) -> Result<T, GuestError> {
        let mut ended = self.closed.clone();
        tokio::select! {
            // An answer that is there counts, also when the stream has just ended.
            biased;
            result = timeout_at(deadline, call) => match result {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(status)) => Err(self.error(&status, what)),
                Err(_) => Err(GuestError::Timeout(what)),
            },
            why = why(&mut ended) => Err(GuestError::Lost(why)),
        }
    }

    fn error(&self, status: &tonic::Status, what: &'static str) -> GuestError {
        match &*self.closed.borrow() {
            Some(why) => GuestError::Lost(why.clone()),
            None => GuestError::from_status(status, what),
        }
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

async fn attach(
    calls: &Calls,
    epoch: u64,
    params: &AttachParams,
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
    let mut client = calls.supervisor();
    let answer = calls.call("attach", deadline, client.attach(request(message, deadline))).await?;
    Ok(wire::attached(answer.into_inner()))
}

/// Keeps the latest heartbeat at hand while the session lives.
async fn beat(calls: Calls, interval: Duration, beats: watch::Sender<Option<Heartbeat>>) {
    let mut closed = calls.closed.clone();
    let listen = async {
        // Most sessions of hot VMs that are leased again and again do not live for it, and nobody waits for the first one.
        sleep(interval.min(FIRST_HEARTBEAT)).await;
        let interval = wire::duration(interval);
        loop {
            match calls.supervisor().heartbeat(pb::HeartbeatRequest { interval: Some(interval) }).await {
                Ok(stream) => {
                    let mut stream = stream.into_inner();
                    while let Some(Ok(beat)) = stream.next().await {
                        beats.send_replace(Some(wire::heartbeat(&beat)));
                        sleep(HEARTBEAT_GAP).await;
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
