//! The rows as a table for people.

use super::row::{Row, RowGpu};
use crate::findings::finding::Level;
use crate::state::{self, Outcome};
use crate::sys::out::{Out, Style};

const HEAD: [&str; 9] = ["CTID", "STATE", "GPUS", "KERNEL", "CONTAINER", "MODE", "HOOK", "LAST", "VERDICT"];

/// Prints them, each with its reasons below it.
pub fn print(out: &Out, rows: &[Row]) {
    if rows.is_empty() {
        out.line("No container of this node has GPUs; to give it some: phoenix-nvidia attach CTID --gpus 0");
        return;
    }
    let cells: Vec<[String; 9]> = rows.iter().map(|row| cells(row, state::now())).collect();
    let width = |n: usize| {
        let body = cells.iter().map(|row| row[n].chars().count());
        body.chain([HEAD[n].len()]).max().unwrap_or_default()
    };
    let widths: [usize; 9] = std::array::from_fn(width);
    let line = |row: &[String; 9]| {
        let padded = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    out.line(out.paint(Style::Bold, line(&HEAD.map(str::to_owned))));
    for (row, cells) in rows.iter().zip(&cells) {
        out.line(
            out.paint(if row.verdict == Level::Ok { Style::Plain } else { row.verdict.style() }, line(cells)),
        );
        for reason in &row.reasons {
            out.line(format_args!("      {reason}"));
        }
    }
}

fn cells(row: &Row, now: u64) -> [String; 9] {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let state = match (row.template, row.running) {
        (true, _) => "template",
        (_, true) => "running",
        (_, false) => "stopped",
    };
    let last = row.last.as_ref().map_or_else(
        || "never".to_owned(),
        |last| format!("{} {}", word(last.outcome), ago(now.saturating_sub(last.at))),
    );
    [
        row.ctid.to_string(),
        state.to_owned(),
        gpus(&row.gpus),
        or_dash(&row.kernel_driver),
        or_dash(&row.container_driver),
        row.driver_mode.to_owned(),
        row.hookscript.to_owned(),
        last,
        row.verdict.word().to_owned(),
    ]
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::None => "none",
        Outcome::Running => "running",
        Outcome::Ok => "ok",
        Outcome::Warning => "warned",
        Outcome::Failed => "failed",
    }
}

/// `0,1 NVIDIA H200`: the minors of each model.
fn gpus(gpus: &[RowGpu]) -> String {
    let mut models: Vec<(&str, Vec<String>)> = Vec::new();
    for gpu in gpus {
        let minor = gpu.minor.map_or_else(|| "?".to_owned(), |minor| minor.to_string());
        match models.iter_mut().find(|(model, _)| *model == gpu.model) {
            Some((_, minors)) => minors.push(minor),
            None => models.push((&gpu.model, vec![minor])),
        }
    }
    let words: Vec<String> = models.iter().map(|(m, minors)| format!("{} {m}", minors.join(","))).collect();
    if words.is_empty() { "none".to_owned() } else { words.join("; ") }
}

/// Seconds as a person says them.
fn ago(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s ago"),
        120..=7199 => format!("{} min ago", seconds / 60),
        7200..=172_799 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_models_share_their_name() {
        let gpu = |minor, model: &str| RowGpu { minor, model: model.into(), uuid: None, pci: None };
        assert_eq!(gpus(&[gpu(Some(0), "A"), gpu(Some(2), "A"), gpu(Some(1), "B")]), "0,2 A; 1 B");
        assert_eq!(gpus(&[]), "none");
        assert_eq!(gpus(&[gpu(None, "A")]), "? A");
    }

    #[test]
    fn ages_have_the_unit_that_one_would_say() {
        assert_eq!([5, 150, 7200, 200_000].map(ago), ["5 s ago", "2 min ago", "2 h ago", "2 days ago"]);
    }
}
