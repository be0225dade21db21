//! Agents.

use std::ops::RangeInclusive;
use std::time::Duration;

use hvkube_proto::v1;

use super::{duration, lease, name_of, timestamp, vm};
use crate::api::deadline::Deadline;
use crate::api::fields;
use crate::model::agent::{
    Agent, AgentFilter, AgentSpec, AgentStatus, LogEntry, LogSource, RetryPolicy, Runner, Shot,
    is_workflow_name,
};
use crate::model::error::{Error, Result};
use crate::model::ids::AgentId;
use crate::orchestrator::agents::request::{
    ClaimAgent, Claimed, CompleteAgent, ReportAgent, ShotImage, SubmitAgent, Upload,
};
use crate::orchestrator::request::Caller;

/// Of an input: it is kept with the row and goes to a guest in one message.
const MAX_INPUT: usize = 256 << 10;
const MAX_OUTPUT: usize = 1 << 20;
const MAX_ERROR: usize = 4096;
const MAX_LINES: usize = 100;
const MAX_LINE: usize = 4096;
const MAX_IDS: usize = 100;
const TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30 * 60);
const QUEUE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(7 * 24 * 3600);
const DEFAULT_QUEUE: Duration = Duration::from_secs(24 * 3600);
const PRIORITY: RangeInclusive<i32> = -100..=100;
const ATTEMPTS: RangeInclusive<u32> = 1..=20;
const DEFAULT_ATTEMPTS: u32 = 3;
const FIRST_PAUSE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);
const DEFAULT_FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(24 * 3600);
const DEFAULT_LONGEST_PAUSE: Duration = Duration::from_secs(300);
const CLAIM_TTL: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
const MAX_WAIT: Duration = Duration::from_secs(300);
const DEFAULT_WAIT: Duration = Duration::from_secs(30);
/// What is kept of a call's deadline, so that the answer is "none" and not that the deadline passed.
const ANSWER_TIME: Duration = Duration::from_millis(100);

pub(crate) fn submit(caller: &Caller, request: &v1::SubmitAgentRequest) -> Result<SubmitAgent> {
    let agent = fields::required("agent", request.agent.as_ref())?;
    let task = fields::required("agent.task", agent.task.as_ref())?;
    let timeout = fields::duration("agent.task.timeout", task.timeout, TIMEOUT)?;
    let queue = fields::duration("agent.queue_timeout", agent.queue_timeout, QUEUE)?;
    let input = json("agent.task.input_json", &task.input_json, MAX_INPUT)?;
    Ok(SubmitAgent {
        id: fields::id("agent_id", &request.agent_id)?,
        spec: AgentSpec {
            display_name: fields::text("agent.display_name", &agent.display_name, fields::DISPLAY_NAME)?
                .to_owned(),
            pool: fields::name("agent.pool", "pools", &agent.pool)?,
            workflow: workflow("agent.task.workflow", &task.workflow)?,
            timeout: timeout.unwrap_or(DEFAULT_TIMEOUT),
            requires_gpu: task.requires_gpu,
            priority: fields::range("agent.priority", agent.priority, PRIORITY)?,
            retry: retry(agent.retry.as_ref())?,
            queue_timeout: queue.unwrap_or(DEFAULT_QUEUE),
        },
        default_timeout: timeout.is_none(),
        input: if input.is_empty() { "{}".into() } else { input },
        request: fields::request_id(caller, "SubmitAgent", request, |r| &mut r.request_id)?,
    })
}

fn retry(policy: Option<&v1::AgentRetryPolicy>) -> Result<RetryPolicy> {
    let policy = policy.copied().unwrap_or_default();
    let attempts = match policy.max_attempts {
        0 => DEFAULT_ATTEMPTS,
        given => fields::range("agent.retry.max_attempts", given, ATTEMPTS)?,
    };
    let first = fields::duration("agent.retry.initial_backoff", policy.initial_backoff, FIRST_PAUSE)?;
    let longest = fields::duration("agent.retry.max_backoff", policy.max_backoff, LONGEST_PAUSE)?;
    Ok(RetryPolicy {
        max_attempts: attempts,
        initial_backoff: first.unwrap_or(DEFAULT_FIRST_PAUSE),
        max_backoff: longest.unwrap_or(DEFAULT_LONGEST_PAUSE),
    })
}

