//! What AppArmor refused, as the kernel's log has it.

use crate::kinds::{self, Kind};
use phoenix_lab::Lab;

/// Counts lines of the log that were there before.
pub struct Denials {
    seen: usize,
}

fn log(lab: &Lab) -> Vec<String> {
    let output = lab.run(["dmesg"]).ok();
    output.stdout.lines().filter(|line| line.contains("apparmor=\"DENIED\"")).map(str::to_owned).collect()
}

impl Denials {
    /// From now on.
    pub fn begin(lab: &Lab) -> Denials {
        Denials { seen: log(lab).len() }
    }

    /// Those since the last look that may be of a kind's container, without those of attempts that are to be refused.
    pub fn more(&mut self, lab: &Lab, kind: &Kind) -> Vec<String> {
        let all = log(lab);
        let new = all[self.seen.min(all.len())..].iter();
        let of_another = |line: &str| {
            let others = kinds::ALL.iter().filter(|other| other.id != kind.id);
            others.map(|other| format!("lxc-{}_<", other.id)).any(|profile| line.contains(&profile))
        };
        let ours = new.filter(|line| !line.contains("comm=\"write-through\"") && !of_another(line));
        let ours = ours.cloned().collect();
        self.seen = all.len();
        ours
    }
}
