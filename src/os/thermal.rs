//! How warm the machine is.

use std::path::Path;

/// Where Linux lists its sensors (`Documentation/driver-api/thermal/sysfs-api.rst`).
const ZONES: &str = "/sys/class/thermal";

/// The temperature of the warmest sensor in degrees Celsius; `None` where there is none.
#[must_use]
pub fn temperature_c() -> Option<f64> {
    warmest(Path::new(ZONES))
}

fn warmest(zones: &Path) -> Option<f64> {
    let read = |zone: std::fs::DirEntry| -> Option<f64> {
        zone.file_name().to_str()?.strip_prefix("thermal_zone")?;
        let text = std::fs::read_to_string(zone.path().join("temp")).ok()?;
        let degrees = text.trim().parse::<i64>().ok()? as f64 / 1e3;
        // Sensors that are switched off tell numbers that no machine has.
        (-50.0..150.0).contains(&degrees).then_some(degrees)
    };
    std::fs::read_dir(zones).ok()?.flatten().filter_map(read).reduce(f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_warmest_sensor_counts_and_broken_ones_do_not() {
        let dir = std::env::temp_dir().join(format!("sotto-thermal-{}", std::process::id()));
        assert_eq!(warmest(&dir), None);
        for (zone, temp) in [("0", "41000\n"), ("1", "63500\n"), ("2", "-274000\n"), ("3", "hot\n")] {
            std::fs::create_dir_all(dir.join(format!("thermal_zone{zone}"))).unwrap();
            std::fs::write(dir.join(format!("thermal_zone{zone}/temp")), temp).unwrap();
        }
        std::fs::create_dir_all(dir.join("cooling_device0")).unwrap();
        let found = warmest(&dir);
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(found, Some(63.5));
    }
}
