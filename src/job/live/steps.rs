//! The steps that are done while a container runs, each with its way back.

use super::difference::{Exchange, Running, Step};
use super::enter::{Act, Done};
use crate::device::{Device, DevicePath, Number};
use crate::driver::tree::{self, Trees};
use crate::exit::{Code, Fault};
use crate::job::undo::Undo;
use crate::pve::cgroup::{self, Rule};
use crate::pve::conf::document::Document;
use crate::pve::conf::rules::{Opens, rules};
use crate::pve::pct::Init;
use crate::sys::detached::Holds;
use crate::types::Ctid;
use std::path::PathBuf;

/// Why nothing can be done in one that lives: its first thread has ended, and with that its
/// way to the namespaces.
const NO_ENTRY: &str = "its first process cannot be entered";

/// The container's first process ended: nothing more is to be done in it.
#[derive(Debug)]
pub struct Gone(pub Ctid);

impl std::fmt::Display for Gone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "container {} has stopped meanwhile", self.0)
    }
}

impl std::error::Error for Gone {}

/// What opens devices before a step: a step that fails opens no other ones, and
/// shuts none.
#[derive(Clone, Copy)]
pub struct Before<'a> {
    /// The conf, for the user's own rules.
    pub conf: &'a Document,
    /// What the container has.
    pub has: &'a Running,
}

impl Before<'_> {
    /// The line of the conf with a rule of the user's that opens the device.
    pub(super) fn line(self, number: Number) -> Option<usize> {
        let opens = |opens: Opens| match opens {
            Opens::Everything => true,
            Opens::Major(major) => major == number.major,
            Opens::One(one) => one == number,
        };
        rules(self.conf).into_iter().find(|rule| opens(rule.opens)).map(|rule| rule.line)
    }

    fn opens(self, number: Number) -> bool {
        self.has.opens_number(number) || self.line(number).is_some()
    }
}

/// A running container, in one start of it.
#[derive(Clone, Debug)]
pub struct Place {
    /// The container.
    pub ctid: Ctid,
    /// Its first process.
    pub init: Init,
}

impl Place {
    /// Does a step, and notes how to undo it. What goes is [shut](Place::shut)
    /// before.
    ///
    /// # Errors
    /// [`Gone`]; [`Code::Passthrough`].
    pub fn step(&self, step: &Step, before: Before<'_>, undo: &mut Undo) -> anyhow::Result<()> {
        match step {
            Step::Add { device, over } => self.add(*device, *over, before, undo),
            Step::Allow(device) => self.rule(device.path, device.number(), Rule::Allow, before, undo),
            Step::Take(path, number) => self.take(*path, *number, before, undo),
            Step::Tree(exchange) => self.exchange(exchange, undo),
        }
    }

    fn lives(&self) -> anyhow::Result<()> {
        if self.init.lives() { Ok(()) } else { Err(Gone(self.ctid).into()) }
    }

    /// Does one act inside; `back` undoes it. Where it is not known whether it
    /// was done, it is undone too.
    fn act(&self, what: &str, act: Act, back: Option<Act>, undo: &mut Undo) -> anyhow::Result<()> {
        let fault = || {
            let fault = Fault::new(
                Code::Passthrough,
                format!("cannot {what} in the running container {}", self.ctid),
            );
            fault.remedy(format!("phoenix-nvidia {}", self.ctid))
        };
        let note = |undo: &mut Undo| {
            let (place, what) = (self.clone(), what.to_owned());
            let Some(back) = back else { return };
            undo.push(what, move || match back.run(&place.init)? {
                Done::Is(done) => Ok(done),
                Done::Gone if place.init.lives() => Err(anyhow::anyhow!(NO_ENTRY)),
                Done::Gone => Ok(false),
                Done::Refused(why) => Err(anyhow::anyhow!(why)),
            });
        };
        match act.run(&self.init) {
            Ok(Done::Is(done)) => {
                // What was so already is no step of ours.
                if done {
                    note(undo);
                }
                Ok(())
            }
            Ok(Done::Gone) => {
                self.lives()?;
                Err(anyhow::anyhow!(NO_ENTRY).context(fault()))
            }
            Ok(Done::Refused(why)) => Err(anyhow::anyhow!(why).context(fault())),
            Err(_) if !self.init.lives() => Err(Gone(self.ctid).into()),
            Err(error) => {
                note(undo);
                Err(fault().caused_by(error))
            }
        }
    }

