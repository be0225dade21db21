//! What QEMU is asked to build, as a command line.
//!
//! The same description must give the same machine for ever, or states saved on it no longer load: the machine type is
//! versioned, nothing is left to defaults, and devices are named in a fixed order. [`signature`] says in words
//! what a saved state depends on; change [`LAYOUT`] with any change of the devices here.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use uuid::Uuid;

use super::image::Format;
use super::network;
use super::records::{DiskId, Paths, TemplateRecord};
use crate::hypervisor::{HvError, HvResult};
use crate::model::ids::VmId;
use crate::model::screen::Size;
use crate::model::template::{Boot, TemplateSpec};

/// Grows with every change of the devices below.
const LAYOUT: u32 = 1;
/// Name of the agent's port inside the guest.
pub const AGENT_PORT: &str = "dev.hvkube.agent";
/// File descriptors that QEMU finds its listening sockets at; the network's follow.
pub(crate) const MONITOR_FD: i32 = 3;
/// See [`MONITOR_FD`].
pub(crate) const AGENT_FD: i32 = 4;
/// What QEMU may do to the host. `spawn` and `resourcecontrol` are denied too: no helper is run by QEMU itself.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
/// Translated code a VM may keep under emulation, in MiB. QEMU's default of 1 GiB could cost a small VM twice its memory.
const TRANSLATION_MB: u32 = 128;
/// Frozen overlays below a VM: each checkpoint and fork of a running VM adds one until its next reset. QEMU opens all.
pub(crate) const MAX_CHAIN: usize = 64;

/// Accelerators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Accel {
    /// Hardware virtualisation.
    Kvm,
    /// Software emulation.
    Tcg,
}

impl Accel {
    /// QEMU's name of it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    /// As `-accel` argument.
    pub(crate) fn argument(self) -> String {
        match self {
            Self::Kvm => "kvm".to_owned(),
            Self::Tcg => format!("tcg,thread=multi,tb-size={TRANSLATION_MB}"),
        }
    }

    /// As `-cpu` argument: everything that can be saved and resumed.
    pub(crate) fn cpu(self) -> &'static str {
        match self {
            Self::Kvm => "host,migratable=on",
            // What only guards a kernel from its own programs ends a translated block at every crossing, and deeper page
            // tables lengthen every walk: without them a resumed guest answers in nine tenths of the time.
            Self::Tcg => "max,smap=off,smep=off,umip=off,la57=off,pku=off,mpx=off",
        }
    }
}

/// Where the guest's memory is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ram {
    /// In the process.
    Private,
    /// In this file, which the process writes.
    Shared(PathBuf),
    /// In this file, copied page by page as the guest writes.
    Fork(PathBuf),
}

/// All that one process needs to know.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    /// Our instance.
    pub(crate) instance: &'a str,
    /// QEMU's version.
    pub(crate) accel: Accel,
    /// The VM's template.
    pub(crate) template: &'a TemplateRecord,
    /// The VM.
    pub(crate) vm: &'a VmId,
    /// Its identity.
    pub(crate) uid: Uuid,
    /// Its generation.
    pub(crate) generation: Uuid,
    /// Frozen overlays and the head on top.
    pub(crate) disks: &'a [DiskId],
    /// Memory.
    pub(crate) ram: Ram,
    /// It waits for a saved state.
    pub(crate) incoming: bool,
}

/// Marks a process as ours on its command line.
pub(crate) fn marker(instance: &str, vm: &str) -> String {
    format!("guest=hvkube/{instance}/{vm}")
}

/// What a state saved from a VM of this template depends on.
pub(crate) fn signature(version: &str, accel: Accel, template: &TemplateRecord) -> String {
    let spec = &template.spec;
    let boot = match spec.boot {
        Boot::Kernel { .. } => "kernel",
        Boot::Bios => "bios",
        Boot::Uefi => "uefi",
    };
    format!(
        "QEMU {version}, {} layout {LAYOUT}, {} {}, {} MiB, {} CPUs, {}x{}, {boot} boot, network {:?}",
        template.machine,
        accel.name(),
        accel.cpu(),
        spec.memory_mb,
        spec.cpu_count,
        spec.display.width,
        spec.display.height,
        spec.network.mode(),
    )
}

