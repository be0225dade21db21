//! `desk`: this program inside a guest. It paints what it is told to, and tells the input that the X server records.
//!
//! Orders are the names of contents, a line each, and come through a named pipe; what it tells goes to standard output, a
//! word a line: `ready`, `painted`, and `motion`, `press`, `release`, `down`, `up` for input.

use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;

use anyhow::Context as _;
use x11rb::connection::Connection as _;

use super::paint::{Content, Painter, connect};
use super::peers::OnDisplay;
use super::record::{Kind, kind, select};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The named pipe that orders come through
    orders: PathBuf,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let on = OnDisplay {
        display: std::env::var("DISPLAY").context("DISPLAY is not set")?,
        authority: std::env::var("XAUTHORITY").unwrap_or_default(),
    };
    let mut painter = Painter::new(&on)?;
    let reader = connect(&on)?;
    select(&reader)?;
    std::thread::Builder::new().name("recorder".into()).spawn(move || {
        while let Ok(event) = reader.wait_for_event() {
            let word = match kind(&event) {
                Some(Kind::Motion) => "motion",
                Some(Kind::Press(_)) => "press",
                Some(Kind::Release(_)) => "release",
                Some(Kind::KeyDown) => "down",
                Some(Kind::KeyUp) => "up",
                None => continue,
            };
            if tell(word).is_err() {
                return;
            }
        }
    })?;
    // Open for writing too, or it ends with the first who has written.
    let orders = OpenOptions::new().read(true).write(true).open(&args.orders).context("open the orders")?;
    tell("ready")?;
    for order in BufReader::new(orders).lines() {
        let order = order.context("read the orders")?;
        let content = Content::ALL.into_iter().find(|content| content.name() == order);
        painter.show(content.with_context(|| format!("an order of {order:?}"))?)?;
        tell("painted")?;
    }
    Ok(())
}

/// At once, in one piece.
fn tell(word: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{word}")?;
    out.flush().context("tell")
}
