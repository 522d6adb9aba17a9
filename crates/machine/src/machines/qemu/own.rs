//! QEMU's own migrations, as baselines: the same guest over the same link, and QEMU moves the memory.

use super::process::Process;
use super::qmp::{Event, Qmp};
use crate::error::MachineError;
use crate::machine::Departure;
use crate::machines::Own;
use serde_json::{Value, json};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;
use whimbrel_model::Nanos;
use whimbrel_model::registry::{Entry, Registry};

/// How long a migration may go on. QEMU itself knows no end where the guest writes faster than the link carries.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long QEMU may take to connect.
const CONNECT: Duration = Duration::from_secs(10);

/// Streams of pages with multifd, besides the first.
const CHANNELS: usize = 2;

const fn entry(name: &'static str, summary: &'static str, own: Own) -> Entry<Own> {
    Entry { name, summary, parameters: &[], source: "QEMU", build: own }
}

/// Every migration of QEMU's own, by the name that `memory.preset` takes.
pub static OWN: Registry<Own> = Registry {
    family: "own migration",
    entries: &[
        entry("qemu:precopy", "QEMU's own pre-copy", Own { capabilities: &[], lanes: 1, postcopy: false }),
        entry(
            "qemu:postcopy",
            "QEMU's own post-copy, begun after the first pass",
            Own { capabilities: &["postcopy-ram"], lanes: 1, postcopy: true },
        ),
        entry(
            "qemu:multifd",
            "QEMU's own pre-copy, pages over two streams more",
            Own { capabilities: &["multifd"], lanes: 1 + CHANNELS, postcopy: false },
        ),
        entry(
            "qemu:xbzrle",
            "QEMU's own pre-copy, pages as differences",
            Own { capabilities: &["xbzrle"], lanes: 1, postcopy: false },
        ),
        entry(
            "qemu:auto-converge",
            "QEMU's own pre-copy, which slows the guest",
            Own { capabilities: &["auto-converge"], lanes: 1, postcopy: false },
        ),
    ],
};

/// The migration of that name.
pub(super) fn find(name: &str) -> Result<&'static Own, MachineError> {
    let found = OWN.find(name).map_err(|error| MachineError::Setup(error.to_string()))?;
    Ok(&found.build)
}

/// Whether the vCPUs execute.
pub(super) fn runs(qmp: &Qmp) -> bool {
    qmp.execute("query-status", json!({})).is_ok_and(|status| status["running"] == true)
}

/// Sets the capabilities of `own`, and no others.
fn set(qmp: &Qmp, own: &Own) -> Result<(), MachineError> {
    let known = ["x-ignore-shared", "postcopy-ram", "multifd", "xbzrle", "auto-converge"];
    let all: Vec<Value> =
        known.iter().map(|name| json!({ "capability": name, "state": own.capabilities.contains(name) })).collect();
    qmp.execute("migrate-set-capabilities", json!({ "capabilities": all }))?;
    if own.lanes > 1 {
        qmp.execute("migrate-set-parameters", json!({ "multifd-channels": CHANNELS }))?;
    }
    Ok(())
}

/// Begins to leave: the streams that QEMU opens, in order.
pub(super) fn leave(qmp: &Qmp, process: &Process, folder: &Path, own: &Own) -> Result<Vec<UnixStream>, MachineError> {
    set(qmp, own)?;
    let path = folder.join("own");
    // One of an earlier attempt.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path)?;
    qmp.execute("migrate", json!({ "uri": format!("unix:{}", path.display()) }))?;
    (0..own.lanes).map(|_| process.accept(&listener, CONNECT)).collect()
}

/// Waits until the guest has left.
pub(super) fn left(qmp: &Qmp, mark: usize, own: &Own) -> Result<Departure, MachineError> {
    if own.postcopy {
        let ready = |event: &Event| event.name == "MIGRATION_PASS" && event.raw["data"]["pass"].as_u64() > Some(1);
        qmp.wait(mark, PATIENCE, |event| ready(event) || ended(event))?;
        // It may have ended by itself meanwhile, and then there is nothing to begin.
        let _ = qmp.execute("migrate-start-postcopy", json!({}));
    }
    let end = match qmp.wait(mark, PATIENCE, ended) {
        Ok(end) => end,
        Err(_) if qmp.closed().is_none() => {
            qmp.execute("migrate_cancel", json!({}))?;
            let why = format!("QEMU's migration had not ended after {} s", PATIENCE.as_secs());
            return Err(MachineError::Hypervisor(why));
        }
        Err(error) => return Err(error),
    };
    let figures = qmp.execute("query-migrate", json!({}))?;
    if end.raw["data"]["status"] != "completed" {
        let why = figures["error-desc"].as_str().unwrap_or("QEMU doesn't say why");
        return Err(MachineError::Hypervisor(format!("QEMU's migration has failed: {why}")));
    }
    let stopped = qmp.wait(mark, Duration::ZERO, |event| event.name == "STOP")?;
    Ok(Departure { paused: stopped.at, figures })
}

/// Makes ready to take a guest in; streams are connected to the path that is answered.
pub(super) fn arrive(qmp: &Qmp, folder: &Path, own: &Own) -> Result<PathBuf, MachineError> {
    set(qmp, own)?;
    let path = folder.join("own");
    qmp.execute("migrate-incoming", json!({ "uri": format!("unix:{}", path.display()) }))?;
    // Said now, it holds for when the guest has come: nothing is waited for in between.
    qmp.execute("cont", json!({}))?;
    Ok(path)
}

/// Waits until the guest runs here and lacks nothing.
pub(super) fn arrived(qmp: &Qmp, mark: usize, resumed: &dyn Fn(Nanos)) -> Result<(), MachineError> {
    let end = PATIENCE + CONNECT;
    let began = qmp.wait(mark, end, |event| event.name == "RESUME" || failed(event))?;
    if began.name == "RESUME" {
        resumed(began.at);
        let end = qmp.wait(mark, end, ended)?;
        if !failed(&end) {
            return Ok(());
        }
    }
    Err(MachineError::Hypervisor("QEMU could not take the guest in".to_owned()))
}

fn status(event: &Event) -> &str {
    if event.name == "MIGRATION" { event.raw["data"]["status"].as_str().unwrap_or_default() } else { "" }
}

fn ended(event: &Event) -> bool {
    status(event) == "completed" || failed(event)
}

fn failed(event: &Event) -> bool {
    ["failed", "cancelled"].contains(&status(event))
}
