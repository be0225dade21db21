//! The demo's steps, each one call of `hvkube`.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::command::{self, Failed};
use crate::progress::Step;
use crate::stage::Stage;

const TEMPLATE: &str = "linux-desktop";
const POOL: &str = "demo";
/// Where the image's terminal window is on its screen of 1280x800, whatever the window manager makes of its margins.
const TERMINAL: [&str; 2] = ["640", "300"];
/// `hvkube` ends with this code when something is not there.
const NOT_FOUND: i32 = 3;

/// A client of the stage's daemon.
#[derive(Debug)]
pub(super) struct Session<'a> {
    stage: &'a Stage,
}

/// A lease in hand.
#[derive(Debug)]
pub(super) struct Grant {
    /// `leases/…`.
    pub(super) lease: String,
    /// The VM's id.
    pub(super) vm: String,
    /// What the desktop proved, and when, counted from the grant.
    pub(super) checks: Vec<(String, Duration)>,
}

impl<'a> Session<'a> {
    pub(super) fn new(stage: &'a Stage) -> Self {
        Self { stage }
    }

    pub(super) fn make_template(&self, image: &Path, step: &Step) -> anyhow::Result<()> {
        let mut command = self.command(&["template", "create", "--name", TEMPLATE, "--image-dir"]);
        command::run(command.arg(image), step)
    }

    pub(super) fn make_pool(&self, size: usize, step: &Step) -> anyhow::Result<()> {
        let count = size.to_string();
        let arguments =
            ["pool", "create", "--name", POOL, "--template", TEMPLATE, "--count", &count, "--wait"];
        command::run(&mut self.command(&arguments), step)
    }

    /// Takes a desktop.
    pub(super) fn acquire(&self, step: &Step) -> anyhow::Result<Grant> {
        let arguments = ["lease", "acquire", POOL, "--wait", "60s", "--purpose", "demo", "-o", "json"];
        let text = command::answer(&mut self.command(&arguments), step)?;
        let answer: Value = serde_json::from_slice(&text).context("read hvkube's JSON")?;
        grant(&answer)
    }

    /// Takes desktops until it has the VM of an earlier grant, which comes last.
    pub(super) fn acquire_same(
        &self,
        earlier: &Grant,
        limit: usize,
        step: &Step,
    ) -> anyhow::Result<Vec<Grant>> {
        let mut grants = Vec::new();
        while grants.len() < limit {
            let grant = self.acquire(step)?;
            let same = grant.vm == earlier.vm;
            grants.push(grant);
            if same {
                return Ok(grants);
            }
        }
        bail!("{} was not among the pool's {limit} VMs any more", earlier.vm)
    }

    pub(super) fn release(&self, grant: &Grant, step: &Step) -> anyhow::Result<()> {
        command::run(&mut self.command(&["lease", "release", &grant.lease]), step)
    }

    pub(super) fn click_terminal(&self, grant: &Grant, step: &Step) -> anyhow::Result<()> {
        let [x, y] = TERMINAL;
        command::run(&mut self.command(&["vm", "click", &grant.lease, x, y]), step)
    }

    /// Types a line and presses Return.
    pub(super) fn type_line(&self, grant: &Grant, line: &str, step: &Step) -> anyhow::Result<()> {
        command::run(&mut self.command(&["vm", "type", &grant.lease, "--enter", "--", line]), step)
    }

    pub(super) fn settle(&self, grant: &Grant, step: &Step) -> anyhow::Result<()> {
        command::run(&mut self.command(&["vm", "wait", &grant.lease, "--timeout", "20s"]), step)
    }

    pub(super) fn screenshot(&self, grant: &Grant, to: &Path, step: &Step) -> anyhow::Result<()> {
        command::run(self.command(&["vm", "screenshot", &grant.lease, "--output"]).arg(to), step)
    }

    /// A file of the guest as text; none when there is no such file.
    pub(super) fn read(&self, grant: &Grant, file: &str, step: &Step) -> anyhow::Result<Option<String>> {
        let source = format!("{}:{file}", grant.lease);
        let bytes = found(command::answer(&mut self.command(&["vm", "cp", &source, "-"]), step))?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Deletes what the demo made.
    pub(super) fn clear(&self, step: &Step) -> anyhow::Result<()> {
        command::run(&mut self.command(&["pool", "delete", POOL, "--force"]), step)?;
        self.stage.delete_template(TEMPLATE, step)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        self.stage.hvkube(arguments)
    }
}

/// None when `hvkube` says that there is no such thing.
fn found<T>(outcome: anyhow::Result<T>) -> anyhow::Result<Option<T>> {
    match outcome {
        Err(error) if error.downcast_ref::<Failed>().is_some_and(|f| f.code == Some(NOT_FOUND)) => Ok(None),
        outcome => outcome.map(Some),
    }
}

/// Reads the answer of `lease acquire -o json`.
fn grant(answer: &Value) -> anyhow::Result<Grant> {
    let text = |value: &Value, what: &str| {
        value.as_str().map(str::to_owned).with_context(|| format!("hvkube's answer has no {what}"))
    };
    let lease = &answer["lease"];
    let vm = text(&lease["vm"], "VM")?;
    let receipt = &lease["receipt"];
    let mut checks = Vec::new();
    for check in receipt["checks"].as_array().into_iter().flatten() {
        let kind = text(&check["kind"], "kind of check")?;
        let name = kind.trim_start_matches("READINESS_CHECK_KIND_").replace('_', " ").to_lowercase();
        let detail = check["detail"].as_str().filter(|detail| !detail.is_empty());
        let name = detail.map_or(name.clone(), |detail| format!("{name}: {detail}"));
        // The first check may pass at once: JSON then leaves the zero out.
        checks.push((name, check["at"].as_str().map_or(Ok(Duration::ZERO), proto_duration)?));
    }
    Ok(Grant { lease: text(&lease["name"], "lease")?, vm: vm.trim_start_matches("vms/").to_owned(), checks })
}

/// The API's JSON form of a duration: `0.0512s`.
fn proto_duration(text: &str) -> anyhow::Result<Duration> {
    text.strip_suffix('s')
        .and_then(|number| Duration::try_from_secs_f64(number.parse().ok()?).ok())
        .with_context(|| format!("`{text}` is no duration"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_grant_is_read_with_its_receipt() {
        let answer = json!({
            "lease": {"name": "leases/l-1", "vm": "vms/demo-a", "receipt": {"checks": [
                {"kind": "READINESS_CHECK_KIND_RUNNING", "at": "0.051200s"},
                {"kind": "READINESS_CHECK_KIND_AGENT_SESSION", "at": "0.06s", "detail": "epoch 1"},
            ]}},
            "vm": {"name": "vms/demo-a"},
        });
        let grant = grant(&answer).unwrap();
        assert_eq!((grant.lease.as_str(), grant.vm.as_str()), ("leases/l-1", "demo-a"));
        assert_eq!(
            grant.checks,
            [
                ("running".to_owned(), Duration::from_micros(51_200)),
                ("agent session: epoch 1".to_owned(), Duration::from_millis(60)),
            ]
        );
    }

    #[test]
    fn an_answer_without_a_lease_is_refused() {
        assert!(grant(&json!({})).unwrap_err().to_string().contains("has no VM"));
        assert!(proto_duration("5").is_err() && proto_duration("-1s").is_err());
    }
}
