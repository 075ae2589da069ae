//! Steps that are rolled back, the last first, when a later one fails or a
//! signal ends the call.

use crate::exit;
use crate::sys::signal;
use std::time::Duration;

/// Rolls a step back; false when there was nothing to roll back.
type Step = Box<dyn FnOnce() -> anyhow::Result<bool>>;

/// How long a signal is put off for all steps together. One of them takes a
/// second, or ten where `pct` waits for a lock.
const TIME: Duration = Duration::from_secs(60);

/// The steps so far, and how to roll back each.
#[derive(Default)]
pub struct Undo {
    steps: Vec<(String, Step)>,
}

impl Undo {
    /// Notes a step: what rolling it back restores, and how. It is noted before
    /// the step is done, since an interrupted step may be done or not: so `step`
    /// looks at what is there.
    pub fn push(&mut self, what: impl Into<String>, step: impl FnOnce() -> anyhow::Result<bool> + 'static) {
        self.steps.push((what.into(), Box::new(step)));
    }

    /// Rolls all back, also after a signal. One that fails does not keep the
    /// others from it, and is told with its remedy. True if none failed.
    pub fn roll_back(self) -> bool {
        let mut all = true;
        let _calm = signal::put_off(TIME);
        for (what, step) in self.steps.into_iter().rev() {
            match step() {
                Ok(true) => log::info!("rolled back: {what}"),
                Ok(false) => {}
                Err(error) => {
                    all = false;
                    log::warn!("not rolled back: {what}: {}", exit::one_line(&error));
                    if let Some(remedy) = exit::remedy_of(&error) {
                        log::warn!("{}", exit::fix(remedy));
                    }
                }
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    #[test]
    fn the_last_step_is_rolled_back_first_and_a_failure_stops_nothing() {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let mut undo = Undo::default();
        for n in 1..=3 {
            let seen = seen.clone();
            undo.push(format!("step {n}"), move || {
                seen.borrow_mut().push(n);
                anyhow::ensure!(n != 2, "no");
                Ok(n == 1)
            });
        }
        assert!(!undo.roll_back());
        assert_eq!(*seen.borrow(), [3, 2, 1]);
    }
}
