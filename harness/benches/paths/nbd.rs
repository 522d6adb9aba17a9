//! Our NBD server beside nbdkit's file plugin and qemu-nbd: the same file in the page cache, the same fio, in turns. Beside
//! them, for reads, a server that has no file and checks nothing, for what the client can do; what each server spends on a request; and what
//! other programs took meanwhile, which says how quiet the host was. For reads nbdcopy too, which does less for a request
//! than fio does, and so waits more for the server.

use crate::agents::PROGRAM;
use crate::bare_nbd;
use crate::tally::{Figure, Limit, Tally, interval, median};
use crate::{Options, Outcome};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const FILE_MIB: usize = 256;

/// How long fio runs in a turn.
const TURN: Duration = Duration::from_millis(300);

/// The fewest turns, and the most; and how narrow the interval of each median ratio has to be, as a part of its middle, for
/// there to be no more of them.
const TURNS: [usize; 2] = [12, 36];
const NARROW: f64 = 0.15;

/// What the lower end of the median ratio's interval is to be at least, whatever is wanted of the median.
const SURELY: f64 = 0.95;

/// What ours is to have at least of what a server has that does nothing.
const OF_THE_BARE: f64 = 0.9;

/// How long a server may take until it answers.
const PATIENCE: Duration = Duration::from_secs(5);

/// What fio does.
#[derive(Clone, Copy)]
struct Job {
    /// fio's name for it (a mix is of 70 reads to 30 writes), or [`COPY`].
    kind: &'static str,
    /// Bytes a request.
    bytes: u64,
    /// Requests at once, a connection.
    depth: u32,
    connections: u32,
    /// The least ratio wanted.
    wanted: f64,
}

const fn job(kind: &'static str, bytes: u64, depth: u32, connections: u32, wanted: f64) -> Job {
    Job { kind, bytes, depth, connections, wanted }
}

impl Job {
    /// The only ones that the bare server answers.
    fn reads(self) -> bool {
        ["randread", "read", COPY].contains(&self.kind)
    }

    /// What the person calls it: `randread-32x4` is of depth 32 on four connections.
    fn name(self) -> String {
        let many = if self.connections > 1 { format!("x{}", self.connections) } else { String::new() };
        format!("{}-{}{many}", self.kind, self.depth)
    }
}

/// The whole file read in order by nbdcopy, to nowhere.
const COPY: &str = "copy";

const JOBS: [Job; 20] = [
    job("randread", 4096, 1, 1, 1.0),
    job("randwrite", 4096, 1, 1, 1.0),
    job("randrw", 4096, 1, 1, 1.0),
    job("randread", 4096, 32, 1, 1.5),
    job("randwrite", 4096, 32, 1, 1.5),
    job("randrw", 4096, 32, 1, 1.5),
    job("randread", 4096, 128, 1, 1.5),
    job("randwrite", 4096, 128, 1, 1.5),
    job("randrw", 4096, 128, 1, 1.5),
    job("randread", 4096, 32, 4, 1.5),
    job("randwrite", 4096, 32, 4, 1.5),
    job("randrw", 4096, 32, 4, 1.5),
    job("read", 1 << 20, 4, 1, 1.0),
    job("write", 1 << 20, 4, 1, 1.0),
    job("read", 1 << 20, 4, 4, 1.0),
    job("write", 1 << 20, 4, 4, 1.0),
    job(COPY, 4096, 32, 1, 1.5),
    job(COPY, 4096, 128, 1, 1.5),
    job(COPY, 4096, 32, 4, 1.5),
    job(COPY, 1 << 20, 4, 1, 1.0),
];

/// The server that does the least: reads alone.
const BARE: &str = "bare";

/// What one job did.
struct Measured {
    bytes_per_s: f64,
    /// The server's processor time a request.
    server_cpu_us: f64,
    /// How busy fio was with it; a job of one connection has one core.
    client_ratio: Option<f64>,
}