fn workflow(field: &str, name: &str) -> Result<String> {
    fields::required_text(field, name, 63)?;
    if !is_workflow_name(name) {
        let what = format!(
            "{:?} must be 1 to 63 characters of a-z, 0-9, - and _, and begin with a letter or digit",
            fields::cut(name)
        );
        return Err(Error::field(field, what));
    }
    Ok(name.to_owned())
}

/// One JSON value, or nothing.
fn json(field: &str, text: &str, max: usize) -> Result<String> {
    fields::text(field, text, max)?;
    let text = text.trim();
    if !text.is_empty()
        && let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(text)
    {
        return Err(Error::field(field, format!("is no JSON: {error}")));
    }
    Ok(text.to_owned())
}

pub(crate) fn list_filter(request: &v1::ListAgentsRequest) -> Result<AgentFilter> {
    Ok(AgentFilter {
        pool: fields::optional_name("pool", "pools", &request.pool)?,
        workflow: optional_workflow(&request.workflow)?,
        statuses: statuses(&request.statuses)?,
        ids: Vec::new(),
    })
}

pub(crate) fn watch_filter(request: &v1::WatchAgentsRequest) -> Result<AgentFilter> {
    if request.agents.len() > MAX_IDS {
        let what = format!("has {} entries, at most {MAX_IDS} are allowed", request.agents.len());
        return Err(Error::field("agents", what));
    }
    let ids = request.agents.iter().enumerate();
    Ok(AgentFilter {
        pool: fields::optional_name("pool", "pools", &request.pool)?,
        workflow: optional_workflow(&request.workflow)?,
        statuses: statuses(&request.statuses)?,
        ids: ids
            .map(|(i, name)| fields::name(&format!("agents[{i}]"), "agents", name))
            .collect::<Result<_>>()?,
    })
}

fn optional_workflow(name: &str) -> Result<String> {
    if name.is_empty() { Ok(String::new()) } else { workflow("workflow", name) }
}

fn statuses(values: &[i32]) -> Result<Vec<AgentStatus>> {
    let values = values.iter().enumerate();
    values
        .map(|(i, value)| {
            let field = format!("statuses[{i}]");
            Ok(match fields::one_of(&field, *value, v1::AgentStatus::as_str_name)? {
                v1::AgentStatus::Unspecified => return Err(Error::field(field, "is unspecified")),
                v1::AgentStatus::Pending => AgentStatus::Pending,
                v1::AgentStatus::Scheduled => AgentStatus::Scheduled,
                v1::AgentStatus::Running => AgentStatus::Running,
                v1::AgentStatus::Completed => AgentStatus::Completed,
                v1::AgentStatus::Failed => AgentStatus::Failed,
                v1::AgentStatus::Cancelled => AgentStatus::Cancelled,
            })
        })
        .collect()
}

pub(crate) fn claim(
    caller: &Caller,
    deadline: Option<Deadline>,
    request: &v1::ClaimAgentRequest,
) -> Result<ClaimAgent> {
    let wait = fields::duration("wait", request.wait, Duration::ZERO..=MAX_WAIT)?;
    let until_deadline =
        || deadline.map(|deadline| deadline.left().saturating_sub(ANSWER_TIME).min(MAX_WAIT));
    Ok(ClaimAgent {
        workflow: workflow("workflow", &request.workflow)?,
        pool: fields::optional_name("pool", "pools", &request.pool)?,
        worker: fields::text("worker", &request.worker, fields::DISPLAY_NAME)?.to_owned(),
        ttl: fields::duration("claim_ttl", request.claim_ttl, CLAIM_TTL)?,
        wait: wait.or_else(until_deadline).unwrap_or(DEFAULT_WAIT),
        request: fields::request_id(caller, "ClaimAgent", request, |r| &mut r.request_id)?,
    })
}

