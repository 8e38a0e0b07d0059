//! dd in a guest: how it is asked, what it says.

use anyhow::{Context, Result, ensure};
use plugpull_protocol::Exited;

/// Finds the disk by its serial and writes zeros to it: SERIAL BLOCK COUNT
/// FLAG...
pub(super) const DD: &str = r#"
serial=$1 block=$2 count=$3
shift 3
for disk in /sys/block/*; do
    if [ "$(cat "$disk/serial" 2>/dev/null)" = "$serial" ]; then
        exec dd if=/dev/zero of="/dev/${disk##*/}" bs="$block" count="$count" "$@"
    fi
done
echo "no disk has the serial $serial" >&2
exit 1
"#;

/// What dd says of itself: without the start of the process, with the final
/// fsync.
#[derive(Debug, PartialEq)]
pub(super) struct Written {
    pub(super) bytes: u64,
    pub(super) seconds: f64,
}

impl Written {
    pub(super) fn of(exited: &Exited) -> Result<Self> {
        ensure!(
            exited.success(),
            "dd ended with {}: {}",
            exited.code,
            exited.stderr.trim()
        );
        Self::parse(&exited.stderr)
            .with_context(|| format!("dd said something else: {}", exited.stderr.trim()))
    }

    /// `4096000 bytes (4.1 MB, 3.9 MiB) copied, 2.6 s, 1.6 MB/s`.
    fn parse(said: &str) -> Option<Self> {
        let line = said.lines().find(|line| line.contains(" copied, "))?;
        let (bytes, _) = line.split_once(" byte")?;
        let (_, rest) = line.split_once(" copied, ")?;
        let (seconds, _) = rest.split_once(" s,")?;
        let written = Self {
            bytes: bytes.trim().parse().ok()?,
            seconds: seconds.trim().parse().ok()?,
        };
        (written.seconds > 0.0).then_some(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dd_is_understood() {
        let said = "1000+0 records in\n1000+0 records out\n\
                    4096000 bytes (4.1 MB, 3.9 MiB) copied, 2.61284 s, 1.6 MB/s\n";
        let written = Written {
            bytes: 4_096_000,
            seconds: 2.61284,
        };
        assert_eq!(Written::parse(said), Some(written));
        let short = "100 bytes copied, 1.2e-05 s, 8.3 MB/s\n";
        assert_eq!(Written::parse(short).map(|w| w.seconds), Some(1.2e-5));
        for odd in ["", "4096 bytes copied", "x bytes copied, 1 s, 1 B/s"] {
            assert_eq!(Written::parse(odd), None, "{odd}");
        }
    }
}
