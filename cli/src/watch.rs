//! `--watch`: a list that follows what happens, by asking each second.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use futures_util::stream::{Stream, TryStreamExt as _};
use tokio::time::{MissedTickBehavior, interval};

use crate::args::ListArgs;
use crate::context::Context;
use crate::output::{self, Resource};
use crate::report::Outcome;

/// Time between two looks.
const PERIOD: Duration = Duration::from_secs(1);

/// Prints a list, once or for ever. `fetch` starts a new listing.
pub(crate) async fn list<T, S>(context: &Context, args: ListArgs, fetch: impl Fn() -> S) -> Outcome
where
    T: Resource,
    S: Stream<Item = hvkube_sdk::Result<T>>,
{
    let format = context.format(args.output);
    if !args.watch {
        let items: Vec<T> = fetch().try_collect().await?;
        if items.is_empty() && output::is_for_people(format) {
            context.note(format_args!("no {}", T::PLURAL));
            return Ok(ExitCode::SUCCESS);
        }
        output::list(&items, format)?;
        return Ok(ExitCode::SUCCESS);
    }
    let redraw = std::io::stdout().is_terminal() && output::is_for_people(format);
    let mut ticks = interval(PERIOD);
    // After a slow answer the next look is a full period away, not at once.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut first = true;
    loop {
        ticks.tick().await;
        let items: Vec<T> = fetch().try_collect().await?;
        let now: BTreeMap<String, Vec<u8>> =
            items.iter().map(|item| (item.name().to_owned(), item.encode_to_vec())).collect();
        if redraw {
            // Ages move without a change, so the screen is drawn each time.
            let mut out = anstream::stdout();
            write!(out, "\x1b[H\x1b[2J")?;
            out.flush()?;
            output::list(&items, format)?;
        } else {
            let changed: Vec<&T> =
                items.iter().filter(|item| seen.get(item.name()) != now.get(item.name())).collect();
            output::changes(&changed, format, first)?;
            for gone in seen.keys().filter(|name| !now.contains_key(*name)) {
                context.note(format_args!("{gone} is gone"));
            }
        }
        seen = now;
        first = false;
    }
}