pub(crate) fn report(request: v1::ReportAgentRequest) -> Result<ReportAgent> {
    let progress = request.progress_percent;
    progress.map(|percent| fields::range("progress_percent", percent, 0..=100)).transpose()?;
    if request.log.len() > MAX_LINES {
        let what = format!("has {} entries, at most {MAX_LINES} are allowed", request.log.len());
        return Err(Error::field("log", what));
    }
    for (i, line) in request.log.iter().enumerate() {
        fields::text(&format!("log[{i}]"), line, MAX_LINE)?;
    }
    Ok(ReportAgent {
        id: fields::name("name", "agents", &request.name)?,
        epoch: epoch(request.epoch)?,
        progress,
        message: fields::text("progress_message", &request.progress_message, fields::DESCRIPTION)?.to_owned(),
        log: request.log,
        uploads: uploads(request.screenshots)?,
        take_screenshot: request.take_screenshot,
    })
}

pub(crate) fn complete(request: v1::CompleteAgentRequest) -> Result<CompleteAgent> {
    let error = fields::text("error", &request.error, MAX_ERROR)?;
    if request.success && !error.is_empty() {
        return Err(Error::field("error", "must be empty when success is true"));
    }
    if request.success && request.retry {
        return Err(Error::field("retry", "is for failures, must be false when success is true"));
    }
    let error = if error.is_empty() { "the worker says that it failed" } else { error };
    Ok(CompleteAgent {
        id: fields::name("name", "agents", &request.name)?,
        epoch: epoch(request.epoch)?,
        error: (!request.success).then(|| error.to_owned()),
        retry: request.retry,
        output: json("output_json", &request.output_json, MAX_OUTPUT)?,
        uploads: uploads(request.screenshots)?,
        take_screenshot: request.take_screenshot,
    })
}

fn epoch(value: u64) -> Result<u64> {
    if value == 0 { Err(Error::field("epoch", "is required, ClaimAgent gives it")) } else { Ok(value) }
}

fn uploads(given: Vec<v1::AgentScreenshotUpload>) -> Result<Vec<Upload>> {
    let given = given.into_iter().enumerate();
    given
        .map(|(i, upload)| {
            fields::text(&format!("screenshots[{i}].label"), &upload.label, fields::DISPLAY_NAME)?;
            let field = format!("screenshots[{i}].image");
            Ok(Upload { field, image: upload.image, label: upload.label })
        })
        .collect()
}

/// `agents/{agent}/screenshots/{screenshot}`.
pub(crate) fn screenshot_name(name: &str) -> Result<(AgentId, String)> {
    const FORM: &str = "agents/{agent}/screenshots/{screenshot}";
    if name.is_empty() {
        return Err(Error::field("name", format!("is required, in the form {FORM}")));
    }
    let parts = name.split_once("/screenshots/");
    let shot = |shot: &str| (1..=9).contains(&shot.len()) && shot.bytes().all(|b| b.is_ascii_digit());
    match parts.filter(|(_, id)| shot(id)) {
        Some((agent, shot)) => Ok((fields::name("name", "agents", agent)?, shot.to_owned())),
        None => Err(Error::field("name", format!("{:?} is not of the form {FORM}", fields::cut(name)))),
    }
}

