//! What a move of a large guest takes of each agent's own memory, guest RAM aside.

use crate::agents::{Agents, Movement};
use crate::tally::{Figure, Limit, Tally};
use crate::{Options, Outcome};
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use whimbrel_migration::commands::LinkSpec;

const MIB: f64 = (1 << 20) as f64;

/// What an agent may take for itself.
const ALLOWED_MIB: f64 = 64.0;

/// The most private memory that each process has while a guest is made, moved and looked at. Guest RAM is a memfd, which
/// the kernel counts as shared, not as anonymous.
pub fn own_memory(options: &Options, tally: &mut Tally) -> Outcome {
    let ram_mib: u64 = if options.big { 4096 } else { 128 };
    // Two guests' worth of RAM: one on each host.
    let available = meminfo_mib("MemAvailable:").ok_or("/proc/meminfo can't be read")?;
    if available < 2.2 * ram_mib as f64 {
        return Err(format!("{ram_mib} MiB on two hosts don't fit into {available:.0} MiB"));
    }
    let agents = Agents::start(None)?;
    // Every page is written while it moves, so that all sets and queues are as large as they get.
    let movement = Movement {
        workload: serde_json::json!({ "use": "memory-intensive", "pattern": "uniform", "content": "random" }),
        memory: serde_json::json!({ "preset": "xen" }),
        settle: Duration::from_millis(100),
        ..Movement::idle(ram_mib << 20, LinkSpec::default())
    };
    let over = AtomicBool::new(false);
    let most = std::thread::scope(|scope| {
        let watched = scope.spawn(|| watch(&agents.children, &over));
        let moved = agents.moved(&movement, 1);
        over.store(true, Ordering::Relaxed);
        let most = watched.join().map_err(|_| "the sampler panicked".to_owned())?;
        moved.map(|_| most)
    })?;
    for (side, bytes) in ["source", "destination"].into_iter().zip(most) {
        let bytes = bytes.ok_or_else(|| format!("the memory of the {side} can't be read"))?;
        let name = format!("own memory of the {side}, guest of {ram_mib} MiB / 64 MiB");
        let pairs = [(bytes / MIB, ALLOWED_MIB)];
        tally.enter(&Figure { name: &name, unit: "MiB", pairs: &pairs, limit: Limit::Most(1.0) });
    }
    if !options.big {
        tally.note("own memory", "of a guest of 4 GiB with --big, which takes 8 GiB of memory");
    }
    Ok(())
}

/// Reads both processes' anonymous memory until `over`, in bytes: the most of each.
fn watch(children: &[Child; 2], over: &AtomicBool) -> [Option<f64>; 2] {
    let mut most = [None; 2];
    while !over.load(Ordering::Relaxed) {
        for (child, most) in children.iter().zip(&mut most) {
            *most = anonymous_bytes(child.id()).into_iter().chain(*most).reduce(f64::max);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    most
}

fn anonymous_bytes(process: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    Some(kib(&status, "RssAnon:")? * 1024.0)
}

fn meminfo_mib(field: &str) -> Option<f64> {
    Some(kib(&std::fs::read_to_string("/proc/meminfo").ok()?, field)? / 1024.0)
}

fn kib(text: &str, field: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(field))?.split_whitespace().next()?.parse().ok()
}
