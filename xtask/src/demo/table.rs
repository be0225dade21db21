//! What each step took, for people.

use std::fmt;
use std::time::Duration;

use crate::progress::seconds;

/// Rows in the order they happened.
#[derive(Debug, Default)]
pub(super) struct Table(Vec<(String, String)>);

impl Table {
    pub(super) fn row(&mut self, what: impl Into<String>, took: Duration) {
        let took = if took < Duration::from_secs(1) { milliseconds(took) } else { seconds(took) };
        self.0.push((what.into(), took));
    }

    /// Something that is part of the row above, at this time from its beginning.
    pub(super) fn part(&mut self, what: &str, at: Duration) {
        self.0.push((format!("  {what}"), format!("at {}", milliseconds(at))));
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.0.iter().map(|(what, _)| what.chars().count()).max().unwrap_or_default();
        let times = self.0.iter().map(|(_, took)| took.chars().count()).max().unwrap_or_default();
        let mut lines = self.0.iter().map(|(what, took)| format!("{what:<width$}  {took:>times$}"));
        if let Some(first) = lines.next() {
            f.write_str(&first)?;
        }
        lines.try_for_each(|line| write!(f, "\n{line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::default();
        table.row("a long step", Duration::from_millis(12_300));
        table.part("agent", Duration::from_millis(61));
        assert_eq!(table.to_string(), "a long step    12.3 s\n  agent      at 61 ms");
    }
}
