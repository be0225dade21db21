//! `hvkube.v1.SecretService`.

use hvkube_proto::v1;
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use super::convert::timestamp;
use super::page::Paging;
use super::{auth, fields};
use crate::model::error::{Error, Result as DomainResult};
use crate::model::secret::{MAX_VALUE, Secret, SecretValue};
use crate::orchestrator::Orchestrator;
use crate::orchestrator::request::CreateSecret;

/// Most pools or callers of one secret.
const MAX_ALLOWED: usize = 64;
/// Longest name of a token.
const MAX_CALLER: usize = 63;

pub(crate) struct SecretService(pub(crate) Orchestrator);

fn create(request: v1::CreateSecretRequest) -> DomainResult<CreateSecret> {
    // From here on it is wiped, whatever else is wrong. The bytes that came over the wire are the transport's.
    let value = Zeroizing::new(request.value);
    fields::required_text("value", &value, MAX_VALUE)?;
    if value.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) {
        return Err(Error::field("value", "holds a control character that can't be typed"));
    }
    let secret = request.secret.unwrap_or_default();
    if !secret.name.is_empty() {
        return Err(Error::field("secret.name", "is made from secret_id and must be empty"));
    }
    let count = |field: &str, count: usize| {
        let what = format!("has {count} entries, at most {MAX_ALLOWED} are allowed");
        if count > MAX_ALLOWED { Err(Error::field(field, what)) } else { Ok(()) }
    };
    count("secret.allowed_pools", secret.allowed_pools.len())?;
    count("secret.allowed_callers", secret.allowed_callers.len())?;
    let pools = secret.allowed_pools.iter().enumerate();
    let allowed_pools = pools
        .map(|(i, pool)| fields::name(&format!("secret.allowed_pools[{i}]"), "pools", pool))
        .collect::<DomainResult<_>>()?;
    for (i, caller) in secret.allowed_callers.iter().enumerate() {
        fields::required_text(&format!("secret.allowed_callers[{i}]"), caller, MAX_CALLER)?;
    }
    Ok(CreateSecret {
        id: fields::id("secret_id", &request.secret_id)?,
        description: fields::text("secret.description", &secret.description, fields::DESCRIPTION)?.to_owned(),
        allowed_pools,
        allowed_callers: secret.allowed_callers,
        value: SecretValue::new(value),
        request: fields::uuid("request_id", &request.request_id)?,
    })
}

fn to_proto(secret: &Secret) -> v1::Secret {
    v1::Secret {
        name: format!("secrets/{}", secret.id),
        uid: secret.uid.to_string(),
        description: secret.description.clone(),
        allowed_pools: secret.allowed_pools.iter().map(|pool| format!("pools/{pool}")).collect(),
        allowed_callers: secret.allowed_callers.clone(),
        create_time: Some(timestamp(secret.created)),
    }
}

#[tonic::async_trait]
impl v1::secret_service_server::SecretService for SecretService {
    async fn create_secret(
        &self,
        request: Request<v1::CreateSecretRequest>,
    ) -> Result<Response<v1::Secret>, Status> {
        let caller = auth::of(&request)?;
        let secret = self.0.create_secret(&caller, create(request.into_inner())?).await?;
        Ok(Response::new(to_proto(&secret)))
    }

    async fn get_secret(
        &self,
        request: Request<v1::GetSecretRequest>,
    ) -> Result<Response<v1::Secret>, Status> {
        let caller = auth::of(&request)?;
        let id = fields::name("name", "secrets", &request.get_ref().name)?;
        Ok(Response::new(to_proto(&self.0.secret(&caller, &id).await?)))
    }

    async fn list_secrets(
        &self,
        request: Request<v1::ListSecretsRequest>,
    ) -> Result<Response<v1::ListSecretsResponse>, Status> {
        let caller = auth::of(&request)?;
        let request = request.into_inner();
        let paging = Paging::new("ListSecrets", &[], request.page_size, &request.page_token)?;
        let rows = self.0.secrets(&caller, &paging.page()).await?;
        let (rows, next_page_token) = paging.finish(rows, |secret| secret.id.as_str());
        let secrets = rows.iter().map(to_proto).collect();
        Ok(Response::new(v1::ListSecretsResponse { secrets, next_page_token }))
    }

    async fn delete_secret(&self, request: Request<v1::DeleteSecretRequest>) -> Result<Response<()>, Status> {
        let caller = auth::of(&request)?;
        let id = fields::name("name", "secrets", &request.get_ref().name)?;
        self.0.delete_secret(&caller, &id).await?;
        Ok(Response::new(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_name_their_field_and_show_no_value() {
        let value = "hunter2-hunter2";
        let with = |change: fn(&mut v1::CreateSecretRequest)| {
            let mut request = v1::CreateSecretRequest {
                value: value.into(),
                secret: Some(v1::Secret::default()),
                ..Default::default()
            };
            change(&mut request);
            match create(request) {
                Ok(_) => panic!("was not refused"),
                Err(mut error) => {
                    assert!(!format!("{error:?}").contains(value), "{error:?}");
                    error.violations.remove(0).field
                }
            }
        };
        assert_eq!(with(|r| r.value.clear()), "value");
        assert_eq!(with(|r| r.value.push('\u{1b}')), "value");
        assert_eq!(with(|r| r.value = r.value.repeat(1000)), "value");
        assert_eq!(with(|r| r.secret_id = "Not An Id".into()), "secret_id");
        assert_eq!(with(|r| r.request_id = "no uuid".into()), "request_id");
        let in_secret = |change: fn(&mut v1::Secret)| {
            let mut secret = v1::Secret::default();
            change(&mut secret);
            let request =
                v1::CreateSecretRequest { value: value.into(), secret: Some(secret), ..Default::default() };
            create(request).map(drop).expect_err("refused").violations.remove(0).field
        };
        assert_eq!(in_secret(|s| s.name = "secrets/x1".into()), "secret.name");
        assert_eq!(in_secret(|s| s.description = "x".repeat(257)), "secret.description");
        assert_eq!(in_secret(|s| s.allowed_pools = vec!["web".into()]), "secret.allowed_pools[0]");
        assert_eq!(in_secret(|s| s.allowed_pools = vec!["pools/web".into(); 65]), "secret.allowed_pools");
        assert_eq!(in_secret(|s| s.allowed_callers = vec![String::new()]), "secret.allowed_callers[0]");
    }
}
