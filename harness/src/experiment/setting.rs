//! What one cell fixes: the guest, the link, the workload, and how memory and disk move.

use super::brought;
use super::energy::Energy;
use super::fields::Fields;
use super::tree::{Mistake, Node};
use crate::families::{self, CoordinatorChoice, DiskChoice, MemoryChoice, WorkloadChoice};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use whimbrel_disk::{BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, BuildContext as DiskContext};
use whimbrel_machine::{Brought, OwnMove};
use whimbrel_migration::commands::Software;
use whimbrel_model::content::UNIT_BYTES;
use whimbrel_model::op::SECTOR_BYTES;
use whimbrel_model::registry::Parameters;
use whimbrel_model::stream::Shape;
use whimbrel_model::{ByteRate, Bytes, Nanos, PAGE_BYTES};

/// The words of `guest.base`: whether the destination has the disk's first content already.
const OWN: &str = "own";
const SHARED: &str = "shared";
/// The most vCPUs of a guest.
const MOST_VCPUS: u64 = 8;
/// The most guests that migrate at the same time.
const MOST_GUESTS: u64 = 64;
/// The most trips of a trial.
const MOST_TRIPS: u64 = 100;

/// The most attempts at a move.
const MOST_ATTEMPTS: u64 = 100;

/// The keys of its table.
const GUEST_KEYS: [&str; 12] =
    ["machine", "qemu", "ram", "vcpus", "count", "trips", "attempts", "disk", "filled", "base", "block_size", "settle"];

/// The guest of a cell.
#[derive(Clone, Debug, PartialEq)]
pub struct Guest {
    /// The kind of machine.
    pub machine: &'static str,
    /// RAM.
    pub ram: Bytes,
    /// vCPUs.
    pub vcpus: u32,
    /// Guests that migrate at the same time.
    pub count: u32,
    /// Trips of a trial: 2 leads there and back.
    pub trips: u32,
    /// How often a move is attempted, as long as it leaves the guest where it was.
    pub attempts: u32,
    /// The disk, if there is one.
    pub disk: Option<Bytes>,
    /// What of the disk holds content before operation 0; 0 without a disk.
    pub filled: Bytes,
    /// Both hosts have what the disk holds before operation 0: only blocks modified since move.
    pub base_shared: bool,
    /// The granule of disk tracking.
    pub block_size: Bytes,
    /// How long the guest runs before the migration is requested.
    pub settle: Nanos,
    /// What its user brought, in the place of a workload.
    pub brought: Option<Brought>,
}

/// How the link limits itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// A bucket in each host process.
    Bucket,
    /// Network namespaces, veth and tbf.
    Netns,
}

/// The link of a cell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// What the source sends at most; `None`: unlimited.
    pub rate: Option<ByteRate>,
    /// What the destination sends at most; `None`: as the source.
    pub destination_rate: Option<ByteRate>,
    /// How long every byte takes, one way.
    pub delay: Nanos,
    /// How.
    pub via: Via,
}

/// Everything that one cell fixes.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The guest.
    pub guest: Guest,
    /// The link.
    pub link: Link,
    /// What runs in the guest.
    pub software: Software,
    /// How memory moves.
    pub memory: MemoryChoice,
    /// The hypervisor's own migration that moves the guest instead.
    pub own: Option<OwnMove>,
    /// How the disk moves; `None` without a disk, and where the hypervisor moves it.
    pub disk: Option<DiskChoice>,
    /// How memory and disk share the time and the link.
    pub coordinator: CoordinatorChoice,
    /// How energy is measured.
    pub energy: Energy,
}

