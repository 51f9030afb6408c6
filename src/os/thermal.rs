//! How warm the machine is, and from what heat of the processor on that is slowed down.

use super::tree::Tree;
use crate::base::limits::N_TRIP_MAX;

/// Where the kernel keeps its sensors.
const ZONES: &str = "/sys/class/thermal";
/// The sensors of processors have one of these in their names: `cpu-thermal` (Raspberry Pi, Jetson), `soc-thermal`,
/// `bigcore0-thermal`, `package-thermal` (Rockchip), `x86_pkg_temp`, `tj-thermal`. Batteries and radios do not count.
const OF_PROCESSORS: [&str; 6] = ["cpu", "soc", "core", "pkg", "package", "tj-"];
/// Thousandths of a degree that a sensor or a limit may be: others mean that there is none.
const PLAUSIBLE: std::ops::RangeInclusive<i32> = 1_000..=150_000;
/// No processor is slowed down below this; drivers put small numbers where they know no limit.
const TRIP_MIN: i32 = 45_000;

/// A sensor of the processor. Temperatures are thousandths of a degree Celsius.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    folder: String,
    /// From here on the kernel slows the processor down: its lowest passive trip point.
    pub passive: Option<i32>,
    /// From here on it turns the machine off.
    pub critical: Option<i32>,
}

impl Zone {
    /// The processor's sensors.
    #[must_use]
    pub fn all(tree: &Tree) -> Vec<Self> {
        let zones = tree.names(ZONES).into_iter().filter(|name| name.starts_with("thermal_zone"));
        zones.filter_map(|name| Self::find(tree, format!("{ZONES}/{name}"))).collect()
    }

    fn find(tree: &Tree, folder: String) -> Option<Self> {
        let kind = tree.text(&format!("{folder}/type"))?.trim().to_ascii_lowercase();
        if !OF_PROCESSORS.iter().any(|word| kind.contains(word)) {
            return None;
        }
        let mut zone = Self { folder, passive: None, critical: None };
        for i in 0..N_TRIP_MAX {
            let of = |what: &str| tree.text(&format!("{}/trip_point_{i}_{what}", zone.folder));
            let Some(kind) = of("type") else { break };
            let at = of("temp").and_then(|text| text.trim().parse::<i32>().ok());
            let Some(at) = at.filter(|at| PLAUSIBLE.contains(at) && *at >= TRIP_MIN) else { continue };
            let lowest = match kind.trim() {
                "passive" => &mut zone.passive,
                "hot" | "critical" => &mut zone.critical,
                // Fans begin there.
                _ => continue,
            };
            *lowest = Some(lowest.map_or(at, |other| other.min(at)));
        }
        Some(zone)
    }

    /// What it shows now.
    #[must_use]
    pub fn temperature(&self, tree: &Tree) -> Option<i32> {
        tree.number(&format!("{}/temp", self.folder)).filter(|at| PLAUSIBLE.contains(at))
    }
}

/// The temperature of the warmest sensor, whatever it measures, in degrees Celsius; `None` where there is none.
#[must_use]
pub fn temperature_c(tree: &Tree) -> Option<f64> {
    let zones = tree.names(ZONES).into_iter().filter(|name| name.starts_with("thermal_zone"));
    let all = zones.filter_map(|name| tree.number::<i32>(&format!("{ZONES}/{name}/temp")));
    all.filter(|at| PLAUSIBLE.contains(at)).max().map(|at| f64::from(at) / 1e3)
}

/// Whether this is a Raspberry Pi: there the firmware slows the processor down, long before the kernel would.
#[must_use]
pub fn is_raspberry_pi(tree: &Tree) -> bool {
    tree.text("/proc/device-tree/model").is_some_and(|model| model.starts_with("Raspberry Pi"))
}

/// The file in which the firmware of a Raspberry Pi tells whether it slows the processor down.
#[must_use]
pub fn firmware(tree: &Tree) -> Option<String> {
    const PLATFORM: &str = "/sys/devices/platform";
    let named = |folder: &str, is: fn(&str) -> bool| {
        let names = tree.names(folder).into_iter().filter(move |name| is(name));
        let folder = folder.to_owned();
        names.map(move |name| format!("{folder}/{name}"))
    };
    let buses = named(PLATFORM, |name| name.starts_with("soc"));
    let mut files = buses
        .flat_map(|bus| named(&bus, |name| name.ends_with("firmware")))
        .map(|firmware| format!("{firmware}/get_throttled"));
    files.find(|file| tree.text(file).is_some())
}

