//! Debian packages: which job needs which, which are missing, and how they get installed.
//!
//! [`ensure`] is all that other modules call. It prints the exact commands before it runs them, runs them only as root or
//! with a sudo that asks nothing, and else returns [`NeedsPackages`], which ends the process with exit code 2.

mod apt;
mod table;

use std::collections::BTreeSet;
use std::fmt;
use std::process::{Command, Stdio};

use anyhow::Context as _;

use crate::command;
use crate::progress::Step;
pub(crate) use apt::Archives;
use apt::{Installed, Plan, Release};
pub(crate) use table::Job;
use table::Need;

/// What the user has to do before the command can work.
#[derive(Debug)]
pub(crate) struct NeedsPackages(String);

impl NeedsPackages {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for NeedsPackages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NeedsPackages {}

/// Makes sure that everything these jobs need is installed.
///
/// # Errors
/// [`NeedsPackages`] when something is missing that this process may not install.
pub(crate) fn ensure(jobs: &[Job]) -> anyhow::Result<()> {
    let root = rustix::process::geteuid().is_root();
    let needs: BTreeSet<&Need> =
        jobs.iter().flat_map(|job| job.needs()).filter(|need| !(root && need.only_without_root)).collect();
    let missing = missing(needs)?;
    if missing.is_empty() {
        return Ok(());
    }

    let names = missing.iter().map(|need| need.package).collect::<Vec<_>>().join(" ");
    if !command::exists("apt-get") {
        return Err(NeedsPackages(format!(
            "missing: {names}. These are Debian's package names; this system has no apt-get, so install the like"
        ))
        .into());
    }
    let release = Release::detect()?;
    let plan = Plan::new(&missing, &release);
    let commands = plan.commands(!root);
    let text = commands.iter().map(|command| format!("  {command}")).collect::<Vec<_>>().join("\n");
    if !root && !sudo_works() {
        return Err(
            NeedsPackages(format!("missing: {names}. Install it with\n{text}\nand run this again")).into()
        );
    }

    eprintln!("missing: {names}; installing with\n{text}");
    let step = Step::start("installing packages");
    for line in &commands {
        step.note(line);
        let mut shell = Command::new("sh");
        command::run(shell.args(["-ec", line]).env("DEBIAN_FRONTEND", "noninteractive"), &step)?;
    }
    step.done();

    let still = self::missing(missing)?;
    anyhow::ensure!(
        still.is_empty(),
        "installed, but still missing: {}",
        still.iter().map(|need| need.package).collect::<Vec<_>>().join(" ")
    );
    Ok(())
}

/// Of `needs`, what neither dpkg nor the path has.
fn missing<'a>(needs: impl IntoIterator<Item = &'a Need>) -> anyhow::Result<Vec<&'a Need>> {
    let needs: Vec<_> = needs.into_iter().collect();
    let installed = if command::exists("dpkg-query") {
        // It fails when a name is unknown, and still lists the others.
        let out = Command::new("dpkg-query")
            .args(["--show", "--showformat=${Package} ${db:Status-Status} ${Version}\n"])
            .args(needs.iter().map(|need| need.package))
            .stderr(Stdio::null())
            .output()
            .context("start dpkg-query")?;
        Installed::parse(&String::from_utf8_lossy(&out.stdout))
    } else {
        Installed::default()
    };
    Ok(needs.into_iter().filter(|need| !installed.has(need) && !on_path(need)).collect())
}

/// Whether a program that the user installed in another way will do.
fn on_path(need: &Need) -> bool {
    let Some(program) = need.program.filter(|program| command::exists(program)) else { return false };
    need.at_least.is_none_or(|least| {
        command::output(Command::new(program).arg("--version"))
            .is_ok_and(|text| table::major_in(&text).is_some_and(|major| major >= least))
    })
}

fn sudo_works() -> bool {
    Command::new("sudo")
        .args(["-n", "true"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
