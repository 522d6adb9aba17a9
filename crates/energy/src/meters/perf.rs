//! RAPL by the perf events of the `power` PMU: `/sys/bus/event_source/devices/power`.
//!
//! Each event says in sysfs what one count is worth (`scale`, `unit`). The PMU's `cpumask` names one processor a counter:
//! every event is opened there and nowhere else, or it would be read twice. (Some kernels name one a die on AMD too, where
//! a counter is a package's: of those only one is read.) The kernel accumulates the hardware's 32
//! bits into 64, so these counters don't wrap.

#![allow(unsafe_code, reason = "perf_event_open has no safe wrapper; this is the one place that calls it")]

use crate::bank::{Bank, Count};
use crate::files;
use crate::meter::{Domain, DomainKind, Meter, Open, Place, Reading, Unmeasured, counted};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;
use whimbrel_model::{Entry, Nanos};

pub(super) const ENTRY: Entry<Open> = Entry {
    name: "perf",
    summary: "RAPL by the perf events of the power PMU, one reader a package",
    parameters: &[],
    source: "Linux, arch/x86/events/rapl.c",
    build: open,
};

/// More processors than any mask names.
const MOST_PROCESSORS: usize = 4096;

/// An event of the PMU, as sysfs describes it.
#[derive(Clone, Debug, PartialEq)]
struct Described {
    kind: DomainKind,
    /// What it is called below its package.
    suffix: &'static str,
    config: u64,
    /// Microjoules a count.
    scale: f64,
}

/// The PMU, as sysfs describes it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pmu {
    number: u32,
    /// A processor of each package, with the package.
    readers: Vec<(u32, String)>,
    events: Vec<Described>,
}

impl Pmu {
    /// Reads the description.
    ///
    /// # Errors
    /// There is no such PMU, or it doesn't say what its events are worth.
    pub(crate) fn read(place: &Place) -> Result<Pmu, Unmeasured> {
        let folder = place.sysfs.join("bus/event_source/devices/power");
        if !folder.is_dir() {
            return Err(Unmeasured::because(format!("there is no {}", folder.display())));
        }
        let mask = folder.join("cpumask");
        let list = files::processors(&files::text(&mask)?, MOST_PROCESSORS);
        let list = list.ok_or_else(|| Unmeasured::because(format!("{} names no processor", mask.display())))?;
        let packages = files::Packages::read(place).ok();
        let known = |cpu| packages.as_ref().and_then(|packages| packages.of(cpu)).map(str::to_owned);
        // Without topology (some guests) processors stand for themselves: the mask names one a counter.
        let reader = |cpu: u32| (cpu, known(cpu).unwrap_or_else(|| format!("package-of-cpu{cpu}")));
        let mut readers: BTreeMap<String, u32> = BTreeMap::new();
        for (cpu, package) in list.into_iter().map(reader) {
            readers.entry(package).or_insert(cpu);
        }
        let number = files::number(&folder.join("type"))?;
        let number = u32::try_from(number).map_err(|_| Unmeasured::because("the PMU's type is no 32-bit number"))?;
        let known = [
            ("energy-pkg", DomainKind::Package, ""),
            ("energy-ram", DomainKind::Dram, "/dram"),
            ("energy-cores", DomainKind::Core, "/core"),
            ("energy-gpu", DomainKind::Uncore, "/uncore"),
            ("energy-psys", DomainKind::Psys, "psys"),
        ];
        let mut events = Vec::new();
        for (name, kind, suffix) in known {
            let file = folder.join("events").join(name);
            if file.exists() {
                let (config, scale) = (config(&files::text(&file)?)?, scale(&folder, name)?);
                events.push(Described { kind, suffix, config, scale });
            }
        }
        if events.is_empty() {
            return Err(Unmeasured::because(format!("{} has no event of energy", folder.display())));
        }
        Ok(Pmu { number, readers: readers.into_iter().map(|(package, cpu)| (cpu, package)).collect(), events })
    }

    /// Every domain with the processor that reads it and the event. The platform is one, whatever the packages.
    fn domains(&self) -> Vec<(Domain, u32, &Described)> {
        let mut found = Vec::new();
        for (cpu, package) in &self.readers {
            for event in &self.events {
                let psys = event.kind == DomainKind::Psys;
                if psys && found.iter().any(|(d, _, _): &(Domain, u32, &Described)| d.kind == DomainKind::Psys) {
                    continue;
                }
                let name = if psys { event.suffix.to_owned() } else { format!("{package}{}", event.suffix) };
                let package = (!psys).then(|| package.clone());
                found.push((Domain { name, kind: event.kind, package, range_uj: None }, *cpu, event));
            }
        }
        found
    }

