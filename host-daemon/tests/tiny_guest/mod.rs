//! A guest that boots in a few seconds under emulation: Debian's kernel, busybox, and a shell on the agent's port.
//!
//! It is built once from two Debian packages and kept in the target folder. Inside, one shell process reads lines from
//! the port and runs them, so that its variables are memory that must survive: `n=$((n+1)); echo $n`. After the output
//! of each line, on a line of its own, it says `-- STATUS`.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use hvkube_host::hypervisor::GuestStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// Its files.
pub(crate) struct TinyGuest {
    /// Kernel.
    pub(crate) kernel: PathBuf,
    /// Initial RAM disk, with everything in it.
    pub(crate) initrd: PathBuf,
    /// An empty disk with a partition table's signature.
    pub(crate) disk: PathBuf,
}

/// Kernel command line.
pub(crate) const CMDLINE: &str = "quiet mitigations=off nowatchdog net.ifnames=0 panic=1";
/// Grows with every change of what is below, so that an older one in the target folder is not used.
const VERSION: u32 = 4;
/// In the order they must be loaded in.
const MODULES: &[&str] = &[
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "drivers/block/virtio_blk",
    "drivers/char/virtio_console",
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
    "drivers/virtio/virtio_input",
    "drivers/input/evdev",
    "drivers/acpi/button",
];

const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev
while read -r m; do insmod "/modules/$m.ko"; done < /modules/order
ip link set lo up
# The power button, as a daemon would see it. What it leaves on the disk tells it from a hard stop.
bye() { echo bye | dd of=/dev/vda bs=1 seek=4096 conv=fsync; poweroff -f; }
for e in /sys/class/input/event*; do
  [ "$(cat $e/device/name)" = "Power Button" ] && { ( head -c 24 /dev/input/${e##*/} > /dev/null && bye ) & }
done
for p in /sys/class/virtio-ports/*; do [ "$(cat $p/name)" = dev.hvkube.agent ] && port=/dev/${p##*/}; done
exec 3<>$port
n=0
while :; do
  if read -r line <&3; then eval "$line" > /out 2>&1; status=$?; { cat /out; echo; echo "-- $status"; } >&3
  else sleep 0.02; fi
done
"#;

/// The guest's files; builds them at the first call.
///
/// # Panics
/// With what is missing, when Debian's package tools or packages can't be had.
pub(crate) fn tiny_guest() -> &'static TinyGuest {
    static GUEST: OnceLock<TinyGuest> = OnceLock::new();
    GUEST.get_or_init(|| {
        let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("tiny-guest-{VERSION}"));
        if !home.join("disk").is_file() {
            build(&home);
        }
        TinyGuest { kernel: home.join("kernel"), initrd: home.join("initrd"), disk: home.join("disk") }
    })
}

