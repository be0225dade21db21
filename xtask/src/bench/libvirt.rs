//! libvirt as a peer: the same guest as a domain of its own.
//!
//! A `libvirtd` that runs already is used as it is. Else one is started here, with a configuration that works without
//! systemd; the file that it replaces comes back when the peer is closed or dropped, and nothing of the domain stays.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::first_line;
use crate::command;
use crate::image::Stamp;
use crate::interrupt;
use crate::progress::Step;
use crate::system::NeedsPackages;

const DOMAIN: &str = "hvkube-bench";
const CONFIG: &str = "/etc/libvirt/qemu.conf";
/// As root, so that it reads our files; no security driver, no virtlogd: neither runs without systemd.
const CONFIG_TEXT: &str = "\
user = \"root\"
group = \"root\"
security_driver = \"none\"
remember_owner = 0
stdio_handler = \"file\"
";
const START: Duration = Duration::from_secs(30);
const BOOT: Duration = Duration::from_secs(240);
/// The guest has booted when it has used less than this part of a processor for so long.
const IDLE_SHARE: f64 = 0.25;
const IDLE_FOR: Duration = Duration::from_secs(6);
const POLL: Duration = Duration::from_secs(1);

/// Refuses early what would fail after a long build.
pub(super) fn check_rights() -> anyhow::Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(NeedsPackages::new("libvirt's system daemon needs root: run this with sudo").into())
}

/// The domain, booted and saved.
#[derive(Debug)]
pub(super) struct Peer {
    version: String,
    /// Ends before the daemon does.
    domain: Option<Domain>,
    _daemon: Option<Daemon>,
}

impl Peer {
    /// Starts libvirt, boots the image in a domain, waits until it is quiet, and saves it. Files go into `folder`.
    pub(super) fn start(
        folder: &Path,
        image: &Path,
        stamp: &Stamp,
        accelerator: &str,
    ) -> anyhow::Result<Self> {
        let step = Step::start("booting the same guest under libvirt");
        let daemon = if answers() { None } else { Some(Daemon::start(folder, &step)?) };
        let disk = folder.join("libvirt.qcow2");
        command::run(
            Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2", "-F", &stamp.disk_format, "-b"])
                .arg(image.join(&stamp.disk))
                .arg(&disk),
            &step,
        )?;
        let definition = folder.join("libvirt.xml");
        fs::write(&definition, describe(image, stamp, &disk, accelerator)).context("write the domain")?;
        // A killed run may have left one.
        drop(Domain);
        command::run(virsh("define").arg(&definition), &step)?;
        let domain = Domain;
        command::run(virsh("start").arg(DOMAIN), &step)?;
        domain.wait_until_idle(&step)?;
        command::run(virsh("managedsave").arg(DOMAIN), &step)?;
        step.done();
        let version = first_line("libvirtd", "--version")?;
        Ok(Self { version, domain: Some(domain), _daemon: daemon })
    }

    pub(super) fn version(&self) -> &str {
        &self.version
    }

    pub(super) fn domain(&self) -> &'static str {
        DOMAIN
    }

    /// Removes the domain and stops what was started.
    pub(super) fn close(mut self) -> anyhow::Result<()> {
        self.domain = None;
        let listed = command::output(virsh("list").args(["--all", "--name"]))?;
        ensure!(!listed.lines().any(|name| name == DOMAIN), "libvirt still has the domain {DOMAIN}");
        Ok(())
    }
}

/// A defined domain; removed with this.
#[derive(Debug)]
struct Domain;

impl Domain {
    /// Uses the processor time that libvirt counts: a guest without a client tells nothing else.
    fn wait_until_idle(&self, step: &Step) -> anyhow::Result<()> {
        let deadline = Instant::now() + BOOT;
        let (mut last, mut quiet_since) = (self.cpu_seconds()?, Instant::now());
        let mut looked = Instant::now();
        while quiet_since.elapsed() < IDLE_FOR {
            ensure!(Instant::now() < deadline, "the guest does not come to rest under libvirt");
            interrupt::check()?;
            std::thread::sleep(POLL);
            let now = self.cpu_seconds()?;
            let share = (now - last) / looked.elapsed().as_secs_f64();
            (last, looked) = (now, Instant::now());
            step.note(&format!("using {:.0} % of a processor", share * 100.0));
            if share > IDLE_SHARE {
                quiet_since = Instant::now();
            }
        }
        Ok(())
    }

    fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let text = command::output(virsh("domstats").args(["--cpu-total", DOMAIN]))?;
        let nanoseconds =
            text.lines().find_map(|line| line.trim().strip_prefix("cpu.time=")?.parse::<f64>().ok());
        Ok(nanoseconds.context("libvirt does not tell the processor time")? / 1e9)
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // Each may find nothing to do.
        for verb in [&["destroy"][..], &["undefine", "--managed-save"]] {
            let _ = virsh(verb[0]).args(&verb[1..]).arg(DOMAIN).output();
        }
    }
}

