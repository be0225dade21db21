//! `cargo xtask fuzz`: throws made-up bytes at everything that reads what guests and QEMU send.
//!
//! The targets are functions of `hvkube-host` (its module `fuzzing`), and `fuzz/` makes one program of them with
//! libFuzzer. What libFuzzer needs of the compiler, counters of covered edges and compared values, is an ordinary LLVM
//! pass, so a stable toolchain does, and neither cargo-fuzz nor nightly is needed. Everything is built with it, in a
//! target folder of its own.
//!
//! ```text
//!   fuzz/corpus/NAME         committed: where each run begins, replayed by every test run
//!   target/fuzz/found/NAME   what brought new coverage; `--merge` takes the least that covers all of it into the corpus
//!   target/fuzz/broken/      inputs that broke something
//! ```

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::cargo::{self, cargo, workspace};
use crate::command;
use crate::interrupt;
use crate::progress::Step;
use crate::system::{self, Job};

/// What `cargo fuzz --sanitizer none` passes; the host is safe Rust, and a sanitizer would need nightly.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";
const PROGRAM: &str = "hvkube-fuzz";
/// Longest input that is made up: room for a few messages, short enough for thousands of runs a second.
const MAX_LEN: &str = "-max_len=8192";
/// Larger files do not belong into a repository.
const MAX_COMMITTED: u64 = 16 << 10;

/// Flags of `cargo xtask fuzz`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this target; all of them one after the other by default
    #[arg(value_name = "TARGET")]
    target: Option<String>,
    /// How long to run each
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Run the target on this one file, as to see a failure again
    #[arg(long, value_name = "FILE", requires = "target", conflicts_with = "merge")]
    input: Option<PathBuf>,
    /// Do not fuzz; take what earlier runs found into the committed corpus
    #[arg(long)]
    merge: bool,
}

/// What a run of a target told.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    runs: u64,
    edges: u64,
    features: u64,
    corpus: u64,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let targets = targets(args.target.as_deref())?;
    system::ensure(&[Job::Fuzz])?;
    let program = build()?;
    if let (Some(input), [target]) = (&args.input, &targets[..]) {
        let input = std::path::absolute(input).context("find the input")?;
        let step = Step::plain(format!("{target} on {}", input.display()));
        command::watch(fuzzer(&program, target).arg(&input), &step, |line| eprintln!("{line}"))?;
        step.done();
        return Ok(());
    }
    if args.merge {
        return targets.iter().try_for_each(|target| merge(&program, target));
    }
    println!("{:12} {:>10} {:>8} {:>9} {:>7}", "target", "runs", "edges", "features", "corpus");
    let mut broken = Vec::new();
    for target in &targets {
        match fuzz(&program, target, args.seconds) {
            Ok(Told { runs, edges, features, corpus }) => {
                println!("{target:12} {runs:>10} {edges:>8} {features:>9} {corpus:>7}");
            }
            Err(error) => {
                interrupt::check()?;
                eprintln!("{error:#}");
                println!("{target:12} broken");
                broken.push(target.as_str());
            }
        }
    }
    ensure!(
        broken.is_empty(),
        "{} broke a promise; see it again with cargo xtask fuzz TARGET --input FILE of {}",
        broken.join(", "),
        folder("broken", "").display()
    );
    Ok(())
}

