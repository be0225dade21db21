//! Preparing a template: boot the golden disk once, wait until its desktop is settled, and keep that state.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Shared;
use crate::guest::{AttachParams, Attached, Have, OpenOptions, connect};
use crate::hypervisor::{Observed, Origin, VmDefinition};
use crate::model::error::{Error, Reason, Result};
use crate::model::event::{Event, EventKind};
use crate::model::ids::VmId;
use crate::model::input::SettleOptions;
use crate::model::record::{Operation, Outcome, Phase, Template, TemplateState};
use crate::model::template::CloneMethod;

/// Longest text of an image's stamp entry that is taken over.
const SOFTWARE_TEXT: usize = 128;
/// How often a booting VM is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A boot leaves megabytes to be written, under emulation to a slow disk.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);
/// Entries of an image's stamp that are taken over.
const SOFTWARE_LIST: usize = 100;

/// Works on an operation until it ends, whichever way; the template's row tells the same story.
pub(super) async fn run(
    shared: Arc<Shared>,
    mut template: Template,
    mut operation: Operation,
    cancel: CancellationToken,
) {
    let builder = VmId::new(format!("prep-{}", Uuid::new_v4().simple()));
    let result = match builder {
        Ok(builder) => {
            // It has no row, and is known all the same.
            let _name = shared.making.begin(&builder);
            let work = prepare(&shared, &template, &mut operation, &builder);
            let result = tokio::select! {
                result = work => result,
                () = cancel.cancelled() => Err(Error::new(Reason::Internal, "cancelled")),
            };
            // Sealed or not, the VM it was prepared with is of no more use.
            if let Err(error) = shared.hv.delete(&builder).await {
                tracing::warn!(vm = %builder, error = &error as &dyn std::error::Error, "not deleted");
            }
            result
        }
        Err(error) => Err(Error::internal(Reason::Internal, "no id for the preparing vm", error)),
    };
    operation.updated = Timestamp::now();
    let recorded = match result {
        Ok((attached, method)) => {
            if template.installed_software.is_empty() {
                template.installed_software = software(&attached.image_stamp_json);
            }
            template.state = TemplateState::Ready;
            template.clone_method = Some(method);
            template.os = attached.os;
            template.agent_version = attached.agent_version;
            template.updated = operation.updated;
            template.version += 1;
            operation.phase = Phase::Done;
            operation.outcome = Some(Outcome::Ready);
            tracing::info!(template = %template.id, ?method, "template ready");
            let event = Event::of_template(EventKind::TemplateReady, &template, "prepared", "");
            shared.store.update_template(&template, event).await.map_err(Error::from)
        }
        Err(error) => {
            tracing::warn!(template = %template.id, error = &error as &dyn std::error::Error, "template failed");
            operation.outcome = Some(if cancel.is_cancelled() {
                Outcome::Cancelled
            } else {
                Outcome::Failed { reason: error.reason.as_str().into(), message: error.to_string() }
            });
            let why = if cancel.is_cancelled() { "cancelled".to_owned() } else { error.to_string() };
            forget(&shared, &template, &why).await
        }
    };
    let recorded = recorded.and(shared.store.update_operation(&operation).await.map_err(Error::from));
    if let Err(error) = recorded {
        let error = &error as &dyn std::error::Error;
        tracing::error!(template = %template.id, error, "outcome not recorded");
    }
}

/// A template that failed leaves nothing behind but its operation.
async fn forget(shared: &Shared, template: &Template, why: &str) -> Result<()> {
    shared.hv.delete_template(&template.id).await?;
    let event = Event::of_template(EventKind::TemplateDeleted, template, why, "");
    shared.store.delete_template(&template.id, event).await?;
    Ok(())
}

