//! `whimbrel doctor`: what of this host can be used, and what would help.

use crate::environment::Environment;
use crate::folder::json;
use crate::status;
use serde::Serialize;
use std::path::Path;
use whimbrel_machine::machines::qemu::accelerator::{self, Accelerator};
use whimbrel_machine::machines::qemu::{self, kernel::Kernel};
use whimbrel_machine::{MACHINES, MachineError};
use whimbrel_model::Bytes;

/// Below this, the quickstart's two hosts don't fit.
const LEAST_MEMORY: Bytes = Bytes(512 << 20);
/// Below this, the quickstart's images don't fit.
const LEAST_DISK: Bytes = Bytes(1 << 30);

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    name: String,
    ok: bool,
    /// Whether a thread machine can't migrate without it.
    needed: bool,
    detail: String,
    remedy: String,
}

#[derive(Serialize)]
struct Diagnosis {
    can_migrate: bool,
    findings: Vec<Finding>,
    environment: Environment,
}

pub(super) fn doctor(as_json: bool) -> anyhow::Result<u8> {
    let findings = findings();
    let can_migrate = findings.iter().all(|f| f.ok || !f.needed);
    let diagnosis = Diagnosis { can_migrate, findings, environment: Environment::read(true) };
    super::print(&if as_json { json(&diagnosis) } else { text(&diagnosis) })?;
    Ok(if can_migrate { status::GOOD } else { status::NOT_SO })
}

fn findings() -> Vec<Finding> {
    let kernel = whimbrel_memory::probe::probe().into_iter().map(|f| Finding {
        name: f.name.to_owned(),
        ok: f.ok,
        needed: true,
        detail: f.detail,
        remedy: f.remedy,
    });
    let mut findings: Vec<Finding> = kernel.collect();
    findings.extend([memory(), disk(&std::env::temp_dir()), qemu(), guest_kernel(), accelerator(), throttle()]);
    findings.extend(meters());
    for (program, package) in [
        ("qemu-img", "qemu-utils"),
        ("nbdkit", "nbdkit"),
        ("nbdinfo", "libnbd-bin"),
        ("fio", "fio"),
        ("ip", "iproute2"),
    ] {
        findings.push(peer(program, package));
    }
    findings
}

fn memory() -> Finding {
    let available = crate::experiment::limits::HostMemory::here().map(|m| m.available);
    let ok = available.is_some_and(|a| a >= LEAST_MEMORY);
    let detail = available.map_or_else(|| "the kernel doesn't say".to_owned(), |a| format!("{a} to take"));
    let remedy = if ok { String::new() } else { format!("free {LEAST_MEMORY}") };
    Finding { name: "memory".to_owned(), ok, needed: true, detail, remedy }
}

fn disk(folder: &Path) -> Finding {
    let free = rustix::fs::statvfs(folder).map(|s| Bytes(s.f_bavail.saturating_mul(s.f_frsize)));
    let ok = free.is_ok_and(|f| f >= LEAST_DISK);
    let detail = match free {
        Ok(free) => format!("{free} free in {}", folder.display()),
        Err(error) => format!("{}: {error}", folder.display()),
    };
    let remedy = if ok { String::new() } else { format!("free {LEAST_DISK}, or set TMPDIR to a folder that has it") };
    Finding { name: "disk space".to_owned(), ok, needed: true, detail, remedy }
}

fn qemu() -> Finding {
    let (ok, detail, remedy) = match qemu::version() {
        Ok(version) => (true, version, String::new()),
        Err(error) => (false, error.to_string(), "install qemu-system-x86; only machine qemu needs it".to_owned()),
    };
    Finding { name: "QEMU".to_owned(), ok, needed: false, detail, remedy }
}

fn guest_kernel() -> Finding {
    let (ok, detail, remedy) = match Kernel::here() {
        Some(kernel) => (true, kernel.image.display().to_string(), ""),
        None => (false, "not here yet".to_owned(), "whimbrel guest fetch, or the first run with machine qemu"),
    };
    Finding { name: "guest kernel".to_owned(), ok, needed: false, detail, remedy: remedy.to_owned() }
}

/// What executes the guests of machine qemu here. Where that isn't known since the host booted, a small guest is booted, as
/// the first run would.
fn accelerator() -> Finding {
    let kernel = || Kernel::here().ok_or_else(|| MachineError::Hypervisor("there is no guest kernel".to_owned()));
    let chosen = qemu::version().and_then(|_| accelerator::choose(&kernel));
    let (ok, detail, remedy) = match chosen {
        Ok((chosen, why)) => {
            let slow = "guests are translated: slower, and whole all the same; rows say which";
            let remedy = if chosen == Accelerator::Kvm { "" } else { slow };
            (chosen == Accelerator::Kvm, format!("{}: {why}", chosen.name()), remedy.to_owned())
        }
        Err(error) => (false, format!("KVM is not tried: {error}"), "only machine qemu needs it".to_owned()),
    };
    Finding { name: "accelerator".to_owned(), ok, needed: false, detail, remedy }
}

/// Whether guests of machine qemu can be slowed.
fn throttle() -> Finding {
    let here = MACHINES.find("qemu").map_err(|error| error.to_string()).and_then(|kind| (kind.build.throttles_here)());
    let (ok, detail, remedy) = match here {
        Ok(()) => (true, "QEMU's own (cpu_throttle_set)".to_owned(), ""),
        Err(why) => (false, why, "only throttles on machine qemu need it"),
    };
    Finding { name: "QEMU throttle".to_owned(), ok, needed: false, detail, remedy: remedy.to_owned() }
}

/// Every meter of the registry, and whether one of them works. Counters are seen to move before they are believed.
fn meters() -> Vec<Finding> {
    let place = whimbrel_energy::Place::host();
    let one = |name: &'static str| {
        let chosen = whimbrel_energy::choose(&place, Some(name), whimbrel_wire::clock::now);
        let (ok, detail, remedy) = match chosen {
            Ok(chosen) => (true, super::energy::domains_of(&*chosen.meter, &chosen.absent), String::new()),
            Err(why) => {
                (false, why.why, "energy is null without a meter, or modelled where an experiment asks".to_owned())
            }
        };
        Finding { name: format!("meter {name}"), ok, needed: false, detail, remedy }
    };
    whimbrel_energy::METERS.names().filter(|name| *name != "null").map(one).collect()
}

/// A program that the interop tests use.
fn peer(program: &str, package: &str) -> Finding {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|p| p.join(program))
        .find(|p| p.is_file());
    let ok = found.is_some();
    let detail = found.map_or_else(|| "not found".to_owned(), |path| path.display().to_string());
    let remedy = if ok { String::new() } else { format!("install {package}; only tests use it") };
    Finding { name: program.to_owned(), ok, needed: false, detail, remedy }
}

fn text(diagnosis: &Diagnosis) -> String {
    let mut text = String::new();
    for Finding { name, ok, needed, detail, remedy } in &diagnosis.findings {
        let mark = match (ok, needed) {
            (true, _) => "ok",
            (false, true) => "NO",
            (false, false) => "--",
        };
        let remedy = if remedy.is_empty() { String::new() } else { format!(" -> {remedy}") };
        text.push_str(&format!("{mark}  {name:24} {detail}{remedy}\n"));
    }
    for warning in &diagnosis.environment.warnings {
        text.push_str(&format!("!!  {warning}\n"));
    }
    let can = if diagnosis.can_migrate { "can" } else { "can NOT" };
    text.push_str(&format!("A thread machine {can} migrate on this host.\n"));
    text
}
