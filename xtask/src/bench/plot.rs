//! A bar for each contender, as a picture that any browser shows.

use std::fmt::Write;

use super::contender::Line;

const BAR: f64 = 26.0;
const GAP: f64 = 14.0;
const LEFT: f64 = 210.0;
const WIDTH: f64 = 860.0;
const TOP: f64 = 50.0;

/// An SVG with the medians as bars and the tenths on both sides as whiskers.
pub(crate) fn bars(lines: &[Line]) -> String {
    let longest = lines.iter().map(|l| l.p90_ms).fold(1.0, f64::max);
    let scale = (WIDTH - LEFT - 130.0) / longest;
    let mut y = TOP;
    let mut body = String::new();
    for line in lines {
        let middle = y + BAR / 2.0;
        let (low, high) = (LEFT + line.p10_ms * scale, LEFT + line.p90_ms * scale);
        let ours = line.name.starts_with("cofferdam");
        let colour = if ours { "#2563a8" } else { "#9aa4b0" };
        // Writing to a String cannot fail.
        let _ = writeln!(
            body,
            r##"<text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>
<rect x="{LEFT:.1}" y="{y:.1}" width="{:.1}" height="{BAR:.1}" rx="2" fill="{colour}"/>
<path d="M{low:.1} {middle:.1}H{high:.1}" stroke="#222" stroke-width="1.5"/>
<text x="{:.1}" y="{:.1}">{:.1} ms · {:.1}×</text>"##,
            LEFT - 10.0,
            middle + 5.0,
            escaped(line.name),
            line.median_ms * scale,
            high + 8.0,
            middle + 5.0,
            line.median_ms,
            line.times_the_floor,
        );
        y += BAR + GAP;
    }
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:.0} {:.0}" font-family="sans-serif" font-size="14">
<rect width="100%" height="100%" fill="#fff"/>
<text x="{LEFT:.0}" y="28" font-size="15" font-weight="bold">A container's whole life: median, p10 to p90, and how many times the floor</text>
{body}</svg>
"##,
        y + GAP
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_contender_has_its_bar() {
        let line = |name, ms| Line {
            name,
            includes: "",
            median_ms: ms,
            p10_ms: ms * 0.9,
            p90_ms: ms * 1.1,
            times_the_floor: ms,
            runs: 3,
        };
        let svg = bars(&[line("a < b", 1.0), line("cofferdam run", 2.0)]);
        assert_eq!(svg.matches("<rect x=").count(), 2);
        assert!(svg.contains("a &lt; b") && svg.contains("2.0 ms"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }
}
