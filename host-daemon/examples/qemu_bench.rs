//! Measures the QEMU backend alone, on a golden image: what each move costs before anything is built on it.
//!
//! `cargo run --release --example qemu_bench -- IMAGE_DIR [ROUNDS]`, where the folder has `disk.qcow2`, `vmlinuz` and
//! `initrd.img` of a guest with a desktop and an agent.

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use hvkube_host::hypervisor::qemu::{ForkChoice, QemuConfig, QemuHypervisor};
use hvkube_host::hypervisor::{Hypervisor, Origin, VmDefinition};
use hvkube_host::model::ids::{TemplateId, VmId};
use hvkube_host::model::screen::Size;
use hvkube_host::model::template::{Boot, Network, TemplateSpec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uuid::Uuid;

const CMDLINE: &str =
    "root=/dev/vda quiet net.ifnames=0 systemd.show_status=false mitigations=off nowatchdog audit=0";

const DISPLAY: Size = Size { width: 1280, height: 800 };

type Outcome<T> = Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let image = arguments.next().ok_or("which image?")?;
    let rounds = arguments.next().map_or(Ok(20), |rounds| rounds.parse())?;
    let home = tempfile::tempdir()?;
    let config = QemuConfig {
        fork: fork_choice(),
        ..QemuConfig::new(home.path().join("data"), home.path().join("run"))
    };
    let host = QemuHypervisor::open(config).await?;
    host.recover().await?;
    println!("{:?}", host.facts());
    let template = TemplateId::new("bench")?;
    host.import_template(&template, &spec(Path::new(&image))).await?;
    let golden = definition("golden", Origin::Golden(template.clone()))?;
    host.define(&golden).await?;
    let outcome = measure(&host, &template, &golden, rounds).await;
    for name in ["golden", "vm"].map(str::to_owned).into_iter().chain((0..8).map(|n| format!("pool-{n}"))) {
        host.delete(&VmId::new(name)?).await?;
    }
    outcome
}

fn fork_choice() -> ForkChoice {
    if std::env::var_os("BENCH_NO_FORK").is_some() { ForkChoice::Off } else { ForkChoice::Auto }
}

async fn measure(
    host: &QemuHypervisor,
    template: &TemplateId,
    golden: &VmDefinition,
    rounds: usize,
) -> Outcome<()> {
    let begun = Instant::now();
    host.start(&golden.id).await?;
    settled(host, &golden.id).await?;
    println!("boot to settled desktop {:.1} s", begun.elapsed().as_secs_f64());
    let begun = Instant::now();
    host.seal_template(template, &golden.id).await?;
    println!("seal {:.0} ms", millis(begun));

    let vm = definition("vm", Origin::Template(template.clone()))?;
    let begun = Instant::now();
    host.define(&vm).await?;
    println!("define {:.1} ms", millis(begun));
    let vm = vm.id;
    let (mut resume, mut answer, mut reset, mut shot) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..=rounds {
        let begun = Instant::now();
        host.resume(&vm).await?;
        resume.push(millis(begun));
        ask(host, &vm).await?;
        answer.push(millis(begun));
        let begun = Instant::now();
        host.screenshot(&vm).await?;
        shot.push(millis(begun));
        let begun = Instant::now();
        host.reset(&vm).await?;
        reset.push(millis(begun));
    }
    // The first of each finds cold caches.
    for (name, series) in [
        ("saved -> running", &mut resume),
        ("saved -> first answer", &mut answer),
        ("screenshot", &mut shot),
        ("reset to saved", &mut reset),
    ] {
        report(name, &mut series.split_off(1));
    }
    let disk = host.files(&vm).await?.disk;
    println!("saved clean vm: disk {} KiB", std::os::unix::fs::MetadataExt::blocks(&disk.metadata()?) / 2);

    let (mut save, mut back) = (Vec::new(), Vec::new());
    host.resume(&vm).await?;
    for _ in 0..rounds {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let begun = Instant::now();
        host.save(&vm).await?;
        save.push(millis(begun));
        let begun = Instant::now();
        host.resume(&vm).await?;
        back.push(millis(begun));
    }
    report("save, state kept", &mut save);
    report("resume of kept state", &mut back);
    host.reset(&vm).await?;

    let mut pool = Vec::new();
    for number in 0..8 {
        pool.push(definition(&format!("pool-{number}"), Origin::Template(template.clone()))?);
    }
    let begun = Instant::now();
    let made = pool.iter().map(|vm| async {
        host.define(vm).await?;
        host.resume(&vm.id).await
    });
    for run in futures_util::future::join_all(made).await {
        run?;
    }
    println!("8 clones defined and running: {:.2} s", begun.elapsed().as_secs_f64());
    tokio::time::sleep(Duration::from_secs(5)).await;
    for vm in &pool {
        print!("{} ", host.resident_bytes(&vm.id).await? >> 20);
    }
    println!("MiB private after 5 s");
    Ok(())
}

/// Waits until the screen shows more than a text console and has not changed for ten seconds.
async fn settled(host: &QemuHypervisor, vm: &VmId) -> Outcome<()> {
    let (mut last, mut since) = (host.screenshot(vm).await?, Instant::now());
    while since.elapsed() < Duration::from_secs(10) {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let next = host.screenshot(vm).await?;
        let desktop =
            next.size == DISPLAY && next.pixels.chunks(4).filter(|pixel| pixel[0] > 8).count() > 100_000;
        if next != last || !desktop {
            (last, since) = (next, Instant::now());
        }
    }
    Ok(())
}

/// Connects and waits for the agent's first word.
async fn ask(host: &QemuHypervisor, vm: &VmId) -> Outcome<()> {
    let mut port = host.open_guest(vm).await?;
    port.write_all(b"echo answer\n").await?;
    let mut chunk = [0; 4096];
    if port.read(&mut chunk).await? == 0 {
        return Err("the port was closed".into());
    }
    Ok(())
}

fn millis(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1000.0
}

fn report(name: &str, series: &mut [f64]) {
    series.sort_by(f64::total_cmp);
    let at = |share: usize| series[(series.len() - 1) * share / 100];
    println!("{name:24} p50 {:7.1}  p95 {:7.1}  min {:7.1} ms", at(50), at(95), at(0));
}

fn definition(name: &str, origin: Origin) -> Outcome<VmDefinition> {
    Ok(VmDefinition { id: VmId::new(name)?, uid: Uuid::new_v4(), origin })
}

fn spec(image: &Path) -> TemplateSpec {
    TemplateSpec {
        disk_path: image.join("disk.qcow2"),
        disk_format: Some("qcow2".to_owned()),
        boot: Boot::Kernel {
            kernel: image.join("vmlinuz"),
            initrd: Some(image.join("initrd.img")),
            cmdline: CMDLINE.to_owned(),
        },
        memory_mb: 512,
        cpu_count: 2,
        gpu: false,
        network: Network::User,
        display: DISPLAY,
    }
}
