//! `hvkube.v1.TemplateService`.

use hvkube_proto::google::longrunning::Operation;
use hvkube_proto::v1;
use tonic::{Request, Response, Status};

use super::convert::{operation, template};
use super::page::Paging;
use super::{auth, fields};
use crate::orchestrator::Orchestrator;

pub(crate) struct TemplateService(pub(crate) Orchestrator);

#[tonic::async_trait]
impl v1::template_service_server::TemplateService for TemplateService {
    async fn create_template(
        &self,
        request: Request<v1::CreateTemplateRequest>,
    ) -> Result<Response<Operation>, Status> {
        let wanted = template::create(&auth::admin(&request)?, request.get_ref())?;
        let made = self.0.create_template(wanted).await?;
        Ok(Response::new(operation::to_proto(&made, None)))
    }

    async fn get_template(
        &self,
        request: Request<v1::GetTemplateRequest>,
    ) -> Result<Response<v1::Template>, Status> {
        let id = fields::name("name", "templates", &request.get_ref().name)?;
        Ok(Response::new(template::to_proto(&self.0.template(&id).await?)))
    }

    async fn list_templates(
        &self,
        request: Request<v1::ListTemplatesRequest>,
    ) -> Result<Response<v1::ListTemplatesResponse>, Status> {
        let request = request.into_inner();
        let paging = Paging::new("ListTemplates", &[], request.page_size, &request.page_token)?;
        let rows = self.0.templates(&paging.page()).await?;
        let (rows, next_page_token) = paging.finish(rows, |row| row.id.as_str());
        let templates = rows.iter().map(template::to_proto).collect();
        Ok(Response::new(v1::ListTemplatesResponse { templates, next_page_token }))
    }

    async fn delete_template(
        &self,
        request: Request<v1::DeleteTemplateRequest>,
    ) -> Result<Response<()>, Status> {
        auth::admin(&request)?;
        let request = request.into_inner();
        let id = fields::name("name", "templates", &request.name)?;
        self.0.delete_template(&id, fields::etag(&request.etag)?).await?;
        Ok(Response::new(()))
    }
}
