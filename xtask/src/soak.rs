//! `cargo xtask soak`: the model of the orchestrator for as long as one likes.
//!
//! The ordinary tests run it from one seed for some ten thousand steps; here it goes on from seed to seed. What it prints
//! are the figures so far, and at a failure the seed and the operations that led to it, made as few as possible. The same
//! seed draws the same operations again; how they meet depends on the machine, so a rare bug may need some tries.

use anyhow::Context as _;

use crate::cargo::cargo;
use crate::command;
use crate::interrupt;
use crate::progress::Step;

/// The test that is the model.
const MODEL: &str = "orchestrator::tests::model::soak";

/// Flags of `cargo xtask soak`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How long it runs
    #[arg(long, default_value_t = 10.0, value_parser = minutes)]
    minutes: f64,
    /// The first seed; by default another one each time
    #[arg(long)]
    seed: Option<u64>,
}

fn minutes(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(minutes) if (0.01..=100_000.0).contains(&minutes) => Ok(minutes),
        _ => Err("give a number of minutes from 0.01 to 100000".to_owned()),
    }
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let seed = match args.seed {
        Some(seed) => seed,
        None => clock().context("no seed from the clock; give one with --seed")?,
    };
    println!("soak: {} minutes from seed {seed}", args.minutes);
    let step = Step::plain("soak");
    let mut test = cargo();
    test.args([
        "test",
        "--package",
        "hvkube-host",
        "--lib",
        "--",
        "--ignored",
        "--exact",
        MODEL,
        "--nocapture",
    ])
    .env("HVKUBE_SOAK_MINUTES", args.minutes.to_string())
    .env("HVKUBE_MODEL_SEED", seed.to_string());
    let outcome = command::watch(&mut test, &step, |line| println!("{line}"));
    interrupt::check()?;
    outcome.with_context(|| {
        format!("the model failed; begin again with --seed and the seed that it names, or {seed}")
    })?;
    step.done();
    Ok(())
}

fn clock() -> anyhow::Result<u64> {
    Ok(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minutes_are_a_number_that_makes_sense() {
        assert_eq!(minutes("0.5"), Ok(0.5));
        for bad in ["0", "-1", "nan", "inf", "ten"] {
            assert!(minutes(bad).is_err(), "{bad}");
        }
    }
}