/// An agent; `keep`: how long its pictures are kept.
pub(crate) fn to_proto(agent: &Agent, keep: Duration) -> v1::Agent {
    let claim = agent.claim.as_ref();
    let spec = &agent.spec;
    let waits = agent.status == AgentStatus::Pending && agent.not_before > agent.created;
    v1::Agent {
        name: format!("agents/{}", agent.id),
        uid: agent.uid.to_string(),
        display_name: spec.display_name.clone(),
        pool: format!("pools/{}", spec.pool),
        task: Some(v1::AgentTask {
            workflow: spec.workflow.clone(),
            input_json: agent.input.clone(),
            timeout: Some(duration(spec.timeout)),
            requires_gpu: spec.requires_gpu,
        }),
        priority: spec.priority,
        retry: Some(v1::AgentRetryPolicy {
            max_attempts: spec.retry.max_attempts,
            initial_backoff: Some(duration(spec.retry.initial_backoff)),
            max_backoff: Some(duration(spec.retry.max_backoff)),
        }),
        queue_timeout: Some(duration(spec.queue_timeout)),
        owner: agent.owner.clone(),
        status: status(agent.status).into(),
        status_reason: agent.reason.clone(),
        runner: match agent.runner {
            None => v1::AgentRunner::Unspecified,
            Some(Runner::External) => v1::AgentRunner::External,
            Some(Runner::Guest) => v1::AgentRunner::Guest,
        }
        .into(),
        vm: name_of("vms", agent.vm.as_ref()),
        lease: name_of("leases", claim.and_then(|claim| claim.lease.as_ref())),
        attempt: agent.attempt,
        epoch: agent.epoch,
        worker: agent.worker.clone(),
        claim_expire_time: claim.and_then(|claim| claim.expires).map(timestamp),
        progress_percent: agent.progress,
        progress_message: agent.progress_message.clone(),
        next_attempt_time: waits.then(|| timestamp(agent.not_before)),
        result: agent.outcome.as_ref().map(|outcome| v1::AgentResult {
            success: outcome.success,
            output_json: agent.output.clone(),
            error: outcome.error.clone(),
            duration: Some(duration(outcome.duration)),
        }),
        screenshots: agent.shots.iter().map(|one| shot(&agent.id, one, keep)).collect(),
        create_time: Some(timestamp(agent.created)),
        start_time: agent.started.map(timestamp),
        end_time: agent.ended.map(timestamp),
        update_time: Some(timestamp(agent.updated)),
        etag: agent.version.to_string(),
    }
}

/// As [`to_proto`], without what may be large: a page has up to 1000 of them.
pub(crate) fn brief(agent: &Agent, keep: Duration) -> v1::Agent {
    let mut agent = to_proto(agent, keep);
    agent.screenshots.clear();
    shorten(&mut agent.status_reason);
    if let Some(task) = &mut agent.task {
        task.input_json.clear();
    }
    if let Some(result) = &mut agent.result {
        result.output_json.clear();
        shorten(&mut result.error);
    }
    agent
}

fn shorten(text: &mut String) {
    text.truncate(text.floor_char_boundary(fields::DESCRIPTION));
}

fn status(status: AgentStatus) -> v1::AgentStatus {
    match status {
        AgentStatus::Pending => v1::AgentStatus::Pending,
        AgentStatus::Scheduled => v1::AgentStatus::Scheduled,
        AgentStatus::Running => v1::AgentStatus::Running,
        AgentStatus::Completed => v1::AgentStatus::Completed,
        AgentStatus::Failed => v1::AgentStatus::Failed,
        AgentStatus::Cancelled => v1::AgentStatus::Cancelled,
    }
}

fn shot(agent: &AgentId, shot: &Shot, keep: Duration) -> v1::AgentScreenshot {
    v1::AgentScreenshot {
        name: format!("agents/{agent}/screenshots/{}", shot.id),
        content_type: shot.content_type.clone(),
        width: shot.width,
        height: shot.height,
        size_bytes: shot.bytes,
        label: shot.label.clone(),
        create_time: Some(timestamp(shot.created)),
        expire_time: shot.created.checked_add(keep).ok().map(timestamp),
    }
}

pub(crate) fn image(image: ShotImage, keep: Duration) -> v1::AgentScreenshotImage {
    v1::AgentScreenshotImage { screenshot: Some(shot(&image.agent, &image.shot, keep)), image: image.image }
}

pub(crate) fn claimed(claimed: Option<&Claimed>, keep: Duration) -> v1::ClaimAgentResponse {
    let Some(claimed) = claimed else { return v1::ClaimAgentResponse::default() };
    v1::ClaimAgentResponse {
        agent: Some(to_proto(&claimed.agent, keep)),
        epoch: claimed.agent.epoch,
        lease: Some(lease::to_proto(&claimed.lease)),
        vm: Some(vm::to_proto(&claimed.vm)),
        claim_ttl: Some(duration(claimed.ttl)),
    }
}

