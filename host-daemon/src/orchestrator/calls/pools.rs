//! Pools.

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{answered, check_etag, made_id, taken};
use crate::model::error::{Error, Reason, Result};
use crate::model::event::{Event, EventKind};
use crate::model::ids::{PoolId, TemplateId};
use crate::model::query::Page;
use crate::model::record::{Pool, PoolSpec, Template, TemplateState};
use crate::orchestrator::actor::Actor;
use crate::orchestrator::asked::asker;
use crate::orchestrator::request::{Caller, CreatePool, UpdatePool};
use crate::orchestrator::view::PoolView;
use crate::orchestrator::{Orchestrator, pools};
use crate::store::StoreError;

impl Orchestrator {
    /// Makes a pool; its VMs follow.
    ///
    /// # Errors
    /// [`Reason::AlreadyExists`], [`Reason::NotFound`] for its template, [`Reason::TemplateNotReady`].
    pub async fn create_pool(&self, request: CreatePool) -> Result<PoolView> {
        let this = self.clone();
        self.to_the_end(async move { this.create_pool_now(request).await }).await
    }

    async fn create_pool_now(&self, request: CreatePool) -> Result<PoolView> {
        let shared = self.open()?;
        let _lock = shared.leases.lock(request.request.as_ref()).await;
        if let Some(pool) = answered(shared, request.request.as_ref()).await? {
            let id = PoolId::new(pool).map_err(|error| Error::field("pool_id", error.to_string()))?;
            return self.pool(&id).await;
        }
        let id = match request.id {
            Some(id) => id,
            None => PoolId::new(made_id("pool")).map_err(|e| Error::field("pool_id", e.to_string()))?,
        };
        let template = self.ready_template(&request.spec.template).await?;
        check_idle(&request.spec)?;
        let now = Timestamp::now();
        let pool = Pool {
            id: id.clone(),
            uid: Uuid::new_v4(),
            spec: request.spec,
            deleting: false,
            paused: false,
            created: now,
            updated: now,
            version: 1,
        };
        let event = Event::of_pool(EventKind::PoolCreated, &pool, &asker());
        shared.store.insert_pool(&pool, request.request.as_ref(), event).await.map_err(
            |error| match error {
                // It was deleted since we looked.
                StoreError::Referred(_) => Error::not_found("template", &template.id),
                error => taken("pool", &id)(error),
            },
        )?;
        tracing::info!(pool = %id, desired = pool.spec.desired, "pool made");
        pools::control(shared, id, false);
        Ok(self.view(pool))
    }

    /// One pool.
    ///
    /// # Errors
    /// [`Reason::NotFound`].
    pub async fn pool(&self, id: &PoolId) -> Result<PoolView> {
        Ok(self.view(self.pool_row(id).await?))
    }

    /// Pools by id.
    ///
    /// # Errors
    /// [`Reason::StoreFailed`].
    pub async fn pools(&self, page: &Page) -> Result<Vec<PoolView>> {
        Ok(self.0.store.pools(page).await?.into_iter().map(|pool| self.view(pool)).collect())
    }

    /// Changes a pool's settings.
    ///
    /// # Errors
    /// [`Reason::NotFound`], [`Reason::StaleEtag`], [`Reason::InvalidField`] when they don't fit together.
    pub async fn update_pool(&self, id: &PoolId, etag: Option<u64>, change: UpdatePool) -> Result<PoolView> {
        let (this, id) = (self.clone(), id.clone());
        self.to_the_end(async move { this.update_pool_now(&id, etag, change).await }).await
    }

    async fn update_pool_now(&self, id: &PoolId, etag: Option<u64>, change: UpdatePool) -> Result<PoolView> {
        let shared = self.open()?;
        let mut pool = self.pool_row(id).await?;
        check_etag("pool", id.as_str(), etag, pool.version)?;
        if let Some(template) = &change.template {
            self.ready_template(template).await?;
        }
        let template = change.template.clone();
        change.apply(&mut pool.spec);
        let spec = &pool.spec;
        if spec.default_ttl > spec.max_ttl {
            return Err(Error::field("pool.default_lease_ttl", "must not be longer than max_lease_ttl"));
        }
        check_idle(spec)?;
        pool.updated = Timestamp::now();
        pool.version += 1;
        let event = Event::of_pool(EventKind::PoolChanged, &pool, &asker());
        shared.store.update_pool(&pool, event).await.map_err(|error| match (error, &template) {
            (StoreError::Referred(_), Some(template)) => Error::not_found("template", template),
            (error, _) => taken("pool", id)(error),
        })?;
        // Whatever was wrong may be right now.
        shared.pools.hurry(&pool.spec.template);
        shared.pools.wake(id);
        Ok(self.view(pool))
    }

    /// Stops a pool, or lets it work again.
    ///
    /// # Errors
    /// [`Reason::NotFound`], [`Reason::StaleEtag`].
    pub async fn pause_pool(&self, id: &PoolId, etag: Option<u64>, paused: bool) -> Result<PoolView> {
        let (this, id) = (self.clone(), id.clone());
        self.to_the_end(async move { this.pause_pool_now(&id, etag, paused).await }).await
    }

