//! `hvkube events`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use futures_util::stream::StreamExt as _;
use hvkube_sdk::v1::{Event, EventKind, WatchEventsRequest};
use hvkube_sdk::{Change, Timestamp};

use crate::args::ListArgs;
use crate::context::Context;
use crate::output::{self, Resource as _};
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
        /// Only of this kind; may be given several times
        #[arg(short, long = "kind", value_name = "KIND", value_delimiter = ',', value_parser = kinds())]
        kinds: Vec<EventKind>,
        /// Only what happened in the last, e.g. 10m
        #[arg(long, value_name = "DURATION", value_parser = units::duration)]
        since: Option<Duration>,
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
    let Action::List { pool, vm, kinds, since, list } = action;
    let start_time = since.map(|since| {
        let start = jiff::Timestamp::now().checked_sub(since).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        Timestamp { seconds: start.as_second(), nanos: 0 }
    });
    let request = WatchEventsRequest {
        pool: pool.unwrap_or_default(),
        vm: vm.unwrap_or_default(),
        kinds: kinds.into_iter().map(i32::from).collect(),
        start_time,
        ..WatchEventsRequest::default()
    };
    let format = context.format(list.output);
    let mut watch = std::pin::pin!(context.client().await?.watch_events(request));
    let mut past = Vec::new();
    let mut shown = false;
    while let Some(change) = watch.next().await {
        match change? {
            Change::Is(event) if list.watch => {
                output::changes(&[&event], format, !std::mem::replace(&mut shown, true))?;
            }
            Change::Is(event) => past.push(event),
            Change::Synced if !list.watch => break,
            Change::Restarted => {
                past.clear();
                context.note(
                    "the daemon no longer knows all that happened meanwhile; from its oldest event on:",
                );
            }
            Change::Synced | Change::Gone(_) => {}
        }
    }
    if !list.watch {
        if past.is_empty() && output::is_for_people(format) {
            context.note(format_args!("no {}", Event::PLURAL));
        } else {
            output::list(&past, format)?;
        }
    }
    Ok(ExitCode::SUCCESS)
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
