//! The one place where an error of the domain becomes a gRPC status.
//!
//! Every status carries `google.rpc.ErrorInfo`; what else it carries follows from the class. Internal errors are logged
//! here, once, with their whole chain and an id; the client gets the id.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, PreconditionViolation, StatusExt as _};
use uuid::Uuid;

use crate::model::error::{Class, Error, chain};

/// Domain of all reasons.
pub const DOMAIN: &str = "hvkube.dev";

/// Statuses travel in HTTP/2 headers, which clients limit to 8 KiB or so; longer texts are cut.
const MAX_MESSAGE: usize = 1024;
const MAX_VALUE: usize = 256;
const MAX_VIOLATIONS: usize = 8;

impl From<Error> for Status {
    fn from(mut error: Error) -> Self {
        if error.class() == Class::Internal {
            let id = Uuid::new_v4().simple().to_string();
            tracing::error!(id, reason = error.reason.as_str(), error = chain(&error), "internal error");
            error.message.push_str("; the daemon's log has the cause under ");
            error.message.push_str(&id);
            error.metadata.push(("error_id", id));
        }
        quiet(&error)
    }
}

/// The status of an error that needs no word in the log.
pub(crate) fn quiet(error: &Error) -> Status {
    let class = error.class();
    let message = clip(&error.message, MAX_MESSAGE);
    let metadata: HashMap<String, String> =
        error.metadata.iter().map(|(key, value)| ((*key).to_owned(), clip(value, MAX_VALUE))).collect();
    let resource = resource(&metadata);

    let mut details = ErrorDetails::with_error_info(error.reason.as_str(), DOMAIN, metadata);
    if !error.violations.is_empty() {
        let violations: Vec<_> = error
            .violations
            .iter()
            .take(MAX_VIOLATIONS)
            .map(|v| FieldViolation::new(clip(&v.field, MAX_VALUE), clip(&v.description, MAX_VALUE)))
            .collect();
        details.set_bad_request(violations);
    }
    if let Some(after) = error.retry_after {
        details.set_retry_info(Some(after));
    }
    match class {
        Class::NotFound | Class::AlreadyExists => {
            if let Some((kind, name)) = resource {
                details.set_resource_info(kind, name, "", &*message);
            }
        }
        Class::FailedPrecondition => {
            let subject = resource.map(|(_, name)| name).unwrap_or_default();
            let reason = error.reason.as_str();
            details.set_precondition_failure([PreconditionViolation::new(reason, subject, &*message)]);
        }
        _ => {}
    }
    Status::with_error_details(code(class), message, details)
}

fn code(class: Class) -> Code {
    match class {
        Class::InvalidArgument => Code::InvalidArgument,
        Class::NotFound => Code::NotFound,
        Class::AlreadyExists => Code::AlreadyExists,
        Class::FailedPrecondition => Code::FailedPrecondition,
        Class::Aborted => Code::Aborted,
        Class::PermissionDenied => Code::PermissionDenied,
        Class::Unauthenticated => Code::Unauthenticated,
        Class::ResourceExhausted => Code::ResourceExhausted,
        Class::Unavailable => Code::Unavailable,
        Class::DeadlineExceeded => Code::DeadlineExceeded,
        Class::OutOfRange => Code::OutOfRange,
        Class::Internal => Code::Internal,
    }
}

/// Type and name of the resource that an error is about: either `kind` and `id`, or the value under a kind's own key.
fn resource(metadata: &HashMap<String, String>) -> Option<(String, String)> {
    const KINDS: [&str; 7] = ["agent", "checkpoint", "lease", "vm", "pool", "template", "host"];
    let (kind, id) = match (metadata.get("kind"), metadata.get("id")) {
        (Some(kind), Some(id)) => (kind.as_str(), id),
        _ => KINDS.iter().find_map(|kind| Some((*kind, metadata.get(*kind)?)))?,
    };
    let name = match (kind, metadata.get("vm")) {
        ("checkpoint", Some(vm)) => format!("vms/{vm}/checkpoints/{id}"),
        ("operation", _) => format!("operations/{id}"),
        _ if KINDS.contains(&kind) => format!("{kind}s/{id}"),
        _ => id.clone(),
    };
    Some((format!("{DOMAIN}/{kind}"), name))
}

fn clip(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(max)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::error::Reason;
    use std::time::Duration;

    #[test]
    fn every_reason_has_a_code_and_an_error_info() {
        for reason in Reason::ALL {
            let status = Status::from(Error::new(*reason, "what").with("vm", "vm-1"));
            let info = status.get_details_error_info().expect("ErrorInfo");
            assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason.as_str(), DOMAIN));
            assert_eq!(info.metadata["vm"], "vm-1");
            assert_ne!(status.code(), Code::Ok);
            assert_ne!(status.code(), Code::Unknown);
        }
    }

    #[test]
    fn details_follow_the_class() {
        let status = Status::from(Error::not_found("vm", "gone"));
        let info = status.get_details_resource_info().expect("ResourceInfo");
        assert_eq!((info.resource_type.as_str(), info.resource_name.as_str()), ("hvkube.dev/vm", "vms/gone"));

        let status = Status::from(Error::field("pool.desired_count", "must be at most 10000"));
        let bad = status.get_details_bad_request().expect("BadRequest");
        assert_eq!(bad.field_violations[0].field, "pool.desired_count");

        let error = Error::new(Reason::PoolExhausted, "none free").retry_after(Duration::from_secs(3));
        let retry = Status::from(error).get_details_retry_info().expect("RetryInfo");
        assert_eq!(retry.retry_delay, Some(Duration::from_secs(3)));

        let status = Status::from(Error::new(Reason::LeaseEnded, "it is over").with("lease", "l1"));
        let failure = status.get_details_precondition_failure().expect("PreconditionFailure");
        assert_eq!(failure.violations[0].subject, "leases/l1");
        assert_eq!(failure.violations[0].r#type, "LEASE_ENDED");
    }

    #[test]
    fn a_client_sees_the_id_of_an_internal_error_but_not_its_cause() {
        let cause = std::io::Error::other("secret path /x");
        let status = Status::from(Error::internal(Reason::StoreFailed, "the store failed", cause));
        assert_eq!(status.code(), Code::Internal);
        assert!(!format!("{status:?}").contains("secret"));
        let id = &status.get_details_error_info().expect("ErrorInfo").metadata["error_id"];
        assert!(status.message().contains(id));
    }

    #[test]
    fn a_status_fits_into_headers() {
        let long = "ä".repeat(20_000);
        let mut error = Error::new(Reason::InvalidField, &*long).with("a", &long);
        for _ in 0..1000 {
            error = error.violation(&*long, &*long);
        }
        let status = Status::from(error);
        assert!(status.message().len() + status.details().len() < 8000);
    }
}
