//! Stage one: Debian's packages, installed and configured, as one archive. Takes a minute or two, changes rarely.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};

use super::cache::Cache;
use super::short_hash;
use super::spec::{Spec, field};
use crate::command;
use crate::progress::Step;
use crate::system::Archives;

/// Raise it when this file changes what comes out.
const RECIPE: u64 = 1;
/// Where `customize.sh` leaves the installed packages, one `name version` per line.
const PACKAGES_IN_ARCHIVE: &str = "./boot/packages.txt";

/// A finished stage one.
#[derive(Debug)]
pub(super) struct Rootfs {
    pub(super) archive: PathBuf,
    /// The folder's name: flavour and hash of what was asked for.
    pub(super) key: String,
    /// `name version` of everything installed, sorted.
    pub(super) packages: String,
    pub(super) debian_version: String,
}

/// Finds stage one in the cache, or builds it; always builds it when `refresh`.
pub(super) fn find_or_build(cache: &Cache, spec: &Spec, refresh: bool) -> anyhow::Result<Rootfs> {
    let mut hash = Sha256::new();
    field(&mut hash, "recipe", &RECIPE.to_le_bytes());
    spec.hash_rootfs(&mut hash)?;
    let name = format!("{}-{}", spec.flavour, short_hash(hash.finalize()));

    if !refresh && let Some(folder) = cache.find_rootfs(&name)? {
        return open(&folder);
    }
    let step = Step::start(format!("installing packages of {name}"));
    let work = cache.work_folder()?;
    build(spec, work.path(), &step)?;
    let folder = cache.publish_rootfs(work, &name)?;
    step.done();
    open(&folder)
}

fn open(folder: &Path) -> anyhow::Result<Rootfs> {
    let text = |name: &str| {
        let path = folder.join(name);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    Ok(Rootfs {
        archive: folder.join("rootfs.tar"),
        key: folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        packages: text("packages.txt")?,
        debian_version: text("debian_version")?.trim().to_owned(),
    })
}

fn build(spec: &Spec, work: &Path, step: &Step) -> anyhow::Result<()> {
    let archive = work.join("rootfs.tar");
    let sources = sources(&spec.image.sources, &Archives::detect()?);
    command::run(&mut mmdebstrap(spec, &archive, &sources), step).context(
        "install the packages. Without root this needs user namespaces (package uidmap and a line for you in /etc/subuid \
         and /etc/subgid) or the packages fakechroot and fakeroot; or run it with sudo",
    )?;
    for (member, name) in [(PACKAGES_IN_ARCHIVE, "packages.txt"), ("./etc/debian_version", "debian_version")]
    {
        let text = command::output(
            Command::new("tar").args(["--extract", "--to-stdout", "--file"]).arg(&archive).arg(member),
        )?;
        fs::write(work.join(name), text).with_context(|| format!("write {name}"))?;
    }
    Ok(())
}

/// Sources of this machine's own archives; one that it has none of is left out.
fn sources(wanted: &[String], archives: &Archives) -> Vec<String> {
    let fill = |line: &String| match &archives.security {
        None if line.contains("{security}") => None,
        security => {
            let line = line.replace("{main}", &archives.main);
            Some(line.replace("{security}", security.as_deref().unwrap_or_default()))
        }
    };
    wanted.iter().filter_map(fill).collect()
}

fn mmdebstrap(spec: &Spec, archive: &Path, sources: &[String]) -> Command {
    let file = |name: &str| spec.folder.join(name).display().to_string();
    let mut command = if private_mounts() {
        let mut command = Command::new("unshare");
        command.args(["--mount", "mmdebstrap"]);
        command
    } else {
        Command::new("mmdebstrap")
    };
    command
        .env("SOURCE_DATE_EPOCH", spec.image.source_date_epoch.to_string())
        .env("DEBIAN_FRONTEND", "noninteractive")
        // A user's own locale may not exist in the image, and every package script would complain.
        .env("LC_ALL", "C.UTF-8")
        .args(["--mode=auto", "--variant=apt", "--format=tar", "--architectures=amd64"])
        .args(["--aptopt=Apt::Install-Recommends \"false\"", "--aptopt=Acquire::Languages \"none\""])
        .arg("--aptopt=Acquire::Retries \"3\"")
        .arg(format!("--dpkgopt={}", file("dpkg.cfg")))
        // The image is thrown away if the machine dies meanwhile: no need to sync every file.
        .args(["--dpkgopt=force-unsafe-io", "--dpkgopt=force-confold"])
        // The kernel package would build an initial RAM disk of its own; ours is made by customize.sh.
        .arg(
            "--essential-hook=mkdir -p \"$1/etc/initramfs-tools\" && \
             echo update_initramfs=no >\"$1/etc/initramfs-tools/update-initramfs.conf\"",
        )
        .arg(format!("--customize-hook={}", file("customize.sh")))
        .arg(format!("--include={}", spec.packages.join(",")))
        .arg(&spec.image.suite)
        .arg(archive)
        .args(sources);
    command
}

/// Whether mmdebstrap's mounts can be kept to itself. As root it mounts /proc, /sys and the host's /dev/shm in its scratch
/// folder; were it killed, they would stay, and whoever removes that folder would remove what is in them. In a namespace of
/// its own they end with it. (Without root it makes that namespace itself; a container may forbid it, and the mounts too.)
fn private_mounts() -> bool {
    rustix::process::geteuid().is_root()
        && command::output(Command::new("unshare").args(["--mount", "true"])).is_ok()
}
