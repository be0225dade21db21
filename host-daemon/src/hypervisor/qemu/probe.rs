//! What this host's QEMU can really do, found out by doing it.
//!
//! That `/dev/kvm` exists says little: on nested hosts QEMU may abort at the first MSR or hang. And mapping a template's
//! memory rests on a migration capability that QEMU calls unstable. So both are tried, with a ROM of sixteen bytes that
//! writes a number into memory and says it back through an exit port: once on KVM, and once saved by one process and
//! continued by another. The outcome is cached until QEMU, the kernel or `/dev/kvm` change.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::config::{AccelChoice, ForkChoice, QemuConfig};
use super::error::Context;
use super::files::{self, Durability};
use super::machine::{AGENT_FD, Accel, MONITOR_FD, marker};
use super::process::Process;
use super::program::Version;
use super::qmp::Qmp;
use super::qmp::commands::{
    Cont, Halt, Migrate, MigrateIncoming, MigrateSetCapabilities, MigrationStatus, StateForm,
};
use crate::hypervisor::{HvError, HvResult};

/// A working machine answers in a tenth of a second.
const PATIENCE: Duration = Duration::from_secs(10);
/// The number the ROM says; the exit port doubles it and adds one.
const SAID: u8 = 0x21;
const EXIT_CODE: i32 = 0x43;
/// Where in memory it keeps the number.
const AT: u16 = 0x1000;
const MEMORY: u64 = 16 << 20;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Findings {
    key: String,
    /// The accelerator to use.
    pub(crate) accel: Accel,
    /// Why.
    pub(crate) accel_reason: String,
    /// Whether a process can go on with another's memory mapped, or why not.
    pub(crate) fork: Result<(), String>,
}

/// Finds out, or remembers.
pub(crate) async fn findings(
    config: &QemuConfig,
    version: &Version,
    instance: &str,
    run_dir: &Path,
) -> HvResult<Findings> {
    let cache = config.data_dir.join("probe.json");
    let key = key(config, version);
    if let Ok(found) = files::read_json::<Findings>(&cache)
        && found.key == key
    {
        return Ok(found);
    }
    let probe = Probe { config, version, instance, dir: run_dir.join("probe") };
    files::private_dir(&probe.dir)?;
    let found = probe.run(key).await;
    files::remove(&probe.dir)?;
    let found = found?;
    files::write_json(&cache, &found, Durability::Daemon)?;
    Ok(found)
}

/// All that the findings depend on.
fn key(config: &QemuConfig, version: &Version) -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kvm = fs::metadata("/dev/kvm").map_or_else(
        |_| "absent".to_owned(),
        |facts| {
            format!("{:x} {:o} {}:{}", facts.rdev(), facts.permissions().mode(), facts.uid(), facts.gid())
        },
    );
    let user = rustix::process::geteuid().as_raw();
    let (accel, fork) = (config.accel, config.fork);
    format!(
        "{} {} {} | {} | kvm {kvm} | user {user} | {accel:?} {fork:?}",
        config.binary.display(),
        version.text,
        version.machine,
        kernel.trim()
    )
}

struct Probe<'a> {
    config: &'a QemuConfig,
    version: &'a Version,
    instance: &'a str,
    dir: PathBuf,
}

