//! `--watch`: a list that follows what happens, from the daemon's watch streams where it has them, else by asking each
//! second.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use futures_util::stream::{Stream, StreamExt as _, TryStreamExt as _};
use hvkube_sdk::Change;
use tokio::time::{MissedTickBehavior, interval};

use crate::args::{Format, ListArgs};
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
            draw(&items.iter().collect::<Vec<_>>(), format)?;
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

/// Prints a list and goes on with what its watch tells.
pub(crate) async fn follow<T, S>(context: &Context, args: ListArgs, watch: S) -> Outcome
where
    T: Resource,
    S: Stream<Item = hvkube_sdk::Result<Change<T>>>,
{
    let format = context.format(args.output);
    let redraw = std::io::stdout().is_terminal() && output::is_for_people(format);
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watch = std::pin::pin!(watch);
    let mut shown: BTreeMap<String, T> = BTreeMap::new();
    // What comes before the list is whole; shown when it is.
    let mut fresh = Some(BTreeMap::new());
    let mut first = true;
    loop {
        let change = tokio::select! {
            change = watch.next() => match change {
                Some(change) => change?,
                None => return Ok(ExitCode::SUCCESS),
            },
            _ = ticks.tick() => {
                if redraw && !first {
                    draw(&shown.values().collect::<Vec<_>>(), format)?;
                }
                continue;
            }
        };
        match (change, &mut fresh) {
            (Change::Is(item), Some(fresh)) => {
                fresh.insert(item.name().to_owned(), item);
            }
            (Change::Gone(name), Some(fresh)) => {
                fresh.remove(&name);
            }
            (Change::Restarted, _) => fresh = Some(BTreeMap::new()),
            (Change::Synced, None) => {}
            (Change::Synced, Some(_)) => {
                let now = fresh.take().unwrap_or_default();
                if !redraw {
                    let same = |item: &T| {
                        shown.get(item.name()).is_some_and(|old| old.encode_to_vec() == item.encode_to_vec())
                    };
                    let changed: Vec<&T> = now.values().filter(|item| !same(item)).collect();
                    output::changes(&changed, format, first)?;
                    for gone in shown.keys().filter(|name| !now.contains_key(*name)) {
                        context.note(format_args!("{gone} is gone"));
                    }
                }
                shown = now;
                first = false;
                ticks.reset_immediately();
            }
            (Change::Is(item), None) => {
                if !redraw {
                    output::changes(&[&item], format, shown.is_empty())?;
                }
                shown.insert(item.name().to_owned(), item);
            }
            (Change::Gone(name), None) => {
                // It may name one that was never among those asked for.
                if shown.remove(&name).is_some() && !redraw {
                    context.note(format_args!("{name} is gone"));
                }
            }
        }
    }
}

/// Draws the screen anew.
fn draw<T: Resource>(items: &[&T], format: Format) -> std::io::Result<()> {
    let mut out = anstream::stdout();
    write!(out, "\x1b[H\x1b[2J")?;
    out.flush()?;
    output::list_of(items, format)
}
