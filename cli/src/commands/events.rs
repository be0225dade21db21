//! `hvkube events`.

use std::collections::VecDeque;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use futures_util::stream::StreamExt as _;
use hvkube_sdk::v1::{Event, EventKind, WatchEventsRequest};
use hvkube_sdk::{Change, Timestamp};

use crate::args::{Format, ListArgs};
use crate::context::Context;
use crate::output::{self, Parts, Resource as _};
use crate::report::Outcome;
use crate::units;

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// List what happened, oldest first; with --watch go on with what happens
    #[command(visible_alias = "ls")]
    List {
        /// Only what is about this pool, its VMs and leases
        #[arg(short, long)]
        pool: Option<String>,
        /// Only what is about this VM
        #[arg(long)]
        vm: Option<String>,
        /// Only what is about this agent
        #[arg(long)]
        agent: Option<String>,
        /// Only of this kind; may be given several times
        #[arg(short, long = "kind", value_name = "KIND", value_delimiter = ',', value_parser = kinds())]
        kinds: Vec<EventKind>,
        /// Only what happened in the last, e.g. 10m
        #[arg(long, value_name = "DURATION", value_parser = units::duration)]
        since: Option<Duration>,
        /// Only the last so many of what happened
        #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=100_000))]
        tail: Option<u32>,
        #[command(flatten)]
        list: ListArgs,
    },
}

const KINDS: [&str; 32] = [
    "vm-created",
    "vm-moved",
    "vm-quarantined",
    "vm-changed",
    "vm-deleted",
    "console-opened",
    "console-closed",
    "lease-granted",
    "lease-ready",
    "lease-renewed",
    "lease-suspended",
    "lease-resumed",
    "lease-ended",
    "pool-created",
    "pool-changed",
    "pool-paused",
    "pool-resumed",
    "pool-deleting",
    "pool-deleted",
    "template-created",
    "template-ready",
    "template-deleting",
    "template-deleted",
    "agent-submitted",
    "agent-scheduled",
    "agent-running",
    "agent-pending",
    "agent-completed",
    "agent-failed",
    "agent-cancelled",
    "agent-changed",
    "agent-deleted",
];

fn kinds() -> impl clap::builder::TypedValueParser<Value = EventKind> {
    PossibleValuesParser::new(KINDS).map(|name| {
        let name = name.to_ascii_uppercase().replace('-', "_");
        EventKind::from_str_name(&format!("EVENT_KIND_{name}")).unwrap_or_default()
    })
}

pub(crate) async fn run(context: &Context, action: Action) -> Outcome {
    let Action::List { pool, vm, agent, kinds, since, tail, list } = action;
    let start_time = since.map(|since| {
        let start = jiff::Timestamp::now().checked_sub(since).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        Timestamp { seconds: start.as_second(), nanos: 0 }
    });
    let request = WatchEventsRequest {
        pool: pool.unwrap_or_default(),
        vm: vm.unwrap_or_default(),
        agent: agent.unwrap_or_default(),
        kinds: kinds.into_iter().map(i32::from).collect(),
        start_time,
        ..WatchEventsRequest::default()
    };
    let format = context.format(list.output);
    let mut watch = std::pin::pin!(context.client().await?.watch_events(request));
    let tail = tail.and_then(|tail| usize::try_from(tail).ok());
    let mut show = Show { watch: list.watch, format, parts: Parts::new(format), shown: false };
    // Those that may turn out to be the last ones.
    let mut last = VecDeque::new();
    let mut synced = false;
    while let Some(change) = watch.next().await {
        match (change?, tail) {
            (Change::Is(event), Some(tail)) if !synced => {
                if last.len() == tail {
                    last.pop_front();
                }
                last.push_back(event);
            }
            (Change::Is(event), _) => show.event(event)?,
            (Change::Synced, _) => {
                synced = true;
                for event in last.drain(..) {
                    show.event(event)?;
                }
                if !list.watch {
                    break;
                }
            }
            (Change::Restarted, _) => {
                synced = false;
                last.clear();
                context.note(
                    "the daemon no longer knows all that happened meanwhile; from its oldest event on:",
                );
            }
            (Change::Gone(_), _) => {}
        }
    }
    if show.parts.is_empty() && output::is_for_people(format) {
        context.note(format_args!("no {}", Event::PLURAL));
    } else {
        show.parts.finish()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints events as they come.
struct Show {
    watch: bool,
    format: Format,
    parts: Parts<Event>,
    shown: bool,
}

impl Show {
    fn event(&mut self, event: Event) -> io::Result<()> {
        if !self.watch {
            return self.parts.push(event);
        }
        let first = !std::mem::replace(&mut self.shown, true);
        output::changes(&[&event], self.format, first)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::output::human;

    #[test]
    fn every_kind_of_the_api_has_a_name() {
        let all = (1..).map_while(|number| EventKind::try_from(number).ok());
        let names: BTreeSet<String> = all.map(|kind| human::enum_name(kind.as_str_name())).collect();
        // The list for people is grouped, not in the order of the numbers.
        assert_eq!(names, KINDS.map(str::to_owned).into());
        assert_eq!(names.len(), KINDS.len(), "no name twice");
    }
}
