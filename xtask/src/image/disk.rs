//! Stage two: stage one's archive, our own files and the agent become a bootable disk. Takes seconds.

use std::fs::{self, File, FileTimes};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};

use super::agent::Agent;
use super::rootfs::Rootfs;
use super::short_hash;
use super::spec::{Content, OverlayFile, Spec, field};
use super::stamp::{FORMAT_VERSION, Stamp, installed_software};
use crate::command;
use crate::progress::Step;

/// Raise it when this file changes what comes out.
const RECIPE: u64 = 1;

/// Unpacks, overlays and makes the file system, as root or under fakeroot: one process tree, because fakeroot keeps the
/// owners only that long. Arguments: archive, overlay, root folder, raw disk, uuid, epoch, size.
///
/// The inode tables are written now (they are holes in the file): a guest that has to do it later keeps dirtying memory.
const ASSEMBLE: &str = r#"
set -eu
umask 022
mkdir "$3"
tar --extract --file "$1" --directory "$3" --numeric-owner --exclude './dev/*' --exclude './boot/*'
cp --recursive --no-dereference --preserve=mode,timestamps --remove-destination "$2/." "$3/"
export E2FSPROGS_FAKE_TIME="$6" SOURCE_DATE_EPOCH="$6"
PATH="$PATH:/usr/sbin:/sbin"
mke2fs -q -t ext4 -L hvkube -U "$5" -m 0 -i 32768 -d "$3" \
	-E "hash_seed=$5,lazy_itable_init=0,root_owner=0:0" "$4" "$7"
"#;

/// The hash an image is named by: of everything that goes in.
pub(super) fn hash(spec: &Spec, rootfs: &Rootfs, overlay: &[OverlayFile], agent: &Agent) -> String {
    let mut hash = Sha256::new();
    field(&mut hash, "recipe", &RECIPE.to_le_bytes());
    field(&mut hash, "flavour", spec.flavour.name().as_bytes());
    field(&mut hash, "settings", spec.settings_text.as_bytes());
    field(&mut hash, "rootfs", rootfs.key.as_bytes());
    field(&mut hash, "packages", rootfs.packages.as_bytes());
    field(&mut hash, "agent", agent.sha256.as_bytes());
    for file in overlay {
        field(&mut hash, "path", file.path.as_os_str().as_encoded_bytes());
        match &file.content {
            Content::File { bytes, executable } => {
                field(&mut hash, if *executable { "program" } else { "file" }, bytes);
            }
            Content::Link(target) => field(&mut hash, "link", target.as_os_str().as_encoded_bytes()),
        }
    }
    short_hash(hash.finalize())
}

/// Makes the image's files in `work`.
pub(super) fn assemble(
    work: &Path,
    spec: &Spec,
    rootfs: &Rootfs,
    overlay: &[OverlayFile],
    agent: &Agent,
    hash: &str,
    step: &Step,
) -> anyhow::Result<()> {
    let scratch = tempfile::Builder::new().prefix("scratch-").tempdir_in(work).context("create a folder")?;
    let stamp = stamp(spec, rootfs, agent, hash)?.to_text()?;

    step.note("laying out files");
    let over = scratch.path().join("overlay");
    let writer = Writer {
        root: &over,
        time: SystemTime::UNIX_EPOCH + Duration::from_secs(spec.image.source_date_epoch.into()),
    };
    for file in overlay {
        writer.write(&file.path, &file.content)?;
    }
    let agent = Content::File { bytes: agent.bytes.clone(), executable: true };
    writer.write(Path::new("usr/sbin/hvkube-guest"), &agent)?;
    let stamp_file = Content::File { bytes: stamp.clone().into_bytes(), executable: false };
    writer.write(Path::new("etc/hvkube/image.json"), &stamp_file)?;
    writer.settle(&over)?;

    step.note("making the file system");
    let raw = scratch.path().join("disk.raw");
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new("sh")
    } else {
        let mut command = Command::new("fakeroot");
        command.arg("sh");
        command
    };
    command
        .args(["-c", ASSEMBLE, "assemble"])
        .args([rootfs.archive.as_path(), &over, &scratch.path().join("root"), &raw])
        .arg(&spec.image.filesystem_uuid)
        .arg(spec.image.source_date_epoch.to_string())
        .arg(format!("{}G", spec.image.disk_gb));
    command::run(&mut command, step).context("make the file system")?;

    step.note("making the disk");
    let disk = work.join("disk.qcow2");
    command::run(
        Command::new("qemu-img").args(["convert", "-q", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(&disk),
        step,
    )?;
    command::run(
        Command::new("tar")
            .args(["--extract", "--strip-components=2", "--no-same-owner", "--file"])
            .arg(&rootfs.archive)
            .arg("--directory")
            .arg(work)
            .args(["./boot/vmlinuz", "./boot/initrd.img"]),
        step,
    )?;
    fs::write(work.join("packages.txt"), &rootfs.packages).context("write packages.txt")?;
    fs::write(work.join("image.json"), stamp).context("write image.json")?;
    for name in ["disk.qcow2", "vmlinuz", "initrd.img"] {
        // Overlays are made over this disk: a byte changed in it would break them all.
        fs::set_permissions(work.join(name), fs::Permissions::from_mode(0o444))
            .with_context(|| format!("protect {name}"))?;
    }
    scratch.close().context("remove the scratch folder")
}

fn stamp(spec: &Spec, rootfs: &Rootfs, agent: &Agent, hash: &str) -> anyhow::Result<Stamp> {
    let first_line = |text: String| text.lines().next().unwrap_or_default().trim().to_owned();
    let mmdebstrap = first_line(command::output(Command::new("mmdebstrap").arg("--version"))?);
    Ok(Stamp {
        format_version: FORMAT_VERSION,
        flavour: spec.flavour.name().to_owned(),
        hash: hash.to_owned(),
        disk: "disk.qcow2".to_owned(),
        disk_format: "qcow2".to_owned(),
        kernel: "vmlinuz".to_owned(),
        initrd: "initrd.img".to_owned(),
        cmdline: spec.image.cmdline.clone(),
        memory_mb: spec.memory_mb(),
        cpu_count: spec.image.cpu_count,
        installed_software: installed_software(&rootfs.packages, &spec.image.notable),
        agent_sha256: agent.sha256.clone(),
        debian_version: rootfs.debian_version.clone(),
        built_with: format!("hvkube xtask {}, {mmdebstrap}", env!("CARGO_PKG_VERSION")),
    })
}

/// Writes the overlay with owners, modes and times that do not depend on the checkout.
struct Writer<'a> {
    root: &'a Path,
    time: SystemTime,
}

