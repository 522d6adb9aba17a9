//! The seam: what reads the energy that a host has used.
//!
//! A meter has *domains*, each a cumulative counter in microjoules. It only reads them: that a counter wraps, stands
//! still, or was not read for too long is the business of [`crate::counter`].

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use whimbrel_model::Nanos;

/// How a member of the registry opens a meter, or says why this host has none of its kind.
pub type Open = fn(&Place) -> Result<Box<dyn Meter>, Unmeasured>;

/// Reads a host's cumulative energy.
pub trait Meter: Send {
    /// What it reads, always the same until [`Meter::keep`].
    fn domains(&self) -> &[Domain];

    /// Every domain's counter, in the order of [`Meter::domains`]. `now` is this instant; a meter whose figures come from
    /// elsewhere gives the instant at which they came.
    fn read(&mut self, now: Nanos) -> Vec<Result<Reading, Unmeasured>>;

    /// Leaves out the domains that nobody wants, in the order of [`Meter::domains`], where that makes a reading cheaper. What is
    /// left is what [`Meter::domains`] gives from then on.
    fn keep(&mut self, _wanted: &[bool]) {}
}

/// One reading of one counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// When it was read, by the caller's clock.
    pub at: Nanos,
    /// The counter, in microjoules. Only differences of two readings mean something.
    pub uj: u64,
}

/// A part of a host that has a counter of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Domain {
    /// Tells it from the meter's other domains: `package-0`, `package-0/dram`, `psys`.
    pub name: String,
    /// What it covers.
    pub kind: DomainKind,
    /// The package (socket, or die of one) that it belongs to; `None` where it belongs to none or several.
    pub package: Option<String>,
    /// Where the counter wraps, in microjoules; `None`: it never does.
    pub range_uj: Option<u64>,
}

/// What a domain covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DomainKind {
    /// A whole processor package.
    Package,
    /// The cores of a package, and so part of it.
    Core,
    /// What of a package is not cores, such as its graphics, and so part of it.
    Uncore,
    /// The memory of a package, beside it.
    Dram,
    /// The platform, and so everything else.
    Psys,
    /// Some other device.
    Device,
    /// All of the host, as a meter at its plug or a model has it, and so everything else.
    Host,
}

impl DomainKind {
    /// The highest plausible power, in watts: well above any part that is sold, so that what exceeds it is a counter that
    /// was reset or read too late.
    pub fn highest_w(self) -> u64 {
        match self {
            DomainKind::Package | DomainKind::Core | DomainKind::Uncore | DomainKind::Dram => 1000,
            DomainKind::Psys | DomainKind::Device => 4000,
            DomainKind::Host => 10_000,
        }
    }
}

/// Which domains together are the host's energy, each part once: the plug, or else packages and their memory, or else
/// the platform. Cores and uncore lie inside a package. All false: nothing here covers the host.
pub fn counted(domains: &[Domain]) -> Vec<bool> {
    let any = |kind| domains.iter().any(|d| d.kind == kind);
    let wanted: &[DomainKind] = if any(DomainKind::Host) {
        &[DomainKind::Host]
    } else if any(DomainKind::Package) {
        &[DomainKind::Package, DomainKind::Dram]
    } else {
        &[DomainKind::Psys]
    };
    domains.iter().map(|d| wanted.contains(&d.kind)).collect()
}

/// Where a host's counters lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// What is mounted at `/sys`.
    pub sysfs: PathBuf,
    /// What is mounted at `/dev`.
    pub devices: PathBuf,
    /// What is mounted at `/proc`.
    pub procfs: PathBuf,
    /// A program, as a line for the shell, that prints the host's joules so far, a number a line, again and again.
    pub command: Option<String>,
}

impl Place {
    /// This host.
    pub fn host() -> Self {
        Place { sysfs: "/sys".into(), devices: "/dev".into(), procfs: "/proc".into(), command: None }
    }

