//! Long work: follow an operation to its end.

use std::time::Duration;

use futures_util::stream::Stream;
use hvkube_proto::google::longrunning::{
    CancelOperationRequest, GetOperationRequest, ListOperationsRequest, Operation, WaitOperationRequest,
    operation,
};
use prost::Message;
use tokio::time::{Instant, sleep_until};
use tonic::{Code, Status};

use crate::client::{Client, call};
use crate::error::{Error, Result};
use crate::paging::pages;
use crate::v1::CreateTemplateMetadata;

/// How long the daemon holds one answer; between two of them the caller hears of progress.
const SLICE: Duration = Duration::from_secs(1);
/// Shortest time between two questions, should the daemon answer at once.
const PACE: Duration = Duration::from_millis(200);

impl Client {
    /// Gets one operation, `operations/{id}`.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub async fn get_operation(&self, name: &str) -> Result<Operation> {
        call!(
            self,
            Repeatable,
            self.quick(),
            operations.get_operation(GetOperationRequest { name: name.to_owned() })
        )
    }

    /// All operations the daemon still knows.
    pub fn list_operations(&self) -> impl Stream<Item = Result<Operation>> + use<> {
        let client = self.clone();
        pages(move |page_token| {
            let client = client.clone();
            async move {
                let request = ListOperationsRequest { page_token, ..Default::default() };
                let page = call!(client, Repeatable, client.quick(), operations.list_operations(request))?;
                Ok((page.operations, page.next_page_token))
            }
        })
    }

    /// Asks an operation to stop; it ends with `CANCELLED` if it could.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub async fn cancel_operation(&self, name: &str) -> Result<()> {
        let request = CancelOperationRequest { name: name.to_owned() };
        call!(self, Repeatable, self.quick(), operations.cancel_operation(request))?;
        Ok(())
    }

    /// Waits for an operation's end and gives its result. `progress` sees every state on the way, at least one a second;
    /// use [`template_progress`] or the metadata itself. There is no deadline: drop the future to stop waiting, which
    /// leaves the operation running.
    ///
    /// # Errors
    /// What the operation ended with; [`Error::Protocol`] when the result is no `T`.
    pub async fn wait_operation<T: Message + Default>(
        &self,
        operation: Operation,
        mut progress: impl FnMut(&Operation) + Send,
    ) -> Result<T> {
        let done = self.follow_operation(operation, &mut progress).await?;
        match done.result {
            Some(operation::Result::Response(any)) => T::decode(any.value.as_slice())
                .map_err(|_| Error::Protocol("the operation's result cannot be decoded")),
            Some(operation::Result::Error(status)) => {
                let details = status.encode_to_vec().into();
                Err(self.error(Status::with_details(Code::from_i32(status.code), status.message, details)))
            }
            None => Err(Error::Protocol("the operation is done without a result")),
        }
    }

    /// Waits for an operation's end and gives its last state, failed or not.
    ///
    /// # Errors
    /// Only those of asking.
    pub async fn follow_operation(
        &self,
        mut operation: Operation,
        progress: &mut (impl FnMut(&Operation) + Send),
    ) -> Result<Operation> {
        progress(&operation);
        while !operation.done {
            let pace = Instant::now() + PACE;
            let request = WaitOperationRequest {
                name: operation.name.clone(),
                timeout: prost_types::Duration::try_from(SLICE).ok(),
            };
            operation = match call!(self, Repeatable, self.after(SLICE), operations.wait_operation(request)) {
                Err(err) if err.code() == Code::Unimplemented => self.get_operation(&operation.name).await?,
                answer => answer?,
            };
            progress(&operation);
            if !operation.done {
                sleep_until(pace).await;
            }
        }
        Ok(operation)
    }
}

/// How far the making of a template is; `None` for operations of another kind.
#[must_use]
pub fn template_progress(operation: &Operation) -> Option<CreateTemplateMetadata> {
    let any = operation.metadata.as_ref()?;
    if any.type_url.rsplit('/').next() != Some("hvkube.v1.CreateTemplateMetadata") {
        return None;
    }
    CreateTemplateMetadata::decode(any.value.as_slice()).ok()
}
