//! Leases.

use std::ops::RangeInclusive;
use std::time::Duration;

use hvkube_proto::v1;

use super::{duration, timestamp, vm};
use crate::api::deadline::Deadline;
use crate::api::fields;
use crate::model::error::{Error, Reason, Result};
use crate::model::ids::LeaseId;
use crate::model::lease::{Check, CheckKind, EndedAs, Receipt, ReleasePolicy};
use crate::model::queue::{Needs, PRIORITIES};
use crate::model::record::Lease;
use crate::orchestrator::Orchestrator;
use crate::orchestrator::request::{Acquire, Caller, LeaseFilter, Stage};
use crate::orchestrator::view::Granted;

const TTL: RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_secs(24 * 3600);
const DEFAULT_WAIT: Duration = Duration::from_secs(60);
const MAX_WAIT: Duration = Duration::from_secs(3600);
/// What is kept of a call's deadline, so that the answer is `POOL_EXHAUSTED` and not that the deadline passed.
const ANSWER_TIME: Duration = Duration::from_millis(100);

pub(crate) fn acquire(
    caller: &Caller,
    deadline: Option<Deadline>,
    request: &v1::AcquireVmRequest,
) -> Result<Acquire> {
    let wait = fields::duration("wait", request.wait, Duration::ZERO..=MAX_WAIT)?;
    let until_deadline =
        || deadline.map(|deadline| deadline.left().saturating_sub(ANSWER_TIME).min(MAX_WAIT));
    let required = request.requirements.clone().unwrap_or_default();
    let needs = Needs {
        gpu: required.gpu,
        template: fields::optional_name("requirements.template", "templates", &required.template)?,
    };
    let labels = super::labels("requirements.labels", &required.labels)?;
    if request.pool.is_empty() && labels.is_empty() && needs == Needs::default() {
        return Err(Error::field(
            "pool",
            "is required, in the form pools/{pool}, where no requirements are given",
        ));
    }
    // A repeat after a restart only waits for what is left.
    let bare = v1::AcquireVmRequest { wait: None, ..request.clone() };
    Ok(Acquire {
        pool: fields::optional_name("pool", "pools", &request.pool)?,
        priority: fields::range("priority", request.priority, PRIORITIES)?,
        needs,
        labels,
        ttl: fields::duration("ttl", request.ttl, TTL)?,
        wait: wait.or_else(until_deadline).unwrap_or(DEFAULT_WAIT),
        purpose: fields::text("purpose", &request.purpose, fields::DESCRIPTION)?.to_owned(),
        request: fields::request_id(caller, "AcquireVm", &bare, |r| &mut r.request_id)?,
    })
}

/// As [`acquire`], with the fields where this request has them.
pub(crate) fn watch_acquire(
    caller: &Caller,
    deadline: Option<Deadline>,
    request: &v1::WatchAcquireRequest,
) -> Result<Acquire> {
    let inner = fields::required("acquire", request.acquire.as_ref())?;
    acquire(caller, deadline, inner).map_err(|mut error| {
        for violation in &mut error.violations {
            violation.field.insert_str(0, "acquire.");
        }
        if error.reason == Reason::InvalidField {
            error.message.insert_str(0, "acquire.");
        }
        error
    })
}

pub(crate) fn granted(granted: &Granted) -> v1::AcquireVmResponse {
    v1::AcquireVmResponse { lease: Some(to_proto(&granted.lease)), vm: Some(vm::to_proto(&granted.vm)) }
}

/// How an acquire stands that has no lease yet.
pub(crate) fn update(orchestrator: &Orchestrator, stage: &Stage) -> v1::WatchAcquireResponse {
    use v1::watch_acquire_response::Update;
    let update = match stage {
        Stage::Preparing { vm } => Update::Preparing(v1::AcquirePreparing { vm: format!("vms/{vm}") }),
        stage => {
            let view = orchestrator.queued(stage);
            Update::Queued(v1::AcquireQueued {
                pool: view.pool.map(|pool| format!("pools/{pool}")).unwrap_or_default(),
                position: view.position,
                waiting: view.waiting,
                eta: view.eta.map(duration),
                reason: view.reason,
            })
        }
    };
    v1::WatchAcquireResponse { update: Some(update) }
}

