//! What the other nodes of the cluster answer, each asked once for one hookscript.

use crate::pve::cluster::Node;
use crate::pve::readiness::{ASK, Readiness};
use crate::sys::time::Deadline;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// So long in all, nodes are asked to which no container comes by itself.
const ASKING: Duration = Duration::from_secs(15);

/// What they answered so far.
#[derive(Default)]
pub struct Answers {
    /// With `true` by those that had their whole time for it.
    given: BTreeMap<(String, PathBuf, bool), Readiness>,
    /// Until when nodes are asked to which a container comes only by hand.
    until: Option<Deadline>,
}

impl Answers {
    /// The answer of a node about a hookscript, which `ask` gets within a time; none of
    /// one to which a container comes only by hand, where that time is over.
    pub fn of(
        &mut self,
        node: &Node,
        snippet: &Path,
        by_itself: bool,
        ask: impl FnOnce(&Deadline) -> Readiness,
    ) -> Option<Readiness> {
        let key = |whole| (node.name.clone(), snippet.to_owned(), whole);
        // What was not known in what the others had left may be known in more.
        let will_do = |answer: &&Readiness| !by_itself || matches!(answer, Readiness::Known { .. });
        let short = || self.given.get(&key(false)).filter(will_do);
        if let Some(known) = self.given.get(&key(true)).or_else(short) {
            return Some(known.clone());
        }
        let deadline = match by_itself {
            true => Deadline::after(ASK),
            false => *self.until.get_or_insert_with(|| Deadline::after(ASKING)),
        };
        if !by_itself && (!node.online || deadline.passed()) {
            return None;
        }
        let answer = ask(&deadline);
        self.given.insert(key(by_itself), answer.clone());
        Some(answer)
    }

    /// The nodes that answered with another version than ours, and that.
    pub fn other_versions(&self) -> Vec<(String, String)> {
        let mut found: Vec<(String, String)> = Vec::new();
        for ((node, ..), answer) in &self.given {
            let Readiness::Known { version: Some(version), .. } = answer else { continue };
            if version != env!("CARGO_PKG_VERSION") && found.iter().all(|(known, _)| known != node) {
                found.push((node.clone(), version.clone()));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, online: bool) -> Node {
        Node { name: name.to_owned(), address: None, online }
    }

    #[test]
    fn nodes_to_which_nothing_comes_by_itself_share_one_time() {
        let (mut answers, snippet) = (Answers::default(), Path::new("/s/x"));
        let late = || Readiness::Unknown("late".to_owned());
        let known = || Readiness::Known { package: true, version: Some("0.0.1".to_owned()), snippet: true };
        answers.until = Some(Deadline::after(Duration::from_millis(500)));
        let short = answers.of(&node("a", true), snippet, false, |left| {
            assert!(left.remaining() <= Duration::from_millis(500));
            late()
        });
        assert_eq!(short, Some(late()));
        assert_eq!(answers.of(&node("a", true), snippet, false, |_| panic!("asked twice")), Some(late()));
        answers.until = Some(Deadline::secs(0));
        assert_eq!(answers.of(&node("b", true), snippet, false, |_| panic!("its time is over")), None);
        assert_eq!(answers.of(&node("c", false), snippet, false, |_| panic!("it is offline")), None);
        // Where one comes by itself it is asked with its whole time, also after the others.
        let whole = answers.of(&node("a", true), snippet, true, |time| {
            assert!(time.remaining() > Duration::from_secs(5));
            known()
        });
        assert_eq!(whole, Some(known()));
        for by_itself in [true, false] {
            assert_eq!(answers.of(&node("a", true), snippet, by_itself, |_| panic!("again")), Some(known()));
        }
        assert_eq!(answers.other_versions(), [("a".to_owned(), "0.0.1".to_owned())]);
    }
}