    /// What is written must come to be true of the controller, whether or not the caller waits for it.
    async fn pause_pool_now(&self, id: &PoolId, etag: Option<u64>, paused: bool) -> Result<PoolView> {
        let shared = self.open()?;
        let mut pool = self.pool_row(id).await?;
        check_etag("pool", id.as_str(), etag, pool.version)?;
        if pool.paused != paused {
            pool.paused = paused;
            pool.updated = Timestamp::now();
            pool.version += 1;
            let kind = if paused { EventKind::PoolPaused } else { EventKind::PoolResumed };
            let event = Event::of_pool(kind, &pool, &asker());
            shared.store.update_pool(&pool, event).await.map_err(taken("pool", id))?;
            tracing::info!(pool = %id, paused, "pool paused or resumed");
        }
        shared.pools.pause(id, paused);
        Ok(self.view(pool))
    }

    async fn ready_template(&self, id: &TemplateId) -> Result<Template> {
        let template = self.template(id).await?;
        if template.state == TemplateState::Ready {
            return Ok(template);
        }
        let why = format!("template {id} is not ready yet");
        Err(Error::new(Reason::TemplateNotReady, why).with("template", id))
    }

    /// Deletes a pool with its VMs, and answers when they are gone. It goes on when the caller does not wait.
    ///
    /// # Errors
    /// [`Reason::NotFound`], [`Reason::StaleEtag`], [`Reason::PoolHasLeases`] without `force`, [`Reason::LeaseNotYours`]
    /// with it.
    pub async fn delete_pool(
        &self,
        caller: &Caller,
        id: &PoolId,
        force: bool,
        etag: Option<u64>,
    ) -> Result<()> {
        let this = self.clone();
        let (caller, id) = (caller.clone(), id.clone());
        let over =
            self.to_the_end(async move { this.delete_pool_now(&caller, &id, force, etag).await }).await?;
        if let Some(over) = over {
            over.cancelled().await;
        }
        // If the daemon stops, its next start goes on with it.
        self.open().map(|_| ())
    }

    async fn delete_pool_now(
        &self,
        caller: &Caller,
        id: &PoolId,
        force: bool,
        etag: Option<u64>,
    ) -> Result<Option<CancellationToken>> {
        let shared = self.open()?;
        let mut pool = self.pool_row(id).await?;
        check_etag("pool", id.as_str(), etag, pool.version)?;
        if !force {
            self.refuse_leases(id)?;
        } else if !caller.admin {
            let mut others = 0;
            shared.registry.each_of(id, |row| {
                let not_theirs = |lease| !shared.leases.is_holder(lease, &caller.name);
                others += usize::from(row.lease.as_ref().is_some_and(not_theirs));
            });
            if others > 0 {
                let why = format!("{others} vms of pool {id} are leased by somebody else");
                return Err(Error::new(Reason::LeaseNotYours, why).with("pool", id));
            }
        }
        pool.deleting = true;
        pool.updated = Timestamp::now();
        pool.version += 1;
        let marked = async {
            if !force {
                shared.pools.close(id);
                // A grant that was under way has been made when its actor comes to this, and none is made after it.
                self.of_each(id, |_| Box::pin(async { Ok(()) })).await?;
                self.refuse_leases(id)?;
            }
            let event = Event::of_pool(EventKind::PoolDeleting, &pool, &asker());
            shared.store.update_pool(&pool, event).await.map_err(taken("pool", id))
        };
        if let Err(error) = marked.await {
            shared.pools.reopen(id);
            return Err(error);
        }
        shared.pools.close_queue(id);
        if force {
            self.of_each(id, |vm| Box::pin(vm.revoke("its pool was deleted"))).await?;
        }
        let over = shared.pools.over(id);
        shared.pools.wake(id);
        Ok(over)
    }

    /// Has the actor of each VM of a pool do something.
    async fn of_each(
        &self,
        id: &PoolId,
        what: impl for<'a> Fn(&'a mut Actor) -> BoxFuture<'a, Result<()>> + Copy + Send + 'static,
    ) -> Result<()> {
        for handle in self.0.registry.all() {
            if handle.look(|row| row.pool.as_ref() == Some(id)) {
                match handle.call(what).await {
                    // It is gone, which is as good.
                    Err(error) if error.reason != Reason::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn refuse_leases(&self, id: &PoolId) -> Result<()> {
        let mut held = 0;
        self.0.registry.each_of(id, |row| held += usize::from(row.lease.is_some()));
        if held == 0 {
            return Ok(());
        }
        let why = format!("{held} vms of pool {id} are leased");
        Err(Error::new(Reason::PoolHasLeases, why).with("pool", id).with("leases", held))
    }

    pub(super) async fn pool_row(&self, id: &PoolId) -> Result<Pool> {
        let pool = self.0.store.pool(id).await?;
        pool.filter(|pool| !pool.deleting).ok_or_else(|| Error::not_found("pool", id))
    }

    fn view(&self, pool: Pool) -> PoolView {
        PoolView { status: pools::status(&self.0, &pool), pool }
    }
}

/// Refuses a floor and a ceiling that do not fit together.
fn check_idle(spec: &PoolSpec) -> Result<()> {
    match (spec.options.idle_floor, spec.options.idle_ceiling) {
        (None, Some(_)) => Err(Error::field("pool.idle_ceiling", "needs idle_floor")),
        (Some(floor), Some(ceiling)) if ceiling < floor => {
            Err(Error::field("pool.idle_ceiling", format!("must be at least idle_floor, which is {floor}")))
        }
        _ => Ok(()),
    }
}
