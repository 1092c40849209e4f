//! The table at the end: a container beside a virtual machine.

use std::time::Duration;

use super::container::{Cost, ROUNDS, Seen};
use super::guest::Guests;
use super::stage::Stage;

/// The middle one of several measurements.
pub(crate) fn median<T: Ord>(mut values: Vec<T>) -> T {
    values.sort_unstable();
    let middle = values.len() / 2;
    values.swap_remove(middle)
}

/// Prints the table.
pub(crate) fn print(stage: &Stage, seen: &Seen, cost: &Cost, guests: Option<&Guests>) {
    let vm =
        |cell: &dyn Fn(&Guests) -> String| guests.map_or_else(|| "not measured".to_owned(), cell);
    let shared = {
        let kernel = if seen.same_kernel {
            "the kernel"
        } else {
            "no kernel"
        };
        match seen.shared.as_slice() {
            [] => kernel.to_owned(),
            names => format!("{kernel}; namespaces {}", names.join(", ")),
        }
    };
    let rows = [
        [
            String::new(),
            "container".to_owned(),
            "virtual machine".to_owned(),
        ],
        [
            "from program start to first output".to_owned(),
            milliseconds(cost.first_output),
            vm(&|guests| milliseconds(guests.first_output)),
        ],
        [
            "  of that, unpacking the image".to_owned(),
            milliseconds(cost.unpack),
            vm(&|_| "no image".to_owned()),
        ],
        [
            "memory beyond the workload".to_owned(),
            format!("{} (the engine)", mebibytes(cost.engine_memory)),
            vm(&|guests| format!("{} (the monitor)", mebibytes(guests.monitor_memory))),
        ],
        [
            "kernel seen".to_owned(),
            format!("Linux {}", seen.kernel),
            vm(&|guests| format!("none (CPUID: {})", guests.hypervisor)),
        ],
        [
            "processes seen".to_owned(),
            seen.processes.to_string(),
            vm(&|_| "none but itself".to_owned()),
        ],
        [
            "shared with the host".to_owned(),
            shared,
            vm(&|_| "CPU time, by /dev/kvm".to_owned()),
        ],
    ];
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths = [width(0), width(1), width(2)];
    let [first, second, third] = widths;
    for (at, [what, container, machine]) in rows.iter().enumerate() {
        stage.say(format!("{what:first$}  {container:second$}  {machine:third$}").trim_end());
        if at == 0 {
            stage.say(&widths.map(|width| "─".repeat(width)).join("  "));
        }
    }
    stage.say(&format!(
        "Times and memory are medians of {ROUNDS} runs, just now."
    ));
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1e3)
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_of_the_sorted_values() {
        assert_eq!(median(vec![9, 1, 5]), 5);
        assert_eq!(median(vec![7]), 7);
    }
}
