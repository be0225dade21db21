//! `cargo xtask demo`: runs the whole path once on a real VM and shows what each step took.
//!
//! Everything goes through the programs a user has: `hvkubed`, and `hvkube` with `-o json`. What it claims, it proves:
//! the command that was typed computes a product nobody typed, so its file can only come from a shell in the guest; and
//! after the release it takes the very same VM again to see that the file is gone.

mod session;
mod table;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, ensure};

use crate::cargo::{self, Programs};
use crate::image::{self, Stamp};
use crate::interrupt;
use crate::progress::Step;
use crate::stage::Stage;
use crate::system::{self, Job};
use session::Session;
use table::Table;

/// VMs in the demo's pool.
const POOL_SIZE: usize = 2;

/// Flags of `cargo xtask demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the picture goes
    #[arg(long, short, value_name = "FILE", default_value = "demo.png")]
    output: PathBuf,
    /// Build the daemon and the command line tool optimised; takes minutes more the first time
    #[arg(long)]
    release: bool,
    /// Run the hvkubed and hvkube of this folder instead of building them
    #[arg(long, value_name = "DIR", conflicts_with = "release")]
    programs: Option<PathBuf>,
    /// Use this golden image instead of building one
    #[arg(long, value_name = "DIR")]
    image: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut table = Table::default();
    let started = Instant::now();
    system::ensure(&[Job::Build, Job::Vm, Job::Image])?;
    table.row("packages of this machine", started.elapsed());

    let programs = match &args.programs {
        Some(folder) => Programs::in_folder(folder, &["hvkubed", "hvkube"])?,
        None => {
            let step = Step::start("building hvkubed and hvkube");
            let profile = if args.release { "release" } else { "dev" };
            let programs = cargo::build(&["hvkube-host", "hvkube-cli"], profile, &step)?;
            table.row("hvkubed and hvkube built", step.done());
            programs
        }
    };
    let image = match &args.image {
        Some(folder) => std::path::absolute(folder).context("find the image")?,
        None => {
            let started = Instant::now();
            let folder = image::build(&image::Args::standard())?;
            table.row("golden image", started.elapsed());
            folder
        }
    };
    interrupt::check()?;

    let step = Step::start("starting hvkubed");
    let stage = Stage::start(&programs, &step)?;
    table.row("hvkubed started", step.done());
    let session = Session::new(&stage);
    if let Err(error) = perform(args, &session, &image, &mut table) {
        let outcome = stage.explain(Err(error));
        let step = Step::start("stopping everything");
        drop(stage);
        step.done();
        return outcome;
    }

    let step = Step::start("stopping everything");
    session.clear(&step)?;
    stage.close()?;
    table.row("everything stopped: no process, port or lock left", step.done());
    table.row("in all", began.elapsed());
    println!("{table}");
    Ok(())
}

fn perform(
    args: &Args,
    session: &Session<'_>,
    image: &std::path::Path,
    table: &mut Table,
) -> anyhow::Result<()> {
    let stamp = Stamp::read(image)?;
    let step = Step::start("making a template: boot, settle, freeze");
    session.make_template(image, &step)?;
    table.row(format!("template of {} MiB booted, settled and frozen", stamp.memory_mb), step.done());

    let step = Step::start(format!("making a pool of {POOL_SIZE}"));
    session.make_pool(POOL_SIZE, &step)?;
    table.row(format!("pool of {POOL_SIZE} clones, saved"), step.done());

    let step = Step::start("acquiring a desktop");
    let grant = session.acquire(&step)?;
    table.row(format!("{} acquired with its proofs:", grant.vm), step.done());
    for (check, at) in &grant.checks {
        table.part(check, *at);
    }

    let proof = Proof::new()?;
    let step = Step::start("typing a command into its terminal");
    session.click_terminal(&grant, &step)?;
    session.type_line(&grant, &proof.command, &step)?;
    table.row("a click into the terminal, a command typed", step.done());
    let step = Step::start("waiting until the screen settles");
    session.settle(&grant, &step)?;
    table.row("the screen settled", step.done());
    let step = Step::start("taking its picture");
    session.screenshot(&grant, &args.output, &step)?;
    table.row(format!("{} taken", args.output.display()), step.done());

    let step = Step::start("reading what the command wrote");
    let found = session.read(&grant, &proof.file, &step)?.context("the typed command left no file")?;
    ensure!(
        found.trim() == proof.answer,
        "the guest's file says `{}`, not `{}`: something else ran than what was typed",
        found.trim(),
        proof.answer
    );
    table.row(format!("the guest computed {}: the command ran there", proof.answer), step.done());

    let step = Step::start("releasing with reset");
    session.release(&grant, &step)?;
    table.row("released with reset", step.done());
    let step = Step::start("acquiring again");
    let again = session.acquire_same(&grant, POOL_SIZE, &step)?;
    table.row(format!("{} acquired again", again.last().map_or("", |grant| &grant.vm)), step.done());
    let step = Step::start("looking for the file");
    for grant in &again {
        ensure!(
            session.read(grant, &proof.file, &step)?.is_none(),
            "{} survived the reset of {}",
            proof.file,
            grant.vm
        );
    }
    table.row("the file is gone: the desktop is clean", step.done());

    let step = Step::start("releasing");
    for grant in &again {
        session.release(grant, &step)?;
    }
    step.done();
    Ok(())
}

/// A command whose effect shows that it ran, and ran where it was typed.
#[derive(Debug)]
struct Proof {
    command: String,
    /// In the home of the desktop's user.
    file: String,
    answer: String,
}

impl Proof {
    fn new() -> anyhow::Result<Self> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).context("get random bytes")?;
        let token = hex::encode(&random[..4]);
        let (a, b) = (u32::from(random[4]) + 1000, u32::from(random[5]) + 1000);
        let file = format!("proof-{token}.txt");
        Ok(Self {
            command: format!("uname -srm; echo {token}-$(({a} * {b})) | tee {file}"),
            answer: format!("{token}-{}", a * b),
            file,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_gives_the_answer_and_the_command_does_not_hold_it() {
        let proof = Proof::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut shell = std::process::Command::new("sh");
        let shown = crate::command::output(shell.current_dir(&folder).args(["-c", &proof.command])).unwrap();
        let written = std::fs::read_to_string(folder.path().join(&proof.file)).unwrap();
        assert_eq!(written.trim(), proof.answer);
        assert!(shown.contains(&proof.answer));
        assert!(!proof.command.contains(&proof.answer));
        assert_ne!(Proof::new().unwrap().answer, proof.answer);
    }
}
