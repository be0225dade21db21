//! Who calls: the middleware that turns a token into a [`Caller`].

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use tonic::Status;
use tracing::Instrument as _;

use super::tokens::Tokens;
use crate::model::error::{Error, Reason};
use crate::orchestrator::asked_by;
use crate::orchestrator::request::Caller;

/// Health is for load balancers and supervisors, which have no token.
const OPEN: &str = "/grpc.health.v1.Health/";

/// Lets calls through that show a token, with their [`Caller`] in the request's extensions.
pub(crate) async fn check(State(tokens): State<Arc<Tokens>>, mut request: Request, next: Next) -> Response {
    if request.uri().path().starts_with(OPEN) {
        return next.run(request).await;
    }
    match caller(&tokens, request.headers()) {
        Ok(caller) => {
            let span = tracing::debug_span!("call", path = request.uri().path(), caller = caller.name);
            let name = caller.name.clone();
            request.extensions_mut().insert(caller);
            asked_by(&name, next.run(request)).instrument(span).await
        }
        Err(error) => Status::from(error).into_http(),
    }
}

fn caller(tokens: &Tokens, headers: &HeaderMap) -> Result<Caller, Error> {
    let refused = |why: &str| {
        let path = tokens.admin_path().display().to_string();
        let message =
            format!("{why}; send `authorization: Bearer TOKEN`, the admin token is in {path} on the host");
        Error::new(Reason::Unauthenticated, message).with("admin_token_path", path)
    };
    let Some(header) = headers.get(AUTHORIZATION) else { return Err(refused("the call has no token")) };
    let token = header
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim());
    match token {
        None => Err(refused("the authorization header is not of the form `Bearer TOKEN`")),
        Some(token) => tokens.caller(token).ok_or_else(|| refused("the token is unknown")),
    }
}

/// The caller that [`check`] found, for what is the administrator's alone: a template opens any file that the daemon may read.
pub(crate) fn admin<T>(request: &tonic::Request<T>) -> Result<Caller, Error> {
    let caller = of(request)?;
    if caller.admin {
        return Ok(caller);
    }
    let why = "templates are made and deleted with the admin token only: they name files of the host";
    Err(Error::new(Reason::AdminOnly, why).with("caller", &caller.name))
}

/// The caller that [`check`] found.
pub(crate) fn of<T>(request: &tonic::Request<T>) -> Result<Caller, Error> {
    let caller = request.extensions().get::<Caller>();
    caller.cloned().ok_or_else(|| Error::new(Reason::Unauthenticated, "the call has no token"))
}
