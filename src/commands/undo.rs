//! Steps that are taken back, the last first, when a later one fails.

use crate::exit;

type Step = Box<dyn FnOnce() -> anyhow::Result<()>>;

/// What was done so far, and how each is taken back.
#[derive(Default)]
pub struct Undo {
    steps: Vec<(String, Step)>,
}

impl Undo {
    /// Notes a step that was done: what taking it back is, and how.
    pub fn push(&mut self, what: impl Into<String>, step: impl FnOnce() -> anyhow::Result<()> + 'static) {
        self.steps.push((what.into(), Box::new(step)));
    }

    /// Takes all back. One that fails does not keep the others from it, and is
    /// told.
    pub fn roll_back(self) {
        for (what, step) in self.steps.into_iter().rev() {
            match step() {
                Ok(()) => log::info!("taken back: {what}"),
                Err(error) => log::warn!("not taken back: {what}: {}", exit::one_line(&error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    #[test]
    fn the_last_step_is_taken_back_first_and_a_failure_stops_nothing() {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let mut undo = Undo::default();
        for n in 1..=3 {
            let seen = seen.clone();
            undo.push(format!("step {n}"), move || {
                seen.borrow_mut().push(n);
                anyhow::ensure!(n != 2, "no");
                Ok(())
            });
        }
        undo.roll_back();
        assert_eq!(*seen.borrow(), [3, 2, 1]);
    }
}