impl Setting {
    /// Reads and checks the seven tables.
    ///
    /// # Errors
    /// The first mistake.
    pub fn read(origin: &str, tree: &Node) -> Result<Setting, Mistake> {
        let guest = read_guest(&Fields::table(origin, "guest", tree)?)?;
        let link = read_link(&Fields::table(origin, "link", tree)?)?;
        let software = read_software(&Fields::table(origin, "workload", tree)?, &guest)?;
        let of_memory = Fields::table(origin, "memory", tree)?;
        let of_disk = Fields::table(origin, "disk", tree)?;
        of_its_own_table(&of_memory, &of_disk)?;
        let own = read_own(&of_memory, &of_disk, &guest)?;
        let given = if own.is_some() { BTreeMap::new() } else { of_memory.plain() };
        let memory = MemoryChoice::read(&given).map_err(|e| of_memory.blame(&e))?;
        if !kind(guest.machine).throttles && memory.throttles() {
            let why = format!("the vCPUs of machine {:?} can't be slowed", guest.machine);
            return Err(of_memory.mistake("throttle", &format!("{why}; write \"none\"")));
        }
        if guest.brought.is_some() && memory.asks_guest() {
            let why = "nothing in the guest of [guest.qemu] tells what its pages are; write \"all\"";
            return Err(of_memory.mistake("select", why));
        }
        if guest.disk.is_none() && memory.refers() {
            let why =
                "the guest has no disk of which pages could be copies; give it one with guest.disk, or write \"all\"";
            return Err(of_memory.mistake("select", why));
        }
        let given = if own.is_some() { BTreeMap::new() } else { of_disk.plain() };
        let disk = DiskChoice::try_from(given).map_err(|e| of_disk.blame(&e))?;
        if guest.disk.is_none() && !of_disk.plain().is_empty() {
            return Err(
                of_disk.blame(&"the guest has no disk to move; give it one with guest.disk, or leave [disk] out")
            );
        }
        let disk = guest.disk.filter(|_| own.is_none()).map(|_| disk);
        if memory.refers() && disk.as_ref().is_some_and(|disk| !may_be_named(disk, &guest)) {
            let why = "nothing goes by the names of blocks that are mirrored, or that stay where they are; write \"all\", or another disk strategy";
            return Err(of_memory.mistake("select", why));
        }
        let of_coordinator = Fields::table(origin, "coordinator", tree)?;
        if own.is_some() && !of_coordinator.plain().is_empty() {
            return Err(
                of_coordinator.blame(&"the hypervisor moves the disk first, and then memory; leave [coordinator] out")
            );
        }
        let coordinator = read_coordinator(&of_coordinator, &guest, &link)?;
        let energy = Energy::read(origin, tree)?;
        Ok(Setting { guest, link, software, memory, own, disk, coordinator, energy })
    }

    /// How memory moves, as a row names it.
    pub fn memory_name(&self) -> &str {
        self.own.as_ref().map_or(self.memory.name(), |own| &own.memory)
    }

    /// How the disk moves, as a row names it.
    pub fn disk_name(&self) -> Option<&str> {
        self.own.as_ref().map_or(self.disk.as_ref().map(DiskChoice::name), |own| own.disk.as_deref())
    }

    /// Every key with its value, defaults filled in.
    pub fn resolved(&self) -> Value {
        json!({
            "guest": self.guest.resolved(),
            "link": self.link.resolved(),
            "workload": self.software.workload().map(WorkloadChoice::resolved),
            "memory": self.own.as_ref().map_or_else(|| json!(self.memory.resolved()), |own| self.resolved_own(own)),
            "disk": match self.own.as_ref().and_then(|own| own.disk.as_ref()) {
                Some(own) => json!({ "preset": own }),
                None => json!(self.disk.as_ref().map(DiskChoice::resolved)),
            },
            "coordinator": self.disk.as_ref().map(|_| self.coordinator.resolved()),
            "energy": self.energy.resolved(),
        })
    }
}

impl Setting {
    /// The `[memory]` table of a migration of the hypervisor's own.
    fn resolved_own(&self, own: &OwnMove) -> Value {
        let entry = kind(self.guest.machine).own.find(&own.memory).expect("a setting names a known migration");
        let mut table = json!({ "preset": own.memory });
        for parameter in entry.parameters {
            let given = own.parameters.get(parameter.name).cloned();
            table[parameter.name] = given.or_else(|| parameter.default_value()).unwrap_or_default();
        }
        table
    }
}

impl Guest {
    /// The guest as a workload sees it.
    pub fn shape(&self) -> Shape {
        Shape {
            pages: workload_pages(self.machine, self.ram).unwrap_or_default(),
            sectors: self.disk.map_or(0, |d| d.0 / SECTOR_BYTES),
            filled_sectors: self.filled.0 / SECTOR_BYTES,
            vcpus: self.vcpus,
        }
    }

