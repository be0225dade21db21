//! Progress on standard error: a bar or spinner on a terminal, a line per step elsewhere, nothing with `--quiet`.

use std::io::Write as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

enum Show {
    Bar(ProgressBar),
    Lines { last: String },
    Nothing,
}

/// Shown until dropped; leaves nothing behind on a terminal.
pub(crate) struct Bar {
    what: String,
    show: Show,
}

impl Bar {
    pub(crate) fn new(what: String, quiet: bool, terminal: bool) -> Self {
        let show = if quiet {
            Show::Nothing
        } else if terminal {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
            bar.set_style(style("{spinner} {msg} ({elapsed})"));
            bar.set_message(what.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
            Show::Bar(bar)
        } else {
            Show::Lines { last: String::new() }
        };
        Self { what, show }
    }

    /// A new step; repeated ones make no new line.
    pub(crate) fn step(&mut self, step: &str) {
        match &mut self.show {
            Show::Bar(bar) => bar.set_message(format!("{}: {step}", self.what)),
            Show::Lines { last } if last != step => {
                // Progress is a courtesy: a closed standard error must not fail the command.
                let _ = writeln!(std::io::stderr(), "{}: {step}", self.what);
                step.clone_into(last);
            }
            Show::Lines { .. } | Show::Nothing => {}
        }
    }

    /// `done` of `total`; 0 means unknown. Only terminals see it.
    pub(crate) fn amount(&self, done: u64, total: u64, bytes: bool) {
        let Show::Bar(bar) = &self.show else { return };
        if total > 0 && bar.length() != Some(total) {
            bar.set_length(total);
            let amounts = if bytes {
                "{bytes}/{total_bytes} {binary_bytes_per_sec} eta {eta}"
            } else {
                "{pos}/{len} ({elapsed})"
            };
            bar.set_style(style(&format!("{{spinner}} {{msg}} [{{bar:30}}] {amounts}")));
        } else if total == 0 && bytes && done > 0 && bar.length().is_none() {
            bar.set_style(style("{spinner} {msg} {bytes} {binary_bytes_per_sec}"));
        }
        bar.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Show::Bar(bar) = &self.show {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates are constants of this file; were one broken, the default is still a bar.
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}
