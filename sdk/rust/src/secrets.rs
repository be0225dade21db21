//! Calls of `SecretService`. All need the admin token.

use futures_util::stream::Stream;

use crate::client::{Client, call, fresh_id};
use crate::error::Result;
use crate::names::qualify;
use crate::paging::pages;
use crate::v1::{CreateSecretRequest, DeleteSecretRequest, GetSecretRequest, ListSecretsRequest, Secret};

impl Client {
    /// Keeps a secret, for [`Input::secret`](crate::Input::secret) to type. `id` may be empty: the daemon then makes one.
    /// `secret` says what it is for and who may use it; its name is left empty.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` (`ADMIN_ONLY`); `ALREADY_EXISTS`; `INVALID_ARGUMENT` for more than 4096 bytes.
    pub async fn create_secret(&self, id: &str, secret: Secret, value: &str) -> Result<Secret> {
        let request = CreateSecretRequest {
            secret_id: id.to_owned(),
            secret: Some(secret),
            value: value.to_owned(),
            request_id: fresh_id(),
        };
        call!(self, Repeatable, self.quick(), secrets.create_secret(request))
    }

    /// What is known of a secret, by id or name. Never its value.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` (`ADMIN_ONLY`); `NOT_FOUND`.
    pub async fn get_secret(&self, name: &str) -> Result<Secret> {
        let request = GetSecretRequest { name: qualify("secrets", name) };
        call!(self, Repeatable, self.quick(), secrets.get_secret(request))
    }

    /// All secrets by name, without their values.
    pub fn list_secrets(&self) -> impl Stream<Item = Result<Secret>> + use<> {
        let client = self.clone();
        pages(move |page_token| {
            let client = client.clone();
            async move {
                let request = ListSecretsRequest { page_size: 0, page_token };
                let page = call!(client, Repeatable, client.quick(), secrets.list_secrets(request))?;
                Ok((page.secrets, page.next_page_token))
            }
        })
    }

    /// Forgets a secret.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` (`ADMIN_ONLY`); `NOT_FOUND`.
    pub async fn delete_secret(&self, name: &str) -> Result<()> {
        let request = DeleteSecretRequest { name: qualify("secrets", name) };
        call!(self, Once, self.quick(), secrets.delete_secret(request))?;
        Ok(())
    }
}
