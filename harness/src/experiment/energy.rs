//! The table `[energy]`: with which meter, or which model, and over which times.

use super::fields::Fields;
use super::setting::exact_duration;
use super::tree::{Mistake, Node};
use serde_json::{Value, json};
use std::time::Duration;
use whimbrel_energy::{Coefficients, EnergySpec, METERS, model};
use whimbrel_model::Nanos;

/// How energy is measured in a cell.
#[derive(Clone, Debug, PartialEq)]
pub struct Energy {
    /// The meter's name; `None`: the first that works.
    pub meter: Option<String>,
    /// What to compute with where no meter works.
    pub model: Option<Coefficients>,
    /// Between two readings.
    pub sample_every: Nanos,
    /// How long both hosts are let be before the control run; 0: their idle power is not measured.
    pub idle: Nanos,
    /// How long the control run takes.
    pub control: Nanos,
    /// How long the guest runs on after each migration.
    pub after: Nanos,
}

/// The times where the file doesn't say, in nanoseconds.
const SAMPLE_EVERY: u64 = 10_000_000;
const CONTROL: u64 = 1_500_000_000;
const AFTER: u64 = 250_000_000;

/// A control run is at least so long: its second half is what a trial is held against.
const SHORTEST_CONTROL: u64 = 500_000_000;

/// What `energy.model` may be.
const MODELS: &str = "\"none\", \"defaults\", or a table such as { core_w = 2.76, byte_nj = 0.0, base_w = 0.74 }";

impl Energy {
    /// Reads and checks the table.
    ///
    /// # Errors
    /// The first mistake.
    pub fn read(origin: &str, tree: &Node) -> Result<Energy, Mistake> {
        let fields = Fields::table(origin, "energy", tree)?;
        fields.only(&["meter", "model", "sample_every", "idle", "control", "after"])?;
        let names: Vec<&str> = std::iter::once("auto").chain(METERS.names()).collect();
        let meter = fields.word("meter", "meter", &names)?.filter(|name| *name != "auto").map(str::to_owned);
        let time = |key: &str, default: u64| Ok::<Nanos, Mistake>(fields.duration(key)?.unwrap_or(Nanos(default)));
        let energy = Energy {
            meter,
            model: read_model(origin, &fields, tree)?,
            sample_every: time("sample_every", SAMPLE_EVERY)?,
            idle: time("idle", 0)?,
            control: time("control", CONTROL)?,
            after: time("after", AFTER)?,
        };
        let range = |key: &str, time: Nanos, least: u64, most: u64| {
            let accepted =
                format!("a duration from {:?} to {:?}", exact_duration(Nanos(least)), exact_duration(Nanos(most)));
            let refuse = || fields.refuse(key, &format!("{:?}", exact_duration(time)), &accepted);
            if (least..=most).contains(&time.0) { Ok(()) } else { Err(refuse()) }
        };
        const HOUR: u64 = 3_600_000_000_000;
        range("sample_every", energy.sample_every, 1_000_000, 1_000_000_000)?;
        range("idle", energy.idle, 0, HOUR)?;
        range("control", energy.control, SHORTEST_CONTROL, HOUR)?;
        range("after", energy.after, 0, HOUR)?;
        Ok(energy)
    }

    /// The table with all defaults.
    pub fn resolved(&self) -> Value {
        json!({
            "meter": self.meter.as_deref().unwrap_or("auto"),
            "model": self.model.map_or_else(|| "none".into(), |model| json!(model)),
            "sample_every": exact_duration(self.sample_every),
            "idle": exact_duration(self.idle),
            "control": exact_duration(self.control),
            "after": exact_duration(self.after),
        })
    }

    /// The same as the agents want it.
    pub fn spec(&self) -> EnergySpec {
        let sample_every = Duration::from(self.sample_every);
        EnergySpec { meter: self.meter.clone(), sample_every, model: self.model }
    }
}

fn read_model(origin: &str, energy: &Fields<'_>, tree: &Node) -> Result<Option<Coefficients>, Mistake> {
    let path = ["energy".to_owned(), "model".to_owned()];
    let Some(field) = tree.at(&path) else { return Ok(None) };
    match &field.node {
        Node::Table(_) => {}
        Node::Leaf(Value::String(word)) if word == "none" => return Ok(None),
        Node::Leaf(Value::String(word)) if word == "defaults" => return Ok(Some(model::DEFAULTS)),
        other => return Err(energy.refuse("model", &other.plain().to_string(), MODELS)),
    }
    let fields = Fields::of(origin, "energy.model", Some(&field.node));
    fields.only(&["core_w", "byte_nj", "base_w"])?;
    let number = |key: &str| {
        let value = fields.number(key)?;
        value.ok_or_else(|| energy.mistake("model", &format!("{key} is missing; write {MODELS}")))
    };
    Ok(Some(Coefficients { core_w: number("core_w")?, byte_nj: number("byte_nj")?, base_w: number("base_w")? }))
}
