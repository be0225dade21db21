//! What can go wrong between the host and an agent, in the host's words.

use std::error::Error as _;

use tonic::{Code, Status};

use crate::hypervisor::HvError;
use crate::model::error::{Error, Reason};

/// Longest message that is taken over from a guest, in bytes.
const MAX_MESSAGE: usize = 512;

/// Why a call to a guest failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestError {
    /// There is no session with the agent.
    #[error("no guest agent is connected")]
    NotConnected,
    /// The stream ended. What was under way may have been done or not.
    #[error("the guest agent was lost: {0}")]
    Lost(String),
    /// No answer in time. What was under way may have been done or not.
    #[error("the guest agent did not {0} in time")]
    Timeout(&'static str),
    /// The agent can't do it yet, for instance because there is no desktop.
    #[error("the guest is not ready: {0}")]
    NotReady(String),
    /// No such file or program in the guest.
    #[error("{0}")]
    NotFound(String),
    /// The guest's operating system forbids it.
    #[error("{0}")]
    PermissionDenied(String),
    /// A value in the request that the agent can't use.
    #[error("{0}")]
    Invalid(String),
    /// The agent can do it, but not in its present state or within its limits.
    #[error("{0}")]
    Refused(String),
    /// The agent does not know the call.
    #[error("the guest agent does not support {0}")]
    Unsupported(&'static str),
    /// The agent tried and failed.
    #[error("the guest agent failed: {0}")]
    Failed(String),
    /// The agent broke the protocol; nothing it sent in that answer is used.
    #[error("the guest agent broke the protocol: {0}")]
    Protocol(String),
    /// The agent speaks another version.
    #[error("the guest agent speaks protocol version {theirs}, this host {ours}")]
    Version {
        /// The agent's.
        theirs: u8,
        /// This host's.
        ours: u8,
    },
    /// The agent on this stream does not know the VM's secret.
    #[error("the guest agent sent the wrong secret")]
    WrongSecret,
    /// The source of a transfer failed, and the transfer was given up.
    #[error("the transfer was given up: {0}")]
    Aborted(String),
    /// The hypervisor gave no stream.
    #[error("no stream to the guest agent")]
    Hypervisor(#[source] HvError),
}

impl GuestError {
    /// Whether another try with a fresh stream may help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Lost(_)
            | Self::Timeout(_)
            | Self::NotReady(_)
            | Self::Protocol(_)
            | Self::WrongSecret
            | Self::NotConnected => true,
            Self::Hypervisor(error) => {
                matches!(
                    error,
                    HvError::Process(_) | HvError::Timeout(_) | HvError::Unavailable(_) | HvError::Io { .. }
                )
            }
            _ => false,
        }
    }

    /// Whether the call may have had its effect although it failed.
    #[must_use]
    pub fn outcome_unknown(&self) -> bool {
        matches!(self, Self::Lost(_) | Self::Timeout(_) | Self::Protocol(_) | Self::Failed(_))
    }

    /// The same without what the guest said, which may repeat what it was told.
    #[must_use]
    pub fn without_words(self) -> Self {
        let withheld = || "its words are withheld, because a secret was among the input".to_owned();
        match self {
            Self::Lost(_) => Self::Lost(withheld()),
            Self::NotReady(_) => Self::NotReady(withheld()),
            Self::NotFound(_) => Self::NotFound(withheld()),
            Self::PermissionDenied(_) => Self::PermissionDenied(withheld()),
            Self::Invalid(_) => Self::Invalid(withheld()),
            Self::Refused(_) => Self::Refused(withheld()),
            Self::Failed(_) => Self::Failed(withheld()),
            Self::Protocol(_) => Self::Protocol(withheld()),
            other => other,
        }
    }

    /// As the domain sees it; `not_found` says what it was that the guest does not have.
    #[must_use]
    pub fn into_error(self, not_found: Reason) -> Error {
        let message = self.to_string();
        let reason = match &self {
            Self::NotConnected | Self::Lost(_) | Self::NotReady(_) | Self::Hypervisor(_) => {
                Reason::AgentNotConnected
            }
            Self::Timeout(_) => Reason::DeadlineExceeded,
            Self::NotFound(_) => not_found,
            Self::PermissionDenied(_) => Reason::GuestPermissionDenied,
            Self::Invalid(_) | Self::Aborted(_) => Reason::GuestInvalid,
            Self::Unsupported(_) => Reason::NotSupported,
            Self::Refused(_)
            | Self::Failed(_)
            | Self::Protocol(_)
            | Self::Version { .. }
            | Self::WrongSecret => Reason::GuestFailed,
        };
        let mut error = Error::new(reason, message);
        error.source = Some(Box::new(self));
        error
    }

    /// Translates what a call gave; `call` completes "the guest agent did not ... in time".
    pub(super) fn from_status(status: &Status, call: &'static str) -> Self {
        let message = clip(status.message(), MAX_MESSAGE);
        match status.code() {
            Code::Cancelled | Code::DeadlineExceeded => return Self::Timeout(call),
            // tonic's own refusal of a message over the limit.
            Code::OutOfRange if message.starts_with("Error, decoded message") => {
                return Self::Protocol(message);
            }
            _ => {}
        }
        // A status with a source was made on this side of the stream: the transport failed.
        if status.source().is_some() {
            return Self::Lost(message);
        }
        match status.code() {
            Code::NotFound => Self::NotFound(message),
            Code::PermissionDenied | Code::Unauthenticated => Self::PermissionDenied(message),
            Code::InvalidArgument | Code::OutOfRange => Self::Invalid(message),
            Code::FailedPrecondition | Code::AlreadyExists | Code::ResourceExhausted | Code::Aborted => {
                Self::Refused(message)
            }
            Code::Unavailable => Self::NotReady(message),
            Code::Unimplemented => Self::Unsupported(call),
            _ => Self::Failed(message),
        }
    }
}

/// Cuts a guest's text to `max` bytes at a character's end and takes control characters out, which could forge log
/// lines or drive a terminal.
pub(super) fn clip(text: &str, max: usize) -> String {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_guest_is_cut_at_a_character_and_loses_its_control_characters() {
        assert_eq!(clip("aä\n\x1b[31m", 64), "aä  [31m");
        assert_eq!(clip("aä", 2), "a");
        assert_eq!(clip("", 2), "");
    }

    #[test]
    fn codes_become_kinds() {
        let of = |code| GuestError::from_status(&Status::new(code, "m"), "probe");
        assert!(matches!(of(Code::NotFound), GuestError::NotFound(m) if m == "m"));
        assert!(matches!(of(Code::DeadlineExceeded), GuestError::Timeout("probe")));
        assert!(matches!(of(Code::Unavailable), GuestError::NotReady(_)));
        assert!(matches!(of(Code::Unimplemented), GuestError::Unsupported("probe")));
        assert!(matches!(of(Code::Unknown), GuestError::Failed(_)));
        let long = Status::new(Code::Internal, "x".repeat(10_000));
        assert!(matches!(GuestError::from_status(&long, "probe"), GuestError::Failed(m) if m.len() == 512));
    }
}
