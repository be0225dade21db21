//! What can go wrong, and what the daemon says about it.
//!
//! The daemon answers errors with `google.rpc` details; [`ApiError`] has them decoded. Programs should decide by
//! [`Error::reason`] (stable, `UPPER_SNAKE`) and [`Error::code`], never by text.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::time::Duration;
use std::{fmt, io};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, PreconditionViolation, ResourceInfo, StatusExt};

use crate::desktop::LeaseLost;

/// Result of this crate's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No connection could be made, so nothing was asked.
    #[error("cannot reach the daemon{}", at(.endpoint))]
    Unreachable {
        /// URL that was tried; empty where it is not known.
        endpoint: String,
        /// What the network said.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The daemon refused or failed, or the connection broke during the call.
    #[error(transparent)]
    Api(Box<ApiError>),
    /// The call's deadline passed on this side. The daemon was told, but may have done it.
    #[error("no answer in time")]
    DeadlineExceeded,
    /// The lease of the desktop was lost.
    #[error(transparent)]
    LeaseLost(#[from] LeaseLost),
    /// Something about the connection's settings is wrong.
    #[error("{0}")]
    Config(String),
    /// The daemon's answer lacks something it must have; it is of another version, or broken.
    #[error("the daemon's answer makes no sense: {0}")]
    Protocol(&'static str),
    /// More came than the caller is ready to hold.
    #[error("{what} is larger than {limit} bytes")]
    TooLarge {
        /// What it is.
        what: &'static str,
        /// The limit that applied.
        limit: u64,
    },
    /// Reading or writing on this side failed.
    #[error("cannot {what}")]
    Io {
        /// What was being done, e.g. `read /tmp/x`.
        what: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

fn at(endpoint: &str) -> String {
    if endpoint.is_empty() { String::new() } else { format!(" at {endpoint}") }
}

impl Error {
    /// Of a status, for callers of the generated clients. Tells "never connected" and "timed out here" from answers.
    #[must_use]
    pub fn from_status(status: Status, endpoint: &str) -> Self {
        if has_source::<tonic::TimeoutExpired>(&status) {
            return Self::DeadlineExceeded;
        }
        if has_source::<tonic::ConnectError>(&status) {
            return Self::Unreachable { endpoint: endpoint.to_owned(), source: root_cause(&status).into() };
        }
        Self::Api(Box::new(ApiError::new(status)))
    }

    pub(crate) fn io(what: impl fmt::Display, source: io::Error) -> Self {
        Self::Io { what: what.to_string(), source }
    }

    /// The daemon's answer, when that is what this is.
    #[must_use]
    pub fn api(&self) -> Option<&ApiError> {
        match self {
            Self::Api(api) => Some(api),
            _ => None,
        }
    }

    /// Stable reason in `UPPER_SNAKE`, e.g. `POOL_EXHAUSTED`; `None` where the daemon gave none.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Api(api) => api.reason(),
            Self::LeaseLost(lost) => Some(lost.reason()),
            _ => None,
        }
    }

    /// The status code this is, or comes closest to.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Unreachable { .. } => Code::Unavailable,
            Self::Api(api) => api.code(),
            Self::DeadlineExceeded => Code::DeadlineExceeded,
            Self::LeaseLost(_) => Code::FailedPrecondition,
            Self::Config(_) => Code::InvalidArgument,
            Self::Protocol(_) => Code::Internal,
            Self::TooLarge { .. } => Code::OutOfRange,
            Self::Io { .. } => Code::Unknown,
        }
    }

    /// No connection was made: the daemon has seen nothing of the call.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// The way to the daemon failed, before or during the call, as opposed to an answer by the daemon.
    #[must_use]
    pub fn is_transport(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            // Every answer has a reason. A connection that breaks off in a stream, as that of a daemon that is killed, is told
            // with whatever code its end is mapped to, and with the error that it was.
            Self::Api(api) => {
                api.reason().is_none() && (api.code() == Code::Unavailable || api.source().is_some())
            }
            _ => false,
        }
    }
}

impl Error {
    /// The daemon is not there, or about to go: the next one may answer.
    pub(crate) fn is_absence(&self) -> bool {
        self.is_transport() || self.reason() == Some("SHUTTING_DOWN")
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::from_status(status, "")
    }
}

