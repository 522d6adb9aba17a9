//! What a host's processor does besides using energy: its frequency and its temperature, where they can be read.

use crate::files;
use crate::meter::Place;
use serde::{Deserialize, Serialize};

/// The frequency and the temperature of a host's processors at an instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// The mean of all processors; `None`: the host doesn't say.
    pub frequency_hz: Option<f64>,
    /// The hottest package, in degrees Celsius; `None`: the host doesn't say.
    pub temperature_c: Option<f64>,
}

/// The drivers of processors' sensors.
const PROCESSOR_SENSORS: [&str; 4] = ["coretemp", "k10temp", "zenpower", "cpu_thermal"];

impl Conditions {
    /// Reads them.
    pub fn read(place: &Place) -> Self {
        Conditions { frequency_hz: frequency(place), temperature_c: temperature(place) }
    }

    /// What lies between two readings of one host.
    pub fn mean(self, other: Conditions) -> Conditions {
        let mean = |a: Option<f64>, b: Option<f64>| a.zip(b).map_or(a.or(b), |(a, b)| Some((a + b) / 2.0));
        Conditions {
            frequency_hz: mean(self.frequency_hz, other.frequency_hz),
            temperature_c: mean(self.temperature_c, other.temperature_c),
        }
    }
}

fn frequency(place: &Place) -> Option<f64> {
    let folder = place.sysfs.join("devices/system/cpu");
    let names = files::names(&folder).ok()?;
    let processors = names.iter().filter(|n| n.strip_prefix("cpu").is_some_and(|n| n.parse::<u32>().is_ok()));
    let khz: Vec<u64> =
        processors.filter_map(|cpu| files::number(&folder.join(cpu).join("cpufreq/scaling_cur_freq")).ok()).collect();
    (!khz.is_empty()).then(|| khz.iter().sum::<u64>() as f64 * 1e3 / khz.len() as f64)
}

fn temperature(place: &Place) -> Option<f64> {
    let zones = place.sysfs.join("class/thermal");
    let zone = |name: &String| {
        let package = files::text(&zones.join(name).join("type")).is_ok_and(|kind| kind == "x86_pkg_temp");
        package.then(|| files::number(&zones.join(name).join("temp")).ok()).flatten()
    };
    let class = place.sysfs.join("class/hwmon");
    let sensor = |name: &String| {
        let driver = files::text(&class.join(name).join("name")).unwrap_or_default();
        let first = || files::number(&class.join(name).join("temp1_input")).ok();
        PROCESSOR_SENSORS.contains(&driver.as_str()).then(first).flatten()
    };
    let zones = files::names(&zones).unwrap_or_default().iter().filter_map(zone).max();
    let milli = zones.or_else(|| files::names(&class).unwrap_or_default().iter().filter_map(sensor).max());
    milli.map(|milli| milli as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequency_and_temperature_are_read_where_they_are() {
        let tree = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = tree.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let place = Place::under(tree.path());
        assert_eq!(Conditions::read(&place), Conditions::default());
        write("devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "2000000\n");
        write("devices/system/cpu/cpu1/cpufreq/scaling_cur_freq", "3000000\n");
        write("devices/system/cpu/cpufreq/policy0/scaling_cur_freq", "9\n");
        write("class/hwmon/hwmon0/name", "nvme\n");
        write("class/hwmon/hwmon0/temp1_input", "70000\n");
        write("class/hwmon/hwmon1/name", "k10temp\n");
        write("class/hwmon/hwmon1/temp1_input", "44125\n");
        let cool = Conditions::read(&place);
        assert_eq!(cool, Conditions { frequency_hz: Some(2.5e9), temperature_c: Some(44.125) });
        write("class/thermal/thermal_zone3/type", "x86_pkg_temp\n");
        write("class/thermal/thermal_zone3/temp", "50125\n");
        assert_eq!(Conditions::read(&place).mean(cool).temperature_c, Some(47.125));
        assert_eq!(Conditions::default().mean(cool), cool);
    }
}
