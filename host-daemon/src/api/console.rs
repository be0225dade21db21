//! The bytes of a console between a call and the desktop.

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use hvkube_proto::v1;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, WriteHalf};
use tokio::sync::oneshot;
use tonic::{Request, Response, Status, Streaming};
use v1::connect_console_request::Part;

use super::convert::timestamp;
use super::guard::{self, Guard, ResponseStream};
use super::{auth, fields};
use crate::display::rfb;
use crate::model::error::{Error, Reason, Result};
use crate::orchestrator::Orchestrator;
use crate::orchestrator::request::Target;

/// Bytes on the way in either direction; an update of the screen is made only when the one before has gone through.
const BUFFER: usize = 256 << 10;
/// Of one message.
const MAX_DATA: usize = 64 << 10;

pub(super) async fn open(
    orchestrator: &Orchestrator,
    request: Request<v1::OpenConsoleRequest>,
) -> Result<v1::OpenConsoleResponse> {
    let (caller, request) = (auth::of(&request)?, request.into_inner());
    let target = fields::target("target", &request.target)?;
    let (ticket, until) = orchestrator.open_console(&caller, target, request.view_only).await?;
    Ok(v1::OpenConsoleResponse { ticket, expire_time: Some(timestamp(until)) })
}

pub(super) async fn connect(
    orchestrator: &Orchestrator,
    request: Request<Streaming<v1::ConnectConsoleRequest>>,
) -> std::result::Result<Response<ResponseStream<v1::ConnectConsoleResponse>>, Status> {
    let (meta, extensions, mut incoming) = request.into_parts();
    let request = Request::from_parts(meta, extensions, ());
    let caller = auth::of(&request)?;
    let Some(Part::Ticket(name)) = guard::first(&mut incoming, "ticket").await?.part else {
        return Err(Error::field("ticket", "is required in the first message").into());
    };
    let ticket = orchestrator.take_ticket(&caller, &name)?;
    let mut right = if ticket.view_only {
        Guard::new(orchestrator, &request, &ticket.target).await?
    } else {
        Guard::driving(orchestrator, &request, &ticket.target).await?
    };
    let (ours, theirs) = tokio::io::duplex(BUFFER);
    let title = match &ticket.target {
        Target::Vm(vm) => format!("vms/{vm}"),
        Target::Lease(lease) => format!("leases/{lease}"),
    };
    let (hub, view_only) = (right.hub(), ticket.view_only);
    let console = async move {
        let serving = async {
            rfb::serve(&hub, &title, view_only, theirs)
                .await
                .map_err(|error| Error::new(Reason::ConsoleFailed, error.to_string()))
        };
        right.hold(serving).await
    };
    let ended = orchestrator.run_console(&caller, &ticket.target, console).await?;
    let (from, to) = tokio::io::split(ours);
    let (tell, wrong) = oneshot::channel();
    // Ends with the call, or with the console.
    tokio::spawn(carry_in(incoming, to, tell));
    let out = stream::unfold(Some((from, ended, wrong)), |state| async {
        let (mut from, ended, wrong) = state?;
        let mut data = vec![0; MAX_DATA];
        match from.read(&mut data).await {
            Ok(n @ 1..) => {
                data.truncate(n);
                Some((Ok(v1::ConnectConsoleResponse { data: data.into() }), Some((from, ended, wrong))))
            }
            _ => why(ended, wrong).await.map(|status| (Err(status), None)),
        }
    });
    Ok(Response::new(out.boxed()))
}

/// Why a console ended, if not because its viewer left.
async fn why(ended: oneshot::Receiver<Result<()>>, mut wrong: oneshot::Receiver<Error>) -> Option<Status> {
    let ended = ended.await;
    if let Ok(wrong) = wrong.try_recv() {
        return Some(wrong.into());
    }
    match ended {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.into()),
        Err(_) => Some(Error::new(Reason::ShuttingDown, "the daemon is stopping").into()),
    }
}

/// Until the caller has said all, or something that is `wrong`.
async fn carry_in(
    mut incoming: Streaming<v1::ConnectConsoleRequest>,
    mut to: WriteHalf<DuplexStream>,
    wrong: oneshot::Sender<Error>,
) {
    while let Ok(Some(message)) = incoming.message().await {
        match data(message) {
            Ok(data) => {
                if to.write_all(&data).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                // Nobody wants to know when the call is over.
                let _ = wrong.send(error);
                break;
            }
        }
    }
    // The console's own end: it sees that there is nobody any more.
    let _ = to.shutdown().await;
}

/// Of a message after the first.
fn data(message: v1::ConnectConsoleRequest) -> Result<Bytes> {
    match message.part {
        Some(Part::Data(data)) if data.len() <= MAX_DATA => Ok(data),
        Some(Part::Data(data)) => {
            let what = format!("has {} bytes, at most {MAX_DATA} are allowed", data.len());
            Err(Error::field("data", what))
        }
        Some(Part::Ticket(_)) => Err(Error::field("ticket", "is legal in the first message only")),
        None => Err(Error::field("data", "is required")),
    }
}
