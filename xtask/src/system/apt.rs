//! apt and dpkg: what is installed, which release this is, and the commands that install the rest.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;

use super::table::Need;
use crate::command;

/// Debian 12 has QEMU 7.2; its backports have 10.
const BACKPORTS_OF: &str = "bookworm";
const BACKPORTS: &str = "bookworm-backports";
const BACKPORTS_FILE: &str = "/etc/apt/sources.list.d/hvkube-backports.list";

/// Installed packages and their versions.
#[derive(Debug, Default)]
pub(super) struct Installed(HashMap<String, String>);

impl Installed {
    /// From dpkg-query's lines `name status version`.
    pub(super) fn parse(text: &str) -> Self {
        let entry = |line: &str| {
            let mut words = line.split_whitespace();
            let (name, status, version) = (words.next()?, words.next()?, words.next()?);
            (status == "installed").then(|| (name.to_owned(), version.to_owned()))
        };
        Self(text.lines().filter_map(entry).collect())
    }

    pub(super) fn has(&self, need: &Need) -> bool {
        self.0.get(need.package).is_some_and(|version| {
            need.at_least.is_none_or(|least| major(version).is_some_and(|major| major >= least))
        })
    }
}

/// Upstream's major version in a Debian one: `1:10.0.2+ds-2` has 10.
fn major(version: &str) -> Option<u32> {
    let upstream = version.split_once(':').map_or(version, |(_, rest)| rest);
    upstream.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// What decides where packages come from.
#[derive(Debug)]
pub(super) struct Release {
    pub(super) codename: String,
    pub(super) has_backports: bool,
    /// Where this machine gets Debian's packages from; what else is needed comes from there too.
    pub(super) archive: String,
}

/// Archives that this machine's apt knows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Archives {
    /// The release itself.
    pub(crate) main: String,
    /// Its security updates, where there is an archive of them.
    pub(crate) security: Option<String>,
}

impl Archives {
    /// Asks apt, so that a mirror of the user's own is used where there is one. Works before the first update too.
    pub(crate) fn detect() -> anyhow::Result<Self> {
        let os = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
        let targets = command::output(
            Command::new("apt-get")
                .args(["indextargets", "--format", "$(REPO_URI) $(RELEASE)"])
                .arg("Created-By: Packages"),
        )?;
        Self::parse(&targets, &codename(&os).unwrap_or_default())
            .context("apt knows no Debian archive; is there a source in /etc/apt?")
    }

    /// From lines `URI release`; sources may name the release by its codename or as `stable`.
    fn parse(targets: &str, codename: &str) -> Option<Self> {
        let find = |wanted: &dyn Fn(&str) -> bool| {
            let mut lines = targets.lines().filter_map(|line| line.split_once(' '));
            lines.find(|(_, release)| wanted(release)).map(|(uri, _)| uri.trim_end_matches('/').to_owned())
        };
        let named = |release: &str| [codename, "stable", "oldstable"].contains(&release);
        Some(Self { main: find(&named)?, security: find(&|release| release.ends_with("-security")) })
    }
}

impl Release {
    pub(super) fn detect() -> anyhow::Result<Self> {
        let os = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
        let mut sources = fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
        for entry in fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten() {
            // apt ignores every other suffix, and so do we.
            if matches!(entry.path().extension().and_then(|name| name.to_str()), Some("list" | "sources")) {
                sources += "\n\n";
                sources += &read_source(&entry.path())?;
            }
        }
        Ok(Self {
            codename: codename(&os).unwrap_or_default(),
            has_backports: has_suite(&sources, BACKPORTS),
            archive: Archives::detect()?.main,
        })
    }
}