/// A server of the file, ended when it is dropped.
struct Server {
    name: &'static str,
    child: Child,
    socket: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(name: &'static str, image: &Path, folder: &Path) -> Result<Server, String> {
        let socket = folder.join(format!("{name}.sock"));
        let mut command = match name {
            "whimbrel" => {
                let mut command = Command::new(PROGRAM);
                command.args(["nbd", "serve"]).arg(image).arg("--listen").arg(format!("unix:{}", socket.display()));
                command
            }
            "nbdkit" => {
                let mut command = Command::new("nbdkit");
                command.arg("--foreground").arg("--unix").arg(&socket).arg("file").arg(image);
                command
            }
            BARE => {
                let program = std::env::current_exe().map_err(|e| format!("this program's own path: {e}"))?;
                let mut command = Command::new(program);
                command.arg(bare_nbd::FLAG).arg(&socket).arg((FILE_MIB << 20).to_string());
                command
            }
            _ => {
                let mut command = Command::new("qemu-nbd");
                command.args(["--format=raw", "--persistent", "--shared=16", "--cache=writeback"]);
                command.arg("--socket").arg(&socket).arg(image);
                command
            }
        };
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.map_err(|e| format!("{name} can't be started: {e}"))?;
        let server = Server { name, child, socket };
        let start = Instant::now();
        while UnixStream::connect(&server.socket).is_err() {
            if start.elapsed() > PATIENCE {
                return Err(format!("{name} does not listen"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    /// Processor time of the server until now, in seconds.
    fn cpu_s(&self) -> Result<f64, String> {
        // The name may hold spaces; the numbers follow its bracket, user and system time at 11 and 12.
        let stat = read(&format!("/proc/{}/stat", self.child.id()))?;
        ticks_s(stat.rsplit(')').next().unwrap_or_default(), &[11, 12])
    }

    fn measure(&self, job: Job, time: Duration) -> Result<Measured, String> {
        if job.kind == COPY { self.copied(job) } else { self.under_fio(job, time) }
    }

    fn copied(&self, job: Job) -> Result<Measured, String> {
        let (before_s, start) = (self.cpu_s()?, Instant::now());
        let status = Command::new("nbdcopy")
            .arg(format!("--connections={}", job.connections))
            .arg(format!("--requests={}", job.depth))
            .arg(format!("--request-size={}", job.bytes))
            .args([&format!("nbd+unix:///?socket={}", self.socket.display()), "null:"])
            .status()
            .map_err(|e| format!("nbdcopy can't be started: {e}"))?;
        if !status.success() {
            return Err(format!("nbdcopy on {} failed", self.name));
        }
        let bytes = (FILE_MIB << 20) as f64;
        let server_cpu_us = (self.cpu_s()? - before_s) * 1e6 / (bytes / job.bytes as f64);
        Ok(Measured { bytes_per_s: bytes / start.elapsed().as_secs_f64(), server_cpu_us, client_ratio: None })
    }

    fn under_fio(&self, job: Job, time: Duration) -> Result<Measured, String> {
        let before_s = self.cpu_s()?;
        let output = Command::new("fio")
            .args(["--name=bench", "--ioengine=nbd", "--output-format=json", "--time_based", "--randrepeat=1"])
            .args(["--group_reporting", "--rwmixread=70"])
            .arg(format!("--uri=nbd+unix:///?socket={}", self.socket.display()))
            .arg(format!("--rw={}", job.kind))
            .arg(format!("--bs={}", job.bytes))
            .arg(format!("--iodepth={}", job.depth))
            .arg(format!("--numjobs={}", job.connections))
            .arg(format!("--runtime={}ms", time.as_millis()))
            .output()
            .map_err(|e| format!("fio can't be started: {e}"))?;
        // Some builds of fio say something before the JSON begins.
        let text = String::from_utf8_lossy(&output.stdout);
        let said: serde_json::Value = serde_json::from_str(text.get(text.find('{').unwrap_or(0)..).unwrap_or_default())
            .map_err(|e| format!("fio on {}: {e}: {}", self.name, String::from_utf8_lossy(&output.stderr)))?;
        let said = &said["jobs"][0];
        let both = |key: &str| said["read"][key].as_f64().unwrap_or(0.0) + said["write"][key].as_f64().unwrap_or(0.0);
        let (bytes_per_s, requests) = (both("bw_bytes"), both("total_ios"));
        if bytes_per_s <= 0.0 {
            return Err(format!("fio on {} moved nothing: {}", self.name, said["error"]));
        }
        let client_ratio = said["usr_cpu"].as_f64().zip(said["sys_cpu"].as_f64()).map(|(user, system)| user + system);
        Ok(Measured { bytes_per_s, server_cpu_us: (self.cpu_s()? - before_s) * 1e6 / requests, client_ratio })
    }
}

fn read(path: &str) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))
}

/// The sum of these fields, which count ticks, in seconds.
fn ticks_s(text: &str, fields: &[usize]) -> Result<f64, String> {
    let all: Vec<&str> = text.split_whitespace().collect();
    let ticks = fields.iter().map(|at| all.get(*at).and_then(|field| field.parse::<f64>().ok()));
    let ticks: f64 = ticks.sum::<Option<f64>>().ok_or_else(|| format!("no ticks in {text:?}"))?;
    Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
}

/// Processor time of everything on this host that is neither the servers nor what this program started and waited for, in
/// seconds.
fn others_s(servers: &[Server]) -> Result<f64, String> {
    let host = read("/proc/stat")?;
    let mut others = ticks_s(host.lines().next().unwrap_or_default(), &[1, 2, 3, 6, 7])?;
    // This program's own time and that of its children, user and system.
    let own = read("/proc/self/stat")?;
    others -= ticks_s(own.rsplit(')').next().unwrap_or_default(), &[11, 12, 13, 14])?;
    for server in servers {
        others -= server.cpu_s()?;
    }
    Ok(others)
}

/// Every job, or those that were asked for, on all servers.
pub fn nbd(options: &Options, tally: &mut Tally) -> Outcome {
    let names: Vec<String> = JOBS.map(Job::name).to_vec();
    if let Some(unknown) = options.jobs.iter().find(|job| !names.contains(job)) {
        return Err(format!("no job is called {unknown}; there are {}", names.join(", ")));
    }
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let image = folder.path().join("disk.raw");
    fill(&image).map_err(|e| format!("{}: {e}", image.display()))?;
    let mut servers = vec![Server::start("whimbrel", &image, folder.path())?];
    for name in ["nbdkit", "qemu-nbd", BARE] {
        match Server::start(name, &image, folder.path()) {
            Ok(server) => servers.push(server),
            Err(why) => tally.skip(&format!("nbd / {name}"), &why),
        }
    }
    for job in JOBS {
        if !options.jobs.is_empty() && !options.jobs.contains(&job.name()) {
            continue;
        }
        let mut measured: Vec<Vec<Measured>> = servers.iter().map(|_| Vec::new()).collect();
        let (start, before_s) = (Instant::now(), others_s(&servers)?);
        let [fewest, most] = TURNS.map(|turns| options.pairs(turns));
        for turn in 0..most {
            if turn >= fewest && turn.is_multiple_of(servers.len()) && is_settled(&servers, &measured) {
                break;
            }
            // Who begins changes from turn to turn, and so does who comes directly before whom.
            let mut order: Vec<usize> = (0..servers.len()).collect();
            order.rotate_left(turn % servers.len());
            if turn / servers.len() % 2 == 1 {
                order.reverse();
            }
            for at in order.into_iter().filter(|at| job.reads() || servers[*at].name != BARE) {
                measured[at].push(servers[at].measure(job, TURN)?);
            }
        }
        let others = (others_s(&servers)? - before_s) / start.elapsed().as_secs_f64();
        enter(tally, job, &servers, &measured, others);
    }
    Ok(())
}

/// (ours, theirs) of each turn with a rival, in MB/s.
fn pairs(measured: &[Vec<Measured>], rival: usize) -> Vec<(f64, f64)> {
    between(&measured[0], &measured[rival])
}

fn between(one: &[Measured], other: &[Measured]) -> Vec<(f64, f64)> {
    let mega = |measured: &Measured| measured.bytes_per_s / 1e6;
    one.iter().zip(other).map(|(one, other)| (mega(one), mega(other))).collect()
}

/// The servers that ours is compared with.
fn rivals(servers: &[Server]) -> impl Iterator<Item = usize> {
    (0..servers.len()).filter(|at| !["whimbrel", BARE].contains(&servers[*at].name))
}

fn is_settled(servers: &[Server], measured: &[Vec<Measured>]) -> bool {
    let narrow = |(low, high): (f64, f64)| high - low <= NARROW * (low + high) / 2.0;
    rivals(servers).all(|rival| interval(&pairs(measured, rival)).is_some_and(narrow))
}

/// `others` is how many processors other programs took meanwhile.
fn enter(tally: &mut Tally, job: Job, servers: &[Server], measured: &[Vec<Measured>], others: f64) {
    let Job { kind, bytes, depth, connections, wanted } = job;
    let many = if connections > 1 { format!(" x {connections}") } else { String::new() };
    let title = format!("nbd {kind} {} KiB, depth {depth}{many}", bytes >> 10);
    let of = |list: &[Measured], figure: fn(&Measured) -> f64| median(&list.iter().map(figure).collect::<Vec<_>>());
    let told = |name: &str, list: &[Measured]| {
        let (rate, cpu) = (of(list, |m| m.bytes_per_s) / 1e6, of(list, |m| m.server_cpu_us));
        let fio = list[0].client_ratio.map(|_| format!(", fio {:.0} %", of(list, |m| m.client_ratio.unwrap_or(0.0))));
        format!("{name} {rate:.0} MB/s, {cpu:.1} us of CPU a request{}", fio.unwrap_or_default())
    };
    for rival in rivals(servers) {
        let name = format!("{title} / {}", servers[rival].name);
        let limit = Limit::Surely { least: wanted, low: SURELY };
        tally.enter(&Figure { name: &name, unit: "MB/s", pairs: &pairs(measured, rival), limit });
    }
    if let Some(bare) = servers.iter().position(|server| server.name == BARE && job.reads()) {
        let pairs_with = |one: usize| between(&measured[one], &measured[bare]);
        let (name, limit) = (format!("{title} / a bare server"), Limit::Least(OF_THE_BARE));
        tally.enter(&Figure { name: &name, unit: "MB/s", pairs: &pairs_with(0), limit });
        // About what a server could have, with this client.
        for rival in rivals(servers) {
            let pairs: Vec<(f64, f64)> = pairs_with(rival).into_iter().map(|(theirs, most)| (most, theirs)).collect();
            let ratio = median(&pairs.iter().map(|(most, theirs)| most / theirs).collect::<Vec<_>>());
            let range = interval(&pairs).map(|(low, high)| format!(" ({low:.2} to {high:.2})")).unwrap_or_default();
            tally.note(&title, &format!("a bare server / {}: {ratio:.2}{range}", servers[rival].name));
        }
    }
    let all = servers.iter().zip(measured).filter(|(_, list)| !list.is_empty());
    let mut notes: Vec<String> = all.map(|(server, list)| told(server.name, list)).collect();
    notes.push(format!("other programs took {others:.2} processors"));
    tally.note(&title, &notes.join("; "));
}

/// A file without holes, all of it in the page cache.
fn fill(image: &Path) -> std::io::Result<()> {
    let mut file = std::fs::File::create(image)?;
    let chunk: Vec<u8> = (0..1 << 20).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for _ in 0..FILE_MIB {
        file.write_all(&chunk)?;
    }
    file.sync_all()
}
