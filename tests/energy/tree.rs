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

    /// Moves the counter of package 0 on by so much, again and again.
    pub fn keep_moving(&self, step_uj: u64) -> Moving {
        let zone = self.zone(0);
        let number = |name: &str| std::fs::read_to_string(zone.join(name)).unwrap().trim().parse::<u64>().unwrap();
        let (mut uj, range_uj) = (number("energy_uj"), number("max_energy_range_uj"));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut steps = 0;
            while !stopped.load(Ordering::SeqCst) {
                uj = (uj + step_uj) % range_uj;
                // In one go, as the kernel's files change.
                std::fs::write(zone.join("next"), format!("{uj}\n")).unwrap();
                std::fs::rename(zone.join("next"), zone.join("energy_uj")).unwrap();
                steps += 1;
                std::thread::sleep(STEP);
            }
            steps
        });
        Moving { stop, thread }
    }
}

/// A counter that moves.
pub struct Moving {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Moving {
    /// Ends it; how many steps it made.
    pub fn stop(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}
