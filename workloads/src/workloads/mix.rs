//! `mix`: several workloads at once, each on vCPUs, pages and sectors of its own.

use crate::workload::{BuildContext, Offered, Streams, Workload, refuse};
use crate::workloads::WORKLOADS;
use serde_json::Value;
use std::collections::BTreeMap;
use whimbrel_model::registry::{Entry, Kind, Parameter, ParameterError, Parameters};
use whimbrel_model::rng::derive;
use whimbrel_model::stream::Stream;

const NAME: &str = "mix";

/// The member's entry.
pub const ENTRY: Entry<Workload> = Entry {
    name: NAME,
    summary: "several workloads at once: vCPU i runs part i modulo the number of parts, of which there are no more than vCPUs",
    parameters: PARAMETERS,
    source: "Whimbrel",
    build: Workload { streams, offered, unit: "units of the parts", content: "random" },
};

const PARAMETERS: &[Parameter] = &[Parameter {
    name: "parts",
    summary: "names of workloads, or tables with `use` and the workload's keys; a part has RAM and disk by its vCPUs",
    kind: Kind::Any,
    default: Some(r#"["memory-intensive", "idle-desktop"]"#),
}];

/// A part, with its own vCPUs.
struct Part {
    entry: &'static Entry<Workload>,
    parameters: Parameters,
    context: BuildContext,
}

fn parts(parameters: &Parameters, context: &BuildContext) -> Result<Vec<Part>, ParameterError> {
    let accepted = "a list of workloads' names or tables, such as [\"idle-desktop\", { use = \"memory-intensive\" }]";
    let given = parameters.any("parts").and_then(Value::as_array).filter(|list| !list.is_empty());
    let given = given.ok_or_else(|| refuse("parts", "what is written", accepted))?;
    let vcpus = u64::from(context.shape.vcpus);
    if (given.len() as u64) > vcpus {
        let accepted = format!("at most {vcpus} parts, one a vCPU, or guest.vcpus = {}", given.len());
        return Err(refuse("parts", format!("{} parts", given.len()), &accepted));
    }
    let mut read = Vec::new();
    let mut vcpus_before = 0;
    for (index, value) in given.iter().enumerate() {
        let (name, keys) = split(value).ok_or_else(|| refuse("parts", value, accepted))?;
        if name == NAME {
            return Err(refuse("parts", value, "workloads other than mix"));
        }
        let entry = WORKLOADS.find(&name)?;
        let parameters = Parameters::read(entry.parameters, &keys)?;
        let own = (0..vcpus).filter(|vcpu| vcpu % given.len() as u64 == index as u64).count() as u64;
        let context = part_context(context, vcpus_before, own, derive(context.seed, index as u64));
        read.push(Part { entry, parameters, context });
        vcpus_before += own;
    }
    Ok(read)
}

/// A part's name and its keys.
fn split(value: &Value) -> Option<(String, BTreeMap<String, Value>)> {
    match value {
        Value::String(name) => Some((name.clone(), BTreeMap::new())),
        Value::Object(table) => {
            let name = table.get("use")?.as_str()?.to_owned();
            let keys = table.iter().filter(|(key, _)| *key != "use").map(|(k, v)| (k.clone(), v.clone()));
            Some((name, keys.collect()))
        }
        _ => None,
    }
}

/// The pages and sectors of `own` vCPUs that come after `before` others.
fn part_context(whole: &BuildContext, before: u64, own: u64, seed: u64) -> BuildContext {
    let first = whole.share(before as u32);
    let last = whole.share((before + own - 1) as u32);
    let (first_sector, end_sector) = (first.sectors.start, last.sectors.end);
    let mut shape = whole.shape;
    shape.vcpus = own as u32;
    shape.pages = last.pages.end - first.pages.start;
    shape.sectors = end_sector - first_sector;
    let filled_end = (whole.first_sector + whole.shape.filled_sectors).clamp(first_sector, end_sector);
    shape.filled_sectors = filled_end - first_sector;
    BuildContext { shape, seed, first_page: first.pages.start, first_sector }
}

fn streams(parameters: &Parameters, context: &BuildContext) -> Result<Streams, ParameterError> {
    let mut made: Vec<std::vec::IntoIter<Box<dyn Stream>>> = Vec::new();
    for part in parts(parameters, context)? {
        made.push((part.entry.build.streams)(&part.parameters, &part.context)?.into_iter());
    }
    let parts = made.len();
    let take = |vcpu: u32| made[vcpu as usize % parts].next().expect("each part has a stream for each of its vCPUs");
    Ok((0..context.shape.vcpus).map(take).collect())
}

fn offered(parameters: &Parameters, context: &BuildContext) -> Offered {
    let Ok(parts) = parts(parameters, context) else { return Offered::default() };
    let each: Vec<Offered> = parts.iter().map(|p| (p.entry.build.offered)(&p.parameters, &p.context)).collect();
    let sum = |of: fn(&Offered) -> Option<f64>| each.iter().map(of).sum::<Option<f64>>();
    Offered {
        write_bytes_per_s: sum(|o| o.write_bytes_per_s),
        working_set_bytes: each.iter().map(|o| o.working_set_bytes).sum(),
        disk_write_bytes_per_s: sum(|o| o.disk_write_bytes_per_s),
    }
}
