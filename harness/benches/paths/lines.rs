//! The lines on moves: an idle guest's bulk copy, limited links, downtimes.

use crate::agents::{Agents, Moved, Movement};
use crate::rival::Rival;
use crate::tally::{Figure, Limit, Tally};
use crate::{Options, Outcome};
use serde_json::json;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use whimbrel_migration::commands::LinkSpec;
use whimbrel_model::ByteRate;
use whimbrel_wire::Bucket;
use whimbrel_wire::bucket::UNLIMITED_CHUNK_BYTES;
use whimbrel_wire::netns::{End, Namespaces, available, remove_stale};

const MIB: u64 = 1 << 20;
const GB: f64 = 1e9;
const PREFIX: &str = "wbench";

/// Trips, and copies, of which a turn of a rate takes the median.
const TRIPS: u32 = 3;

fn shaped(rate: Option<f64>, delay_ns: u64) -> LinkSpec {
    LinkSpec { egress_bytes_per_s: rate, ingress_bytes_per_s: None, delay_ns, path_bytes_per_s: rate }
}

/// One round of both without counting it, then so many pairs; the rivals take turns at going first.
fn alternate(
    pairs: usize,
    mut ours: impl FnMut() -> Result<f64, String>,
    mut bare: impl FnMut() -> Result<f64, String>,
) -> Result<Vec<(f64, f64)>, String> {
    ours()?;
    bare()?;
    let mut found = Vec::new();
    for turn in 0..pairs {
        found.push(if turn % 2 == 0 {
            let ours = ours()?;
            (ours, bare()?)
        } else {
            let bare = bare()?;
            (ours()?, bare)
        });
    }
    Ok(found)
}

/// An idle guest's bulk copy against memory over TCP without a protocol.
pub fn bulk_tcp(options: &Options, tally: &mut Tally) -> Outcome {
    let ram_bytes = if options.quick { 64 * MIB } else { 256 * MIB };
    let agents = Agents::start(None)?;
    let mut rival = Rival::start(ram_bytes, UNLIMITED_CHUNK_BYTES, [&[], &[]], "127.0.0.1")?;
    let movement = Movement::idle(ram_bytes, LinkSpec::default());
    let ours = || agents.median_of(&movement, TRIPS, |moved| Ok(moved.copy_rate()? / GB));
    let pairs = alternate(options.pairs(9), ours, || Ok(rival.copy(TRIPS)? / GB))?;
    tally.enter(&Figure {
        name: "bulk copy of an idle guest / bare TCP",
        unit: "GB/s",
        pairs: &pairs,
        limit: Limit::Least(0.90),
    });
    Ok(())
}

/// The same against iperf3, one stream with its own defaults.
pub fn bulk_iperf3(options: &Options, tally: &mut Tally) -> Outcome {
    let ram_bytes = if options.quick { 64 * MIB } else { 256 * MIB };
    let server = Iperf::start()?;
    let agents = Agents::start(None)?;
    let movement = Movement::idle(ram_bytes, LinkSpec::default());
    let ours = || agents.median_of(&movement, 1, |moved| Ok(moved.copy_rate()? / GB));
    let pairs = alternate(options.pairs(9), ours, || Ok(server.measure(ram_bytes)? / GB))?;
    tally.enter(&Figure {
        name: "bulk copy of an idle guest / iperf3",
        unit: "GB/s",
        pairs: &pairs,
        limit: Limit::Least(1.1),
    });
    Ok(())
}

/// iperf3's server.
struct Iperf {
    child: Child,
    port: u16,
}

impl Drop for Iperf {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Iperf {
    fn start() -> Result<Iperf, String> {
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).map_err(|e| e.to_string())?;
        let port = port.port();
        let mut command = Command::new("iperf3");
        command.args(["--server", "--bind", "127.0.0.1", "--port", &port.to_string(), "--forceflush"]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut child = child.map_err(|e| format!("iperf3 can't be started: {e}"))?;
        let output = child.stdout.take().ok_or("iperf3 has no output")?;
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(output));
        let listens = lines.by_ref().map_while(Result::ok).any(|line| line.contains("listening"));
        // What it says later must go somewhere.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        let server = Iperf { child, port };
        if listens { Ok(server) } else { Err("iperf3 does not listen".to_owned()) }
    }

    /// Bytes a second at the receiver.
    fn measure(&self, bytes: u64) -> Result<f64, String> {
        let arguments = ["--client", "127.0.0.1", "--json", "--port", &self.port.to_string()].map(str::to_owned);
        let output = Command::new("iperf3").args(arguments).arg("--bytes").arg(bytes.to_string()).output();
        let said: serde_json::Value =
            serde_json::from_slice(&output.map_err(|e| e.to_string())?.stdout).map_err(|e| format!("iperf3: {e}"))?;
        let rate = said["end"]["sum_received"]["bits_per_second"].as_f64();
        rate.map(|bits| bits / 8.0).ok_or_else(|| format!("iperf3 gave no rate: {}", said["error"]))
    }
}

