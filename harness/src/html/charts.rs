//! The report's figures, as inline SVG and table rows: no script, no network, readable in light and dark.

use super::escape;
use std::fmt::Write;

const WIDTH: f64 = 560.0;
const ROW_HEIGHT: f64 = 22.0;
/// Two words under an axis lie at least so far apart; what would be nearer to the last one is left out.
const TICK_SPACE: f64 = 70.0;
/// Colors of the style sheet, in the order in which series take them.
const COLORS: [&str; 6] = ["--a", "--b", "--c", "--d", "--e", "--f"];

/// A row of a strip chart: every value as a dot, the median as a line, its interval as a band.
pub(super) struct Strip {
    pub label: String,
    pub values: Vec<f64>,
    pub median: Option<f64>,
    pub interval: Option<[f64; 2]>,
}

/// A row of a stacked bar.
pub(super) struct Bar {
    pub label: String,
    /// One figure a series; `None` where it was not measured.
    pub parts: Vec<Option<f64>>,
}

/// A line of a line chart: points in ascending order of x.
pub(super) struct Line {
    pub label: String,
    pub points: Vec<(f64, f64)>,
}

/// What is varied along a line chart: its name, and its values in ascending order, with their units as a person wrote them.
pub(super) struct Axis {
    pub name: String,
    pub ticks: Vec<(f64, String)>,
}

/// All values of a metric by cell, on one axis that holds zero.
pub(super) fn strips(title: &str, unit: &str, scale: f64, rows: &[Strip]) -> String {
    let all = rows.iter().flat_map(|r| r.values.iter().copied().chain(r.interval.into_iter().flatten()));
    let (least, most) = all.fold((0.0, 0.0), |(least, most): (f64, f64), v| (least.min(v), most.max(v)));
    let span = if most > least { most - least } else { 1.0 };
    let x = |value: f64| 6.0 + (value - least) / span * (WIDTH - 12.0);
    let mut body = String::new();
    let mut data = String::from("cell,value\n");
    for row in rows {
        let mut marks = String::new();
        if let Some([low, high]) = row.interval {
            let (left, width) = (x(low), (x(high) - x(low)).max(1.0));
            let _ = write!(
                marks,
                "<rect x='{left:.1}' y='5' width='{width:.1}' height='12' fill='var(--e)' opacity='.35'/>"
            );
        }
        for value in &row.values {
            let _ = write!(marks, "<circle cx='{:.1}' cy='11' r='3.2' fill='var(--a)' opacity='.75'/>", x(*value));
            let _ = writeln!(data, "\"{}\",{}", row.label.replace('"', "'"), value / scale);
        }
        if let Some(median) = row.median {
            let _ = write!(marks, "<rect x='{:.1}' y='2' width='2' height='18' fill='var(--f)'/>", x(median) - 1.0);
        }
        let shown = row.median.map_or_else(|| "-".to_owned(), |m| format!("{} {unit}", figure(m / scale)));
        body.push_str(&chart_row(&row.label, &marks, &shown));
    }
    let axis = format!("{} to {} {unit}", figure(least / scale), figure(most / scale));
    chart(title, &format!("{axis}. Dots: rows; line: median; band: its 95 % interval."), "", &body, &data)
}

/// Parts of a whole by cell, side by side on one axis.
pub(super) fn bars(title: &str, unit: &str, scale: f64, series: &[&str], rows: &[Bar]) -> String {
    let sum = |bar: &Bar| bar.parts.iter().flatten().sum::<f64>();
    let most = rows.iter().map(sum).fold(0.0, f64::max);
    let mut body = String::new();
    let mut data = format!("cell,{}\n", series.join(","));
    for row in rows {
        let (mut marks, mut left) = (String::new(), 0.0);
        for (part, color) in row.parts.iter().zip(COLORS.iter().cycle()) {
            let share = part.unwrap_or(0.0) / if most > 0.0 { most } else { 1.0 };
            // A part that is there stays visible, however short it is.
            let width = if share > 0.0 { (share * (WIDTH - 12.0)).max(1.5) } else { 0.0 };
            let _ = write!(marks, "<rect x='{left:.1}' y='3' width='{width:.1}' height='16' fill='var({color})'/>");
            left += width;
        }
        let shown = if row.parts.iter().all(Option::is_none) {
            "-".to_owned()
        } else {
            format!("{} {unit}", figure(sum(row) / scale))
        };
        body.push_str(&chart_row(&row.label, &marks, &shown));
        let figures: Vec<String> =
            row.parts.iter().map(|p| p.map_or_else(String::new, |v| (v / scale).to_string())).collect();
        let _ = writeln!(data, "\"{}\",{}", row.label.replace('"', "'"), figures.join(","));
    }
    chart(title, &format!("Of each cell's first completed row, in {unit}."), &key(series), &body, &data)
}

