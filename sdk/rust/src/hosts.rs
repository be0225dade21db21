//! Calls of `HostService`.

use crate::client::{Client, call};
use crate::error::Result;
use crate::names::qualify;
use crate::v1::{GetHostRequest, Host};

impl Client {
    /// Gets a host by id or name; `-` is the one that answers.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub async fn get_host(&self, name: &str) -> Result<Host> {
        call!(self, Repeatable, self.quick(), hosts.get_host(GetHostRequest { name: qualify("hosts", name) }))
    }
}
