//! Calls of `TemplateService`.

use futures_util::stream::Stream;
use hvkube_proto::google::longrunning::Operation;

use crate::client::{Client, call, fresh_id};
use crate::error::Result;
use crate::names::qualify;
use crate::paging::pages;
use crate::v1::{
    CreateTemplateRequest, DeleteTemplateRequest, GetTemplateRequest, ListTemplatesRequest, Template,
};

impl Client {
    /// Starts making a template; follow it with [`Client::wait_operation`]. `id` may be empty: the daemon then makes one.
    ///
    /// # Errors
    /// `ALREADY_EXISTS`; `INVALID_ARGUMENT` (`DISK_NOT_FOUND`, `DISK_NOT_AN_IMAGE` and other fields);
    /// `FAILED_PRECONDITION` (`MEMORY_BEYOND_HOST`).
    pub async fn create_template(&self, id: &str, template: Template) -> Result<Operation> {
        let request = CreateTemplateRequest {
            template_id: id.to_owned(),
            template: Some(template),
            request_id: fresh_id(),
        };
        // The disk is hashed before the answer at worst, so this is no quick call.
        call!(self, Repeatable, self.moving(), templates.create_template(request))
    }

    /// Gets one template by id or name.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub async fn get_template(&self, name: &str) -> Result<Template> {
        let request = GetTemplateRequest { name: qualify("templates", name) };
        call!(self, Repeatable, self.quick(), templates.get_template(request))
    }

    /// All templates by name.
    pub fn list_templates(&self) -> impl Stream<Item = Result<Template>> + use<> {
        let client = self.clone();
        pages(move |page_token| {
            let client = client.clone();
            async move {
                let request = ListTemplatesRequest { page_size: 0, page_token };
                let page = call!(client, Repeatable, client.quick(), templates.list_templates(request))?;
                Ok((page.templates, page.next_page_token))
            }
        })
    }

    /// Deletes a template by id or name.
    ///
    /// # Errors
    /// `NOT_FOUND`; `FAILED_PRECONDITION` (`TEMPLATE_IN_USE`).
    pub async fn delete_template(&self, name: &str) -> Result<()> {
        let request = DeleteTemplateRequest { name: qualify("templates", name), etag: String::new() };
        // A repeat of one that got through would answer NOT_FOUND, so it is not repeated.
        call!(self, Once, self.moving(), templates.delete_template(request))?;
        Ok(())
    }
}
