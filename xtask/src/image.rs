//! `cargo xtask image`: the Linux desktop golden image of `packer/linux-desktop`.
//!
//! Two stages, both cached under the user's cache folder (`hvkube/images`, `--cache-dir` moves it):
//!
//! ```text
//! rootfs/<flavour>-<hash12>/    rootfs.tar, packages.txt     a minute or two; made by mmdebstrap
//!   hash of: image.toml's sources, packages.txt, dpkg.cfg, customize.sh, initrd/
//! <flavour>-<hash12>/           disk.qcow2, vmlinuz, initrd.img, image.json, packages.txt     seconds
//!   hash of: the above and its package versions, rootfs*/, the agent's binary, image.toml
//! ```
//!
//! A folder is built under another name and renamed when it is whole, so a folder that exists is good. One build runs
//! at a time: a lock that the kernel drops with its holder guards the cache, and what a killed build left behind is
//! removed by the next one under that lock. No loop device is used and the disk is never mounted; what mmdebstrap mounts
//! stays in a namespace of its own. Without root, user namespaces (mmdebstrap) and fakeroot do.

mod agent;
mod cache;
mod disk;
mod rootfs;
mod spec;
mod stamp;

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::cargo::workspace;
use crate::interrupt;
use crate::progress::Step;
use crate::system::{self, Job};
use cache::Cache;
pub(crate) use spec::Flavour;
use spec::Spec;
pub(crate) use stamp::Stamp;

/// Flags of `cargo xtask image`.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Which desktop to build
    #[arg(long, value_enum, default_value_t)]
    pub(crate) flavour: Flavour,
    /// Put this file into the image as its guest agent instead of building the workspace's own
    #[arg(long, value_name = "PATH")]
    pub(crate) agent: Option<PathBuf>,
    /// Install the packages anew, to take their current versions
    #[arg(long)]
    pub(crate) refresh: bool,
    /// Where images are kept [default: hvkube/images in the user's cache folder]
    #[arg(long, value_name = "DIR", env = "HVKUBE_IMAGE_CACHE")]
    pub(crate) cache_dir: Option<PathBuf>,
}

impl Args {
    /// What `cargo xtask image` without flags would build, for other commands that need an image.
    pub(crate) fn standard() -> Self {
        Self { cache_dir: std::env::var_os("HVKUBE_IMAGE_CACHE").map(PathBuf::from), ..Self::default() }
    }
}

/// Runs the command: builds the image or finds it, and prints its folder.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let folder = build(args)?;
    let stamp = Stamp::read(&folder)?;
    eprintln!("Debian {}: {}", stamp.debian_version, stamp.installed_software.join(", "));
    println!("{}", folder.display());
    Ok(())
}

/// Builds the image unless the cache has it, and returns its folder. [`Stamp::read`] tells what is in there.
///
/// # Errors
/// [`system::NeedsPackages`] when programs are missing that the caller has to install; else whatever failed.
pub(crate) fn build(args: &Args) -> anyhow::Result<PathBuf> {
    system::ensure(&[Job::Image])?;
    let spec = Spec::load(&workspace().join("packer/linux-desktop"), args.flavour)?;
    let agent = match &args.agent {
        Some(path) => path.clone(),
        None => agent::build()?,
    };
    let agent = agent::Agent::read(&agent, &spec.image.glibc)?;

    let cache = Cache::open(args.cache_dir.as_deref())?;
    let rootfs = rootfs::find_or_build(&cache, &spec, args.refresh)?;
    interrupt::check()?;

    let overlay = spec.overlay()?;
    let hash = disk::hash(&spec, &rootfs, &overlay, &agent);
    let name = format!("{}-{hash}", args.flavour);
    let folder = match cache.find(&name)? {
        Some(folder) => {
            eprintln!("image {name} is in the cache");
            folder
        }
        None => {
            let step = Step::start(format!("building image {name}"));
            let work = cache.work_folder()?;
            disk::assemble(work.path(), &spec, &rootfs, &overlay, &agent, &hash, &step)?;
            let folder = cache.publish(work, &name)?;
            step.done();
            folder
        }
    };
    cache.prune(args.flavour.name())?;
    Ok(folder)
}

/// The first 12 digits of a SHA-256: enough to tell apart the few images of one cache, short enough for a folder's name.
fn short_hash(digest: impl AsRef<[u8]>) -> String {
    let mut text = hex::encode(digest);
    text.truncate(12);
    text
}

/// Reads a file, naming it in the error.
fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("read {}", path.display()))
}
