//! /etc/default/phoenix-nvidia, from the table of settings.

use phoenix_nvidia::settings::keys::{self, Spec};

const HEAD: &str = "\
# Settings of phoenix-nvidia for this node, NAME=VALUE; nothing is expanded.
# A container's conf (lxc.environment: NAME=VALUE) and
# /etc/pve/phoenix-nvidia/default.env override this file.
# See phoenix-nvidia.env(5).
";

/// The file: required settings have values that work, the others are comments
/// with their defaults.
pub fn make() -> String {
    let mut text = HEAD.to_owned();
    for key in keys::ALL {
        text.push('\n');
        for line in wrap(key.help(), 77) {
            text.push_str(&format!("# {line}\n"));
        }
        text.push_str(&line_of(key));
    }
    text
}

fn line_of(key: &Spec) -> String {
    let name = key.name;
    match key.default {
        // Each container has GPUs of its own.
        None if name == keys::GPU_ASSIGNMENT.name => format!("#{name}={}\n", key.example),
        None => format!("{name}={}\n", key.example),
        Some(default) => format!("#{name}={default}\n"),
    }
}

/// The text in lines of at most `width` characters.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