/// A limited link against the rate that was set.
pub fn limited(options: &Options, tally: &mut Tally) -> Outcome {
    let agents = Agents::start(None)?;
    for (mbit, mib) in [(200.0, 48), (1000.0, 192)] {
        let rate = mbit * 125e3;
        let credit = Bucket::new(Some(ByteRate(rate))).burst_bytes() as f64;
        let movement = Movement::idle(if options.quick { mib / 4 } else { mib } * MIB, shaped(Some(rate), 0));
        // The first burst comes for free: without it the figure would be flattered.
        let share = 1.0 - credit / movement.ram_bytes as f64;
        let moved = agents.moved(&movement, options.pairs(3) as u32)?;
        let pair = |moved: &Moved| Ok((moved.copy_rate()? * share / 1e6, rate / 1e6));
        let pairs: Vec<(f64, f64)> = moved.iter().map(pair).collect::<Result<_, String>>()?;
        let name = format!("bulk copy on {mbit} Mbit/s / the rate that was set");
        tally.enter(&Figure { name: &name, unit: "MB/s", pairs: &pairs, limit: Limit::Least(0.98) });
    }
    Ok(())
}

/// A link that the kernel limits, against bare TCP in the same namespaces.
pub fn netns(options: &Options, tally: &mut Tally) -> Outcome {
    available().map_err(|e| e.to_string())?;
    remove_stale(PREFIX).map_err(|e| e.to_string())?;
    let made = Namespaces::create(Some(ByteRate(125e6)), PREFIX).map_err(|e| e.to_string())?;
    let namespaces = Arc::new(made);
    let ram_bytes = if options.quick { 32 * MIB } else { 128 * MIB };
    let agents = Agents::start(Some(&namespaces))?;
    let prefixes = [End::Source, End::Destination].map(|end| namespaces.command_prefix(end));
    let host = End::Destination.address().to_string();
    let mut rival = Rival::start(ram_bytes, UNLIMITED_CHUNK_BYTES, [&prefixes[0], &prefixes[1]], &host)?;
    let movement = Movement::idle(ram_bytes, LinkSpec::default());
    let ours = || agents.median_of(&movement, 1, |moved| Ok(moved.copy_rate()? / 1e6));
    let pairs = alternate(options.pairs(4), ours, || Ok(rival.copy(1)? / 1e6))?;
    tally.enter(&Figure {
        name: "bulk copy in namespaces at 1 Gbit/s / bare TCP",
        unit: "MB/s",
        pairs: &pairs,
        limit: Limit::Least(0.97),
    });
    Ok(())
}

/// The downtime of stop-and-copy against what its bytes and the link make of it.
pub fn downtime(options: &Options, tally: &mut Tally) -> Outcome {
    let agents = Agents::start(None)?;
    for (mbit, delay_ms) in [(1000.0, 0), (1000.0, 2)] {
        let link = shaped(Some(mbit * 125e3), delay_ms * 1_000_000);
        let movement = Movement::idle(if options.quick { 16 } else { 64 } * MIB, link);
        let mut pairs = Vec::new();
        for moved in agents.moved(&movement, options.pairs(7) as u32)? {
            // Both hosts delay what they send: a round trip is twice the delay.
            let round_trip_s = 2.0 * delay_ms as f64 / 1e3;
            let bound = movement.ram_bytes as f64 / moved.copy_rate()? + 2.0 * round_trip_s + 5e-3;
            pairs.push((downtime_s(&moved)? * 1e3, bound * 1e3));
        }
        let name = format!("stop-and-copy, {delay_ms} ms delay: downtime / bound");
        tally.enter(&Figure { name: &name, unit: "ms", pairs: &pairs, limit: Limit::Most(1.0) });
    }
    Ok(())
}

/// The downtime that QEMU's rule predicted against the one that was had: the error, and how much of it is allowed.
pub fn predicted(options: &Options, tally: &mut Tally) -> Outcome {
    let agents = Agents::start(None)?;
    for rate in ["5 MiB/s", "40 MiB/s"] {
        let movement = Movement {
            workload: json!({ "pattern": "sweep", "working_set": "16 MiB", "rate": rate, "content": "random" }),
            memory: json!({ "preset": "qemu" }),
            settle: Duration::from_millis(200),
            ..Movement::idle(64 * MIB, shaped(Some(62.5e6), 0))
        };
        let (mut pairs, mut words) = (Vec::new(), Vec::new());
        for moved in agents.moved(&movement, options.pairs(4) as u32)? {
            let said = moved.report.predicted_downtime_ns.ok_or("no downtime was predicted")? as f64 / 1e6;
            let had = downtime_s(&moved)? * 1e3;
            pairs.push(((said - had).abs(), (had * 0.1).max(2.0)));
            words.push(format!("{said:.1} / {had:.1}"));
        }
        let name = format!("qemu, {rate}: |predicted - had| / allowed");
        tally.enter(&Figure { name: &name, unit: "ms", pairs: &pairs, limit: Limit::Most(1.0) });
        tally.note("predicted / had, ms", &words.join(", "));
    }
    Ok(())
}

fn downtime_s(moved: &Moved) -> Result<f64, String> {
    moved.report.downtime_ns.map(|ns| ns as f64 / 1e9).ok_or_else(|| "the downtime is not known".to_owned())
}
