//! Calls about programs and files.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::stream::{self, BoxStream, Stream, StreamExt as _};
use hvkube_proto::guest::v1 as pb;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tonic::Streaming;

use super::error::GuestError;
use super::session::{Session, request};
use super::types::{ExecEvent, ExecParams, ExecStream, FileReader, ReadParams, WriteParams};
use super::wire;

impl Session {
    /// Runs a program without a shell. Dropping the stream kills its process group.
    ///
    /// # Errors
    /// [`GuestError::NotFound`] when there is no such program; [`GuestError::PermissionDenied`] also for root where the
    /// agent does not allow it; [`GuestError::Invalid`]. After the start, errors come through the stream.
    pub async fn exec(&self, params: ExecParams, deadline: Instant) -> Result<ExecStream, GuestError> {
        let message = pb::ExecRequest {
            argv: params.argv,
            env: params.env.into_iter().collect(),
            cwd: params.cwd,
            stdin: params.stdin,
            timeout: params.timeout.map(wire::duration),
            as_root: params.as_root,
        };
        let mut client = self.process();
        let events = self.call("run the program", deadline, client.exec(message)).await?.into_inner();
        Ok(self.guard(events, deadline, "finish the program", ExecOrder::default()))
    }

    /// Opens a file and streams its bytes.
    ///
    /// # Errors
    /// [`GuestError::NotFound`], [`GuestError::PermissionDenied`], [`GuestError::Invalid`].
    pub async fn read_file(&self, params: ReadParams, deadline: Instant) -> Result<FileReader, GuestError> {
        let message = pb::ReadFileRequest {
            path: params.path,
            offset: params.offset,
            limit: params.limit,
            as_root: params.as_root,
        };
        let mut client = self.process();
        let (first, parts) = self
            .call("open the file", deadline, async {
                let mut parts = client.read_file(message).await?.into_inner();
                Ok((parts.message().await?, parts))
            })
            .await?;
        let Some(pb::read_file_response::Part::Info(info)) = first.and_then(|first| first.part) else {
            return Err(GuestError::Protocol("a file without its header".to_owned()));
        };
        let limit = if params.limit == 0 { u64::MAX } else { params.limit };
        let data = self.guard(parts, deadline, "send the file", FileOrder { left: limit });
        Ok(FileReader { info: wire::file_info(info), data })
    }

