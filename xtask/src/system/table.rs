//! The table of jobs and the packages they need.

/// Something a command of this workspace may have to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Job {
    /// Compile the workspace.
    Build,
    /// Build the fuzzer, of which a part is C++.
    Fuzz,
    /// Build golden images.
    Image,
    /// Run virtual machines.
    Vm,
    /// Test against real X servers, window managers and editors on this machine.
    DisplayTests,
    /// Test templates that boot with firmware.
    Firmware,
    /// Install tools that come from PyPI.
    Tools,
    /// Run desktops without virtualisation.
    ProcessDesktop,
    /// Measure libvirt beside us.
    BenchLibvirt,
    /// Measure other programs' screenshots beside ours.
    BenchScreenshots,
}

/// One package.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Need {
    pub(super) package: &'static str,
    /// A program that does as well when it is on the path.
    pub(super) program: Option<&'static str>,
    /// Oldest major version that works.
    pub(super) at_least: Option<u32>,
    /// Whether root does without it.
    pub(super) only_without_root: bool,
}

/// A package known by its program.
const fn program(package: &'static str, program: &'static str) -> Need {
    Need { package, program: Some(program), at_least: None, only_without_root: false }
}

/// A package without a program of its own.
const fn package(package: &'static str) -> Need {
    Need { package, program: None, at_least: None, only_without_root: false }
}

const fn at_least(major: u32, need: Need) -> Need {
    Need { at_least: Some(major), ..need }
}

const fn without_root(need: Need) -> Need {
    Need { only_without_root: true, ..need }
}

/// The fork path needs what QEMU 9 brought, and it is tested with 10.
const QEMU: u32 = 10;
const QEMU_SYSTEM: Need = at_least(QEMU, program("qemu-system-x86", "qemu-system-x86_64"));
/// From the same suite as QEMU itself, or apt would not install both.
const QEMU_UTILS: Need = at_least(QEMU, program("qemu-utils", "qemu-img"));

const BUILD: &[Need] = &[program("gcc", "cc"), package("libc6-dev")];
const FUZZ: &[Need] = &[program("gcc", "cc"), program("g++", "c++"), package("libc6-dev")];
const IMAGE: &[Need] = &[
    program("mmdebstrap", "mmdebstrap"),
    package("debian-archive-keyring"),
    program("e2fsprogs", "mke2fs"),
    QEMU_UTILS,
    without_root(program("fakeroot", "fakeroot")),
    without_root(program("uidmap", "newuidmap")),
];
const VM: &[Need] = &[QEMU_SYSTEM, QEMU_UTILS];
const DISPLAY_TESTS: &[Need] = &[
    program("xvfb", "Xvfb"),
    program("openbox", "openbox"),
    program("xterm", "xterm"),
    program("x11-apps", "xwd"),
    program("x11-utils", "xwininfo"),
    program("x11-xserver-utils", "xrdb"),
    program("mousepad", "mousepad"),
    program("dbus", "dbus-daemon"),
    program("xclip", "xclip"),
    program("xsel", "xsel"),
    program("wmctrl", "wmctrl"),
    package("fonts-dejavu-core"),
    package("fonts-wqy-microhei"),
    package("fonts-noto-color-emoji"),
];
const FIRMWARE: &[Need] = &[package("ovmf"), package("seabios")];
const TOOLS: &[Need] = &[package("python3-venv")];
const PROCESS_DESKTOP: &[Need] = &[program("xvfb", "Xvfb"), package("xfonts-base")];
const BENCH_SCREENSHOTS: &[Need] = &[package("python3-venv"), program("scrot", "scrot")];
const BENCH_LIBVIRT: &[Need] = &[
    program("libvirt-daemon", "libvirtd"),
    program("libvirt-clients", "virsh"),
    package("libvirt-daemon-driver-qemu"),
];

impl Job {
    pub(super) fn needs(self) -> &'static [Need] {
        match self {
            Self::Build => BUILD,
            Self::Fuzz => FUZZ,
            Self::Image => IMAGE,
            Self::Vm => VM,
            Self::DisplayTests => DISPLAY_TESTS,
            Self::Firmware => FIRMWARE,
            Self::Tools => TOOLS,
            Self::ProcessDesktop => PROCESS_DESKTOP,
            Self::BenchLibvirt => BENCH_LIBVIRT,
            Self::BenchScreenshots => BENCH_SCREENSHOTS,
        }
    }
}

/// The first `N.` after a space in what a program says about its version: `qemu-img version 10.0.2` has 10.
pub(super) fn major_in(text: &str) -> Option<u32> {
    text.split_whitespace().find_map(|word| {
        let (major, rest) = word.split_once('.')?;
        rest.starts_with(|c: char| c.is_ascii_digit()).then(|| major.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_print() {
        assert_eq!(major_in("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright"), Some(10));
        assert_eq!(major_in("qemu-img version 7.2.19 (Debian)"), Some(7));
        assert_eq!(major_in("no version here."), None);
    }

    #[test]
    fn every_job_names_packages_apt_could_install() {
        let jobs = [
            Job::Build,
            Job::Fuzz,
            Job::Image,
            Job::Vm,
            Job::DisplayTests,
            Job::Firmware,
            Job::Tools,
            Job::BenchLibvirt,
        ];
        for need in jobs.into_iter().flat_map(Job::needs) {
            let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
            assert!(need.package.chars().all(legal), "{}", need.package);
        }
    }
}