    /// Its table with all defaults.
    pub fn resolved(&self) -> Value {
        let mut table = json!({
            "machine": self.machine,
            "ram": exact_size(self.ram),
            "vcpus": self.vcpus,
            "count": self.count,
            "trips": self.trips,
            "attempts": self.attempts,
            "settle": exact_duration(self.settle),
        });
        if let Some(disk) = self.disk {
            table["disk"] = exact_size(disk).into();
            table["filled"] = exact_size(self.filled).into();
            table["base"] = if self.base_shared { SHARED } else { OWN }.into();
            table["block_size"] = exact_size(self.block_size).into();
        }
        if let (Some(brought), Some(fields)) = (&self.brought, table.as_object_mut()) {
            // Nothing of ours fills its disk.
            fields.remove("filled");
            fields.insert("qemu".to_owned(), brought::resolved(brought, self.disk.is_some()));
        }
        table
    }
}

impl Link {
    /// Its table with all defaults.
    pub fn resolved(&self) -> Value {
        let mut table = json!({
            "delay": exact_duration(self.delay),
            "via": match self.via { Via::Bucket => "bucket", Via::Netns => "netns" },
        });
        let rates = [("rate", self.rate), ("destination_rate", self.destination_rate)];
        for (key, rate) in rates.into_iter().filter_map(|(key, rate)| Some((key, rate?))) {
            table[key] = format!("{} B/s", rate.0).into();
        }
        table
    }
}

/// A size as a file may have it, without rounding.
pub(super) fn exact_size(size: Bytes) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let unit = units.iter().find(|(_, shift)| size.0 > 0 && size.0.is_multiple_of(1 << shift));
    unit.map_or_else(|| format!("{} B", size.0), |(name, shift)| format!("{} {name}", size.0 >> shift))
}

/// A duration as a file may have it, without rounding.
pub(super) fn exact_duration(time: Nanos) -> String {
    let units = [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1000)];
    let unit = units.iter().find(|(_, ns)| time.0.is_multiple_of(*ns));
    unit.map_or_else(|| format!("{} ns", time.0), |(name, ns)| format!("{} {name}", time.0 / ns))
}

fn read_coordinator(fields: &Fields<'_>, guest: &Guest, link: &Link) -> Result<CoordinatorChoice, Mistake> {
    let given = fields.plain();
    let coordinator = CoordinatorChoice::try_from(given.clone()).map_err(|e| fields.blame(&e))?;
    let refuse = |accepted: &str| Err(fields.refuse("use", &format!("{:?}", coordinator.name()), accepted));
    if !given.is_empty() && guest.disk.is_none() {
        return refuse("no [coordinator] for a guest without a disk, or give it one with guest.disk");
    }
    if coordinator.shares_the_link() && link.rate.is_none() {
        return refuse("it with a link.rate to share, or another coordinator");
    }
    Ok(coordinator)
}

/// The workload, or what the guest's user brought in its place.
/// Whether pages can go by the names of a disk's blocks: what is mirrored shows in no log of writes, and what remains is not there.
fn may_be_named(disk: &DiskChoice, guest: &Guest) -> bool {
    let blocks = guest.disk.map_or(0, |size| size.0 / guest.block_size.0);
    let needs = disk.needs(&DiskContext { blocks, block_bytes: guest.block_size.0, seed: 0 });
    !needs.mirror && !needs.remains
}

fn read_software(of_workload: &Fields<'_>, guest: &Guest) -> Result<Software, Mistake> {
    let given = of_workload.plain();
    let Some(brought) = &guest.brought else {
        let workload = WorkloadChoice::read(&given).map_err(|e| of_workload.blame(&e))?;
        families::fits(&workload, guest.shape()).map_err(|e| of_workload.blame(&e))?;
        if workload.content().needs_disk() && guest.filled.0 < UNIT_BYTES {
            let why = "cached pages are copies of what the disk holds; fill some of it with guest.filled, or leave cached out";
            return Err(of_workload.mistake("content", why));
        }
        return Ok(Software::Workload(workload));
    };
    match given.keys().next() {
        None => Ok(Software::Brought(Box::new(brought.clone()))),
        Some(key) => {
            let why = "the guest of [guest.qemu] runs what it holds; leave [workload] out, or [guest.qemu]";
            Err(of_workload.mistake(key, why))
        }
    }
}

