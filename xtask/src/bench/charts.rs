//! Charts of the figures. Each stands on a panel of its own, so that it can be read on a light page
//! and on a dark one.

use super::bars::find;
use super::figures::{Figure, Section, number, quantile};
use super::memory::KINDS;
use super::peer::Peer;
use anyhow::{Context, Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::path::Path;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const WIDTH: i32 = 860;
/// Where the bars begin, and how long the longest is.
const LEFT: i32 = 150;
const LONGEST: i32 = 570;
/// Where the first row begins, and how high a row is.
const TOP: i32 = 84;
const ROW: i32 = 38;
const BAR: i32 = 22;

const PANEL: RGBColor = RGBColor(0xfb, 0xfa, 0xf7);
const EDGE: RGBColor = RGBColor(0xd8, 0xd4, 0xcb);
const INK: RGBColor = RGBColor(0x26, 0x2a, 0x33);
const FAINT: RGBColor = RGBColor(0x66, 0x6c, 0x78);
/// Ours, and the others.
const ACCENT: RGBColor = RGBColor(0xd9, 0x5f, 0x2b);
const OTHER: RGBColor = RGBColor(0x8f, 0x9b, 0xad);
/// The kinds of memory: what a program can save stands out.
const SHADES: [RGBColor; 4] = [
    RGBColor(0xd9, 0x5f, 0x2b),
    RGBColor(0x3b, 0x6e, 0xa5),
    RGBColor(0xb4, 0xba, 0xc4),
    RGBColor(0xd6, 0xda, 0xe0),
];

/// Draws all charts into a folder.
///
/// # Errors
///
/// When a file cannot be written.
pub fn draw_all(peers: &[Peer], sections: &[Section], folder: &Path) -> Result<()> {
    let figure = |name: &str| find(sections, name).with_context(|| format!("no figure {name}"));
    bytes(peers, figure("file")?, &folder.join("bytes.svg"))?;
    let kinds = KINDS.map(figure).into_iter().collect::<Result<Vec<_>>>()?;
    memory(peers, &kinds, &folder.join("memory.svg"))?;
    cpu(peers, figure("CPU time of PID 1")?, &folder.join("reaping.svg"))?;
    life(peers, figure("clone to gone")?, &folder.join("life.svg"))
}

/// Bars on a logarithmic scale, with a line at each power of ten.
fn bytes(peers: &[Peer], figure: &Figure, path: &Path) -> Result<()> {
    let rows = rows(peers, figure);
    let most = rows.iter().map(|(_, value)| *value).fold(1.0, f64::max);
    let (first, last) = (1.0, most.log10().ceil());
    let place = |value: f64| scale(value.log10() - first, last - first);
    draw(path, rows.len(), "Bytes of the program", "the file, on a logarithmic scale", |area| {
        let bottom = TOP + rows.len() as i32 * ROW;
        for power in first as i32..=last as i32 {
            let x = LEFT + place(10f64.powi(power));
            area.draw(&PathElement::new([(x, TOP - 6), (x, bottom)], EDGE.stroke_width(1)))?;
            let label = number(10f64.powi(power), 0);
            text(area, &label, (x, bottom + 6), 12, FAINT, HPos::Center)?;
        }
        for (row, (peer, value)) in rows.iter().enumerate() {
            name(area, row, peer)?;
            bar(area, row, (0, place(*value)), shade(peer))?;
            value_label(area, row, place(*value), &number(*value, 0))?;
        }
        Ok(())
    })
}

/// Bars that are made of the kinds of memory.
fn memory(peers: &[Peer], kinds: &[&Figure], path: &Path) -> Result<()> {
    let of =
        |peer: usize| kinds.iter().map(|it| Some(it.summary(peer)?.median)).collect::<Option<_>>();
    let rows: Vec<(&Peer, Vec<f64>)> =
        peers.iter().enumerate().filter_map(|(index, peer)| Some((peer, of(index)?))).collect();
    let most = rows.iter().map(|(_, values)| values.iter().sum()).fold(1.0, f64::max);
    let subtitle = "KiB for each instance, PID 1 of its own PID namespace";
    draw(path, rows.len(), "Memory of a sleeping instance", subtitle, |area| {
        for (row, (peer, values)) in rows.iter().enumerate() {
            name(area, row, peer)?;
            let mut from = 0.0;
            for (value, shade) in values.iter().zip(SHADES) {
                // Noise can make a small figure negative.
                let to = from + value.max(0.0);
                bar(area, row, (scale(from, most), scale(to, most)), shade)?;
                from = to;
            }
            let (own, all) = (values[0] + values[1], values.iter().sum());
            let label = format!("{} of {} KiB", number(own, 1), number(all, 1));
            value_label(area, row, scale(from, most), &label)?;
        }
        let y = TOP + rows.len() as i32 * ROW + 6;
        let whose = ["its own pages", "its page tables", "kernel stacks", "kernel objects"];
        for (index, (shade, whose)) in SHADES.into_iter().zip(whose).enumerate() {
            let x = LEFT + index as i32 * 150;
            area.draw(&Rectangle::new([(x, y), (x + 12, y + 12)], shade.filled()))?;
            text(area, whose, (x + 18, y), 13, INK, HPos::Left)?;
        }
        Ok(())
    })
}

/// Bars, and a zero where there is none.
fn cpu(peers: &[Peer], figure: &Figure, path: &Path) -> Result<()> {
    let rows = rows(peers, figure);
    let most = rows.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
    let subtitle = "milliseconds on a CPU while all the orphans die";
    draw(path, rows.len(), "CPU time of PID 1 for reaping", subtitle, |area| {
        for (row, (peer, value)) in rows.iter().enumerate() {
            name(area, row, peer)?;
            bar(area, row, (0, scale(*value, most)), shade(peer))?;
            value_label(area, row, scale(*value, most), &format!("{} ms", number(*value, 0)))?;
        }
        Ok(())
    })
}

/// For each peer, from fast to slow: a line from the 5th percentile to the 95th, a box around the
/// middle half, a mark at the median.
fn life(peers: &[Peer], figure: &Figure, path: &Path) -> Result<()> {
    let rows: Vec<_> = peers
        .iter()
        .zip(&figure.samples)
        .filter(|(_, samples)| !samples.is_empty())
        .map(|(peer, samples)| {
            (peer, [0.05, 0.25, 0.5, 0.75, 0.95].map(|it| quantile(samples, it)))
        })
        .collect();
    let most = rows.iter().map(|(_, shares)| shares[4]).fold(1.0, f64::max);
    let subtitle = "microseconds from clone to gone on SIGTERM: the median in figures, middle half, 5 % to 95 %";
    draw(path, rows.len(), "A whole life", subtitle, |area| {
        for (row, (peer, shares)) in rows.iter().enumerate() {
            name(area, row, peer)?;
            let [p5, p25, p50, p75, p95] = shares.map(|value| scale(value, most));
            let middle = TOP + row as i32 * ROW + BAR / 2;
            let line = [(LEFT + p5, middle), (LEFT + p95, middle)];
            area.draw(&PathElement::new(line, shade(peer).stroke_width(2)))?;
            bar(area, row, (p25, p75.max(p25 + 2)), shade(peer))?;
            bar(area, row, (p50 - 1, p50 + 1), INK)?;
            value_label(area, row, p95, &format!("{} µs", number(shares[2], 0)))?;
        }
        Ok(())
    })
}

/// The peers that there is a figure of.
fn rows<'a>(peers: &'a [Peer], figure: &Figure) -> Vec<(&'a Peer, f64)> {
    let of = |(index, peer)| Some((peer, figure.summary(index)?.median));
    peers.iter().enumerate().filter_map(of).collect()
}