fn build(home: &Path) {
    let work = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("folder to build the test guest in");
    let depends = run(work.path(), "apt-cache", &["depends", "linux-image-amd64"]);
    let kernel = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: ")).expect(
        "the package linux-image-amd64 names a kernel; is this Debian with package lists (apt-get update)?",
    );
    run(work.path(), "apt-get", &["download", "-q", kernel, "busybox-static"]);
    for package in fs::read_dir(work.path()).expect("list").flatten() {
        let path = package.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            run(work.path(), "dpkg-deb", &["-x", path.to_str().expect("UTF-8"), "root"]);
        }
    }
    let root = work.path().join("root");
    let modules = only(&root.join("lib/modules")).join("kernel");
    let mut archive = Cpio::default();
    for folder in ["bin", "proc", "sys", "dev", "modules"] {
        archive.entry(folder, 0o40_755, b"");
    }
    archive.entry("init", 0o100_755, INIT.as_bytes());
    archive.entry("bin/busybox", 0o100_755, &fs::read(root.join("bin/busybox")).expect("busybox"));
    let mut order = String::new();
    for module in MODULES {
        // What the kernel has built in is no file.
        if let Ok(content) = fs::read(modules.join(format!("{module}.ko"))) {
            let name = module.rsplit('/').next().unwrap_or(module);
            archive.entry(&format!("modules/{name}.ko"), 0o100_644, &content);
            order += &format!("{name}\n");
        }
    }
    archive.entry("modules/order", 0o100_644, order.as_bytes());
    archive.entry("TRAILER!!!", 0, b"");

    let boot = fs::read_dir(root.join("boot")).expect("boot").flatten();
    let image = boot.map(|entry| entry.path()).find(|path| path.to_string_lossy().contains("vmlinuz"));
    let made = work.path().join("made");
    fs::create_dir(&made).expect("create");
    fs::copy(image.expect("kernel image"), made.join("kernel")).expect("copy");
    fs::write(made.join("initrd"), archive.0).expect("write");
    let mut disk = fs::File::create(made.join("disk")).expect("create");
    let mut sector = [0; 512];
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    disk.write_all(&sector).expect("write");
    disk.set_len(64 << 20).expect("size");
    for file in ["kernel", "initrd", "disk"] {
        fs::set_permissions(made.join(file), fs::Permissions::from_mode(0o644)).expect("permissions");
    }
    // Whole or not at all; another test process may have been faster.
    if fs::rename(&made, home).is_err() {
        assert!(home.join("disk").is_file(), "could not put the test guest to {}", home.display());
    }
}

fn only(folder: &Path) -> PathBuf {
    fs::read_dir(folder).expect("modules").flatten().next().expect("a kernel version").path()
}

fn run(folder: &Path, program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("the test guest is built with {program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// An archive in the form that kernels unpack.
#[derive(Default)]
struct Cpio(Vec<u8>);

impl Cpio {
    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        let inode = self.0.len();
        let head = [inode, mode as usize, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        self.0.extend(b"070701");
        for field in head {
            self.0.extend(format!("{field:08x}").as_bytes());
        }
        self.0.extend(name.as_bytes());
        self.0.push(0);
        self.align();
        self.0.extend(content);
        self.align();
    }

    fn align(&mut self) {
        while !self.0.len().is_multiple_of(4) {
            self.0.push(0);
        }
    }
}

/// A conversation with the shell in the guest.
pub(crate) struct Shell {
    stream: Box<dyn GuestStream>,
    rest: Vec<u8>,
}

impl Shell {
    /// Talks on this stream.
    pub(crate) fn new(stream: Box<dyn GuestStream>) -> Self {
        Self { stream, rest: Vec::new() }
    }

    /// Runs a line and returns what it printed, with its status.
    ///
    /// # Panics
    /// When the guest has not answered within three minutes: it may still boot, under emulation on a loaded machine.
    pub(crate) async fn run(&mut self, line: &str) -> (i32, String) {
        let answer = timeout(Duration::from_secs(180), async {
            self.stream.write_all(format!("{line}\n").as_bytes()).await.expect("the guest's port is open");
            let mut output = String::new();
            loop {
                let next = self.line().await;
                match next.strip_prefix("-- ") {
                    Some(status) => return (status.parse().expect("a status"), output),
                    None => output += &format!("{next}\n"),
                }
            }
        });
        answer.await.unwrap_or_else(|_| panic!("the guest did not answer {line:?}"))
    }

    /// Runs a line that must succeed and returns what it printed, trimmed.
    ///
    /// # Panics
    /// When it fails.
    pub(crate) async fn ok(&mut self, line: &str) -> String {
        let (status, output) = self.run(line).await;
        assert_eq!(status, 0, "{line:?} printed {output:?}");
        output.trim().to_owned()
    }

    async fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return String::from_utf8_lossy(&line[..end]).trim_end().to_owned();
            }
            let mut chunk = [0; 4096];
            let length = self.stream.read(&mut chunk).await.expect("the guest's port is open");
            assert!(length > 0, "the guest's port was closed");
            self.rest.extend(&chunk[..length]);
        }
    }
}
