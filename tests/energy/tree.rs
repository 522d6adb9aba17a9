//! A tree that looks like `/sys`, with counters that a test moves.

use std::path::PathBuf;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two steps of a moving counter.
const STEP: Duration = Duration::from_millis(2);

/// Runs the program to its end.
pub fn whimbrel(arguments: &[&str]) -> Output {
    std::process::Command::new(env!("CARGO_BIN_EXE_whimbrel")).args(arguments).output().unwrap()
}

pub struct Tree {
    folder: tempfile::TempDir,
}

impl Tree {
    pub fn new() -> Tree {
        Tree { folder: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self) -> &str {
        self.folder.path().to_str().unwrap()
    }

    fn zone(&self, number: u32) -> PathBuf {
        self.folder.path().join(format!("class/powercap/intel-rapl:{number}"))
    }

    /// Makes a package's zone.
    pub fn package(&self, number: u32, uj: u64, range_uj: u64) {
        let zone = self.zone(number);
        std::fs::create_dir_all(&zone).unwrap();
        let write = |name: &str, text: String| std::fs::write(zone.join(name), text).unwrap();
        write("name", format!("package-{number}\n"));
        write("max_energy_range_uj", format!("{range_uj}\n"));
        write("energy_uj", format!("{uj}\n"));
    }

    /// Makes what says how fast and how hot a processor is.
    pub fn conditions(&self, khz: u64, millidegrees: u64) {
        let write = |path: &str, text: String| {
            let path = self.folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", format!("{khz}\n"));
        write("class/thermal/thermal_zone2/type", "x86_pkg_temp\n".to_owned());
        write("class/thermal/thermal_zone2/temp", format!("{millidegrees}\n"));
    }

    /// Moves the counter of package 0 on by so much, again and again.
    pub fn keep_moving(&self, step_uj: u64) -> Moving {
        self.keep_moving_with(move || step_uj)
    }

    /// Moves the counter of package 0 on, again and again, by what the function says.
    pub fn keep_moving_with(&self, mut step_uj: impl FnMut() -> u64 + Send + 'static) -> Moving {
        let zone = self.zone(0);
        let number = |name: &str| std::fs::read_to_string(zone.join(name)).unwrap().trim().parse::<u64>().unwrap();
        let (mut uj, range_uj) = (number("energy_uj"), number("max_energy_range_uj"));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut moved = Moved::default();
            while !stopped.load(Ordering::SeqCst) {
                let step_uj = step_uj();
                uj = (uj + step_uj) % range_uj;
                // In one go, as the kernel's files change.
                std::fs::write(zone.join("next"), format!("{uj}\n")).unwrap();
                std::fs::rename(zone.join("next"), zone.join("energy_uj")).unwrap();
                moved.steps += 1;
                moved.uj += step_uj;
                std::thread::sleep(STEP);
            }
            moved
        });
        Moving { stop, thread }
    }
}

/// A counter that moves.
pub struct Moving {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Moved>,
}

/// How far a counter was moved.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moved {
    /// In so many steps.
    pub steps: u64,
    /// By so many microjoules.
    pub uj: u64,
}

impl Moving {
    /// Ends it; how far it came.
    pub fn stop(self) -> Moved {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}
