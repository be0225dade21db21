//! What can go wrong, as the domain sees it; `api` maps it to gRPC in one place.
//!
//! Every error has a [`Reason`] from a closed list, so that clients can tell errors apart without reading prose, and
//! carries each dynamic value of its message as metadata.

use std::fmt;
use std::time::Duration;

/// The class of an error, one per gRPC code that we use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// A field is wrong, whatever the state of the system.
    InvalidArgument,
    /// There is no such thing.
    NotFound,
    /// There is one already.
    AlreadyExists,
    /// The state of the system does not allow it.
    FailedPrecondition,
    /// It lost a race; try again from the start.
    Aborted,
    /// The caller is known but may not.
    PermissionDenied,
    /// The caller is not known.
    Unauthenticated,
    /// There is not enough of something.
    ResourceExhausted,
    /// Not now; the same call may work later.
    Unavailable,
    /// The time is over.
    DeadlineExceeded,
    /// What was asked for is no longer, or not yet, there.
    OutOfRange,
    /// A bug, or a broken host.
    Internal,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $class:ident;)*) => {
        /// Why, in one word that never changes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// All reasons.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// As clients see it.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Its class.
            #[must_use]
            pub fn class(self) -> Class {
                match self { $(Self::$name => Class::$class,)* }
            }
        }
    };
}

reasons! {
    /// A field's value is illegal; the violations name it.
    InvalidField = "INVALID_FIELD", InvalidArgument;
    /// A page token that this list did not give out.
    InvalidPageToken = "INVALID_PAGE_TOKEN", InvalidArgument;
    /// A request id was used before for something else.
    RequestIdReused = "REQUEST_ID_REUSED", InvalidArgument;
    /// The golden disk is not there or not readable.
    DiskNotFound = "DISK_NOT_FOUND", InvalidArgument;
    /// The golden disk is no disk image.
    DiskNotAnImage = "DISK_NOT_AN_IMAGE", InvalidArgument;
    /// No key of that name.
    UnknownKey = "UNKNOWN_KEY", InvalidArgument;
    /// A point outside the frame.
    OutOfFrame = "OUT_OF_FRAME", InvalidArgument;
    /// The guest refused an argument (a directory where a file is needed, an empty program name).
    GuestInvalid = "GUEST_INVALID_ARGUMENT", InvalidArgument;
    /// No such resource.
    NotFound = "RESOURCE_NOT_FOUND", NotFound;
    /// No such file in the guest.
    GuestFileNotFound = "GUEST_FILE_NOT_FOUND", NotFound;
    /// No such console ticket, or not for this caller, or not any more.
    ConsoleTicketUnknown = "CONSOLE_TICKET_UNKNOWN", NotFound;
    /// No such program in the guest.
    ProgramNotFound = "PROGRAM_NOT_FOUND", NotFound;
    /// No such window on the desktop.
    WindowNotFound = "WINDOW_NOT_FOUND", NotFound;
    /// The id is taken.
    AlreadyExists = "RESOURCE_EXISTS", AlreadyExists;
    /// The VM's state does not allow the move.
    IllegalVmState = "ILLEGAL_VM_STATE", FailedPrecondition;
    /// The VM must be running.
    VmNotRunning = "VM_NOT_RUNNING", FailedPrecondition;
    /// The VM is leased.
    VmLeased = "VM_LEASED", FailedPrecondition;
    /// The hypervisor can't do it.
    NotSupported = "NOT_SUPPORTED", FailedPrecondition;
    /// The template is not ready.
    TemplateNotReady = "TEMPLATE_NOT_READY", FailedPrecondition;
    /// A pool or VM uses the template.
    TemplateInUse = "TEMPLATE_IN_USE", FailedPrecondition;
    /// A VM of the pool is leased.
    PoolHasLeases = "POOL_HAS_LEASES", FailedPrecondition;
    /// The host does not have so much memory.
    MemoryBeyondHost = "MEMORY_BEYOND_HOST", FailedPrecondition;
    /// The lease is over.
    LeaseEnded = "LEASE_ENDED", FailedPrecondition;
    /// The lease is preempted: its VM is saved until there is room again.
    LeasePreempted = "LEASE_PREEMPTED", FailedPrecondition;
    /// The VM is kept ready for a lease; only a lease may use it.
    VmReserved = "VM_RESERVED", FailedPrecondition;
    /// No pool, or not the named one, has what is required.
    RequirementsUnmet = "REQUIREMENTS_UNMET", FailedPrecondition;
    /// The checkpoint is the template's.
    CheckpointReserved = "CHECKPOINT_RESERVED", FailedPrecondition;
    /// The golden disk changed since it was registered.
    ImageChanged = "IMAGE_CHANGED", FailedPrecondition;
    /// A saved state of another QEMU version or machine.
    StateIncompatible = "STATE_INCOMPATIBLE", FailedPrecondition;
    /// A saved memory that can't be read back; a reset or a checkpoint is the way on.
    StateDamaged = "STATE_DAMAGED", FailedPrecondition;
    /// The agent has ended.
    AgentEnded = "AGENT_ENDED", FailedPrecondition;
    /// The worker's claim on the agent is over.
    AgentClaimLost = "AGENT_CLAIM_LOST", FailedPrecondition;
    /// Another version is current.
    StaleEtag = "STALE_ETAG", Aborted;
    /// Another move of the VM is under way.
    VmBusy = "VM_BUSY", Aborted;
    /// The viewer did not keep to its protocol, or the screen became one that it can't show.
    ConsoleFailed = "CONSOLE_FAILED", Aborted;
    /// The agent was lost in the middle of a batch.
    InputOutcomeUnknown = "INPUT_OUTCOME_UNKNOWN", Aborted;
    /// A watch was not read in time; go on from its last revision.
    WatchTooSlow = "WATCH_TOO_SLOW", Aborted;
    /// Only the admin token may.
    AdminOnly = "ADMIN_ONLY", PermissionDenied;
    /// Somebody else holds the lease.
    LeaseNotYours = "LEASE_NOT_YOURS", PermissionDenied;
    /// The secret is not the caller's to have typed there.
    SecretNotAllowed = "SECRET_NOT_ALLOWED", PermissionDenied;
    /// Somebody else submitted, or claimed, the agent.
    AgentNotYours = "AGENT_NOT_YOURS", PermissionDenied;
    /// The desktop user may not.
    GuestPermissionDenied = "GUEST_PERMISSION_DENIED", PermissionDenied;
    /// No token, or an unknown one.
    Unauthenticated = "TOKEN_MISSING_OR_UNKNOWN", Unauthenticated;
    /// No VM came free in time.
    PoolExhausted = "POOL_EXHAUSTED", ResourceExhausted;
    /// The caller holds, or waits for, as many leases as it may.
    QuotaExceeded = "QUOTA_EXCEEDED", ResourceExhausted;
    /// Too many consoles were asked for and not opened.
    TooManyConsoles = "TOO_MANY_CONSOLES", ResourceExhausted;
    /// The encoded picture is larger than asked.
    ScreenshotTooLarge = "SCREENSHOT_TOO_LARGE", ResourceExhausted;
    /// The clipboard holds more than asked.
    ClipboardTooLarge = "CLIPBOARD_TOO_LARGE", ResourceExhausted;
    /// The daemon keeps as many secrets as it may.
    TooManySecrets = "TOO_MANY_SECRETS", ResourceExhausted;
    /// The agent keeps as many pictures as it may.
    TooManyScreenshots = "TOO_MANY_SCREENSHOTS", ResourceExhausted;
    /// No session with the guest's agent.
    AgentNotConnected = "AGENT_NOT_CONNECTED", Unavailable;
    /// The daemon is stopping.
    ShuttingDown = "SHUTTING_DOWN", Unavailable;
    /// What happened since that revision is no longer known; begin anew.
    RevisionGone = "REVISION_GONE", OutOfRange;
    /// A deadline passed.
    DeadlineExceeded = "DEADLINE_EXCEEDED", DeadlineExceeded;
    /// The hypervisor failed.
    HypervisorFailed = "HYPERVISOR_FAILED", Internal;
    /// The guest broke the protocol or failed.
    GuestFailed = "GUEST_FAILED", Internal;
    /// The store failed.
    StoreFailed = "STORE_FAILED", Internal;
    /// A bug.
    Internal = "INTERNAL", Internal;
}

