//! What was measured, by name.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

/// Samples and facts.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    samples: BTreeMap<Cow<'static, str>, Vec<f64>>,
    facts: BTreeMap<&'static str, String>,
}

impl Samples {
    pub(crate) fn add(&mut self, name: impl Into<Cow<'static, str>>, value: f64) {
        self.samples.entry(name.into()).or_default().push(value);
    }

    pub(crate) fn add_ms(&mut self, name: impl Into<Cow<'static, str>>, time: Duration) {
        self.add(name, time.as_secs_f64() * 1e3);
    }

    /// Something that is not measured but decides what the measurements mean.
    pub(crate) fn fact(&mut self, name: &'static str, value: impl Into<String>) {
        self.facts.insert(name, value.into());
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({ "samples": self.samples, "facts": self.facts })
    }
}
