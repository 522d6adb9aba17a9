//! QEMU's own migrations, as baselines: the same guest over the same link, and QEMU moves the memory.

use super::mirror::{self, Mirror};
use super::qmp::{Event, Qmp};
use crate::error::MachineError;
use crate::machine::{Departure, OwnEnds, OwnMove};
use crate::machines::{Own, OwnStream};
use serde_json::{Value, json};
use std::ops::RangeInclusive;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use whimbrel_model::registry::{Entry, Kind, Parameter, ParameterError, Parameters, Registry};
use whimbrel_model::{Nanos, PAGE_BYTES};

/// How much longer the destination waits than the source.
const LATER: Duration = Duration::from_secs(10);

/// How long QEMU may take to compute the times of a migration that it calls completed, and how often it is asked.
const COMPUTING: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(1);

const DOWNTIME: Parameter = Parameter {
    name: "downtime_budget",
    summary: "the longest pause that QEMU is asked for",
    kind: Kind::Duration,
    default: Some("300 ms"),
};

const PASSES: Parameter = Parameter {
    name: "passes",
    summary: "passes of pre-copy before the guest switches",
    kind: Kind::Count,
    default: Some("1"),
};

const CHANNELS: Parameter = Parameter {
    name: "channels",
    summary: "streams of pages besides the first, 1 to 64",
    kind: Kind::Count,
    default: Some("2"),
};

const CACHE: Parameter = Parameter {
    name: "cache",
    summary: "pages as they were sent last, of which differences are made; a power of two",
    kind: Kind::Size,
    default: Some("64 MiB"),
};

const INITIAL: Parameter = Parameter {
    name: "throttle_initial",
    summary: "the first step: share of the vCPUs' time, 0.01 to 0.99",
    kind: Kind::Ratio,
    default: Some("0.20"),
};

const INCREMENT: Parameter = Parameter {
    name: "throttle_increment",
    summary: "each further step, 0.01 to 0.99",
    kind: Kind::Ratio,
    default: Some("0.10"),
};

/// QEMU itself knows no end where the guest writes faster than the link carries.
const GIVE_UP: Parameter = Parameter {
    name: "give_up_after",
    summary: "how long QEMU's migration may go on before it is cancelled, and a post-copy that has begun: 1 s to 86400 s",
    kind: Kind::Duration,
    default: Some("120 s"),
};

const HINTS: Parameter = Parameter {
    name: "free_page_hints",
    summary: "the guest tells QEMU over its balloon which pages are free, and these don't cross",
    kind: Kind::Flag,
    default: Some("false"),
};

const fn entry(name: &'static str, summary: &'static str, parameters: &'static [Parameter], build: Own) -> Entry<Own> {
    Entry { name, summary, parameters, source: "QEMU", build }
}

const fn precopy(capabilities: &'static [Capability]) -> Own {
    Own {
        capabilities,
        streams: |_| vec![OwnStream::Bulk],
        hinted: |given| given.flag(HINTS.name),
        postcopy: false,
        settings: |given| common(given, json!({})),
    }
}

const fn postcopy(capabilities: &'static [Capability], streams: fn(&Parameters) -> Vec<OwnStream>) -> Own {
    // QEMU asks no guest for hints once a post-copy may follow.
    Own { capabilities, streams, hinted: |_| false, postcopy: true, settings: |given| common(given, json!({})) }
}

/// A capability, and the version of QEMU that it came with.
type Capability = (&'static str, &'static str);

