//! `hvkube template`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use hvkube_sdk::v1::{DisplaySize, Firmware, Size, Template, TemplateSource};
use serde_json::Value;

use crate::args::{ListArgs, OutputArgs};
use crate::commands::operation;
use crate::context::Context;
use crate::output;
use crate::report::{Failure, Outcome};
use crate::units::{self, Network};
use crate::watch;

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Make a template of a golden image: boots it once and keeps its settled desktop
    Create(Box<Create>),
    /// List templates
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        list: ListArgs,
    },
    /// Show a template
    #[command(visible_alias = "info")]
    Get {
        /// Id or name
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Delete templates; the golden images they came from stay
    #[command(visible_alias = "rm")]
    Delete {
        /// Ids or names
        #[arg(required = true)]
        names: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Id of the new template [default: made by the daemon]
    #[arg(long, default_value = "", hide_default_value = true)]
    name: String,
    /// Disk image on the daemon's machine
    #[arg(long, visible_alias = "vhdx", value_name = "FILE", required_unless_present = "image_dir")]
    disk: Option<String>,
    /// Golden image built by `cargo xtask image`: a directory with image.json; other options win over it
    #[arg(long, value_name = "DIR")]
    image_dir: Option<PathBuf>,
    /// Kernel to boot directly
    #[arg(long, value_name = "FILE")]
    kernel: Option<String>,
    /// Initial RAM disk for the kernel
    #[arg(long, value_name = "FILE")]
    initrd: Option<String>,
    /// Command line of the kernel
    #[arg(long, value_name = "TEXT")]
    cmdline: Option<String>,
    /// Format of the disk image [default: found out by reading it]
    #[arg(long = "format", value_name = "FORMAT", value_parser = ["qcow2", "raw", "vhdx"])]
    disk_format: Option<String>,
    /// Firmware that boots the disk where there is no kernel
    #[arg(long, value_enum)]
    firmware: Option<FirmwareArg>,
    /// Memory of each VM, e.g. 512M, 2G; a bare number is MiB [default: 512M]
    #[arg(long, value_name = "SIZE", value_parser = units::memory_mib)]
    memory: Option<u64>,
    /// Virtual CPUs of each VM [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: Option<u32>,
    /// VMs get a share of a GPU
    #[arg(long)]
    gpu: bool,
    /// What the image holds, for people
    #[arg(long, value_name = "NAME,..", value_delimiter = ',')]
    software: Vec<String>,
    /// none, user or bridge:NAME [default: user]
    #[arg(long, value_name = "MODE", value_parser = units::network)]
    network: Option<Network>,
    /// Size of the screen [default: 1280x800]
    #[arg(long, value_name = "WxH", value_parser = units::size)]
    display: Option<Size>,
    /// Port of a remote desktop server in the guest
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16))]
    rdp_port: Option<u16>,
    /// Title for people
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    title: String,
    /// Wait until it is ready; this is the default
    #[arg(long, overrides_with = "no_wait")]
    wait: bool,
    /// Print the operation and go on at once
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FirmwareArg {
    Bios,
    Uefi,
}

