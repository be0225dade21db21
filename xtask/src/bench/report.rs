//! From samples to metrics: percentiles, aims, a table and JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::cargo::workspace;

/// Which way a metric should go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Better {
    Lower,
    Higher,
}

/// How a metric comes from samples.
#[derive(Debug, Clone, Copy)]
pub(super) enum Of {
    /// Their median.
    P50(&'static str),
    /// What 99 percent of them are not above.
    P99(&'static str),
    /// The first's median over the second's.
    Ratio(&'static str, &'static str),
}

/// One promised number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Metric {
    name: &'static str,
    of: Of,
    unit: &'static str,
    better: Better,
    aim: f64,
}

impl Metric {
    pub(super) const fn new(
        name: &'static str,
        of: Of,
        unit: &'static str,
        better: Better,
        aim: f64,
    ) -> Self {
        Self { name, of, unit, better, aim }
    }

    fn is_met(&self, value: f64) -> bool {
        match self.better {
            Better::Lower => value <= self.aim,
            Better::Higher => value >= self.aim,
        }
    }
}

/// What a benchmark found.
#[derive(Debug)]
pub(super) struct Report {
    bench: &'static str,
    runs: u32,
    samples: BTreeMap<String, Vec<f64>>,
    facts: BTreeMap<String, String>,
    metrics: Vec<(Metric, f64)>,
}

impl Report {
    /// From what `hvkube-bench` wrote.
    pub(super) fn new(bench: &'static str, runs: u32, output: &Value) -> anyhow::Result<Self> {
        let mut samples: BTreeMap<String, Vec<f64>> =
            serde_json::from_value(output["samples"].clone()).context("read the samples")?;
        for values in samples.values_mut() {
            values.sort_by(f64::total_cmp);
        }
        let facts = serde_json::from_value(output["facts"].clone()).context("read the facts")?;
        Ok(Self { bench, runs, samples, facts, metrics: Vec::new() })
    }

    pub(super) fn fact(&mut self, name: &str, value: &str) {
        self.facts.insert(name.to_owned(), value.to_owned());
    }

    /// Computes metrics.
    pub(super) fn measure(&mut self, metrics: &[Metric]) -> anyhow::Result<()> {
        for metric in metrics {
            let at = |percent, name: &str| {
                let values = self.samples.get(name).with_context(|| format!("{name} was not measured"))?;
                percentile(values, percent).with_context(|| format!("{name} has no samples"))
            };
            let p50 = |name| at(50, name);
            let value = match metric.of {
                Of::P50(name) => p50(name)?,
                Of::P99(name) => at(99, name)?,
                Of::Ratio(above, below) => p50(above)? / p50(below)?,
            };
            self.metrics.push((*metric, value));
        }
        Ok(())
    }

    /// For people: every phase's percentiles, then the metrics with their aims.
    pub(super) fn table<S: AsRef<str>>(&self, phases: &[(S, S)]) -> String {
        let mut text = String::new();
        for (name, value) in self.facts.iter().chain(&machine()) {
            let _ = writeln!(text, "{name}: {value}");
        }
        let _ = writeln!(text, "\n{:<46} {:>9} {:>9} {:>9} {:>9} {:>6}", "", "p50", "p95", "p99", "max", "n");
        for (name, title) in phases {
            let Some(values) = self.samples.get(name.as_ref()) else { continue };
            let title = title.as_ref();
            let at = |percent| percentile(values, percent).map_or_else(String::new, short);
            let _ = writeln!(
                text,
                "{title:<46} {:>9} {:>9} {:>9} {:>9} {:>6}",
                at(50),
                at(95),
                at(99),
                at(100),
                values.len()
            );
        }
        let _ = writeln!(text, "\n{:<26} {:>10} {:>12}", "metric", "value", "aim");
        for (metric, value) in &self.metrics {
            let sign = if metric.better == Better::Lower { "<=" } else { ">=" };
            let verdict = if metric.is_met(*value) { "" } else { "  missed" };
            let aim = format!("{sign} {} {}", metric.aim, metric.unit);
            let _ = writeln!(text, "{:<26} {value:>10.2} {:>12}{verdict}", metric.name, aim.trim_end());
        }
        text
    }

    /// For machines.
    pub(super) fn json(&self) -> anyhow::Result<String> {
        let metrics: Vec<_> = self
            .metrics
            .iter()
            .map(|(metric, value)| {
                let better = if metric.better == Better::Lower { "lower" } else { "higher" };
                json!({
                    "name": metric.name, "value": value, "unit": metric.unit, "aim": metric.aim, "better": better,
                })
            })
            .collect();
        let mut machine = machine();
        machine.extend(self.facts.clone());
        let report = json!({
            "bench": self.bench,
            "commit": super::commit(workspace()),
            "machine": machine,
            "runs": self.runs,
            "metrics": metrics,
        });
        Ok(serde_json::to_string_pretty(&report).context("write the report")? + "\n")
    }
}

/// As many digits as are worth reading.
fn short(value: f64) -> String {
    if value < 10.0 { format!("{value:.2}") } else { format!("{value:.1}") }
}

/// The sample that so many percent are not above; `values` are sorted.
fn percentile(values: &[f64], percent: usize) -> Option<f64> {
    let rank = (values.len() * percent).div_ceil(100).max(1);
    values.get(rank - 1).copied()
}

/// What the numbers depend on.
fn machine() -> BTreeMap<String, String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim()))
        .unwrap_or("unknown processor");
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    BTreeMap::from([
        ("processor".to_owned(), format!("{threads} x {model}")),
        ("kernel".to_owned(), kernel.trim().to_owned()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let values: Vec<f64> = (1..=20).map(f64::from).collect();
        assert_eq!(percentile(&values, 50), Some(10.0));
        assert_eq!(percentile(&values, 95), Some(19.0));
        assert_eq!(percentile(&values, 100), Some(20.0));
        assert_eq!(percentile(&[7.0], 95), Some(7.0));
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn metrics_have_aims_and_directions() {
        let output =
            json!({"samples": {"a_ms": [3.0, 1.0, 2.0], "b_ms": [20.0]}, "facts": {"guest": "512 MiB"}});
        let mut report = Report::new("resume", 3, &output).unwrap();
        report
            .measure(&[
                Metric::new("a_p50_ms", Of::P50("a_ms"), "ms", Better::Lower, 1.5),
                Metric::new("ratio", Of::Ratio("b_ms", "a_ms"), "x", Better::Higher, 7.0),
            ])
            .unwrap();
        let json: Value = serde_json::from_str(&report.json().unwrap()).unwrap();
        assert_eq!(
            json["metrics"],
            json!([
                {"name": "a_p50_ms", "value": 2.0, "unit": "ms", "aim": 1.5, "better": "lower"},
                {"name": "ratio", "value": 10.0, "unit": "x", "aim": 7.0, "better": "higher"},
            ])
        );
        assert_eq!((json["bench"].as_str(), json["runs"].as_u64()), (Some("resume"), Some(3)));
        let table = report.table(&[("a_ms", "phase a"), ("never", "not there")]);
        let line = |name: &str| table.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        assert!(line("a_p50_ms").ends_with("missed") && !line("ratio").ends_with("missed"), "{table}");
        assert!(line("phase a").contains("2.00") && !table.contains("not there"), "{table}");
        let missing = [Metric::new("c", Of::P50("c_ms"), "ms", Better::Lower, 1.0)];
        assert_eq!(report.measure(&missing).unwrap_err().to_string(), "c_ms was not measured");
    }
}