/// Every migration of QEMU's own, by the name that `memory.preset` takes.
pub static OWN: Registry<Own> = Registry {
    family: "own migration",
    entries: &[
        entry("qemu:precopy", "QEMU's own pre-copy", &[DOWNTIME, GIVE_UP, HINTS], precopy(&[])),
        entry(
            "qemu:postcopy",
            "QEMU's own post-copy, begun after some passes",
            &[DOWNTIME, GIVE_UP, PASSES],
            postcopy(&[POSTCOPY], |_| vec![OwnStream::Bulk]),
        ),
        entry(
            "qemu:postcopy-preempt",
            "QEMU's own post-copy, pages that a vCPU waits for over a stream of their own; QEMU 7.1 or newer",
            &[DOWNTIME, GIVE_UP, PASSES],
            postcopy(&[POSTCOPY, ("postcopy-preempt", "7.1")], |_| vec![OwnStream::Bulk, OwnStream::Urgent]),
        ),
        entry(
            "qemu:multifd",
            "QEMU's own pre-copy, pages over several streams more",
            &[DOWNTIME, GIVE_UP, CHANNELS, HINTS],
            Own {
                streams: |given| vec![OwnStream::Bulk; 1 + given.count(CHANNELS.name) as usize],
                settings: multifd,
                ..precopy(&[("multifd", "4.0")])
            },
        ),
        entry(
            "qemu:xbzrle",
            "QEMU's own pre-copy, pages as differences",
            &[DOWNTIME, GIVE_UP, CACHE, HINTS],
            Own { settings: xbzrle, ..precopy(&[("xbzrle", "1.2")]) },
        ),
        entry(
            "qemu:auto-converge",
            "QEMU's own pre-copy, which slows the guest",
            &[DOWNTIME, GIVE_UP, INITIAL, INCREMENT, HINTS],
            Own { settings: auto_converge, ..precopy(&[("auto-converge", "1.6")]) },
        ),
    ],
};

/// The longest pause that QEMU can be asked for.
const MOST_DOWNTIME_MS: u64 = 2_000_000;

/// The largest cache. With one of a terabyte a run had not got beyond its beginning after a minute.
const MOST_CACHE_BYTES: u64 = 16 << 30;

/// `settings`, with what all have. There is no limit to the rate but the link's.
fn common(given: &Parameters, mut settings: Value) -> Result<Value, ParameterError> {
    if !MAY_TAKE.contains(&within(given)) {
        return refuse(GIVE_UP, format!("{} ns", given.duration(GIVE_UP.name).0), "1 s to 86400 s");
    }
    let longest = given.duration(DOWNTIME.name);
    match longest.0 / 1_000_000 {
        ms @ 1..=MOST_DOWNTIME_MS if longest.0.is_multiple_of(1_000_000) => settings["downtime-limit"] = ms.into(),
        _ => return refuse(DOWNTIME, format!("{} ns", longest.0), "whole milliseconds, from 1 ms to 2000 s"),
    }
    Ok(settings)
}

/// The accepted values of [`GIVE_UP`].
const MAY_TAKE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86400);

/// How long a migration may go on.
fn within(given: &Parameters) -> Duration {
    Duration::from_nanos(given.duration(GIVE_UP.name).0)
}

fn refuse(key: Parameter, found: impl ToString, accepted: &str) -> Result<Value, ParameterError> {
    let (key, found, accepted) = (key.name.to_owned(), found.to_string(), accepted.to_owned());
    Err(ParameterError::Value { key, found, accepted })
}

fn multifd(given: &Parameters) -> Result<Value, ParameterError> {
    match given.count(CHANNELS.name) {
        channels @ 1..=64 => common(given, json!({ "multifd-channels": channels })),
        channels => refuse(CHANNELS, channels, "1 to 64"),
    }
}

fn xbzrle(given: &Parameters) -> Result<Value, ParameterError> {
    match given.size(CACHE.name).0 {
        bytes @ PAGE_BYTES..=MOST_CACHE_BYTES if bytes.is_power_of_two() => {
            common(given, json!({ "xbzrle-cache-size": bytes }))
        }
        bytes => refuse(CACHE, format!("{bytes} B"), "a power of two from \"4 KiB\" to \"16 GiB\""),
    }
}

