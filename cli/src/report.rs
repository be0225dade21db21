//! How failures look: what went wrong, the reason by name, what to do next, and an exit code.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use hvkube_sdk::{ApiError, Code, Error, LocalDaemon};

use crate::context::Context;
use crate::interrupt::Signal;
use crate::output::human;

/// What a command ends with; the code is its own where it runs another program.
pub(crate) type Outcome = Result<ExitCode, Failure>;

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The SDK's error.
    Call(Error),
    /// An argument makes no sense in a way that only shows later.
    Usage(String),
    /// Something on this side failed.
    Local(String),
    /// The thing waited for did not come in time.
    TimedOut(Duration),
    /// The screen kept changing.
    NotSettled,
    /// No condition on the screen was met.
    NotMet,
    /// A signal.
    Interrupted(Signal),
    /// Somebody closed standard output; not worth a word.
    Closed,
    /// As before, but the exit code is given.
    Coded(Box<Failure>, u8),
}

impl Failure {
    pub(crate) fn io(what: &str, err: &io::Error) -> Self {
        if err.kind() == io::ErrorKind::BrokenPipe {
            Self::Closed
        } else {
            Self::Local(format!("cannot {what}: {err}"))
        }
    }

    fn exit_code(&self) -> u8 {
        match self {
            Self::Call(error) => call_exit_code(error),
            Self::Usage(_) => 2,
            Self::Local(_) => 1,
            Self::TimedOut(_) | Self::NotSettled | Self::NotMet => 7,
            Self::Interrupted(signal) => signal.exit_code(),
            Self::Closed => 0,
            Self::Coded(_, code) => *code,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Call(error)
    }
}

impl From<io::Error> for Failure {
    fn from(err: io::Error) -> Self {
        Self::io("write the output", &err)
    }
}

fn call_exit_code(error: &Error) -> u8 {
    if error.is_transport() {
        return 4;
    }
    match error.code() {
        Code::InvalidArgument => 2,
        Code::NotFound => 3,
        Code::Unauthenticated | Code::PermissionDenied => 5,
        // UNAVAILABLE with a reason is about the VM (its guest agent is away), not about the daemon.
        Code::FailedPrecondition | Code::Aborted | Code::AlreadyExists | Code::Unavailable => 6,
        Code::ResourceExhausted | Code::DeadlineExceeded => 7,
        _ => 1,
    }
}

/// Prints a failure to standard error and gives its exit code.
pub(crate) fn print(failure: &Failure, context: Option<&Context>) -> ExitCode {
    if let Some(text) = render(failure, context) {
        // Nobody is left to tell when standard error is gone; the exit code still says it.
        let _ = anstream::stderr().write_all(text.as_bytes());
    }
    ExitCode::from(failure.exit_code())
}

const RED: Style = AnsiColor::Red.on_default().bold();
const CYAN: Style = AnsiColor::Cyan.on_default().bold();

fn render(failure: &Failure, context: Option<&Context>) -> Option<String> {
    let mut text = String::new();
    let (message, hint) = match failure {
        Failure::Closed => return None,
        Failure::Coded(inner, _) => return render(inner, context),
        Failure::Interrupted(_) => {
            return context.and_then(Context::afterthought).map(|note| format!("{note}\n"));
        }
        Failure::Call(error) => (with_sources(error), hint(error, context)),
        Failure::Usage(message) => (message.clone(), Some("see --help".to_owned())),
        Failure::Local(message) => (message.clone(), None),
        Failure::NotSettled => (
            "the screen was still changing when the time was over".to_owned(),
            Some(
                "leave out what always changes with --ignore X,Y,WIDTH,HEIGHT, or wait longer with --timeout"
                    .to_owned(),
            ),
        ),
        Failure::NotMet => (
            "what was waited for did not come before the time was over".to_owned(),
            Some(
                "wait longer with --timeout; --frame-size says which picture positions were read from"
                    .to_owned(),
            ),
        ),
        Failure::TimedOut(limit) => (
            format!("gave up after {} (--timeout)", human::duration(*limit)),
            context.and_then(Context::afterthought),
        ),
    };
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{RED}error:{RED:#} {}", human::printable(&message));
    if let Failure::Call(error) = failure {
        details(&mut text, error);
    }
    if let Some(hint) = hint {
        let _ = writeln!(text, "{CYAN}hint:{CYAN:#} {hint}");
    }
    Some(text)
}

/// The message with its causes; a cause that the text above it holds already is left out.
fn with_sources(error: &Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(source) = next {
        let cause = source.to_string();
        if !text.contains(&cause) {
            let _ = write!(text, ": {cause}");
        }
        next = source.source();
    }
    text
}

fn details(text: &mut String, error: &Error) {
    if let Some(reason) = error.reason() {
        let _ = writeln!(text, "  reason: {reason}");
    }
    let Some(api) = error.api() else { return };
    for violation in api.field_violations() {
        let _ = writeln!(text, "  field {}: {}", violation.field, human::printable(&violation.description));
    }
    for violation in api.precondition_violations() {
        let _ = writeln!(text, "  {}: {}", violation.subject, human::printable(&violation.description));
    }
}

/// What to do next.
fn hint(error: &Error, context: Option<&Context>) -> Option<String> {
    if error.is_unreachable() {
        return Some(
            "start it with `hvkubed`, or name another with --endpoint or HVKUBE_ENDPOINT".to_owned(),
        );
    }
    if error.is_transport() {
        return Some(
            "the connection broke during the call; see whether the daemon still runs: `hvkube host get`"
                .to_owned(),
        );
    }
    let api = error.api();
    let known = |key: &str| {
        api.and_then(|api| api.metadata()).and_then(|metadata| metadata.get(key)).map(String::as_str)
    };
    let text = match (error.reason().unwrap_or_default(), error.code()) {
        (_, Code::Unauthenticated) => return Some(token_hint(context)),
        ("LEASE_ENDED" | "LEASE_NOT_RENEWED", _) => {
            "acquire a new one with `hvkube lease acquire POOL`; a longer --ttl or `hvkube lease run` keeps it alive".into()
        }
        ("LEASE_NOT_YOURS", _) => "somebody else holds it: see `hvkube lease list`, or acquire a desktop of your own".into(),
        ("AGENT_ENDED", _) => "see how it ended: `hvkube agent get AGENT`, `hvkube agent logs AGENT`".into(),
        ("AGENT_CLAIM_LOST", _) => "the worker was silent for too long, or its time was over; the agent is tried again".into(),
        ("POOL_EXHAUSTED", _) => {
            let when = api.and_then(ApiError::retry_after).map(|after| format!("try again in {}, ", human::duration(after)));
            format!(
                "{}wait longer with --wait, or make the pool larger: `hvkube pool update POOL --count N`",
                when.unwrap_or_default()
            )
        }
        ("QUOTA_EXCEEDED", _) => "give a lease back first, see `hvkube lease list`, or raise the limit: `hvkube pool update POOL --max-leases N`".into(),
        ("LEASE_PREEMPTED", _) => "somebody more important needed the room; it goes on by itself, see `hvkube lease get LEASE`".into(),
        ("REQUIREMENTS_UNMET", _) => "see what the pools have: `hvkube pool get POOL`, `hvkube template list`".into(),
        ("VM_RESERVED", _) => "get a desktop of your own with `hvkube lease acquire POOL`".into(),
        ("TEMPLATE_NOT_READY", _) => "see how far it is: `hvkube template list`, `hvkube operation list`".into(),
        ("TEMPLATE_IN_USE", _) => "delete the pools and VMs made from it first: `hvkube pool list`, `hvkube vm list -o wide`".into(),
        ("POOL_HAS_LEASES" | "VM_LEASED", _) => "wait for its holder, or end the lease with --force".into(),
        ("MEMORY_BEYOND_HOST", _) => "see what the host has: `hvkube host get`; use less --memory or a smaller --count".into(),
        ("DISK_NOT_FOUND" | "DISK_NOT_AN_IMAGE", _) => "paths are those of the daemon's machine; images are qcow2 or raw (vhdx on Hyper-V)".into(),
        ("VM_NOT_RUNNING", _) => "bring it up with `hvkube vm resume VM` or `hvkube vm start VM`, or acquire one that runs".into(),
        ("VM_BUSY", _) => "another move of this VM is under way; try again when it is over".into(),
        ("NOT_SUPPORTED", _) => "see what this hypervisor can do: `hvkube host get`".into(),
        ("AGENT_NOT_CONNECTED", _) => "the guest may still be booting: see GUEST in `hvkube vm info VM`; a picture works without its agent".into(),
        ("OUT_OF_FRAME", _) => "positions count from the top left of the screen; give --frame-size when they belong to a smaller picture".into(),
        ("UNKNOWN_KEY", _) => "keys are X11 names (Return, Page_Down), Windows names (VK_RETURN) or one character, joined by `+`".into(),
        ("SCREENSHOT_TOO_LARGE", _) => "make it smaller with --scale or --max-size, or use jpeg".into(),
        ("INPUT_OUTCOME_UNKNOWN", _) => "part of it may be done: look at the screen before you send it again".into(),
        ("ILLEGAL_VM_STATE", _) => match known("state").or_else(|| known("from")) {
            Some(state) => format!("its state is {}; see the moves in `hvkube vm --help`", human::enum_name(state)),
            None => "see its state with `hvkube vm info VM` and the moves in `hvkube vm --help`".into(),
        },
        (_, Code::AlreadyExists) => "choose another name, or delete the present one".into(),
        (_, Code::NotFound) => return not_found_hint(api?),
        (_, Code::Unimplemented) => "the daemon is of another version: see `hvkube version`".into(),
        (_, Code::DeadlineExceeded) => "give it longer with --timeout".into(),
        _ => {
            let after = api.and_then(ApiError::retry_after)?;
            format!("try again in {}", human::duration(after))
        }
    };
    Some(text)
}

fn token_hint(context: Option<&Context>) -> String {
    match context.and_then(Context::connected) {
        Some(client) => format!(
            "tried {}; give another with --token-file or HVKUBE_TOKEN (the daemon writes its own to admin.token in its state directory)",
            client.token_source()
        ),
        None => format!(
            "the token is looked for in HVKUBE_TOKEN and {}",
            LocalDaemon::find().token_file.display()
        ),
    }
}

fn not_found_hint(api: &ApiError) -> Option<String> {
    let named = api.resource().map(|resource| resource.resource_name.as_str()).unwrap_or_default();
    let text = format!("{named} {}", api.message());
    let noun = [
        ("templates/", "template"),
        ("pools/", "pool"),
        ("leases/", "lease"),
        ("agents/", "agent"),
        ("operations/", "operation"),
        ("vms/", "vm"),
    ]
    .into_iter()
    .find(|(prefix, _)| text.contains(prefix))?
    .1;
    if text.contains("/checkpoints/") {
        return Some("see which there are: `hvkube vm checkpoint list VM`".to_owned());
    }
    Some(format!("see which there are: `hvkube {noun} list`"))
}
