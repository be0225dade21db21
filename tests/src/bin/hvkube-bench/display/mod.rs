//! `display`: screenshots, streams and input of a desktop of the process backend, seen from a client's process, and peers on
//! the same screen.
//!
//! Rounds go through all that is measured, ours and the peers' in turns, so that a noisy moment hits all of them.

pub(crate) mod desk;
mod guest;
mod input;
mod paint;
mod peers;
mod record;
mod subscribers;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use hvkube_sdk::v1::{self, DisplaySize, ImageFormat, NetworkMode, Pool, Template, TemplateSource};
use hvkube_sdk::{Client, Desktop, LocalDaemon, ReleasePolicy, state_dir};

use super::cost;
use super::samples::Samples;
use paint::{Content, Painter};
use peers::{Cua, OnDisplay, Scrot};
use record::Recorder;
use subscribers::Daemon;

const SIZES: [(u32, u32); 2] = [(1280, 800), (1920, 1080)];
/// A stream is read for so long with each number of readers.
const STREAM_FOR: Duration = Duration::from_secs(12);
const WARM_UP: Duration = Duration::from_secs(3);
const READERS: [usize; 3] = [1, 10, 100];
const FPS: u32 = 30;
const QUALITY: u32 = 80;
/// Pictures may be this large; photos in PNG are.
const MAX_BYTES: u32 = 32 << 20;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many rounds
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Where the samples go
    #[arg(long)]
    pub(crate) output: PathBuf,
    /// Process of the daemon
    #[arg(long, default_value_t = 0, required_unless_present = "guest")]
    daemon_pid: u32,
    /// Measure a VM of this template, and nothing else
    #[arg(long, value_name = "TEMPLATE")]
    guest: Option<String>,
    /// Measure the computer-server of this Python, and scrot
    #[arg(long, value_name = "PYTHON")]
    cua: Option<PathBuf>,
}

pub(crate) async fn run(client: &Client, args: &Args) -> anyhow::Result<Samples> {
    let mut samples = Samples::default();
    if let Some(template) = &args.guest {
        guest::run(client, template, args.runs, &mut samples).await?;
        return Ok(samples);
    }
    for (width, height) in SIZES {
        let name = format!("bench-{width}x{height}");
        make_pool(client, &name, width, height).await.with_context(|| format!("make {name}"))?;
        let desktop = client.acquire(&name).await.context("acquire")?;
        let measured = measure(&desktop, args, (width, height), &mut samples).await;
        // In any case, or the daemon keeps it.
        desktop.release(ReleasePolicy::Destroy).await?;
        client.delete_pool(&name, true).await?;
        measured?;
    }
    Ok(samples)
}

async fn make_pool(client: &Client, name: &str, width: u32, height: u32) -> anyhow::Result<()> {
    // The backend's golden disk is a home directory; an empty one does.
    let home = state_dir().join("bench-home");
    std::fs::create_dir_all(&home).context("make a home")?;
    let template = Template {
        source: Some(TemplateSource { disk_path: home.to_string_lossy().into_owned(), ..Default::default() }),
        display: Some(DisplaySize { width, height }),
        // The backend's desktops have none but the host's.
        network: NetworkMode::None.into(),
        ..Default::default()
    };
    let operation = client.create_template(name, template).await?;
    let _: Template = client.wait_operation(operation, |_| {}).await?;
    let pool = Pool { template: format!("templates/{name}"), desired_count: 1, ..Pool::default() };
    client.create_pool(name, pool).await?;
    Ok(())
}

async fn measure(
    desktop: &Desktop,
    args: &Args,
    size: (u32, u32),
    samples: &mut Samples,
) -> anyhow::Result<()> {
    // The shell's parent is the agent.
    let told = desktop.exec(["sh", "-c", "echo $DISPLAY; echo $XAUTHORITY; echo $PPID"]).await?;
    let told = String::from_utf8(told.stdout).context("the desktop's environment")?;
    let [display, authority, agent] = told.lines().collect::<Vec<_>>()[..] else {
        anyhow::bail!("the desktop's environment is {told:?}");
    };
    let on = OnDisplay { display: display.to_owned(), authority: authority.to_owned() };
    let agent: u32 = agent.parse().context("the agent's process")?;
    let painter = Painter::new(&on)?;
    samples.fact("font", painter.font);
    let mut peers = match &args.cua {
        Some(python) => {
            let folder = args.output.parent().context("a folder for files")?;
            let scrot = Scrot { on: on.clone(), file: folder.join("scrot.png") };
            let on = on.spelled_out(folder.join("peers.xauthority"))?;
            Some((Cua::start(python, &on)?, scrot))
        }
        None => None,
    };
    if size == SIZES[0] {
        let mut recorder = Recorder::new(&on)?;
        let cua = peers.as_mut().map(|(cua, _)| cua);
        input::measure(desktop, args.runs, &mut recorder, cua, samples).await?;
    }
    let painter = screenshots(desktop, args, size, &mut peers, painter, samples).await?;
    drop(peers);
    if size == SIZES[SIZES.len() - 1] {
        streams(desktop, args, agent, painter, samples).await?;
    }
    Ok(())
}

