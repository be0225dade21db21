//! Counts of tests and gates, read from what test runners print.

use std::fmt;

/// What happened so far. A gate counts as one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Summary {
    passed: u64,
    failed: u64,
    skipped: u64,
    /// Names of the parts that failed.
    parts: Vec<String>,
}

impl Summary {
    pub(super) fn pass(&mut self) {
        self.passed += 1;
    }

    pub(super) fn fail(&mut self, part: &str) {
        self.failed += 1;
        self.parts.push(part.to_owned());
    }

    /// Adds a runner's summary line; other lines count for nothing.
    pub(super) fn read(&mut self, line: &str) {
        let line = line.trim_start();
        let Some(counts) = nextest(line).or_else(|| libtest(line)) else { return };
        for part in counts.split([',', ';']) {
            let mut words = part.split_whitespace();
            let (Some(number), Some(kind)) = (words.next(), words.next()) else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match kind {
                "passed" => self.passed += number,
                "failed" | "timed" | "exec" => self.failed += number,
                "skipped" | "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }

    /// Whether tests failed since an earlier count.
    pub(super) fn failed_since(&self, before: &Self) -> bool {
        self.failed > before.failed
    }

    /// Notes that a part failed, counting it as one when none of its tests was seen to fail.
    pub(super) fn blame(&mut self, part: &str, before: &Self) {
        if !self.failed_since(before) {
            self.failed += 1;
        }
        self.parts.push(part.to_owned());
    }

    pub(super) fn is_good(&self) -> bool {
        self.failed == 0 && self.parts.is_empty()
    }

    pub(super) fn failures(&self) -> &[String] {
        &self.parts
    }
}

/// The counts in `Summary [ 1.2s] 9 tests run: 7 passed (1 slow), 1 failed, 1 timed out, 3 skipped`.
fn nextest(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("Summary [")?;
    let (_, counts) = rest.split_once("run: ")?;
    Some(counts)
}

/// The counts in `test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s`.
fn libtest(line: &str) -> Option<&str> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    Some(counts)
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_both_runners_add_up() {
        let mut sum = Summary::default();
        for line in [
            "     Summary [  12.345s] 9 tests run: 6 passed (1 slow, 1 leaky), 2 failed, 1 timed out, 3 skipped",
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.01s",
            "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out",
            "        PASS [   0.004s] xtask says 5 passed, 5 failed",
            "",
        ] {
            sum.read(line);
        }
        assert_eq!(sum.to_string(), "19 passed, 4 failed, 4 skipped");
    }

    #[test]
    fn a_part_that_fails_without_a_test_counts_once() {
        let mut sum = Summary::default();
        sum.pass();
        let before = sum.clone();
        sum.blame("tests", &before);
        assert_eq!((sum.to_string().as_str(), sum.is_good()), ("1 passed, 1 failed, 0 skipped", false));
        let before = sum.clone();
        sum.read("test result: FAILED. 0 passed; 2 failed; 0 ignored");
        sum.blame("doctests", &before);
        assert_eq!(sum.to_string(), "1 passed, 3 failed, 0 skipped");
        assert_eq!(sum.failures(), ["tests", "doctests"]);
    }
}
