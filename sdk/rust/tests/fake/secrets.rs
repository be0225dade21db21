//! Secrets of the fake.

use hvkube_sdk::v1;
use hvkube_sdk::v1::secret_service_server::SecretService;
use tonic::{Code, Request, Response, Status};

use super::{Fake, refuse};

#[tonic::async_trait]
impl SecretService for Fake {
    async fn create_secret(
        &self,
        request: Request<v1::CreateSecretRequest>,
    ) -> Result<Response<v1::Secret>, Status> {
        let request = request.into_inner();
        let secret = v1::Secret {
            name: format!("secrets/{}", request.secret_id),
            uid: "0198a1b2-0000-7000-8000-000000000001".into(),
            ..request.secret.unwrap_or_default()
        };
        self.set(|seen| seen.secrets.push((secret.clone(), request.value)));
        Ok(Response::new(secret))
    }

    async fn get_secret(
        &self,
        request: Request<v1::GetSecretRequest>,
    ) -> Result<Response<v1::Secret>, Status> {
        self.find(&request.into_inner().name).map(Response::new)
    }

    async fn list_secrets(
        &self,
        _: Request<v1::ListSecretsRequest>,
    ) -> Result<Response<v1::ListSecretsResponse>, Status> {
        let secrets = self.seen().secrets.iter().map(|(secret, _)| secret.clone()).collect();
        Ok(Response::new(v1::ListSecretsResponse { secrets, next_page_token: String::new() }))
    }

    async fn delete_secret(&self, request: Request<v1::DeleteSecretRequest>) -> Result<Response<()>, Status> {
        let name = request.into_inner().name;
        self.find(&name)?;
        self.set(|seen| seen.secrets.retain(|(secret, _)| secret.name != name));
        Ok(Response::new(()))
    }
}

impl Fake {
    fn find(&self, name: &str) -> Result<v1::Secret, Status> {
        let found = self.seen().secrets.iter().find(|(secret, _)| secret.name == name).cloned();
        let message = || format!("there is no {name}");
        found.map(|(secret, _)| secret).ok_or_else(|| {
            refuse(Code::NotFound, "RESOURCE_NOT_FOUND", &message(), &[("kind", "secret"), ("id", name)])
        })
    }
}
