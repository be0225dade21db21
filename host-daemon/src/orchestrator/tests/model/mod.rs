//! A model of everything at once: callers, workers, operators, faults and crashes, on the real store and the simulated
//! hypervisor, in an order that nobody thought of.
//!
//! ```text
//!   ops (drawn) ──► acts, work ──► lab: daemon in a runtime of its own ──► store, simulated world
//!                        │                                                        │
//!                        └──► ledger: what callers were told ──► checks ◄─────────┘ rows, found
//! ```
//!
//! After each step the daemon is stopped where it stands and looked at: rows, the world and what callers were told must
//! fit at every instant. Now and then it gets the time to come to rest, which it must, and then nothing may be left over.
//! At the end of a run all that can be put right is put right, and everything must work.
//!
//! A run is drawn from a seed. The daemon's threads are not, so the same list may meet a bug or not; a failure is shown
//! with its list, made short, and kept in `proptest-regressions`.

mod acts;
mod checks;
mod lab;
mod ledger;
mod ops;
mod rows;
mod work;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};

use checks::Watch;
use lab::Lab;
use ops::{Op, Step};

/// That a step, or a look, found nothing wrong; else what.
type Verdict = Result<(), String>;

/// Steps of the ordinary run, at least.
const STEPS: u32 = 10_000;
/// Steps of one daemon's world; longer lists find more at once and take longer to be made short.
const LENGTH: usize = 160;
/// Drawn lists of that length for [`STEPS`] with some to spare.
const RUNS: u32 = 140;
/// Steps between two looks at a world at rest, besides those that are drawn.
const REST_EVERY: usize = 40;

/// A run has failed, and is tried again and again to make it short.
static SHORTENING: AtomicBool = AtomicBool::new(false);

/// What was done.
#[derive(Debug, Clone, Copy, Default)]
struct Figures {
    runs: u32,
    steps: u32,
    crashes: u32,
    restarts: u32,
    faults: u32,
    /// Callers who went away.
    gone: u32,
    leases: u32,
}

impl Figures {
    fn add(&mut self, other: Self) {
        self.runs += other.runs;
        self.steps += other.steps;
        self.crashes += other.crashes;
        self.restarts += other.restarts;
        self.faults += other.faults;
        self.gone += other.gone;
        self.leases += other.leases;
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} steps in {} runs: {} crashes, {} restarts, {} faults, {} callers who went away, {} leases handed out",
            self.steps, self.runs, self.crashes, self.restarts, self.faults, self.gone, self.leases
        )
    }
}

/// One run. `calm`: nothing goes wrong but what people do, and crashes.
fn run(seed: u64, calm: bool, steps: &[Step]) -> Result<Figures, String> {
    let mut lab = Lab::new(seed);
    let mut watch = Watch::new(&lab, calm);
    for (n, step) in steps.iter().enumerate() {
        let told = |why: String| format!("step {n}, {:?}: {why}", step.op);
        if calm && is_fault(step.op) {
            continue;
        }
        acts::act(&mut lab, step.op).and_then(|()| lab.go_on(step.polls)).map_err(told)?;
        let told = |why: String| format!("after step {n}, {:?}: {why}", step.op);
        let rest = matches!(step.op, Op::Settle) || n % REST_EVERY == REST_EVERY - 1;
        if rest { watch.at_rest(&mut lab) } else { watch.always(&mut lab) }.map_err(told)?;
        lab.figures.steps += 1;
    }
    watch.at_the_end(&mut lab).map_err(|why| format!("at the end: {why}"))?;
    let leases = u32::try_from(lab.ledger().leases.len()).unwrap_or(u32::MAX);
    Ok(Figures { runs: 1, leases, ..lab.figures })
}

fn is_fault(op: Op) -> bool {
    matches!(
        op,
        Op::Fail { .. }
            | Op::Kill { .. }
            | Op::ShutDown { .. }
            | Op::Hang { .. }
            | Op::Vanish { .. }
            | Op::Corrupt { .. }
            | Op::Stranger
    )
}

/// Draws runs and does them; the figures, also of what came before a failure.
fn model(seed: u64, runs: u32, over: impl Fn() -> bool) -> (Figures, Result<(), String>) {
    // What the daemon says of a failure, which the list alone may not tell.
    if std::env::var_os("HVKUBE_MODEL_LOG").is_some() {
        let log = tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).with_test_writer();
        let _ = log.try_init();
    }
    let config = Config {
        cases: runs,
        rng_seed: RngSeed::Fixed(seed),
        source_file: Some(file!()),
        test_name: Some("model"),
        // Each try takes a second or so, and more when it hangs.
        max_shrink_iters: 150,
        max_shrink_time: 300_000,
        ..Config::default()
    };
    let sum = Mutex::new(Figures::default());
    let drawn = (any::<u64>(), prop::bool::weighted(0.4), ops::steps(LENGTH));
    let outcome = TestRunner::new(config).run(&drawn, |(seed, calm, steps)| {
        if over() {
            return Ok(());
        }
        let figures = run(seed, calm, &steps).map_err(|why| {
            if !SHORTENING.swap(true, Ordering::Relaxed) {
                println!("failed, and is made short now: {why}");
            }
            TestCaseError::fail(why)
        })?;
        sum.lock().unwrap_or_else(std::sync::PoisonError::into_inner).add(figures);
        Ok(())
    });
    let sum = *sum.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let outcome = outcome.map_err(|error| match error {
        TestError::Fail(why, (seed, calm, steps)) => {
            let list: String = steps.iter().map(|step| format!("    {step:?},\n")).collect();
            format!("{why}\nrun(0x{seed:x}, {calm}, &[\n{list}])")
        }
        TestError::Abort(why) => why.to_string(),
    });
    (sum, outcome)
}

fn seed(default: u64) -> u64 {
    let given = std::env::var("HVKUBE_MODEL_SEED").ok().filter(|text| !text.is_empty());
    given.map_or(default, |text| text.parse().expect("HVKUBE_MODEL_SEED is a number"))
}

#[test]
fn whatever_happens_nothing_is_lost_or_held_twice() {
    let began = Instant::now();
    let (figures, outcome) = model(seed(1), RUNS, || false);
    println!("{figures}; {:.1} s", began.elapsed().as_secs_f64());
    if let Err(why) = outcome {
        panic!("{why}");
    }
    assert!(figures.steps >= STEPS, "{figures}");
}

#[test]
#[ignore = "runs for minutes; `cargo xtask soak` is the way to it"]
fn soak() {
    let minutes = std::env::var("HVKUBE_SOAK_MINUTES").map_or(10.0, |text| text.parse().expect("minutes"));
    let (began, first) = (Instant::now(), seed(1));
    let over = || began.elapsed() >= Duration::from_secs_f64(minutes * 60.0);
    let mut sum = Figures::default();
    for seed in first.. {
        let (figures, outcome) = model(seed, 20, over);
        sum.add(figures);
        println!("seed {seed}, {:.1} min: {sum}", began.elapsed().as_secs_f64() / 60.0);
        if let Err(why) = outcome {
            panic!("seed {seed} failed: {why}");
        }
        if over() {
            return;
        }
    }
}
