//! `hvkube vm clipboard`, `windows`, `focus` and `mask`.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use hvkube_sdk::desktop::Clipboard;
use hvkube_sdk::v1::{ClipboardFormat, ClipboardSelection, ListWindowsResponse, Rect, Window};

use crate::args::OutputArgs;
use crate::context::Context;
use crate::output;
use crate::output::human;
use crate::report::{Failure, Outcome};
use crate::units;

/// Most that a clipboard holds.
const MAX_BYTES: u64 = 16 << 20;

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Print what was copied
    Get {
        /// VM (id or name) or leases/ID
        name: String,
        /// Write it here; a name that ends with png gets the picture
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// What is marked, not what was copied
        #[arg(long)]
        primary: bool,
    },
    /// Copy something, for programs to paste
    Set {
        /// VM (id or name) or leases/ID
        name: String,
        /// Joined by spaces; `-` alone is standard input
        #[arg(required_unless_present_any = ["file", "clear"])]
        text: Vec<String>,
        /// A text file, or a picture whose name ends with png
        #[arg(long, value_name = "FILE", conflicts_with = "text")]
        file: Option<PathBuf>,
        /// Empty it
        #[arg(long, conflicts_with_all = ["text", "file"])]
        clear: bool,
        /// What is marked, not what was copied
        #[arg(long)]
        primary: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Windows {
    /// VM (id or name) or leases/ID
    name: String,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct Focus {
    /// VM (id or name) or leases/ID
    name: String,
    /// Its id, or a part of its title or program; of several windows the topmost
    window: String,
}

#[derive(Debug, Args)]
pub(crate) struct Mask {
    /// VM (id or name) or leases/ID
    name: String,
    /// What to cover, in place of what was covered before
    #[arg(value_name = "X,Y,W,H", value_parser = units::rect)]
    masks: Vec<Rect>,
    /// Cover nothing any more
    #[arg(long, conflicts_with = "masks")]
    clear: bool,
}

fn selection(primary: bool) -> ClipboardSelection {
    if primary { ClipboardSelection::Primary } else { ClipboardSelection::Clipboard }
}

fn is_png(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("png"))
}

pub(crate) async fn clipboard(context: &Context, action: Action) -> Outcome {
    match action {
        Action::Get { name, output, primary } => get(context, &name, output.as_deref(), primary).await,
        Action::Set { name, text, file, clear, primary } => {
            let content = match (file, &text[..]) {
                _ if clear => None,
                (Some(path), _) => Some(read_file(&path)?),
                (None, [only]) if only == "-" => Some(Clipboard::Text(read_stdin()?)),
                (None, words) => Some(Clipboard::Text(words.join(" "))),
            };
            let target = context.client().await?.target(&name);
            target.set_clipboard_of(selection(primary), content).await?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn get(context: &Context, name: &str, output: Option<&Path>, primary: bool) -> Outcome {
    let format = match output {
        Some(path) if is_png(path) => ClipboardFormat::Png,
        _ => ClipboardFormat::Text,
    };
    let target = context.client().await?.target(name);
    let content = target.clipboard_as(selection(primary), format).await?;
    let data = match &content {
        Some(Clipboard::Text(text)) => text.as_bytes(),
        Some(Clipboard::Png(data)) => data,
        None => {
            let what = if format == ClipboardFormat::Png { "picture" } else { "text" };
            return Err(Failure::Local(format!("there is no {what} in the clipboard")));
        }
    };
    if let Some(path) = output {
        std::fs::write(path, data).map_err(|err| Failure::io(&format!("write {}", path.display()), &err))?;
        context.note(format_args!("{}: {}", path.display(), human::bytes(data.len() as u64)));
        return Ok(ExitCode::SUCCESS);
    }
    let mut out = std::io::stdout().lock();
    if out.is_terminal() {
        // What a guest copied must not drive a terminal.
        writeln!(out, "{}", human::printable(&String::from_utf8_lossy(data)))?;
    } else {
        out.write_all(data)?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn read_file(path: &Path) -> Result<Clipboard, Failure> {
    let failed = |err| Failure::io(&format!("read {}", path.display()), &err);
    let file = std::fs::File::open(path).map_err(failed)?;
    let data = bounded(file, &path.display().to_string())?;
    if is_png(path) {
        return Ok(Clipboard::Png(data.into()));
    }
    String::from_utf8(data).map(Clipboard::Text).map_err(|_| {
        Failure::Usage(format!("--file {}: is no UTF-8 text, nor does it end with png", path.display()))
    })
}

fn read_stdin() -> Result<String, Failure> {
    let data = bounded(std::io::stdin().lock(), "standard input")?;
    String::from_utf8(data).map_err(|_| Failure::Usage("standard input is no UTF-8 text".to_owned()))
}

fn bounded(from: impl std::io::Read, what: &str) -> Result<Vec<u8>, Failure> {
    let mut data = Vec::new();
    from.take(MAX_BYTES + 1)
        .read_to_end(&mut data)
        .map_err(|err| Failure::io(&format!("read {what}"), &err))?;
    if data.len() as u64 > MAX_BYTES {
        return Err(Failure::Usage(format!("{what} holds more than 16 MiB")));
    }
    Ok(data)
}

pub(crate) async fn windows(context: &Context, args: Windows) -> Outcome {
    let ListWindowsResponse { windows, screen } =
        context.client().await?.target(&args.name).windows().await?;
    let format = context.format(args.output);
    // People read from the top.
    let windows: Vec<&Window> = windows.iter().rev().collect();
    if windows.is_empty() && output::is_for_people(format) {
        context.note("no windows");
    } else {
        output::list_of(&windows, format)?;
    }
    if let Some(screen) = screen.filter(|_| output::is_for_people(format)) {
        let size = screen.size.unwrap_or_default();
        context.note(format_args!("screen: {}x{}, {} dpi", size.width, size.height, screen.dpi));
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn mask(context: &Context, args: Mask) -> Outcome {
    let target = context.client().await?.target(&args.name);
    let masks = if args.clear || !args.masks.is_empty() {
        target.set_masks(args.masks).await?
    } else {
        target.masks().await?.masks
    };
    for mask in &masks {
        output::write(&format!("{},{},{},{}\n", mask.x, mask.y, mask.width, mask.height))?;
    }
    if masks.is_empty() {
        context.note("nothing is covered");
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn focus(context: &Context, args: Focus) -> Outcome {
    let target = context.client().await?.target(&args.name);
    let id = match args.window.parse() {
        Ok(id) => id,
        Err(_) => {
            let wanted = args.window.to_lowercase();
            let windows = target.windows().await?.windows;
            let of = |window: &&Window| {
                [&window.title, &window.app].iter().any(|text| text.to_lowercase().contains(&wanted))
            };
            let found = windows.iter().rev().find(of).map(|window| window.id);
            found.ok_or_else(|| {
                Failure::Local(format!("no window has {:?} in its title or program", args.window))
            })?
        }
    };
    let window = target.focus(id).await?;
    context.note(format_args!("focused {}: {}", window.id, human::printable(&window.title)));
    Ok(ExitCode::SUCCESS)
}
