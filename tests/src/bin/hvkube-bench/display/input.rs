//! How long a click, a move and a word take: from the client's call until the X server has recorded the last event of it, and
//! until the client has its answer.

use std::time::{Duration, Instant};

use anyhow::ensure;
use hvkube_sdk::{Desktop, Input};

use super::peers::Cua;
use super::record::{Kind, Recorder};
use super::samples_of;
use crate::samples::Samples;

/// Letters that need no Shift, so that each is one key.
const WORD: &str = "hyperdrive";
/// Ours in a round, for one of a peer's, which take a hundred times as long.
const OURS: u32 = 5;
const LEFT: u32 = 1;

/// Places on a screen, another one each time.
#[derive(Debug, Default)]
pub(super) struct Places(i32);

impl Places {
    pub(super) fn next(&mut self) -> (i32, i32) {
        self.0 += 1;
        (100 + self.0 * 37 % 900, 100 + self.0 * 53 % 600)
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub(super) enum What {
    Click,
    Move,
    Type,
}

impl What {
    pub(super) const ALL: [Self; 3] = [Self::Click, Self::Move, Self::Type];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Click => "click",
            Self::Move => "move",
            Self::Type => "type",
        }
    }

    /// The last event of it.
    fn last(self) -> (Kind, usize) {
        match self {
            Self::Click => (Kind::Release(LEFT), 1),
            Self::Move => (Kind::Motion, 1),
            Self::Type => (Kind::KeyUp, WORD.len()),
        }
    }

    /// The same as the program in a guest tells it.
    pub(super) fn told(self) -> (&'static str, usize) {
        let word = match self {
            Self::Click => "release",
            Self::Move => "motion",
            Self::Type => "up",
        };
        (word, self.last().1)
    }

    pub(super) fn input(self, (x, y): (i32, i32)) -> Input {
        match self {
            Self::Click => Input::new().click(x, y),
            Self::Move => Input::new().move_to(x, y),
            Self::Type => Input::new().text(WORD),
        }
    }

    /// The same as Cua's server takes it: command and parameters.
    fn command(self, (x, y): (i32, i32)) -> (&'static str, serde_json::Value) {
        let at = serde_json::json!({ "x": x, "y": y });
        match self {
            Self::Click => ("left_click", at),
            Self::Move => ("move_cursor", at),
            Self::Type => ("type_text", serde_json::json!({ "text": WORD })),
        }
    }
}

pub(super) async fn measure(
    desktop: &Desktop,
    runs: u32,
    recorder: &mut Recorder,
    mut cua: Option<&mut Cua>,
    samples: &mut Samples,
) -> anyhow::Result<()> {
    let mut places = Places::default();
    for round in 0..=runs {
        let mut add = samples_of(samples, round);
        for what in What::ALL {
            let (last, count) = what.last();
            let name = what.name();
            for _ in 0..OURS {
                let place = places.next();
                recorder.clear().await?;
                let began = Instant::now();
                let done = desktop.input(what.input(place)).await?;
                let answered = began.elapsed();
                ensure!(done.completed == 1, "{name}: {} events done", done.completed);
                let seen = recorder.wait(last, count).await?;
                add(format!("ours_{name}_ms"), seen.saturating_duration_since(began));
                add(format!("ours_{name}_answer_ms"), answered);
                if !matches!(what, What::Type) {
                    recorder.check(place)?;
                }
            }
            if let Some(cua) = &mut cua {
                let place = places.next();
                let (command, params) = what.command(place);
                recorder.clear().await?;
                let began = Instant::now();
                let answered = cua.command(command, &params)?;
                add(format!("cua_{name}_answer_ms"), answered);
                // It types by sending events to a window, past the server's input, of which there is no record then.
                if !matches!(what, What::Type) {
                    let seen = recorder.wait(last, count).await?;
                    add(format!("cua_{name}_ms"), seen.saturating_duration_since(began));
                    recorder.check(place)?;
                }
            }
        }
        stream(desktop, recorder, &mut places, &mut add).await?;
    }
    eprintln!("clicks, moves and words");
    Ok(())
}

/// Clicks in a stream, each sent when the one before was recorded.
async fn stream(
    desktop: &Desktop,
    recorder: &mut Recorder,
    places: &mut Places,
    add: &mut impl FnMut(String, Duration),
) -> anyhow::Result<()> {
    let mut sink = desktop.stream_input().await?;
    // Opens the stream.
    sink.send(What::Move.input(places.next())).await?;
    recorder.wait(Kind::Motion, 1).await?;
    for _ in 0..OURS {
        let place = places.next();
        recorder.clear().await?;
        let began = Instant::now();
        sink.send(What::Click.input(place)).await?;
        let seen = recorder.wait(Kind::Release(LEFT), 1).await?;
        add("ours_stream_click_ms".to_owned(), seen.saturating_duration_since(began));
        recorder.check(place)?;
    }
    let done = sink.finish().await?;
    ensure!(done.batches == u64::from(OURS) + 1, "{} batches done", done.batches);
    Ok(())
}
