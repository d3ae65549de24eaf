//! How single values look: prices, ages, durations, sizes, resources.

use api::backends::BackendType;
use api::configurations::{GpuSpec, Range, ResourcesSpec};
use api::instances::Resources;
use api::jobs::ImagePullProgress;
use jiff::Timestamp;
use jiff::tz::TimeZone;

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// A number with at most `digits` decimals, none where they are zero.
pub(crate) fn number(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    if !text.contains('.') {
        return text;
    }
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A price in US dollars.
pub(crate) fn price(value: f64) -> String {
    format!("${}", number(value, 4))
}

/// MiB as GB of 1024 MiB.
pub(crate) fn gigabytes(mib: u64) -> String {
    format!("{}GB", number(mib as f64 / 1024.0, 1))
}

/// How long ago `time` was.
pub(crate) fn age(time: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(time).as_secs_f64();
    let whole_days = (seconds / DAY as f64).floor();
    let rounded = |unit: f64| (seconds / unit).round_ties_even();
    let counted = |count: f64, unit: &str| match count {
        1.0 => format!("1 {unit} ago"),
        _ => format!("{count} {unit}s ago"),
    };
    if seconds < 10.0 {
        "now".to_owned()
    } else if whole_days < 1.0 {
        match seconds {
            s if s < 60.0 => format!("{} sec ago", s.round_ties_even()),
            s if s < 120.0 => "1 min ago".to_owned(),
            s if s < HOUR as f64 => counted(rounded(60.0), "min"),
            s if s < 2.0 * HOUR as f64 => "1 hour ago".to_owned(),
            _ => counted(rounded(HOUR as f64), "hour"),
        }
    } else if whole_days < 2.0 {
        "yesterday".to_owned()
    } else if whole_days < 7.0 {
        counted(whole_days, "day")
    } else if whole_days < 31.0 {
        counted((whole_days / 7.0).round_ties_even(), "week")
    } else if whole_days < 365.0 {
        counted((whole_days / 30.0).round_ties_even(), "month")
    } else {
        counted((whole_days / 365.0).round_ties_even(), "year")
    }
}

/// The hour and minute of `time`.
pub(crate) fn clock(time: Timestamp, zone: &TimeZone) -> String {
    time.to_zoned(zone.clone()).strftime("%H:%M").to_string()
}

/// `time` to the second.
pub(crate) fn date_and_time(time: Timestamp, zone: &TimeZone) -> String {
    time.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// A duration in the largest unit that counts it in whole numbers.
pub(crate) fn duration(seconds: i64) -> String {
    let units = [("w", 7 * DAY), ("d", DAY), ("h", HOUR), ("m", MINUTE)];
    match units.iter().find(|(_, unit)| seconds != 0 && seconds % unit == 0) {
        Some((name, unit)) => format!("{}{name}", seconds / unit),
        None => format!("{seconds}s"),
    }
}

/// A duration in all of its units: `1h 15m 45s`.
pub(crate) fn duration_in_parts(seconds: u64) -> String {
    let units = [("w", 7 * DAY as u64), ("d", DAY as u64), ("h", HOUR as u64), ("m", MINUTE as u64), ("s", 1)];
    let mut left = seconds;
    let mut parts = Vec::new();
    for (name, unit) in units {
        let count = left / unit;
        left %= unit;
        if 0 < count {
            parts.push(format!("{count}{name}"));
        }
    }
    if parts.is_empty() { "0s".to_owned() } else { parts.join(" ") }
}

/// A backend, with this machine itself called what users call it.
pub(crate) fn backend(backend: BackendType, region: Option<&str>) -> &'static str {
    match (backend, region) {
        (BackendType::Remote, Some("local")) => "local",
        (BackendType::Remote, _) => "ssh",
        (backend, _) => backend.as_str(),
    }
}

/// A backend and its region or zone.
pub(crate) fn place(kind: BackendType, region: &str, zone: Option<&str>) -> String {
    match backend(kind, Some(region)) {
        "local" => "local".to_owned(),
        name => format!("{name} ({})", zone.unwrap_or(region)),
    }
}

/// The kind of a machine and its place, to follow a verb. A place of its own kind is named once.
pub(crate) fn on(kind: &str, place: &str) -> String {
    if kind == place { format!(" on {place}") } else { format!(" {kind} on {place}") }
}

/// What a machine has, in one line.
pub(crate) fn resources(resources: &Resources, with_spot: bool) -> String {
    let mut parts = vec![match &resources.cpu_arch {
        Some(arch) => format!("cpu={arch}:{}", resources.cpus),
        None => format!("cpu={}", resources.cpus),
    }];
    parts.push(format!("mem={}", gigabytes(resources.memory_mib)));
    if resources.disk.size_mib != 0 {
        parts.push(format!("disk={}", gigabytes(resources.disk.size_mib)));
    }
    parts.extend(gpus(resources));
    if with_spot && resources.spot {
        parts.push("(spot)".to_owned());
    }
    parts.join(" ")
}

/// The accelerators of a machine, if it has any.
pub(crate) fn gpus(resources: &Resources) -> Option<String> {
    let first = resources.gpus.first()?;
    let memory = match first.memory_mib {
        0 => String::new(),
        mib => format!("{}:", gigabytes(mib)),
    };
    Some(format!("gpu={}:{memory}{}", first.name, resources.gpus.len()))
}

/// What is asked of a machine, in one line.
pub(crate) fn requirements(spec: &ResourcesSpec) -> String {
    let mut parts = Vec::new();
    let count = range(&spec.cpu.count, |count| count.to_string(), "");
    parts.push(match spec.cpu.arch {
        Some(arch) => format!("cpu={}:{count}", plain(&arch)),
        None => format!("cpu={count}"),
    });
    parts.push(format!("mem={}", range(&spec.memory, |memory| number(memory.0, 2), "GB")));
    if let Some(disk) = &spec.disk {
        parts.push(format!("disk={}", range(&disk.size, |size| number(size.0, 2), "GB")));
    }
    if let Some(gpu) = &spec.gpu {
        parts.push(format!("gpu={}", gpu_requirements(gpu)));
    }
    parts.join(" ")
}

/// The accelerators that are asked for, as people write them.
pub(crate) fn gpu_requirements(gpu: &GpuSpec) -> String {
    let mut parts = Vec::new();
    match (&gpu.name, gpu.vendor) {
        (Some(names), _) => parts.push(names.join(",")),
        (None, Some(vendor)) => parts.push(vendor.as_str().to_owned()),
        (None, None) => {}
    }
    if let Some(memory) = &gpu.memory {
        parts.push(range(memory, |memory| number(memory.0, 2), "GB"));
    }
    parts.push(range(&gpu.count, |count| count.to_string(), ""));
    if let Some(total) = &gpu.total_memory {
        parts.push(range(total, |memory| number(memory.0, 2), "GB"));
    }
    if let Some(capability) = &gpu.compute_capability {
        parts.push(format!("{}.{}", capability.0, capability.1));
    }
    parts.join(":")
}

/// A range as people write it.
pub(crate) fn range<T: Copy + PartialEq>(range: &Range<T>, print: impl Fn(T) -> String, unit: &str) -> String {
    let end = |value: Option<T>| value.map(|value| format!("{}{unit}", print(value))).unwrap_or_default();
    if range.min.is_some() && range.min == range.max {
        return end(range.min);
    }
    format!("{}..{}", end(range.min), end(range.max))
}

/// How far an image is: extracted, downloaded and all of it.
pub(crate) fn pull_progress(progress: &ImagePullProgress) -> String {
    const MB: f64 = 1024.0 * 1024.0;
    const GB: f64 = 1024.0 * MB;
    let total = progress.total_bytes as f64;
    let (unit, name, digits) = if GB <= total { (GB, "GB", 2) } else { (MB, "MB", 0) };
    let sized = |bytes: u64| format!("{:.digits$}", bytes as f64 / unit);
    let bound = if progress.is_total_bytes_final { "" } else { "≥" };
    format!(
        "{}/{}/{bound}{}{name}",
        sized(progress.extracted_bytes),
        sized(progress.downloaded_bytes),
        sized(progress.total_bytes)
    )
}

/// The name that a plain enum has on the wire.
pub(crate) fn plain<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        Ok(value) => value.to_string(),
        Err(_) => String::new(),
    }
}