/// A metric over a varied quantity.
pub(super) fn lines(title: &str, axis: &Axis, unit: &str, scale: f64, lines: &[Line]) -> String {
    let points = || lines.iter().flat_map(|l| &l.points);
    let most = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
    let across = axis.ticks.iter().map(|tick| tick.0);
    let (most_x, most_y) = (most(&mut points().map(|p| p.0).chain(across)), most(&mut points().map(|p| p.1)));
    let (height, left, bottom) = (220.0, 54.0, 24.0);
    let place = |(px, py): (f64, f64)| {
        let share = |v: f64, of: f64| if of > 0.0 { v / of } else { 0.0 };
        let across = left + share(px, most_x) * (WIDTH - left - 12.0);
        (across, height - bottom - share(py, most_y) * (height - bottom - 10.0))
    };
    let mut marks = String::new();
    let mut data = String::from("series,x,y\n");
    for (line, color) in lines.iter().zip(COLORS.iter().cycle()) {
        let placed: Vec<(f64, f64)> = line.points.iter().copied().map(place).collect();
        let path: Vec<String> = placed.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ =
            write!(marks, "<polyline points='{}' fill='none' stroke='var({color})' stroke-width='2'/>", path.join(" "));
        for (x, y) in &placed {
            let _ = write!(marks, "<circle cx='{x:.1}' cy='{y:.1}' r='3.5' fill='var({color})'/>");
        }
        for (x, y) in &line.points {
            let _ = writeln!(data, "\"{}\",{x},{}", line.label.replace('"', "'"), y / scale);
        }
    }
    let (base, right) = (height - bottom, WIDTH - 12.0);
    let _ = write!(
        marks,
        "<path d='M{left} 10V{base}H{right}' fill='none' stroke='var(--line)'/>\
         <text x='{x}' y='18' text-anchor='end'>{top}</text><text x='{x}' y='{base}' text-anchor='end'>0</text>",
        x = left - 6.0,
        top = figure(most_y / scale),
    );
    let mut taken = f64::INFINITY;
    for (value, word) in axis.ticks.iter().rev() {
        let (x, _) = place((*value, 0.0));
        if taken - x >= TICK_SPACE {
            let (y, word) = (height - 8.0, escape(word));
            let _ = write!(marks, "<path d='M{x:.1} {base}v4' stroke='var(--line)'/>");
            let anchor = if x > right - TICK_SPACE / 2.0 { "end" } else { "middle" };
            let _ = write!(marks, "<text x='{x:.1}' y='{y}' text-anchor='{anchor}'>{word}</text>");
            taken = x;
        }
    }
    let svg = format!("<svg width='{WIDTH}' height='{height}' role='img'>{marks}</svg>");
    let names: Vec<&str> = lines.iter().map(|l| l.label.as_str()).collect();
    let key = if lines.len() > 1 { key(&names) } else { String::new() };
    frame(title, &format!("{unit} (median) over {}.", axis.name), &key, &svg, &data)
}

fn chart_row(label: &str, marks: &str, shown: &str) -> String {
    let svg = format!("<svg width='{WIDTH}' height='{ROW_HEIGHT}' role='img'>{marks}</svg>");
    format!("<tr><td class=word>{}</td><td>{svg}</td><td>{}</td></tr>", escape(label), escape(shown))
}

fn chart(title: &str, caption: &str, key: &str, body: &str, data: &str) -> String {
    frame(title, caption, key, &format!("<table>{body}</table>"), data)
}

fn frame(title: &str, caption: &str, key: &str, inside: &str, data: &str) -> String {
    let link = data_link("data", "text/csv", data);
    format!(
        "<figure><h2>{}</h2>{key}{inside}<figcaption>{} {link}</figcaption></figure>",
        escape(title),
        escape(caption)
    )
}

fn key(series: &[&str]) -> String {
    let entry =
        |(name, color): (&&str, &&str)| format!("<span style='background:var({color})'></span>{}", escape(name));
    let entries: String = series.iter().zip(COLORS.iter().cycle()).map(entry).collect();
    format!("<p class='key faint'>{entries}</p>")
}

/// A link that holds what it leads to.
pub(super) fn data_link(name: &str, kind: &str, data: &str) -> String {
    let mut encoded = String::with_capacity(data.len() * 2);
    for byte in data.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b',' => encoded.push(byte as char),
            _ => {
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
    }
    format!("<a download href='data:{kind};charset=utf-8,{encoded}'>{name}</a>")
}

/// A number with three significant digits.
pub(super) fn figure(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 || v == 0.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_with_nothing_to_show_are_still_figures() {
        let empty = Strip { label: "<a>".into(), values: vec![], median: None, interval: None };
        let text = strips("t", "ms", 1e6, &[empty]);
        assert!(text.contains("&lt;a&gt;") && !text.contains("NaN") && !text.contains("inf"), "{text}");
        let text = bars("t", "ms", 1e6, &["x"], &[Bar { label: "a".into(), parts: vec![None] }]);
        assert!(!text.contains("NaN"), "{text}");
        let axis = Axis { name: "x".into(), ticks: vec![(0.0, "0 <ms>".into())] };
        let text = lines("t", &axis, "ms", 1e6, &[Line { label: "a".into(), points: vec![(0.0, 0.0)] }]);
        assert!(text.contains("0 &lt;ms&gt;") && !text.contains("NaN"), "{text}");
    }

    #[test]
    fn what_is_varied_is_told_in_its_own_words_where_there_is_room() {
        let ticks = [(1.0, "1 MiB/s"), (2.0, "2 MiB/s"), (100.0, "100 MiB/s"), (200.0, "200 MiB/s")];
        let ticks: Vec<(f64, String)> = ticks.into_iter().map(|(x, word)| (x, word.to_owned())).collect();
        let points = ticks.iter().map(|(x, _)| (*x, *x)).collect();
        let axis = Axis { name: "link.rate".into(), ticks };
        let text = lines("t", &axis, "ms", 1.0, &[Line { label: "a".into(), points }]);
        for (word, is_shown) in
            [(">1 MiB/s<", false), (">2 MiB/s<", true), (">100 MiB/s<", true), (">200 MiB/s<", true)]
        {
            assert_eq!(text.contains(word), is_shown, "{word}: {text}");
        }
    }

    #[test]
    fn a_link_holds_its_data() {
        assert!(data_link("d", "text/csv", "a,\"b\"\n").contains("charset=utf-8,a,%22b%22%0A"));
    }
}