fn read_source(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

fn codename(os_release: &str) -> Option<String> {
    os_release
        .lines()
        .find_map(|line| Some(line.strip_prefix("VERSION_CODENAME=")?.trim_matches('"').to_owned()))
}

/// Whether apt sources, in either format, name a suite and are not switched off.
fn has_suite(sources: &str, suite: &str) -> bool {
    let lines = |stanza: &str| -> Vec<String> {
        stanza.lines().map(str::trim).filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    };
    sources.split("\n\n").map(lines).any(|stanza| {
        let off = stanza.iter().any(|line| line.to_ascii_lowercase().replace(' ', "") == "enabled:no");
        !off && stanza.iter().any(|line| {
            let named = line.starts_with("deb ") || line.to_ascii_lowercase().starts_with("suites:");
            named && line.split_whitespace().any(|word| word == suite)
        })
    })
}

/// What to install, and from where.
#[derive(Debug)]
pub(super) struct Plan {
    /// Archive to add the backports of.
    add_backports: Option<String>,
    plain: Vec<&'static str>,
    backports: Vec<&'static str>,
}

impl Plan {
    pub(super) fn new(missing: &[&Need], release: &Release) -> Self {
        let from_backports = |need: &Need| need.at_least.is_some() && release.codename == BACKPORTS_OF;
        let names = |wanted: bool| {
            missing.iter().filter(|need| from_backports(need) == wanted).map(|need| need.package).collect()
        };
        let (plain, backports): (Vec<_>, Vec<_>) = (names(false), names(true));
        let wanted = !backports.is_empty() && !release.has_backports;
        Self { add_backports: wanted.then(|| release.archive.clone()), plain, backports }
    }

    /// Shell commands, in order.
    pub(super) fn commands(&self, sudo: bool) -> Vec<String> {
        let sudo = if sudo { "sudo " } else { "" };
        let mut commands = Vec::new();
        if let Some(archive) = &self.add_backports {
            commands.push(format!("echo 'deb {archive} {BACKPORTS} main' | {sudo}tee {BACKPORTS_FILE}"));
        }
        commands.push(format!("{sudo}apt-get update"));
        let install = format!("{sudo}apt-get install --yes --no-install-recommends");
        if !self.plain.is_empty() {
            commands.push(format!("{install} {}", self.plain.join(" ")));
        }
        if !self.backports.is_empty() {
            commands.push(format!("{install} --target-release {BACKPORTS} {}", self.backports.join(" ")));
        }
        commands
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::Job;
    use super::*;

    fn release(codename: &str, has_backports: bool) -> Release {
        Release {
            codename: codename.to_owned(),
            has_backports,
            archive: "http://mirror.example/debian".to_owned(),
        }
    }

    fn missing_of(job: Job, dpkg: &str) -> Vec<&'static Need> {
        let installed = Installed::parse(dpkg);
        job.needs().iter().filter(|need| !installed.has(need)).collect()
    }

    #[test]
    fn removed_packages_and_old_ones_are_missing() {
        let dpkg = "qemu-utils installed 1:7.2+dfsg-7\nqemu-system-x86 config-files 1:10.0.2\n";
        let names: Vec<_> = missing_of(Job::Vm, dpkg).iter().map(|need| need.package).collect();
        assert_eq!(names, ["qemu-system-x86", "qemu-utils"]);
        let dpkg = "qemu-system-x86 installed 1:10.0.2+ds-2+deb13u1~bpo12+1\nqemu-utils installed 1:11.1\n";
        assert!(missing_of(Job::Vm, dpkg).is_empty());
    }

    #[test]
    fn bookworm_takes_qemu_from_backports_and_adds_the_source_once() {
        let mut missing = missing_of(Job::Vm, "");
        missing.extend(missing_of(Job::Tools, ""));
        let fresh = Plan::new(&missing, &release("bookworm", false)).commands(true);
        assert_eq!(
            fresh,
            [
                "echo 'deb http://mirror.example/debian bookworm-backports main' | sudo tee \
                 /etc/apt/sources.list.d/hvkube-backports.list",
                "sudo apt-get update",
                "sudo apt-get install --yes --no-install-recommends python3-venv",
                "sudo apt-get install --yes --no-install-recommends --target-release bookworm-backports \
                 qemu-system-x86 qemu-utils",
            ]
        );
        assert_eq!(Plan::new(&missing, &release("bookworm", true)).commands(true), fresh[1..]);
    }

    #[test]
    fn archives_are_those_of_this_machine() {
        let targets = "http://tools.example/ nodistro\nhttp://mirror.example/debian-security/ bookworm-security\n\
                       http://mirror.example/debian/ bookworm-updates\nhttp://mirror.example/debian/ bookworm\n";
        let archives = Archives::parse(targets, "bookworm").expect("two");
        assert_eq!(archives.main, "http://mirror.example/debian");
        assert_eq!(archives.security.as_deref(), Some("http://mirror.example/debian-security"));
        assert_eq!(Archives::parse("http://tools.example/ nodistro\n", "bookworm"), None);
    }

    #[test]
    fn later_releases_need_no_backports() {
        let missing = missing_of(Job::Vm, "");
        assert_eq!(
            Plan::new(&missing, &release("trixie", false)).commands(false),
            ["apt-get update", "apt-get install --yes --no-install-recommends qemu-system-x86 qemu-utils"]
        );
    }

    #[test]
    fn suites_are_found_in_both_formats_unless_switched_off() {
        assert!(has_suite("deb http://deb.debian.org/debian bookworm-backports main", BACKPORTS));
        assert!(has_suite("Types: deb\nSuites: bookworm bookworm-backports\nComponents: main", BACKPORTS));
        assert!(!has_suite("Types: deb\nEnabled: no\nSuites: bookworm-backports", BACKPORTS));
        assert!(!has_suite("# deb http://deb.debian.org/debian bookworm-backports main", BACKPORTS));
        assert!(!has_suite("Types: deb\nSuites: bookworm bookworm-updates", BACKPORTS));
        assert!(has_suite(
            "Enabled: no\nSuites: bookworm-backports\n\nSuites: bookworm-backports",
            BACKPORTS
        ));
    }

    #[test]
    fn the_codename_is_read() {
        assert_eq!(codename("ID=debian\nVERSION_CODENAME=bookworm\n").as_deref(), Some("bookworm"));
        assert_eq!(codename("ID=arch\n"), None);
    }
}
