//! What the repository says of itself: promises with a test, corpora, rooms.

mod dependencies;
mod fuzz_corpus;
mod rooms;
mod security;