pub(crate) async fn run(context: &Context, action: Action) -> Outcome {
    match action {
        Action::Create(args) => return create(context, *args).await,
        Action::List { list } => {
            let client = context.client().await?;
            return watch::list(context, list, || client.list_templates()).await;
        }
        Action::Get { name, output } => {
            let template = context.client().await?.get_template(&name).await?;
            output::one(&template, context.format(output))?;
        }
        Action::Delete { names } => {
            let client = context.client().await?;
            for name in names {
                client.delete_template(&name).await?;
                context.note(format_args!("deleted template {name}"));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn create(context: &Context, args: Create) -> Outcome {
    let format = context.format(args.output);
    let wait = args.wait || !args.no_wait;
    let name = args.name.clone();
    let template = describe(args)?;
    let client = context.client().await?;
    let started = client.create_template(&name, template).await?;
    if wait {
        let what = if name.is_empty() { "template".to_owned() } else { format!("template {name}") };
        let template = operation::follow(context, client, started, &what).await?;
        output::result(&template, format)?;
    } else {
        output::result(&started, format)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The template that the options and the image's description say.
fn describe(args: Create) -> Result<Template, Failure> {
    let mut template = match &args.image_dir {
        Some(dir) => read_image(dir)?,
        None => Template { source: Some(TemplateSource::default()), ..Template::default() },
    };
    let source = template.source.get_or_insert_default();
    let files = [
        (args.disk, &mut source.disk_path),
        (args.kernel, &mut source.kernel_path),
        (args.initrd, &mut source.initrd_path),
    ];
    for (given, field) in files {
        if let Some(path) = given {
            *field = absolute(&path)?;
        }
    }
    if let Some(cmdline) = args.cmdline {
        source.kernel_cmdline = cmdline;
    }
    if let Some(format) = args.disk_format {
        source.disk_format = format;
    }
    if let Some(firmware) = args.firmware {
        source.set_firmware(match firmware {
            FirmwareArg::Bios => Firmware::Bios,
            FirmwareArg::Uefi => Firmware::Uefi,
        });
    }
    template.display_name = args.title;
    template.memory_mb = args.memory.unwrap_or(template.memory_mb);
    template.cpu_count = args.cpus.unwrap_or(template.cpu_count);
    template.gpu_enabled = args.gpu;
    template.installed_software = args.software;
    if let Some(network) = args.network {
        template.set_network(network.mode);
        template.bridge = network.bridge;
    }
    template.display = args.display.map(|size| DisplaySize { width: size.width, height: size.height });
    template.rdp_port = args.rdp_port.map(u32::from).unwrap_or_default();
    Ok(template)
}

/// What `image.json` of a golden image says; its paths are relative to its directory.
fn read_image(dir: &Path) -> Result<Template, Failure> {
    let file = dir.join("image.json");
    let bad = |why: String| Failure::Usage(format!("--image-dir {}: {why}", dir.display()));
    let text = std::fs::read_to_string(&file).map_err(|err| bad(format!("cannot read image.json: {err}")))?;
    let image: Value =
        serde_json::from_str(&text).map_err(|err| bad(format!("image.json is no JSON: {err}")))?;
    let string = |key: &str| match &image[key] {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text.clone()),
        _ => Err(bad(format!("\"{key}\" in image.json is no string"))),
    };
    let number = |key: &str| match &image[key] {
        Value::Null => Ok(0),
        value => value.as_u64().ok_or_else(|| bad(format!("\"{key}\" in image.json is no whole number"))),
    };
    let path = |key: &str| match string(key)? {
        name if name.is_empty() => Ok(String::new()),
        name => absolute(&dir.join(name).to_string_lossy()),
    };
    let disk_path = path("disk")?;
    if disk_path.is_empty() {
        return Err(bad("image.json names no \"disk\"".to_owned()));
    }
    let cpu_count =
        u32::try_from(number("cpu_count")?).map_err(|_| bad("\"cpu_count\" is too large".to_owned()))?;
    Ok(Template {
        source: Some(TemplateSource {
            disk_path,
            disk_format: string("disk_format")?,
            kernel_path: path("kernel")?,
            initrd_path: path("initrd")?,
            kernel_cmdline: string("cmdline")?,
            ..TemplateSource::default()
        }),
        memory_mb: number("memory_mb")?,
        cpu_count,
        ..Template::default()
    })
}

/// The daemon wants absolute paths. Windows paths pass as they are, from whatever system they are written on.
fn absolute(path: &str) -> Result<String, Failure> {
    let bytes = path.as_bytes();
    let drive = bytes.len() > 2
        && bytes[0].is_ascii_alphabetic()
        && bytes[1] == b':'
        && matches!(bytes[2], b'\\' | b'/');
    if drive || path.starts_with("\\\\") {
        return Ok(path.to_owned());
    }
    let absolute =
        std::path::absolute(path).map_err(|err| Failure::Usage(format!("bad path \"{path}\": {err}")))?;
    Ok(absolute.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_paths_pass_as_written() {
        for path in [r"C:\Templates\win11.vhdx", "c:/x.vhdx", r"\\server\share\x.vhdx", "/abs/x.qcow2"] {
            assert_eq!(absolute(path).expect("legal"), path);
        }
        let here = std::env::current_dir().expect("a current directory");
        assert_eq!(absolute("x.raw").expect("legal"), here.join("x.raw").to_string_lossy());
    }

    #[test]
    fn image_json_is_read_with_paths_of_its_directory() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let json = r#"{"disk":"disk.qcow2","kernel":"vmlinuz","initrd":null,"cmdline":"quiet","disk_format":"qcow2","memory_mb":768,"cpu_count":2}"#;
        std::fs::write(dir.path().join("image.json"), json).expect("write");
        let template = read_image(dir.path()).expect("well-formed");
        let source = template.source.expect("set");
        assert_eq!(Path::new(&source.disk_path), dir.path().join("disk.qcow2"));
        assert_eq!((source.initrd_path.as_str(), source.kernel_cmdline.as_str()), ("", "quiet"));
        assert_eq!((template.memory_mb, template.cpu_count), (768, 2));
        for (bad, why) in [
            ("{}", "no \"disk\""),
            ("x", "no JSON"),
            (r#"{"disk":1}"#, "no string"),
            (r#"{"disk":"d","memory_mb":-1}"#, "whole number"),
        ] {
            std::fs::write(dir.path().join("image.json"), bad).expect("write");
            let Err(Failure::Usage(message)) = read_image(dir.path()) else { panic!("{bad} was taken") };
            assert!(message.contains(why), "{message}");
        }
    }
}
