//! Templates and the operations that prepare them.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{answered, check_etag, made_id, taken};
use crate::model::error::{Error, Reason, Result};
use crate::model::event::{Event, EventKind};
use crate::model::ids::TemplateId;
use crate::model::query::Page;
use crate::model::record::{Operation, Phase, Template, TemplateState, Work};
use crate::orchestrator::asked::asker;
use crate::orchestrator::request::CreateTemplate;
use crate::orchestrator::{Orchestrator, Shared, prepare};
use crate::store::StoreError;

/// How often a waiting caller looks at an operation: nobody waits for one in a hurry.
const LOOK_EVERY: Duration = Duration::from_millis(100);

impl Orchestrator {
    /// Checks a golden disk and begins to prepare it.
    ///
    /// # Errors
    /// [`Reason::AlreadyExists`], [`Reason::DiskNotFound`], [`Reason::DiskNotAnImage`], [`Reason::InvalidField`],
    /// [`Reason::MemoryBeyondHost`], [`Reason::NotSupported`]; nothing is left behind then.
    pub async fn create_template(&self, request: CreateTemplate) -> Result<Operation> {
        let this = self.clone();
        self.to_the_end(async move { this.create_template_now(request).await }).await
    }

    async fn create_template_now(&self, request: CreateTemplate) -> Result<Operation> {
        let shared = self.open()?;
        let _lock = shared.leases.lock(request.request.as_ref()).await;
        if let Some(operation) = answered(shared, request.request.as_ref()).await? {
            return self.operation(&operation).await;
        }
        let id = match request.id {
            Some(id) => id,
            None => TemplateId::new(made_id("template"))
                .map_err(|e| Error::field("template_id", e.to_string()))?,
        };
        // Reading a large disk takes minutes; meanwhile nobody else may begin a template of that name.
        let Some(_name) = shared.importing.begin(&id) else { return Err(Error::exists("template", &id)) };
        if shared.store.template(&id).await?.is_some() {
            return Err(Error::exists("template", &id));
        }
        check_host(shared, &request.spec)?;
        let disk = shared.hv.import_template(&id, &request.spec).await?;
        let now = Timestamp::now();
        let template = Template {
            id: id.clone(),
            uid: Uuid::new_v4(),
            display_name: request.display_name,
            spec: request.spec,
            installed_software: request.installed_software,
            rdp_port: request.rdp_port,
            state: TemplateState::Preparing,
            disk_sha256: disk.sha256,
            disk_size_bytes: disk.file_bytes,
            clone_method: None,
            os: String::new(),
            agent_version: String::new(),
            created: now,
            updated: now,
            version: 1,
        };
        let operation = Operation {
            id: format!("template-{}", Uuid::now_v7()),
            work: Work::CreateTemplate(id.clone()),
            phase: Phase::CheckingDisk,
            outcome: None,
            created: now,
            updated: now,
        };
        let event = Event::of_template(EventKind::TemplateCreated, &template, "", &asker());
        let inserted =
            shared.store.insert_template(&template, &operation, request.request.as_ref(), event).await;
        if let Err(error) = inserted {
            shared.hv.delete_template(&id).await?;
            return Err(taken("template", &id)(error));
        }
        let cancel = shared.stopping.child_token();
        shared.operations.insert(&operation.id, cancel.clone());
        let (task, work) = (shared.clone(), operation.clone());
        shared.leases.under_way.spawn(async move {
            let id = work.id.clone();
            prepare::run(task.clone(), template, work, cancel).await;
            task.operations.remove(&id);
        });
        Ok(operation)
    }

    /// One template.
    ///
    /// # Errors
    /// [`Reason::NotFound`].
    pub async fn template(&self, id: &TemplateId) -> Result<Template> {
        self.0.store.template(id).await?.ok_or_else(|| Error::not_found("template", id))
    }

    /// Templates by id.
    ///
    /// # Errors
    /// [`Reason::StoreFailed`].
    pub async fn templates(&self, page: &Page) -> Result<Vec<Template>> {
        Ok(self.0.store.templates(page).await?)
    }

    /// Removes a template and what was prepared of it.
    ///
    /// # Errors
    /// [`Reason::NotFound`], [`Reason::StaleEtag`], [`Reason::TemplateInUse`], [`Reason::TemplateNotReady`] while it is
    /// being prepared (cancel its operation instead).
    pub async fn delete_template(&self, id: &TemplateId, etag: Option<u64>) -> Result<()> {
        let this = self.clone();
        let id = id.clone();
        self.to_the_end(async move { this.delete_template_now(&id, etag).await }).await
    }