pub(crate) fn renew(request: &v1::RenewLeaseRequest) -> Result<(LeaseId, Option<Duration>)> {
    Ok((fields::name("name", "leases", &request.name)?, fields::duration("ttl", request.ttl, TTL)?))
}

pub(crate) fn release(request: &v1::ReleaseVmRequest) -> Result<(LeaseId, Option<ReleasePolicy>)> {
    let id = fields::name("name", "leases", &request.name)?;
    Ok((id, policy("policy", request.policy)?))
}

/// What becomes of a VM; unspecified: none.
pub(crate) fn policy(field: &str, value: i32) -> Result<Option<ReleasePolicy>> {
    Ok(match fields::one_of(field, value, v1::ReleasePolicy::as_str_name)? {
        v1::ReleasePolicy::Unspecified => None,
        v1::ReleasePolicy::Reset => Some(ReleasePolicy::Reset),
        v1::ReleasePolicy::Keep => Some(ReleasePolicy::Keep),
        v1::ReleasePolicy::Destroy => Some(ReleasePolicy::Destroy),
    })
}

pub(crate) fn filter(request: &v1::ListLeasesRequest) -> Result<LeaseFilter> {
    Ok(LeaseFilter {
        pool: fields::optional_name("pool", "pools", &request.pool)?,
        show_ended: request.show_ended,
    })
}

pub(crate) fn to_proto(lease: &Lease) -> v1::Lease {
    v1::Lease {
        name: format!("leases/{}", lease.id),
        uid: lease.uid.to_string(),
        vm: format!("vms/{}", lease.vm),
        pool: format!("pools/{}", lease.pool),
        holder: lease.holder.clone(),
        state: match lease.ended {
            None if lease.suspended.is_some() => v1::LeaseState::Suspended,
            None => v1::LeaseState::Active,
            Some(EndedAs::Released) => v1::LeaseState::Released,
            Some(EndedAs::Expired) => v1::LeaseState::Expired,
            Some(EndedAs::VmLost) => v1::LeaseState::VmLost,
            Some(EndedAs::Revoked) => v1::LeaseState::Revoked,
        }
        .into(),
        end_reason: lease.end_reason.clone(),
        ttl: Some(duration(lease.ttl)),
        expire_time: Some(timestamp(lease.expires)),
        receipt: lease.receipt.as_ref().map(receipt),
        purpose: lease.purpose.clone(),
        create_time: Some(timestamp(lease.created)),
        end_time: lease.ended_at.map(timestamp),
        priority: lease.priority,
        suspend_time: lease.suspended.filter(|_| lease.ended.is_none()).map(timestamp),
        suspend_reason: lease.suspend_reason.clone(),
    }
}

fn receipt(receipt: &Receipt) -> v1::ReadinessReceipt {
    v1::ReadinessReceipt {
        checks: receipt.checks.iter().map(check).collect(),
        total: Some(duration(receipt.total)),
        epoch: receipt.epoch,
        waited: Some(duration(receipt.waited)),
        replaced: receipt.replaced,
        age: (!receipt.age.is_zero()).then(|| duration(receipt.age)),
    }
}

