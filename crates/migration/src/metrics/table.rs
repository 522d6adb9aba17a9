//! The catalogue's table: one line or two a field, in the order of a row.

use super::{Better, Clock, Metric, Point};
use Better::{Larger, Neither, Smaller};
use whimbrel_model::Moment;

const fn described(name: &'static str, unit: &'static str, definition: &'static str) -> Metric {
    Metric { name, unit, between: None, clock: Clock::None, better: Neither, definition }
}

const fn amount(name: &'static str, unit: &'static str, better: Better, definition: &'static str) -> Metric {
    Metric { name, unit, between: None, clock: Clock::None, better, definition }
}

const fn time(name: &'static str, clock: Clock, better: Better, definition: &'static str) -> Metric {
    Metric { name, unit: "ns", between: None, clock, better, definition }
}

const fn span(name: &'static str, clock: Clock, from: Point, to: Point, definition: &'static str) -> Metric {
    Metric { name, unit: "ns", between: Some((from, to)), clock, better: Smaller, definition }
}

const REQUESTED: Point = Point::At(Moment::Requested);
const SETUP_DONE: Point = Point::At(Moment::SetupDone);
const PAUSE_REQUESTED: Point = Point::At(Moment::PauseRequested);
const PAUSED: Point = Point::At(Moment::Paused);
const RESUMED: Point = Point::At(Moment::Resumed);
const WHOLE: Point = Point::At(Moment::Whole);
const RELEASED: Point = Point::At(Moment::Released);
const FINISHED: Point = Point::Later(Moment::Whole, Moment::Released);

