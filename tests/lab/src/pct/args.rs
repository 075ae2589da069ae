//! The command line: `VERB VMID WORD… --key value …`.

use std::collections::BTreeMap;

use anyhow::Result;

use super::die;

/// One command line, taken apart.
pub(super) struct Args {
    pub(super) verb: String,
    /// The container; 0 for verbs that have none.
    pub(super) id: u32,
    /// Words after it that are no options; for `exec` the command.
    pub(super) words: Vec<String>,
    /// `--key value`, `-key value`, `--key=value`; a key without a value is "1".
    pub(super) options: BTreeMap<String, String>,
}

impl Args {
    pub(super) fn parse(verb: &str, rest: &[String]) -> Result<Args> {
        let mut args = Args { verb: verb.to_owned(), id: 0, words: Vec::new(), options: BTreeMap::new() };
        if verb == "list" {
            return Ok(args);
        }
        let Some((id, rest)) = rest.split_first() else {
            return Err(die(format!("400 not enough arguments\n{}", args.usage())));
        };
        args.id = id
            .parse()
            .map_err(|_| args.refuse(&format!("vmid: type check ('integer') failed - got '{id}'")))?;
        if args.id < 100 {
            return Err(args.refuse("vmid: value must have a minimum value of 100"));
        }
        let mut rest = rest.iter().peekable();
        while let Some(word) = rest.next() {
            if word == "--" {
                args.words.extend(rest.by_ref().cloned());
                break;
            }
            let Some(key) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
                args.words.push(word.clone());
                // Everything after the first word of a command is its own.
                if verb == "exec" {
                    args.words.extend(rest.by_ref().cloned());
                }
                continue;
            };
            let (key, value) = match key.split_once('=') {
                Some((key, value)) => (key, value.to_owned()),
                None => match rest.next_if(|next| !next.starts_with("--")) {
                    Some(value) => (key, value.clone()),
                    None => (key, "1".to_owned()),
                },
            };
            args.options.insert(key.to_owned(), value);
        }
        Ok(args)
    }

    /// An option's value.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.options.get(key).map(String::as_str)
    }

    /// Is this option given, and not 0?
    pub(super) fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| value != "0")
    }

    /// A word that must be there.
    pub(super) fn word(&self, at: usize) -> Result<&str> {
        let found = self.words.get(at).map(String::as_str);
        found.ok_or_else(|| die(format!("400 not enough arguments\n{}", self.usage())))
    }

    /// The refusal of a wrong parameter.
    pub(super) fn refuse(&self, why: &str) -> anyhow::Error {
        die(format!("400 Parameter verification failed.\n{why}\n{}", self.usage()))
    }

    pub(super) fn usage(&self) -> String {
        let more = match self.verb.as_str() {
            "exec" => " [<extra-args>]",
            "push" => " <file> <destination>",
            "pull" => " <path> <destination>",
            "create" => " <ostemplate>",
            "clone" => " <newid>",
            "snapshot" | "rollback" | "delsnapshot" => " <snapname>",
            _ => "",
        };
        format!("pct {} <vmid>{more} [OPTIONS]", self.verb)
    }
}
