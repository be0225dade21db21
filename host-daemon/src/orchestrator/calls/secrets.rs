//! Secrets: kept for the admin, typed for callers who may.

use std::sync::Arc;

use jiff::Timestamp;
use uuid::Uuid;

use super::made_id;
use crate::model::error::{Error, Reason, Result};
use crate::model::ids::SecretId;
use crate::model::input::InputEvent;
use crate::model::secret::{MAX_SECRETS, Secret, SecretValue, TypedText};
use crate::orchestrator::Orchestrator;
use crate::orchestrator::request::{Caller, CreateSecret, Page, Target};
use crate::store::vault::{Vault, VaultError};

impl Orchestrator {
    /// Keeps a secret.
    ///
    /// # Errors
    /// [`Reason::AdminOnly`], [`Reason::AlreadyExists`], [`Reason::TooManySecrets`], [`Reason::RequestIdReused`].
    pub async fn create_secret(&self, caller: &Caller, wanted: CreateSecret) -> Result<Secret> {
        admin(caller)?;
        let shared = self.open()?;
        // A repeat waits for the first call, and finds what it made.
        let _alone = shared.secrets.lock().await;
        if let Some(request) = wanted.request {
            let all = self.vault(|vault| vault.list("", MAX_SECRETS)).await?;
            if let Some(first) = all.into_iter().find(|secret| secret.request == Some(request)) {
                return repeated(first, &wanted);
            }
        }
        let id = match wanted.id {
            Some(id) => id,
            None => SecretId::new(made_id("secret"))
                .map_err(|error| Error::new(Reason::Internal, error.to_string()))?,
        };
        let now = Timestamp::now();
        let secret = Secret {
            id,
            uid: Uuid::new_v4(),
            description: wanted.description,
            allowed_pools: wanted.allowed_pools,
            allowed_callers: wanted.allowed_callers,
            // As it is read back.
            created: Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now),
            request: wanted.request,
        };
        let (kept, value) = (secret.clone(), wanted.value);
        self.vault(move |vault| vault.insert(&kept, &value)).await?;
        tracing::info!(secret = %secret.id, "secret kept");
        Ok(secret)
    }

    /// What is known of a secret.
    ///
    /// # Errors
    /// [`Reason::AdminOnly`], [`Reason::NotFound`].
    pub async fn secret(&self, caller: &Caller, id: &SecretId) -> Result<Secret> {
        admin(caller)?;
        let id = id.clone();
        self.vault(move |vault| vault.get(&id)).await
    }

    /// Secrets by id.
    ///
    /// # Errors
    /// [`Reason::AdminOnly`].
    pub async fn secrets(&self, caller: &Caller, page: &Page) -> Result<Vec<Secret>> {
        admin(caller)?;
        let (after, limit) = (page.after.clone(), page.limit as usize);
        self.vault(move |vault| vault.list(&after, limit)).await
    }

    /// Forgets a secret.
    ///
    /// # Errors
    /// [`Reason::AdminOnly`], [`Reason::NotFound`].
    pub async fn delete_secret(&self, caller: &Caller, id: &SecretId) -> Result<()> {
        admin(caller)?;
        let _alone = self.0.secrets.lock().await;
        let gone = id.clone();
        self.vault(move |vault| vault.remove(&gone)).await?;
        tracing::info!(secret = %id, "secret forgotten");
        Ok(())
    }

    /// Puts the values of secrets where events name them. The caller may drive the target; that was checked.
    ///
    /// # Errors
    /// [`Reason::SecretNotAllowed`], also for one that is not there; [`Reason::NotFound`] for the admin.
    pub async fn reveal_secrets(
        &self,
        caller: &Caller,
        target: &Target,
        events: &mut [InputEvent],
    ) -> Result<()> {
        let mut pool = None;
        for (index, event) in events.iter_mut().enumerate() {
            let InputEvent::Text { text, .. } = event else { continue };
            let TypedText::Named(id) = &*text else { continue };
            let pool = match &mut pool {
                Some(pool) => pool,
                None => {
                    let handle = self.target(caller, target).await?;
                    pool.insert(handle.look(|row| (row.id.clone(), row.pool.clone())))
                }
            };
            let value = self.reveal(caller, id, pool.1.as_ref()).await.map_err(|error| {
                error.with("index", index).violation(format!("events[{index}].text.secret"), "can't be typed")
            })?;
            tracing::info!(secret = %id, vm = %pool.0, caller = caller.name, "secret is typed");
            *text = TypedText::Secret(value);
        }
        Ok(())
    }

    async fn reveal(
        &self,
        caller: &Caller,
        id: &SecretId,
        pool: Option<&crate::model::ids::PoolId>,
    ) -> Result<SecretValue> {
        let wanted = id.clone();
        let denied = || {
            let why = format!("there is no secret {id} that you may have typed into this desktop");
            Error::new(Reason::SecretNotAllowed, why).with("secret", id)
        };
        match self.vault(move |vault| vault.reveal(&wanted)).await {
            Ok((secret, value)) if secret.allows(&caller.name, caller.admin, pool) => Ok(value),
            Ok(_) => Err(denied()),
            // Whoever may not list secrets does not learn which there are.
            Err(error) if error.reason == Reason::NotFound && !caller.admin => Err(denied()),
            Err(error) => Err(error),
        }
    }

    /// Does something with the vault on a thread that may block.
    async fn vault<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Vault) -> Result<T, VaultError> + Send + 'static,
    ) -> Result<T> {
        let vault = Arc::clone(&self.0.vault);
        match tokio::task::spawn_blocking(move || work(&vault)).await {
            Ok(result) => result.map_err(failed),
            Err(error) => Err(Error::internal(Reason::Internal, "the call failed", error)),
        }
    }
}

fn admin(caller: &Caller) -> Result<()> {
    if caller.admin {
        return Ok(());
    }
    let why = "secrets are kept, looked at and deleted with the admin token only";
    Err(Error::new(Reason::AdminOnly, why).with("caller", &caller.name))
}

/// The answer of the first call, where this one asks for the same.
fn repeated(first: Secret, wanted: &CreateSecret) -> Result<Secret> {
    let same = wanted.id.as_ref().is_none_or(|id| *id == first.id)
        && (&wanted.description, &wanted.allowed_pools, &wanted.allowed_callers)
            == (&first.description, &first.allowed_pools, &first.allowed_callers);
    if same {
        return Ok(first);
    }
    Err(Error::new(Reason::RequestIdReused, "")
        .violation("request_id", "was used before for another request"))
}

fn failed(error: VaultError) -> Error {
    match &error {
        VaultError::Exists(id) => Error::exists("secret", id),
        VaultError::Unknown(id) => Error::not_found("secret", id),
        VaultError::Full => Error::new(Reason::TooManySecrets, error.to_string()).with("max", MAX_SECRETS),
        _ => Error::internal(Reason::StoreFailed, "the secrets can't be read or written", error),
    }
}