fn read_guest(fields: &Fields<'_>) -> Result<Guest, Mistake> {
    fields.only(&GUEST_KEYS)?;
    let machines = families::machine_names();
    let small = |key: &str, most| fields.count(key, 1, 1..=most).map(|n| n as u32);
    let machine = fields.word("machine", "machine", &machines)?.unwrap_or("thread");
    let brought = brought::read(fields, machine)?;
    let guest = Guest {
        machine,
        ram: fields.size("ram")?.unwrap_or(Bytes(kind(machine).default_ram_bytes)),
        vcpus: small("vcpus", MOST_VCPUS)?,
        count: small("count", MOST_GUESTS)?,
        trips: small("trips", MOST_TRIPS)?,
        attempts: small("attempts", MOST_ATTEMPTS)?,
        disk: brought::disk(fields, brought.as_ref())?,
        filled: fields.size("filled")?.unwrap_or(Bytes(0)),
        base_shared: fields.word("base", "base image", &[OWN, SHARED])? == Some(SHARED),
        block_size: fields.size("block_size")?.unwrap_or(Bytes(4096)),
        settle: fields.duration("settle")?.unwrap_or(Nanos(500_000_000)),
        brought,
    };
    check_guest(fields, guest)
}

fn check_guest(fields: &Fields<'_>, guest: Guest) -> Result<Guest, Mistake> {
    let refuse =
        |key: &str, size: Bytes, accepted: &str| Err(fields.refuse(key, &format!("{:?}", exact_size(size)), accepted));
    if guest.ram.0 == 0 || !guest.ram.0.is_multiple_of(PAGE_BYTES) {
        return refuse("ram", guest.ram, "a size above zero that is a multiple of \"4 KiB\"");
    }
    if guest.brought.is_none()
        && let Err(accepted) = workload_pages(guest.machine, guest.ram)
    {
        return refuse("ram", guest.ram, &format!("{accepted} for machine {:?}", guest.machine));
    }
    let block = guest.block_size.0;
    if !block.is_power_of_two() || !(BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&block) {
        return refuse("block_size", guest.block_size, "a power of two from \"512 B\" to \"1 MiB\"");
    }
    match guest.disk {
        Some(_) if guest.brought.is_some() && guest.filled.0 > 0 => {
            refuse("filled", guest.filled, "guest.qemu.image for what the disk holds, and leave this out")
        }
        Some(disk) if disk.0 == 0 || disk.0 % block != 0 => {
            let accepted =
                format!("a size above zero that is a multiple of the block size, {:?}", exact_size(guest.block_size));
            refuse("disk", disk, &accepted)
        }
        Some(disk) if guest.filled > disk => {
            refuse("filled", guest.filled, &format!("at most the disk's {:?}", exact_size(disk)))
        }
        None if guest.base_shared => {
            Err(fields.refuse("base", &format!("{SHARED:?}"), "it together with guest.disk, or leave it out"))
        }
        None if guest.filled.0 > 0 => refuse("filled", guest.filled, "it together with guest.disk, or leave it out"),
        _ if !guest.filled.0.is_multiple_of(SECTOR_BYTES) => refuse("filled", guest.filled, "a multiple of \"512 B\""),
        _ => Ok(guest),
    }
}

/// Sees that what one table names is not the other's: `luo2008` is a disk's.
fn of_its_own_table(of_memory: &Fields<'_>, of_disk: &Fields<'_>) -> Result<(), Mistake> {
    let memory: [(&str, Vec<&str>); 2] = [
        ("preset", whimbrel_memory::PRESETS.names().collect()),
        ("schedule", whimbrel_memory::SCHEDULES.names().collect()),
    ];
    let disk: [(&str, Vec<&str>); 2] = [
        ("preset", whimbrel_disk::DISK_PRESETS.names().collect()),
        ("strategy", whimbrel_disk::DISK_STRATEGIES.names().collect()),
    ];
    for (fields, own, table, others) in [(of_memory, &memory, "disk", &disk), (of_disk, &disk, "memory", &memory)] {
        let given = fields.plain();
        let named = own.iter().filter_map(|(key, names)| Some((*key, given.get(*key)?.as_str()?, names)));
        for (key, name, _) in named.filter(|(_, name, names)| !names.contains(name)) {
            if let Some((there, _)) = others.iter().find(|(_, names)| names.contains(&name)) {
                let why = format!("{name:?} is of [{table}]; write it there, as {there} = {name:?}");
                return Err(fields.mistake(key, &why));
            }
        }
    }
    Ok(())
}

