//! `pct set` and `pct unlock`.

use anyhow::Result;

use super::args::Args;
use super::conf::{Conf, Section};
use super::{die, die_with, generate, hook, lock, lxc, schema, warn};

/// `pct set N --key value … --delete key,key --revert key,key`
pub(super) fn set(args: &Args) -> Result<u8> {
    let (values, gone) = wishes(args)?;
    let _held = lock::take(args.id)?;
    let mut conf = Conf::load(args.id)?;
    if let Some(word) = conf.current.get("lock").filter(|_| !args.flag("skiplock")) {
        return Err(die(format!("CT is locked ({word})")));
    }
    let running = lxc::running(args.id);
    if !running {
        conf.apply_pending();
    }
    for (_, keys) in args.options.iter().filter(|(option, _)| *option == "revert") {
        keys.split([',', ' ', ';']).for_each(|key| conf.revert(key));
    }
    for key in gone {
        let at_once = !running || schema::hotplug(&key);
        if at_once {
            conf.current.keys.remove(&key);
        } else {
            let pending = conf.pending.get_or_insert_with(Section::default);
            let list = pending.get("delete").map_or(key.clone(), |known| format!("{known},{key}"));
            pending.set("delete", &list);
        }
    }
    for (key, value) in values {
        let at_once = !running || schema::hotplug(&key);
        let section =
            if at_once { &mut conf.current } else { conf.pending.get_or_insert_with(Section::default) };
        section.set(&key, &value);
    }
    // The genuine one checks its own text once more, and says again what it does not know.
    let mut warnings = Vec::new();
    Conf::parse(&conf.render(), &mut warnings);
    conf.store(args.id)?;
    for warning in warnings {
        warn(&format!("vm {} - {warning}", args.id));
    }
    // Of a running container too: PVE::API2::LXC::Config::update_vm ends with update_lxc_config. What the config
    // said of that start is lost. A template has none.
    if !conf.current.flag("template") {
        generate::write(args.id, &conf.current)?;
    }
    Ok(0)
}

/// What is to be set, and what is to go.
type Wishes = (Vec<(String, String)>, Vec<String>);

fn wishes(args: &Args) -> Result<Wishes> {
    let mut values = Vec::new();
    let mut gone = Vec::new();
    for (key, value) in &args.options {
        match key.as_str() {
            "delete" => {
                gone.extend(value.split([',', ' ', ';']).filter(|key| !key.is_empty()).map(str::to_owned))
            }
            "skiplock" | "digest" | "force" | "revert" => {}
            "hookscript" => {
                check_hookscript(args, value)?;
                values.push((key.clone(), value.clone()));
            }
            _ => match schema::fault(key, value) {
                Some(fault) if fault.starts_with("unknown") => {
                    return Err(die(format!(
                        "Unknown option: {key}\n400 unable to parse option\n{}",
                        args.usage()
                    )));
                }
                Some(fault) => return Err(args.refuse(&format!("{key}: {fault}"))),
                None => values.push((key.clone(), value.clone())),
            },
        }
    }
    Ok((values, gone))
}

fn check_hookscript(args: &Args, volume: &str) -> Result<()> {
    if !volume.contains(':') || volume.starts_with('/') {
        let why = format!("hookscript: invalid format - unable to parse volume ID '{volume}'\n");
        return Err(args.refuse(&why));
    }
    match hook::check(volume) {
        Ok(_) => Ok(()),
        Err(hook::Unfit::Missing(text)) => Err(die_with(2, text)),
        Err(hook::Unfit::NotExecutable(text)) => Err(die(text)),
    }
}

/// `pct unlock N`
pub(super) fn unlock(args: &Args) -> Result<u8> {
    let _held = lock::take(args.id)?;
    let mut conf = Conf::load(args.id)?;
    conf.current.keys.remove("lock");
    conf.store(args.id)?;
    Ok(0)
}