impl Probe<'_> {
    async fn run(&self, key: String) -> HvResult<Findings> {
        let rom = self.dir.join("rom");
        fs::write(&rom, program()).context("write", &rom)?;
        let kvm = match self.config.accel {
            AccelChoice::Tcg => Err("the configuration asks for emulation".to_owned()),
            AccelChoice::Auto | AccelChoice::Kvm => self.kvm().await,
        };
        let (accel, accel_reason) = match (kvm, self.config.accel) {
            (Ok(()), _) => (Accel::Kvm, "a probe ran on it".to_owned()),
            (Err(why), AccelChoice::Kvm) => {
                return Err(HvError::Unavailable(format!("KVM does not work here: {why}")));
            }
            (Err(why), _) => (Accel::Tcg, why),
        };
        let fork = match self.config.fork {
            ForkChoice::Off => Err("the configuration says so".to_owned()),
            ForkChoice::Auto | ForkChoice::On => self.fork(accel).await,
        };
        if let (Err(why), ForkChoice::On) = (&fork, self.config.fork) {
            return Err(HvError::Unavailable(format!("QEMU can't share a template's memory: {why}")));
        }
        Ok(Findings { key, accel, accel_reason, fork })
    }

    async fn kvm(&self) -> Result<(), String> {
        let device = Path::new("/dev/kvm");
        if let Err(error) = fs::OpenOptions::new().read(true).write(true).open(device) {
            return Err(format!("/dev/kvm: {error}"));
        }
        let process =
            self.start(Accel::Kvm, "kvm", &["-device", EXIT_PORT]).map_err(|error| error.to_string())?;
        self.said(&process).await.map_err(|why| format!("/dev/kvm exists, but a probe failed: {why}"))
    }

    /// Saves a machine with its memory left in a file, and goes on with it in another process.
    async fn fork(&self, accel: Accel) -> Result<(), String> {
        let ram = self.dir.join("ram");
        let file = fs::File::create_new(&ram).map_err(|error| error.to_string())?;
        file.set_len(MEMORY).map_err(|error| error.to_string())?;
        let memory = |extra: serde_json::Value| {
            let mut object =
                json!({"qom-type": "memory-backend-file", "id": "m0", "size": MEMORY, "mem-path": &ram});
            if let (Some(object), Some(extra)) = (object.as_object_mut(), extra.as_object()) {
                object.extend(extra.clone());
            }
            object.to_string()
        };
        let text = |error: HvError| error.to_string();
        let first = memory(json!({"share": true}));
        let first = self.start(accel, "saved", &["-object", &first]).map_err(text)?;
        let saved = self.save(&first, &file).await;
        first.kill().await.map_err(text)?;
        saved?;
        let second = memory(json!({"share": false, "readonly": true, "rom": "off"}));
        let second = self
            .start(accel, "forked", &["-object", &second, "-incoming", "defer", "-device", EXIT_PORT])
            .map_err(text)?;
        let resumed = self.resume(&second).await;
        let said = match resumed {
            Ok(()) => self.said(&second).await,
            Err(why) => Err(why),
        };
        second.kill().await.map_err(text)?;
        said
    }

    async fn save(&self, process: &Process, ram: &fs::File) -> Result<(), String> {
        let qmp = process.monitor().await.map_err(|error| error.to_string())?;
        let mut byte = [0];
        let written = async {
            // Seen through the file, there is nothing to be woken by.
            while ram.read_exact_at(&mut byte, AT.into()).is_ok() && byte[0] != SAID {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, written).await.map_err(|_| "the machine does not run".to_owned())?;
        let done = async {
            qmp.run(&Halt {}).await?;
            qmp.run(&MigrateSetCapabilities::of(StateForm::Devices)).await?;
            qmp.run(&Migrate::to(&self.dir.join("state"))).await?;
            qmp.migration_end(PATIENCE).await
        };
        completed(done.await)
    }

    async fn resume(&self, process: &Process) -> Result<(), String> {
        let qmp = process.monitor().await.map_err(|error| error.to_string())?;
        let done = async {
            qmp.run(&MigrateSetCapabilities::of(StateForm::Devices)).await?;
            qmp.run(&MigrateIncoming::from(&self.dir.join("state"))).await?;
            qmp.migration_end(PATIENCE).await
        };
        completed(done.await)?;
        go(&qmp).await;
        Ok(())
    }

    /// Waits for the machine to say its number.
    async fn said(&self, process: &Process) -> Result<(), String> {
        let exit = match timeout(PATIENCE, process.ended()).await {
            Ok(exit) => exit,
            Err(_) => {
                process.kill().await.map_err(|error| error.to_string())?;
                return Err(format!("it hung for {} s", PATIENCE.as_secs()));
            }
        };
        if exit.code == Some(EXIT_CODE) { Ok(()) } else { Err(exit.to_string()) }
    }

    fn start(&self, accel: Accel, name: &str, extra: &[&str]) -> HvResult<Process> {
        let machine = if extra.contains(&"-object") { ",memory-backend=m0" } else { "" };
        let fixed: Vec<String> = [
            ["-name", &marker(self.instance, &format!("probe-{name}"))],
            ["-machine", &format!("{}{machine}", self.version.machine)],
            ["-accel", &accel.argument()],
            ["-cpu", accel.cpu()],
            ["-smp", "2"],
            ["-m", &format!("{}M", MEMORY >> 20)],
            ["-display", "none"],
            ["-chardev", &format!("socket,id=qmp0,fd={MONITOR_FD},server=on,wait=off")],
            ["-mon", "chardev=qmp0,mode=control"],
            ["-chardev", &format!("socket,id=agent0,fd={AGENT_FD},server=on,wait=off")],
        ]
        .concat()
        .into_iter()
        .map(ToOwned::to_owned)
        .collect();
        let mut arguments: Vec<OsString> = vec!["-nodefaults".into(), "-no-user-config".into()];
        arguments.extend(fixed.into_iter().map(Into::into));
        arguments.extend(["-bios".into(), self.dir.join("rom").into_os_string()]);
        arguments.extend(extra.iter().map(Into::into));
        Process::start(&self.config.binary, &arguments, &self.dir.join(name), Vec::new(), 0)
    }
}

const EXIT_PORT: &str = "isa-debug-exit,iobase=0xf4,iosize=4";

/// A machine that said its number may be gone before it has answered this.
async fn go(qmp: &Qmp) {
    let _ = qmp.run(&Cont {}).await;
}

fn completed(end: Result<MigrationStatus, super::qmp::QmpError>) -> Result<(), String> {
    match end {
        Ok(MigrationStatus::Completed) => Ok(()),
        Ok(status) => Err(format!("the migration ended {status:?}")),
        Err(error) => Err(error.to_string()),
    }
}

/// The ROM: 64 KiB, entered 16 bytes before its end, in real mode.
fn program() -> Vec<u8> {
    let [low, high] = AT.to_le_bytes();
    let code = [
        0x31, 0xc0, // xor ax, ax
        0x8e, 0xd8, // mov ds, ax
        0xc6, 0x06, low, high, SAID, // mov byte [AT], SAID
        0xa0, low, high, // again: mov al, [AT]
        0xe6, 0xf4, // out 0xf4, al
        0xeb, 0xf9, // jmp again
    ];
    let mut rom = vec![0; 1 << 16];
    rom[..code.len()].copy_from_slice(&code);
    // jmp to the beginning: from 0xfff3, the next instruction, it is 13 bytes on, around the segment's end.
    rom[0xfff0..0xfff3].copy_from_slice(&[0xe9, 0x0d, 0x00]);
    rom
}
