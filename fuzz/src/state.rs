//! Our own files, which an older or newer version, a full disk or somebody
//! else may have written.

use phoenix_nvidia::state::{SCHEMA, State};

/// What is taken is written and read again as it was.
pub fn holds(data: &[u8]) {
    let Some(state) = State::parse(data) else { return };
    assert_eq!(state.schema, SCHEMA);
    let Ok(written) = serde_json::to_vec_pretty(&state) else { panic!("{state:?}") };
    assert_eq!(State::parse(&written), Some(state));
}
