//! `google.longrunning.Operations`.

use std::time::Duration;

use hvkube_proto::google::longrunning as lro;
use tonic::{Request, Response, Status};

use super::convert::operation;
use super::deadline::Deadline;
use super::fields;
use super::page::Paging;
use crate::model::error::{Class, Error, Result as DomainResult};
use crate::model::record::{Operation, Outcome, Work};
use crate::orchestrator::Orchestrator;

pub(crate) struct Operations(pub(crate) Orchestrator);

/// Longest single wait; a client that wants more asks again.
const MAX_WAIT: Duration = Duration::from_secs(600);
/// What is kept of a call's deadline to answer with the operation as it then is.
const ANSWER_TIME: Duration = Duration::from_millis(100);

impl Operations {
    /// The operation with what it made.
    async fn answer(&self, operation: &Operation) -> DomainResult<lro::Operation> {
        let made = match (&operation.outcome, &operation.work) {
            (Some(Outcome::Ready), Work::CreateTemplate(template)) => match self.0.template(template).await {
                Ok(template) => Some(template),
                Err(error) if error.class() == Class::NotFound => None,
                Err(error) => return Err(error),
            },
            _ => None,
        };
        Ok(operation::to_proto(operation, made.as_ref()))
    }
}

#[tonic::async_trait]
impl lro::operations_server::Operations for Operations {
    async fn list_operations(
        &self,
        request: Request<lro::ListOperationsRequest>,
    ) -> Result<Response<lro::ListOperationsResponse>, Status> {
        let request = request.into_inner();
        if !matches!(request.name.as_str(), "" | "operations") {
            return Err(Error::field("name", "must be empty or `operations`").into());
        }
        if !request.filter.is_empty() {
            return Err(Error::field("filter", "is not supported here; leave it empty").into());
        }
        let paging = Paging::new("ListOperations", &[], request.page_size, &request.page_token)?;
        let rows = self.0.operations(&paging.page()).await?;
        let (rows, next_page_token) = paging.finish(rows, |row| row.id.as_str());
        let mut operations = Vec::with_capacity(rows.len());
        for row in &rows {
            operations.push(self.answer(row).await?);
        }
        Ok(Response::new(lro::ListOperationsResponse {
            operations,
            next_page_token,
            unreachable: Vec::new(),
        }))
    }

    async fn get_operation(
        &self,
        request: Request<lro::GetOperationRequest>,
    ) -> Result<Response<lro::Operation>, Status> {
        let operation = self.0.operation(operation::id(&request.get_ref().name)?).await?;
        Ok(Response::new(self.answer(&operation).await?))
    }

    async fn delete_operation(
        &self,
        request: Request<lro::DeleteOperationRequest>,
    ) -> Result<Response<()>, Status> {
        self.0.delete_operation(operation::id(&request.get_ref().name)?).await?;
        Ok(Response::new(()))
    }

    async fn cancel_operation(
        &self,
        request: Request<lro::CancelOperationRequest>,
    ) -> Result<Response<()>, Status> {
        self.0.cancel_operation(operation::id(&request.get_ref().name)?).await?;
        Ok(Response::new(()))
    }

    async fn wait_operation(
        &self,
        request: Request<lro::WaitOperationRequest>,
    ) -> Result<Response<lro::Operation>, Status> {
        let deadline = request.extensions().get::<Deadline>().copied();
        let request = request.into_inner();
        let id = operation::id(&request.name)?;
        let asked =
            fields::duration("timeout", request.timeout, Duration::ZERO..=Duration::from_secs(86_400))?;
        let left = deadline.map_or(MAX_WAIT, |deadline| deadline.left().saturating_sub(ANSWER_TIME));
        let wait = asked.unwrap_or(MAX_WAIT).min(left).min(MAX_WAIT);
        let operation = self.0.wait_operation(id, wait).await?;
        Ok(Response::new(self.answer(&operation).await?))
    }
}
