//! README's table of settings, from the table in the source.

use phoenix_nvidia::settings::keys::{self, Spec};

const BEGIN: &str = "<!-- Made by phoenix-xtask from src/settings/keys.rs. -->\n";
const END: &str = "<!-- End of what is made. -->\n";

/// The README with the table as it should be; unchanged without the markers.
pub fn make(readme: &str) -> String {
    let between = readme.split_once(BEGIN).and_then(|(head, rest)| Some((head, rest.split_once(END)?.1)));
    match between {
        Some((head, tail)) => format!("{head}{BEGIN}{}{END}{tail}", table()),
        None => readme.to_owned(),
    }
}

fn table() -> String {
    let rows: String = keys::ALL.iter().map(|key| row(key)).collect();
    format!("| setting | default | meaning |\n| --- | --- | --- |\n{rows}")
}

/// The first sentence of the help; phoenix-nvidia.env(5) has all of it.
fn row(key: &Spec) -> String {
    let unit = if ["seconds", "MiB"].contains(&key.unit) { format!(" {}", key.unit) } else { String::new() };
    let default = key.default.map_or("required".to_owned(), |default| format!("`{default}`{unit}"));
    let meaning = key.help().split_once(". ").map_or(key.help().trim_end_matches('.'), |(first, _)| first);
    format!("| `{}` | {default} | {meaning} |\n", key.name)
}
