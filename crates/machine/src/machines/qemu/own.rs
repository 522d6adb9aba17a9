//! QEMU's own migrations, as baselines: the same guest over the same link, and QEMU moves the memory.

use super::mirror::{self, Mirror};
use super::qmp::{Event, Qmp};
use crate::error::MachineError;
use crate::machine::{Departure, OwnEnds, OwnMove};
use crate::machines::{Own, OwnStream};
use serde_json::{Value, json};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;
use whimbrel_model::Nanos;
use whimbrel_model::registry::{Entry, Registry};

/// How long a migration may go on. QEMU itself knows no end where the guest writes faster than the link carries.
const PATIENCE: Duration = Duration::from_secs(120);

/// How much longer the destination waits than the source.
const LATER: Duration = Duration::from_secs(10);

/// The main stream alone.
const ONE: &[OwnStream] = &[OwnStream::Bulk];

/// With multifd: the main stream, and those of pages.
const MULTIFD: &[OwnStream] = &[OwnStream::Bulk; 3];

const fn entry(name: &'static str, summary: &'static str, own: Own) -> Entry<Own> {
    Entry { name, summary, parameters: &[], source: "QEMU", build: own }
}

const fn precopy(capabilities: &'static [(&'static str, &'static str)], streams: &'static [OwnStream]) -> Own {
    Own { capabilities, streams, postcopy: false }
}

/// Every migration of QEMU's own, by the name that `memory.preset` takes.
pub static OWN: Registry<Own> = Registry {
    family: "own migration",
    entries: &[
        entry("qemu:precopy", "QEMU's own pre-copy", precopy(&[], ONE)),
        entry(
            "qemu:postcopy",
            "QEMU's own post-copy, begun after the first pass",
            Own { capabilities: &[POSTCOPY], streams: ONE, postcopy: true },
        ),
        entry(
            "qemu:postcopy-preempt",
            "QEMU's own post-copy, pages that a vCPU waits for over a stream of their own; QEMU 7.1 or newer",
            Own {
                capabilities: &[POSTCOPY, ("postcopy-preempt", "7.1")],
                streams: &[OwnStream::Bulk, OwnStream::Urgent],
                postcopy: true,
            },
        ),
        entry(
            "qemu:multifd",
            "QEMU's own pre-copy, pages over two streams more",
            precopy(&[("multifd", "4.0")], MULTIFD),
        ),
        entry("qemu:xbzrle", "QEMU's own pre-copy, pages as differences", precopy(&[("xbzrle", "1.2")], ONE)),
        entry(
            "qemu:auto-converge",
            "QEMU's own pre-copy, which slows the guest",
            precopy(&[("auto-converge", "1.6")], ONE),
        ),
    ],
};

const POSTCOPY: (&str, &str) = ("postcopy-ram", "2.5");

/// What holds a migration once the guest has stopped.
const HOLD: (&str, &str) = ("pause-before-switchover", "2.11");

/// The state in which it is held then.
const HELD: &str = "pre-switchover";

/// What leaves the RAM out, as the engine's moves need it.
const IGNORE_SHARED: &str = "x-ignore-shared";

/// The migration of that name.
pub(super) fn find(name: &str) -> Result<&'static Own, MachineError> {
    let found = OWN.find(name).map_err(|error| MachineError::Setup(error.to_string()))?;
    Ok(&found.build)
}

/// Whether the vCPUs execute.
pub(super) fn runs(qmp: &Qmp) -> bool {
    qmp.execute("query-status", json!({})).is_ok_and(|status| status["running"] == true)
}

/// Sets the capabilities of such a move, and of those that others here set none.
///
/// # Errors
/// This QEMU lacks one.
fn set(qmp: &Qmp, own: &Own, with_disk: bool) -> Result<(), MachineError> {
    let listed = qmp.execute("query-migrate-capabilities", json!({}))?;
    let listed: Vec<&str> = listed.as_array().into_iter().flatten().filter_map(|c| c["capability"].as_str()).collect();
    let pause = with_disk.then_some(&HOLD);
    let wanted: Vec<&str> = own.capabilities.iter().chain(pause).map(|(name, _)| *name).collect();
    if let Some((name, since)) = own.capabilities.iter().chain(pause).find(|(name, _)| !listed.contains(name)) {
        let why = format!("QEMU {} has no {name}, which came with {since}", qmp.version());
        return Err(MachineError::Hypervisor(why));
    }
    let others = OWN.entries.iter().flat_map(|entry| entry.build.capabilities).map(|(name, _)| *name);
    let known = others.chain([IGNORE_SHARED, HOLD.0]).filter(|name| listed.contains(name));
    let all: Vec<Value> = known.map(|name| json!({ "capability": name, "state": wanted.contains(&name) })).collect();
    qmp.execute("migrate-set-capabilities", json!({ "capabilities": all }))?;
    if own.streams == MULTIFD {
        qmp.execute("migrate-set-parameters", json!({ "multifd-channels": MULTIFD.len() - 1 }))?;
    }
    Ok(())
}

/// Where QEMU's streams meet ours.
fn meeting(folder: &Path) -> PathBuf {
    folder.join("own")
}

/// Where its disk's stream does.
fn disk_meeting(folder: &Path) -> PathBuf {
    folder.join("own-disk")
}

fn uri(path: &Path) -> Value {
    json!({ "uri": format!("unix:{}", path.display()) })
}

