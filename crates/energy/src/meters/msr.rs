//! RAPL by model-specific registers: `/dev/cpu/N/msr`, one processor a package. The last resort: root, and the `msr` module.
//!
//! | register | Intel | AMD | unit |
//! |---|---|---|---|
//! | unit | 0x606 | 0xC0010299 | bits 12 to 8: joules are 1 / 2^value |
//! | package | 0x611 | 0xC001029B | that unit |
//! | memory | 0x619 | - | that unit; 2^-16 J on server parts |
//! | cores | 0x639 | - | that unit |
//! | uncore | 0x641 | - | that unit |
//!
//! Each counter has 32 bits. AMD's 0xC001029A counts a single core, not all of a package, and is left out.

use crate::bank::{Bank, Count};
use crate::files;
use crate::meter::{Domain, DomainKind, Meter, Open, Place, Reading, Unmeasured};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use whimbrel_model::{Entry, Nanos};

pub(super) const ENTRY: Entry<Open> = Entry {
    name: "msr",
    summary: "RAPL by model-specific registers of one processor a package; needs root and the msr module",
    parameters: &[],
    source: "Intel SDM volume 4; AMD PPR family 17h and later",
    build: open,
};

const INTEL_UNIT: u64 = 0x606;
const INTEL: [(u64, DomainKind, &str); 4] = [
    (0x611, DomainKind::Package, ""),
    (0x619, DomainKind::Dram, "/dram"),
    (0x639, DomainKind::Core, "/core"),
    (0x641, DomainKind::Uncore, "/uncore"),
];
const AMD_UNIT: u64 = 0xC001_0299;
const AMD: [(u64, DomainKind, &str); 1] = [(0xC001_029B, DomainKind::Package, "")];

/// Models of Intel's family 6 whose memory is counted in 2^-16 J whatever the unit register says: Haswell-X to Ice Lake-X
/// and Xeon Phi (as in the kernel's own driver; from Sapphire Rapids on it is the register's unit again).
const FIXED_MEMORY_UNIT: [u64; 8] = [0x3f, 0x4f, 0x56, 0x55, 0x6a, 0x6c, 0x57, 0x85];
const FIXED_MEMORY_SHIFT: u32 = 16;

/// Intel's small cores of 2013 to 2016 (Silvermont, Airmont) have another unit in that register.
const OTHER_UNIT: [u64; 5] = [0x37, 0x4a, 0x4c, 0x5a, 0x5d];

struct Register {
    file: File,
    path: PathBuf,
    address: u64,
    /// Joules are so many bits to the right.
    shift: u32,
}

impl Count for Register {
    fn read(&mut self, now: Nanos) -> Result<Reading, Unmeasured> {
        let raw = value(&self.file, self.address).map_err(|e| Unmeasured::file(&self.path, &e))? & 0xffff_ffff;
        Ok(Reading { at: now, uj: (raw * 1_000_000) >> self.shift })
    }
}

fn value(file: &File, address: u64) -> std::io::Result<u64> {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, address)?;
    Ok(u64::from_le_bytes(bytes))
}

/// As for any file, and what these need besides.
fn denied(path: &Path, error: &std::io::Error) -> Unmeasured {
    let why = Unmeasured::file(path, error).why;
    let denied = error.kind() == std::io::ErrorKind::PermissionDenied;
    Unmeasured::because(if denied {
        format!("{why}; for these registers the agent needs CAP_SYS_RAWIO besides")
    } else {
        why
    })
}

fn open(place: &Place) -> Result<Box<dyn Meter>, Unmeasured> {
    let vendor = files::processor_field(place, "vendor_id");
    let (unit, registers): (u64, &[(u64, DomainKind, &str)]) = match vendor.as_deref() {
        Some("GenuineIntel") => (INTEL_UNIT, &INTEL),
        Some(vendor) if files::AMD_VENDORS.contains(&vendor) => (AMD_UNIT, &AMD),
        Some(other) => {
            return Err(Unmeasured::because(format!("no energy registers are known of processors by {other}")));
        }
        None => {
            let cpuinfo = place.procfs.join("cpuinfo");
            return Err(Unmeasured::because(format!("{} names no maker of the processor", cpuinfo.display())));
        }
    };
    let model = files::processor_field(place, "model").and_then(|m| m.parse::<u64>().ok());
    if unit == INTEL_UNIT && model.is_some_and(|m| OTHER_UNIT.contains(&m)) {
        return Err(Unmeasured::because("the registers of this processor (Silvermont, Airmont) count in another unit"));
    }
    let fixed = unit == INTEL_UNIT && model.is_some_and(|m| FIXED_MEMORY_UNIT.contains(&m));
    let mut meter = Bank::new();
    for (package, processor) in files::Packages::read(place)?.one_of_each() {
        let path = place.devices.join(format!("cpu/{processor}/msr"));
        let file = File::open(&path).map_err(|e| denied(&path, &e))?;
        let shift = value(&file, unit).map_err(|e| Unmeasured::file(&path, &e))?;
        let shift = ((shift >> 8) & 0x1f) as u32;
        for (address, kind, suffix) in registers {
            let memory = fixed && *kind == DomainKind::Dram;
            let shift = if memory { FIXED_MEMORY_SHIFT } else { shift };
            let file = file.try_clone().map_err(|e| Unmeasured::file(&path, &e))?;
            let mut register = Register { file, path: path.clone(), address: *address, shift };
            // A register that the processor lacks can't be read.
            if register.read(Nanos(0)).is_err() {
                continue;
            }
            let range_uj = Some((1_000_000 << 32) >> shift);
            let name = format!("{package}{suffix}");
            meter.add(Domain { name, kind: *kind, package: Some(package.to_owned()), range_uj }, register);
        }
    }
    if meter.domains().iter().any(|d| d.kind == DomainKind::Package) {
        Ok(Box::new(meter))
    } else {
        Err(Unmeasured::because("no processor has an energy register"))
    }
}