/// A field and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field as the request has it, e.g. `pool.desired_count`.
    pub field: String,
    /// What is wrong and what would be right.
    pub description: String,
}

/// An error of the domain.
#[derive(Debug)]
pub struct Error {
    /// Why, in one word.
    pub reason: Reason,
    /// For people: lower case, no full stop.
    pub message: String,
    /// Every dynamic value of the message.
    pub metadata: Vec<(&'static str, String)>,
    /// Fields that are wrong.
    pub violations: Vec<Violation>,
    /// When a repeat may work.
    pub retry_after: Option<Duration>,
    /// What lies beneath; for the log, never for clients.
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Result of the domain.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with nothing but a reason and a message.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            metadata: Vec::new(),
            violations: Vec::new(),
            retry_after: None,
            source: None,
        }
    }

    /// A field with an illegal value.
    pub fn field(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self::new(Reason::InvalidField, "").violation(field, description)
    }

    /// No such thing; `kind` is `vm`, `pool`, ...
    pub fn not_found(kind: &'static str, id: impl fmt::Display) -> Self {
        Self::new(Reason::NotFound, format!("no {kind} {id}")).with("kind", kind).with("id", id)
    }

    /// There is one already.
    pub fn exists(kind: &'static str, id: impl fmt::Display) -> Self {
        Self::new(Reason::AlreadyExists, format!("{kind} {id} exists")).with("kind", kind).with("id", id)
    }

    /// A bug or a broken host: what is not for clients goes into the source.
    pub fn internal(
        reason: Reason,
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        let mut error = Self::new(reason, message);
        error.source = Some(source.into());
        error
    }

    /// Adds a value.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        self.metadata.push((key, value.to_string()));
        self
    }

    /// Adds a field that is wrong.
    #[must_use]
    pub fn violation(mut self, field: impl Into<String>, description: impl Into<String>) -> Self {
        let (field, description) = (field.into(), description.into());
        if self.message.is_empty() {
            self.message = format!("{field}: {description}");
        }
        self.violations.push(Violation { field, description });
        self
    }

    /// Says when a repeat may work.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Its class.
    #[must_use]
    pub fn class(&self) -> Class {
        self.reason.class()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// An error and everything beneath it, in one line.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn reasons_are_unique_and_upper_snake() {
        let texts: HashSet<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
        assert_eq!(texts.len(), Reason::ALL.len());
        assert!(texts.iter().all(|t| t.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')));
    }

    #[test]
    fn the_first_violation_is_the_message() {
        let error = Error::field("pool.desired_count", "must be at most 10000");
        assert_eq!(error.to_string(), "pool.desired_count: must be at most 10000");
        assert_eq!(error.class(), Class::InvalidArgument);
    }
}
