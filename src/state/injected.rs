//! What is recorded of a container that has the host's driver mounted.

use serde::{Deserialize, Serialize};

/// What a look inside found, and was done there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Injected {
    /// The fingerprint of the software for which nothing is left to do inside, and
    /// the stamp of the conf then: its starts look into it no more.
    pub complete: Option<String>,
    /// The driver version to which it has links, and the stamp of the conf then.
    pub linked: Option<String>,
    /// Why no driver can be installed in it.
    pub impossible: Option<String>,
    /// Why it cannot use the host's driver.
    pub unfit: Option<String>,
    /// A directory with files of its own, which the mount would hide.
    pub hides: Option<String>,
    /// For which contents these reasons hold; none: for none.
    pub of: Option<String>,
    /// There may be links to it inside, whether or not it can use them.
    pub links: bool,
}

impl Injected {
    /// What is found now is of these contents: reasons of other ones hold no more.
    pub fn found_in(&mut self, contents: Option<String>) {
        if self.of != contents {
            self.forget_reasons();
            self.of = contents;
        }
    }

    /// Forgets why it could not have a driver in one way or the other. What was done
    /// inside stays known.
    pub fn forget_reasons(&mut self) {
        self.impossible = None;
        self.forget_refusals();
    }

    /// Its links have gone.
    pub fn unlinked(&mut self) {
        (self.linked, self.links) = (None, false);
    }

    /// Forgets why it could not have the host's.
    pub fn forget_refusals(&mut self) {
        (self.unfit, self.hides) = (None, None);
    }
}

/// What was done inside a container, for the contents that it has now: a rollback
/// or a restore takes it away, and writes the conf anew.
pub fn done(what: &str, stamp: &str) -> String {
    format!("{what} {stamp}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_reasons() -> Injected {
        let some = |what: &str| Some(what.to_owned());
        Injected {
            complete: some("a 1"),
            linked: some("580 1"),
            impossible: some("no room"),
            unfit: some("musl"),
            hides: some("/usr/lib/x"),
            of: some("disk-0"),
            links: true,
        }
    }

    #[test]
    fn a_reason_found_in_other_contents_brings_no_older_one_back() {
        let mut found = with_reasons();
        found.found_in(Some("disk-0".to_owned()));
        assert_eq!(found, with_reasons(), "the same contents");
        found.found_in(Some("disk-1".to_owned()));
        found.hides = Some("/usr/lib/y".to_owned());
        let old = (found.unfit.as_deref(), found.impossible.as_deref());
        assert_eq!((old, found.hides.as_deref()), ((None, None), Some("/usr/lib/y")));
        found.found_in(None);
        assert_eq!((&found.hides, &found.of), (&None, &None), "nobody knows of which");
    }

    #[test]
    fn a_look_again_forgets_the_reasons_and_not_what_was_done() {
        let mut found = with_reasons();
        found.forget_refusals();
        assert_eq!(found, Injected { unfit: None, hides: None, ..with_reasons() });
        found.forget_reasons();
        assert_eq!(found, Injected { unfit: None, hides: None, impossible: None, ..with_reasons() });
    }
}