/// Every target has a folder in the corpus.
fn targets(only: Option<&str>) -> anyhow::Result<Vec<String>> {
    let corpus = workspace().join("fuzz/corpus");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&corpus).with_context(|| format!("read {}", corpus.display()))? {
        names.push(entry.context("read the corpus")?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    match only {
        None => Ok(names),
        Some(name) if names.iter().any(|known| known == name) => Ok(vec![name.to_owned()]),
        Some(name) => anyhow::bail!("there is no target {name:?}; there are {}", names.join(", ")),
    }
}

fn folder(kind: &str, target: &str) -> PathBuf {
    workspace().join("target/fuzz").join(kind).join(target)
}

fn build() -> anyhow::Result<PathBuf> {
    let host = cargo::host()?;
    let with_arguments = || {
        let mut cargo = cargo();
        cargo.args(["build", "--release", "--locked", "--manifest-path", "fuzz/Cargo.toml"]);
        // With a target named, build scripts and macros go without counters, which they could not link.
        cargo.args(["--target-dir", "target/fuzz", "--target", &host]).env("RUSTFLAGS", COVERAGE);
        cargo
    };
    let step = Step::start("building the fuzzer");
    command::run(&mut with_arguments(), &step)?;
    let messages = command::output(with_arguments().args(["--quiet", "--message-format=json"]))?;
    step.done();
    let programs = cargo::executables(&messages);
    programs.get(PROGRAM).cloned().with_context(|| format!("cargo built no program {PROGRAM}"))
}

fn fuzzer(program: &Path, target: &str) -> Command {
    let mut fuzzer = Command::new(program);
    fuzzer.current_dir(workspace()).env("HVKUBE_FUZZ_TARGET", target);
    // A hang is a failure, and so is memory that the target's own count does not see.
    fuzzer.args([MAX_LEN, "-timeout=20", "-rss_limit_mb=1024"]);
    fuzzer
}

fn fuzz(program: &Path, target: &str, seconds: u32) -> anyhow::Result<Told> {
    let (found, broken) = (folder("found", target), folder("broken", ""));
    for folder in [&found, &broken] {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let step = Step::start(format!("fuzzing {target} for {seconds} s"));
    let mut told = Told::default();
    let mut fuzzer = fuzzer(program, target);
    fuzzer.arg(format!("-max_total_time={seconds}"));
    fuzzer.arg(format!("-artifact_prefix={}/{target}-", broken.display()));
    fuzzer.arg(&found).arg(workspace().join("fuzz/corpus").join(target));
    command::watch(&mut fuzzer, &step, |line| {
        told.read(line);
        step.note(line);
    })?;
    step.done();
    Ok(told)
}

/// The least that covers what the committed corpus and all earlier runs cover.
fn merge(program: &Path, target: &str) -> anyhow::Result<()> {
    let corpus = workspace().join("fuzz/corpus").join(target);
    let found = folder("found", target);
    if !found.is_dir() {
        return Ok(());
    }
    let step = Step::start(format!("merging {target}"));
    command::run(fuzzer(program, target).arg("-set_cover_merge=1").arg(&corpus).arg(&found), &step)?;
    for entry in std::fs::read_dir(&corpus).context("read the corpus")? {
        let entry = entry.context("read the corpus")?;
        if entry.metadata().context("read the corpus")?.len() > MAX_COMMITTED {
            std::fs::remove_file(entry.path()).context("remove what is too large")?;
        }
    }
    step.done();
    Ok(())
}

impl Told {
    /// Takes in a line like `#4096 pulse  cov: 612 ft: 1800 corp: 97/3Kb ...` of libFuzzer.
    fn read(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix('#') else { return };
        let mut words = rest.split_whitespace();
        let Some(runs) = words.next().and_then(|runs| runs.trim_end_matches(':').parse().ok()) else {
            return;
        };
        self.runs = runs;
        while let Some(word) = words.next() {
            let number = |text: Option<&str>| text.and_then(|text| text.split('/').next()?.parse().ok());
            match word {
                "cov:" => self.edges = number(words.next()).unwrap_or(self.edges),
                "ft:" => self.features = number(words.next()).unwrap_or(self.features),
                "corp:" => self.corpus = number(words.next()).unwrap_or(self.corpus),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_read_from_what_the_fuzzer_prints() {
        let mut told = Told::default();
        told.read("INFO: Seed: 3514");
        told.read("#2\tINITED cov: 3 ft: 4 corp: 1/1b exec/s: 0 rss: 30Mb");
        told.read("#262144\tpulse  cov: 612 ft: 1800 corp: 97/3496b lim: 1290 exec/s: 52428 rss: 41Mb");
        assert_eq!(told, Told { runs: 262_144, edges: 612, features: 1800, corpus: 97 });
        told.read("Done 300001 runs in 61 second(s)");
        assert_eq!(told.runs, 262_144);
    }

    #[test]
    fn targets_are_the_folders_of_the_corpus() {
        assert!(targets(None).unwrap().len() > 10);
        assert_eq!(targets(Some("qmp")).unwrap(), ["qmp"]);
        let error = targets(Some("nothing")).unwrap_err().to_string();
        assert!(error.starts_with("there is no target \"nothing\"; there are attach, "), "{error}");
    }
}