pub(crate) fn log_entry(entry: &LogEntry) -> v1::AgentLogEntry {
    v1::AgentLogEntry {
        sequence: entry.sequence,
        create_time: Some(timestamp(entry.at)),
        source: match entry.source {
            LogSource::Daemon => v1::AgentLogSource::Daemon,
            LogSource::Worker => v1::AgentLogSource::Worker,
            LogSource::Stderr => v1::AgentLogSource::Stderr,
        }
        .into(),
        epoch: entry.epoch,
        text: entry.text.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.expect_err("refused").violations.remove(0).field
    }

    fn seconds(seconds: i64) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos: 0 })
    }

    fn legal() -> v1::SubmitAgentRequest {
        let task = v1::AgentTask { workflow: "book-flight".into(), ..Default::default() };
        let agent = v1::Agent { pool: "pools/web".into(), task: Some(task), ..Default::default() };
        v1::SubmitAgentRequest { agent: Some(agent), ..Default::default() }
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let wanted = submit(&Caller::admin(), &legal()).expect("legal");
        assert_eq!((wanted.input.as_str(), wanted.default_timeout), ("{}", true));
        assert_eq!(wanted.spec.retry.max_attempts, 3);
        let claim = v1::ClaimAgentRequest { workflow: "a".into(), ..Default::default() };
        assert_eq!(super::claim(&Caller::admin(), None, &claim).expect("legal").wait, DEFAULT_WAIT);
    }

    #[test]
    fn refusals_of_a_submit_name_their_field() {
        type Change = fn(&mut v1::SubmitAgentRequest, &mut v1::Agent, &mut v1::AgentTask);
        let cases: &[(&str, Change)] = &[
            ("agent_id", |r, _, _| r.agent_id = "X".into()),
            ("request_id", |r, _, _| r.request_id = "x".into()),
            ("agent.pool", |_, a, _| a.pool = "web".into()),
            ("agent.pool", |_, a, _| a.pool.clear()),
            ("agent.display_name", |_, a, _| a.display_name = "x".repeat(129)),
            ("agent.priority", |_, a, _| a.priority = 101),
            ("agent.priority", |_, a, _| a.priority = i32::MIN),
            ("agent.queue_timeout", |_, a, _| a.queue_timeout = seconds(0)),
            ("agent.retry.max_attempts", |_, a, _| {
                a.retry = Some(v1::AgentRetryPolicy { max_attempts: 21, ..Default::default() });
            }),
            ("agent.retry.initial_backoff", |_, a, _| {
                a.retry = Some(v1::AgentRetryPolicy { initial_backoff: seconds(-1), ..Default::default() });
            }),
            ("agent.retry.max_backoff", |_, a, _| {
                a.retry = Some(v1::AgentRetryPolicy { max_backoff: seconds(86_401), ..Default::default() });
            }),
            ("agent.task.workflow", |_, _, t| t.workflow.clear()),
            ("agent.task.workflow", |_, _, t| t.workflow = "Book flight".into()),
            ("agent.task.timeout", |_, _, t| t.timeout = seconds(86_401)),
            ("agent.task.input_json", |_, _, t| t.input_json = "{".into()),
            ("agent.task.input_json", |_, _, t| t.input_json = "{} {}".into()),
            ("agent.task.input_json", |_, _, t| t.input_json = format!("\"{}\"", "x".repeat(MAX_INPUT))),
        ];
        for (expected, change) in cases {
            let mut request = legal();
            let mut agent = request.agent.take().expect("given");
            let mut task = agent.task.take().expect("given");
            change(&mut request, &mut agent, &mut task);
            agent.task = Some(task);
            request.agent = Some(agent);
            assert_eq!(field(submit(&Caller::admin(), &request)), *expected);
        }
        assert_eq!(field(submit(&Caller::admin(), &v1::SubmitAgentRequest::default())), "agent");
        let bare = v1::SubmitAgentRequest { agent: Some(v1::Agent::default()), ..Default::default() };
        assert_eq!(field(submit(&Caller::admin(), &bare)), "agent.task");
    }

    #[test]
    fn refusals_of_workers_name_their_field() {
        let claim = |change: fn(&mut v1::ClaimAgentRequest)| {
            let mut request = v1::ClaimAgentRequest { workflow: "a".into(), ..Default::default() };
            change(&mut request);
            field(claim(&Caller::admin(), None, &request))
        };
        assert_eq!(claim(|r| r.workflow.clear()), "workflow");
        assert_eq!(claim(|r| r.pool = "vms/a1".into()), "pool");
        assert_eq!(claim(|r| r.worker = "x".repeat(129)), "worker");
        assert_eq!(claim(|r| r.claim_ttl = seconds(0)), "claim_ttl");
        assert_eq!(claim(|r| r.wait = seconds(301)), "wait");
        assert_eq!(claim(|r| r.request_id = "x".into()), "request_id");

        let report = |change: fn(&mut v1::ReportAgentRequest)| {
            let mut request =
                v1::ReportAgentRequest { name: "agents/a1".into(), epoch: 1, ..Default::default() };
            change(&mut request);
            field(report(request))
        };
        assert_eq!(report(|r| r.name = "a1".into()), "name");
        assert_eq!(report(|r| r.epoch = 0), "epoch");
        assert_eq!(report(|r| r.progress_percent = Some(101)), "progress_percent");
        assert_eq!(report(|r| r.progress_message = "x".repeat(257)), "progress_message");
        assert_eq!(report(|r| r.log = vec![String::new(); 101]), "log");
        assert_eq!(report(|r| r.log = vec!["x".repeat(4097)]), "log[0]");
        let label = "x".repeat(129);
        let upload = v1::AgentScreenshotUpload { label, ..Default::default() };
        let request = v1::ReportAgentRequest {
            name: "agents/a1".into(),
            epoch: 1,
            screenshots: vec![upload],
            ..Default::default()
        };
        assert_eq!(field(super::report(request)), "screenshots[0].label");

        let complete = |change: fn(&mut v1::CompleteAgentRequest)| {
            let mut request = v1::CompleteAgentRequest {
                name: "agents/a1".into(),
                epoch: 1,
                success: true,
                ..Default::default()
            };
            change(&mut request);
            field(complete(request))
        };
        assert_eq!(complete(|r| r.name.clear()), "name");
        assert_eq!(complete(|r| r.epoch = 0), "epoch");
        assert_eq!(complete(|r| r.error = "no".into()), "error");
        assert_eq!(complete(|r| r.retry = true), "retry");
        assert_eq!(complete(|r| r.output_json = "done".into()), "output_json");
    }

    #[test]
    fn refusals_of_lists_and_pictures_name_their_field() {
        let list = v1::ListAgentsRequest { statuses: vec![9], ..Default::default() };
        assert_eq!(field(list_filter(&list)), "statuses[0]");
        let list = v1::ListAgentsRequest { workflow: "A".into(), ..Default::default() };
        assert_eq!(field(list_filter(&list)), "workflow");
        let watch = v1::WatchAgentsRequest { agents: vec!["a1".into()], ..Default::default() };
        assert_eq!(field(watch_filter(&watch)), "agents[0]");
        let watch = v1::WatchAgentsRequest { agents: vec!["agents/a1".into(); 101], ..Default::default() };
        assert_eq!(field(watch_filter(&watch)), "agents");
        for bad in
            ["", "agents/a1", "agents/a1/screenshots/", "agents/a1/screenshots/../x", "a1/screenshots/1"]
        {
            assert_eq!(field(screenshot_name(bad)), "name", "{bad}");
        }
        assert_eq!(screenshot_name("agents/a1/screenshots/12").expect("legal").1, "12");
    }
}