fn check(check: &Check) -> v1::ReadinessCheck {
    let kind = match check.kind {
        CheckKind::Running => v1::ReadinessCheckKind::Running,
        CheckKind::AgentSession => v1::ReadinessCheckKind::AgentSession,
        CheckKind::Clock => v1::ReadinessCheckKind::Clock,
        CheckKind::Identity => v1::ReadinessCheckKind::Identity,
        CheckKind::Input => v1::ReadinessCheckKind::Input,
        CheckKind::Frame => v1::ReadinessCheckKind::Frame,
    };
    v1::ReadinessCheck { kind: kind.into(), at: Some(duration(check.at)), detail: check.detail.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    fn legal() -> v1::AcquireVmRequest {
        v1::AcquireVmRequest { pool: "pools/web".into(), ..Default::default() }
    }

    fn seconds(seconds: i64) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos: 0 })
    }

    #[test]
    fn refusals_name_their_field() {
        let none = v1::AcquireRequirements::default();
        let of = |requirements| v1::AcquireVmRequest { requirements: Some(requirements), ..legal() };
        let label = |key: &str, value: &str| [(key.to_owned(), value.to_owned())].into();
        let long = "x".repeat(64);
        let cases = [
            ("pool", v1::AcquireVmRequest { pool: "web".into(), ..legal() }),
            ("ttl", v1::AcquireVmRequest { ttl: seconds(5), ..legal() }),
            ("wait", v1::AcquireVmRequest { wait: seconds(3601), ..legal() }),
            ("wait", v1::AcquireVmRequest { wait: seconds(-1), ..legal() }),
            ("purpose", v1::AcquireVmRequest { purpose: "x".repeat(257), ..legal() }),
            ("request_id", v1::AcquireVmRequest { request_id: "x".into(), ..legal() }),
            ("priority", v1::AcquireVmRequest { priority: 101, ..legal() }),
            ("priority", v1::AcquireVmRequest { priority: i32::MIN, ..legal() }),
            ("pool", v1::AcquireVmRequest::default()),
            ("requirements.template", of(v1::AcquireRequirements { template: "x".into(), ..none.clone() })),
            ("requirements.labels", of(v1::AcquireRequirements { labels: label("", "x"), ..none.clone() })),
            (
                "requirements.labels",
                of(v1::AcquireRequirements { labels: label("x", &long), ..none.clone() }),
            ),
        ];
        for (field, request) in cases {
            let error = acquire(&Caller::admin(), None, &request).expect_err(field);
            assert_eq!(error.violations[0].field, field);
            let watched = v1::WatchAcquireRequest { acquire: Some(request) };
            let error = watch_acquire(&Caller::admin(), None, &watched).expect_err(field);
            assert_eq!(error.violations[0].field, format!("acquire.{field}"));
            assert!(error.to_string().starts_with("acquire."), "{error}");
        }
        let empty = v1::WatchAcquireRequest { acquire: None };
        let error = watch_acquire(&Caller::admin(), None, &empty).expect_err("refused");
        assert_eq!(error.violations[0].field, "acquire");
        let renewed = v1::RenewLeaseRequest { name: "leases/l1".into(), ttl: seconds(86_401) };
        assert_eq!(renew(&renewed).expect_err("refused").violations[0].field, "ttl");
        let released = v1::ReleaseVmRequest { name: "leases/l1".into(), policy: 4 };
        assert_eq!(release(&released).expect_err("refused").violations[0].field, "policy");
        let listed = v1::ListLeasesRequest { pool: "vms/a1".into(), ..Default::default() };
        assert_eq!(filter(&listed).expect_err("refused").violations[0].field, "pool");
    }

    #[test]
    fn a_repeat_may_wait_for_less() {
        let of = |request: v1::AcquireVmRequest| {
            let request_id = "7d444840-9dc0-11d1-b245-5ffdce74fad2".into();
            let request = v1::AcquireVmRequest { request_id, ..request };
            acquire(&Caller::admin(), None, &request).expect("legal").request
        };
        let first = of(v1::AcquireVmRequest { wait: seconds(60), ..legal() });
        assert_eq!(first, of(v1::AcquireVmRequest { wait: seconds(7), ..legal() }));
        assert_ne!(first, of(v1::AcquireVmRequest { ttl: seconds(60), ..legal() }));
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_ends_before_the_deadline_does() {
        let of = |deadline, request: &v1::AcquireVmRequest| {
            acquire(&Caller::admin(), deadline, request).expect("legal").wait
        };
        let deadline = Some(Deadline(Instant::now() + Duration::from_secs(5)));
        assert_eq!(of(None, &legal()), DEFAULT_WAIT);
        assert_eq!(of(deadline, &legal()), Duration::from_millis(4900));
        let request = v1::AcquireVmRequest { wait: seconds(0), ..legal() };
        assert_eq!(of(deadline, &request), Duration::ZERO);
    }
}
