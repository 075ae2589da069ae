//! The few requests of man(7) that the pages need.

/// A page under way.
pub struct Page(String);

impl Page {
    /// A page with its title line.
    pub fn new(name: &str, section: u8, title: &str) -> Page {
        Page(format!(
            ".\\\" Made by phoenix-xtask; edit its sources instead.\n.TH {name} {section} \"\" \"phoenix-nvidia\" \"{title}\"\n.nh\n.ad l\n"
        ))
    }

    /// A section.
    pub fn section(&mut self, title: &str) {
        self.0.push_str(&format!(".SH {}\n", escape(title)));
    }

    /// A section within one.
    pub fn subsection(&mut self, title: &str) {
        self.0.push_str(&format!(".SS {}\n", escape(title)));
    }

    /// A paragraph.
    pub fn text(&mut self, text: &str) {
        self.0.push_str(".PP\n");
        self.line(text);
    }

    /// A term and what it is.
    pub fn item(&mut self, term: &str, text: &str) {
        self.0.push_str(&format!(".TP\n\\fB{}\\fR\n", escape(term)));
        self.line(text);
    }

    /// A further line of an item, on a line of its own.
    pub fn also(&mut self, text: &str) {
        self.0.push_str(".br\n");
        self.line(text);
    }

    /// Lines as they are.
    pub fn verbatim(&mut self, text: &str) {
        self.0.push_str(".PP\n.RS 4\n.nf\n");
        text.lines().for_each(|line| self.line(line));
        self.0.push_str(".fi\n.RE\n");
    }

    /// The page.
    pub fn finish(self) -> String {
        self.0
    }

    fn line(&mut self, text: &str) {
        let text = escape(text);
        // A line that begins with one of these is a request.
        if text.starts_with(['.', '\'']) {
            self.0.push_str("\\&");
        }
        self.0.push_str(&text);
        self.0.push('\n');
    }
}

fn escape(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('…', "...");
    let words: Vec<String> = text.split(' ').map(breakable).collect();
    words.join(" ")
}

/// A long URL may be broken behind its slashes.
fn breakable(word: &str) -> String {
    if word.len() > 50 { word.replace('/', "/\\:") } else { word.to_owned() }
}