    /// A tree that looks like `/sys`, such as a recorded one; devices and processes are looked for in its `dev` and `proc`.
    pub fn under(root: &Path) -> Self {
        Place { sysfs: root.to_owned(), devices: root.join("dev"), procfs: root.join("proc"), command: None }
    }

    /// Whether it is this host and no other tree.
    pub fn is_host(&self) -> bool {
        self.sysfs == Path::new("/sys")
    }

    /// What tells this host from every other: a package of the same number elsewhere is another package.
    pub fn identity(&self) -> String {
        let boot = |procfs: &Path| std::fs::read_to_string(procfs.join("sys/kernel/random/boot_id"));
        let boot = boot(&self.procfs).or_else(|_| boot(Path::new("/proc"))).unwrap_or_default();
        let boot: String = boot.trim().chars().take(64).collect();
        // However its path is written, a tree is one.
        let tree = std::fs::canonicalize(&self.sysfs).unwrap_or_else(|_| self.sysfs.clone());
        if tree == Path::new("/sys") { boot } else { format!("{boot}{}", tree.display()) }
    }
}

/// Why there is no figure of energy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{why}")]
pub struct Unmeasured {
    /// In words.
    pub why: String,
}

impl Unmeasured {
    /// For this reason.
    pub fn because(why: impl Into<String>) -> Self {
        Unmeasured { why: why.into() }
    }

    /// A file could not be read. Where the kernel keeps it from us, how to get at it and why it does.
    pub fn file(path: &Path, error: &std::io::Error) -> Self {
        let path = path.display();
        if error.kind() != std::io::ErrorKind::PermissionDenied {
            return Unmeasured::because(format!("{path}: {error}"));
        }
        Unmeasured::because(format!(
            "{path}: permission denied; the counters tell what other programs compute (CVE-2020-8694), so only root may \
             read them since Linux 5.10: run the agent as root, or, where nobody is to be kept from that, let a group of \
             its own read the file (by a udev rule or tmpfiles.d)"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(kind: DomainKind) -> Domain {
        Domain { name: format!("{kind:?}"), kind, package: None, range_uj: None }
    }

    #[test]
    fn every_part_of_a_host_is_counted_once() {
        use DomainKind::{Core, Dram, Host, Package, Psys, Uncore};
        let counted_of = |kinds: &[DomainKind]| {
            let domains: Vec<Domain> = kinds.iter().copied().map(domain).collect();
            let counted = counted(&domains);
            kinds.iter().zip(counted).filter(|(_, c)| *c).map(|(k, _)| *k).collect::<Vec<_>>()
        };
        assert_eq!(counted_of(&[Package, Core, Uncore, Dram, Psys]), [Package, Dram]);
        assert_eq!(counted_of(&[Psys, Core]), [Psys]);
        assert_eq!(counted_of(&[Package, Host]), [Host]);
        assert_eq!(counted_of(&[Core]), []);
    }

    #[test]
    fn a_tree_is_one_however_its_path_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let (tree, other, link) = (folder.path().join("a"), folder.path().join("b"), folder.path().join("link"));
        std::fs::create_dir(&tree).unwrap();
        std::fs::create_dir(&other).unwrap();
        std::os::unix::fs::symlink(&tree, &link).unwrap();
        let identity = |path: &Path| Place::under(path).identity();
        for same in [link, tree.join(""), other.join("../a")] {
            assert_eq!(identity(&same), identity(&tree), "{}", same.display());
        }
        assert_ne!(identity(&tree), identity(&other));
        assert_eq!(identity(Path::new("/sys/")), Place::host().identity());
    }

    #[test]
    fn a_file_that_is_kept_from_us_comes_with_remedy_and_reason() {
        let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let why = Unmeasured::file(Path::new("/sys/x/energy_uj"), &denied).why;
        for part in ["/sys/x/energy_uj", "permission denied", "CVE-2020-8694", "root", "group"] {
            assert!(why.contains(part), "{why} lacks {part}");
        }
    }
}
