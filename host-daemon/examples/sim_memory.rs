//! Measures what simulated VMs cost the process that they are in.
//!
//! `cargo run --release -p hvkube-host --example sim_memory -- [VMS] [SESSIONS]`: so many VMs saved, then running, then so many
//! of them with a session each, then with a frame taken by each.

use std::error::Error;
use std::time::{Duration, Instant};

use hvkube_host::guest::{OpenOptions, Session, connect};
use hvkube_host::hypervisor::sim::{SimConfig, SimHypervisor};
use hvkube_host::hypervisor::{Hypervisor, Origin, VmDefinition};
use hvkube_host::model::ids::{TemplateId, VmId};
use hvkube_host::model::screen::Size;
use hvkube_host::model::template::{Boot, Network, TemplateSpec};
use uuid::Uuid;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Memory of this process that is in use, in bytes.
fn resident() -> Outcome<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// Prints what has been added since the last line, per VM.
struct Meter(u64, Instant);

impl Meter {
    fn tell(&mut self, what: &str, vms: u64) -> Outcome<()> {
        let now = resident()?;
        let (bytes, time) =
            (now.saturating_sub(self.0) / vms.max(1), self.1.elapsed() / u32::try_from(vms.max(1))?);
        println!("{what:<12} {vms:>6} VMs {bytes:>8} bytes more per VM {time:>12?} each");
        (self.0, self.1) = (now, Instant::now());
        Ok(())
    }
}

fn definition(name: &str, origin: Origin) -> Outcome<VmDefinition> {
    Ok(VmDefinition { id: VmId::new(name)?, uid: Uuid::new_v4(), origin })
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default| arguments.next().map_or(Ok(default), |text| text.parse::<u64>());
    let (vms, sessions) = (number(10_000)?, number(1_000)?);
    let home = tempfile::tempdir()?;
    let hv = SimHypervisor::open(SimConfig::new(home.path()))?;
    let template = TemplateId::new("bench")?;
    let spec = TemplateSpec {
        disk_path: "/none".into(),
        disk_format: None,
        boot: Boot::Bios,
        memory_mb: 512,
        cpu_count: 1,
        gpu: false,
        network: Network::User,
        display: Size { width: 1280, height: 800 },
    };
    hv.import_template(&template, &spec).await?;
    let builder = definition("builder", Origin::Golden(template.clone()))?;
    hv.define(&builder).await?;
    hv.start(&builder.id).await?;
    hv.seal_template(&template, &builder.id).await?;

    let mut meter = Meter(resident()?, Instant::now());
    let mut ids = Vec::new();
    for number in 0..vms {
        let vm = definition(&format!("vm-{number}"), Origin::Template(template.clone()))?;
        hv.define(&vm).await?;
        ids.push(vm.id);
    }
    meter.tell("saved", vms)?;
    for vm in &ids {
        hv.resume(vm).await?;
    }
    meter.tell("running", vms)?;
    let mut open: Vec<Session> = Vec::new();
    for vm in ids.iter().take(usize::try_from(sessions)?) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        open.push(connect(&hv, vm, &OpenOptions::default(), deadline).await?);
    }
    meter.tell("in session", sessions)?;
    for session in &open {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        session.probe(deadline).await?;
        session.capture(hvkube_host::guest::Have::default(), Duration::ZERO, true, deadline).await?;
    }
    meter.tell("looked at", sessions)?;
    tokio::time::sleep(Duration::from_secs(6)).await;
    meter.tell("two beats on", sessions)?;
    drop(open);
    drop(hv);
    let began = Instant::now();
    let hv = SimHypervisor::open(SimConfig::new(home.path()))?;
    let found = hv.recover().await?.len();
    println!("{found} VMs found again in {:?}", began.elapsed());
    Ok(())
}
