//! `hvkube agent`.

use std::io::Read as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use futures_util::stream::{StreamExt as _, TryStreamExt as _};
use hvkube_sdk::Client;
use hvkube_sdk::v1::{
    Agent, AgentLogEntry, AgentLogSource, AgentRetryPolicy, AgentStatus, AgentTask, ListAgentsRequest,
    SubmitAgentRequest, WatchAgentsRequest,
};

use crate::args::{ListArgs, OutputArgs};
use crate::commands::pool::proto;
use crate::context::Context;
use crate::output::{self, human};
use crate::report::{Failure, Outcome};
use crate::{units, watch};

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Submit an agent: a workflow with its input, run on a desktop of a pool
    Submit(Box<Submit>),
    /// List agents, newest first
    #[command(visible_alias = "ls")]
    List {
        /// Only those of this pool
        #[arg(short, long)]
        pool: Option<String>,
        /// Only those of this workflow
        #[arg(long)]
        workflow: Option<String>,
        /// Only those in one of these statuses
        #[arg(short, long, value_enum, value_delimiter = ',', value_name = "STATUS")]
        status: Vec<Status>,
        #[command(flatten)]
        list: ListArgs,
    },
    /// Show an agent with its input, result and pictures
    #[command(visible_alias = "info")]
    Get {
        /// Id or name
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// End agents that have not ended
    Cancel {
        /// Ids or names
        #[arg(required = true)]
        names: Vec<String>,
        /// Kept with the agents, for people
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        reason: String,
    },
    /// Print what an agent wrote and what happened to it
    #[command(visible_alias = "log")]
    Logs {
        /// Id or name
        name: String,
        /// Go on until the agent has ended
        #[arg(short, long)]
        follow: bool,
    },
    /// Save a picture that an agent left
    Screenshot {
        /// Id or name
        name: String,
        /// Its number [default: the last one]
        #[arg(short, long)]
        number: Option<u32>,
        /// File to write; `-` is standard output [default: AGENT-NUMBER with the picture's ending]
        #[arg(short = 'o', long = "output", value_name = "FILE")]
        file: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Submit {
    /// Pool whose VMs it runs on
    #[arg(short, long)]
    pool: String,
    /// What to do: a workflow of the daemon's configuration, or of external workers
    #[arg(short, long)]
    workflow: String,
    /// Its parameters, one JSON value; `@FILE` reads a file, `-` standard input
    #[arg(short, long, value_name = "JSON", default_value = "{}")]
    input: String,
    /// Id [default: made by the daemon]
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    id: String,
    /// For people
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    title: String,
    /// -100 to 100; higher ones are served earlier
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
    /// How long one attempt may take [default: the workflow's, or 30m]
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    run_timeout: Option<Duration>,
    /// How long it may wait to be started [default: 24h]
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    queue_timeout: Option<Duration>,
    /// How often it is tried, 1 to 20 [default: 3]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=20))]
    attempts: Option<u32>,
    /// Its VM must have a share of a GPU
    #[arg(long)]
    gpu: bool,
    /// Wait until it has ended, and show its result; fails with code 1 if it did
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Status {
    Pending,
    Scheduled,
    Running,
    Completed,
    Failed,
    Cancelled,
}

impl From<Status> for AgentStatus {
    fn from(status: Status) -> Self {
        match status {
            Status::Pending => Self::Pending,
            Status::Scheduled => Self::Scheduled,
            Status::Running => Self::Running,
            Status::Completed => Self::Completed,
            Status::Failed => Self::Failed,
            Status::Cancelled => Self::Cancelled,
        }
    }
}

pub(crate) async fn run(context: &Context, action: Action) -> Outcome {
    match action {
        Action::Submit(args) => return submit(context, *args).await,
        Action::List { pool, workflow, status, list } => {
            let (pool, workflow) = (pool.unwrap_or_default(), workflow.unwrap_or_default());
            let statuses = status.into_iter().map(|status| AgentStatus::from(status).into()).collect();
            let client = context.client().await?;
            if list.watch {
                let request =
                    WatchAgentsRequest { pool, workflow, statuses, ..WatchAgentsRequest::default() };
                return watch::follow(context, list, client.watch_agents(request)).await;
            }
            let filter = ListAgentsRequest { pool, workflow, statuses, ..ListAgentsRequest::default() };
            return watch::list(context, list, || client.list_agents(filter.clone())).await;
        }
        Action::Get { name, output } => {
            let agent = context.client().await?.get_agent(&name).await?;
            output::one(&agent, context.format(output))?;
        }
        Action::Cancel { names, reason } => {
            let client = context.client().await?;
            for name in names {
                let agent = client.cancel_agent(&name, &reason).await?;
                context.note(format_args!("cancelled {}", human::short(&agent.name)));
            }
        }
        Action::Logs { name, follow } => logs(context.client().await?, &name, follow).await?,
        Action::Screenshot { name, number, file } => screenshot(context, &name, number, file).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn submit(context: &Context, args: Submit) -> Outcome {
    let format = context.format(args.output);
    let input_json = read_input(&args.input)?;
    let agent = Agent {
        display_name: args.title,
        pool: args.pool,
        task: Some(AgentTask {
            workflow: args.workflow,
            input_json,
            timeout: args.run_timeout.map(|time| proto(time, "--run-timeout")).transpose()?,
            requires_gpu: args.gpu,
        }),
        priority: args.priority,
        retry: args
            .attempts
            .map(|max_attempts| AgentRetryPolicy { max_attempts, ..AgentRetryPolicy::default() }),
        queue_timeout: args.queue_timeout.map(|time| proto(time, "--queue-timeout")).transpose()?,
        ..Agent::default()
    };
    let request = SubmitAgentRequest { agent: Some(agent), agent_id: args.id, request_id: String::new() };
    let client = context.client().await?;
    let submitted = client.submit_agent(request).await?;
    if !args.wait {
        output::result(&submitted, format)?;
        return Ok(ExitCode::SUCCESS);
    }
    let id = human::short(&submitted.name);
    context.when_interrupted(Some(format!(
        "{id} goes on: see `hvkube agent get {id}`, or end it with `hvkube agent cancel {id}`"
    )));
    let mut bar = context.progress(id.clone());
    let ended = client.wait_agent(&submitted.name, |agent| bar.step(&step(agent))).await;
    drop(bar);
    context.when_interrupted(None);
    let ended = ended?;
    output::one(&ended, format)?;
    Ok(if ended.status() == AgentStatus::Completed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What an agent does now, for people who wait.
fn step(agent: &Agent) -> String {
    let status = human::enum_name(agent.status().as_str_name());
    let about = if agent.status() == AgentStatus::Running && agent.progress_percent > 0 {
        format!("{}% {}", agent.progress_percent, agent.progress_message)
    } else {
        agent.status_reason.clone()
    };
    let about = human::printable(about.trim());
    if about.is_empty() { status } else { format!("{status}, {about}") }
}

fn read_input(input: &str) -> Result<String, Failure> {
    let text = match input.strip_prefix('@') {
        Some(file) => {
            std::fs::read_to_string(file).map_err(|err| Failure::io(&format!("read {file}"), &err))?
        }
        None if input == "-" => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(|err| Failure::io("read standard input", &err))?;
            text
        }
        None => input.to_owned(),
    };
    match serde_json::from_str::<serde::de::IgnoredAny>(&text) {
        Ok(_) => Ok(text),
        Err(err) => Err(Failure::Usage(format!("--input is no JSON: {err}"))),
    }
}

async fn logs(client: &Client, name: &str, follow: bool) -> Result<(), Failure> {
    let entries = if follow {
        client.follow_agent_logs(name, 0).left_stream()
    } else {
        client.agent_logs(name, 0).right_stream()
    };
    let mut entries = std::pin::pin!(entries);
    while let Some(entry) = entries.try_next().await? {
        output::write(&line(&entry))?;
    }
    Ok(())
}

fn line(entry: &AgentLogEntry) -> String {
    let source = match entry.source() {
        AgentLogSource::Worker => "worker",
        AgentLogSource::Stderr => "stderr",
        AgentLogSource::Daemon | AgentLogSource::Unspecified => "daemon",
    };
    let time = human::time(entry.create_time.as_ref());
    format!("{time} {source} {}\n", human::printable(&entry.text))
}

async fn screenshot(
    context: &Context,
    name: &str,
    number: Option<u32>,
    file: Option<String>,
) -> Result<(), Failure> {
    let client = context.client().await?;
    let agent = client.get_agent(name).await?;
    let id = human::short(&agent.name);
    let wanted = match number {
        Some(number) => format!("{}/screenshots/{number}", agent.name),
        None => match agent.screenshots.last() {
            Some(last) => last.name.clone(),
            None => return Err(Failure::Local(format!("agent {id} has left no pictures"))),
        },
    };
    let picture = client.agent_screenshot(&wanted).await?;
    let content_type = picture.screenshot.map(|shot| shot.content_type).unwrap_or_default();
    let ending = match content_type.as_str() {
        "image/jpeg" => "jpg",
        "image/webp" => "webp",
        _ => "png",
    };
    let file = file.unwrap_or_else(|| format!("{id}-{}.{ending}", human::short(&wanted)));
    if file == "-" {
        use std::io::Write as _;
        let mut out = std::io::stdout().lock();
        out.write_all(&picture.image)?;
        out.flush()?;
    } else {
        std::fs::write(&file, &picture.image).map_err(|err| Failure::io(&format!("write {file}"), &err))?;
        context.note(format_args!("wrote {file}"));
    }
    Ok(())
}