    /// Opens every event where it is read.
    pub(crate) fn open(&self) -> Result<Box<dyn Meter>, Unmeasured> {
        let mut meter = Bank::new();
        for (domain, cpu, event) in self.domains() {
            let file = open_event(self.number, event.config, cpu).map_err(|e| denied(&e, &domain.name))?;
            meter.add(domain, Counting { file, scale: event.scale });
        }
        if !counted(meter.domains()).contains(&true) {
            return Err(Unmeasured::because("no event of the power PMU covers the host"));
        }
        Ok(Box::new(meter))
    }
}

#[cfg(test)]
impl Pmu {
    /// What would be opened, in words.
    pub(crate) fn described(&self) -> Vec<String> {
        let one = |(domain, cpu, event): (Domain, u32, &Described)| {
            format!("{} on cpu {cpu}: event {:#x}, {:.12} uJ", domain.name, event.config, event.scale)
        };
        self.domains().into_iter().map(one).collect()
    }
}

/// `event=0x02` as a configuration; the PMU's format puts `event` into the lowest eight bits.
fn config(text: &str) -> Result<u64, Unmeasured> {
    let number = text.split(',').find_map(|term| term.trim().strip_prefix("event="));
    let parsed = number.and_then(|n| match n.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => n.parse().ok(),
    });
    let config = parsed.filter(|config| *config <= 0xff);
    config.ok_or_else(|| Unmeasured::because(format!("the event {text:.40?} is not understood")))
}

/// Microjoules a count.
fn scale(folder: &Path, event: &str) -> Result<f64, Unmeasured> {
    let text = files::text(&folder.join("events").join(format!("{event}.scale")))?;
    let unit = files::text(&folder.join("events").join(format!("{event}.unit")))?;
    let scale = text.parse::<f64>().ok().filter(|s| s.is_finite() && *s > 0.0);
    match (scale, unit.as_str()) {
        (Some(scale), "Joules") => Ok(scale * 1e6),
        _ => Err(Unmeasured::because(format!("{event} is worth {text:.40?} {unit:.40?}, which is not understood"))),
    }
}

/// An event that counts.
struct Counting {
    file: File,
    /// Microjoules a count.
    scale: f64,
}

impl Count for Counting {
    fn read(&mut self, now: Nanos) -> Result<Reading, Unmeasured> {
        let mut count = [0; 8];
        self.file.read_exact(&mut count).map_err(|e| Unmeasured::because(format!("a perf event: {e}")))?;
        Ok(Reading { at: now, uj: (u64::from_ne_bytes(count) as f64 * self.scale) as u64 })
    }
}

fn open(place: &Place) -> Result<Box<dyn Meter>, Unmeasured> {
    let pmu = Pmu::read(place)?;
    if !place.is_host() {
        let tree = place.sysfs.display();
        return Err(Unmeasured::because(format!(
            "{tree} describes a power PMU, but its events can be read on its own host only"
        )));
    }
    pmu.open()
}

fn denied(error: &std::io::Error, domain: &str) -> Unmeasured {
    if error.kind() != std::io::ErrorKind::PermissionDenied {
        return Unmeasured::because(format!("the perf event of {domain}: {error}"));
    }
    Unmeasured::because(format!(
        "the perf event of {domain}: permission denied; run the agent as root or with CAP_PERFMON, or, where nobody is to be \
         kept from what the counters tell of other programs (CVE-2020-8694), set kernel.perf_event_paranoid to 0"
    ))
}

/// `struct perf_event_attr` in its first version, which every kernel takes.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint_type: u32,
    breakpoint_address: u64,
}

/// `PERF_FLAG_FD_CLOEXEC`.
const CLOSE_ON_EXEC: libc::c_ulong = 8;

/// Opens an event of a PMU that counts all that runs on a processor.
fn open_event(pmu: u32, config: u64, cpu: u32) -> std::io::Result<File> {
    let size = size_of::<Attributes>() as u32;
    let attributes = Attributes { kind: pmu, size, config, ..Attributes::default() };
    let (anyone, cpu, no_group, close_on_exec) = (-1, cpu as libc::c_int, -1, CLOSE_ON_EXEC);
    // SAFETY: the attributes are a live, initialised structure whose size they name; the kernel only reads them. The other
    // arguments are plain numbers of the types that the call takes.
    let fd = unsafe {
        libc::syscall(libc::SYS_perf_event_open, &raw const attributes, anyone, cpu, no_group, close_on_exec)
    };
    match i32::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) })),
        _ => Err(std::io::Error::last_os_error()),
    }
}
