//! Roofline plots (Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009) as SVG.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::RangeInclusive;

use crate::report::Limits;

/// One measurement in the plot.
#[derive(Clone, Debug)]
pub struct Point {
    /// What has one colour in the plot.
    pub series: String,
    /// What the pointer shows.
    pub name: String,
    /// Floating-point operations for each byte.
    pub intensity: f64,
    /// Floating-point operations a second.
    pub flops_per_s: f64,
}

const WIDTH: f64 = 980.0;
const HEIGHT: f64 = 560.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 800.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = 500.0;
/// Colours that people with any colour vision tell apart (Okabe, Ito 2008), then greys.
const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999"];

/// Both axes are logarithmic and end at powers of ten.
struct Axes {
    x: RangeInclusive<i32>,
    y: RangeInclusive<i32>,
}

impl Axes {
    fn around(limits: &Limits, points: &[Point]) -> Self {
        let ridge = limits.flops_per_s / limits.bytes_per_s;
        let decades = |values: &mut dyn Iterator<Item = f64>| {
            let (low, high) =
                values.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v.log10()), high.max(v.log10())));
            low.floor() as i32..=high.ceil() as i32
        };
        Self {
            x: decades(&mut points.iter().map(|p| p.intensity).chain([ridge / 10.0, ridge * 10.0])),
            y: decades(&mut points.iter().map(|p| p.flops_per_s).chain([limits.flops_per_s])),
        }
    }

    fn x(&self, intensity: f64) -> f64 {
        place(&self.x, intensity, LEFT, RIGHT)
    }

    fn y(&self, flops_per_s: f64) -> f64 {
        place(&self.y, flops_per_s, BOTTOM, TOP)
    }
}

fn place(decades: &RangeInclusive<i32>, value: f64, first: f64, last: f64) -> f64 {
    let (low, high) = (f64::from(*decades.start()), f64::from(*decades.end()));
    first + (value.log10() - low) / (high - low) * (last - first)
}

/// How the points of a series look: discs, then rings in the same colours.
fn style(series: usize) -> String {
    let colour = COLOURS[series % COLOURS.len()];
    match series / COLOURS.len() {
        0 => format!("fill=\"{colour}\" fill-opacity=\"0.75\""),
        _ => format!("fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\""),
    }
}

/// The plot of `points` under the roof that `limits` build. Points without arithmetic are left out.
pub fn svg(title: &str, limits: &Limits, points: &[Point]) -> String {
    let drawn = |p: &&Point| p.intensity > 0.0 && p.flops_per_s > 0.0;
    let points: Vec<Point> = points.iter().filter(drawn).cloned().collect();
    let axes = Axes::around(limits, &points);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
         height=\"{HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    text(&mut out, LEFT, 26.0, "start", 15, title);
    grid(&mut out, &axes);
    roof(&mut out, &axes, limits);
    let mut styles = BTreeMap::new();
    for point in &points {
        let next = style(styles.len());
        let style = styles.entry(point.series.as_str()).or_insert(next);
        let (x, y) = (axes.x(point.intensity), axes.y(point.flops_per_s));
        let _ = writeln!(
            out,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.2\" {style}><title>{}: {}/s\
             </title></circle>",
            escape(&point.name),
            unit(point.flops_per_s, "FLOP")
        );
    }
    for (i, (series, style)) in styles.iter().enumerate() {
        let y = TOP + 12.0 + 20.0 * i as f64;
        let _ = writeln!(out, "<circle cx=\"{}\" cy=\"{y}\" r=\"4\" {style}/>", RIGHT + 24.0);
        text(&mut out, RIGHT + 36.0, y + 4.0, "start", 12, series);
    }
    out.push_str("</svg>\n");
    out
}

fn grid(out: &mut String, axes: &Axes) {
    for decade in axes.x.clone() {
        let x = axes.x(10f64.powi(decade));
        line(out, (x, TOP), (x, BOTTOM), "#dddddd", 1.0);
        text(out, x, BOTTOM + 18.0, "middle", 12, &trimmed(10f64.powi(decade)));
    }
    for decade in axes.y.clone() {
        let y = axes.y(10f64.powi(decade));
        line(out, (LEFT, y), (RIGHT, y), "#dddddd", 1.0);
        text(out, LEFT - 8.0, y + 4.0, "end", 12, &unit(10f64.powi(decade), ""));
    }
    text(out, (LEFT + RIGHT) / 2.0, BOTTOM + 40.0, "middle", 12, "floating-point operations for each byte");
    text(out, LEFT - 66.0, TOP - 14.0, "start", 12, "FLOP/s");
}

