//! `hvkube vm screenshot` and `hvkube vm wait`.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use hvkube_sdk::v1::{
    self, ImageFormat, PixelCondition, Rect, ScreenshotOptions, SettleCondition, SettleOptions, Size,
};

use crate::commands::pool::proto;
use crate::context::Context;
use crate::output::human;
use crate::report::{Failure, Outcome};
use crate::units;

#[derive(Debug, Args)]
pub(crate) struct Screenshot {
    /// VM (id or name) or leases/ID
    name: String,
    /// Where it goes; the ending says the format: png, jpg, webp, bgra; `-` is standard output, as PNG
    #[arg(short, long, value_name = "FILE", default_value = "screenshot.png")]
    output: PathBuf,
    /// Only this part
    #[arg(long, value_name = "X,Y,W,H", value_parser = units::rect)]
    region: Option<Rect>,
    /// Make it smaller until it fits
    #[arg(long, value_name = "WxH", value_parser = units::size, conflicts_with = "scale")]
    max_size: Option<Size>,
    /// Make it smaller by this factor, e.g. 0.5
    #[arg(long, value_name = "FACTOR", value_parser = units::scale)]
    scale: Option<f64>,
    /// Quality of a JPEG, 1 to 100 [default: 80]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    quality: Option<u32>,
    /// Leave the cursor out
    #[arg(long)]
    hide_cursor: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// VM (id or name) or leases/ID
    name: String,
    /// How long nothing may change [default: 300ms; with --region or --pixel: not waited for]
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    quiet_for: Option<Duration>,
    /// Changes in here do not count; may be given several times
    #[arg(long, value_name = "X,Y,W,H", value_parser = units::rect)]
    ignore: Vec<Rect>,
    /// Until anything in here is other than now; may be given several times
    #[arg(long, value_name = "X,Y,W,H", value_parser = units::rect)]
    region: Vec<Rect>,
    /// Until this pixel has this colour, each part within TOLERANCE of it; may be given several times
    #[arg(long, value_name = "X,Y=RRGGBB[~TOLERANCE]", value_parser = units::pixel)]
    pixel: Vec<PixelCondition>,
    /// Size of the picture that positions were read from [default: the screen's own]
    #[arg(long, value_name = "WxH", value_parser = units::size)]
    frame_size: Option<Size>,
}

/// Room for a raw picture: the SDK takes messages of 64 MiB, some of which is not the picture.
const MAX_BYTES: u32 = 60 << 20;

/// Format by the ending of a file name.
pub(crate) fn format_of(path: &Path) -> Result<ImageFormat, Failure> {
    if path.as_os_str() == "-" {
        return Ok(ImageFormat::Png);
    }
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
    match ending.as_deref() {
        Some("png") => Ok(ImageFormat::Png),
        Some("jpg" | "jpeg") => Ok(ImageFormat::Jpeg),
        Some("webp") => Ok(ImageFormat::Webp),
        Some("bgra" | "raw") => Ok(ImageFormat::RawBgra),
        _ => Err(Failure::Usage(format!(
            "--output {}: the file's ending must be png, jpg, webp or bgra",
            path.display()
        ))),
    }
}

/// Options of a whole picture for a file.
pub(crate) fn options_for(path: &Path) -> Result<ScreenshotOptions, Failure> {
    let format = format_of(path)?;
    Ok(ScreenshotOptions { format: format.into(), max_bytes: MAX_BYTES, ..ScreenshotOptions::default() })
}

pub(crate) async fn screenshot(context: &Context, args: Screenshot) -> Outcome {
    let mut options = options_for(&args.output)?;
    options.region = args.region;
    options.max_size = args.max_size;
    options.scale = args.scale.unwrap_or_default();
    options.quality = args.quality.unwrap_or_default();
    options.hide_cursor = args.hide_cursor;
    if args.output.as_os_str() == "-" && std::io::stdout().is_terminal() {
        return Err(Failure::Usage("--output -: a picture does not go to a terminal".to_owned()));
    }
    let shot = context.client().await?.target(&args.name).screenshot(options).await?;
    store(context, &shot, &args.output)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a picture to where it goes.
pub(crate) fn store(context: &Context, shot: &v1::Screenshot, path: &Path) -> Result<(), Failure> {
    if path.as_os_str() == "-" {
        let mut out = std::io::stdout().lock();
        out.write_all(&shot.image)?;
        out.flush()?;
        return Ok(());
    }
    std::fs::write(path, &shot.image)
        .map_err(|err| Failure::io(&format!("write {}", path.display()), &err))?;
    let size = shot.size.unwrap_or_default();
    let bytes = human::bytes(shot.image.len() as u64);
    context.note(format_args!("{}: {}x{}, {bytes}", path.display(), size.width, size.height));
    Ok(())
}

pub(crate) async fn wait(context: &Context, args: Wait) -> Outcome {
    let options = SettleOptions {
        quiet: args.quiet_for.map(|time| proto(time, "--quiet-for")).transpose()?,
        timeout: context.timeout().map(|time| proto(time, "--timeout")).transpose()?,
        ignore: args.ignore,
        regions: args.region,
        pixels: args.pixel,
    };
    let conditional = !options.regions.is_empty() || !options.pixels.is_empty();
    let target = context.client().await?.target(&args.name);
    let what = if conditional { "waiting for the screen" } else { "waiting for a settled screen" };
    let progress = context.progress(what);
    let answer = target.wait_for_settle_on(options, args.frame_size).await;
    drop(progress);
    let settle = answer?.settle.unwrap_or_default();
    let met_after = human::proto_duration(settle.met_after);
    let met = match settle.met() {
        SettleCondition::Region => Some(format!("region {} changed after {met_after}", settle.met_index + 1)),
        SettleCondition::Pixel => {
            Some(format!("pixel {} had its colour after {met_after}", settle.met_index + 1))
        }
        SettleCondition::Unspecified | SettleCondition::Quiet => None,
    };
    if settle.timed_out {
        return Err(if conditional && met.is_none() { Failure::NotMet } else { Failure::NotSettled });
    }
    if let Some(met) = met {
        context.note(met);
        return Ok(ExitCode::SUCCESS);
    }
    match human::proto_duration(settle.settled_after) {
        after if after.is_empty() || settle.changed.is_empty() => context.note("settled, nothing changed"),
        after => context.note(format_args!("settled after {after}")),
    }
    Ok(ExitCode::SUCCESS)
}
