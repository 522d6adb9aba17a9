//! QEMU's own copy of a disk: its mirror job, from the source's QEMU by NBD to a server in the destination's.
//!
//! As libvirt does it: the job copies all and then follows the guest's writes; only then does the migration of memory begin,
//! which is held when the guest has stopped, until the job has ended.

use super::command::DISK;
use super::qmp::{Event, Qmp};
use crate::error::MachineError;
use crate::machines::OwnDisk;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;
use whimbrel_model::Nanos;
use whimbrel_model::registry::{Entry, Registry};

/// How long the first copy may take at least.
const COPYING: Duration = Duration::from_secs(600);

/// How long the first copy may take, with a migration of memory that may take so long. QEMU itself knows no end where the guest writes
/// faster than the link carries.
pub(super) fn copying(memory: Duration) -> Duration {
    memory.max(COPYING)
}

/// How long a job may take to end once the guest has stopped, or to be given up.
const ENDING: Duration = Duration::from_secs(60);

/// The job.
const JOB: &str = "mirror";

/// The node at the source that is the destination's disk.
const COPY: &str = "copy";

const fn entry(name: &'static str, summary: &'static str, copy_mode: &'static str) -> Entry<OwnDisk> {
    Entry { name, summary, parameters: &[], source: "QEMU", build: OwnDisk { copy_mode } }
}

/// Every way of QEMU's own to move a disk, by the name that `disk.preset` takes.
pub static OWN_DISK: Registry<OwnDisk> = Registry {
    family: "own way to move a disk",
    entries: &[
        entry(
            "qemu:blockdev-mirror",
            "QEMU's own mirror job: the copy follows the guest's writes; with one of QEMU's own for memory",
            "background",
        ),
        entry(
            "qemu:blockdev-mirror-write-blocking",
            "QEMU's own mirror job: the guest's writes wait for both disks; with one of QEMU's own for memory",
            "write-blocking",
        ),
    ],
};

/// The way of that name.
pub(super) fn find(name: &str) -> Result<&'static OwnDisk, MachineError> {
    let found = OWN_DISK.find(name).map_err(|error| MachineError::Setup(error.to_string()))?;
    Ok(&found.build)
}

/// A job whose copy has caught up with the guest.
pub(super) struct Mirror<'a> {
    qmp: &'a Qmp,
    /// What QEMU said of the job then.
    ready: Value,
}

impl<'a> Mirror<'a> {
    /// Copies the disk to the server behind `path`, within that time; returns when the copy follows the guest's writes.
    ///
    /// # Errors
    /// The job failed, or didn't catch up in time; nothing of it is left.
    pub(super) fn begin(qmp: &'a Qmp, path: &Path, own: &OwnDisk, within: Duration) -> Result<Self, MachineError> {
        let begun = copy(qmp, path, own, within);
        if begun.is_err() {
            give_up(qmp);
        }
        Ok(Mirror { qmp, ready: begun? })
    }

    /// Ends the job of a guest that has stopped: when its disk was whole at the destination, and what QEMU says of it.
    ///
    /// # Errors
    /// The job has failed before.
    pub(super) fn end(&self) -> Result<(Nanos, Value), MachineError> {
        let mark = self.qmp.mark();
        // Of a job that has caught up this is its orderly end: what was written arrives, and the guest keeps its disk.
        self.qmp.execute("block-job-cancel", json!({ "device": JOB }))?;
        let ended = self.qmp.wait(mark, ENDING, ended)?;
        check(&ended)?;
        self.qmp.wait(mark, ENDING, gone)?;
        self.qmp.execute("blockdev-del", json!({ "node-name": COPY }))?;
        Ok((ended.at, json!({ "ready": self.ready, "ended": ended.raw["data"] })))
    }

    /// Ends the job of a guest that stays.
    pub(super) fn give_up(&self) {
        give_up(self.qmp);
    }
}

fn copy(qmp: &Qmp, path: &Path, own: &OwnDisk, within: Duration) -> Result<Value, MachineError> {
    let mark = qmp.mark();
    let server = json!({ "type": "unix", "path": path.display().to_string() });
    let node = json!({
        "driver": "nbd", "node-name": COPY, "server": server, "export": DISK, "discard": "unmap",
    });
    qmp.execute("blockdev-add", node)?;
    let job = json!({
        "job-id": JOB, "device": DISK, "target": COPY, "sync": "full", "copy-mode": own.copy_mode,
    });
    qmp.execute("blockdev-mirror", job)?;
    check(&qmp.wait(mark, within, |event| event.name == "BLOCK_JOB_READY" || ended(event))?)?;
    let jobs = qmp.execute("query-block-jobs", json!({}))?;
    let job = jobs.as_array().into_iter().flatten().find(|job| job["device"] == JOB);
    Ok(job.cloned().unwrap_or_default())
}

/// Whatever of the job there is ends. The guest keeps its disk in any case.
fn give_up(qmp: &Qmp) {
    let mark = qmp.mark();
    if qmp.execute("block-job-cancel", json!({ "device": JOB, "force": true })).is_ok() {
        let _ = qmp.wait(mark, ENDING, gone);
    }
    let _ = qmp.execute("blockdev-del", json!({ "node-name": COPY }));
}

fn ended(event: &Event) -> bool {
    ["BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED"].contains(&event.name.as_str()) && event.raw["data"]["device"] == JOB
}

fn gone(event: &Event) -> bool {
    let data = &event.raw["data"];
    event.name == "JOB_STATUS_CHANGE" && data["id"] == JOB && data["status"] == "null"
}

fn check(event: &Event) -> Result<(), MachineError> {
    match event.raw["data"]["error"].as_str() {
        None => Ok(()),
        Some(why) => Err(MachineError::Hypervisor(format!("QEMU's copy of the disk has failed: {why}"))),
    }
}

/// Lets a copy come in at `path`.
pub(super) fn serve(qmp: &Qmp, path: &Path) -> Result<(), MachineError> {
    let address = json!({ "type": "unix", "data": { "path": path.display().to_string() } });
    qmp.execute("nbd-server-start", json!({ "addr": address }))?;
    let export = json!({ "type": "nbd", "id": "arriving", "node-name": DISK, "name": DISK, "writable": true });
    qmp.execute("block-export-add", export).map(drop)
}

/// The copy is whole: the disk is the guest's.
pub(super) fn take_over(qmp: &Qmp) -> Result<(), MachineError> {
    qmp.execute("nbd-server-stop", json!({})).map(drop)
}