/// The hypervisor's own migration that `memory.preset` names, and its own way to move the disk, if they name one.
fn read_own(of_memory: &Fields<'_>, of_disk: &Fields<'_>, guest: &Guest) -> Result<Option<OwnMove>, Mistake> {
    let named = |fields: &Fields<'_>| {
        let given = fields.plain().get("preset").and_then(Value::as_str).map(str::to_owned);
        given.filter(|name| name.contains(':'))
    };
    let (memory, disk) = (named(of_memory), named(of_disk));
    let kind = kind(guest.machine);
    let unknown = |error| format!("machine {:?} has no such migration: {error}", guest.machine);
    if let Some(name) = &disk {
        kind.own_disk.find(name).map_err(|error| of_disk.mistake("preset", &unknown(error)))?;
        of_disk.only(&["preset"])?;
        if memory.is_none() {
            let why =
                "goes with a migration of the same hypervisor; write one as memory.preset, such as \"qemu:precopy\"";
            return Err(of_disk.mistake("preset", &format!("{name} {why}")));
        }
    }
    let Some(name) = memory else { return Ok(None) };
    let found = kind.own.find(&name).map_err(|error| of_memory.mistake("preset", &unknown(error)))?;
    let mut parameters = of_memory.plain();
    parameters.remove("preset");
    let read = Parameters::read(found.parameters, &parameters).map_err(|error| of_memory.blame(&error))?;
    (found.build.settings)(&read).map_err(|error| of_memory.blame(&error))?;
    if guest.brought.is_some() && (found.build.hinted)(&read) {
        let why = "nothing in the guest of [guest.qemu] takes the question which of its pages are free; write false";
        return Err(of_memory.mistake("free_page_hints", why));
    }
    if guest.disk.is_some() && disk.is_none() {
        let ways: Vec<String> = kind.own_disk.names().map(|name| format!("{name:?}")).collect();
        let why =
            format!("{name} moves the disk by its hypervisor's own means; write disk.preset = {}", ways.join(" or "));
        return Err(of_memory.mistake("preset", &format!("{why}, or leave guest.disk out")));
    }
    Ok(Some(OwnMove { memory: name, parameters, disk }))
}

/// The pages of a guest's RAM that its workload may use; `Err`: how much RAM the machine takes.
fn workload_pages(machine: &str, ram: Bytes) -> Result<u64, String> {
    (kind(machine).workload_pages)(ram.0 / PAGE_BYTES)
}

fn kind(machine: &str) -> &'static whimbrel_machine::machines::Kind {
    &whimbrel_machine::MACHINES.find(machine).expect("the name was looked up in the registry").build
}

fn read_link(fields: &Fields<'_>) -> Result<Link, Mistake> {
    fields.only(&["rate", "destination_rate", "delay", "via"])?;
    let rate = |key: &str| match fields.rate(key)? {
        // A bucket that trickles would make a trial of days; no link is that slow.
        Some(rate) if rate.0 < 1000.0 => {
            Err(fields.refuse(key, &format!("{} B/s", rate.0), "at least \"1 KiB/s\", or leave it out: unlimited"))
        }
        rate => Ok(rate),
    };
    let delay = fields.duration("delay")?.unwrap_or(Nanos(0));
    if delay.0 > 10_000_000_000 {
        return Err(fields.refuse("delay", &format!("{:?}", exact_duration(delay)), "at most \"10 s\""));
    }
    let via = match fields.word("via", "way", &["bucket", "netns"])? {
        Some("netns") => Via::Netns,
        _ => Via::Bucket,
    };
    Ok(Link { rate: rate("rate")?, destination_rate: rate("destination_rate")?, delay, via })
}
