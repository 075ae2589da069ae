//! The README's picture, from a small text: lanes side by side, steps from
//! top to bottom.

const LANE: usize = 260;
const GAP: usize = 20;
const TOP: usize = 84;
const STEP: usize = 12;
const LINE: usize = 17;
/// Characters that fit into a box at this size of type.
const FIT: usize = 35;

struct Step<'a> {
    lane: usize,
    ours: bool,
    lines: Vec<String>,
    text: &'a str,
}

/// The SVG.
pub fn make(source: &str) -> String {
    let mut title = "";
    let mut lanes: Vec<&str> = Vec::new();
    let mut steps: Vec<Step> = Vec::new();
    for line in source.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        if let Some(text) = line.strip_prefix("title ") {
            title = text;
            continue;
        }
        let Some((lane, text)) = line.split_once('|') else { continue };
        let ours = lane.starts_with('!');
        let name = lane.trim_start_matches('!').trim();
        let lane = lanes.iter().position(|l| *l == name).unwrap_or_else(|| {
            lanes.push(name);
            lanes.len() - 1
        });
        steps.push(Step { lane, ours, lines: crate::conffile::wrap(text, FIT), text });
    }
    draw(title, &lanes, &steps)
}

fn draw(title: &str, lanes: &[&str], steps: &[Step]) -> String {
    let heights: Vec<usize> = steps.iter().map(|s| s.lines.len() * LINE + 14).collect();
    let width = lanes.len() * (LANE + GAP) + GAP;
    let height = TOP + heights.iter().map(|h| h + STEP).sum::<usize>() + GAP;
    let words: Vec<&str> = steps.iter().map(|s| s.text.trim()).collect();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         role=\"img\" font-family=\"sans-serif\" font-size=\"13\">\n<title>{}</title>\n<desc>{}</desc>\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"{GAP}\" y=\"30\" font-size=\"17\" font-weight=\"bold\" fill=\"#1a1a1a\">{}</text>\n",
        escape(title),
        escape(&words.join(". ")),
        escape(title)
    );
    for (n, lane) in lanes.iter().enumerate() {
        let middle = left(n) + LANE / 2;
        svg.push_str(&format!(
            "<text x=\"{middle}\" y=\"62\" text-anchor=\"middle\" font-weight=\"bold\" fill=\"#444444\">{}</text>\n\
             <line x1=\"{middle}\" y1=\"70\" x2=\"{middle}\" y2=\"{}\" stroke=\"#cccccc\" stroke-width=\"2\"/>\n",
            escape(lane),
            height - GAP / 2
        ));
    }
    let mut y = TOP;
    let mut previous: Option<(usize, usize)> = None;
    for (step, height) in steps.iter().zip(heights) {
        let x = left(step.lane);
        if let Some((lane, bottom)) = previous.filter(|(lane, _)| *lane != step.lane) {
            svg.push_str(&arrow(lane, bottom, step.lane, y));
        }
        let (fill, stroke) = if step.ours { ("#eaf6d8", "#5f9400") } else { ("#f4f4f4", "#999999") };
        svg.push_str(&format!(
            "<rect x=\"{x}\" y=\"{y}\" width=\"{LANE}\" height=\"{height}\" rx=\"6\" fill=\"{fill}\" stroke=\"{stroke}\"/>\n"
        ));
        for (n, line) in step.lines.iter().enumerate() {
            let (x, y) = (x + 12, y + 20 + n * LINE);
            svg.push_str(&format!("<text x=\"{x}\" y=\"{y}\" fill=\"#1a1a1a\">{}</text>\n", escape(line)));
        }
        y += height;
        previous = Some((step.lane, y));
        y += STEP;
    }
    svg.push_str("</svg>\n");
    svg
}

fn left(lane: usize) -> usize {
    GAP + lane * (LANE + GAP)
}

/// From the lower corner of one box to the side of the next.
fn arrow(from: usize, bottom: usize, to: usize, top: usize) -> String {
    let right = to > from;
    let start = left(from) + if right { LANE - 24 } else { 24 };
    let end = if right { left(to) - 1 } else { left(to) + LANE + 1 };
    let y = top + 14;
    let (back, tip) = if right { (end - 7, end) } else { (end + 7, end) };
    format!(
        "<path d=\"M{start} {bottom} V{y} H{back}\" fill=\"none\" stroke=\"#777777\" stroke-width=\"1.5\"/>\n\
         <path d=\"M{back} {} L{tip} {y} L{back} {} Z\" fill=\"#777777\"/>\n",
        y - 4,
        y + 4
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
