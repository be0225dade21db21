//! `hvkubed`, the host daemon. What it does is in the library; here are its flags and its exit codes: 0 done, 1 failed
//! with one line that says why, 2 wrong usage.

mod log;
mod signals;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use hvkube_host::api::tokens::Tokens;
use hvkube_host::config::load::{self, Loaded, Sources};
use hvkube_host::config::{Config, show};
use hvkube_host::daemon::{self, Daemon};

// A program that embeds the library chooses for itself.
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Host daemon of hyperv-kube: pools of clean desktop VMs, served over gRPC.
#[derive(Parser)]
#[command(name = "hvkubed", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    settings: SettingFlags,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Args)]
struct SettingFlags {
    /// Configuration file [default: $HVKUBE_CONFIG, else hvkubed.toml in /etc/hvkube or ~/.config/hvkube]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address of the API; port 0 takes a free one
    #[arg(long, global = true, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Directory of everything that must outlive the daemon
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<String>,
    /// Directory of sockets
    #[arg(long, global = true, value_name = "DIR")]
    run_dir: Option<String>,
    /// What runs the VMs: qemu, process or sim
    #[arg(long, global = true, value_name = "NAME")]
    hypervisor: Option<String>,
    /// error, warn, info, debug or trace
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Any setting, e.g. qemu.accel=tcg; may be repeated
    #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until a signal (the default)
    Serve,
    /// Print the settings that are in force, and where each came from
    Config {
        /// Print all settings with their defaults and what they mean
        #[arg(long)]
        default: bool,
    },
    /// Tokens of callers
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Put a copy of the store back, taken with `hvkube host backup`; the daemon must be stopped
    Restore {
        /// The copy
        file: PathBuf,
    },
    /// Print the version
    Version,
}

#[derive(Subcommand)]
enum TokenCommand {
    /// Make a token and print it, this once
    Add {
        /// Name of the caller
        name: String,
    },
    /// Print the names of all tokens
    List,
    /// Remove a token; calls with it are refused from now on
    Revoke {
        /// Name of the caller
        name: String,
    },
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write it as KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

impl SettingFlags {
    fn load(&self) -> anyhow::Result<Loaded> {
        Ok(load::load(&self.sources())?)
    }

    fn sources(&self) -> Sources {
        let mut sources = Sources::of_process(self.config.clone());
        for (key, flag, value) in [
            ("listen", "--listen", &self.listen),
            ("state_dir", "--state-dir", &self.state_dir),
            ("run_dir", "--run-dir", &self.run_dir),
            ("hypervisor", "--hypervisor", &self.hypervisor),
            ("log.level", "--log-level", &self.log_level),
        ] {
            if let Some(value) = value {
                sources.flags.push((key.into(), value.clone(), flag.into()));
            }
        }
        for (key, value) in &self.set {
            sources.flags.push((key.clone(), value.clone(), format!("--set {key}=")));
        }
        sources
    }
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            // One line, whatever the causes say.
            eprintln!("hvkubed: {}", format!("{error:#}").replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    match &cli.command {
        None | Some(Command::Serve) => serve(&cli.settings),
        Some(Command::Config { default: true }) => {
            let dirs = Sources::of_process(None).dirs;
            print(&show::defaults(&Config::defaults(dirs.state_dir)))
        }
        Some(Command::Config { default: false }) => print(&show::effective(&cli.settings.load()?)),
        Some(Command::Token { command }) => token(command, &cli.settings.load()?.config),
        Some(Command::Restore { file }) => restore(file, &cli.settings.load()?.config),
        Some(Command::Version) => print(&format!("hvkubed {}\n", env!("CARGO_PKG_VERSION"))),
    }
}

fn token(command: &TokenCommand, config: &Config) -> anyhow::Result<ExitCode> {
    let tokens = Tokens::new(&config.state_dir);
    match command {
        TokenCommand::Add { name } => {
            let token = tokens.add(name)?;
            eprintln!("token {name}, shown this once; it can be revoked with `hvkubed token revoke {name}`");
            print(&format!("{token}\n"))
        }
        TokenCommand::List => {
            print(&tokens.list()?.iter().map(|name| format!("{name}\n")).collect::<String>())
        }
        TokenCommand::Revoke { name } => {
            tokens.revoke(name)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn restore(file: &Path, config: &Config) -> anyhow::Result<ExitCode> {
    let restored = daemon::restore(config, file)?;
    eprintln!("restored {} from {}", config.store.path.display(), file.display());
    if let Some(kept) = restored.kept {
        eprintln!("the store before is kept as {}", kept.display());
    }
    if let Some(error) = restored.unread {
        eprintln!(
            "it does not say who has had vms since the copy was taken: {:#}",
            anyhow::Error::from(error)
        );
    }
    for lease in restored.ended {
        eprintln!("ended lease {lease}: its vm may have had another holder since, and is reset");
    }
    Ok(ExitCode::SUCCESS)
}

fn print(text: &str) -> anyhow::Result<ExitCode> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        // The reader has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        result => result.context("can't write to standard output").map(|()| ExitCode::SUCCESS),
    }
}

fn serve(flags: &SettingFlags) -> anyhow::Result<ExitCode> {
    let config = flags.load()?.config;
    let level = log::start(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("can't start the runtime")?;
    let code = runtime.block_on(async {
        let mut signals = signals::Signals::new().context("can't listen for signals")?;
        let daemon = tokio::select! {
            daemon = Daemon::start(config) => daemon?,
            () = signals.stop() => anyhow::bail!("stopped by a signal before it served"),
        };
        while signals.reload_or_stop().await {
            match flags.load() {
                Ok(loaded) => level.set(&loaded.config.log),
                Err(error) => tracing::warn!("the settings can't be read again: {error:#}"),
            }
        }
        tracing::info!("stopping; a second signal stops at once and leaves the vms running");
        tokio::select! {
            () = daemon.stop() => Ok(ExitCode::SUCCESS),
            () = signals.stop() => {
                tracing::warn!("stopping at once; running vms are taken over by the next daemon");
                Ok(ExitCode::FAILURE)
            }
        }
    });
    // Work on blocking threads (a hash of a large disk) must not hold the exit up.
    runtime.shutdown_background();
    code
}