fn auto_converge(given: &Parameters) -> Result<Value, ParameterError> {
    let mut settings = json!({});
    for (parameter, key) in [(INITIAL, "cpu-throttle-initial"), (INCREMENT, "cpu-throttle-increment")] {
        match (given.number(parameter.name) * 100.0).round() {
            percent @ 1.0..=99.0 => settings[key] = (percent as u64).into(),
            _ => return refuse(parameter, given.number(parameter.name), "0.01 to 0.99"),
        }
    }
    common(given, settings)
}

const POSTCOPY: Capability = ("postcopy-ram", "2.5");

/// What holds a migration once the guest has stopped.
const HOLD: Capability = ("pause-before-switchover", "2.11");

/// The state in which it is held then.
const HELD: &str = "pre-switchover";

/// What leaves the RAM out, as the engine's moves need it.
const IGNORE_SHARED: &str = "x-ignore-shared";

/// How memory is to move, with the checked parameters.
fn find(own: &OwnMove) -> Result<(&'static Own, Parameters), MachineError> {
    let setup = |error: ParameterError| MachineError::Setup(error.to_string());
    let found = OWN.find(&own.memory).map_err(|error| setup(error.into()))?;
    Ok((&found.build, Parameters::read(found.parameters, &own.parameters).map_err(setup)?))
}

/// Whether the guest is to tell QEMU which of its pages are free.
///
/// # Errors
/// There is no such move.
pub(super) fn is_hinted(own: &OwnMove) -> Result<bool, MachineError> {
    let (Own { hinted, .. }, parameters) = find(own)?;
    Ok(hinted(&parameters))
}

/// Whether the vCPUs execute.
pub(super) fn runs(qmp: &Qmp) -> bool {
    qmp.execute("query-status", json!({})).is_ok_and(|status| status["running"] == true)
}

/// Sets the capabilities of such a move, and of those that others here set none.
///
/// # Errors
/// This QEMU lacks one.
fn set(qmp: &Qmp, own: &OwnMove) -> Result<(), MachineError> {
    let (Own { capabilities, settings, .. }, parameters) = find(own)?;
    let listed = qmp.execute("query-migrate-capabilities", json!({}))?;
    let listed: Vec<&str> = listed.as_array().into_iter().flatten().filter_map(|c| c["capability"].as_str()).collect();
    let wanted: Vec<Capability> = capabilities.iter().copied().chain(own.disk.as_ref().map(|_| HOLD)).collect();
    if let Some((name, since)) = wanted.iter().find(|(name, _)| !listed.contains(name)) {
        let why = format!("QEMU {} has no {name}, which came with {since}", qmp.version());
        return Err(MachineError::Hypervisor(why));
    }
    let others = OWN.entries.iter().flat_map(|entry| entry.build.capabilities).map(|(name, _)| *name);
    let known = others.chain([IGNORE_SHARED, HOLD.0]).filter(|name| listed.contains(name));
    let is_wanted = |name: &str| wanted.iter().any(|(wanted, _)| *wanted == name);
    let all: Vec<Value> = known.map(|name| json!({ "capability": name, "state": is_wanted(name) })).collect();
    qmp.execute("migrate-set-capabilities", json!({ "capabilities": all }))?;
    let settings = settings(&parameters).map_err(|error| MachineError::Setup(error.to_string()))?;
    qmp.execute("migrate-set-parameters", settings).map(drop)
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
    set(qmp, own)?;
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
    let copying = mirror::copying(within(&find(own)?.1));
    let copy = disk.map(|disk| Mirror::begin(qmp, &disk_meeting(folder), disk, copying)).transpose()?;
    let mark = qmp.mark();
    let left = migrate(qmp, mark, folder, own, copy.as_ref()).map_err(|error| match error {
        error @ MachineError::Departed(_) => error,
        error if has_left(qmp, mark) => MachineError::Departed(error.to_string()),
        error => error,
    });
    if let (Err(_), Some(copy)) = (&left, &copy) {
        copy.give_up();
    }
    if matches!(left, Err(MachineError::Departed(_))) && runs(qmp) {
        // Where QEMU has let the guest go on by itself, it would be on both sides.
        let _ = qmp.execute("stop", json!({}));
    }
    left
}

