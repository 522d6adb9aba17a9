//! The device state: what QEMU's own migration sends when it leaves the RAM out.

use super::qmp::{Event, Qmp};
use crate::error::MachineError;
use serde_json::json;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

/// How long QEMU may take for some 600 KB.
const PATIENCE: Duration = Duration::from_secs(60);

/// The longest state that is taken: a hundred times what QEMU's devices have.
const LONGEST: u64 = 64 << 20;

/// How a migration's stream begins.
const MAGIC: &[u8] = b"QEVM";

/// Saves the state of a guest that is stopped. It can go on afterwards, here or elsewhere. `accept` waits for QEMU's connection.
///
/// # Errors
/// QEMU can't, is gone, or stands still.
pub(super) fn save(
    qmp: &Qmp,
    accept: &dyn Fn(&UnixListener, Duration) -> Result<UnixStream, MachineError>,
    folder: &Path,
) -> Result<Vec<u8>, MachineError> {
    let path = folder.join("saved");
    // One of an earlier attempt.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path)?;
    let mark = qmp.mark();
    qmp.execute("migrate", json!({ "uri": format!("unix:{}", path.display()) }))?;
    let mut state = Vec::new();
    let stream = accept(&listener, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.take(LONGEST).read_to_end(&mut state).map_err(stood_still)?;
    finish(qmp, mark, "be saved")?;
    Ok(state)
}

/// Takes up a state that [`save`] gave.
///
/// # Errors
/// The bytes are no state of this guest; QEMU is then not fit for anything any more.
pub(super) fn load(qmp: &Qmp, folder: &Path, state: &[u8]) -> Result<(), MachineError> {
    if !state.starts_with(MAGIC) {
        return Err(MachineError::State("it is not QEMU's".to_owned()));
    }
    let path = folder.join("arriving");
    let mark = qmp.mark();
    qmp.execute("migrate-incoming", json!({ "uri": format!("unix:{}", path.display()) }))?;
    let mut stream = UnixStream::connect(&path)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // Where QEMU has given up in the middle, its word below says why.
    let _ = stream.write_all(state);
    drop(stream);
    finish(qmp, mark, "be taken up")
}

/// Why a state was not read to its end.
fn stood_still(error: io::Error) -> MachineError {
    match error.kind() {
        io::ErrorKind::WouldBlock => {
            let within = PATIENCE.as_secs();
            MachineError::Hypervisor(format!("the device state can't be saved: QEMU sent nothing for {within} s"))
        }
        _ => error.into(),
    }
}

/// Waits until the migration that began after `mark` has ended.
fn finish(qmp: &Qmp, mark: usize, what: &str) -> Result<(), MachineError> {
    let status = |event: &Event| event.raw["data"]["status"].as_str().unwrap_or_default().to_owned();
    let ended = |event: &Event| event.name == "MIGRATION" && ["completed", "failed"].contains(&&*status(event));
    let ended = qmp.wait(mark, PATIENCE, ended)?;
    if status(&ended) == "completed" {
        return Ok(());
    }
    let told = qmp.execute("query-migrate", json!({})).unwrap_or_default();
    let why = told["error-desc"].as_str().unwrap_or("QEMU doesn't say why");
    Err(MachineError::Hypervisor(format!("the device state can't {what}: {why}")))
}
