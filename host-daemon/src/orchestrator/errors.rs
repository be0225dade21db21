//! Failures of hypervisors and guests as errors of the domain.

use crate::guest::GuestError;
use crate::hypervisor::HvError;
use crate::model::error::{Error, Reason};

impl From<HvError> for Error {
    fn from(error: HvError) -> Self {
        let text = error.to_string();
        match error {
            HvError::NotFound { kind, id } => Self::not_found(kind, id),
            HvError::AlreadyExists { kind, id } => Self::exists(kind, id),
            HvError::IllegalState { vm, state, action } => Self::new(Reason::IllegalVmState, text)
                .with("vm", vm)
                .with("state", state)
                .with("action", action),
            HvError::NotSupported { backend, action } => {
                Self::new(Reason::NotSupported, text).with("hypervisor", backend).with("action", action)
            }
            HvError::FileNotFound { field, path } => {
                let field = format!("template.source.{field}");
                Self::new(Reason::DiskNotFound, format!("{field}: {text}"))
                    .with("path", path.display())
                    .violation(field, text)
            }
            HvError::NotAnImage { path, why } => Self::new(Reason::DiskNotAnImage, text.clone())
                .with("path", path.display())
                .with("why", why)
                .violation("template.source.disk_path", text),
            HvError::BadSetting { field, why } => Self::field(format!("template.{field}"), why),
            HvError::ImageChanged { path } => {
                Self::new(Reason::ImageChanged, text).with("path", path.display())
            }
            HvError::Incompatible(why) => Self::new(Reason::StateIncompatible, text).with("why", why),
            HvError::StateDamaged(why) => Self::new(Reason::StateDamaged, text).with("why", why),
            HvError::Timeout(what) => Self::new(Reason::HypervisorFailed, text).with("what", what),
            error @ (HvError::Process(_) | HvError::Unavailable(_)) => {
                Self::internal(Reason::HypervisorFailed, text, error)
            }
            error @ HvError::Io { .. } => {
                Self::internal(Reason::HypervisorFailed, "a file or process operation failed", error)
            }
        }
    }
}

impl From<GuestError> for Error {
    fn from(error: GuestError) -> Self {
        error.into_error(Reason::GuestFailed)
    }
}
