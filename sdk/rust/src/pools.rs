//! Calls of `PoolService`.

use futures_util::stream::Stream;
use prost_types::FieldMask;

use crate::client::{Client, call, fresh_id};
use crate::error::Result;
use crate::names::qualify;
use crate::paging::pages;
use crate::v1::{
    CreatePoolRequest, DeletePoolRequest, GetPoolRequest, ListPoolsRequest, PausePoolRequest, Pool,
    ResumePoolRequest, UpdatePoolRequest,
};

impl Client {
    /// Makes a pool; its VMs follow in the background, see `Pool.status`. `id` may be empty: the daemon then makes one.
    ///
    /// # Errors
    /// `ALREADY_EXISTS`; `NOT_FOUND` for the template; `FAILED_PRECONDITION` (`TEMPLATE_NOT_READY`,
    /// `MEMORY_BEYOND_HOST`); `INVALID_ARGUMENT`.
    pub async fn create_pool(&self, id: &str, pool: Pool) -> Result<Pool> {
        let request = CreatePoolRequest { pool_id: id.to_owned(), pool: Some(pool), request_id: fresh_id() };
        call!(self, Repeatable, self.quick(), pools.create_pool(request))
    }

    /// Gets one pool by id or name.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub async fn get_pool(&self, name: &str) -> Result<Pool> {
        let request = GetPoolRequest { name: qualify("pools", name) };
        call!(self, Repeatable, self.quick(), pools.get_pool(request))
    }

    /// All pools by name.
    pub fn list_pools(&self) -> impl Stream<Item = Result<Pool>> + use<> {
        let client = self.clone();
        pages(move |page_token| {
            let client = client.clone();
            async move {
                let request = ListPoolsRequest { page_size: 0, page_token };
                let page = call!(client, Repeatable, client.quick(), pools.list_pools(request))?;
                Ok((page.pools, page.next_page_token))
            }
        })
    }

    /// Changes the named fields (proto names, e.g. `desired_count`) of `pool.name` to the values in `pool`.
    ///
    /// # Errors
    /// `NOT_FOUND`; `ABORTED` for a stale etag; `INVALID_ARGUMENT`.
    pub async fn update_pool(&self, pool: Pool, fields: &[&str]) -> Result<Pool> {
        let pool = Pool { name: qualify("pools", &pool.name), ..pool };
        let mask = FieldMask { paths: fields.iter().map(|field| (*field).to_owned()).collect() };
        let request = UpdatePoolRequest { pool: Some(pool), update_mask: Some(mask) };
        call!(self, Repeatable, self.quick(), pools.update_pool(request))
    }

    /// Stops a pool: nothing is leased out, made or deleted until [`Client::resume_pool`].
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub async fn pause_pool(&self, name: &str) -> Result<Pool> {
        let request = PausePoolRequest { name: qualify("pools", name), etag: String::new() };
        call!(self, Repeatable, self.quick(), pools.pause_pool(request))
    }

    /// Lets a paused pool work again.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub async fn resume_pool(&self, name: &str) -> Result<Pool> {
        let request = ResumePoolRequest { name: qualify("pools", name), etag: String::new() };
        call!(self, Repeatable, self.quick(), pools.resume_pool(request))
    }

    /// Deletes a pool and its VMs; `force` ends leases on them too.
    ///
    /// # Errors
    /// `NOT_FOUND`; `FAILED_PRECONDITION` (`POOL_HAS_LEASES`).
    pub async fn delete_pool(&self, name: &str, force: bool) -> Result<()> {
        let request = DeletePoolRequest { name: qualify("pools", name), force, etag: String::new() };
        call!(self, Once, self.moving(), pools.delete_pool(request))?;
        Ok(())
    }
}
