//! Progress for people, on stderr: a spinner with the elapsed time on a terminal, plain lines elsewhere.

use std::cell::Cell;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Without a terminal, at most one note per this time, so that a CI log shows life and stays short.
const PLAIN_NOTE_EVERY: Duration = Duration::from_secs(10);

/// One piece of work that may take longer than a second. Dropped without [`Step::done`], it shows as failed.
#[derive(Debug)]
pub(crate) struct Step {
    name: String,
    started: Instant,
    bar: Option<ProgressBar>,
    last_note: Cell<Instant>,
    finished: bool,
}

impl Step {
    /// Announces the work.
    pub(crate) fn start(name: impl Into<String>) -> Self {
        Self::new(name.into(), std::io::stderr().is_terminal())
    }

    /// Announces work whose own output is passed on, so that a spinner would only be in its way.
    pub(crate) fn plain(name: impl Into<String>) -> Self {
        Self::new(name.into(), false)
    }

    fn new(name: String, spins: bool) -> Self {
        let bar = spins.then(|| {
            let style =
                ProgressStyle::with_template("{spinner:.cyan} {prefix} {elapsed:.dim} {wide_msg:.dim}")
                    .unwrap_or_else(|_| ProgressStyle::default_spinner());
            let bar = ProgressBar::new_spinner().with_style(style).with_prefix(name.clone());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        if bar.is_none() {
            eprintln!("{name} ...");
        }
        let now = Instant::now();
        Self { name, started: now, bar, last_note: Cell::new(now), finished: false }
    }

    /// Shows what the work is at right now; the next note replaces it.
    pub(crate) fn note(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_owned());
        } else if self.last_note.get().elapsed() >= PLAIN_NOTE_EVERY {
            self.last_note.set(Instant::now());
            eprintln!("  {} {} ... {text}", self.name, seconds(self.started.elapsed()));
        }
    }

    /// Shows that the work still goes on, where nothing else can be said about it.
    pub(crate) fn tick(&self) {
        if self.bar.is_none() && self.last_note.get().elapsed() >= PLAIN_NOTE_EVERY {
            self.last_note.set(Instant::now());
            eprintln!("  {} {} ...", self.name, seconds(self.started.elapsed()));
        }
    }

    /// Ends the work well; returns how long it took.
    pub(crate) fn done(mut self) -> Duration {
        self.finished = true;
        let took = self.started.elapsed();
        self.close("done", took);
        took
    }

    fn close(&self, outcome: &str, took: Duration) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!("{} {outcome} in {}", self.name, seconds(took));
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.finished {
            self.close("failed", self.started.elapsed());
        }
    }
}

/// `0.3 s`, `12.0 s`, `2 min 05 s`.
pub(crate) fn seconds(time: Duration) -> String {
    if time < Duration::from_secs(60) {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        format!("{} min {:02} s", time.as_secs() / 60, time.as_secs() % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_well() {
        assert_eq!(seconds(Duration::from_millis(340)), "0.3 s");
        assert_eq!(seconds(Duration::from_secs(125)), "2 min 05 s");
    }
}
