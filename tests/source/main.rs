//! What the repository says of itself: promises with a test, corpora, rooms.

mod fuzz_corpus;
mod rooms;
mod security;