impl Writer<'_> {
    fn write(&self, path: &Path, content: &Content) -> anyhow::Result<()> {
        let target = self.root.join(path);
        let at = || format!("write {}", target.display());
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).with_context(at)?;
        }
        match content {
            Content::Link(to) => std::os::unix::fs::symlink(to, &target).with_context(at),
            Content::File { bytes, executable } => {
                fs::write(&target, bytes).with_context(at)?;
                let mode = if *executable { 0o755 } else { 0o644 };
                fs::set_permissions(&target, fs::Permissions::from_mode(mode)).with_context(at)?;
                self.set_time(&target)
            }
        }
    }

    /// Gives every folder its mode and time, once nothing is written into it any more.
    fn settle(&self, folder: &Path) -> anyhow::Result<()> {
        for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                self.settle(&entry.path())?;
            }
        }
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("write {}", folder.display()))?;
        self.set_time(folder)
    }

    fn set_time(&self, path: &Path) -> anyhow::Result<()> {
        let times = FileTimes::new().set_accessed(self.time).set_modified(self.time);
        File::open(path)
            .and_then(|file| file.set_times(times))
            .with_context(|| format!("set the time of {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::spec::Flavour;
    use super::*;

    fn inputs() -> (Spec, Rootfs, Vec<OverlayFile>, Agent) {
        let spec =
            Spec::load(&super::super::workspace().join("packer/linux-desktop"), Flavour::Plain).unwrap();
        let rootfs = Rootfs {
            archive: "rootfs.tar".into(),
            key: "plain-0".into(),
            packages: "xterm 379-1\n".into(),
            debian_version: "12.12".into(),
        };
        let content = Content::File { bytes: b"one".to_vec(), executable: false };
        let overlay = vec![OverlayFile { path: "etc/one".into(), content }];
        (spec, rootfs, overlay, Agent { bytes: b"agent".to_vec(), sha256: "aa".into() })
    }

    #[test]
    fn every_input_changes_the_hash() {
        let (spec, mut rootfs, mut overlay, mut agent) = inputs();
        let mut seen = vec![hash(&spec, &rootfs, &overlay, &agent)];
        assert_eq!(seen[0], hash(&spec, &rootfs, &overlay, &agent));

        agent.sha256 = "bb".into();
        seen.push(hash(&spec, &rootfs, &overlay, &agent));
        overlay[0].content = Content::File { bytes: b"one".to_vec(), executable: true };
        seen.push(hash(&spec, &rootfs, &overlay, &agent));
        overlay[0].content = Content::Link("one".into());
        seen.push(hash(&spec, &rootfs, &overlay, &agent));
        rootfs.packages = "xterm 379-2\n".into();
        seen.push(hash(&spec, &rootfs, &overlay, &agent));
        rootfs.key = "plain-1".into();
        seen.push(hash(&spec, &rootfs, &overlay, &agent));

        let all = seen.len();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), all);
    }

    #[test]
    fn overlay_modes_and_times_do_not_depend_on_the_checkout() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("over");
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let writer = Writer { root: &root, time };
        writer.write(Path::new("usr/bin/tool"), &Content::File { bytes: vec![1], executable: true }).unwrap();
        writer.write(Path::new("etc/link"), &Content::Link("../run/x".into())).unwrap();
        writer.settle(&root).unwrap();

        for (path, mode) in [("usr/bin/tool", 0o755), ("usr", 0o755), ("etc", 0o755)] {
            let about = fs::metadata(root.join(path)).unwrap();
            assert_eq!(about.permissions().mode() & 0o7777, mode, "{path}");
            assert_eq!(about.modified().unwrap(), time, "{path}");
        }
        assert_eq!(fs::read_link(root.join("etc/link")).unwrap(), Path::new("../run/x"));
    }
}
