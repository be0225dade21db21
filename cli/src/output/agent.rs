//! What people see of agents.

use hvkube_sdk::v1::{Agent, AgentStatus};

use crate::output::human::{age, enum_name, printable, proto_duration, short, some, time, until, yes};
use crate::output::{Column, Level, Resource, Tone};

/// `"HEAD" Level |item| value` for each column.
macro_rules! columns {
    ($($head:literal $level:ident $value:expr;)*) => {
        const { &[$(Column { head: $head, level: Level::$level, value: $value }),*] }
    };
}

impl Resource for Agent {
    const MESSAGE: &'static str = "hvkube.v1.Agent";
    const PLURAL: &'static str = "agents";

    fn name(&self) -> &str {
        &self.name
    }

    fn columns() -> &'static [Column<Self>] {
        columns! {
            "NAME" Table |a| short(&a.name);
            "STATE" Table |a| enum_name(a.status().as_str_name());
            "WORKFLOW" Table |a| a.task.as_ref().map(|task| task.workflow.clone()).unwrap_or_default();
            "POOL" Table |a| short(&a.pool);
            "VM" Table |a| short(&a.vm);
            "PROGRESS" Table |a| progress(a);
            "AGE" Table |a| age(a.create_time.as_ref());
            "ATTEMPT" Wide |a| attempt(a);
            "REASON" Wide |a| printable(&a.status_reason);
            "WORKER" Wide |a| a.worker.clone();
            "TOOK" Wide |a| a.result.as_ref().map(|result| proto_duration(result.duration)).unwrap_or_default();
            "OUTPUT" Wide |a| a.result.as_ref().map(|result| printable(&result.output_json)).unwrap_or_default();
            "PICTURES" Wide |a| some(u32::try_from(a.screenshots.len()).unwrap_or(u32::MAX));
            "TITLE" Detail |a| a.display_name.clone();
            "INPUT" Detail |a| a.task.as_ref().map(|task| printable(&task.input_json)).unwrap_or_default();
            "MESSAGE" Detail |a| printable(&a.progress_message);
            "OWNER" Detail |a| a.owner.clone();
            "PRIORITY" Detail |a| if a.priority == 0 { String::new() } else { a.priority.to_string() };
            "GPU" Detail |a| yes(a.task.as_ref().is_some_and(|task| task.requires_gpu));
            "RUN TIMEOUT" Detail |a| proto_duration(a.task.as_ref().and_then(|task| task.timeout));
            "NEXT ATTEMPT" Detail |a| until(a.next_attempt_time.as_ref());
            "LEASE" Detail |a| short(&a.lease);
            "SUBMITTED" Detail |a| time(a.create_time.as_ref());
            "STARTED" Detail |a| time(a.start_time.as_ref());
            "ENDED" Detail |a| time(a.end_time.as_ref());
            "UID" Detail |a| a.uid.clone();
        }
    }

    fn tone(&self) -> Tone {
        match self.status() {
            AgentStatus::Completed => Tone::Good,
            AgentStatus::Failed => Tone::Bad,
            AgentStatus::Scheduled | AgentStatus::Running => Tone::Busy,
            AgentStatus::Pending | AgentStatus::Cancelled | AgentStatus::Unspecified => Tone::Plain,
        }
    }
}

fn progress(agent: &Agent) -> String {
    match agent.status() {
        AgentStatus::Running if agent.progress_percent > 0 => format!("{}%", agent.progress_percent),
        _ => String::new(),
    }
}

fn attempt(agent: &Agent) -> String {
    match &agent.retry {
        Some(retry) => format!("{}/{}", agent.attempt, retry.max_attempts),
        None => some(agent.attempt),
    }
}
