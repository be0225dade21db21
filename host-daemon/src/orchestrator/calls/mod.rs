//! What callers may ask, one file per kind of thing. Shapes were checked before; states and rights are checked here.

mod backup;
pub(super) mod consoles;
mod desktops;
pub(super) mod host;
mod leases;
mod masks;
mod pools;
mod secrets;
mod templates;
mod vms;

use tracing::Instrument as _;

use crate::model::error::{Error, Reason, Result};
use crate::model::query::RequestId;
use crate::orchestrator::asked::{asked_by, asker};
use crate::orchestrator::{Orchestrator, Shared};
use crate::store::StoreError;

impl Orchestrator {
    /// Runs a call's work to its end though its caller may go: what takes several steps is never left half-made.
    pub(in crate::orchestrator) async fn to_the_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let asker = asker();
        let work = async move { asked_by(&asker, work).await };
        match self.0.leases.under_way.spawn(work.in_current_span()).await {
            Ok(result) => result,
            Err(error) => Err(Error::internal(Reason::Internal, "the call failed", error)),
        }
    }
}

/// What an earlier call with this request id made; a different request with the same id is refused.
pub(super) async fn answered(shared: &Shared, request: Option<&RequestId>) -> Result<Option<String>> {
    let Some(request) = request else { return Ok(None) };
    match shared.store.answered(request.id).await? {
        None => Ok(None),
        Some(first) if first.fingerprint == request.fingerprint => Ok(Some(first.resource)),
        Some(_) => Err(Error::new(Reason::RequestIdReused, "")
            .with("request_id", request.id)
            .violation("request_id", "was used before for another request")),
    }
}

/// A taken id is the caller's business, anything else is ours.
fn taken(kind: &'static str, id: impl std::fmt::Display) -> impl FnOnce(StoreError) -> Error {
    move |error| match error {
        StoreError::Exists(what) if what == kind => Error::exists(kind, id),
        StoreError::Changed(what) if what == kind => {
            Error::new(Reason::StaleEtag, format!("{kind} {id} changed meanwhile"))
                .with("kind", kind)
                .with("id", id)
        }
        error => error.into(),
    }
}

/// Refuses an etag that is not the present one.
fn check_etag(kind: &'static str, id: &str, etag: Option<u64>, present: u64) -> Result<()> {
    match etag {
        Some(etag) if etag != present => {
            Err(Error::new(Reason::StaleEtag, format!("{kind} {id} is at another version than {etag}"))
                .with("kind", kind)
                .with("id", id)
                .with("etag", etag)
                .with("present", present))
        }
        _ => Ok(()),
    }
}

/// An id made here: its kind and some random characters.
fn made_id(kind: &str) -> String {
    let random = uuid::Uuid::new_v4().simple().to_string();
    format!("{kind}-{}", &random[..12])
}