async fn prepare(
    shared: &Shared,
    template: &Template,
    operation: &mut Operation,
    builder: &VmId,
) -> Result<(Attached, CloneMethod)> {
    let (hv, settings) = (&shared.hv, &shared.settings);
    enter(shared, operation, Phase::Booting).await?;
    let origin = Origin::Golden(template.id.clone());
    let definition = VmDefinition { id: builder.clone(), uid: Uuid::new_v4(), origin };
    hv.define(&definition).await?;
    hv.start(builder).await?;

    enter(shared, operation, Phase::WaitingForAgent).await?;
    let deadline = Instant::now() + settings.boot_timeout;
    // No identity: the clean state must not be anybody's.
    let options = OpenOptions {
        epoch: 1,
        attach: AttachParams { identity: None, reseed: true },
        ..OpenOptions::default()
    };
    let session = tokio::select! {
        session = connect(&**hv, builder, &options, deadline) => session?,
        why = stopped(shared, builder) => return Err(why),
    };
    loop {
        // The supervisor answers before the desktop is up.
        match session.probe(deadline).await {
            Ok(_) => break,
            Err(error) if error.is_retryable() && !session.is_closed() && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }

    enter(shared, operation, Phase::Settling).await?;
    // What is left to be written now would be written by every VM of the template.
    session.flush(Instant::now() + FLUSH_TIMEOUT).await?;
    let settle = SettleOptions {
        quiet: settings.settle_quiet,
        timeout: settings.settle_timeout,
        ..SettleOptions::default()
    };
    let slack = Duration::from_secs(30);
    let settled = session.settle(&settle, Instant::now() + settings.settle_timeout + slack).await?;
    if settled.timed_out {
        tracing::warn!(template = %template.id, "the desktop did not settle, its state is taken as it is");
    }
    // The first frame costs a guest page faults and buffers, which later ones do not.
    session.capture(Have::default(), Duration::ZERO, true, Instant::now() + FLUSH_TIMEOUT).await?;
    session.flush(Instant::now() + FLUSH_TIMEOUT).await?;
    let attached = session.attached().clone();

    enter(shared, operation, Phase::Saving).await?;
    session.close();
    drop(session);
    // The agent sees the stream end and waits for the next one; frozen earlier, it would do that in every VM.
    tokio::time::sleep(settings.part_time).await;
    let method = hv.seal_template(&template.id, builder).await?;
    Ok((attached, method))
}

/// Waits until a VM that boots has stopped by itself: nobody needs to wait for its agent then.
async fn stopped(shared: &Shared, vm: &VmId) -> Error {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let why = match shared.hv.observe(vm).await {
            Ok(Observed::Running(_)) => continue,
            Ok(Observed::Broken(why)) => why,
            Ok(Observed::Off) => "it switched itself off".to_owned(),
            Ok(other) => format!("it is {other:?}"),
            Err(error) => return error.into(),
        };
        return Error::new(Reason::HypervisorFailed, format!("the image did not boot: {why}"))
            .with("why", why);
    }
}

async fn enter(shared: &Shared, operation: &mut Operation, phase: Phase) -> Result<()> {
    tracing::info!(operation = %operation.work, phase = phase.as_str(), "preparing");
    operation.phase = phase;
    operation.updated = Timestamp::now();
    shared.store.update_operation(operation).await?;
    Ok(())
}

/// What an image's stamp says is installed; a stamp is the guest's word, so it is bounded.
fn software(stamp: &str) -> Vec<String> {
    let Ok(stamp) = serde_json::from_str::<serde_json::Value>(stamp) else { return Vec::new() };
    let list = stamp.get("installed_software").and_then(|list| list.as_array());
    list.into_iter()
        .flatten()
        .filter_map(|entry| entry.as_str())
        .take(SOFTWARE_LIST)
        .map(|text| text.chars().filter(|c| !c.is_control()).take(SOFTWARE_TEXT).collect())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_bounded_and_may_be_nonsense() {
        assert_eq!(software(r#"{"installed_software": ["xterm 379", 7, "a\u001bb"]}"#), ["xterm 379", "ab"]);
        assert!(software("not json").is_empty());
        assert!(software(r#"{"installed_software": "xterm"}"#).is_empty());
        let many = serde_json::json!({"installed_software": vec!["x".repeat(1000); 1000]}).to_string();
        let taken = software(&many);
        assert_eq!((taken.len(), taken[0].len()), (SOFTWARE_LIST, SOFTWARE_TEXT));
    }
}
