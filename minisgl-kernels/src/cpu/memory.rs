//! How much memory there is.

use crate::Memory;

/// RAM of the machine and what of it is free, or less where a control group allows less.
#[cfg(target_os = "linux")]
pub(crate) fn memory() -> Memory {
    let host = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| parse_meminfo(&text));
    let host = host.unwrap_or(FALLBACK);
    match cgroup_limit() {
        Some((limit, used)) if limit < host.total_bytes => {
            Memory { total_bytes: limit, free_bytes: host.free_bytes.min(limit.saturating_sub(used)) }
        }
        _ => host,
    }
}

/// A size that any machine of today has: there is no portable way to ask.
#[cfg(not(target_os = "linux"))]
pub(crate) fn memory() -> Memory {
    FALLBACK
}

const FALLBACK: Memory = Memory { total_bytes: 8 << 30, free_bytes: 4 << 30 };

/// `MemTotal` and `MemAvailable`, which the kernel gives in KiB.
#[cfg(target_os = "linux")]
fn parse_meminfo(text: &str) -> Option<Memory> {
    let field = |name: &str| -> Option<usize> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok().map(|kib| kib << 10)
    };
    Some(Memory { total_bytes: field("MemTotal:")?, free_bytes: field("MemAvailable:")? })
}

/// Limit and use of the process's control group, version 2 or 1, in bytes; `None` where there is no limit.
#[cfg(target_os = "linux")]
fn cgroup_limit() -> Option<(usize, usize)> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let number = |path: String| std::fs::read_to_string(path).ok()?.trim().parse::<usize>().ok();
    groups.lines().find_map(|line| {
        // `hierarchy:controllers:path`; version 2 is the hierarchy without controllers.
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?.trim_end_matches('/'));
        let (root, limit, used) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max", "memory.current"),
            c if c.split(',').any(|c| c == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes")
            }
            _ => return None,
        };
        // Inside a container the group's own directory is often mounted as the root.
        [format!("{root}{path}"), root.to_owned()]
            .into_iter()
            .find_map(|dir| Some((number(format!("{dir}/{limit}"))?, number(format!("{dir}/{used}"))?)))
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn reads_meminfo() {
        let text =
            "MemTotal:       24538040 kB\nMemFree:        1 kB\nMemAvailable:   20000000 kB\nBuffers: 2 kB\n";
        let expected = Memory { total_bytes: 24_538_040 << 10, free_bytes: 20_000_000 << 10 };
        assert_eq!(parse_meminfo(text), Some(expected));
        assert_eq!(parse_meminfo("MemTotal: many\n"), None);
    }

    #[test]
    fn this_machine_has_memory() {
        let memory = memory();
        assert!(memory.free_bytes > 1 << 20 && memory.free_bytes <= memory.total_bytes);
    }
}
