//! `hvkube vm cp`: one file in or out.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use hvkube_sdk::Target;
use hvkube_sdk::desktop::WriteOptions;

use crate::context::Context;
use crate::output::human;
use crate::report::{Failure, Outcome};

/// One side is here, the other in a guest, written VM:PATH or leases/ID:PATH. Paths there are absolute, or relative to
/// the desktop user's home.
#[derive(Debug, Args)]
pub(crate) struct Cp {
    /// What to copy; `-` is standard input
    #[arg(value_name = "SRC")]
    source: String,
    /// Where to; one that ends with a slash is a directory; `-` is standard output
    #[arg(value_name = "DST")]
    destination: String,
    /// Make missing directories in the guest
    #[arg(short, long)]
    parents: bool,
    /// Read or write as root (LocalSystem) instead of the desktop user
    #[arg(long)]
    as_root: bool,
}

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Side {
    Guest { target: String, path: String },
    Local(PathBuf),
    Standard,
}

/// `VM:PATH` is a guest's if what is before the colon can be a VM's name; `./a:b` and `C:\x` are local.
fn side(text: &str) -> Result<Side, Failure> {
    if text == "-" {
        return Ok(Side::Standard);
    }
    let Some((target, path)) = text.split_once(':').filter(|(target, _)| is_target(target)) else {
        return Ok(Side::Local(PathBuf::from(text)));
    };
    if path.is_empty() {
        return Err(Failure::Usage(format!("\"{text}\" names no file in the guest")));
    }
    Ok(Side::Guest { target: target.to_owned(), path: path.to_owned() })
}

fn is_target(text: &str) -> bool {
    let id = text.strip_prefix("vms/").or_else(|| text.strip_prefix("leases/")).unwrap_or(text);
    // Ids have two characters at least, drives on Windows have one.
    id.len() >= 2
        && id.starts_with(|c: char| c.is_ascii_lowercase())
        && id.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

pub(crate) async fn run(context: &Context, args: Cp) -> Outcome {
    let done = match (side(&args.source)?, side(&args.destination)?) {
        (Side::Guest { target, path }, to @ (Side::Local(_) | Side::Standard)) => {
            let target = context.client().await?.target(&target);
            copy_out(context, &target, &path, to, args.as_root).await?
        }
        (from @ (Side::Local(_) | Side::Standard), Side::Guest { target, path }) => {
            let options =
                WriteOptions { make_parents: args.parents, as_root: args.as_root, ..WriteOptions::default() };
            copy_in(context, &target, from, path, options).await?
        }
        _ => {
            let message = "one of SRC and DST must be in a guest, written VM:PATH, and the other one here";
            return Err(Failure::Usage(message.to_owned()));
        }
    };
    let size = if done == 0 { "0 B".to_owned() } else { human::bytes(done) };
    context.note(format_args!("copied {size}"));
    Ok(ExitCode::SUCCESS)
}

async fn copy_out(
    context: &Context,
    target: &Target,
    path: &str,
    to: Side,
    as_root: bool,
) -> Result<u64, Failure> {
    let mut file = target.open_file(path, as_root).await?;
    let total = file.info.size;
    let bar = context.progress(path);
    let progress = |done| bar.amount(done, total, true);
    let done = match to {
        Side::Local(to) => {
            let to = if to.is_dir() { to.join(guest_file_name(path)?) } else { to };
            file.save(&to, progress).await
        }
        _ => file.copy_to(&mut tokio::io::stdout(), progress).await,
    };
    Ok(done?)
}

async fn copy_in(
    context: &Context,
    target: &str,
    from: Side,
    mut path: String,
    mut options: WriteOptions,
) -> Result<u64, Failure> {
    let Side::Local(from) = from else {
        if path.ends_with(['/', '\\']) {
            return Err(Failure::Usage(
                "standard input has no name of its own; name the file in the guest".to_owned(),
            ));
        }
        let bar = context.progress(path.clone());
        let target = context.client().await?.target(target);
        return Ok(target.send(&path, tokio::io::stdin(), options, |done| bar.amount(done, 0, true)).await?);
    };
    let fail = |err| Failure::io(&format!("read {}", from.display()), &err);
    let meta = std::fs::metadata(&from).map_err(fail)?;
    if meta.is_dir() {
        return Err(Failure::Usage(format!(
            "{} is a directory; pack it into one file first, e.g. with tar",
            from.display()
        )));
    }
    if path.ends_with(['/', '\\']) {
        path.push_str(&local_file_name(&from)?);
    }
    options.mode = mode_of(&meta);
    let file = tokio::fs::File::open(&from).await.map_err(fail)?;
    let bar = context.progress(from.display().to_string());
    let target = context.client().await?.target(target);
    Ok(target.send(&path, file, options, |done| bar.amount(done, meta.len(), true)).await?)
}

#[cfg(unix)]
fn mode_of(meta: &std::fs::Metadata) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    meta.permissions().mode() & 0o777
}

#[cfg(not(unix))]
fn mode_of(_meta: &std::fs::Metadata) -> u32 {
    0
}

fn guest_file_name(path: &str) -> Result<String, Failure> {
    match path.rsplit(['/', '\\']).next() {
        Some(name) if !name.is_empty() && name != ".." && name != "." => Ok(name.to_owned()),
        _ => Err(Failure::Usage(format!("\"{path}\" names no file"))),
    }
}

fn local_file_name(path: &Path) -> Result<String, Failure> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    name.ok_or_else(|| Failure::Usage(format!("\"{}\" names no file", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_are_told_apart() {
        let guest =
            |target: &str, path: &str| Side::Guest { target: target.to_owned(), path: path.to_owned() };
        for (text, expected) in [
            ("pool-1:/tmp/x", guest("pool-1", "/tmp/x")),
            ("vms/pool-1:x", guest("vms/pool-1", "x")),
            ("leases/l-1:C:\\x", guest("leases/l-1", "C:\\x")),
            ("./a:b", Side::Local("./a:b".into())),
            ("C:\\x", Side::Local("C:\\x".into())),
            ("c:/x", Side::Local("c:/x".into())),
            ("/tmp/x", Side::Local("/tmp/x".into())),
            ("-", Side::Standard),
        ] {
            assert_eq!(side(text).expect("legal"), expected, "{text}");
        }
        assert!(side("pool-1:").is_err());
    }

    #[test]
    fn a_guest_cannot_name_a_file_outside_the_directory() {
        assert_eq!(guest_file_name("/a/b.txt").expect("a name"), "b.txt");
        assert_eq!(guest_file_name("C:\\a\\b.txt").expect("a name"), "b.txt");
        assert!(guest_file_name("/a/..").is_err() && guest_file_name("a/").is_err());
    }
}