    /// Writes a file; it appears whole or not at all (with `append`: it may grow by a part). An error of `data` gives
    /// the transfer up. Pieces are 1 MiB at most. Answers with the bytes written.
    ///
    /// # Errors
    /// [`GuestError::PermissionDenied`], [`GuestError::NotFound`] for a missing directory, [`GuestError::Aborted`].
    pub async fn write_file<E: std::fmt::Display + Send + 'static>(
        &self,
        params: WriteParams,
        data: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
        deadline: Instant,
    ) -> Result<u64, GuestError> {
        use pb::write_file_request::Part;
        let header = pb::WriteFileHeader {
            path: params.path,
            mode: params.mode,
            append: params.append,
            make_parents: params.make_parents,
            as_root: params.as_root,
        };
        // A request stream that ends means "that was all". On an error it must not end; dropping the whole call is what
        // tells the guest to forget the file.
        let (give_up, given_up) = oneshot::channel();
        let give_up = Arc::new(Mutex::new(Some(give_up)));
        let data = data.then(move |piece| {
            let give_up = give_up.clone();
            async move {
                match piece {
                    Ok(piece) => Part::Data(piece),
                    Err(error) => {
                        if let Some(tell) = give_up.lock().unwrap_or_else(PoisonError::into_inner).take() {
                            let _ = tell.send(error.to_string());
                        }
                        std::future::pending().await
                    }
                }
            }
        });
        let parts = stream::once(std::future::ready(Part::Header(header)))
            .chain(data)
            .map(|part| pb::WriteFileRequest { part: Some(part) });
        let mut client = self.process();
        // Boxed, or the compiler can't see that the futures of our callers are `Send`.
        let answer = client.write_file(request(parts.boxed(), deadline)).boxed();
        let call = self.call("write the file", deadline, answer).boxed();
        tokio::select! {
            result = call => result.map(|answer| answer.into_inner().bytes_written),
            Ok(why) = given_up => Err(GuestError::Aborted(why)),
        }
    }

    /// The events of a server stream, in the host's types, until its end, its first error or the deadline.
    fn guard<P, O>(
        &self,
        parts: Streaming<P>,
        deadline: Instant,
        what: &'static str,
        order: O,
    ) -> BoxStream<'static, Result<O::Item, GuestError>>
    where
        P: Send + 'static,
        O: Order<P> + Send + 'static,
        O::Item: Send,
    {
        // The stream holds the session, or its owner's going away would cut it off.
        let session = self.clone();
        stream::unfold(Some((session, parts, order)), move |state| async move {
            let (session, mut parts, mut order) = state?;
            let mut ended = std::pin::pin!(session.closed());
            let next = tokio::select! {
                biased;
                next = timeout_at(deadline, parts.message()) => next,
                why = &mut ended => return Some((Err(GuestError::Lost(why)), None)),
            };
            let item = match next {
                Err(_) => Err(GuestError::Timeout(what)),
                Ok(Err(status)) => Err(session.error(&status, what)),
                Ok(Ok(None)) => match order.end() {
                    Ok(()) => return None,
                    Err(error) => Err(error),
                },
                Ok(Ok(Some(part))) => order.next(part),
            };
            let state = item.is_ok().then_some((session, parts, order));
            Some((item, state))
        })
        .boxed()
    }
}

/// The order in which a stream's parts must come.
pub(super) trait Order<P> {
    type Item;
    fn next(&mut self, part: P) -> Result<Self::Item, GuestError>;
    fn end(&self) -> Result<(), GuestError>;
}

#[derive(Default)]
pub(super) struct ExecOrder {
    started: bool,
    exited: bool,
}

impl Order<pb::ExecResponse> for ExecOrder {
    type Item = ExecEvent;

    fn next(&mut self, part: pb::ExecResponse) -> Result<ExecEvent, GuestError> {
        use pb::exec_response::Event as E;
        let event = match part.event {
            Some(E::Started(pid)) if !self.started => {
                self.started = true;
                return Ok(ExecEvent::Started { pid });
            }
            Some(E::Stdout(data)) => ExecEvent::Stdout(data),
            Some(E::Stderr(data)) => ExecEvent::Stderr(data),
            Some(E::Exit(exit)) => {
                ExecEvent::Exited { code: exit.code, signal: exit.signal, timed_out: exit.timed_out }
            }
            Some(E::Started(_)) | None => {
                return Err(GuestError::Protocol("an unknown event of a program".to_owned()));
            }
        };
        if !self.started || self.exited {
            return Err(GuestError::Protocol("events of a program out of order".to_owned()));
        }
        self.exited = matches!(event, ExecEvent::Exited { .. });
        Ok(event)
    }

    fn end(&self) -> Result<(), GuestError> {
        if self.exited { Ok(()) } else { Err(GuestError::Protocol("a program without an end".to_owned())) }
    }
}

pub(super) struct FileOrder {
    pub(super) left: u64,
}

impl Order<pb::ReadFileResponse> for FileOrder {
    type Item = Bytes;

    fn next(&mut self, part: pb::ReadFileResponse) -> Result<Bytes, GuestError> {
        let Some(pb::read_file_response::Part::Data(data)) = part.part else {
            return Err(GuestError::Protocol("parts of a file out of order".to_owned()));
        };
        self.left = self
            .left
            .checked_sub(data.len() as u64)
            .ok_or_else(|| GuestError::Protocol("more bytes than asked for".to_owned()))?;
        Ok(data)
    }

    fn end(&self) -> Result<(), GuestError> {
        Ok(())
    }
}
