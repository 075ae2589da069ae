//! A man page under way, on top of clap_mangen and the roff crate.

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

/// The page as text.
pub struct Page(String);

impl Page {
    /// A page with its title line. Nothing is hyphenated or justified, so that
    /// names and commands stay whole.
    pub fn new(name: &str, section: &str, title: &str) -> Page {
        let mut roff = Roff::new();
        roff.control("TH", [name, section, "\"\"", "phoenix-nvidia", title]);
        roff.control("nh", []).control("ad", ["l"]);
        Page(format!(".\\\" Made by phoenix-xtask; edit its sources instead.\n{}", roff.render()))
    }

    /// A section.
    pub fn section(&mut self, title: &str) {
        self.add(Roff::new().control("SH", [title]));
    }

    /// A section within one.
    pub fn subsection(&mut self, title: &str) {
        self.add(Roff::new().control("SS", [title]));
    }

    /// A paragraph.
    pub fn text(&mut self, text: &str) {
        self.add(Roff::new().control("PP", []).text([roman(text)]));
    }

    /// A term and what it is.
    pub fn item(&mut self, term: &str, text: &str) {
        self.add(Roff::new().control("TP", []).text([bold(term)]).text([roman(text)]));
    }

    /// Another line of an item.
    pub fn also(&mut self, text: &str) {
        self.add(Roff::new().control("br", []).text([roman(text)]));
    }

    /// Lines as they are.
    pub fn verbatim(&mut self, text: &str) {
        let mut roff = Roff::new();
        roff.control("PP", []).control("RS", ["4"]).control("nf", []);
        for line in text.lines() {
            roff.text([roman(line)]);
        }
        self.add(roff.control("fi", []).control("RE", []));
    }

    /// A command's options and arguments.
    pub fn options(&mut self, command: &Command) {
        let mut bytes = Vec::new();
        let written = Man::new(command.clone()).render_options_section(&mut bytes);
        let text = String::from_utf8_lossy(&bytes);
        if written.is_ok() {
            self.0.push_str(text.split_once(".SH OPTIONS\n").map_or("", |(_, options)| options));
        }
    }

    /// The page; a long URL may be broken after its slashes.
    pub fn finish(self) -> String {
        let word = |word: &str| if word.len() > 50 { word.replace('/', "/\\:") } else { word.to_owned() };
        let line = |line: &str| line.split(' ').map(word).collect::<Vec<_>>().join(" ") + "\n";
        self.0.lines().map(line).collect()
    }

    fn add(&mut self, roff: &Roff) {
        // The definition of the apostrophe stands at the top once.
        let text = roff.render();
        self.0.extend(text.lines().filter(|line| !line.contains(".ds Aq ")).map(|line| format!("{line}\n")));
    }
}