/// Whether the guest has begun to run at the destination, or may have.
fn has_left(qmp: &Qmp, mark: usize) -> bool {
    let left = |event: &Event| status(event) == "completed" || status(event).starts_with("postcopy");
    qmp.wait(mark, Duration::ZERO, left).is_ok()
}

fn migrate(
    qmp: &Qmp,
    mark: usize,
    folder: &Path,
    own: &OwnMove,
    copy: Option<&Mirror<'_>>,
) -> Result<Departure, MachineError> {
    let (own, parameters) = find(own)?;
    let within = within(&parameters);
    let end = Instant::now() + within;
    let wait = |end, wanted: &dyn Fn(&Event) -> bool| wait(qmp, mark, within, end, wanted);
    qmp.execute("migrate", uri(&meeting(folder)))?;
    let mut begun = false;
    if own.postcopy {
        let passes = Some(parameters.count(PASSES.name));
        let ready = |event: &Event| event.name == "MIGRATION_PASS" && event.raw["data"]["pass"].as_u64() > passes;
        wait(end, &|event| ready(event) || ended(event))?;
        // It may have ended by itself meanwhile, and then there is nothing to begin.
        begun = qmp.execute("migrate-start-postcopy", json!({})).is_ok();
    }
    let copied = copy.map(|copy| {
        let held = wait(end, &|event| status(event) == HELD || ended(event))?;
        if status(&held) != HELD {
            return Ok(None);
        }
        let copied = copy.end().inspect_err(|_| drop(qmp.execute("migrate_cancel", json!({}))))?;
        qmp.execute("migrate-continue", json!({ "state": HELD }))?;
        Ok::<_, MachineError>(Some(copied))
    });
    let (disk_whole, job) = copied.transpose()?.flatten().unzip();
    let end = match begun {
        true => qmp.wait(mark, within, ended).map_err(|error| match qmp.closed() {
            Some(_) => MachineError::Departed(error.to_string()),
            None => MachineError::Departed(format!("its post-copy had {}", not_ended(within))),
        })?,
        // To end its job took the disk time. What is left to cross then is the device state: it isn't cut off.
        false => wait(end.max(Instant::now() + LATER), &ended)?,
    };
    let mut figures = figures(qmp)?;
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

/// What QEMU says of a migration that has ended. It calls one completed before it has computed its times, which are nothing
/// until then.
fn figures(qmp: &Qmp) -> Result<Value, MachineError> {
    let end = Instant::now() + COMPUTING;
    loop {
        let figures = qmp.execute("query-migrate", json!({}))?;
        let computes = figures["status"] == "completed" && figures["total-time"] == 0;
        if !computes || Instant::now() >= end {
            return Ok(figures);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Waits for what a migration tells; one that has not ended by its end, `within` after it began, is cancelled, unless the guest has
/// left by then.
fn wait(
    qmp: &Qmp,
    mark: usize,
    within: Duration,
    end: Instant,
    wanted: &dyn Fn(&Event) -> bool,
) -> Result<Event, MachineError> {
    match qmp.wait(mark, end.saturating_duration_since(Instant::now()), wanted) {
        Err(_) if qmp.closed().is_none() => {
            if !has_left(qmp, mark) {
                qmp.execute("migrate_cancel", json!({}))?;
                // It may have come to its end first.
                let _ = qmp.wait(mark, LATER, ended);
            }
            let why = format!("QEMU's migration had {}", not_ended(within));
            Err(MachineError::Hypervisor(why))
        }
        heard => heard,
    }
}

fn not_ended(within: Duration) -> String {
    format!("not ended after {} (memory.give_up_after)", Nanos(within.as_nanos() as u64))
}

/// Makes ready to take a guest in; streams are connected to the paths that are answered.
pub(super) fn prepare_to_arrive(qmp: &Qmp, folder: &Path, own: &OwnMove) -> Result<OwnEnds<PathBuf>, MachineError> {
    set(qmp, own)?;
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
pub(super) fn arrive(
    qmp: &Qmp,
    mark: usize,
    own: &OwnMove,
    disk_whole: &dyn Fn(),
    resumed: &dyn Fn(Nanos),
) -> Result<(), MachineError> {
    let within = within(&find(own)?.1);
    let end = within + LATER + own.disk.as_ref().map_or(Duration::ZERO, |_| mirror::copying(within));
    if own.disk.is_some() {
        // The guest has left the source by then, and its copy has ended.
        let came = |event: &Event| status(event) == "completed" || status(event).starts_with("postcopy");
        if !failed(&qmp.wait(mark, end, |event| came(event) || failed(event))?) {
            mirror::take_over(qmp)?;
            disk_whole();
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
    // From a post-copy that has come to a halt it would go on only over streams that nobody connects anew.
    ["failed", "cancelled", "postcopy-paused"].contains(&status(event))
}

#[cfg(test)]
mod tests {
    use super::super::qmp::tests::{GREETING, monitor};
    use super::*;
    use std::collections::BTreeMap;

    /// What becomes of a post-copy of which QEMU says these lines once it was begun.
    fn after_the_beginning(lines: &'static str) -> MachineError {
        let done = "{\"return\": {}}";
        let pass = r#"{"event": "MIGRATION_PASS", "data": {"pass": 2}}"#;
        let moved: &str = Box::leak(format!("{pass}\n{done}").into_boxed_str());
        let figures = r#"{"return": {"status": "failed", "error-desc": "the stream was cut"}}"#;
        let stands = r#"{"return": {"running": false}}"#;
        let said = [GREETING, done, moved, lines, figures, stands, done];
        let qmp = monitor(Box::leak(Box::new(said))).unwrap();
        let memory = "qemu:postcopy".to_owned();
        let own = OwnMove { memory, parameters: BTreeMap::new(), disk: None };
        leave(&qmp, Path::new("/"), &own).unwrap_err()
    }

    #[test]
    fn a_guest_whose_postcopy_fails_once_it_has_left_is_not_here_any_more() {
        let active = r#"{"event": "MIGRATION", "data": {"status": "postcopy-active"}}"#;
        for end in ["postcopy-paused", "failed"] {
            let end = format!(r#"{{"event": "MIGRATION", "data": {{"status": "{end}"}}}}"#);
            let lines = format!("{{\"return\": {{}}}}\n{active}\n{end}");
            let error = after_the_beginning(lines.leak());
            assert!(matches!(error, MachineError::Departed(_)), "{error:?}");
            assert!(error.to_string().contains("the stream was cut"), "{error}");
        }
        // It has not begun to run there: it is for the source to let it go on.
        let error =
            after_the_beginning("{\"return\": {}}\n{\"event\": \"MIGRATION\", \"data\": {\"status\": \"failed\"}}");
        assert!(matches!(error, MachineError::Hypervisor(_)), "{error:?}");
    }

    #[test]
    fn a_qemu_without_a_capability_is_told_by_its_version() {
        let listed =
            r#"{"return": [{"capability": "postcopy-ram", "state": false}, {"capability": "events", "state": true}]}"#;
        let qmp = monitor(Box::leak(Box::new([GREETING, "{\"return\": {}}", listed]))).unwrap();
        let memory = "qemu:postcopy-preempt".to_owned();
        let error = set(&qmp, &OwnMove { memory, parameters: BTreeMap::new(), disk: None }).unwrap_err().to_string();
        assert_eq!(error, "QEMU 7.2.1 has no postcopy-preempt, which came with 7.1");
    }
}