/// A libvirtd of our own.
#[derive(Debug)]
struct Daemon {
    process: Child,
    /// Comes back after the process is gone.
    _config: Replaced,
}

impl Daemon {
    fn start(folder: &Path, step: &Step) -> anyhow::Result<Self> {
        add_account(step)?;
        let config = Replaced::write(Path::new(CONFIG), CONFIG_TEXT)?;
        let log = File::create(folder.join("libvirtd.log")).context("create libvirtd's log")?;
        let process = Command::new("libvirtd")
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("clone a file")?)
            .stderr(log)
            .spawn()
            .context("start libvirtd")?;
        let mut daemon = Self { process, _config: config };
        let deadline = Instant::now() + START;
        while !answers() {
            interrupt::check()?;
            let ended = daemon.process.try_wait().context("wait for libvirtd")?;
            if ended.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(folder.join("libvirtd.log")).unwrap_or_default();
                anyhow::bail!("libvirtd does not answer:\n{log}");
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(daemon)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw) {
            // It may have ended by itself; the wait then returns at once.
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.process.wait();
    }
}

/// A file with another content for a while.
#[derive(Debug)]
struct Replaced {
    path: PathBuf,
    before: Option<Vec<u8>>,
}

impl Replaced {
    fn write(path: &Path, text: &str) -> anyhow::Result<Self> {
        let before = match fs::read(path) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(Self { path: path.to_owned(), before })
    }
}

impl Drop for Replaced {
    fn drop(&mut self) {
        let restored = match &self.before {
            Some(bytes) => fs::write(&self.path, bytes),
            None => fs::remove_file(&self.path),
        };
        if let Err(error) = restored {
            eprintln!("cannot restore {}: {error}", self.path.display());
        }
    }
}

/// The account that libvirt's package makes on systems with systemd. libvirtd looks it up even when it is not used.
fn add_account(step: &Step) -> anyhow::Result<()> {
    let users = fs::read_to_string("/etc/passwd").context("read /etc/passwd")?;
    if users.lines().any(|line| line.starts_with("libvirt-qemu:")) {
        return Ok(());
    }
    let script = "for group in kvm libvirt libvirt-qemu; do groupadd --system --force $group; done
        useradd --system --gid libvirt-qemu --groups kvm --no-create-home --shell /usr/sbin/nologin libvirt-qemu";
    command::run(Command::new("sh").args(["-ec", script]), step)
}

fn virsh(verb: &str) -> Command {
    let mut command = Command::new("virsh");
    command.args(["--connect", "qemu:///system", "--quiet", verb]);
    command
}

fn answers() -> bool {
    command::output(&mut virsh("version")).is_ok()
}

/// The domain: the machine that our own backend makes, as far as libvirt has words for it.
fn describe(image: &Path, stamp: &Stamp, disk: &Path, accelerator: &str) -> String {
    let (kind, cpu) = match accelerator {
        "kvm" => ("kvm", "<cpu mode='host-passthrough' migratable='on'/>"),
        _ => ("qemu", "<cpu mode='maximum'/>"),
    };
    let path = |path: PathBuf| escape(&path.display().to_string());
    format!(
        "<domain type='{kind}'>
  <name>{DOMAIN}</name>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>{cpus}</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initrd}</initrd>
    <cmdline>{cmdline}</cmdline>
  </os>
  <features><acpi/></features>
  {cpu}
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='{disk}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <channel type='unix'><target type='virtio' name='dev.hvkube.peer'/></channel>
    <input type='tablet' bus='virtio'/>
    <video><model type='vga'/></video>
    <memballoon model='none'/>
  </devices>
</domain>
",
        memory = stamp.memory_mb,
        cpus = stamp.cpu_count,
        kernel = path(image.join(&stamp.kernel)),
        initrd = path(image.join(&stamp.initrd)),
        cmdline = escape(&stamp.cmdline),
        disk = path(disk.to_owned()),
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&apos;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_comes_back_and_a_new_one_goes() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("old"), folder.path().join("new"));
        fs::write(&old, "before").unwrap();
        let replaced = [Replaced::write(&old, "meanwhile").unwrap(), Replaced::write(&new, "x").unwrap()];
        assert_eq!(fs::read_to_string(&old).unwrap(), "meanwhile");
        drop(replaced);
        assert_eq!(fs::read_to_string(&old).unwrap(), "before");
        assert!(!new.exists());
    }

    #[test]
    fn names_cannot_break_the_definition() {
        assert_eq!(escape("a'<b>&c"), "a&apos;&lt;b&gt;&amp;c");
    }
}