    fn add(
        &self,
        device: Device,
        over: Option<Number>,
        before: Before<'_>,
        undo: &mut Undo,
    ) -> anyhow::Result<()> {
        let (path, number) = (device.path, device.number());
        let act = Act::device(path, number, over.is_some());
        let back = Act::take_device(path, Some(number));
        self.act(&format!("mount {path}"), act, Some(back), undo)?;
        let rules = before.has.rules.iter().filter(|rule| rule.path == path && rule.number() != number);
        for old in rules.map(|rule| rule.number()).filter(|old| before.line(*old).is_none()) {
            self.rule(path, old, Rule::Deny, before, undo)?;
        }
        self.rule(path, number, Rule::Allow, before, undo)
    }

    /// Changes a rule. The way back is only to what was in force before: the number may
    /// be that of a node which the container made and mounted.
    fn rule(
        &self,
        path: DevicePath,
        number: Number,
        rule: Rule,
        before: Before<'_>,
        undo: &mut Undo,
    ) -> anyhow::Result<()> {
        let had = if before.opens(number) { Rule::Allow } else { Rule::Deny };
        if had != rule {
            let place = self.clone();
            undo.push(format!("the device rule of {path}"), move || {
                if place.init.lives() {
                    cgroup::change(place.ctid, had, number).map(|()| true)
                } else {
                    Ok(false)
                }
            });
        }
        self.change(rule, number)
    }

    /// The same without a way back.
    pub(super) fn change(&self, rule: Rule, number: Number) -> anyhow::Result<()> {
        self.lives()?;
        cgroup::change(self.ctid, rule, number).or_else(|error| self.lives().and(Err(error)))
    }

    /// Takes the rule away of what goes, and leaves its node. That of what can wait goes
    /// after it, if that can go.
    ///
    /// # Errors
    /// As [`Place::step`].
    pub fn shut(&self, step: &Step, before: Before<'_>, undo: &mut Undo) -> anyhow::Result<()> {
        match step {
            Step::Take(path, number) if !step.can_wait() => self.close(*path, *number, before, undo),
            _ => Ok(()),
        }
    }

    fn close(
        &self,
        path: DevicePath,
        number: Option<Number>,
        before: Before<'_>,
        undo: &mut Undo,
    ) -> anyhow::Result<()> {
        match number.map(|number| (number, before.line(number))) {
            Some((number, None)) => return self.rule(path, number, Rule::Deny, before, undo),
            Some((_, Some(line))) => log::warn!(
                "line {line} of the conf of container {} allows {path} all the same; only its node is taken away",
                self.ctid
            ),
            None => {}
        }
        Ok(())
    }

    fn take(
        &self,
        path: DevicePath,
        number: Option<Number>,
        before: Before<'_>,
        undo: &mut Undo,
    ) -> anyhow::Result<()> {
        // A node without a rule of ours did not come from us. The host's directory, which an
        // older start gave, does not come back.
        let ours = number.filter(|number| path != DevicePath::Caps && before.opens(*number));
        let back = ours.map(|number| Act::device(path, number, false));
        self.act(&format!("take away {path}"), Act::take_device(path, number), back, undo)?;
        if Step::Take(path, number).can_wait() { self.close(path, number, before, undo) } else { Ok(()) }
    }

    fn exchange(&self, exchange: &Exchange, undo: &mut Undo) -> anyhow::Result<()> {
        let put = |source: PathBuf, target: &str, over: bool| Act::Put {
            source,
            target: target.into(),
            holds: Holds::Programs,
            number: None,
            over,
        };
        let before = exchange.old.as_ref().map(|old| Trees::host().shown_at(old));
        for (mount, over) in &exchange.places {
            let act = put(tree::source().into(), &mount.target, *over);
            let back = match (over, &before) {
                (true, before) => before.clone().map(|before| put(before, &mount.target, true)),
                (false, _) => Some(Act::Take { target: (&mount.target).into(), number: None }),
            };
            self.act(&format!("mount the driver at /{}", mount.target), act, back, undo)?;
        }
        for target in &exchange.leaves {
            let back = before.clone().map(|before| put(before, target, false));
            let act = Act::Take { target: target.into(), number: None };
            self.act(&format!("take away the driver at /{target}"), act, back, undo)?;
        }
        Ok(())
    }
}
