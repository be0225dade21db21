//! The bytes of a console between a call and the desktop.

use futures_util::stream::{self, StreamExt as _};
use hvkube_proto::v1;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, WriteHalf};
use tokio::sync::oneshot;
use tonic::{Request, Response, Status, Streaming};
use v1::connect_console_request::Part;

use super::convert::timestamp;
use super::guard::{Guard, ResponseStream};
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
    let Some(Part::Ticket(name)) = incoming.message().await?.and_then(|first| first.part) else {
        return Err(Error::field("ticket", "must be in the first message").into());
    };
    let ticket = orchestrator.take_ticket(&caller, &name)?;
    let mut guard = Guard::new(orchestrator, &request, &ticket.target).await?;
    let (ours, theirs) = tokio::io::duplex(BUFFER);
    let title = match &ticket.target {
        Target::Vm(vm) => format!("vms/{vm}"),
        Target::Lease(lease) => format!("leases/{lease}"),
    };
    let (hub, view_only) = (guard.hub(), ticket.view_only);
    let console = async move {
        let serving = async {
            rfb::serve(&hub, &title, view_only, theirs)
                .await
                .map_err(|error| Error::new(Reason::ConsoleFailed, error.to_string()))
        };
        guard.hold(serving).await
    };
    let ended = orchestrator.run_console(&caller, &ticket.target, console).await?;
    let (from, to) = tokio::io::split(ours);
    // Ends with the call, or with the console.
    tokio::spawn(carry_in(incoming, to));
    let out = stream::unfold(Some((from, ended)), |state| async {
        let (mut from, ended) = state?;
        let mut data = vec![0; MAX_DATA];
        match from.read(&mut data).await {
            Ok(n @ 1..) => {
                data.truncate(n);
                Some((Ok(v1::ConnectConsoleResponse { data: data.into() }), Some((from, ended))))
            }
            _ => why(ended).await.map(|status| (Err(status), None)),
        }
    });
    Ok(Response::new(out.boxed()))
}

/// Why a console ended, if not because its viewer left.
async fn why(ended: oneshot::Receiver<Result<()>>) -> Option<Status> {
    match ended.await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.into()),
        Err(_) => Some(Error::new(Reason::ShuttingDown, "the daemon is stopping").into()),
    }
}

async fn carry_in(mut incoming: Streaming<v1::ConnectConsoleRequest>, mut to: WriteHalf<DuplexStream>) {
    while let Ok(Some(message)) = incoming.message().await {
        let Some(Part::Data(data)) =
            message.part.filter(|part| matches!(part, Part::Data(data) if data.len() <= MAX_DATA))
        else {
            break;
        };
        if to.write_all(&data).await.is_err() {
            return;
        }
    }
    // The console's own end: it sees that there is nobody any more.
    let _ = to.shutdown().await;
}