/// Makes ready to leave: the sockets to which QEMU will connect its streams.
pub(super) fn prepare_to_leave(qmp: &Qmp, folder: &Path, own: &OwnMove) -> Result<OwnEnds<UnixListener>, MachineError> {
    set(qmp, find(&own.memory)?, own.disk.is_some())?;
    let listen = |path: &Path| {
        // One of an earlier attempt.
        let _ = std::fs::remove_file(path);
        UnixListener::bind(path)
    };
    let disk = own.disk.as_ref().map(|_| listen(&disk_meeting(folder))).transpose()?;
    Ok(OwnEnds { memory: listen(&meeting(folder))?, disk })
}

/// Leaves, and waits until the guest has left.
pub(super) fn leave(qmp: &Qmp, folder: &Path, own: &OwnMove) -> Result<Departure, MachineError> {
    let disk = own.disk.as_deref().map(mirror::find).transpose()?;
    let copy = disk.map(|disk| Mirror::begin(qmp, &disk_meeting(folder), disk)).transpose()?;
    let left = migrate(qmp, folder, find(&own.memory)?, copy.as_ref());
    if let (Err(_), Some(copy)) = (&left, &copy) {
        copy.give_up();
    }
    left
}

fn migrate(qmp: &Qmp, folder: &Path, own: &Own, copy: Option<&Mirror<'_>>) -> Result<Departure, MachineError> {
    let mark = qmp.mark();
    qmp.execute("migrate", uri(&meeting(folder)))?;
    if own.postcopy {
        let ready = |event: &Event| event.name == "MIGRATION_PASS" && event.raw["data"]["pass"].as_u64() > Some(1);
        wait(qmp, mark, |event| ready(event) || ended(event))?;
        // It may have ended by itself meanwhile, and then there is nothing to begin.
        let _ = qmp.execute("migrate-start-postcopy", json!({}));
    }
    let copied = copy.map(|copy| {
        let held = wait(qmp, mark, |event| status(event) == HELD || ended(event))?;
        if status(&held) != HELD {
            return Ok(None);
        }
        let copied = copy.end().inspect_err(|_| drop(qmp.execute("migrate_cancel", json!({}))))?;
        qmp.execute("migrate-continue", json!({ "state": HELD }))?;
        Ok::<_, MachineError>(Some(copied))
    });
    let (disk_whole, job) = copied.transpose()?.flatten().unzip();
    let end = wait(qmp, mark, ended)?;
    let mut figures = qmp.execute("query-migrate", json!({}))?;
    if status(&end) != "completed" {
        let why = figures["error-desc"].as_str().unwrap_or("QEMU doesn't say why");
        return Err(MachineError::Hypervisor(format!("QEMU's migration has failed: {why}")));
    }
    if let (Some(job), Some(figures)) = (job, figures.as_object_mut()) {
        figures.insert("block-job".to_owned(), job);
    }
    let stopped = qmp.wait(mark, Duration::ZERO, |event| event.name == "STOP")?;
    Ok(Departure { paused: stopped.at, disk_whole, figures })
}

/// Waits for what a migration tells; one that takes too long is cancelled.
fn wait(qmp: &Qmp, mark: usize, wanted: impl Fn(&Event) -> bool) -> Result<Event, MachineError> {
    match qmp.wait(mark, PATIENCE, wanted) {
        Err(_) if qmp.closed().is_none() => {
            qmp.execute("migrate_cancel", json!({}))?;
            let why = format!("QEMU's migration had not ended after {} s", PATIENCE.as_secs());
            Err(MachineError::Hypervisor(why))
        }
        heard => heard,
    }
}

/// Makes ready to take a guest in; streams are connected to the paths that are answered.
pub(super) fn prepare_to_arrive(qmp: &Qmp, folder: &Path, own: &OwnMove) -> Result<OwnEnds<PathBuf>, MachineError> {
    set(qmp, find(&own.memory)?, own.disk.is_some())?;
    let disk = own.disk.as_ref().map(|_| disk_meeting(folder));
    if let Some(path) = &disk {
        mirror::serve(qmp, path)?;
    }
    let memory = meeting(folder);
    qmp.execute("migrate-incoming", uri(&memory))?;
    if disk.is_none() {
        // Said now, it holds for when the guest has come: nothing is waited for in between.
        qmp.execute("cont", json!({}))?;
    }
    Ok(OwnEnds { memory, disk })
}

/// Waits until the guest runs here and lacks nothing.
pub(super) fn arrive(qmp: &Qmp, mark: usize, with_disk: bool, resumed: &dyn Fn(Nanos)) -> Result<(), MachineError> {
    let end = PATIENCE + LATER + if with_disk { mirror::COPYING } else { Duration::ZERO };
    if with_disk {
        // The guest has left the source by then, and its copy has ended.
        let came = |event: &Event| status(event) == "completed" || status(event).starts_with("postcopy");
        if !failed(&qmp.wait(mark, end, |event| came(event) || failed(event))?) {
            mirror::take_over(qmp)?;
            qmp.execute("cont", json!({}))?;
        }
    }
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

#[cfg(test)]
mod tests {
    use super::super::qmp::tests::{GREETING, monitor};
    use super::*;

    #[test]
    fn a_qemu_without_a_capability_is_told_by_its_version() {
        let listed =
            r#"{"return": [{"capability": "postcopy-ram", "state": false}, {"capability": "events", "state": true}]}"#;
        let qmp = monitor(Box::leak(Box::new([GREETING, "{\"return\": {}}", listed]))).unwrap();
        let error = set(&qmp, find("qemu:postcopy-preempt").unwrap(), false).unwrap_err().to_string();
        assert_eq!(error, "QEMU 7.2.1 has no postcopy-preempt, which came with 7.1");
    }
}
