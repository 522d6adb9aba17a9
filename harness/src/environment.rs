//! The environment of a run: what of the host a reader must know to judge its numbers, and what to doubt.

use serde::Serialize;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;
use whimbrel_machine::machines::qemu::{self, kernel::Kernel};

/// A host as a run found it. What can't be read is null.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Environment {
    /// When the run began, in UTC.
    pub began: String,
    /// The program's version.
    pub version: &'static str,
    /// How the program was built: `release` or `debug`.
    pub build: &'static str,
    /// The revision of the sources, if they are under git and at hand.
    pub revision: Option<String>,
    /// Whether they had changed since.
    pub modified: Option<bool>,
    /// The kernel's release.
    pub kernel: Option<String>,
    /// The processor's name.
    pub cpu: Option<String>,
    /// Processors that this process may use.
    pub cores: Option<usize>,
    /// Whether the host is itself a guest.
    pub virtualised: Option<bool>,
    /// All memory.
    pub memory_bytes: Option<u64>,
    /// Memory that was free to take.
    pub memory_available_bytes: Option<u64>,
    /// Swap in use.
    pub swap_used_bytes: Option<u64>,
    /// The frequency governor of the first processor.
    pub governor: Option<String>,
    /// Whether the clock may be raised.
    pub turbo: Option<bool>,
    /// Transparent huge pages.
    pub transparent_huge_pages: Option<String>,
    /// The same for shared memory, of which the RAM of guests is.
    pub shared_huge_pages: Option<String>,
    /// Whether the kernel merges equal pages.
    pub page_merging: Option<bool>,
    /// Whether the kernel moves pages between nodes.
    pub numa_balancing: Option<bool>,
    /// What the kernel tells time by.
    pub clock_source: Option<String>,
    /// Runnable processes over the last minute.
    pub load: Option<f64>,
    /// The version of QEMU, if guests run under it.
    pub qemu: Option<String>,
    /// The kernel that such guests boot unless they bring their own.
    pub guest_kernel: Option<String>,
    /// What to doubt, each with its remedy.
    pub warnings: Vec<String>,
}

impl Environment {
    /// Reads this host; of QEMU what is there, if guests are to run under it.
    pub fn read(with_qemu: bool) -> Environment {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let (memory, swap) = (crate::experiment::limits::HostMemory::here(), swap_used());
        let mut environment = Environment {
            began: crate::folder::timestamp(SystemTime::now()),
            version: env!("CARGO_PKG_VERSION"),
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
            revision: git(&["rev-parse", "HEAD"]),
            modified: git(&["status", "--porcelain", "--untracked-files=no"]).map(|changes| !changes.is_empty()),
            kernel: read("/proc/sys/kernel/osrelease"),
            cpu: field(&cpuinfo, "model name"),
            cores: std::thread::available_parallelism().ok().map(usize::from),
            virtualised: field(&cpuinfo, "flags").map(|flags| flags.split(' ').any(|f| f == "hypervisor")),
            memory_bytes: memory.map(|m| m.total.0),
            memory_available_bytes: memory.map(|m| m.available.0),
            swap_used_bytes: swap,
            governor: read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            turbo: turbo(),
            transparent_huge_pages: read("/sys/kernel/mm/transparent_hugepage/enabled").map(|t| chosen(&t)),
            shared_huge_pages: read("/sys/kernel/mm/transparent_hugepage/shmem_enabled").map(|t| chosen(&t)),
            page_merging: flag("/sys/kernel/mm/ksm/run"),
            numa_balancing: flag("/proc/sys/kernel/numa_balancing"),
            clock_source: read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            load: read("/proc/loadavg").and_then(|l| l.split(' ').next()?.parse().ok()),
            qemu: with_qemu.then(|| qemu::version().ok()).flatten(),
            guest_kernel: with_qemu
                .then(Kernel::here)
                .flatten()
                .and_then(|k| Some(k.image.file_name()?.display().to_string())),
            warnings: Vec::new(),
        };
        environment.warnings = environment.doubts();
        environment
    }

    /// What to doubt, each with its remedy.
    fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        let mut doubt = |when: bool, text: String| {
            if when {
                doubts.push(text);
            }
        };
        doubt(self.build == "debug", "this is a debug build: measure with cargo run --release".to_owned());
        let cores = self.cores.unwrap_or(1);
        doubt(cores < 4, format!("two hosts and a guest share {cores} processors: times of one depend on the others"));
        let load = self.load.unwrap_or(0.0);
        doubt(
            load > cores as f64 * 0.5,
            format!("{load:.1} processes were running on {cores} processors: stop what else runs"),
        );
        let governor = self.governor.as_deref().unwrap_or("performance");
        doubt(governor != "performance", format!("the governor is {governor}: set it to performance"));
        doubt(self.turbo == Some(true), "the clock may be raised: switch turbo off for steady times".to_owned());
        doubt(self.swap_used_bytes.unwrap_or(0) > 0, "swap is in use: switch it off".to_owned());
        doubt(self.page_merging == Some(true), "the kernel merges pages: write 0 to ksm/run".to_owned());
        doubt(
            self.numa_balancing == Some(true),
            "the kernel moves pages between nodes: switch NUMA balancing off".to_owned(),
        );
        doubt(self.virtualised == Some(true), "the host is itself a guest: its neighbours are in the times".to_owned());
        doubts
    }
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn flag(path: &str) -> Option<bool> {
    read(path).map(|text| text != "0")
}

/// `always [madvise] never` means `madvise`.
fn chosen(text: &str) -> String {
    let inside = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    inside.map_or(text, |(word, _)| word).to_owned()
}

fn turbo() -> Option<bool> {
    let intel = flag("/sys/devices/system/cpu/intel_pstate/no_turbo").map(|off| !off);
    intel.or_else(|| flag("/sys/devices/system/cpu/cpufreq/boost"))
}

fn field(cpuinfo: &str, key: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with(key))?;
    line.split_once(':').map(|(_, value)| value.trim().to_owned())
}

fn swap_used() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let kib = |key: &str| field(&meminfo, key)?.trim_end_matches("kB").trim().parse::<u64>().ok();
    Some(kib("SwapTotal")?.saturating_sub(kib("SwapFree")?) << 10)
}

/// What git says of the sources that this program was built from, if they are still there.
fn git(arguments: &[&str]) -> Option<String> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new("git").arg("-C").arg(sources).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_can_be_read() {
        let environment = Environment::read(false);
        assert!(environment.kernel.is_some() && environment.memory_bytes.unwrap() > 0);
        assert_eq!(chosen("always [madvise] never"), "madvise");
    }

    #[test]
    fn what_is_doubtful_is_said_with_its_remedy() {
        let good = Environment { build: "release", cores: Some(8), ..Environment::default() };
        assert_eq!(good.doubts(), Vec::<String>::new());
        let bad = Environment {
            build: "debug",
            cores: Some(2),
            load: Some(4.0),
            governor: Some("powersave".to_owned()),
            turbo: Some(true),
            swap_used_bytes: Some(1),
            ..Environment::default()
        };
        assert_eq!(bad.doubts().len(), 6);
    }
}