/// Every field of a row, in the row's order.
#[rustfmt::skip]
pub const METRICS: &[Metric] = &[
    described("experiment", "text", "The experiment's name."),
    described("cell", "text", "The combination of varied parameters, as `key=value` joined by a comma and a space; `all` where nothing is varied."),
    described("factors", "map", "The varied parameters of the cell and their values."),
    described("trial", "count", "The repetition of the cell, from 0. Trials of the same number have the same seed in every cell."),
    described("guest", "count", "The guest, from 0, where several migrate at the same time."),
    described("trip", "count", "The trip, from 0: 0 leads to the destination, 1 back."),
    described("attempt", "count", "The attempt at the trip, from 0. Another follows one that was aborted, as often as `guest.attempts` allows; its blocks are those that the destination still lacks."),
    described("seed", "count", "The seed from which the trial's workload and contents are made."),
    described("machine", "text", "The kind of machine."),
    described("accelerator", "text", "What executes the guest: `none` (threads), `tcg` or `kvm`; `unknown` where the move never began, or no host told. Results of different ones are not comparable."),
    described("own", "map", "What the hypervisor says of a migration of its own, as it says it; null for the engine's."),
    described("placement", "text", "Where the two hosts are: `one-host` (two processes that share processors and caches) or `two-hosts`."),
    described("workload", "text", "The workload; `brought`: what a guest of the user's own runs."),
    described("memory", "text", "The preset's name if one was given, else the schedule's."),
    described("disk", "text", "The preset's name if one was given, else the strategy's; null without a disk."),
    described("outcome", "text", "completed: the guest runs whole at the destination. aborted: it runs at the source. partial: it runs, and state stays away by design. lost: it runs nowhere, or lacks state that nobody has. undecided: both hosts keep a frozen image. failed: the trial could not be made."),
    described("reason", "text", "Why the outcome is not completed, or what went wrong after it was."),
    described("reasons", "map", "For each field that is null because it could not be measured: why."),
    described("ended_by.memory", "text", "Why pushing of memory ended: converged, round_bound, byte_bound, time_bound, rate_bound or immediate."),
    described("ended_by.disk", "text", "Why pushing of the disk ended; null without a disk."),
    described("ram_bytes", "bytes", "The guest's memory."),
    described("disk_bytes", "bytes", "The guest's disk; 0 without one."),
    described("page_size_bytes", "bytes", "The granule of memory tracking."),
    described("block_size_bytes", "bytes", "The granule of disk tracking."),
    span("total_ns", Clock::Both, REQUESTED, FINISHED, "Total migration time: from the command to the end of any dependence between the hosts."),
    span("setup_ns", Clock::Source, REQUESTED, SETUP_DONE, "Connection, negotiation, reservation of memory, arming of the tracking."),
    span("push_ns", Clock::Source, SETUP_DONE, PAUSE_REQUESTED, "The time in which state is pushed while the guest runs at the source; 0 where the pause is asked for at once."),
    span("pause_latency_ns", Clock::Source, PAUSE_REQUESTED, PAUSED, "How long the machine took to pause: the last vCPU has left guest code."),
    span("downtime_ns", Clock::Both, PAUSED, RESUMED, "The time in which the guest runs nowhere, until the first instant a vCPU may execute at the destination."),
    time("downtime_parts_ns.drain", Clock::Source, Smaller, "The part of the downtime until no guest I/O is in flight. The parts follow one another, each starts where the one before it ended, and they sum to the downtime."),
    time("downtime_parts_ns.memory", Clock::Both, Smaller, "The part until the destination has every page that was carried over."),
    time("downtime_parts_ns.disk", Clock::Both, Smaller, "The part, beyond the last page, until the destination has every block that was carried over."),
    time("downtime_parts_ns.state", Clock::Both, Smaller, "The part, beyond the last block, until the destination has taken up the device state."),
    time("downtime_parts_ns.hand_over", Clock::Both, Smaller, "The part until the source has given up the right to resume."),
    time("downtime_parts_ns.resume", Clock::Both, Smaller, "The part from the hand-over until a vCPU may execute."),
    time("predicted_downtime_ns", Clock::Source, Neither, "The downtime predicted when the pause was decided: bytes still to carry over by the bandwidth achieved, and the fixed costs of the switchover."),
    time("guest_gap_ns", Clock::Both, Smaller, "The longest silence of the guest's own heartbeat (every 200 us, in Idle too; under QEMU every 5 ms), less the longest one of the control run. Of a guest that its user brought: the longest time between two answers that a client of its service gets, at the source, at the destination or across the move."),
    time("guest_clock_lag_ns", Clock::Both, Smaller, "What the move took from the guest's own clock, where it has one (under QEMU, whose machines stop their clocks with the guest): how much less time passed by it than by the hosts' clocks from the guest's last heartbeat at the source to its first at the destination; 0 where more passed."),
    span("pull_ns", Clock::Both, RESUMED, WHOLE, "The time in which the guest runs at the destination, which still lacks state; 0 where everything was carried over."),
    span("eviction_ns", Clock::Source, REQUESTED, RELEASED, "How soon the source holds no guest state that anyone may still ask for."),
    span("memory_whole_ns", Clock::Both, REQUESTED, Point::At(Moment::MemoryWhole), "When the destination lacks no page."),
    span("disk_whole_ns", Clock::Both, REQUESTED, Point::At(Moment::DiskWhole), "When the destination lacks no block."),
    time("clock_error_ns", Clock::Both, Smaller, "The bound of the error of the measured offset between the hosts' clocks: half of the fastest round trip."),
    amount("bytes.memory_first", "bytes", Smaller, "Payload of pages sent for the first time."),
    amount("bytes.memory_again", "bytes", Smaller, "Payload of pages that had been sent before."),
    amount("bytes.disk_first", "bytes", Smaller, "Payload of blocks sent for the first time."),
    amount("bytes.disk_again", "bytes", Smaller, "Payload of blocks that had been sent before."),
    amount("bytes.control", "bytes", Smaller, "Everything else that the hosts said to each other: messages, requests, bitmaps, device state, the framing of pages and blocks."),
    amount("bytes.total", "bytes", Smaller, "The sum of the five above, both directions."),
    amount("bytes.of_which.unused", "bytes", Smaller, "Payload that the guest never used: sent, then sent again or overwritten before it was read."),
    amount("bytes.of_which.reference", "bytes", Neither, "Payload that names content held elsewhere instead of carrying it."),
    amount("bytes.of_which.offer", "bytes", Neither, "Payload of digests that were offered to find out what the destination has, and whose content had to follow."),
    described("links.from", "text", "The host that sends."),
    described("links.to", "text", "The host that receives."),
    described("links.limit_bytes_per_s", "bytes/s", "The rate set for this direction; null: unlimited."),
    amount("links.achieved_bytes_per_s", "bytes/s", Larger, "What crossed in this direction, by the time in which it was in use: with its gaps, from the first byte to the last."),
    amount("links.payload_bytes", "bytes", Smaller, "Content of pages and blocks that crossed in this direction."),
    amount("links.wire_bytes", "bytes", Smaller, "All bytes given to TCP in this direction: content, framing, messages, requests. What TCP and below add is not in it."),
    amount("pages.raw", "count", Neither, "Pages sent as they are."),
    amount("pages.zero", "count", Neither, "Pages told to be zero."),
    amount("pages.delta", "count", Neither, "Pages sent as a difference from the version sent last."),
    amount("pages.compressed", "count", Neither, "Pages sent compressed."),
    amount("pages.reference", "count", Neither, "Pages sent as the name of content held elsewhere."),
    amount("pages.skipped", "count", Neither, "Pages that a push offered and the selection let wait (a page may count more than once), and pages that never went because they were free when the guest was paused (each once)."),
    amount("blocks.pushed", "count", Neither, "Blocks that the source sent unasked."),
    amount("blocks.pulled", "count", Neither, "Blocks that the destination fetched before the guest asked."),
    amount("blocks.demanded", "count", Neither, "Blocks sent because the guest waited for them."),
    amount("blocks.zero", "count", Neither, "Blocks told to be zero; they are in one of the counts above too."),
    described("rounds.kind", "text", "memory or disk."),
    time("rounds.start_ns", Clock::Source, Neither, "When the round began, since `requested`."),
    time("rounds.ns", Clock::Source, Neither, "How long it took, until what was written in it was taken or the guest paused."),
    amount("rounds.sent_units", "count", Neither, "Pages or blocks sent in it."),
    amount("rounds.dirty_units", "count", Neither, "Distinct pages or blocks written while it went on."),
    amount("rounds.again_units", "count", Neither, "Of those sent, how many had been sent before."),
    amount("rounds.bytes", "bytes", Neither, "Payload sent in it."),
    described("rounds.limit", "bytes/s", "The rate limit that the strategy set; null: none."),
    time("rounds.predicted_ns", Clock::Source, Neither, "The downtime predicted at its end; null where nothing was predicted."),
    amount("rounds.throttle", "ratio", Neither, "The share of time taken from the guest's vCPUs at its end."),
    amount("memory_faults.count", "count", Smaller, "Faults of the guest on missing pages that sent a request."),
    amount("memory_faults.in_flight", "count", Neither, "Of these, how many pages were already on their way."),
    time("memory_faults.sum_ns", Clock::Destination, Smaller, "The time that vCPUs waited for those not in flight, summed."),
    time("memory_faults.p50_ns", Clock::Destination, Smaller, "The median wait of those not in flight."),
    time("memory_faults.p99_ns", Clock::Destination, Smaller, "The wait that 99 of 100 don't exceed."),
    time("memory_faults.max_ns", Clock::Destination, Smaller, "The longest wait."),
    amount("disk_faults.count", "count", Smaller, "Requests of the guest that waited for a missing block which was asked for."),
    amount("disk_faults.in_flight", "count", Neither, "Of these, how many blocks were already on their way."),
    time("disk_faults.sum_ns", Clock::Destination, Smaller, "The time that those not in flight waited, summed."),
    time("disk_faults.p50_ns", Clock::Destination, Smaller, "The median wait of those not in flight."),
    time("disk_faults.p99_ns", Clock::Destination, Smaller, "The wait that 99 of 100 don't exceed."),
    time("disk_faults.max_ns", Clock::Destination, Smaller, "The longest wait."),
    amount("work.baseline_units_per_s", "units/s", Larger, "The control run's work a second, over the stretch that the migration took, in units that the workload declares. Beyond the control run's end the rate of its second half goes on."),
    amount("work.push_degradation_ratio", "ratio", Smaller, "1 - work done from `setup_done` to `pause_requested` / the control run's work in as long a time from the same work on. Below 0: more was done than in the control run. Null for a stretch below 50 ms."),
    amount("work.pull_degradation_ratio", "ratio", Smaller, "The same from `resumed` to `whole`."),
    amount("work.lost_units", "units", Smaller, "The control run's work less the work done, when the migration is over."),
    time("work.delay_ns", Clock::Both, Smaller, "When the migration is over: the time that its work took less the time that the control run took for the same work."),
    time("work.throttle_ns", Clock::Source, Smaller, "Time taken from the guest's vCPUs on purpose: share by time, summed."),
    amount("service.requests", "count", Neither, "Requests of the client to the service in a guest that its user brought, from `requested` to the end, one at a time."),
    amount("service.lost_requests", "count", Smaller, "Of these, those that were not answered as they should be within 250 ms, and the one that was open when the guest left the source."),
    amount("offered.write_bytes_per_s", "bytes/s", Neither, "The rate of page writes that the workload asks for; null where it writes as fast as it can."),
    amount("offered.achieved_bytes_per_s", "bytes/s", Neither, "The rate of page writes in the control run: pages written by page size, rewrites counted."),
    amount("offered.unique_dirty_bytes_per_s", "bytes/s", Neither, "Distinct pages dirtied in an interval by page size, before the migration."),
    amount("offered.interval_ns", "ns", Neither, "The interval over which distinct pages were counted."),
    amount("offered.working_set_bytes", "bytes", Neither, "What the workload writes again and again."),
    amount("offered.rho", "ratio", Neither, "Unique dirty rate by the limit of the link to the destination, or by what it achieved where it has no limit."),
    amount("cpu.source_ns", "ns", Smaller, "Processor time of the source's host process and its guest from `requested` to the end."),
    amount("cpu.destination_ns", "ns", Smaller, "The same of the destination's."),
    described("energy.kind", "text", "measured, modelled, or null: no figure. Figures of different kinds are not comparable."),
    described("energy.why", "text", "Why there is no figure, or what is to be known of it."),
    amount("energy.source_uj", "uj", Smaller, "Gross energy of the source's host from `requested` to the later of `whole` and `released`; null where both hosts are on one package."),
    amount("energy.destination_uj", "uj", Smaller, "The same of the destination's host."),
    amount("energy.gross_uj", "uj", Smaller, "Gross energy of both hosts over the window; a shared package is counted once."),
    amount("energy.overhead_uj", "uj", Smaller, "Gross energy less the control run's power by the window: what the migration cost, over a common window."),
    amount("energy.source_overhead_uj", "uj", Smaller, "The source's part of it; null where both hosts are on one package."),
    amount("energy.destination_overhead_uj", "uj", Smaller, "The destination's part. After the guest has moved it has the workload too, and the source no longer."),
    amount("energy.same_work_overhead_uj", "uj", Smaller, "Gross energy less the control run's power by the time that the control run takes for the same work: what the migration cost, to the finish of the same operations."),
    amount("energy.overhead_per_gib_uj", "uj", Smaller, "Overhead by the guest's state: its memory, and the disk content that moved."),
    amount("energy.work_unit_uj", "uj", Smaller, "Gross energy by the work done in the window, in units that the workload declares."),
    amount("energy.control_work_unit_uj", "uj", Smaller, "The same in the control run."),
    amount("energy.idle_w", "w", Neither, "Power of both hosts while nothing ran on them, before the control run."),
    amount("energy.workload_w", "w", Neither, "Power of both hosts in the control run, with the guest at the trip's source."),
    amount("energy.after_w", "w", Neither, "Power of both hosts after the migration, until the trip's last reading."),
    amount("energy.window_ns", "ns", Neither, "The window over which energy was measured."),
    described("energy.domains", "list", "The counters that were summed."),
    described("energy.shared_package", "flag", "Whether both hosts are on one package, so that their energies can't be told apart."),
    amount("energy.source_frequency_hz", "hz", Neither, "The frequency of the source's processors: the mean of two readings, around the trip."),
    amount("energy.destination_frequency_hz", "hz", Neither, "The same of the destination's."),
    amount("energy.source_temperature_c", "c", Neither, "The temperature of the source's hottest package, likewise."),
    amount("energy.destination_temperature_c", "c", Neither, "The same of the destination's."),
    described("verify.memory", "text", "The twin check of memory: equal, different or skipped."),
    described("verify.disk", "text", "The twin check of the disk: equal, different or skipped (as without a disk)."),
    described("verify.scope", "text", "Which images were compared, and at which instants; why, if nothing was."),
    amount("verify.compared", "count", Neither, "Pages and blocks compared."),
    amount("verify.excluded", "count", Neither, "Pages and blocks that the twin says are free, so that their content doesn't matter."),
    described("verify.operations", "list", "How far each vCPU had come when the check was made for the end."),
    described("verify.first_difference", "text", "The first page, block or vCPU that differs."),
];