/// Bounds of what a template may ask for; `host_mb` is the host's memory.
pub(crate) fn check(spec: &TemplateSpec, host_mb: u64) -> HvResult<()> {
    let bad = |field, why: String| Err(HvError::BadSetting { field, why });
    if !(64..=host_mb).contains(&spec.memory_mb) {
        return bad("memory_mb", format!("{} is not within 64 and the host's {host_mb}", spec.memory_mb));
    }
    if !(1..=64).contains(&spec.cpu_count) {
        return bad("cpu_count", format!("{} is not within 1 and 64", spec.cpu_count));
    }
    if spec.gpu {
        return bad("gpu_enabled", "qemu has no GPU shares here".to_owned());
    }
    let Size { width, height } = spec.display;
    if !(320..=7680).contains(&width) || !(200..=4320).contains(&height) {
        return bad("display", format!("{width}x{height} is not within 320x200 and 7680x4320"));
    }
    if let Boot::Kernel { cmdline, .. } = &spec.boot
        && (cmdline.len() > 2047 || cmdline.chars().any(char::is_control))
    {
        // Linux reads 2048 bytes with the end on this architecture.
        return bad("cmdline", "it must be one line of at most 2047 bytes".to_owned());
    }
    Ok(())
}

impl Launch<'_> {
    /// The arguments.
    pub(crate) fn arguments(&self, paths: &Paths) -> Vec<OsString> {
        let spec = &self.template.spec;
        let mut all = Arguments::default();
        all.flag("-nodefaults").flag("-no-user-config");
        all.pair("-display", "none").pair("-sandbox", SANDBOX);
        all.pair("-name", marker(self.instance, self.vm.as_str())).pair("-uuid", self.uid.to_string());
        all.pair("-accel", self.accel.argument()).pair("-cpu", self.accel.cpu());
        all.pair("-m", format!("{}M", spec.memory_mb)).pair("-smp", spec.cpu_count.to_string());
        all.json("-object", &ram(&self.ram, spec.memory_mb));
        all.pair("-machine", self.machine());
        self.boot(&mut all, paths);
        all.json("-blockdev", &self.chain(paths));
        all.json("-device", &json!({"driver": "virtio-blk-pci", "id": "disk0", "drive": self.head().node()}));
        all.json("-device", &json!({"driver": "virtio-serial-pci", "id": "serial0"}));
        all.pair("-chardev", format!("socket,id=agent0,fd={AGENT_FD},server=on,wait=off"));
        all.json("-device", &json!({"driver": "virtserialport", "chardev": "agent0", "name": AGENT_PORT}));
        for (flag, value) in network::arguments(spec.network.mode(), &network::mac_address(self.uid)) {
            all.json(flag, &value);
        }
        all.json("-device", &json!({"driver": "virtio-keyboard-pci"}));
        all.json("-device", &json!({"driver": "virtio-tablet-pci"}));
        all.json("-device", &json!({"driver": "vmgenid", "guid": self.generation.to_string()}));
        all.json("-device", &self.screen());
        all.pair("-chardev", format!("socket,id=qmp0,fd={MONITOR_FD},server=on,wait=off"));
        all.pair("-mon", "chardev=qmp0,mode=control");
        if self.incoming {
            all.pair("-incoming", "defer");
        }
        all.0
    }

    fn head(&self) -> DiskId {
        // A launch without a disk can't be built: the head is always last.
        self.disks.last().copied().unwrap_or(DiskId(Uuid::nil()))
    }

    fn machine(&self) -> String {
        let firmware = if self.template.firmware.is_some() { ",pflash0=code,pflash1=vars" } else { "" };
        // Without the disk controller and the bus that nothing here is on, a process is 14 MB and 3 ms lighter.
        format!("{},memory-backend=m0,vmport=off,sata=off,smbus=off{firmware}", self.template.machine)
    }

    fn boot(&self, all: &mut Arguments, paths: &Paths) {
        match &self.template.spec.boot {
            Boot::Kernel { kernel, initrd, cmdline } => {
                all.pair("-kernel", kernel);
                if let Some(initrd) = initrd {
                    all.pair("-initrd", initrd);
                }
                all.pair("-append", cmdline);
            }
            Boot::Bios => {}
            Boot::Uefi => {
                let pflash = |node, path: &Path, read_only| {
                    json!({"driver": "raw", "node-name": node, "read-only": read_only,
                           "file": {"driver": "file", "filename": path}})
                };
                if let Some(code) = &self.template.firmware {
                    all.json("-blockdev", &pflash("code", code, true));
                }
                all.json("-blockdev", &pflash("vars", &paths.vars(self.vm), false));
            }
        }
    }

    fn screen(&self) -> Value {
        let Size { width, height } = self.template.spec.display;
        // Two frames, in a power of two of MiB.
        let needed = (u64::from(width) * u64::from(height) * 8).div_ceil(1 << 20);
        let mut vga = json!({
            "driver": "VGA", "xres": width, "yres": height, "edid": true,
            "vgamem_mb": needed.next_power_of_two().max(16),
        });
        if matches!(self.template.spec.boot, Boot::Kernel { .. }) {
            // Nobody looks at what its BIOS would draw.
            vga["romfile"] = json!("");
        }
        vga
    }

    /// The disk: head on frozen overlays on the golden disk, each with its format.
    fn chain(&self, paths: &Paths) -> Value {
        let spec = &self.template.spec;
        let mut below = match self.template.format {
            Format::Raw => json!({"driver": "raw", "node-name": "golden", "read-only": true,
                                  "file": {"driver": "file", "filename": spec.disk_path}}),
            Format::Qcow2 => {
                json!({"driver": "qcow2", "node-name": "golden", "read-only": true, "backing": null,
                                    "file": {"driver": "file", "filename": spec.disk_path}})
            }
        };
        let head = self.head();
        for disk in self.disks {
            below = overlay(*disk, paths, *disk != head, below);
        }
        below
    }
}