/// The text with its first letter in upper case.
pub(crate) fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map(|first| first.to_uppercase().chain(characters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_as_the_official_ones() {
        let now: Timestamp = "2026-11-23T12:00:00Z".parse().unwrap();
        let day = 86_400.0;
        let cases = [
            (-30.0, "now"),
            (9.2, "now"),
            (12.0, "12 sec ago"),
            (58.5, "58 sec ago"),
            (88.0, "1 min ago"),
            (118.0, "1 min ago"),
            (148.0, "2 mins ago"),
            (155.0, "3 mins ago"),
            (3590.0, "60 mins ago"),
            (7100.0, "1 hour ago"),
            (7300.0, "2 hours ago"),
            (84_960.0, "24 hours ago"),
            (1.99 * day, "yesterday"),
            (6.99 * day, "6 days ago"),
            (7.01 * day, "1 week ago"),
            (13.0 * day, "2 weeks ago"),
            (29.0 * day, "4 weeks ago"),
            (31.0 * day, "1 month ago"),
            (59.0 * day, "2 months ago"),
            (360.0 * day, "12 months ago"),
            (366.0 * day, "1 year ago"),
            (700.0 * day, "2 years ago"),
        ];
        for (seconds, expected) in cases {
            let time = now - jiff::SignedDuration::from_secs_f64(seconds);
            assert_eq!(age(time, now), expected, "{seconds} s");
        }
    }

    #[test]
    fn numbers_lose_what_says_nothing() {
        assert_eq!(price(55.04), "$55.04");
        assert_eq!(price(0.000_01), "$0");
        assert_eq!(price(1.23456), "$1.2346");
        assert_eq!(price(1234.5), "$1234.5");
        assert_eq!(gigabytes(524_852), "512.6GB");
        assert_eq!(gigabytes(1023), "1GB");
    }

    #[test]
    fn durations_take_the_largest_whole_unit() {
        let cases = [(300, "5m"), (5400, "90m"), (7200, "2h"), (259_200, "3d"), (90, "90s"), (604_800, "1w")];
        for (seconds, expected) in cases {
            assert_eq!(duration(seconds), expected);
        }
    }

    #[test]
    fn pulls_are_counted_in_the_unit_of_the_whole() {
        let progress = |downloaded, extracted, total, is_final| {
            pull_progress(&ImagePullProgress {
                downloaded_bytes: downloaded,
                extracted_bytes: extracted,
                total_bytes: total,
                is_total_bytes_final: is_final,
            })
        };
        assert_eq!(progress(50_000_000, 10_485_760, 2_000_000_000, true), "0.01/0.05/1.86GB");
        assert_eq!(progress(500_000_000, 0, 1_000_000_000, false), "0/477/≥954MB");
    }

    #[test]
    fn the_servers_machine_has_a_name_of_its_own() {
        assert_eq!(place(BackendType::Remote, "local", None), "local");
        assert_eq!(place(BackendType::Remote, "remote", None), "ssh (remote)");
        assert_eq!(place(BackendType::Aws, "us-east-1", Some("us-east-1a")), "aws (us-east-1a)");
    }
}
