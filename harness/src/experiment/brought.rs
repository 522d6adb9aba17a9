//! The table `[guest.qemu]`: a guest of the user's own, in the place of a workload.

use super::fields::Fields;
use super::setting::{exact_duration, exact_size};
use super::tree::{Mistake, Node, Place};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;
use whimbrel_machine::{Brought, BroughtError, MACHINES, Probe};
use whimbrel_model::{Bytes, Nanos};

/// The table, as messages name it.
const TABLE: &str = "guest.qemu";

const KEYS: [&str; 14] = [
    "folder",
    "image",
    "kernel",
    "initrd",
    "append",
    "arguments",
    "disk_device",
    "network_device",
    "ready",
    "ready_within",
    "probe_port",
    "probe_send",
    "probe_expect",
    "probe_every",
];

/// How long a guest may take to be up, where the file doesn't say: translated, on a host that is busy otherwise.
const READY_WITHIN: Nanos = Nanos(180_000_000_000);

/// From one request of the client to the next, where the file doesn't say.
const PROBE_EVERY: Nanos = Nanos(5_000_000);

/// Reads and checks the table, all but its files.
///
/// # Errors
/// The first mistake.
pub fn read(of_guest: &Fields<'_>, machine: &str) -> Result<Option<Brought>, Mistake> {
    let Some(fields) = of_guest.inner("qemu", TABLE)? else { return Ok(None) };
    if !MACHINES.find(machine).is_ok_and(|entry| entry.build.takes_brought) {
        let why = format!("machine {machine:?} takes no guest of your own; write guest.machine = \"qemu\"");
        return Err(of_guest.mistake("qemu", &why));
    }
    fields.only(&KEYS)?;
    let path = |key: &str| Ok::<_, Mistake>(fields.text(key)?.map(PathBuf::from));
    let time = |key: &str, default| Ok::<_, Mistake>(Duration::from(fields.duration(key)?.unwrap_or(default)));
    let given = fields.plain();
    let probe = match given.contains_key("probe_port") {
        true => Some(Probe {
            port: fields.count("probe_port", 0, 1..=u64::from(u16::MAX))? as u16,
            send: fields.text("probe_send")?.unwrap_or_default(),
            expect: fields.text("probe_expect")?.unwrap_or_default(),
            every: time("probe_every", PROBE_EVERY)?,
        }),
        false => None,
    };
    let pointless = |key: &&str| given.contains_key(*key);
    let of_probe = ["probe_send", "probe_expect", "probe_every", "network_device"];
    if let (None, Some(key)) = (&probe, of_probe.into_iter().find(pointless)) {
        return Err(fields.mistake(key, "it is for the client, which is missing; write probe_port, or leave this out"));
    }
    let device = |key: &str, default: &str| Ok::<_, Mistake>(fields.text(key)?.unwrap_or_else(|| default.to_owned()));
    let brought = Brought {
        folder: path("folder")?.unwrap_or_else(|| beside(fields.origin())),
        image: path("image")?,
        kernel: path("kernel")?,
        initrd: path("initrd")?,
        append: fields.text("append")?,
        arguments: fields.texts("arguments")?,
        disk_device: device("disk_device", "virtio-blk-pci")?,
        network_device: device("network_device", "virtio-net-pci")?,
        ready: fields.text("ready")?,
        ready_within: time("ready_within", READY_WITHIN)?,
        probe,
    };
    if brought.image.is_none() && of_guest.size("disk")?.is_none() && given.contains_key("disk_device") {
        return Err(
            fields.mistake("disk_device", "the guest has no disk; write image or guest.disk, or leave this out")
        );
    }
    brought.check().map_err(|error| blame(&fields, &error))?;
    Ok(Some(brought))
}

/// The size of the guest's disk: as the file says, else that of the image that its user brought.
///
/// # Errors
/// The image can't be read here, or its size is no multiple of the block size.
pub fn disk(of_guest: &Fields<'_>, brought: Option<&Brought>) -> Result<Option<Bytes>, Mistake> {
    let (said, Some(brought)) = (of_guest.size("disk")?, brought) else { return of_guest.size("disk") };
    let (Some(fields), true) = (of_guest.inner("qemu", TABLE)?, said.is_none()) else { return Ok(said) };
    let Some(bytes) = brought.image_bytes().map_err(|error| blame(&fields, &error))? else { return Ok(None) };
    let block = of_guest.size("block_size")?.unwrap_or(Bytes(4096));
    if bytes == 0 || block.0 > 0 && bytes % block.0 != 0 {
        let (image, block) = (brought.image.clone().unwrap_or_default(), exact_size(block));
        let why = format!(
            "{} has {bytes} bytes, which is no multiple of the block size, {block:?}, above zero; append zeros to a copy \
             (truncate --size=%4096), or write guest.block_size = \"512 B\"",
            image.display()
        );
        return Err(fields.mistake("image", &why));
    }
    Ok(Some(Bytes(bytes)))
}

fn blame(fields: &Fields<'_>, error: &BroughtError) -> Mistake {
    fields.mistake(error.key, &error.why)
}

/// The table with all defaults.
pub fn resolved(brought: &Brought, has_disk: bool) -> Value {
    let time = |time: Duration| Value::from(exact_duration(Nanos::from(time)));
    let mut table = json!({
        "folder": brought.folder,
        "ready_within": time(brought.ready_within),
    });
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            table[key] = value;
        }
    };
    for (key, path) in [("image", &brought.image), ("kernel", &brought.kernel), ("initrd", &brought.initrd)] {
        put(key, path.as_ref().map(|path| json!(path)));
    }
    put("append", brought.append.clone().map(Value::from));
    put("arguments", (!brought.arguments.is_empty()).then(|| json!(brought.arguments)));
    put("disk_device", has_disk.then(|| brought.disk_device.clone().into()));
    put("ready", brought.ready.clone().map(Value::from));
    if let Some(probe) = &brought.probe {
        put("network_device", Some(brought.network_device.clone().into()));
        put("probe_port", Some(probe.port.into()));
        put("probe_send", Some(probe.send.clone().into()));
        put("probe_expect", Some(probe.expect.clone().into()));
        put("probe_every", Some(time(probe.every)));
    }
    table
}

/// Writes into the document where the table's relative paths begin, so that it means the same wherever it is read again:
/// in the folder of the experiment file.
pub fn settle_folder(tree: &mut Node, origin: &str) {
    let path = |key: &[&str]| key.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
    if !tree.at(&path(&["guest", "qemu"])).is_some_and(|field| matches!(field.node, Node::Table(_))) {
        return;
    }
    let key = path(&["guest", "qemu", "folder"]);
    let (place, folder) = match tree.at(&key) {
        None => (Place::Missing, beside(origin)),
        Some(field) => match &field.node {
            Node::Leaf(Value::String(text)) => (field.place.clone(), beside(origin).join(text)),
            // Told of where it is read.
            _ => return,
        },
    };
    tree.set(&key, &place, Node::Leaf(folder.display().to_string().into()));
}

/// The folder in which an experiment file lies.
fn beside(origin: &str) -> PathBuf {
    let folder = Path::new(origin).parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned())
}