    async fn delete_template_now(&self, id: &TemplateId, etag: Option<u64>) -> Result<()> {
        let shared = self.open()?;
        let mut template = self.template(id).await?;
        check_etag("template", id.as_str(), etag, template.version)?;
        if template.state == TemplateState::Preparing {
            return Err(Error::new(
                Reason::TemplateNotReady,
                format!("template {id} is being prepared; cancel its operation to be rid of it"),
            )
            .with("template", id));
        }
        if shared.store.template_in_use(id).await? {
            return Err(in_use(id));
        }
        template.state = TemplateState::Deleting;
        template.updated = Timestamp::now();
        template.version += 1;
        let event = Event::of_template(EventKind::TemplateDeleting, &template, "asked to", &asker());
        shared.store.update_template(&template, event).await.map_err(taken("template", id))?;
        // A pool may have been made in between; the reference then keeps the row, and the template is put back.
        let event = Event::of_template(EventKind::TemplateDeleted, &template, "asked to", &asker());
        match shared.store.delete_template(id, event).await {
            Ok(()) => Ok(shared.hv.delete_template(id).await?),
            Err(StoreError::Referred(_)) => {
                template.state = TemplateState::Ready;
                template.version += 1;
                let event = Event {
                    duration: None,
                    ..Event::of_template(EventKind::TemplateReady, &template, "it is used after all", "")
                };
                shared.store.update_template(&template, event).await.map_err(taken("template", id))?;
                Err(in_use(id))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// One operation.
    ///
    /// # Errors
    /// [`Reason::NotFound`].
    pub async fn operation(&self, id: &str) -> Result<Operation> {
        self.0.store.operation(id).await?.ok_or_else(|| Error::not_found("operation", id))
    }

    /// Operations by id.
    ///
    /// # Errors
    /// [`Reason::StoreFailed`].
    pub async fn operations(&self, page: &Page) -> Result<Vec<Operation>> {
        Ok(self.0.store.operations(page).await?)
    }

    /// Gives an operation up; it ends soon after. One that has ended stays as it is.
    ///
    /// # Errors
    /// [`Reason::NotFound`].
    pub async fn cancel_operation(&self, id: &str) -> Result<()> {
        self.operation(id).await?;
        self.0.operations.cancel(id);
        Ok(())
    }

    /// Forgets an operation; one that goes on goes on.
    ///
    /// # Errors
    /// [`Reason::NotFound`].
    pub async fn delete_operation(&self, id: &str) -> Result<()> {
        self.operation(id).await?;
        Ok(self.0.store.delete_operation(id).await?)
    }

    /// Waits for an operation's end, and gives it as it is when the time is over.
    ///
    /// # Errors
    /// [`Reason::NotFound`].
    pub async fn wait_operation(&self, id: &str, limit: Duration) -> Result<Operation> {
        let deadline = Instant::now() + limit;
        loop {
            let operation = self.operation(id).await?;
            if operation.outcome.is_some() || Instant::now() >= deadline {
                return Ok(operation);
            }
            sleep(LOOK_EVERY.min(deadline.saturating_duration_since(Instant::now()))).await;
        }
    }
}

fn in_use(id: &TemplateId) -> Error {
    Error::new(Reason::TemplateInUse, format!("template {id} is used by a pool or a vm")).with("template", id)
}

/// What this host can't do is said before the disk is read.
fn check_host(shared: &Shared, spec: &crate::model::template::TemplateSpec) -> Result<()> {
    let able = shared.hv.capabilities();
    let name = shared.hv.facts().name;
    if spec.gpu && !able.gpu {
        return Err(Error::new(Reason::NotSupported, format!("{name} has no gpu shares on this host"))
            .with("hypervisor", name)
            .violation("template.gpu_enabled", "not supported here"));
    }
    if !able.networks.contains(&spec.network.mode()) {
        return Err(Error::new(Reason::NotSupported, format!("{name} has no such network on this host"))
            .with("hypervisor", name)
            .violation("template.network", "not supported here"));
    }
    let host_mb = super::host::memory().0 / (1 << 20);
    if spec.memory_mb > host_mb {
        return Err(Error::new(
            Reason::MemoryBeyondHost,
            format!("template.memory_mb: {} MiB is more than this host's {host_mb} MiB", spec.memory_mb),
        )
        .with("memory_mb", spec.memory_mb)
        .with("host_memory_mb", host_mb)
        .violation("template.memory_mb", format!("at most {host_mb} here")));
    }
    Ok(())
}