/// Whether the firmware slows the processor down for its heat right now, by the file that [`firmware`] named: bits 2
/// (throttled) and 3 (soft limit). Low voltage is another matter.
#[must_use]
pub fn is_throttled(tree: &Tree, file: &str) -> bool {
    let text = tree.text(file).unwrap_or_default();
    let digits = text.trim().trim_start_matches("0x");
    u32::from_str_radix(digits, 16).is_ok_and(|bits| bits & 0b1100 != 0)
}

#[cfg(test)]
mod tests {
    use super::super::tree::Made;
    use super::*;

    #[test]
    fn a_raspberry_pi_is_read() {
        let made = Made::new(&[
            ("/proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0"),
            ("/sys/class/thermal/thermal_zone0/type", "cpu-thermal\n"),
            ("/sys/class/thermal/thermal_zone0/temp", "61234\n"),
            ("/sys/class/thermal/thermal_zone0/trip_point_0_type", "critical\n"),
            ("/sys/class/thermal/thermal_zone0/trip_point_0_temp", "110000\n"),
            ("/sys/class/thermal/thermal_zone0/trip_point_1_type", "active\n"),
            ("/sys/class/thermal/thermal_zone0/trip_point_1_temp", "50000\n"),
            ("/sys/class/thermal/cooling_device0/type", "pwm-fan\n"),
            ("/sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled", "50000\n"),
        ]);
        let tree = &made.tree;
        let zones = Zone::all(tree);
        assert_eq!((zones.len(), zones[0].passive, zones[0].critical), (1, None, Some(110_000)));
        assert_eq!(zones[0].temperature(tree), Some(61_234));
        assert!(is_raspberry_pi(tree));
        let file = firmware(tree).expect("the firmware's file");
        assert!(!is_throttled(tree, &file), "it was once, and is not now");
        for (text, wanted) in
            [("4", true), ("0x50008", true), ("1", false), ("", false), ("-1", false), ("zz", false)]
        {
            made.write(&file, text);
            assert_eq!(is_throttled(tree, &file), wanted, "{text}");
        }
    }

    #[test]
    fn only_processors_and_plausible_numbers_count() {
        let zone = "/sys/class/thermal/thermal_zone";
        let made = Made::new(&[]);
        let mut n = 0;
        let mut add = |kind: &str, temp: &str, trips: &[(&str, &str)]| {
            made.write(&format!("{zone}{n}/type"), kind);
            made.write(&format!("{zone}{n}/temp"), temp);
            for (i, (kind, at)) in trips.iter().enumerate() {
                made.write(&format!("{zone}{n}/trip_point_{i}_type"), kind);
                made.write(&format!("{zone}{n}/trip_point_{i}_temp"), at);
            }
            n += 1;
        };
        add("battery", "30000", &[("passive", "45000")]);
        add("iwlwifi_1", "30000", &[]);
        add(
            "CPU-therm",
            "99000",
            &[("passive", "99000"), ("passive", "97000"), ("hot", "103000"), ("critical", "104500")],
        );
        add("x86_pkg_temp", "-274000", &[("passive", "0"), ("passive", "-274000")]);
        add("soc-thermal", "12e3", &[("passive", "99999999999999"), ("nonsense", "60000"), ("critical", "")]);
        let zones = Zone::all(&made.tree);
        let limits: Vec<_> =
            zones.iter().map(|z| (z.passive, z.critical, z.temperature(&made.tree))).collect();
        assert_eq!(
            limits,
            [(Some(97_000), Some(103_000), Some(99_000)), (None, None, None), (None, None, None)]
        );
        assert!(!is_raspberry_pi(&made.tree) && firmware(&made.tree).is_none());
        assert_eq!(temperature_c(&made.tree), Some(99.0));
        made.write(&format!("{zone}0/temp"), "99500\n");
        assert_eq!(temperature_c(&made.tree), Some(99.5), "a battery is warm as well");
        assert_eq!(temperature_c(&Made::new(&[]).tree), None);
    }
}