async fn screenshots(
    desktop: &Desktop,
    args: &Args,
    (width, height): (u32, u32),
    peers: &mut Option<(Cua, Scrot)>,
    mut painter: Painter,
    samples: &mut Samples,
) -> anyhow::Result<Painter> {
    for content in Content::ALL {
        let name = |who: &str, how: &str| format!("{who}_{width}x{height}_{}_{how}_ms", content.name());
        for round in 0..=args.runs {
            let mut add = samples_of(samples, round);
            for (format, how) in [(ImageFormat::Png, "png"), (ImageFormat::Jpeg, "jpeg")] {
                painter.show(content)?;
                add(name("ours", &format!("changing_{how}")), take(desktop, format, (width, height)).await?);
                take(desktop, format, (width, height)).await?;
                add(name("ours", &format!("unchanged_{how}")), take(desktop, format, (width, height)).await?);
            }
            if let Some((cua, scrot)) = peers {
                painter.show(content)?;
                add(name("cua", "changing"), cua.screenshot()?);
                add(name("cua", "unchanged"), cua.screenshot()?);
                painter.show(content)?;
                add(name("scrot", "changing"), scrot.screenshot()?);
            }
        }
        eprintln!("screenshots of {} at {width}x{height}", content.name());
    }
    Ok(painter)
}

/// Where a round's times go: the first round is for everything that is done once.
fn samples_of(samples: &mut Samples, round: u32) -> impl FnMut(String, Duration) {
    move |name, took| {
        if round > 0 {
            samples.add_ms(name, took);
        }
    }
}

async fn take(desktop: &Desktop, format: ImageFormat, size: (u32, u32)) -> anyhow::Result<Duration> {
    let options = v1::ScreenshotOptions {
        format: format.into(),
        quality: QUALITY,
        max_bytes: MAX_BYTES,
        ..Default::default()
    };
    let began = Instant::now();
    let picture = desktop.screenshot(options).await?;
    let took = began.elapsed();
    let got = picture.size.unwrap_or_default();
    ensure!((got.width, got.height) == size && !picture.image.is_empty(), "a screenshot of another size");
    Ok(took)
}

async fn streams(
    desktop: &Desktop,
    args: &Args,
    agent: u32,
    mut painter: Painter,
    samples: &mut Samples,
) -> anyhow::Result<()> {
    let local = LocalDaemon::find();
    let endpoint = local.endpoint().context("the daemon's address")?;
    let daemon = Daemon {
        authority: endpoint.trim_start_matches("http://").trim_end_matches('/').to_owned(),
        token: std::fs::read_to_string(&local.token_file).context("read the token")?.trim().to_owned(),
    };
    let request = v1::StreamScreenshotsRequest {
        target: desktop.name().to_owned(),
        options: Some(v1::ScreenshotOptions {
            format: ImageFormat::Jpeg.into(),
            quality: QUALITY,
            max_bytes: MAX_BYTES,
            ..Default::default()
        }),
        max_fps: f64::from(FPS),
        ..Default::default()
    };
    painter.show(Content::Text)?;
    let epoch = Instant::now();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let scrolling = std::thread::spawn(move || -> anyhow::Result<Painter> {
        let mut next = Instant::now();
        while !stopped.load(Ordering::Relaxed) {
            painter.scroll(epoch)?;
            next += Duration::from_secs(1) / FPS;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        Ok(painter)
    });
    let mut outcome = Ok(());
    for count in READERS {
        outcome = stream(&daemon, &request, count, epoch, (args.daemon_pid, agent), samples).await;
        if outcome.is_err() {
            break;
        }
        eprintln!("stream to {count}");
    }
    stop.store(true, Ordering::Relaxed);
    scrolling.join().map_err(|_| anyhow::anyhow!("the painter panicked"))??;
    outcome
}

async fn stream(
    daemon: &Daemon,
    request: &v1::StreamScreenshotsRequest,
    count: usize,
    epoch: Instant,
    (daemon_pid, agent_pid): (u32, u32),
    samples: &mut Samples,
) -> anyhow::Result<()> {
    let busy = || {
        anyhow::Ok((
            cost::cpu_time(daemon_pid)?,
            cost::cpu_time(agent_pid)?,
            cost::cpu_time(std::process::id())?,
        ))
    };
    let (began, before) = (Instant::now(), busy()?);
    let seen = subscribers::read(daemon, request, count, WARM_UP, STREAM_FOR).await?;
    let (time, after) = (began.elapsed().as_secs_f64(), busy()?);
    let name = |what: &str| format!("stream_{count}_{what}");
    let seconds = STREAM_FOR.as_secs_f64();
    for frames in &seen.frames {
        samples.add(name("fps"), f64::from(u32::try_from(*frames)?) / seconds);
    }
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    samples.add(name("mb_per_s"), seen.bytes as f64 / 1e6 / seconds);
    for (what, after, before) in [
        ("cpu_daemon", after.0, before.0),
        ("cpu_agent", after.1, before.1),
        ("cpu_bench", after.2, before.2),
    ] {
        samples.add(name(what), (after - before).as_secs_f64() / time * 100.0);
    }
    let mut stamps = 0;
    for (sequence, parts) in &seen.kept {
        let message = parts.concat();
        let picture: v1::Screenshot = prost::Message::decode(&message[5..]).context("decode a message")?;
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        samples.add(name("picture_kb"), picture.image.len() as f64 / 1e3);
        let picture = image::load_from_memory(&picture.image).context("decode a picture")?.to_rgb8();
        // A frame that was read while it was drawn may have half a stamp.
        let Some(stamp) = paint::stamp(&picture) else { continue };
        stamps += 1;
        let drawn = epoch + Duration::from_millis(stamp.into());
        for arrival in &seen.arrivals[sequence] {
            samples.add_ms(name("staleness_ms"), arrival.saturating_duration_since(drawn));
        }
    }
    ensure!(stamps * 2 > seen.kept.len(), "only {stamps} of {} pictures have a stamp", seen.kept.len());
    Ok(())
}