/// A length in pixels for a value.
fn scale(value: f64, most: f64) -> i32 {
    (value / most * f64::from(LONGEST)).round() as i32
}

fn shade(peer: &Peer) -> RGBColor {
    if peer.is_ours() { ACCENT } else { OTHER }
}

/// Draws a panel with a title, and on it what there is to show.
fn draw(
    path: &Path,
    rows: usize,
    title: &str,
    subtitle: &str,
    show: impl FnOnce(&Area) -> Result<()>,
) -> Result<()> {
    let height = TOP + rows as i32 * ROW + 36;
    let area = SVGBackend::new(path, (WIDTH as u32, height as u32)).into_drawing_area();
    area.fill(&PANEL)?;
    let edge = [(0, 0), (WIDTH - 1, height - 1)];
    area.draw(&Rectangle::new(edge, EDGE.stroke_width(1)))?;
    text(&area, title, (24, 20), 20, INK, HPos::Left)?;
    text(&area, subtitle, (24, 48), 14, FAINT, HPos::Left)?;
    show(&area)?;
    area.present().map_err(|error| anyhow!("cannot write {}: {error}", path.display()))
}

/// Names a row.
fn name(area: &Area, row: usize, peer: &Peer) -> Result<()> {
    let ink = if peer.is_ours() { ACCENT } else { INK };
    text(area, &peer.name, (LEFT - 12, TOP + row as i32 * ROW + 4), 14, ink, HPos::Right)
}

/// A bar in a row, from one place to another.
fn bar(area: &Area, row: usize, (from, to): (i32, i32), color: RGBColor) -> Result<()> {
    let top = TOP + row as i32 * ROW;
    let corners = [(LEFT + from, top), (LEFT + to, top + BAR)];
    Ok(area.draw(&Rectangle::new(corners, color.filled()))?)
}

/// The figure at the end of a bar.
fn value_label(area: &Area, row: usize, end: i32, label: &str) -> Result<()> {
    text(area, label, (LEFT + end + 8, TOP + row as i32 * ROW + 4), 14, INK, HPos::Left)
}

fn text(
    area: &Area,
    text: &str,
    place: (i32, i32),
    size: i32,
    ink: RGBColor,
    side: HPos,
) -> Result<()> {
    let style = ("sans-serif", size).into_font().color(&ink).pos(Pos::new(side, VPos::Top));
    Ok(area.draw(&Text::new(text, place, style))?)
}