fn has_source<T: StdError + 'static>(status: &Status) -> bool {
    let mut next = status.source();
    while let Some(err) = next {
        if err.is::<T>() {
            return true;
        }
        next = err.source();
    }
    false
}

/// The innermost text, e.g. `Connection refused (os error 111)`; the layers above it only say "transport error".
fn root_cause(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut next = status.source();
    while let Some(err) = next {
        text = err.to_string();
        next = err.source();
    }
    text
}

/// An error that the daemon answered, with its details.
pub struct ApiError {
    status: Status,
    details: ErrorDetails,
}

impl ApiError {
    /// Decodes a status' details; ones that cannot be decoded count as absent.
    #[must_use]
    pub fn new(status: Status) -> Self {
        let details = status.get_error_details();
        Self { status, details }
    }

    /// Status code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.status.code()
    }

    /// For people.
    #[must_use]
    pub fn message(&self) -> &str {
        self.status.message()
    }

    /// Reason of `ErrorInfo`.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.details.error_info().map(|info| info.reason.as_str()).filter(|reason| !reason.is_empty())
    }

    /// Every dynamic value of the message, by name.
    #[must_use]
    pub fn metadata(&self) -> Option<&HashMap<String, String>> {
        self.details.error_info().map(|info| &info.metadata)
    }

    /// What is wrong with which field of the request.
    #[must_use]
    pub fn field_violations(&self) -> &[FieldViolation] {
        self.details.bad_request().map_or(&[], |bad| &bad.field_violations)
    }

    /// What stands in the way.
    #[must_use]
    pub fn precondition_violations(&self) -> &[PreconditionViolation] {
        self.details.precondition_failure().map_or(&[], |failure| &failure.violations)
    }

    /// When trying again makes sense.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.details.retry_info().and_then(|info| info.retry_delay)
    }

    /// The resource it is about.
    #[must_use]
    pub fn resource(&self) -> Option<&ResourceInfo> {
        self.details.resource_info()
    }

    /// The status itself.
    #[must_use]
    pub fn status(&self) -> &Status {
        &self.status
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.message() {
            "" => f.write_str(self.code().description()),
            message => f.write_str(message),
        }
    }
}

impl fmt::Debug for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The status' own form shows the details as raw bytes.
        f.debug_struct("ApiError")
            .field("code", &self.code())
            .field("message", &self.message())
            .field("details", &self.details)
            .finish()
    }
}

impl StdError for ApiError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.status.source()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_of_a_status_are_decoded() {
        let mut details = ErrorDetails::with_error_info(
            "POOL_EXHAUSTED",
            "hvkube.dev",
            HashMap::from([("pool".to_owned(), "pools/p".to_owned())]),
        );
        details.set_retry_info(Some(Duration::from_secs(3)));
        details.add_bad_request_violation("wait", "must not be negative");
        details.add_precondition_failure_violation("STATE", "vms/a", "is off");
        details.set_resource_info("pool", "pools/p", "", "no such pool");
        let status = Status::with_error_details(Code::ResourceExhausted, "no VM became free", details);
        let error = Error::from_status(status, "http://h:1");
        assert_eq!((error.code(), error.reason()), (Code::ResourceExhausted, Some("POOL_EXHAUSTED")));
        assert_eq!(error.to_string(), "no VM became free");
        let api = error.api().expect("an answer");
        assert_eq!(api.retry_after(), Some(Duration::from_secs(3)));
        assert_eq!(api.metadata().expect("metadata")["pool"], "pools/p");
        assert_eq!(api.field_violations()[0].field, "wait");
        assert_eq!(api.precondition_violations()[0].subject, "vms/a");
        assert_eq!(api.resource().expect("resource").resource_name, "pools/p");
        assert!(!error.is_transport());
    }

    #[test]
    fn a_status_without_details_is_still_an_error_with_text() {
        let error = Error::from(Status::new(Code::Internal, ""));
        assert_eq!(error.reason(), None);
        assert_eq!(error.to_string(), Code::Internal.description());
        assert!(!error.is_transport());
        assert!(Error::from(Status::unavailable("broken pipe")).is_transport());
        // As the connection of a daemon that was killed ends.
        let broken = io::Error::from(io::ErrorKind::BrokenPipe);
        let broken = Status::from_error(Box::new(broken));
        assert!(broken.code() != Code::Unavailable && Error::from(broken).is_transport());
    }
}