fn roof(out: &mut String, axes: &Axes, limits: &Limits) {
    let ridge = limits.flops_per_s / limits.bytes_per_s;
    let (top, end) = (axes.y(limits.flops_per_s), 10f64.powi(*axes.x.end()));
    // The slope begins where it enters the plot: at its left or at its lower edge.
    let start = 10f64.powi(*axes.x.start()).max(10f64.powi(*axes.y.start()) / limits.bytes_per_s);
    let foot = (axes.x(start), axes.y(start * limits.bytes_per_s));
    line(out, foot, (axes.x(ridge), top), "#444444", 2.0);
    line(out, (axes.x(ridge), top), (axes.x(end), top), "#444444", 2.0);
    let flops = format!("{}: {}/s", limits.flops_name, unit(limits.flops_per_s, "FLOP"));
    text(out, axes.x(end), top - 6.0, "end", 12, &flops);
    let bytes = format!("{}: {}/s", limits.bytes_name, unit(limits.bytes_per_s, "B"));
    let (x, y) = ((foot.0 + axes.x(ridge)) / 2.0, (foot.1 + top) / 2.0);
    let degrees = (top - foot.1).atan2(axes.x(ridge) - foot.0).to_degrees();
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" dy=\"-6\" text-anchor=\"middle\" \
         transform=\"rotate({degrees:.1} {x:.1} {y:.1})\">{}</text>",
        escape(&bytes)
    );
}

fn line(out: &mut String, from: (f64, f64), to: (f64, f64), colour: &str, width: f64) {
    let ((x1, y1), (x2, y2)) = (from, to);
    let _ = writeln!(
        out,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\" \
         stroke-width=\"{width}\"/>"
    );
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, size: u32, words: &str) {
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\">{}</text>",
        escape(words)
    );
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// `value` with the prefix that leaves one to three digits before the point.
fn unit(value: f64, unit: &str) -> String {
    let prefixes = [(1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    let (scale, prefix) = prefixes.into_iter().find(|(scale, _)| value >= *scale).unwrap_or((1.0, ""));
    format!("{} {prefix}{unit}", trimmed(value / scale))
}

fn trimmed(value: f64) -> String {
    let digits = if value >= 100.0 { 0 } else { 2 };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        assert_eq!(unit(4.26e12, "B"), "4.26 TB");
        assert_eq!(unit(1e11, "F"), "100 GF");
        assert_eq!(unit(20.0, "F"), "20 F");
    }

    #[test]
    fn every_series_looks_different() {
        let styles: std::collections::BTreeSet<_> = (0..2 * COLOURS.len()).map(style).collect();
        assert_eq!(styles.len(), 2 * COLOURS.len());
    }

    #[test]
    fn every_point_with_arithmetic_is_drawn_inside_of_the_axes() {
        let limits = Limits {
            device: "test".into(),
            bytes_per_s: 1e12,
            bytes_name: "bandwidth",
            flops_per_s: 1e14,
            flops_name: "rate",
        };
        let point = |intensity, flops_per_s| Point {
            series: "a < b".into(),
            name: "x & y".into(),
            intensity,
            flops_per_s,
        };
        let text = svg("title", &limits, &[point(0.5, 3e11), point(2000.0, 9e13), point(0.0, 0.0)]);
        assert_eq!(text.matches("<title>").count(), 2);
        assert!(text.contains("a &lt; b") && text.contains("x &amp; y"));
        for circle in text.lines().filter(|line| line.contains("<title>")) {
            let number = |key: &str| -> f64 {
                let rest = &circle[circle.find(key).expect("a key") + key.len()..];
                rest[..rest.find('"').expect("a quote")].parse().expect("a number")
            };
            assert!((LEFT..=RIGHT).contains(&number("cx=\"")), "{circle}");
            assert!((TOP..=BOTTOM).contains(&number("cy=\"")), "{circle}");
        }
    }
}
