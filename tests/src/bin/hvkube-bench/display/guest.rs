//! The same figures of a desktop that nobody outside can draw on: a VM's. This program goes into it and paints there, and
//! tells what its X server records; that way back to us is part of what is measured of input.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use hvkube_sdk::v1::{ImageFormat, Pool};
use hvkube_sdk::{Client, Desktop, ReleasePolicy};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::input::{Places, What};
use super::paint::Content;
use super::{samples_of, take};
use crate::samples::Samples;

/// Enough for a guest under emulation to start a program of this size.
const PATIENCE: Duration = Duration::from_secs(120);
/// Words that may wait to be looked at.
const QUEUE: usize = 4096;
const ORDERS: &str = "/tmp/hvkube-bench.orders";
const PROGRAM: &str = "/tmp/hvkube-bench";
const POOL: &str = "bench-guest";

/// Measures a desktop of a template that is ready.
pub(super) async fn run(
    client: &Client,
    template: &str,
    runs: u32,
    samples: &mut Samples,
) -> anyhow::Result<()> {
    let host = client.get_host("-").await?;
    samples.fact("guest hypervisor", format!("{} {}", host.hypervisor, host.hypervisor_version));
    samples.fact("guest accelerator", format!("{} ({})", host.accelerator, host.accelerator_reason));
    let pool = Pool { template: format!("templates/{template}"), desired_count: 1, ..Pool::default() };
    client.create_pool(POOL, pool).await?;
    let desktop = client.acquire(POOL).await.context("acquire")?;
    let measured = measure(&desktop, runs, samples).await;
    // In any case, or the daemon keeps it.
    desktop.release(ReleasePolicy::Destroy).await?;
    client.delete_pool(POOL, true).await?;
    measured
}

/// The program inside: what it tells, and when that came.
struct Inside {
    told: mpsc::Receiver<(Instant, String)>,
}

impl Inside {
    async fn start(desktop: &Desktop) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("find this program")?;
        let options = hvkube_sdk::desktop::WriteOptions { mode: 0o755, ..Default::default() };
        desktop.copy_in(&program, PROGRAM, options).await.context("copy this program into the guest")?;
        let script = format!("mkfifo {ORDERS} && exec {PROGRAM} desk {ORDERS}");
        let mut stream = desktop.exec(["sh", "-c", &script]).stream().await?;
        let (sender, told) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            let mut rest = Vec::new();
            loop {
                let event = stream.next().await;
                let now = Instant::now();
                let end = match event {
                    Ok(Some(hvkube_sdk::desktop::ExecEvent::Stdout(data))) => {
                        rest.extend_from_slice(&data);
                        None
                    }
                    Ok(Some(hvkube_sdk::desktop::ExecEvent::Stderr(data))) => {
                        Some(String::from_utf8_lossy(&data).into_owned())
                    }
                    Ok(Some(hvkube_sdk::desktop::ExecEvent::Started { .. })) => None,
                    other => Some(format!("it ended: {other:?}")),
                };
                while let Some(at) = rest.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = rest.drain(..=at).collect();
                    let word = String::from_utf8_lossy(&line).trim().to_owned();
                    if sender.send((now, word)).await.is_err() {
                        return;
                    }
                }
                if let Some(why) = end {
                    let _ = sender.send((now, format!("! {why}"))).await;
                    return;
                }
            }
        });
        let mut this = Self { told };
        this.wait("ready", 1).await?;
        Ok(this)
    }

    /// Waits for the `count`th of a word; gives when it came.
    async fn wait(&mut self, wanted: &str, count: usize) -> anyhow::Result<Instant> {
        let mut left = count;
        loop {
            match timeout(PATIENCE, self.told.recv()).await {
                Ok(Some((at, word))) if word == wanted => {
                    left -= 1;
                    if left == 0 {
                        return Ok(at);
                    }
                }
                Ok(Some((_, word))) if word.starts_with('!') => bail!("the program in the guest: {word}"),
                Ok(Some(_)) => {}
                Ok(None) => bail!("the program in the guest has ended"),
                Err(_) => bail!("the program in the guest does not tell {wanted}"),
            }
        }
    }

    fn clear(&mut self) {
        while self.told.try_recv().is_ok() {}
    }

    async fn paint(&mut self, desktop: &Desktop, content: Content) -> anyhow::Result<()> {
        let order = format!("echo {} > {ORDERS}", content.name());
        let done = desktop.exec(["sh", "-c", &order]).await?;
        ensure!(done.success(), "{}", done.stderr_lossy());
        self.wait("painted", 1).await.map(drop)
    }
}

async fn measure(desktop: &Desktop, runs: u32, samples: &mut Samples) -> anyhow::Result<()> {
    let mut inside = Inside::start(desktop).await?;
    let frame = desktop.screenshot(Default::default()).await?.frame_size.context("a frame")?;
    let size = (frame.width, frame.height);
    samples.fact("guest screen", format!("{}x{}", frame.width, frame.height));
    let mut places = Places::default();
    for round in 0..=runs {
        let mut add = samples_of(samples, round);
        for content in Content::ALL {
            for (format, how) in [(ImageFormat::Png, "png"), (ImageFormat::Jpeg, "jpeg")] {
                let name = |state: &str| format!("guest_{}_{state}_{how}_ms", content.name());
                inside.paint(desktop, content).await?;
                add(name("changing"), take(desktop, format, size).await?);
                take(desktop, format, size).await?;
                add(name("unchanged"), take(desktop, format, size).await?);
            }
        }
        for what in What::ALL {
            let (word, count) = what.told();
            inside.clear();
            let began = Instant::now();
            desktop.input(what.input(places.next())).await?;
            let answered = began.elapsed();
            let told = inside.wait(word, count).await?;
            add(format!("guest_{}_ms", what.name()), told.saturating_duration_since(began));
            add(format!("guest_{}_answer_ms", what.name()), answered);
        }
    }
    eprintln!("a guest's screenshots and input");
    Ok(())
}
