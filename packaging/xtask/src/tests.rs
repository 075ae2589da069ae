//! What is checked in is what would be made; help and pages can be read by
//! somebody new.

use super::*;
use clap::Command;

#[test]
fn what_is_checked_in_is_not_stale() {
    for (path, content) in files() {
        let there = std::fs::read_to_string(root().join(path)).unwrap_or_default();
        assert!(there == content, "{path} is stale: cargo run -p phoenix-xtask");
    }
}

fn commands() -> Vec<Command> {
    let mut command = phoenix_nvidia::cli::Cli::command();
    command.build();
    let mut all: Vec<Command> = command.get_subcommands().cloned().collect();
    all.push(command);
    all.retain(|c| c.get_name() != "help");
    all
}

#[test]
fn every_option_has_one_plain_sentence() {
    for command in commands() {
        assert!(command.get_about().is_some(), "{}", command.get_name());
        for argument in command.get_arguments().filter(|a| !a.is_hide_set()) {
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            let name = argument.get_id();
            let length = help.chars().count();
            assert!((4..=80).contains(&length), "{} {name}: {help:?}", command.get_name());
            assert!(!help.ends_with('.') && !help.contains(". "), "{name}: one sentence: {help:?}");
        }
    }
}

#[test]
fn help_is_not_wider_than_80_columns() {
    for command in commands() {
        let mut command = command.term_width(80);
        for text in [command.render_help().to_string(), command.render_long_help().to_string()] {
            for line in text.lines() {
                assert!(line.chars().count() <= 80, "{}: {line:?}", command.get_name());
            }
        }
    }
}

#[test]
fn verbatim_lines_of_the_pages_and_the_conffile_fit_80_columns() {
    for (path, content) in files() {
        if path.contains("/man/") {
            let mut verbatim = false;
            for line in content.lines() {
                verbatim = (verbatim || line == ".nf") && line != ".fi";
                assert!(!verbatim || line.replace('\\', "").chars().count() <= 69, "{path}: {line:?}");
            }
        }
        if path.contains("/default/") {
            for line in content.lines().filter(|l| !l.contains("://")) {
                assert!(line.chars().count() <= 80, "{path}: {line:?}");
            }
        }
    }
}

/// As man(1) shows them on a terminal of 80 columns.
#[test]
fn the_pages_are_not_wider_than_80_columns_and_groff_has_nothing_to_say() {
    for (path, _) in files().iter().filter(|(path, _)| path.contains("/man/")) {
        #[allow(clippy::disallowed_methods)] // a test's own child
        let out = std::process::Command::new("groff")
            .args(["-man", "-Tascii", "-P-c", "-rLL=78n", "-ww"])
            .arg(root().join(path))
            .output();
        let Ok(out) = out else {
            assert!(std::env::var("PHOENIX_REQUIRE_LAB").is_err(), "groff is not installed");
            return;
        };
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success() && said.is_empty(), "{path}: {said}");
        let text = String::from_utf8_lossy(&out.stdout);
        // Bold is a character struck twice.
        let plain = |line: &str| {
            let mut shown: Vec<char> = Vec::new();
            for c in line.chars() {
                if c == '\u{8}' {
                    shown.pop();
                } else {
                    shown.push(c);
                }
            }
            shown.len()
        };
        assert!(text.lines().count() > 50, "{path}");
        for line in text.lines() {
            assert!(plain(line) <= 80, "{path}: {line:?}");
        }
    }
}

#[test]
fn the_env_page_has_every_setting_and_the_conffile_works_as_it_stands() {
    let page = env_page::make();
    let conffile = conffile::make();
    for key in phoenix_nvidia::settings::keys::ALL {
        assert!(page.contains(&format!("\\fB{}\\fR", key.name)), "{}", key.name);
        let set = conffile.lines().any(|l| l.starts_with(&format!("{}=", key.name)));
        let shown = conffile.lines().any(|l| l.starts_with(&format!("#{}=", key.name)));
        assert_eq!(set, key.required() && key.name != "GPU_ASSIGNMENT", "{}", key.name);
        assert!(set || shown, "{}", key.name);
    }
    assert!(conffile.contains("\nNVIDIA_DRIVER_VERSION=host\n") && conffile.contains("{version}"));
}

#[test]
fn the_readme_has_every_setting() {
    let readme = readme::make(include_str!("../../../README.md"));
    for key in phoenix_nvidia::settings::keys::ALL {
        assert!(readme.contains(&format!("\n| `{}` | ", key.name)), "{}", key.name);
    }
}

/// Runs bash in a directory of confs, as a user would press tab.
fn tab(words: &[&str]) -> Vec<String> {
    let dir = std::env::temp_dir().join(format!("phoenix-completions-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    for id in ["101", "102", "230"] {
        std::fs::File::create(dir.join(format!("{id}.conf"))).unwrap();
    }
    let script = completions::make()[0].1.replace("/etc/pve/lxc", &dir.to_string_lossy());
    let last = words.len() - 1;
    let array: String = words.iter().map(|w| format!("'{w}' ")).collect();
    let line = format!(
        "{script}\nCOMP_WORDS=({array}); COMP_CWORD={last}\n\
         _phoenix_nvidia_with_ctids '{}' '{}' '{}'\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"",
        words[0],
        words[last],
        words[last - 1]
    );
    #[allow(clippy::disallowed_methods)] // a test's own child
    let out = std::process::Command::new("bash").args(["-c", &line]).output().unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    assert!(out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_options_and_containers() {
    let first = tab(&["phoenix-nvidia", ""]);
    assert!(first.contains(&"doctor".to_owned()) && first.contains(&"230".to_owned()), "{first:?}");
    assert_eq!(tab(&["phoenix-nvidia", "doctor", "10"]), ["101", "102"]);
    assert!(tab(&["phoenix-nvidia", "attach", "--g"]).contains(&"--gpus".to_owned()));
    assert!(!tab(&["phoenix-nvidia", "attach", "--gpus", ""]).contains(&"101".to_owned()));
    assert!(!tab(&["phoenix-nvidia", "prepare", ""]).contains(&"101".to_owned()));
}

#[test]
fn the_completions_know_the_commands_and_not_the_hidden_one() {
    // As bash, zsh and fish write a command; `--install` is an option.
    let knows = |content: &str, name: &str| {
        let arms = [format!(",{name})"), format!("'{name}:"), format!("-a \"{name}\"")];
        arms.iter().any(|arm| content.contains(arm))
            || content.lines().any(|l| l.trim() == format!("({name})"))
    };
    for (path, content) in completions::make() {
        assert!(knows(&content, "attach") && knows(&content, "doctor"), "{path}");
        assert!(!knows(&content, "install") && !knows(&content, "look"), "{path}");
    }
}