/// An overlay as a block node on another; `null` for none yet.
pub(crate) fn overlay(disk: DiskId, paths: &Paths, frozen: bool, below: Value) -> Value {
    json!({
        "driver": "qcow2", "node-name": disk.node(), "read-only": frozen, "discard": "unmap", "backing": below,
        "file": {"driver": "file", "filename": paths.disk(disk), "discard": "unmap"},
    })
}

fn ram(ram: &Ram, memory_mb: u64) -> Value {
    let size = memory_mb << 20;
    match ram {
        Ram::Private => json!({"qom-type": "memory-backend-ram", "id": "m0", "size": size}),
        Ram::Shared(file) => json!({"qom-type": "memory-backend-file", "id": "m0", "size": size,
                                    "mem-path": file, "share": true}),
        Ram::Fork(file) => {
            json!({"qom-type": "memory-backend-file", "id": "m0", "size": size, "mem-path": file,
                                  "share": false, "readonly": true, "rom": "off"})
        }
    }
}

/// Folders in which a UEFI firmware may be, and the names of its halves there.
const FIRMWARE: &[(&str, &str)] = &[("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"), ("OVMF_CODE.fd", "OVMF_VARS.fd")];

/// Looks for the code and the pristine variables of a UEFI firmware.
pub(crate) fn firmware(folders: &[PathBuf]) -> HvResult<(PathBuf, PathBuf)> {
    let pairs = folders
        .iter()
        .flat_map(|folder| FIRMWARE.iter().map(|(code, vars)| (folder.join(code), folder.join(vars))));
    pairs.into_iter().find(|(code, vars)| code.is_file() && vars.is_file()).ok_or_else(|| {
        HvError::BadSetting {
            field: "boot",
            why: "no UEFI firmware on this host; install the package ovmf".to_owned(),
        }
    })
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn flag(&mut self, flag: &str) -> &mut Self {
        self.0.push(flag.into());
        self
    }

    fn pair(&mut self, flag: &str, value: impl Into<OsString>) -> &mut Self {
        self.0.push(flag.into());
        self.0.push(value.into());
        self
    }

    fn json(&mut self, flag: &str, value: &Value) -> &mut Self {
        self.pair(flag, value.to_string())
    }
}
