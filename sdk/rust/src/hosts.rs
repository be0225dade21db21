//! Calls of `HostService`.

use hvkube_proto::google::longrunning::Operation;

use crate::client::{Client, call, fresh_id};
use crate::error::Result;
use crate::names::qualify;
use crate::v1::{BackupStoreRequest, GetHostRequest, Host};

impl Client {
    /// Gets a host by id or name; `-` is the one that answers.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub async fn get_host(&self, name: &str) -> Result<Host> {
        call!(self, Repeatable, self.quick(), hosts.get_host(GetHostRequest { name: qualify("hosts", name) }))
    }

    /// Has the daemon write a consistent copy of its store into a file of its host, an absolute path. Follow the operation
    /// with [`Client::wait_operation`], which gives a [`BackupStoreResponse`](crate::v1::BackupStoreResponse).
    ///
    /// # Errors
    /// `PERMISSION_DENIED` (`ADMIN_ONLY`); `ALREADY_EXISTS` unless `overwrite` is set; `INVALID_ARGUMENT`.
    pub async fn backup_store(&self, path: &str, overwrite: bool) -> Result<Operation> {
        let request = BackupStoreRequest {
            name: "hosts/-".to_owned(),
            path: path.to_owned(),
            overwrite,
            request_id: fresh_id(),
        };
        call!(self, Repeatable, self.quick(), hosts.backup_store(request))
    }
}
